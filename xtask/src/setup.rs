//! `cargo xtask setup`: installs what is missing, and says one line for each thing.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::toolchain::{self, Compiler, Missing};

/// Where maps and links are pinned.
const BPFFS: &str = "/sys/fs/bpf";

/// Something that commands need and a fresh machine does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A compiler and a linker for BPF.
    Compiler,
    /// Network namespaces, and a bpffs to pin in.
    Network,
    /// A virtual machine, and what boots in it.
    Machine,
    /// clippy for the eBPF crate.
    Lints,
    /// What modelmirror is measured against.
    Bench,
    /// Prometheus's own opinion of our metrics, and a real one to ask. Its package may start a server,
    /// so nobody gets it without asking: tests that need it are skipped where it is not, except under
    /// CI.
    Promtool,
}

/// A Debian package.
enum Package {
    /// What is wanted of it is a program, wherever that comes from.
    Program {
        package: &'static str,
        program: &'static str,
    },
    /// It has to be this very package.
    Itself(&'static str),
}

const COMPILER: &[Package] = &[
    Package::Itself("rustc-web"),
    Package::Itself("libstd-rust-web-dev-bpf"),
];
const NETWORK: &[Package] = &[
    Package::Program {
        package: "iproute2",
        program: "ip",
    },
    Package::Program {
        package: "ethtool",
        program: "ethtool",
    },
    Package::Program {
        package: "nftables",
        program: "nft",
    },
];
const MACHINE: &[Package] = &[
    Package::Program {
        package: "qemu-system-x86",
        program: "qemu-system-x86_64",
    },
    // Without libraries: it is all that the initrd has.
    Package::Itself("busybox-static"),
    Package::Program {
        package: "kmod",
        program: "depmod",
    },
    Package::Program {
        package: "cpio",
        program: "cpio",
    },
    Package::Program {
        package: "xz-utils",
        program: "xz",
    },
];
const PROMTOOL: &[Package] = &[Package::Program {
    package: "prometheus",
    program: "promtool",
}];
const LINTS: &[Package] = &[Package::Itself("rust-web-clippy")];
const BENCH: &[Package] = &[
    Package::Program {
        package: "nginx-light",
        program: "nginx",
    },
    Package::Itself("libnginx-mod-stream"),
    Package::Program {
        package: "haproxy",
        program: "haproxy",
    },
    Package::Program {
        package: "wrk",
        program: "wrk",
    },
];

/// Installs what building, testing and the demo need.
pub(crate) fn run() -> Result<()> {
    if ensure(&[Need::Compiler, Need::Network])? == 0 {
        println!("setup: nothing to install, everything is there");
    }
    Ok(())
}

/// Installs what is missing of `needs`, and returns how many things that were. Says nothing when
/// nothing is missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<usize> {
    let mut installed = 0;
    for need in needs {
        installed += match need {
            Need::Compiler => compiler()?,
            Need::Network => network()?,
            Need::Machine => packages(MACHINE)?,
            Need::Lints => lints()?,
            Need::Bench => packages(BENCH)?,
            Need::Promtool => packages(PROMTOOL)?,
        };
    }
    Ok(installed)
}

/// The compiler and the linker for BPF.
fn compiler() -> Result<usize> {
    let mut installed = 0;
    if toolchain::compiler().is_none() {
        installed += packages(COMPILER).context(
            "no compiler for BPF: where Debian's packages cannot be had, a rustup nightly with sources will do: \
             `rustup toolchain install nightly-2026-05-19 --component rust-src`",
        )?;
    }
    match toolchain::find() {
        Ok(_) => Ok(installed),
        Err(Missing::Linker) => Ok(installed + linker()?),
        Err(Missing::Compiler) => bail!(
            "Debian's rustc-web is installed, but its LLVM was not tried with bpf-linker {}; \
             `rustup toolchain install nightly-2026-05-19 --component rust-src` installs a compiler that fits",
            toolchain::LINKER_VERSION
        ),
    }
}

/// `bpf-linker`, into a folder of our own.
fn linker() -> Result<usize> {
    let root = toolchain::linker_root();
    println!(
        "setup: installing bpf-linker {} in {} (one to three minutes)",
        toolchain::LINKER_VERSION,
        root.display()
    );
    let mut command = process::cargo("install");
    command.args([
        "bpf-linker",
        "--locked",
        "--quiet",
        "--version",
        toolchain::LINKER_VERSION,
        "--root",
    ]);
    // A user's `target-dir` or flags are not meant for it.
    command
        .arg(&root)
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS");
    process::run_quietly(&mut command)
        .context("cannot install bpf-linker; is the crate registry reachable?")?;
    Ok(1)
}

/// What tests and the demo need of the machine. Without root there is nothing that they could use.
fn network() -> Result<usize> {
    if !process::is_root() {
        return Ok(0);
    }
    Ok(packages(NETWORK)? + bpffs()?)
}

/// clippy for the compiler that Debian packages; a nightly has its own.
fn lints() -> Result<usize> {
    match toolchain::compiler() {
        Some(Compiler::Debian(_)) => packages(LINTS),
        Some(Compiler::Nightly(_)) | None => Ok(0),
    }
}

/// Mounts the file system that maps and links are pinned in.
fn bpffs() -> Result<usize> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let mounted = mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some(BPFFS) && words.next() == Some("bpf")
    });
    if mounted {
        return Ok(0);
    }
    println!("setup: mounting bpffs at {BPFFS}");
    process::run_quietly(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
        .context("`cargo xtask test` and `demo` need it; a container gets it by `-v /sys/fs/bpf:/sys/fs/bpf --privileged`")?;
    Ok(1)
}

/// Installs the Debian packages that are not there.
fn packages(wanted: &[Package]) -> Result<usize> {
    let missing: Vec<_> = wanted
        .iter()
        .filter(|package| !package.is_there())
        .map(Package::name)
        .collect();
    if missing.is_empty() {
        return Ok(0);
    }
    let names = missing.join(" ");
    let cure = format!("apt-get update && apt-get install --no-install-recommends {names}");
    if process::program("apt-get").is_none() {
        bail!(
            "{names} missing, and there is no apt-get here; install what Debian calls so, on Debian: `{cure}`"
        );
    }
    if !process::is_root() {
        bail!("{names} missing, and only root can install it: `sudo sh -c '{cure}'`");
    }
    for name in &missing {
        println!("setup: installing {name} (Debian package)");
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .args(["--quiet", "--yes"])
            .args(arguments)
            .env("DEBIAN_FRONTEND", "noninteractive");
        process::run_quietly(&mut command)
    };
    apt(&["update"])
        .with_context(|| format!("cannot refresh the package lists; by hand: `{cure}`"))?;
    let mut install = vec!["install", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install).with_context(|| format!("cannot install; by hand: `{cure}`"))?;
    Ok(missing.len())
}

impl Package {
    fn name(&self) -> &'static str {
        match self {
            Self::Program { package, .. } | Self::Itself(package) => package,
        }
    }

    fn is_there(&self) -> bool {
        match self {
            Self::Program { program, .. } => process::program(program).is_some(),
            Self::Itself(package) => {
                let query = Command::new("dpkg-query")
                    .args(["-W", "-f", "${db:Status-Status}", package])
                    .output();
                query.is_ok_and(|query| query.stdout == b"installed")
            }
        }
    }
}
