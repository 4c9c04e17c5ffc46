//! What time it is, by every clock that something goes by: read in one place, so that all of one turn of the
//! loop happens at one moment, and tests say when that is.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// One moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// By the monotonic clock, which timers go by, ...
    pub(super) at: Instant,
    /// ... and by the same one as the programs read it, in nanoseconds.
    pub(super) ns: u64,
    /// By the wall clock, which anybody may set.
    pub(super) wall: Timestamp,
    /// How long the host is up, its sleep included.
    pub(super) up: Option<Duration>,
}

impl Now {
    /// Looks at the clocks.
    pub(super) fn read() -> Self {
        Self {
            at: Instant::now(),
            ns: ns(),
            wall: Timestamp::now(),
            up: clock_gettime(ClockId::CLOCK_BOOTTIME)
                .ok()
                .map(Duration::from),
        }
    }
}

/// The monotonic clock that the programs read, in nanoseconds.
pub(super) fn ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| Duration::from(now).as_nanos() as u64)
}
