//! Other ways to decide, in the same worlds: with the same limits, the same chance of being wrong and the same
//! stages, each as its textbook has it.

use super::super::Counts;
use super::super::bet::Side;
use super::super::latencies::{Around, BUCKETS, Tails};
use super::servers::{Nature, Servers};
use crate::Share;
use crate::plan::{Canary, Plan};
use crate::window::Window;

/// They are told apart by their places: tests of fixed samples, Kayenta's judge, and the mixture SPRT.
pub(super) const RIVALS: usize = 3;

/// Seconds in which stable serves alone before.
const ALONE: u32 = 60;

/// The chance of being wrong, for each of a default plan's five stages and three metrics.
const ALPHA: f64 = 0.01 / 15.0;

/// What the standard normal distribution exceeds with that chance, and with 1 %: Kayenta's confidence of 98 %.
const Z_ALPHA: f64 = 3.2087;
const Z_KAYENTA: f64 = 2.3263;

/// Kayenta's judge wants more than this part of the estimated effect.
const TOLERANCE: f64 = 0.25;

/// A metric has one point for so many seconds.
const POINT: u32 = 10;

/// How far from its limit a rate is expected to be, where it is beyond: the mixture's standard deviation, of errors,
/// p50 and p99.
const MIXTURE: [f64; 3] = [0.01, 0.1, 0.01];

/// With fewer of the canary's requests, no rate is taken for normal.
const FEWEST: u64 = 100;

const MAX_DELTA: f64 = 0.005;
const MAX_RATIO: f64 = 1.2;

/// After how many of the canary's requests each took it back, if it did.
pub(super) fn taken_back(nature: Nature, plan: &Plan, seed: u64) -> [Option<u64>; RIVALS] {
    let mut servers = Servers::new(nature, seed);
    let mut before = Stage::default();
    (0..ALONE).for_each(|_| before.see(&servers.window(0.0), None));
    let mut requests = 0;
    let mut back = [None; RIVALS];
    let Canary {
        min_duration, bake, ..
    } = plan.canary;
    let stages = plan.shares().filter(|share| *share < Share::ALL);
    let stages = stages.map(|share| (share, min_duration));
    for (share, lasts) in stages.chain([(plan.most(), bake)]) {
        let marks = before.marks();
        let mut stage = Stage::default();
        for _ in 0..lasts.as_secs() {
            let window = servers.window(f64::from(share));
            requests += window.canary.requests;
            stage.see(&window, Some(marks));
            if stage.mixture() {
                back[2].get_or_insert(requests);
            }
        }
        if stage.fixed() {
            back[0].get_or_insert(requests);
        }
        if stage.kayenta() {
            back[1].get_or_insert(requests);
        }
        if back.iter().all(Option::is_some) {
            break;
        }
        before = stage;
    }
    back
}

/// Above which buckets latencies count, of stable and the canary, for p50 and p99.
type Marks = [[usize; 2]; 2];

/// What happened in a stage, of stable and the canary.
#[derive(Default)]
struct Stage {
    failed: [Counts; 2],
    waited: [Tails; 2],
    /// Latencies beyond the thresholds of before the stage.
    slow: [[Counts; 2]; 2],
    point: [(Counts, Tails); 2],
    seconds: u32,
    /// Rates of errors, p50 and p99.
    points: [[Vec<f64>; 2]; 3],
}

impl Stage {
    fn see(&mut self, window: &Window, marks: Option<Marks>) {
        self.seconds += 1;
        for (at, arm) in [&window.stable, &window.canary].into_iter().enumerate() {
            let tails = Tails::of(arm.first_body.iter());
            self.failed[at].add(arm.failed());
            self.waited[at].learn(1.0, &tails, 1.0);
            for (slow, marks) in self.slow.iter_mut().zip(marks.into_iter().flatten()) {
                slow[at].add(tails.counts(marks[at]));
            }
            let (failed, waited) = &mut self.point[at];
            failed.add(arm.failed());
            waited.learn(1.0, &tails, 1.0);
        }
        if self.seconds.is_multiple_of(POINT) {
            self.take_points();
        }
    }

