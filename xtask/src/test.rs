//! `cargo xtask test`: all tests.

use anyhow::Result;

use crate::process;
use crate::setup::{self, Need};

/// Sets up, builds and runs every test of the workspace.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    setup::ensure(&[Need::Compiler, Need::Network])?;
    if std::env::var_os("CI").is_some() {
        setup::ensure(&[Need::Promtool])?;
    }
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
    process::become_program(command.args(arguments))
}
