//! Pairs: the same request, answered by production and by the shadow.

use super::bet::{self, Bet, Side};
use super::contest::Contest;
use super::latencies::{Around, Latencies, Tails, Thresholds};
use super::quantile;
use super::rate::requests;
use super::wander::Effect;
use super::{Counts, Finding, MEMORY, Pairs, plausible};

const GRID: &[f64] = &[
    -0.5, -0.2, -0.1, -0.05, -0.02, -0.01, -0.005, -0.002, 0.0, 0.002, 0.005, 0.01, 0.02, 0.05,
    0.1, 0.2, 0.5,
];
/// Stakes, as parts of the largest.
const STAKES: &[f64] = &[0.99, 0.6, 0.3, 0.1, 0.03, 0.01];
/// So many pairs without a difference are added to those seen.
const DOUBT: f64 = 10.0;

/// An event may happen to the shadow so much more often than to production: failures, say, or
/// mistakes where there are labels.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedDifference {
    contest: Contest,
    total: Pairs,
}

impl PairedDifference {
    /// `Worse` when the mean of (shadow's - production's) is proven to be above `limit` (-1..1);
    /// `alpha` for each direction.
    pub fn new(limit: f64, alpha: f64) -> Self {
        Self {
            contest: Contest::new(limit, alpha, STAKES, GRID),
            total: Pairs::default(),
        }
    }

    /// Takes one window in.
    pub fn observe(&mut self, window: Pairs) {
        if window.count() == 0 {
            return;
        }
        let count = self.total.count() as f64 + DOUBT;
        let mean = excess(self.total) / count;
        let square = (self.total.different() as f64 + 1.0) / count;
        self.contest.observe(Effect::NONE, |limit, side| {
            let limit = limit.clamp(-0.999, 0.999);
            move |bet| {
                let stake = match bet {
                    Bet::Fixed(stake) => stake,
                    Bet::Expected => bet::best_stake(side, limit, mean, square),
                };
                bet::paired(side, limit, stake, window)
            }
        });
        self.total.add(window);
    }

    /// What is known now.
    pub fn finding(&self) -> Finding {
        let Pairs {
            both,
            production_only,
            shadow_only,
            ..
        } = self.total;
        let count = self.total.count();
        let estimate = (count > 0).then(|| excess(self.total) / count as f64);
        let events = [production_only, shadow_only].map(|only| both.saturating_add(only));
        self.contest.finding(None, estimate, events, [count; 2])
    }

    /// About how many pairs prove that an equal version is within the limit, when this share of pairs
    /// differs, to either side alike; nothing where it never is.
    pub fn needed_for_within(&self, different: f64) -> Option<u64> {
        let either = different.clamp(0.0, 1.0) / 2.0;
        let growth = bet::growth_of_pairs(Side::Below, self.contest.limit(), [either; 2], STAKES);
        requests(self.contest.price(), growth)
    }
}

/// How much more often it was the shadow.
fn excess(pairs: Pairs) -> f64 {
    pairs.shadow_only as f64 - pairs.production_only as f64
}

/// A quantile of the shadow's latencies may be so many times production's, request by request.
#[derive(Clone, Debug, PartialEq)]
pub struct PairedQuantileRatio {
    quantile: f64,
    contest: Contest,
    /// Production's of late: where the thresholds lie.
    recent: Tails,
    total: [Tails; 2],
    beyond: [Counts; 2],
}

impl PairedQuantileRatio {
    /// `Worse` when the ratio at `quantile` (0..1) is proven to be above `limit`; `alpha` for each
    /// direction.
    pub fn new(quantile: f64, limit: f64, alpha: f64) -> Self {
        Self {
            quantile,
            contest: Contest::new(limit, alpha, STAKES, quantile::GRID),
            recent: Tails::default(),
            total: [Tails::default(), Tails::default()],
            beyond: [Counts::default(); 2],
        }
    }

    /// Takes one window in: production's bucket of [`Latency`](mirror_common::histogram::Latency), the
    /// shadow's, and how many such pairs there were.
    pub fn observe(&mut self, window: &[(u16, u16, u64)]) {
        let production = Tails::of(
            window
                .iter()
                .map(|(of, _, count)| (usize::from(*of), *count)),
        );
        let shadow = Tails::of(
            window
                .iter()
                .map(|(_, of, count)| (usize::from(*of), *count)),
        );
        if production.count() == 0.0 {
            return;
        }
        if self.recent.count() > 0.0 {
            let (recent, total) = (&self.recent, &self.total);
            let around = Around::of(recent, self.quantile);
            self.contest.observe(Effect::NONE, |ratio, side| {
                let game = Game::new(around, total, window, ratio, side);
                move |bet| game.as_ref().map_or(0.0, |game| game.gain(side, bet))
            });
        }
        let arms = [&production, &shadow];
        let around = Around::of(&self.recent, self.quantile);
        let at = around
            .thresholds(Side::Above, self.contest.limit())
            .filter(|_| self.recent.count() > 0.0)
            .map(|at| [at.stable, at.canary]);
        for (arm, tails) in arms.into_iter().enumerate() {
            let all = Counts {
                events: 0,
                trials: tails.count() as u64,
            };
            self.beyond[arm].add(at.map_or(all, |at| tails.counts(at[arm])));
            self.total[arm].learn(1.0, tails, 1.0);
        }
        self.recent.learn(MEMORY, &production, 1.0);
    }

    /// What is known now. The estimate is the ratio of the quantiles of all pairs; events are
    /// latencies beyond the thresholds.
    pub fn finding(&self) -> Finding {
        let [production, shadow] = &self.total;
        let quantiles = production
            .quantile(self.quantile)
            .zip(shadow.quantile(self.quantile));
        let ratio = quantiles.map(|(production, shadow)| shadow / production);
        let [events, trials] = [
            self.beyond.map(|arm| arm.events),
            self.beyond.map(|arm| arm.trials),
        ];
        self.contest.finding(None, ratio, events, trials)
    }

