//! Two arms: the ratio between a quantile of their latencies.

use super::bet::{self, Bet, Side};
use super::contest::Contest;
use super::latencies::{Around, Latencies, Tails};
use super::rate::requests;
use super::rates::{doubt, weight};
use super::wander::Wander;
use super::{Counts, Crowd, Finding, MEMORY, ODDS, plausible};

pub(super) const GRID: &[f64] = &[0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0, 5.0];

/// A quantile of the canary's latencies may be so many times stable's of the same window.
///
/// With stable's quantile of earlier windows as a threshold, the canary may not be longer than
/// `limit` times the threshold more often than stable is longer than the threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantileRatio {
    quantile: f64,
    contest: Contest,
    /// Stable's latencies of late: where the thresholds lie.
    recent: Tails,
    /// Of both arms, each window with the same weight for both.
    matched: [Tails; 2],
    total: [Counts; 2],
    /// How many are longer than `mark`, window by window.
    wander: Wander,
    /// A bucket near stable's quantile.
    mark: Option<usize>,
}

impl QuantileRatio {
    /// `Worse` when the ratio at `quantile` (0..1) is proven to be above `limit`; `alpha` for each
    /// direction.
    pub fn new(quantile: f64, limit: f64, alpha: f64) -> Self {
        Self {
            quantile,
            contest: Contest::new(limit, alpha, ODDS, GRID),
            recent: Tails::default(),
            matched: [Tails::default(), Tails::default()],
            total: [Counts::default(); 2],
            wander: Wander::default(),
            mark: None,
        }
    }

    /// Takes one window in. One in which an arm saw nothing proves nothing.
    pub fn observe(&mut self, stable: &Latencies, canary: &Latencies) {
        let window = [stable, canary].map(|arm| Tails::of(arm.iter()));
        let bounded = self.recent.bounded();
        if bounded.count() > 0.0 && window.iter().all(|arm| arm.count() > 0.0) {
            let (matched, recent) = (&self.matched, &self.recent);
            let around = Around::of(&bounded, self.quantile);
            let effect = self
                .wander
                .effect(window.each_ref().map(|arm| arm.counts(0)));
            self.contest.observe(effect, |ratio, side| {
                let game = Game::new(recent, around, matched, &window, ratio, side);
                move |bet| game.as_ref().map_or(0.0, |game| game.gain(side, bet))
            });
        }
        self.count(&window, &bounded);
        if let Some(mark) = self.mark {
            self.wander
                .learn(window.each_ref().map(|arm| arm.counts(mark)));
        }
        self.learn(&window);
    }

    /// Learns from what stable did while the canary is not looked at.
    pub fn observe_stable(&mut self, stable: &Latencies) {
        let stable = Tails::of(stable.iter());
        if let Some(mark) = self.mark {
            self.wander.learn_stable(stable.counts(mark));
        }
        self.learn_stable(&stable);
    }

    fn learn_stable(&mut self, stable: &Tails) {
        if stable.count() == 0.0 {
            return;
        }
        self.recent.learn(MEMORY, stable, 1.0);
        // It stays while it is near: where it moves to and fro, windows would differ for that.
        let bounded = self.recent.bounded();
        let is_near = |mark: &usize| bounded.is_near(*mark, self.quantile);
        if self.mark.filter(is_near).is_none() {
            self.mark = Some(bounded.bucket(self.quantile));
            self.wander.begin_anew();
        }
    }

    /// Counts what lies beyond the thresholds at the limit; before there are any, all are within.
    fn count(&mut self, window: &[Tails; 2], bounded: &Tails) {
        let at = Around::of(bounded, self.quantile)
            .thresholds(Side::Above, self.contest.limit())
            .filter(|_| bounded.count() > 0.0);
        let events = |arm: usize, tails: &Tails| match at {
            Some(at) => tails.counts([at.stable, at.canary][arm]),
            None => Counts {
                events: 0,
                trials: tails.count() as u64,
            },
        };
        for (arm, tails) in window.iter().enumerate() {
            self.total[arm].add(events(arm, tails));
        }
    }

