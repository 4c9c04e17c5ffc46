//! `cargo xtask check`: all that can be said about the code without running it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};

use crate::setup::{self, Need};
use crate::toolchain::{self, Compiler};
use crate::{licences, process};

/// Crates outside the workspace: they are built for another target, or with a sanitizer.
const OUTSIDE: &[&str] = &["mirror-ebpf", "fuzz"];

/// Formatting, lints, documentation, licences and advisories, each in one line.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Compiler, Need::Lints])?;
    step("formatting", formatting)?;
    step("lints", || {
        process::run(process::cargo("clippy").args(CLIPPY))
    })?;
    step("lints of the eBPF crate", ebpf_lints)?;
    step("documentation", documentation)?;
    step("licences and advisories", licences::check)
}

const CLIPPY: &[&str] = &[
    "--quiet",
    "--workspace",
    "--all-targets",
    "--",
    "--deny",
    "warnings",
];

fn step(name: &str, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    check().with_context(|| format!("{name}: not in order"))?;
    println!("check: {name} ({:.0} s)", start.elapsed().as_secs_f64());
    Ok(())
}

fn formatting() -> Result<()> {
    process::run(process::cargo("fmt").args(["--all", "--check"]))
        .context("`cargo fmt --all` cures it")?;
    for krate in OUTSIDE {
        process::run(
            process::cargo("fmt")
                .arg("--manifest-path")
                .arg(manifest(krate))
                .arg("--check"),
        )
        .with_context(|| format!("`cargo fmt --manifest-path {krate}/Cargo.toml` cures it"))?;
    }
    Ok(())
}

/// Lints the eBPF crate for its real target, with the clippy that belongs to its compiler.
fn ebpf_lints() -> Result<()> {
    let toolchain = toolchain::find().map_err(|missing| anyhow!("no BPF {missing:?}"))?;
    let folder = process::root().join("mirror-ebpf");
    let mut command = match toolchain.compiler {
        Compiler::Nightly(_) => {
            let mut command = toolchain.cargo("clippy", &folder);
            command.args(["--quiet", "--release", "--", "--deny", "warnings"]);
            command
        }
        // rustup's clippy cannot read the `core` that another compiler made, so Debian's stands in
        // for the compiler. RUSTFLAGS would replace the crate's own flags; these are added to them.
        Compiler::Debian(_) => {
            let mut command = toolchain.cargo("check", &folder);
            let deny = format!(
                "target.{}.rustflags = ['--deny=warnings']",
                toolchain::TARGET
            );
            command.args(["--quiet", "--release", "--config", &deny]);
            command.env("RUSTC_WORKSPACE_WRAPPER", "/usr/bin/clippy-driver");
            command
        }
    };
    process::run(&mut command)
}

fn documentation() -> Result<()> {
    let mut command: Command = process::cargo("doc");
    command.args([
        "--quiet",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    // Private items are documented too, so links to them lead somewhere.
    let flags = "--deny warnings --allow rustdoc::private_intra_doc_links";
    process::run(command.env("RUSTDOCFLAGS", flags))
}

fn manifest(krate: &str) -> PathBuf {
    process::root().join(krate).join("Cargo.toml")
}
