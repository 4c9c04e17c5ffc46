//! Latencies by bucket: of one window, and of many.

use mirror_common::histogram::Latency;
use serde::{Deserialize, Serialize};

use super::Counts;
use super::bet::Side;

pub(super) const BUCKETS: usize = Latency {
    buckets: [0; _],
    sum_ns: 0,
}
.buckets
.len();
/// The last bucket has no upper bound.
const LAST: usize = BUCKETS - 1;

/// The latencies of a window: how many lie in which bucket of
/// [`Latency`], by rising bucket, without empty ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u16, u64)>", into = "Vec<(u16, u64)>")]
pub struct Latencies(Vec<(u16, u64)>);

impl Latencies {
    /// What was counted between two looks at a histogram that only grows.
    pub fn between(before: &Latency, after: &Latency) -> Self {
        let pairs = before.buckets.iter().zip(&after.buckets);
        (0..)
            .zip(pairs)
            .map(|(bucket, (before, after))| (bucket, after.saturating_sub(*before)))
            .collect()
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0
            .iter()
            .fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// No answer took longer, but those that no bucket bounds, among which are those that never came.
    pub fn longest(&self) -> Option<std::time::Duration> {
        let mut bounded = self.0.iter().rev();
        let (bucket, _) = bounded.find(|(bucket, _)| usize::from(*bucket) < LAST)?;
        let ns = Latency::upper_bound_ns(usize::from(*bucket));
        Some(std::time::Duration::from_nanos(ns))
    }

    /// The same, but that so many of these never came: they were longer than whatever one asks for.
    pub fn given_up(self, given_up: &Self, never: u64) -> Self {
        let mut counts: Vec<_> = self.0;
        for (bucket, gone) in &given_up.0 {
            let same = counts.iter_mut().find(|(of, _)| of == bucket);
            if let Some((_, count)) = same {
                *count = count.saturating_sub(*gone);
            }
        }
        counts.push((LAST as u16, never));
        Self::from(counts)
    }

    /// How many were surely longer than this, in nanoseconds.
    pub fn longer_than(&self, ns: u64) -> Counts {
        let bucket = Latency::bucket(ns.saturating_sub(1)) as u16;
        let longer = self.0.iter().filter(|(of, _)| *of > bucket);
        Counts {
            events: longer.fold(0, |sum, (_, count)| sum.saturating_add(*count)),
            trials: self.count(),
        }
    }

    /// What that part of them took at most, about; nothing where there are none.
    pub fn quantile(&self, quantile: f64) -> Option<std::time::Duration> {
        let ns = Tails::of(self.iter()).quantile(quantile)?;
        Some(std::time::Duration::from_nanos(ns as u64))
    }

    /// Both together.
    pub fn add(&mut self, others: &Self) {
        let own = std::mem::take(&mut self.0);
        *self = own.into_iter().chain(others.0.iter().copied()).collect();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.0
            .iter()
            .map(|(bucket, count)| (usize::from(*bucket), *count))
    }
}

impl FromIterator<(u16, u64)> for Latencies {
    /// In any order; what lies beyond the last bucket counts as in it.
    fn from_iter<I: IntoIterator<Item = (u16, u64)>>(counts: I) -> Self {
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        let mut sorted: Vec<_> = counts
            .map(|(of, count)| (of.min(LAST as u16), count))
            .collect();
        sorted.sort_unstable();
        sorted.dedup_by(|next, kept| {
            let same = next.0 == kept.0;
            if same {
                kept.1 = kept.1.saturating_add(next.1);
            }
            same
        });
        Self(sorted)
    }
}

impl From<Vec<(u16, u64)>> for Latencies {
    fn from(counts: Vec<(u16, u64)>) -> Self {
        counts.into_iter().collect()
    }
}

impl From<Latencies> for Vec<(u16, u64)> {
    fn from(latencies: Latencies) -> Self {
        latencies.0
    }
}

/// How much lies above each bucket, and in all: what a test asks for, and what sums and fades as the
/// counts themselves do.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tails {
    above: Box<[f64; BUCKETS]>,
    count: f64,
}

