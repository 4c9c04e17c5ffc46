//! The time that rollouts go by. It goes as the monotonic clock does: a wall clock that is set forward
//! passes no stage, and one that is set back stops no gate.

use std::time::Instant;

use jiff::Timestamp;

/// Since the daemon's start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    base: Timestamp,
    since: Instant,
}

impl Clock {
    /// Begins at the wall clock's time, but not before `earliest`: what is known to have been.
    pub(super) fn start(earliest: Option<Timestamp>) -> Self {
        Self::at(Timestamp::now(), earliest, Instant::now())
    }

    fn at(wall: Timestamp, earliest: Option<Timestamp>, since: Instant) -> Self {
        Self {
            base: earliest.map_or(wall, |earliest| earliest.max(wall)),
            since,
        }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.after(self.since.elapsed())
    }

    fn after(&self, elapsed: std::time::Duration) -> Timestamp {
        // At the end of all time it stands still.
        self.base.checked_add(elapsed).unwrap_or(self.base)
    }
}

/// The wall clock's time, where it is not what the rollouts go by.
pub(super) fn wall(clock: Timestamp) -> Option<Timestamp> {
    differing(clock, Timestamp::now())
}

fn differing(clock: Timestamp, wall: Timestamp) -> Option<Timestamp> {
    let apart = clock.duration_since(wall).unsigned_abs();
    (apart.as_secs() >= 2).then_some(wall)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn timestamp(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn it_goes_by_the_monotonic_clock() {
        let clock = Clock::at(timestamp(0), None, Instant::now());
        assert_eq!(clock.after(Duration::from_secs(90)), timestamp(90));
        assert_eq!(clock.after(Duration::MAX), timestamp(0));
    }

    /// The wall clock was set back while no daemon ran.
    #[test]
    fn it_does_not_begin_before_what_was() {
        let begun =
            |earliest| Clock::at(timestamp(0), earliest, Instant::now()).after(Duration::ZERO);
        assert_eq!(begun(Some(timestamp(3_600))), timestamp(3_600));
        assert_eq!(begun(Some(timestamp(-3_600))), timestamp(0));
    }

    #[test]
    fn a_wall_clock_that_was_set_is_told() {
        assert_eq!(differing(timestamp(0), timestamp(1)), None);
        let set = timestamp(7_200);
        assert_eq!(differing(timestamp(4), set), Some(set));
        assert_eq!(differing(set, timestamp(4)), Some(timestamp(4)));
    }
}
