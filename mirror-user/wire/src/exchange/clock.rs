//! The time of a tap whose copies come in a stream. Pure.
//!
//! They may wait at the tap for long, and then come all at once: what has not come within a time by the
//! agent's clock is not lost. Here time goes as it did at the tap, by its copies. While none comes it goes
//! on by the agent's clock, but late; and while the tap is not connected it stands still.

use std::time::Duration;

/// How long copies may be on their way while the tap is connected.
const ON_THE_WAY: Duration = Duration::from_secs(5);

/// A copy that took longer from the tap to here, compared with the fastest one, has waited there.
const LATE: Duration = Duration::from_secs(1);

/// How long a tap may be away until what it has begun is given up.
const AWAY: Duration = Duration::from_secs(600);

/// One tap's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    connected: bool,
    /// A moment by the tap's clock, in nanoseconds, and by ours.
    base: Option<(u64, Duration)>,
    /// What was copied before, by the tap's clock, has waited for the tap to connect.
    waited_ns: u64,
    /// The time that was told last, and when that was by the agent's clock.
    last: Duration,
    told: Duration,
}

impl Clock {
    /// Begins at `now` by the agent's clock.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            connected: true,
            base: None,
            waited_ns: 0,
            last: now,
            told: now,
        }
    }

    /// Goes on where another agent's stopped: it was `time_ns` by the tap's clock when this agent began. The
    /// tap has yet to connect.
    pub(super) fn resumed(time_ns: u64) -> Self {
        Self {
            connected: false,
            base: Some((time_ns, Duration::ZERO)),
            ..Self::new(Duration::ZERO)
        }
    }

    /// The moment by which both clocks are held against each other.
    pub(super) fn moment(&self) -> Option<(u64, Duration)> {
        self.base
    }

    /// The tap has connected, or is gone.
    pub(super) fn set_connected(&mut self, connected: bool, now: Duration) {
        if self.connected != connected {
            self.last = self.now(now);
            self.told = now;
            self.connected = connected;
            if let (true, Some((then_ns, then))) = (connected, self.base) {
                let since = now.saturating_sub(then).as_nanos();
                self.waited_ns = then_ns.saturating_add(since as u64);
            }
        }
    }

    /// A copy has come that the tap made at `time_ns`. What time it is.
    pub(super) fn at(&mut self, time_ns: u64, now: Duration) -> Duration {
        let (then_ns, then) = *self.base.get_or_insert((time_ns, now));
        let since = Duration::from_nanos(time_ns.saturating_sub(then_ns));
        let time = then.saturating_add(since);
        if time > now {
            // What came first had waited: this one was faster.
            self.base = Some((time_ns, now));
        }
        self.last = self.last.max(time.min(now));
        self.told = now;
        self.last
    }

    /// Whether a copy that the tap made at `time_ns` and that comes now has waited there.
    pub(super) fn is_late(&self, time_ns: u64, now: Duration) -> bool {
        time_ns < self.waited_ns || now.saturating_sub(self.last) > LATE
    }

    /// What time it is at least.
    pub(super) fn now(&self, now: Duration) -> Duration {
        let late = if self.connected { ON_THE_WAY } else { AWAY };
        let silent = now.saturating_sub(self.told);
        self.last.saturating_add(silent.saturating_sub(late))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_by_copies_and_without_them_late() {
        let seconds = Duration::from_secs;
        let mut clock = Clock::new(seconds(10));
        assert_eq!(clock.at(500_000_000_000, seconds(10)), seconds(10));
        // What comes a minute late was copied a second later.
        assert_eq!(clock.at(501_000_000_000, seconds(70)), seconds(11));
        assert!(clock.is_late(501_000_000_000, seconds(70)));
        assert_eq!(clock.now(seconds(74)), seconds(11));
        assert_eq!(clock.now(seconds(85)), seconds(21));
        // It never goes back.
        assert_eq!(clock.at(500_500_000_000, seconds(85)), seconds(11));
        clock.set_connected(false, seconds(85));
        assert_eq!(clock.now(seconds(400)), seconds(11));
        assert_eq!(clock.now(seconds(85 + 600 + 30)), seconds(41));
        clock.set_connected(true, seconds(400));
        assert_eq!(clock.now(seconds(405)), seconds(11));
        assert_eq!(clock.at(801_000_000_000, seconds(406)), seconds(311));
    }

    #[test]
    fn what_waited_is_late_and_what_comes_at_once_is_not() {
        let seconds = Duration::from_secs;
        let mut clock = Clock::new(seconds(100));
        // The first copies have waited for a minute, but nobody can know that.
        clock.at(0, seconds(100));
        assert!(!clock.is_late(0, seconds(100)));
        clock.at(60_000_000_000, seconds(101));
        clock.at(61_000_000_000, seconds(102));
        assert!(!clock.is_late(61_000_000_000, seconds(102)));
        clock.at(61_500_000_000, seconds(110));
        assert!(clock.is_late(61_500_000_000, seconds(110)));
    }

    #[test]
    fn what_waited_for_the_next_agent_is_late() {
        let ms = Duration::from_millis;
        // The tap's clock says 100 s when the agent begins, and 100.3 s when the tap connects.
        let mut clock = Clock::resumed(100_000_000_000);
        clock.set_connected(true, ms(300));
        for (time_ns, late) in [
            (99_800_000_000, true),
            (100_200_000_000, true),
            (100_301_000_000, false),
        ] {
            clock.at(time_ns, ms(302));
            assert_eq!(clock.is_late(time_ns, ms(302)), late, "{time_ns}");
        }
        assert_eq!(clock.at(100_301_000_000, ms(302)), ms(301));
    }
}
