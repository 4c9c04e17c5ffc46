//! `cargo xtask demo` and `cargo xtask bench`: programs of this workspace, built as they would be
//! installed.

use anyhow::{Result, bail};

use crate::process;
use crate::setup::{self, Need};

/// A program, and the package of the same name.
pub(crate) struct Program {
    name: &'static str,
    needs: &'static [Need],
}

/// The main job in three network namespaces.
pub(crate) const DEMO: Program = Program {
    name: "demo",
    needs: &[Need::Compiler, Need::Network],
};

/// What mirroring and steering cost, against other ways of doing it.
pub(crate) const BENCH: Program = Program {
    name: "bench",
    needs: &[Need::Compiler, Need::Network, Need::Bench],
};

/// Sets up, builds a program and modelmirror itself, and gives this process over to it.
pub(crate) fn run(program: &Program, arguments: &[String]) -> Result<()> {
    let name = program.name;
    if !process::is_root() {
        bail!(
            "the {name} makes network namespaces and loads programs into the kernel; run `sudo -E cargo xtask {name}`"
        );
    }
    setup::ensure(program.needs)?;
    println!("{name}: building (release)");
    let build = ["--release", "--quiet", "--package", "modelmirror"];
    process::run(
        process::cargo("build")
            .args(build)
            .args(["--package", name]),
    )?;
    let run = ["--release", "--quiet", "--package", name, "--bin", name];
    let mut command = process::cargo("run");
    process::become_program(command.args(run).arg("--").args(arguments))
}