    fn learn(&mut self, window: &[Tails; 2]) {
        let [stable, canary] = window;
        self.learn_stable(stable);
        let weight = weight(stable.count(), canary.count());
        if weight > 0.0 {
            for (matched, arm) in self.matched.iter_mut().zip(window) {
                matched.learn(1.0, arm, weight / arm.count());
            }
        }
    }

    /// What is known now. The estimate is the ratio of the quantiles of all windows, in which both
    /// arms have the same weight; events are latencies beyond the thresholds.
    pub fn finding(&self) -> Finding {
        self.finding_of(None)
    }

    /// The same, where the requests are of such a crowd.
    pub fn finding_of(&self, crowd: Option<Crowd>) -> Finding {
        let [stable, canary] = &self.matched;
        let quantiles = stable
            .quantile(self.quantile)
            .zip(canary.quantile(self.quantile));
        let ratio = quantiles.map(|(stable, canary)| canary / stable);
        let [events, trials] = [
            self.total.map(|arm| arm.events),
            self.total.map(|arm| arm.trials),
        ];
        self.contest.finding(crowd, ratio, events, trials)
    }

    /// About how many of the canary's requests prove that an equal version is within the limit, when
    /// stable's latencies are these and there are `ratio` of its requests for each; nothing where it
    /// never is.
    pub fn needed_for_within(&self, stable: &Latencies, ratio: f64) -> Option<u64> {
        let tails = Tails::of(stable.iter());
        let around = Around::of(&tails.bounded(), self.quantile);
        let at = around.thresholds(Side::Below, self.contest.limit())?;
        let rates =
            [at.stable, at.canary].map(|at| plausible(tails.above(at) / tails.count().max(1.0)));
        let growth = bet::growth_of_two(Side::Below, 0.0, rates, [ratio, 1.0])?;
        requests(self.contest.price(), growth)
    }
}

/// A window at the thresholds of one limit and side.
struct Game {
    base: f64,
    /// The canary's rate, as earlier windows let expect.
    expected: f64,
    counts: [Counts; 2],
}

impl Game {
    /// Nothing where there is no threshold to bet at. Thresholds lie among the answers that came.
    fn new(
        recent: &Tails,
        around: Around,
        [stable, canary]: &[Tails; 2],
        window: &[Tails; 2],
        ratio: f64,
        side: Side,
    ) -> Option<Self> {
        let at = around.thresholds(side, ratio)?;
        let base = plausible((recent.above(at.stable) + 0.5) / (recent.count() + 1.0));
        let gap = canary.above(at.canary) - stable.above(at.stable);
        Some(Self {
            base,
            expected: plausible(base + gap / (canary.count() + doubt(base))),
            counts: [window[0].counts(at.stable), window[1].counts(at.canary)],
        })
    }

    fn gain(&self, side: Side, bet: Bet) -> f64 {
        let believed = match bet {
            Bet::Fixed(odds) => bet::beyond(side, self.base, odds),
            Bet::Expected => self.expected,
        };
        bet::two_arms(side, 0.0, [self.base, believed], self.counts)
    }
}

#[cfg(test)]
mod tests {
    use mirror_common::histogram::Latency;

    use super::*;
    use crate::statistics::Verdict;

    /// A hundred latencies around 10 ms times `factor`, spread evenly over an octave.
    fn around(factor: f64) -> Latencies {
        let mut histogram = Latency::default();
        for part in 0..100 {
            histogram.count_in((1e7 * factor * (1.0 + f64::from(part) / 100.0)) as u64);
        }
        Latencies::between(&Latency::default(), &histogram)
    }

    /// All at one latency, which may change.
    fn narrow(ns: f64) -> Latencies {
        let mut histogram = Latency::default();
        (0..100).for_each(|_| histogram.count_in(ns as u64));
        Latencies::between(&Latency::default(), &histogram)
    }

