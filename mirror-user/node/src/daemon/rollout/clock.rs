//! The time that rollouts go by. It goes as the monotonic clock does: a wall clock that is set forward
//! passes no stage, and one that is set back stops no gate.

use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::daemon::now::Now;

/// Since the daemon's start.
#[derive(Clone, Copy, Debug)]
pub(in crate::daemon) struct Clock {
    base: Timestamp,
    since: Instant,
    now: Instant,
}

impl Clock {
    /// Begins at the wall clock's time, but not before `earliest`: what is known to have been.
    pub(super) fn start(earliest: Option<Timestamp>, now: Now) -> Self {
        let base = earliest.map_or(now.wall, |earliest| earliest.max(now.wall));
        Self::at(base, now.at)
    }

    /// Goes on after a restart, or a reboot, where `last` was written: the shorter span counts, of the wall
    /// clock's and of that which the host was up.
    pub(super) fn resume(last: Moment, now: Now) -> Self {
        Self::at(last.and_since(now.wall, now.up), now.at)
    }

    fn at(base: Timestamp, since: Instant) -> Self {
        Self {
            base,
            since,
            now: since,
        }
    }

    /// What time it is from now on, until this is called again.
    pub(in crate::daemon) fn set(&mut self, now: Now) {
        self.now = now.at;
    }

    pub(super) fn now(&self) -> Timestamp {
        let elapsed = self.now.duration_since(self.since);
        // At the end of all time it stands still.
        self.base.checked_add(elapsed).unwrap_or(self.base)
    }
}

/// When a line was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    /// On the clock that rollouts go by.
    pub(super) time: Timestamp,
    /// How long the host was up.
    pub(super) up: Option<Duration>,
}

impl Moment {
    /// What time it is at this wall clock, and after so long without a reboot.
    fn and_since(self, wall: Timestamp, up: Option<Duration>) -> Timestamp {
        let by_wall = Duration::try_from(wall.duration_since(self.time)).unwrap_or_default();
        let by_host = match (self.up, up) {
            (Some(then), Some(now)) => now.checked_sub(then).unwrap_or(now),
            _ => by_wall,
        };
        let time = self.time.checked_add(by_wall.min(by_host));
        time.unwrap_or(self.time)
    }
}

/// The wall clock's time, where it is not what the rollouts go by.
pub(super) fn differing(clock: Timestamp, wall: Timestamp) -> Option<Timestamp> {
    let apart = clock.duration_since(wall).unsigned_abs();
    (apart.as_secs() >= 2).then_some(wall)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timestamp(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn now(wall: i64) -> Now {
        Now {
            wall: timestamp(wall),
            ..Now::read()
        }
    }

    #[test]
    fn it_goes_by_the_monotonic_clock() {
        let begun = now(0);
        let mut clock = Clock::start(None, begun);
        let mut after = |elapsed, wall| {
            let at = begun.at + elapsed;
            clock.set(Now { at, ..now(wall) });
            clock.now()
        };
        assert_eq!(after(Duration::from_secs(90), 7_200), timestamp(90));
        assert_eq!(after(Duration::from_secs(91), -7_200), timestamp(91));
    }

    /// The wall clock was set back while no daemon ran.
    #[test]
    fn it_does_not_begin_before_what_was() {
        let begun = |earliest| Clock::start(Some(timestamp(earliest)), now(0)).now();
        assert_eq!(begun(3_600), timestamp(3_600));
        assert_eq!(begun(-3_600), timestamp(0));
    }

    /// Whatever was done to the wall clock meanwhile, and also after a reboot.
    #[test]
    fn across_a_restart_the_shorter_span_counts() {
        let seconds = Duration::from_secs;
        let check = |then: Option<u64>, wall: i64, up: Option<u64>, expected: i64| {
            let last = Moment {
                time: timestamp(0),
                up: then.map(seconds),
            };
            let time = last.and_since(timestamp(wall), up.map(seconds));
            assert_eq!(time, timestamp(expected), "{then:?} {wall} {up:?}");
        };
        check(Some(500), 20, Some(520), 20);
        check(Some(500), 7_220, Some(520), 20);
        check(Some(500), -3_600, Some(520), 0);
        // Rebooted: it was down for a while, too.
        check(Some(500), 90, Some(30), 30);
        check(None, 90, Some(30), 90);
    }

    #[test]
    fn a_wall_clock_that_was_set_is_told() {
        assert_eq!(differing(timestamp(0), timestamp(1)), None);
        let set = timestamp(7_200);
        assert_eq!(differing(timestamp(4), set), Some(set));
        assert_eq!(differing(set, timestamp(4)), Some(timestamp(4)));
    }
}
