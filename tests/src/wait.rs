//! Waiting for something without sleeping longer than necessary, and what to do without root.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

/// How often something is looked at.
const POLL: Duration = Duration::from_millis(10);

/// What takes longer hangs, also on a machine that has much else to do.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Tries until it succeeds, for at most half a minute.
///
/// # Panics
/// When it has not succeeded by then; says what was waited for, and the last error, which should
/// show the state: `ensure!(compared == 40, "{metrics}")`.
#[track_caller]
pub fn eventually<T, E: Debug>(what: &str, attempt: impl FnMut() -> Result<T, E>) -> T {
    eventually_within(LIMIT, what, attempt)
}

/// [`eventually`], with a limit of one's own.
///
/// # Panics
/// When it has not succeeded by then.
#[track_caller]
pub fn eventually_within<T, E: Debug>(
    limit: Duration,
    what: &str,
    attempt: impl FnMut() -> Result<T, E>,
) -> T {
    try_within(limit, what, attempt).unwrap_or_else(|error| panic!("{error}"))
}

/// [`eventually_within`] for programs.
///
/// # Errors
/// When it has not succeeded by then.
pub fn try_within<T, E: Debug>(
    limit: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= limit => {
                anyhow::bail!("not within {limit:?}: {what}\n{error:?}")
            }
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// Whether this process may make namespaces and load programs. A test that needs it starts with
/// `if !privileged() { return; }`.
///
/// # Panics
/// Without root where `CI` is set: there, a test that cannot run is a failure.
#[must_use]
#[track_caller]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn privileged() -> bool {
    if geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "needs root, and CI is set: it may not be skipped"
    );
    eprintln!("skipped: needs root for network namespaces and BPF");
    false
}
