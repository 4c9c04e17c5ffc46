//! Two arms: the difference between the rates of an event.

use super::bet::{self, Bet, Side};
use super::contest::Contest;
use super::rate::{Recent, requests};
use super::wander::Wander;
use super::{Counts, Crowd, Finding, ODDS, plausible};

const GRID: &[f64] = &[
    -0.2, -0.1, -0.05, -0.02, -0.01, -0.005, -0.002, 0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2,
    0.5,
];

/// The canary's rate of an event may exceed stable's of the same window by so much.
#[derive(Clone, Debug, PartialEq)]
pub struct RateDifference {
    contest: Contest,
    /// Stable's rate.
    base: Recent,
    gap: Gap,
    wander: Wander,
    total: [Counts; 2],
}

impl RateDifference {
    /// `Worse` when the difference is proven to be above `limit` (-1..1); `alpha` for each direction.
    pub fn new(limit: f64, alpha: f64) -> Self {
        Self {
            contest: Contest::new(limit, alpha, ODDS, GRID),
            base: Recent::default(),
            gap: Gap::default(),
            wander: Wander::default(),
            total: [Counts::default(); 2],
        }
    }

    /// Takes one window in. One in which an arm saw nothing proves nothing.
    pub fn observe(&mut self, stable: Counts, canary: Counts) {
        let window = [stable, canary];
        if let Some(base) = self
            .base
            .rate()
            .filter(|_| window.iter().all(|arm| arm.trials > 0))
        {
            let gap = self.gap.expected(base);
            let effect = self.wander.effect(window);
            self.contest.observe(effect, |limit, side| {
                move |bet| {
                    let believed = match bet {
                        Bet::Fixed(odds) => bet::beyond(side, base + limit, odds),
                        Bet::Expected => plausible(base + gap),
                    };
                    bet::two_arms(side, limit, [base, believed], window)
                }
            });
        }
        if stable.trials > 0 {
            self.base.learn(stable);
        }
        self.gap.learn(window);
        self.wander.learn(window);
        for (total, arm) in self.total.iter_mut().zip(window) {
            total.add(arm);
        }
    }

    /// Learns from what stable did while the canary is not looked at.
    pub fn observe_stable(&mut self, stable: Counts) {
        if stable.trials > 0 {
            self.base.learn(stable);
            self.wander.learn_stable(stable);
        }
    }

    /// What is known now. The estimate is the mean of the windows' differences, not the difference of
    /// the means.
    pub fn finding(&self) -> Finding {
        self.finding_of(None)
    }

    /// The same, where the requests are of such a crowd.
    pub fn finding_of(&self, crowd: Option<Crowd>) -> Finding {
        let [events, trials] = [
            self.total.map(|arm| arm.events),
            self.total.map(|arm| arm.trials),
        ];
        self.contest.finding(crowd, self.gap.mean(), events, trials)
    }

    /// About how many of the canary's requests prove that an equal version is within the limit, with
    /// stable's rate at `base` and `ratio` of stable's requests for each; nothing where it never is.
    pub fn needed_for_within(&self, base: f64, ratio: f64) -> Option<u64> {
        let rates = [plausible(base); 2];
        let growth = bet::growth_of_two(Side::Below, self.contest.limit(), rates, [ratio, 1.0])?;
        requests(self.contest.price(), growth)
    }
}

/// The mean difference within windows (after Mantel and Haenszel): each weighs what it can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Gap {
    sum: f64,
    weight: f64,
}

impl Gap {
    fn learn(&mut self, [stable, canary]: [Counts; 2]) {
        let weight = weight(stable.trials as f64, canary.trials as f64);
        self.sum += weight * (canary.rate() - stable.rate());
        self.weight += weight;
    }

    fn mean(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.sum / self.weight)
    }

    /// What is expected of the next window: no difference, until there is about one event.
    fn expected(&self, base: f64) -> f64 {
        self.sum / (self.weight + doubt(base))
    }
}

