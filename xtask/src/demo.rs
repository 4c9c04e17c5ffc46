//! `cargo xtask demo`: the main job in three network namespaces.

use anyhow::{Result, bail};
use clap::Args;

use crate::process;
use crate::setup::{self, Need};

/// How to show it.
#[derive(Args)]
pub(crate) struct Options {
    /// Passed on to the demo, such as `--seconds 20`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Sets up, builds what is shown as it would be installed, and shows it.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !process::is_root() {
        bail!(
            "the demo makes network namespaces and loads programs into the kernel; run `sudo -E cargo xtask demo`"
        );
    }
    setup::ensure(&[Need::Compiler, Need::Network])?;
    println!("demo: building (release)");
    process::run(process::cargo("build").args([
        "--release",
        "--quiet",
        "--package",
        "mirror-user",
        "--package",
        "demo",
    ]))?;
    let mut command = process::cargo("run");
    command.args([
        "--release",
        "--quiet",
        "--package",
        "demo",
        "--bin",
        "demo",
        "--",
    ]);
    process::become_program(command.args(&options.arguments))
}
