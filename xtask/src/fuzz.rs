//! `cargo xtask fuzz`: every fuzz target for a while, the known crashes first.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::process;
use crate::setup::{self, Need};

/// What to fuzz, and for how long.
#[derive(Args)]
pub(crate) struct Options {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Only these targets; all when left out.
    targets: Vec<String>,
}

/// Runs each target; what crashes is left in `fuzz/artifacts/TARGET`.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&[Need::Compiler])?;
    install()?;
    let known = targets()?;
    for target in &options.targets {
        if !known.contains(target) {
            bail!("no fuzz target `{target}`; there are: {}", known.join(", "));
        }
    }
    let chosen = if options.targets.is_empty() {
        &known
    } else {
        &options.targets
    };
    for target in chosen {
        println!("fuzz: {target} for {} s", options.seconds);
        process::run(fuzz(target, options.seconds)?.current_dir(process::root()))
            .with_context(|| format!("{target} found something; keep it: move fuzz/artifacts/{target}/* to fuzz/regressions/{target}/"))?;
    }
    Ok(())
}

/// The command for one target. Sanitizers are unstable: a nightly has them by right, a stable
/// compiler when told so.
fn fuzz(target: &str, seconds: u64) -> Result<Command> {
    let corpus = PathBuf::from("fuzz/corpus").join(target);
    let regressions = PathBuf::from("fuzz/regressions").join(target);
    fs::create_dir_all(process::root().join(&corpus)).context("cannot make the corpus folder")?;
    let mut command = Command::new("cargo");
    if Command::new("rustup")
        .args(["run", "nightly", "rustc", "-V"])
        .output()
        .is_ok_and(|run| run.status.success())
    {
        command.arg("+nightly").env_remove("RUSTUP_TOOLCHAIN");
    } else {
        command.env("RUSTC_BOOTSTRAP", "1");
    }
    command.args(["fuzz", "run", target]).arg(corpus);
    if process::root().join(&regressions).is_dir() {
        command.arg(regressions);
    }
    command.arg("--").arg(format!("-max_total_time={seconds}"));
    Ok(command)
}

fn install() -> Result<()> {
    if process::program("cargo-fuzz").is_some() {
        return Ok(());
    }
    println!("setup: installing cargo-fuzz (about a minute)");
    process::run_quietly(process::cargo("install").args(["cargo-fuzz", "--locked", "--quiet"]))
        .context("cannot install cargo-fuzz; is the crate registry reachable?")
}

/// Names of the files in `fuzz/fuzz_targets`, in order.
fn targets() -> Result<Vec<String>> {
    let folder = process::root().join("fuzz/fuzz_targets");
    let files =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names: Vec<_> = files
        .flatten()
        .filter_map(|file| {
            file.file_name()
                .to_str()?
                .strip_suffix(".rs")
                .map(str::to_owned)
        })
        .collect();
    names.sort();
    Ok(names)
}
