//! Production comes first.

/// Has the calling thread take the CPU only where nobody else wants it: SCHED_IDLE (sched(7)).
pub(super) fn yield_to_everybody() {
    // SAFETY: all zero is a value of it.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: 0 = the calling thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } != 0 {
        let error = std::io::Error::last_os_error();
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        tracing::warn!(thread = name, "running at normal priority: {error}");
    }
}