    fn take_points(&mut self) {
        for (at, (failed, waited)) in std::mem::take(&mut self.point).into_iter().enumerate() {
            let rate = (failed.trials > 0).then(|| failed.rate());
            let figures = [rate, waited.quantile(0.5), waited.quantile(0.99)];
            for (points, figure) in self.points.iter_mut().zip(figures) {
                points[at].extend(figure);
            }
        }
    }

    fn marks(&self) -> Marks {
        [0.5, 0.99].map(|quantile| {
            let around = Around::of(&self.waited[0], quantile);
            let at = around.thresholds(Side::Above, MAX_RATIO);
            at.map_or([BUCKETS; 2], |at| [at.stable, at.canary])
        })
    }

    /// Errors against their limit, and latencies beyond the stage's own quantiles: two-proportion z tests.
    fn fixed(&self) -> bool {
        let slow = self.marks().map(|marks| {
            let counts = |at: usize| self.waited[at].counts(marks[at]);
            ([counts(0), counts(1)], 0.0)
        });
        let mut tests = [(self.failed, MAX_DELTA)].into_iter().chain(slow);
        tests.any(|(counts, limit)| {
            beyond(counts, limit).is_some_and(|(gap, variance)| gap > Z_ALPHA * variance.sqrt())
        })
    }

    /// The same differences, at any time: the mixture SPRT of Johari, Pekelis and Walsh.
    fn mixture(&self) -> bool {
        let [p50, p99] = self.slow;
        let tests = [(self.failed, MAX_DELTA), (p50, 0.0), (p99, 0.0)];
        let mut tests = tests.into_iter().zip(MIXTURE);
        tests.any(|((counts, limit), deviation)| {
            let Some((gap, variance)) = beyond(counts, limit) else {
                return false;
            };
            gap > 0.0 && mixture(gap, variance, deviation) >= -ALPHA.ln()
        })
    }

    /// A metric is high where the Mann-Whitney interval of the shift between the versions' points lies beyond a part
    /// of its estimate (Hodges and Lehmann).
    fn kayenta(&self) -> bool {
        self.points.iter().any(|[stable, canary]| {
            let mut shifts: Vec<f64> = canary
                .iter()
                .flat_map(|canary| stable.iter().map(move |stable| canary - stable))
                .collect();
            if shifts.is_empty() {
                return false;
            }
            shifts.sort_unstable_by(f64::total_cmp);
            let [n, m] = [stable.len() as f64, canary.len() as f64];
            let deviation = (n * m * (n + m + 1.0) / 12.0).sqrt();
            let rank = n * m / 2.0 - Z_KAYENTA * deviation - 0.5;
            let estimate = shifts[shifts.len() / 2];
            rank >= 0.0 && shifts[rank as usize] > TOLERANCE * estimate.abs()
        })
    }
}

/// ln of the likelihood ratio of a gap with this variance between gaps that are normal with this deviation, and none.
pub(super) fn mixture(gap: f64, variance: f64, deviation: f64) -> f64 {
    let mixed = variance + deviation * deviation;
    let pull = deviation * deviation * gap * gap / (2.0 * variance * mixed);
    0.5 * (variance / mixed).ln() + pull
}

/// By how much the canary's rate is beyond the limit, and the variance of that.
fn beyond([stable, canary]: [Counts; 2], limit: f64) -> Option<(f64, f64)> {
    if stable.trials == 0 || canary.trials < FEWEST {
        return None;
    }
    let variance = |arm: Counts| {
        let rate = (arm.events as f64 + 0.5) / (arm.trials as f64 + 1.0);
        rate * (1.0 - rate) / arm.trials as f64
    };
    let gap = canary.rate() - stable.rate() - limit;
    Some((gap, variance(stable) + variance(canary)))
}

#[cfg(test)]
mod tests {
    use super::super::servers::CALM;
    use super::*;

    /// They are no straw men: where requests are independent, they find what is worse and accuse nobody else.
    #[test]
    fn rivals_are_right_where_requests_are_independent() {
        let worse = [(0.02, 1.0), (0.0, 3.0)];
        for (worse, slower) in worse {
            let nature = Nature {
                worse,
                slower: (slower, u32::MAX),
                ..CALM
            };
            let back = taken_back(nature, &Plan::default(), 1);
            assert!(back.iter().all(Option::is_some), "{back:?}");
        }
        let back = taken_back(CALM, &Plan::default(), 2);
        assert_eq!([back[0], back[2]], [None; 2]);
    }
}