impl Default for Tails {
    fn default() -> Self {
        Self {
            above: Box::new([0.0; BUCKETS]),
            count: 0.0,
        }
    }
}

impl Tails {
    pub(super) fn of(counts: impl Iterator<Item = (usize, u64)>) -> Self {
        let mut tails = Self::default();
        let (mut first, mut end) = (BUCKETS, 0);
        for (bucket, count) in counts {
            let bucket = bucket.min(LAST);
            tails.above[bucket] += count as f64;
            (first, end) = (first.min(bucket), end.max(bucket + 1));
        }
        let first = first.min(end);
        for above in tails.above[first..end].iter_mut().rev() {
            let here = *above;
            *above = tails.count;
            tails.count += here;
        }
        tails.above[..first].fill(tails.count);
        tails
    }

    /// Fades by `memory`, and takes `others` in, each counting as much as `weight`.
    pub(super) fn learn(&mut self, memory: f64, others: &Self, weight: f64) {
        for (above, other) in self.above.iter_mut().zip(others.above.iter()) {
            *above = *above * memory + other * weight;
        }
        self.count = self.count * memory + others.count * weight;
    }

    pub(super) fn count(&self) -> f64 {
        self.count
    }

    /// Whether about as much lies above a bucket as above the quantile.
    pub(super) fn is_near(&self, bucket: usize, quantile: f64) -> bool {
        let odds = |above: f64| (above + 0.5) / (self.count - above + 0.5);
        let factor = odds(self.above(bucket)) / odds((1.0 - quantile) * self.count);
        (1.0 / NEAR..NEAR).contains(&factor)
    }

    /// How much lies above a bucket.
    pub(super) fn above(&self, bucket: usize) -> f64 {
        self.above[bucket.min(LAST)]
    }

    /// Without what no bucket bounds: there, nothing can be told apart.
    pub(super) fn bounded(&self) -> Self {
        let mut bounded = self.clone();
        let beyond = self.above(LAST - 1);
        for above in &mut bounded.above[..LAST] {
            *above -= beyond;
        }
        bounded.count -= beyond;
        bounded
    }

    pub(super) fn counts(&self, bucket: usize) -> Counts {
        Counts {
            events: self.above(bucket) as u64,
            trials: self.count as u64,
        }
    }

    /// The bucket in which a quantile lies.
    pub(super) fn bucket(&self, quantile: f64) -> usize {
        let tail = (1.0 - quantile) * self.count;
        self.above.partition_point(|above| *above > tail).min(LAST)
    }

    /// A quantile in nanoseconds, interpolated in its bucket; nothing where there is nothing.
    pub(super) fn quantile(&self, quantile: f64) -> Option<f64> {
        if self.count <= 0.0 {
            return None;
        }
        let bucket = self.bucket(quantile);
        let high = Latency::upper_bound_ns(bucket) as f64;
        let (low, from) = match bucket.checked_sub(1) {
            Some(below) => (Latency::upper_bound_ns(below) as f64, self.above(below)),
            None => (high * 16.0 / 17.0, self.count),
        };
        let inside = from - self.above(bucket);
        let part = (from - (1.0 - quantile) * self.count) / inside.max(f64::MIN_POSITIVE);
        Some(low + (high - low) * part.clamp(0.0, 1.0))
    }
}

/// The last bucket in which all is less than this; nothing where there is none.
pub(super) fn below(ns: f64) -> Option<usize> {
    Latency::bucket(ns as u64).checked_sub(1)
}

/// A threshold for each arm: above which bucket a latency counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thresholds {
    pub(super) stable: usize,
    pub(super) canary: usize,
}

/// How far from the quantile's bucket a threshold may lie.
const REACH: usize = 3;
/// By what factor the odds of what lies above it may differ from the quantile's own.
const NEAR: f64 = 3.0;
/// So many buckets a threshold of either side may be: those around the quantile's, and one below.
const AROUND: usize = 2 * REACH + 2;

/// The buckets near a quantile, among which are stable's thresholds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around {
    /// The quantile's.
    own: usize,
    /// Whether about as much lies above them, from `own - REACH - 1` on.
    near: [bool; AROUND],
}

