//! `cargo xtask dist`: the program as it is given to others, and what debuggers need beside it.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::setup::{self, Need};

/// The program's name, and its debug file's.
const NAMES: [&str; 2] = ["modelmirror", "modelmirror.debug"];

/// Builds it, and takes the debug information out. The program names the file that has it, so debuggers, `perf` and
/// backtraces find that where both are in one folder.
pub(crate) fn run() -> Result<()> {
    setup::ensure(&[Need::Compiler])?;
    let [name, debug] = NAMES;
    let build = ["--profile", "dist", "--package", "modelmirror", "--bin"];
    process::run(process::cargo("build").args(build).arg(name))?;
    let target = process::root().join("target");
    // Not where cargo has built it: that file has to stay as cargo knows it.
    let folder = target.join(name);
    fs::create_dir_all(&folder).context("cannot make a folder in `target`")?;
    let built = target.join("dist").join(name);
    let objcopy = |arguments: &[&str], to: &str| {
        let mut command = Command::new("objcopy");
        // The debug file is looked for by its name alone.
        command.args(arguments).arg(&built).arg(to);
        process::run_quietly(command.current_dir(&folder))
    };
    objcopy(&["--only-keep-debug", "--compress-debug-sections"], debug)?;
    let link = format!("--add-gnu-debuglink={debug}");
    objcopy(&["--strip-all", &link], name)?;
    for name in NAMES {
        println!("dist: {}", described(&folder.join(name))?);
    }
    Ok(())
}

/// A file and its size.
fn described(path: &Path) -> Result<String> {
    let bytes = fs::metadata(path)?.len();
    Ok(format!("{} ({:.1} MB)", path.display(), bytes as f64 / 1e6))
}