/// What a window can tell of a difference: half the harmonic mean of the arms' trials.
pub(super) fn weight(stable: f64, canary: f64) -> f64 {
    if stable > 0.0 && canary > 0.0 {
        stable * canary / (stable + canary)
    } else {
        0.0
    }
}

/// How many trials, without a difference, are added to those seen: those in which one event, or one
/// that is none, is expected.
pub(super) fn doubt(base: f64) -> f64 {
    1.0 / base.min(1.0 - base)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Verdict;

    fn counts(events: u64, trials: u64) -> Counts {
        Counts { events, trials }
    }

    fn after(limit: f64, windows: usize, stable: Counts, canary: Counts) -> Finding {
        let mut test = RateDifference::new(limit, 0.0025);
        (0..windows).for_each(|_| test.observe(stable, canary));
        test.finding()
    }

    #[test]
    fn a_difference_is_above_below_or_not_yet_told() {
        let check = |limit, stable, canary, expected| {
            let finding = after(limit, 300, stable, canary);
            assert_eq!(finding.verdict, expected, "{finding:?}");
            let (low, high) = (finding.low.unwrap_or(-1.0), finding.high.unwrap_or(1.0));
            let estimate = finding.estimate.unwrap();
            assert!(low <= estimate && estimate <= high, "{finding:?}");
        };
        check(0.005, counts(1, 100), counts(1, 100), Verdict::Within);
        check(0.005, counts(1, 100), counts(4, 100), Verdict::Worse);
        check(0.01, counts(1, 100), counts(2, 100), Verdict::Unknown);
        check(0.005, counts(0, 100), counts(0, 100), Verdict::Within);
        check(0.005, counts(0, 1), counts(1, 1), Verdict::Worse);
        check(0.0, counts(20, 100), counts(5, 100), Verdict::Within);
    }

    /// Errors rise and fall for everybody while the canary's share grows: within every window the
    /// arms are equal.
    fn storm(mut window: impl FnMut(Counts, Counts)) {
        for (share, errors) in [(0.01, 1), (0.05, 1), (0.5, 10), (0.9, 10), (0.25, 1)] {
            for _ in 0..200 {
                let canary = (share * 10_000.0) as u64;
                window(
                    counts((10_000 - canary) * errors / 100, 10_000 - canary),
                    counts(canary * errors / 100, canary),
                );
            }
        }
    }

    #[test]
    fn a_drift_is_no_difference() {
        let mut test = RateDifference::new(0.005, 0.0025);
        let mut most = f64::NEG_INFINITY;
        let mut pooled = [Counts::default(); 2];
        storm(|stable, canary| {
            test.observe(stable, canary);
            most = most.max(test.finding().worse);
            pooled[0].add(stable);
            pooled[1].add(canary);
        });
        let finding = test.finding();
        assert!(most < finding.needed, "{most} in {finding:?}");
        assert!(finding.estimate.unwrap().abs() < 1e-9, "{finding:?}");
        // All windows together say otherwise: the canary had most of its requests in the bad time.
        let difference = pooled[1].rate() - pooled[0].rate();
        assert!(difference > 0.04, "{difference}");
    }

    #[test]
    fn an_arm_without_requests_proves_nothing() {
        let finding = after(0.005, 100, counts(5, 100), counts(0, 0));
        assert_eq!((finding.worse, finding.within), (0.0, 0.0));
        assert_eq!(
            (finding.estimate, finding.low, finding.high),
            (None, None, None)
        );
        assert_eq!((finding.events, finding.trials), ([500, 0], [10_000, 0]));
        assert_eq!(
            after(0.005, 100, counts(0, 0), counts(9, 100)).verdict,
            Verdict::Unknown
        );
    }

    #[test]
    fn a_window_without_trials_changes_nothing() {
        let mut test = RateDifference::new(0.005, 0.01);
        test.observe(counts(3, 20), counts(1, 7));
        let before = test.clone();
        test.observe(Counts::default(), Counts::default());
        assert_eq!(test, before);
    }
}
