//! Waiting for something without sleeping longer than necessary, and what to do without root.

use std::fmt::Debug;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::geteuid;

use crate::skip::skip;

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

/// Looks again and again for this long, and fails as soon as something is not as it should be: what
/// only time can show.
///
/// # Panics
/// With what was the matter.
#[track_caller]
pub fn throughout<E: Debug>(span: Duration, what: &str, mut check: impl FnMut() -> Result<(), E>) {
    let start = Instant::now();
    while start.elapsed() < span {
        if let Err(error) = check() {
            panic!("not for {span:?}: {what}\n{error:?}");
        }
        thread::sleep(POLL);
    }
}

/// Waits until a value has not changed for this long, and returns it.
///
/// # Panics
/// When it still changes after half a minute.
#[track_caller]
pub fn steady<T: PartialEq + Debug>(span: Duration, what: &str, mut value: impl FnMut() -> T) -> T {
    let (mut last, mut since) = (value(), Instant::now());
    eventually(&format!("{what} for {span:?}"), || {
        let now = value();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() < span {
            return Err(format!("{last:?} since {:?}", since.elapsed()));
        }
        Ok(())
    });
    last
}

/// Whether this process may make namespaces and load programs; says where it may not that the test is
/// skipped. A test that needs it starts with `if !privileged() { return; }`.
///
/// # Panics
/// As [`skip`] does.
#[must_use]
#[track_caller]
pub fn privileged() -> bool {
    let is_root = geteuid().is_root();
    if !is_root {
        skip("needs root for network namespaces and BPF");
    }
    is_root
}
