//! A core for the node, and the others for its clients: so that the node's alone is what is used up.

use std::fmt::Write as _;

use ::tests::Namespace;
use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Who runs where.
pub(crate) struct Cores {
    /// The node's core.
    pub(crate) node: usize,
    for_node: CpuSet,
    for_clients: CpuSet,
}

impl Cores {
    /// The first core that this process may use is the node's.
    pub(crate) fn split() -> Result<Self> {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let mut cores = (0..CpuSet::count()).filter(|core| allowed.is_set(*core).unwrap_or(false));
        let node = cores.next().context("there is no core")?;
        let mut for_node = CpuSet::new();
        for_node.set(node)?;
        let mut for_clients = CpuSet::new();
        for core in cores {
            for_clients.set(core)?;
        }
        Ok(Self {
            node,
            for_node,
            for_clients,
        })
    }

    /// What this starts, processes and threads, stays on the node's core.
    pub(crate) fn node<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        on(&self.for_node, start)
    }

    /// What this starts stays on the clients' cores.
    pub(crate) fn clients<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        on(&self.for_clients, start).context("needs at least two cores")
    }

    /// Has packets that come in at a host's `eth0` received by the node's core, or by the clients'.
    pub(crate) fn receive(&self, host: &Namespace, at_node: bool) -> Result<()> {
        let cores = if at_node {
            &self.for_node
        } else {
            &self.for_clients
        };
        // What sysfs shows depends on where it was mounted.
        let command = format!(
            "mount -t sysfs sysfs /sys && echo {} > /sys/class/net/eth0/queues/rx-0/rps_cpus",
            mask(cores)
        );
        host.output("unshare", &["--mount", "sh", "-c", &command])
            .map(drop)
    }
}

/// Runs something on these cores, and what it starts.
fn on<T>(cores: &CpuSet, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    sched_setaffinity(this, cores)?;
    let result = start();
    sched_setaffinity(this, &before)?;
    result
}

/// As the kernel reads it: words of 32 bits in hexadecimal, the highest first.
fn mask(cores: &CpuSet) -> String {
    let mut words = vec![0_u32; CpuSet::count().div_ceil(32)];
    for core in 0..CpuSet::count() {
        if cores.is_set(core).unwrap_or(false) {
            words[core / 32] |= 1 << (core % 32);
        }
    }
    let highest = words.iter().rposition(|word| *word != 0).unwrap_or(0);
    let mut text = String::new();
    for word in words[..=highest].iter().rev() {
        // Writing to a String cannot fail.
        let _ = write!(text, "{word:08x},");
    }
    text.trim_end_matches(',').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_written_as_the_kernel_reads_them() {
        #[track_caller]
        fn check(cores: &[usize], expected: &str) {
            let mut set = CpuSet::new();
            for core in cores {
                set.set(*core).unwrap();
            }
            assert_eq!(mask(&set), expected);
        }
        check(&[0], "00000001");
        check(&[1, 2], "00000006");
        check(&[0, 33], "00000002,00000001");
        check(&[64], "00000001,00000000,00000000");
        check(&[], "00000000");
    }
}
