//! One sample: the rate of an event against a limit.

use super::bet::{self, Bet, Side};
use super::contest::Contest;
use super::wander::Effect;
use super::{Counts, Crowd, Finding, MEMORY, ODDS, plausible};

const GRID: &[f64] = &[
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99,
    0.995, 0.998, 0.999,
];

/// A rate that may be at most, or must be at least, so large: errors where there is no baseline,
/// matching answers, windows in which the canary needed more than its limit.
#[derive(Clone, Debug, PartialEq)]
pub struct Rate {
    limit: f64,
    bound: Bound,
    /// Of a rate that has an upper limit: of the event, or of its absence.
    contest: Contest,
    recent: Recent,
    total: Counts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    AtMost,
    AtLeast,
}

impl Rate {
    /// `Worse` when the rate is proven to be above `limit` (0..1); `alpha` for each direction.
    pub fn at_most(limit: f64, alpha: f64) -> Self {
        Self::new(Bound::AtMost, limit, alpha)
    }

    /// `Worse` when the rate is proven to be below `limit` (0..1); `alpha` for each direction.
    pub fn at_least(limit: f64, alpha: f64) -> Self {
        Self::new(Bound::AtLeast, limit, alpha)
    }

    fn new(bound: Bound, limit: f64, alpha: f64) -> Self {
        Self {
            limit,
            bound,
            contest: Contest::new(bound.of_rate(limit), alpha, ODDS, GRID),
            recent: Recent::default(),
            total: Counts::default(),
        }
    }

    /// Takes one window in.
    pub fn observe(&mut self, window: Counts) {
        self.total.add(window);
        let window = match self.bound {
            Bound::AtMost => window,
            Bound::AtLeast => Counts {
                events: window.others(),
                ..window
            },
        };
        if window.trials == 0 {
            return;
        }
        let expected = self.recent.rate();
        self.contest.observe(Effect::NONE, |limit, side| {
            move |bet| {
                let believed = match bet {
                    Bet::Fixed(odds) => bet::beyond(side, limit, odds),
                    Bet::Expected => expected.unwrap_or(limit),
                };
                bet::one_sample(side, limit, believed, window)
            }
        });
        self.recent.learn(window);
    }

    /// What is known now.
    pub fn finding(&self) -> Finding {
        self.finding_of(None)
    }

    /// The same, where the requests are of such a crowd.
    pub fn finding_of(&self, crowd: Option<Crowd>) -> Finding {
        let estimate = (self.total.trials > 0).then(|| self.total.rate());
        let (events, trials) = ([0, self.total.events], [0, self.total.trials]);
        let finding = self.contest.finding(crowd, estimate, events, trials);
        match self.bound {
            Bound::AtMost => finding,
            Bound::AtLeast => Finding {
                low: finding.high.map(|high| self.of_absence(high)),
                high: finding.low.map(|low| self.of_absence(low)),
                limit: self.limit,
                ..finding
            },
        }
    }

    /// The end of an interval, from that of the event's absence; the limit's own to the last bit.
    fn of_absence(&self, end: f64) -> f64 {
        if end == self.contest.limit() {
            self.limit
        } else {
            1.0 - end
        }
    }

    /// About how many trials prove that `rate` is within the limit; nothing where it is not.
    pub fn needed_for_within(&self, rate: f64) -> Option<u64> {
        let (limit, rate) = (self.contest.limit(), plausible(self.bound.of_rate(rate)));
        requests(
            self.contest.price(),
            bet::growth_of_one(Side::Below, limit, rate)?,
        )
    }
}

impl Bound {
    /// The rate that the contest is about.
    fn of_rate(self, rate: f64) -> f64 {
        match self {
            Self::AtMost => rate,
            Self::AtLeast => 1.0 - rate,
        }
    }
}

/// How many requests pay a price, growing so much with each.
pub(super) fn requests(price: f64, growth: f64) -> Option<u64> {
    let requests = (price / growth).ceil();
    (growth > 0.0 && requests < 1e15).then_some(requests as u64)
}

/// A rate of late: windows long past count less.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Recent {
    events: f64,
    trials: f64,
}

impl Recent {
    pub(super) fn learn(&mut self, window: Counts) {
        self.events = self.events * MEMORY + window.events as f64;
        self.trials = self.trials * MEMORY + window.trials as f64;
    }

    /// What is expected of the next window; nothing before the first.
    pub(super) fn rate(&self) -> Option<f64> {
        (self.trials > 0.0).then(|| plausible((self.events + 0.5) / (self.trials + 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Verdict;

    fn after(mut test: Rate, windows: usize, events: u64, trials: u64) -> Finding {
        (0..windows).for_each(|_| test.observe(Counts { events, trials }));
        test.finding()
    }

    #[test]
    fn a_rate_is_above_below_or_not_yet_told() {
        let check = |test: Rate, events, expected| {
            let finding = after(test, 60, events, 100);
            assert_eq!(finding.verdict, expected, "{finding:?}");
            assert_eq!(
                (finding.events, finding.trials),
                ([0, 60 * events], [0, 6_000])
            );
        };
        check(Rate::at_most(0.1, 0.001), 15, Verdict::Worse);
        check(Rate::at_most(0.1, 0.001), 6, Verdict::Within);
        check(Rate::at_most(0.1, 0.001), 10, Verdict::Unknown);
        check(Rate::at_most(0.0, 0.001), 1, Verdict::Worse);
        check(Rate::at_least(0.9, 0.001), 85, Verdict::Worse);
        check(Rate::at_least(0.9, 0.001), 94, Verdict::Within);
        check(Rate::at_least(0.9, 0.001), 90, Verdict::Unknown);
        check(Rate::at_least(1.0, 0.001), 99, Verdict::Worse);
    }

    #[test]
    fn an_interval_lies_around_the_estimate_and_on_the_verdicts_side() {
        let finding = after(Rate::at_least(0.99, 0.01), 100, 97, 100);
        assert_eq!((finding.limit, finding.estimate), (0.99, Some(0.97)));
        assert_eq!((finding.low, finding.high), (Some(0.95), Some(0.98)));
        let finding = after(Rate::at_most(0.5, 0.001), 10, 0, 1);
        assert_eq!(finding.verdict, Verdict::Unknown, "{finding:?}");
        assert_eq!(
            (finding.low, finding.high),
            (None, Some(0.65)),
            "{finding:?}"
        );
    }

    #[test]
    fn all_failing_is_seen_in_a_few_windows() {
        let finding = after(Rate::at_most(0.5, 0.0025), 1, 20, 20);
        assert_eq!(finding.verdict, Verdict::Unknown, "{finding:?}");
        let finding = after(Rate::at_most(0.5, 0.0025), 10, 20, 20);
        assert_eq!(finding.verdict, Verdict::Worse, "{finding:?}");
    }

    #[test]
    fn a_window_without_trials_changes_nothing() {
        let mut test = Rate::at_most(0.1, 0.01);
        test.observe(Counts {
            events: 3,
            trials: 20,
        });
        let before = test.clone();
        test.observe(Counts::default());
        assert_eq!(test, before);
    }
}
