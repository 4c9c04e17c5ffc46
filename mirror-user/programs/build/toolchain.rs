//! Finds what builds the eBPF crate. Shared by the build script, which only looks, and by
//! `cargo xtask setup`, which installs what is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The linker that turns rustc's bitcode into a BPF object, with LLVM 22 taken from rustup's
/// toolchain. Its LLVM must be at least as new as that of the rustc that made the bitcode.
pub(crate) const LINKER_VERSION: &str = "0.10.3";

/// The target of the eBPF crate.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// The newest LLVM whose bitcode [`LINKER_VERSION`] reads.
const LINKER_LLVM: u32 = 22;

/// The compilers that can build `core` for BPF.
#[derive(Clone, Debug)]
pub(crate) enum Compiler {
    /// A nightly of rustup's, by name, with rust-src: builds `core` itself.
    Nightly(String),
    /// Debian's rustc-web, which ships `core` for BPF.
    Debian(PathBuf),
}

/// Everything that a build needs.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) compiler: Compiler,
    /// bpf-linker.
    pub(crate) linker: PathBuf,
}

/// What is missing for a build. Each is cured by `cargo xtask setup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// No compiler that can build `core` for BPF.
    Compiler,
    /// No bpf-linker of [`LINKER_VERSION`].
    Linker,
}

/// Looks for a compiler and the linker.
pub(crate) fn find() -> Result<Toolchain, Missing> {
    let compiler = compiler().ok_or(Missing::Compiler)?;
    let linker = linker_root().join("bin/bpf-linker");
    if linker.is_file() {
        Ok(Toolchain { compiler, linker })
    } else {
        Err(Missing::Linker)
    }
}

/// A compiler that can build `core` for BPF, nightly before Debian's.
pub(crate) fn compiler() -> Option<Compiler> {
    if let Some(nightly) = nightly() {
        return Some(Compiler::Nightly(nightly));
    }
    let debian = PathBuf::from("/usr/bin/rustc");
    let core = sysroot(Command::new(&debian))?
        .join("lib/rustlib")
        .join(TARGET)
        .join("lib");
    core.is_dir().then_some(Compiler::Debian(debian))
}

/// Where `cargo install --root` puts the linker: apart from the user's own, which may be another
/// version.
pub(crate) fn linker_root() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_else(|| "/root".into()));
    cache
        .unwrap_or_else(|| home().join(".cache"))
        .join(format!("modelmirror/bpf-linker-{LINKER_VERSION}"))
}

/// The first nightly that will do, dated ones included.
fn nightly() -> Option<String> {
    let list = output(Command::new("rustup").args(["toolchain", "list"]))?;
    let names = list
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let mut nightlies = names.filter(|name| name.starts_with("nightly"));
    nightlies
        .find(|name| builds_core(name).unwrap_or(false))
        .map(str::to_owned)
}

/// A nightly can be installed without rust-src, or be newer than the linker's LLVM: neither helps.
fn builds_core(nightly: &str) -> Option<bool> {
    let rustc = || {
        let mut command = rustup(nightly);
        command.arg("rustc");
        command
    };
    let core = sysroot(rustc())?.join("lib/rustlib/src/rust/library/core");
    let version = output(rustc().arg("-vV"))?;
    let llvm = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    let llvm: u32 = llvm.split('.').next()?.parse().ok()?;
    Some(core.is_dir() && llvm <= LINKER_LLVM)
}

/// `rustup run TOOLCHAIN`, which never installs anything.
fn rustup(toolchain: &str) -> Command {
    let mut command = Command::new("rustup");
    command.args(["run", toolchain]);
    command
}

/// The directory that rustup's stable toolchain lives in: the linker takes LLVM from there.
pub(crate) fn rustup_sysroot() -> Option<PathBuf> {
    let mut command = rustup("stable");
    command.arg("rustc");
    sysroot(command).or_else(|| sysroot(Command::new("rustc")))
}

fn sysroot(mut rustc: Command) -> Option<PathBuf> {
    output(rustc.args(["--print", "sysroot"])).map(|path| PathBuf::from(path.trim()))
}

fn output(command: &mut Command) -> Option<String> {
    clean(command);
    let output = command
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Takes away what cargo and rustup set for the crate that is being built: it would make the
/// inner build use the outer one's compiler and flags.
fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let outer = [
            "RUSTC",
            "RUSTDOC",
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CLIPPY_ARGS",
            "RUSTUP_TOOLCHAIN",
        ];
        if outer.iter().any(|prefix| text.starts_with(prefix)) || text.starts_with("CARGO_CFG") {
            command.env_remove(&name);
        }
    }
    command
}

impl Toolchain {
    /// `cargo SUBCOMMAND` for the eBPF crate in `crate_dir`, with its target given.
    pub(crate) fn cargo(&self, subcommand: &str, crate_dir: &Path) -> Command {
        let mut command = match &self.compiler {
            Compiler::Nightly(name) => {
                let mut command = rustup(name);
                command.args(["cargo", subcommand, "-Zbuild-std=core"]);
                command
            }
            Compiler::Debian(_) => {
                let mut command = Command::new("cargo");
                command.arg(subcommand);
                command
            }
        };
        clean(&mut command);
        if let Compiler::Debian(rustc) = &self.compiler {
            // aya-ebpf needs inline assembly for BPF, which is not stable.
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
        }
        // The linker looks for LLVM beside the first rustc on PATH.
        if let Some(sysroot) = rustup_sysroot() {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let paths = std::iter::once(sysroot.join("bin")).chain(std::env::split_paths(&path));
            if let Ok(path) = std::env::join_paths(paths) {
                command.env("PATH", path);
            }
        }
        command
            .args(["--target", TARGET])
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .current_dir(crate_dir);
        command
    }
}
