//! `cargo xtask test --kernel`: what depends on the kernel, on one of a distribution's in a virtual machine.
//!
//! The guest has this machine's root, read-only, by 9p, so what was built here runs there. Without KVM, which
//! does not boot stock kernels everywhere.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::process;
use crate::setup::{self, Need};

/// What is run where nothing is asked for by name: whether the verifier takes the programs, and every
/// topology, those that other kernels lack too.
const TESTS: [&str; 2] = ["kernel::programs::", "topologies::"];

/// Tests that attach programs of their own by TCX, which came with 6.6.
const BY_TCX: [&str; 2] = [
    "topologies::peers::",
    "a_program_that_ends_the_chain_before_ours",
];

/// Modules by which the initrd finds the host's root.
const MODULES: [&str; 3] = ["virtio_pci", "9pnet_virtio", "9p"];

const INIT: &str = include_str!("kernels/init.sh");
const GUEST: &str = include_str!("kernels/guest.sh");
const MODPROBE: &str = "#!/bin/sh\nexec /sbin/modprobe -d /mnt/root \"$@\"\n";

/// A kernel of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kernel {
    /// Debian 12's.
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13's.
    #[value(name = "6.12")]
    V6_12,
}

impl Kernel {
    const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }

    const fn suite(self) -> &'static str {
        match self {
            Self::V6_1 => "bookworm",
            Self::V6_12 => "bookworm-backports",
        }
    }

    const fn has_tcx(self) -> bool {
        matches!(self, Self::V6_12)
    }
}

/// Builds, boots, and runs the tests in there.
pub(crate) fn run(kernel: Kernel, asked: &[String]) -> Result<()> {
    if !process::is_root() {
        bail!(
            "the virtual machine shows this machine's root to its guest, which only root can read; run `sudo -E cargo xtask test --kernel {}`",
            kernel.name()
        );
    }
    setup::ensure(&[Need::Compiler, Need::Network, Need::Machine])?;
    process::run(process::cargo("build").args(["--quiet", "--package", "modelmirror"]))?;
    let tests = test_binary()?;
    let machine = Machine::prepare(kernel)?;
    let mut filters: Vec<&str> = asked.iter().map(String::as_str).collect();
    if filters.is_empty() {
        filters.extend(TESTS);
    }
    if !kernel.has_tcx() {
        let names = BY_TCX.join(", ");
        println!(
            "test: Linux {} has no TCX, so these are not run: {names}",
            kernel.name()
        );
        filters.extend(BY_TCX.iter().flat_map(|name| ["--skip", name]));
    }
    let package = process::root().join("tests");
    let line = format!(
        "cd '{}' && exec '{}' --include-ignored --test-threads 2 {}\n",
        package.display(),
        tests.display(),
        filters.join(" ")
    );
    fs::write(machine.folder.join("tests.sh"), line)?;
    machine.run()
}

/// The integration tests, built.
fn test_binary() -> Result<PathBuf> {
    let mut command = process::cargo("test");
    command.args(["--quiet", "--package", "tests", "--test", "it", "--no-run"]);
    command.args(["--message-format", "json"]);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "the tests cannot be built");
    let messages = String::from_utf8_lossy(&output.stdout);
    let found = messages.lines().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == "it";
        message["executable"]
            .as_str()
            .filter(|_| is_it)
            .map(PathBuf::from)
    });
    found.context("cargo does not say where the tests are")
}

/// What it takes to boot a kernel, in a folder of its own that the guest can write to.
struct Machine {
    folder: PathBuf,
    version: String,
}

impl Machine {
    fn prepare(kernel: Kernel) -> Result<Self> {
        let folder = process::root().join("target/kernels").join(kernel.name());
        if booted(&folder).is_none() {
            download(kernel, &folder).with_context(|| {
                format!("cannot get Linux {} from Debian's mirror", kernel.name())
            })?;
        }
        let version = booted(&folder).context("the package has no kernel")?;
        let machine = Self { folder, version };
        machine.write("guest.sh", GUEST)?;
        machine.write("modprobe", MODPROBE)?;
        machine.initrd()?;
        Ok(machine)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    fn initrd(&self) -> Result<()> {
        let Self { folder, version } = self;
        let tree = folder.join("initrd");
        let _ = fs::remove_dir_all(&tree);
        for inside in ["bin", "dev", "proc", "sys", "new", "m"] {
            fs::create_dir_all(tree.join(inside))?;
        }
        fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
        self.write("initrd/init", INIT)?;
        let mut modules: Vec<PathBuf> = Vec::new();
        for module in MODULES {
            let mut command = Command::new("/sbin/modprobe");
            command.arg("-d").arg(folder.join("root"));
            command.args(["-S", version, "--show-depends", module]);
            let shown = process::output(&mut command)?;
            let paths = shown
                .lines()
                .filter_map(|line| line.strip_prefix("insmod "));
            for path in paths.map(|path| PathBuf::from(path.trim())) {
                if !modules.contains(&path) {
                    modules.push(path);
                }
            }
        }
        for (number, module) in modules.iter().enumerate() {
            let mut unpack = match module.extension().and_then(|end| end.to_str()) {
                Some("xz") => Command::new("xz"),
                Some("ko") => Command::new("cat"),
                _ => bail!("{}: packed in a way that is not known", module.display()),
            };
            if unpack.get_program() == "xz" {
                unpack.args(["-d", "-c"]);
            }
            let to = fs::File::create(tree.join(format!("m/{number:02}.ko")))?;
            process::run(unpack.arg(module).stdout(to))?;
        }
        let mut pack = Command::new("sh");
        pack.args(["-c", "find . | cpio -o -H newc --quiet >../initrd.cpio"]);
        process::run(pack.current_dir(&tree))
    }

    /// Boots, shows what the guest says, and ends as the tests did.
    fn run(&self) -> Result<()> {
        let Self { folder, version } = self;
        let result = folder.join("result");
        let _ = fs::remove_file(&result);
        println!("test: booting Linux {version}, without KVM");
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "3072",
        ]);
        command.args([
            "-nographic",
            "-no-reboot",
            "-nodefaults",
            "-serial",
            "stdio",
            "-monitor",
            "none",
        ]);
        command
            .arg("-kernel")
            .arg(folder.join(format!("root/boot/vmlinuz-{version}")));
        command.arg("-initrd").arg(folder.join("initrd.cpio"));
        command.args([
            "-append",
            "console=ttyS0 panic=-1 quiet mitigations=off net.ifnames=0",
        ]);
        share(&mut command, "root", Path::new("/"), ",readonly=on");
        share(&mut command, "work", folder, "");
        process::run(command.stdin(Stdio::null()))?;
        match fs::read_to_string(&result).as_deref().map(str::trim) {
            Ok("0") => {
                println!("test: Linux {version}: passed");
                Ok(())
            }
            Ok(_) => bail!("Linux {version}: tests failed"),
            Err(_) => bail!("Linux {version}: the machine ended before the tests did"),
        }
    }
}

