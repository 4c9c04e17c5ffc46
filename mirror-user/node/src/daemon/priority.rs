//! Production comes first.

/// Has the calling thread take the CPU only where nobody else wants it: SCHED_IDLE (sched(7)).
pub(super) fn yield_to_everybody() {
    // SAFETY: all zero is a value of it.
    let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: 0 = the calling thread.
    warn_unless(unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) });
}

/// Has the calling thread yield to everybody without keeping it from the CPU: a tenth of what a thread at
/// normal priority gets beside it.
pub(super) fn be_nice() {
    const NICE: libc::c_int = 10;
    // SAFETY: 0 = the calling thread.
    warn_unless(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) });
}

/// Says so where the call before has failed.
fn warn_unless(result: libc::c_int) {
    if result != 0 {
        let error = std::io::Error::last_os_error();
        let thread = std::thread::current();
        let name = thread.name().unwrap_or_default();
        tracing::warn!(thread = name, "running at normal priority: {error}");
    }
}
