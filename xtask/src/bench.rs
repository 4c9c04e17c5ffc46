//! `cargo xtask bench`: what mirroring costs, against other ways of doing it.

use anyhow::{Result, bail};
use clap::Args;

use crate::process;
use crate::setup::{self, Need};

/// How to measure.
#[derive(Args)]
pub(crate) struct Options {
    /// Passed on to the bench.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Sets up, builds what is measured as it would be installed, and measures it.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !process::is_root() {
        bail!(
            "the bench makes network namespaces and loads programs into the kernel; run `sudo -E cargo xtask bench`"
        );
    }
    setup::ensure(&[Need::Compiler, Need::Network, Need::Bench])?;
    println!("bench: building (release)");
    process::run(process::cargo("build").args([
        "--release",
        "--quiet",
        "--package",
        "mirror-user",
        "--package",
        "bench",
    ]))?;
    let mut command = process::cargo("run");
    command.args([
        "--release",
        "--quiet",
        "--package",
        "bench",
        "--bin",
        "bench",
        "--",
    ]);
    process::become_program(command.args(&options.arguments))
}
