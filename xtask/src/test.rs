//! `cargo xtask test`: all tests.

use anyhow::Result;
use clap::Args;

use crate::process;
use crate::setup::{self, Need};

/// What to test.
#[derive(Args)]
pub(crate) struct Options {
    /// Passed on to the test runner, such as a part of a test's name.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Sets up, builds and runs every test of the workspace.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::ensure(&[Need::Compiler, Need::Network])?;
    if !process::is_root() {
        println!(
            "test: not root, so the tests of the kernel and of network namespaces will say that they skip"
        );
    }
    // The integration tests run the program itself.
    process::run(process::cargo("build").args(["--quiet", "--package", "mirror-user"]))?;
    let mut command = if process::program("cargo-nextest").is_some() {
        let mut command = process::cargo("nextest");
        command.args(["run", "--workspace", "--no-fail-fast"]);
        command
    } else {
        let mut command = process::cargo("test");
        command.args(["--workspace", "--no-fail-fast", "--all-targets"]);
        command
    };
    process::become_program(command.args(&options.arguments))
}