    /// About how many pairs prove that an equal version is within the limit, when production's
    /// latencies are these and the shadow's do not depend on them; nothing where it never is.
    pub fn needed_for_within(&self, production: &Latencies) -> Option<u64> {
        let tails = Tails::of(production.iter());
        let around = Around::of(&tails, self.quantile);
        let at = around.thresholds(Side::Below, self.contest.limit())?;
        let [slow, slower] =
            [at.stable, at.canary].map(|at| plausible(tails.above(at) / tails.count().max(1.0)));
        let only = [slow * (1.0 - slower), slower * (1.0 - slow)];
        requests(
            self.contest.price(),
            bet::growth_of_pairs(Side::Below, 0.0, only, STAKES),
        )
    }
}

/// A window at the thresholds of one limit and side.
struct Game {
    /// Of the stakes, the one that earlier windows let expect to grow fastest.
    expected: f64,
    pairs: Pairs,
}

impl Game {
    /// Nothing where there is no threshold to bet at.
    fn new(
        around: Around,
        [production, shadow]: &[Tails; 2],
        window: &[(u16, u16, u64)],
        ratio: f64,
        side: Side,
    ) -> Option<Self> {
        let at = around.thresholds(side, ratio)?;
        let (slow, slower) = (production.above(at.stable), shadow.above(at.canary));
        // How often they are slow together is not known here: as if never.
        let count = production.count() + DOUBT;
        let (mean, square) = ((slower - slow) / count, (slower + slow + 1.0) / count);
        Some(Self {
            expected: bet::best_stake(side, 0.0, mean, square),
            pairs: split(window, at),
        })
    }

    fn gain(&self, side: Side, bet: Bet) -> f64 {
        let stake = match bet {
            Bet::Fixed(stake) => stake,
            Bet::Expected => self.expected,
        };
        bet::paired(side, 0.0, stake, self.pairs)
    }
}

/// Who was beyond their threshold.
fn split(window: &[(u16, u16, u64)], at: Thresholds) -> Pairs {
    let mut pairs = Pairs::default();
    for (production, shadow, count) in window {
        let to = match (
            usize::from(*production) > at.stable,
            usize::from(*shadow) > at.canary,
        ) {
            (true, true) => &mut pairs.both,
            (true, false) => &mut pairs.production_only,
            (false, true) => &mut pairs.shadow_only,
            (false, false) => &mut pairs.neither,
        };
        *to = to.saturating_add(*count);
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Verdict;

    fn pairs(production_only: u64, shadow_only: u64) -> Pairs {
        Pairs {
            both: 1,
            production_only,
            shadow_only,
            neither: 99 - production_only - shadow_only,
        }
    }

    #[test]
    fn a_difference_is_above_below_or_not_yet_told() {
        let check = |limit, window, expected| {
            let mut test = PairedDifference::new(limit, 0.0025);
            (0..200).for_each(|_| test.observe(window));
            let finding = test.finding();
            assert_eq!(finding.verdict, expected, "{finding:?}");
            let (low, high) = (finding.low.unwrap_or(-1.0), finding.high.unwrap_or(1.0));
            let estimate = finding.estimate.unwrap();
            assert!(low <= estimate && estimate <= high, "{finding:?}");
        };
        check(0.005, pairs(0, 0), Verdict::Within);
        check(0.005, pairs(1, 1), Verdict::Within);
        check(0.005, pairs(1, 4), Verdict::Worse);
        check(0.005, pairs(0, 40), Verdict::Worse);
        check(0.02, pairs(2, 4), Verdict::Unknown);
        check(0.0, pairs(20, 2), Verdict::Within);
    }

    #[test]
    fn events_are_counted_on_both_sides() {
        let mut test = PairedDifference::new(0.005, 0.01);
        test.observe(pairs(2, 5));
        let finding = test.finding();
        assert_eq!((finding.events, finding.trials), ([3, 6], [100, 100]));
        assert_eq!(finding.estimate, Some(0.03));
    }

    /// Latencies over an octave; the shadow's `shift` buckets above production's.
    fn shifted(shift: u16) -> Vec<(u16, u16, u64)> {
        (200..220)
            .map(|bucket| (bucket, bucket + shift, 5))
            .collect()
    }

    #[test]
    fn a_ratio_is_above_below_or_not_yet_told() {
        // Sixteen buckets are a factor of two; four of them one between 1.14 and 1.25.
        let check = |quantile, window: &[(u16, u16, u64)], expected| {
            let mut test = PairedQuantileRatio::new(quantile, 1.2, 0.0025);
            (0..100).for_each(|_| test.observe(window));
            let finding = test.finding();
            assert_eq!(finding.verdict, expected, "{finding:?}");
            assert_eq!(finding.trials, [10_000, 10_000]);
        };
        for quantile in [0.5, 0.99] {
            check(quantile, &shifted(0), Verdict::Within);
            check(quantile, &shifted(9), Verdict::Worse);
            check(quantile, &shifted(80), Verdict::Worse);
        }
        check(0.5, &shifted(4), Verdict::Unknown);
    }

    #[test]
    fn a_window_without_pairs_changes_nothing() {
        let mut errors = PairedDifference::new(0.005, 0.01);
        let mut latency = PairedQuantileRatio::new(0.99, 1.2, 0.01);
        errors.observe(pairs(1, 2));
        latency.observe(&shifted(1));
        let before = (errors.clone(), latency.clone());
        errors.observe(Pairs::default());
        latency.observe(&[]);
        assert_eq!((errors, latency), before);
    }
}