/// Shows a folder to the guest.
fn share(command: &mut Command, tag: &str, folder: &Path, more: &str) {
    let path = folder.display();
    let shared = format!("local,id={tag},path={path},security_model=none,multidevs=remap{more}");
    command.args(["-fsdev", &shared]);
    let device = format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}");
    command.args(["-device", &device]);
}

/// The version of the kernel that is unpacked in a folder.
fn booted(folder: &Path) -> Option<String> {
    let files = fs::read_dir(folder.join("root/boot")).ok()?;
    let names = files.flatten().map(|file| file.file_name());
    names
        .filter_map(|name| Some(name.to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
        .next()
}

/// Gets a kernel, and docker-proxy, by an apt state of our own: this machine's knows nothing of it.
fn download(kernel: Kernel, folder: &Path) -> Result<()> {
    let apt = Apt::prepare(&folder.join("apt"), kernel.suite())?;
    let depends = apt.ask(&["apt-cache", "depends", "--important", "linux-image-amd64"])?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.context("linux-image-amd64 names no kernel")?;
    println!("test: downloading {package} (100 MB)");
    apt.unpack(package, &folder.join("root"))?;
    apt.unpack("docker.io", &folder.join("docker"))?;
    let version = booted(folder).context("the package has no kernel")?;
    process::run(
        Command::new("/sbin/depmod")
            .arg("-b")
            .arg(folder.join("root"))
            .arg(version),
    )
}

/// apt with a state of its own.
struct Apt {
    state: PathBuf,
}

impl Apt {
    /// One with Debian's `suite`, and the release that it belongs to, from the mirror that this machine uses.
    fn prepare(state: &Path, suite: &str) -> Result<Self> {
        let mut targets = Command::new("apt-get");
        targets.args(["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"]);
        let targets = process::output(&mut targets)?;
        let mirror = targets
            .lines()
            .find_map(|line| line.strip_prefix("Debian Debian "));
        let mirror = mirror.context("apt's sources on this machine have no mirror of Debian")?;
        for folder in ["lists/partial", "cache/archives/partial", "etc"] {
            fs::create_dir_all(state.join(folder))?;
        }
        fs::write(state.join("status"), "")?;
        let release = suite.trim_end_matches("-backports");
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let line =
            |suite: &str| format!("deb [arch=amd64 signed-by={keys}] {mirror} {suite} main\n");
        let mut sources = line(release);
        // Newer than the release's own, but not taken by itself.
        let mut options = String::new();
        if suite != release {
            sources += &line(suite);
            options = format!("APT::Default-Release \"{suite}\";\n");
        }
        fs::write(state.join("etc/sources.list"), sources)?;
        let at = state.display();
        let config = format!(
            "Dir::State \"{at}\"; Dir::State::Lists \"{at}/lists\"; Dir::State::status \"{at}/status\";\n\
             Dir::Cache \"{at}/cache\"; Dir::Etc \"{at}/etc\";\n\
             APT::Architecture \"amd64\"; APT::Sandbox::User \"root\";\n{options}"
        );
        fs::write(state.join("apt.conf"), config)?;
        let apt = Self {
            state: state.to_owned(),
        };
        apt.ask(&["apt-get", "update"])?;
        Ok(apt)
    }

    fn ask(&self, line: &[&str]) -> Result<String> {
        let mut command = Command::new(line[0]);
        command
            .args(&line[1..])
            .env("APT_CONFIG", self.state.join("apt.conf"));
        process::output(command.current_dir(&self.state))
    }

    /// Downloads a package and unpacks it.
    fn unpack(&self, package: &str, to: &Path) -> Result<()> {
        self.ask(&["apt-get", "download", package])?;
        let files = fs::read_dir(&self.state)?.flatten().map(|file| file.path());
        let name = |path: &PathBuf| {
            path.file_name()
                .map(|name| name.to_string_lossy().into_owned())
        };
        let mut found = files
            .filter(|path| name(path).is_some_and(|name| name.starts_with(&format!("{package}_"))));
        let file = found.next().context("apt has downloaded nothing")?;
        process::run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(to))?;
        Ok(fs::remove_file(file)?)
    }
}