    #[test]
    fn a_ratio_is_above_below_or_not_yet_told() {
        let check = |quantile, stable: &Latencies, canary: &Latencies, expected| {
            let mut test = QuantileRatio::new(quantile, 1.2, 0.0025);
            (0..200).for_each(|_| test.observe(stable, canary));
            let finding = test.finding();
            assert_eq!(finding.verdict, expected, "{finding:?}");
            let (low, high) = (finding.low.unwrap_or(0.0), finding.high.unwrap_or(99.0));
            let estimate = finding.estimate.unwrap();
            assert!(low <= estimate && estimate <= high, "{finding:?}");
        };
        for quantile in [0.5, 0.99] {
            check(quantile, &around(1.0), &around(1.0), Verdict::Within);
            check(quantile, &around(1.0), &around(0.3), Verdict::Within);
            check(quantile, &around(1.0), &around(1.5), Verdict::Worse);
            check(quantile, &around(1.0), &around(40.0), Verdict::Worse);
            check(quantile, &narrow(1e7), &narrow(1e7), Verdict::Within);
            check(quantile, &narrow(1e7), &narrow(1.1e7), Verdict::Within);
            check(quantile, &narrow(1e7), &narrow(1.3e7), Verdict::Worse);
        }
        check(0.5, &around(1.0), &around(1.2), Verdict::Unknown);
    }

    #[test]
    fn the_estimate_is_the_ratio() {
        let mut test = QuantileRatio::new(0.5, 1.2, 0.01);
        (0..50).for_each(|_| test.observe(&around(1.0), &around(1.1)));
        let estimate = test.finding().estimate.unwrap();
        assert!((estimate - 1.1).abs() < 0.01, "{estimate}");
    }

    /// All get slower and faster while the canary's share grows.
    #[test]
    fn a_drift_is_no_difference() {
        let mut test = QuantileRatio::new(0.99, 1.1, 0.0025);
        let mut most = f64::NEG_INFINITY;
        for (round, factor) in [1.0, 4.0, 1.5, 9.0, 0.4].into_iter().enumerate() {
            for _ in 0..100 {
                let canary = (0..=round)
                    .flat_map(|_| Vec::from(around(factor)))
                    .collect();
                test.observe(&around(factor), &canary);
                most = most.max(test.finding().worse);
            }
        }
        let finding = test.finding();
        assert!(most < finding.needed, "{most} in {finding:?}");
        assert!(
            (finding.estimate.unwrap() - 1.0).abs() < 1e-9,
            "{finding:?}"
        );
    }

    /// Those that are never answered were longer than any threshold, and thresholds lie among the others.
    #[test]
    fn what_never_comes_was_longer() {
        let check = |never: [u64; 2], expected| {
            let [stable, canary] =
                never.map(|never| around(1.0).given_up(&Latencies::default(), never));
            let mut test = QuantileRatio::new(0.99, 1.2, 0.0025);
            (0..400).for_each(|_| test.observe(&stable, &canary));
            let finding = test.finding();
            assert_eq!(finding.verdict, expected, "{never:?}: {finding:?}");
        };
        check([0, 0], Verdict::Within);
        check([0, 4], Verdict::Worse);
        check([4, 4], Verdict::Within);
        check([4, 0], Verdict::Within);
        check([4, 12], Verdict::Worse);
    }

    #[test]
    fn an_arm_without_requests_proves_nothing() {
        let mut test = QuantileRatio::new(0.99, 1.2, 0.01);
        (0..100).for_each(|_| test.observe(&around(1.0), &Latencies::default()));
        let finding = test.finding();
        assert_eq!(
            (finding.worse, finding.within, finding.estimate),
            (0.0, 0.0, None)
        );
        assert_eq!(finding.trials, [10_000, 0]);
    }
}
