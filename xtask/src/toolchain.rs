//! Finds what builds the eBPF crate, without installing anything and without any dependency:
//! mirror-user's build script and `cargo xtask` share this file.
//!
//! Two compilers will do. A rustup nightly with `rust-src` builds `core` for BPF itself; Debian's
//! `rustc-web` comes with a `core` already built for it. Both need `bpf-linker`, which is kept in a
//! folder of our own, so that another version of it on the machine is neither used nor disturbed.

use std::env;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target that the eBPF crate is built for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The `bpf-linker` that is known to link what both compilers make.
pub(crate) const LINKER_VERSION: &str = "0.10.3";

/// The compilers' LLVMs that were tried with that `bpf-linker`.
const LLVM: RangeInclusive<u32> = 21..=22;

/// Debian's compiler, as opposed to rustup's of the same name.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// Where Debian keeps the `core` that is built for BPF.
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

/// Which compiler makes the eBPF object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Toolchain {
    /// A rustup toolchain, by name, that has `rust-src`.
    Nightly(String),
    /// Debian's `rustc-web` with `libstd-rust-web-dev-bpf`.
    Debian,
}

/// A machine that can build the eBPF crate.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The compiler.
    pub(crate) toolchain: Toolchain,
    /// The linker's path.
    pub(crate) linker: PathBuf,
}

/// What a machine lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Neither compiler is there.
    Compiler,
    /// A compiler is there, `bpf-linker` is not.
    Linker,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self {
            Self::Compiler => "no compiler for BPF",
            Self::Linker => "no bpf-linker",
        };
        write!(f, "{what} was found; `cargo xtask setup` installs it")
    }
}

impl std::error::Error for Missing {}

/// Looks for a compiler and the linker, a suitable nightly first.
///
/// # Errors
/// Names the first thing that is missing.
pub(crate) fn find() -> Result<Found, Missing> {
    let toolchain = compiler().ok_or(Missing::Compiler)?;
    let linker = linker_root().join("bin/bpf-linker");
    if linker.is_file() {
        Ok(Found { toolchain, linker })
    } else {
        Err(Missing::Linker)
    }
}

/// The compiler alone.
pub(crate) fn compiler() -> Option<Toolchain> {
    nightly().or_else(|| debian_compiler().then_some(Toolchain::Debian))
}

/// The folder that holds our own `bpf-linker`, as `cargo install --root` lays it out.
pub(crate) fn linker_root() -> PathBuf {
    let set = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = set("XDG_CACHE_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"));
    cache
        .join("modelmirror")
        .join(format!("bpf-linker-{LINKER_VERSION}"))
}

impl Found {
    /// `cargo SUBCOMMAND` with the environment and flags that make it build for BPF. Run it in the
    /// eBPF crate's folder.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = match &self.toolchain {
            // `rustup run` and not `cargo +name`: inside a build script, `cargo` is no proxy.
            Toolchain::Nightly(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "cargo", subcommand, "-Zbuild-std=core"]);
                command.env_remove("RUSTC");
                command
            }
            Toolchain::Debian => {
                let mut command = Command::new("cargo");
                command.arg(subcommand);
                // aya-ebpf needs one unstable feature: inline assembly for BPF.
                command
                    .env("RUSTC", DEBIAN_RUSTC)
                    .env("RUSTC_BOOTSTRAP", "1");
                command
            }
        };
        command.args(["--target", TARGET]);
        command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker);
        // What the outer cargo was told is meant for the host.
        for name in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTDOC",
        ] {
            command.env_remove(name);
        }
        command.env_remove("CARGO_TARGET_DIR");
        command
    }
}

/// The first rustup nightly that can build `core` and whose LLVM fits the linker.
fn nightly() -> Option<Toolchain> {
    let list = output("rustup", &["toolchain", "list"])?;
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
        .find(|name| builds_core(name).unwrap_or(false))
        .map(|name| Toolchain::Nightly(name.to_owned()))
}

/// Whether a rustup toolchain has the sources of `core` and an LLVM that fits the linker.
fn builds_core(name: &str) -> Option<bool> {
    let sysroot = output("rustup", &["run", name, "rustc", "--print", "sysroot"])?;
    let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    let version = output("rustup", &["run", name, "rustc", "-vV"])?;
    Some(core.is_dir() && LLVM.contains(&llvm_major(&version)?))
}

/// The number in the line `LLVM version: 22.1.4` of `rustc -vV`.
fn llvm_major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// Whether Debian's compiler and its `core` for BPF are there.
fn debian_compiler() -> bool {
    let has_core = std::fs::read_dir(DEBIAN_CORE).is_ok_and(|files| {
        files
            .flatten()
            .any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
    });
    has_core
        && output(DEBIAN_RUSTC, &["-vV"])
            .and_then(|version| llvm_major(&version))
            .is_some_and(|llvm| LLVM.contains(&llvm))
}

/// What a program printed, if it could be run and succeeded.
fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
