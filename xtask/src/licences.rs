//! Licences of all dependencies against the list in `deny.toml`, and, where `cargo-deny` is
//! installed, all that it checks besides.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::process;

/// The part of `deny.toml` that is read here. `cargo-deny` reads the rest too.
#[derive(Deserialize)]
struct Deny {
    licenses: Licences,
}

#[derive(Deserialize)]
struct Licences {
    allow: Vec<String>,
}

/// The part of `cargo metadata` that is read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

/// Checks the licences of the workspace's and the eBPF crate's dependencies, and their advisories
/// where that can be done.
pub(crate) fn check() -> Result<()> {
    let deny =
        fs::read_to_string(process::root().join("deny.toml")).context("cannot read deny.toml")?;
    let deny: Deny = toml::from_str(&deny).context("cannot read deny.toml")?;
    let mut refused = BTreeSet::new();
    for manifest in ["Cargo.toml", "mirror-ebpf/Cargo.toml", "fuzz/Cargo.toml"] {
        if process::root().join(manifest).is_file() {
            refused.extend(
                dependencies(manifest)?
                    .iter()
                    .filter_map(|package| package.refusal(&deny.licenses.allow)),
            );
        }
    }
    if !refused.is_empty() {
        let refused: Vec<_> = refused.into_iter().collect();
        bail!(
            "licences that deny.toml does not allow:\n  {}",
            refused.join("\n  ")
        );
    }
    cargo_deny()
}

/// Every package that a manifest's lock file names for this platform.
fn dependencies(manifest: &str) -> Result<Vec<Package>> {
    let mut command = process::cargo("metadata");
    command.args([
        "--quiet",
        "--format-version",
        "1",
        "--filter-platform",
        "x86_64-unknown-linux-gnu",
    ]);
    let output = command
        .args(["--manifest-path", manifest])
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!(
            "cargo metadata for {manifest}: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cargo metadata said something unknown")?;
    Ok(metadata.packages)
}

impl Package {
    /// Why the package may not be used, if so.
    fn refusal(&self, allow: &[String]) -> Option<String> {
        let Some(license) = &self.license else {
            return Some(format!("{} {}: none given", self.name, self.version));
        };
        (!is_allowed(license, allow)).then(|| format!("{} {}: {license}", self.name, self.version))
    }
}

/// Whether one of the ways that an SPDX expression offers is allowed in full.
fn is_allowed(license: &str, allow: &[String]) -> bool {
    // Old crates write `MIT/Apache-2.0`.
    let Ok(expression) = Expression::parse_mode(license, ParseMode::LAX) else {
        return false;
    };
    expression.evaluate(|requirement| allow.contains(&requirement.to_string()))
}

/// Advisories, duplicates, bans and sources, where `cargo-deny` is there and can fetch its database.
fn cargo_deny() -> Result<()> {
    if process::program("cargo-deny").is_none() {
        println!(
            "check: advisories not checked, cargo-deny is not installed (`cargo install cargo-deny --locked`)"
        );
        return Ok(());
    }
    process::run(process::cargo("deny").args([
        "--log-level",
        "error",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))?;
    let fetched = Command::new("cargo")
        .args(["deny", "--log-level", "error", "fetch", "db"])
        .current_dir(process::root())
        .output();
    if !fetched.is_ok_and(|fetch| fetch.status.success()) {
        println!(
            "check: advisories not checked, the advisory database cannot be fetched from here"
        );
        return Ok(());
    }
    process::run(process::cargo("deny").args(["--log-level", "error", "check", "advisories"]))
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[track_caller]
    fn check(license: &str, expected: bool) {
        let allow = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned);
        assert_eq!(is_allowed(license, &allow), expected, "{license}");
    }

    #[test]
    fn expressions_are_evaluated() {
        check("MIT", true);
        check("MIT/Apache-2.0", true);
        check("GPL-3.0-only", false);
        check("GPL-3.0-only OR MIT", true);
        check("GPL-3.0-only AND MIT", false);
        check("(MIT OR GPL-3.0-only) AND Apache-2.0", true);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("not a licence", false);
    }
}
