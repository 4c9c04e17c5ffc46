//! Threads that stay on one CPU.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The thread that asks.
const THIS: Pid = Pid::from_raw(0);

/// The CPUs that this process may use.
///
/// # Errors
/// The kernel's.
pub fn allowed() -> nix::Result<Vec<usize>> {
    let set = sched_getaffinity(THIS)?;
    let is_set = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    Ok((0..CpuSet::count()).filter(is_set).collect())
}

/// Binds this thread to a CPU.
///
/// # Errors
/// When it may not run there.
pub fn bind(cpu: usize) -> nix::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(THIS, &only)
}