impl Around {
    pub(super) fn of(tails: &Tails, quantile: f64) -> Self {
        let own = tails.bucket(quantile);
        let is_near = |at: usize| {
            let bucket = (own + at).checked_sub(REACH + 1);
            bucket.is_some_and(|bucket| bucket < LAST && tails.is_near(bucket, quantile))
        };
        Self {
            own,
            near: std::array::from_fn(is_near),
        }
    }

    /// A threshold near stable's quantile, and `ratio` times as much for the canary, rounded to a
    /// bucket's bound: up where "above" is to be proven, down where "below" is. Of those that are near
    /// enough the one that loses least by rounding.
    pub(super) fn thresholds(&self, side: Side, ratio: f64) -> Option<Thresholds> {
        match side {
            Side::Above => self.best(ratio, self.own, |target| {
                let ns = (target * (1.0 - 1e-9)).ceil() as u64;
                Some(Latency::bucket(ns.saturating_sub(1)))
            }),
            Side::Below => self.best(ratio, self.own.saturating_sub(1), |target| {
                below(target * (1.0 + 1e-9))
            }),
        }
    }

    fn best(
        &self,
        ratio: f64,
        own: usize,
        canary: impl Fn(f64) -> Option<usize>,
    ) -> Option<Thresholds> {
        let mut best: Option<(f64, Thresholds)> = None;
        for stable in (own.saturating_sub(REACH)..=own + REACH).filter(|stable| *stable < LAST) {
            if stable != own && !self.near[stable + REACH + 1 - self.own] {
                continue;
            }
            let target = Latency::upper_bound_ns(stable) as f64 * ratio;
            let Some(canary) = canary(target) else {
                continue;
            };
            let rounding = (Latency::upper_bound_ns(canary) as f64 / target - 1.0).abs();
            let loss = rounding + 1e-6 * stable.abs_diff(own) as f64;
            if best.is_none_or(|(least, _)| loss < least) {
                best = Some((loss, Thresholds { stable, canary }));
            }
        }
        best.map(|(_, thresholds)| thresholds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tails(counts: &[(u16, u64)]) -> Tails {
        Tails::of(Latencies::from(counts.to_vec()).iter())
    }

    #[test]
    fn a_window_is_what_was_added() {
        let mut before = Latency::default();
        before.count_in(5_000);
        let mut after = before;
        for ns in [5_000, 5_000, 1_000_000, u64::MAX / 4] {
            after.count_in(ns);
        }
        let window = Latencies::between(&before, &after);
        assert_eq!(
            window.iter().map(|(_, count)| count).collect::<Vec<_>>(),
            [2, 1, 1]
        );
        let text = serde_json::to_string(&window).unwrap();
        assert_eq!(text, "[[35,2],[158,1],[431,1]]");
        assert_eq!(serde_json::from_str::<Latencies>(&text).unwrap(), window);
        // A counter that began anew.
        assert_eq!(Latencies::between(&after, &before).count(), 0);
    }

    #[test]
    fn who_gave_up_was_not_answered_then() {
        let all = Latencies::from(vec![(3, 2), (9, 4)]);
        let given_up = Latencies::from(vec![(9, 1), (12, 1)]);
        let found = all.given_up(&given_up, 5);
        assert_eq!(found.longest(), Latencies::from(vec![(9, 1)]).longest());
        assert_eq!(Vec::from(found), [(3, 2), (9, 3), (431, 5)]);
        assert_eq!(Latencies::from(vec![(431, 5)]).longest(), None);
    }

    #[test]
    fn any_list_is_put_in_order() {
        let window = Latencies::from(vec![(9, 1), (3, 2), (9, 4), (5, 0), (60_000, 1)]);
        assert_eq!(Vec::from(window), [(3, 2), (9, 5), (431, 1)]);
    }

    #[test]
    fn longer_than_a_limit_is_what_is_surely_longer() {
        let mut histogram = Latency::default();
        for ns in [90_000, 99_999, 101_000, 200_000] {
            histogram.count_in(ns);
        }
        let window = Latencies::between(&Latency::default(), &histogram);
        let bound = Latency::upper_bound_ns(Latency::bucket(99_999));
        assert!(bound > 101_000);
        assert_eq!(
            window.longer_than(100_000),
            Counts {
                events: 1,
                trials: 4
            }
        );
        assert_eq!(
            window.longer_than(bound),
            Counts {
                events: 1,
                trials: 4
            }
        );
        assert_eq!(
            window.longer_than(50_000),
            Counts {
                events: 4,
                trials: 4
            }
        );
    }

    #[test]
    fn tails_sum_and_fade() {
        let mut sum = tails(&[(3, 2), (9, 5)]);
        sum.learn(0.5, &tails(&[(4, 10)]), 2.0);
        let found = [0, 2, 3, 4, 8, 9].map(|bucket| sum.above(bucket));
        assert_eq!(
            (found, sum.count()),
            ([23.5, 23.5, 22.5, 2.5, 2.5, 0.0], 23.5)
        );
    }

    #[test]
    fn a_quantile_is_interpolated() {
        let bounds = [99, 100].map(|bucket| Latency::upper_bound_ns(bucket) as f64);
        let check = |counts: &[(u16, u64)], quantile, expected: f64| {
            let found = tails(counts).quantile(quantile).unwrap();
            assert!(
                (found / expected - 1.0).abs() < 1e-9,
                "{found} is not {expected}"
            );
        };
        check(&[(100, 4)], 0.5, (bounds[0] + bounds[1]) / 2.0);
        check(&[(100, 4)], 1.0, bounds[1]);
        check(&[(10, 50), (100, 50)], 0.75, (bounds[0] + bounds[1]) / 2.0);
        assert_eq!(Tails::default().quantile(0.5), None);
        assert!(tails(&[(0, 1)]).quantile(0.0).unwrap() > 0.0);
        assert!(tails(&[(431, 1)]).quantile(1.0).unwrap().is_finite());
    }

    /// The canary's threshold is never less than `ratio` times stable's when it is rounded up, and
    /// never more when it is rounded down.
    #[test]
    fn thresholds_are_rounded_to_the_safe_side() {
        let bound = |bucket| Latency::upper_bound_ns(bucket) as f64;
        for from in (0..400).step_by(7) {
            let window: Vec<_> = (0..25)
                .map(|bucket| (from + bucket, 1_000 >> (bucket / 2)))
                .collect();
            let tails = tails(&window);
            for ratio in [0.5, 1.0, 1.07, 1.2, 3.0] {
                for quantile in [0.5, 0.99] {
                    if let Some(Thresholds { stable, canary }) =
                        Around::of(&tails, quantile).thresholds(Side::Above, ratio)
                    {
                        assert!(
                            canary == LAST || bound(canary) >= bound(stable) * ratio * (1.0 - 1e-8)
                        );
                        assert!(stable.abs_diff(tails.bucket(quantile)) <= REACH);
                    }
                    if let Some(Thresholds { stable, canary }) =
                        Around::of(&tails, quantile).thresholds(Side::Below, ratio)
                    {
                        assert!(bound(canary) <= bound(stable) * ratio * (1.0 + 1e-8));
                        assert!(canary < LAST && stable < LAST);
                    }
                }
            }
        }
    }

    /// 1.2 times 20 is 24: there are bounds for which nothing is lost.
    #[test]
    fn where_a_ratio_meets_two_bounds_nothing_is_lost() {
        for from in 100..120 {
            let window: Vec<_> = (0..60).map(|bucket| (from + bucket, 100)).collect();
            let tails = tails(&window);
            for at in [
                Around::of(&tails, 0.5).thresholds(Side::Above, 1.2),
                Around::of(&tails, 0.5).thresholds(Side::Below, 1.2),
            ] {
                let Thresholds { stable, canary } = at.unwrap();
                let bounds = [stable, canary].map(Latency::upper_bound_ns);
                assert_eq!(bounds[1] * 10, bounds[0] * 12, "from {from}");
            }
        }
    }
}
