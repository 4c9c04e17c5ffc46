//! Network namespaces that live as long as their value.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::process::Process;
use crate::wait::{LIMIT, try_within};

/// A network namespace with its loopback up. It has no name in the file system: the kernel takes
/// it away, with the devices in it, once this value and its clones, and all processes and sockets in
/// it are gone.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    handle: Arc<File>,
}

impl Namespace {
    /// Makes one. The name is for messages only.
    ///
    /// # Errors
    /// Needs CAP_SYS_ADMIN and the program `ip`.
    pub fn new(name: &str) -> Result<Self> {
        // A thread of its own: the caller stays where it is.
        let handle = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        })
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
        .with_context(|| format!("cannot make the network namespace {name}"))?;
        let namespace = Self {
            name: name.into(),
            handle: Arc::new(handle),
        };
        namespace.ip("link set lo up")?;
        namespace.sysctl("net/ipv4/ip_forward", "0")?;
        namespace.sysctl("net/ipv6/conf/all/forwarding", "0")?;
        Ok(namespace)
    }

    /// The name it was made with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path that leads to the namespace as long as this value lives, for
    /// `nsenter --net=PATH` and `ip link set eth0 netns PATH`.
    pub fn path(&self) -> PathBuf {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.handle.as_raw_fd()
        )
        .into()
    }

    /// Runs a function inside, on a thread of its own. Sockets that it opens stay inside wherever
    /// they are used later.
    ///
    /// # Panics
    /// When the function does.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let enter = || {
            setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET)
                .unwrap_or_else(|error| panic!("cannot enter namespace {}: {error}", self.name));
            inside()
        };
        let result = thread::scope(|scope| scope.spawn(enter).join());
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A command that will run inside. It sees the same files as this process, bpffs included,
    /// unlike under `ip netns exec`.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let handle = Arc::clone(&self.handle);
        let enter =
            move || setns(handle.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        // SAFETY: between fork and exec it makes one system call and allocates nothing.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a command inside to its end, and returns what it printed.
    ///
    /// # Errors
    /// With what it wrote to stderr, when it fails.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let line = || format!("{}: `{program} {}`", self.name, arguments.join(" "));
        let output = self
            .command(program)
            .args(arguments)
            .output()
            .with_context(line)?;
        if !output.status.success() {
            bail!(
                "{}: {}",
                line(),
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a command inside that is killed when its value is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn(&format!("{}/{name}", self.name), command)
    }

    /// `ip ARGUMENTS`, split at blanks.
    ///
    /// # Errors
    /// With what `ip` says.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        self.output("ip", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// `ethtool ARGUMENTS`, split at blanks: `-K eth0 tso off gso off`.
    ///
    /// # Errors
    /// With what `ethtool` says.
    pub fn ethtool(&self, arguments: &str) -> Result<String> {
        self.output("ethtool", &arguments.split_whitespace().collect::<Vec<_>>())
    }

    /// Loads rules into nftables, inside.
    ///
    /// # Errors
    /// With what `nft` says.
    pub fn nft(&self, rules: &str) -> Result<()> {
        self.output("nft", &[rules]).map(drop)
    }

    /// How many packets a named counter of a table has counted.
    ///
    /// # Errors
    /// When there is no such counter.
    pub fn nft_counter(&self, family: &str, table: &str, counter: &str) -> Result<u64> {
        let listed = self.output("nft", &["-j", "list", "counter", family, table, counter])?;
        let listed: serde_json::Value = serde_json::from_str(&listed)?;
        let entries = listed["nftables"].as_array().into_iter().flatten();
        let mut packets = entries.filter_map(|entry| entry["counter"]["packets"].as_u64());
        packets
            .next()
            .with_context(|| format!("{}: nft lists no counter {counter}", self.name))
    }

    /// What the kernel has counted here: `counter("Tcp", "InErrs")`, by the names that
    /// /proc/net/snmp, netstat and snmp6 have.
    ///
    /// # Errors
    /// When there is no such counter.
    pub fn counter(&self, group: &str, name: &str) -> Result<u64> {
        let read = |file| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let read_all = || io::Result::Ok((read("snmp")? + &read("netstat")?, read("snmp6")?));
        let (tables, list) = self.run(read_all)?;
        // A line of names, followed by one of values.
        let mut lines = tables
            .lines()
            .filter_map(|line| line.strip_prefix(group)?.strip_prefix(": "));
        let (names, values) = lines.next().zip(lines.next()).unwrap_or_default();
        let mut pairs = names.split(' ').zip(values.split(' '));
        let value = pairs.find_map(|(found, value)| (found == name).then_some(value));
        // Of IPv6 there is one counter a line.
        let of_ipv6 = || {
            let mut lines = list.lines().filter_map(|line| line.split_once(' '));
            lines.find_map(|(found, value)| {
                (found.strip_prefix(group)? == name).then_some(value.trim())
            })
        };
        let value = value.or_else(of_ipv6);
        let value = value.with_context(|| format!("{}: no counter {group} {name}", self.name))?;
        Ok(value.parse()?)
    }

    /// Gives a device an address such as `10.0.0.5/24` or `fd00::5/64`, usable at once.
    ///
    /// # Errors
    /// With what `ip` says.
    pub fn address(&self, device: &str, address: &str) -> Result<()> {
        // IPv6 would first ask around for duplicates.
        let nodad = if address.contains(':') { " nodad" } else { "" };
        self.ip(&format!("address add {address} dev {device}{nodad}"))
            .map(drop)
    }

    /// Sets a value under `/proc/sys`, named as its path is: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When there is no such value, or it is not one of a network namespace.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        // What /proc/sys/net shows depends on who opens it.
        self.run(|| std::fs::write(format!("/proc/sys/{name}"), value))
            .with_context(|| format!("{}: cannot set {name} to {value}", self.name))
    }
}

/// A cable: two devices in one namespace each, both of them ready to send.
///
/// # Errors
/// With what `ip` says.
pub fn veth(one: (&Namespace, &str), other: (&Namespace, &str)) -> Result<()> {
    let ((here, device), (there, peer)) = (one, other);
    let far = there.path();
    here.ip(&format!(
        "link add {device} type veth peer name {peer} netns {}",
        far.display()
    ))?;
    here.ip(&format!("link set {device} up"))?;
    there.ip(&format!("link set {peer} up"))?;
    for (namespace, device) in [one, other] {
        // Until the kernel has noticed the carrier, which takes a moment, all that leaves is lost.
        try_within(LIMIT, "the cable carries", || {
            let shown = namespace.ip(&format!("link show dev {device}"))?;
            ensure!(shown.contains("state UP"), "{shown}");
            Ok(())
        })?;
    }
    Ok(())
}
