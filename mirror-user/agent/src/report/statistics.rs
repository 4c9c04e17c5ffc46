//! Shares with their intervals, quantiles, and samples of bounded size.

use hdrhistogram::Histogram;
use serde::Serialize;

use mirror_api::summary::{NoisePairs, RightPairs};

/// A share with its 95 % interval (Wilson, 1927), all from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    /// The share that was observed.
    pub share: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Share {
    /// `part` of `whole`; nothing of nothing has no share.
    pub fn of(part: u64, whole: u64) -> Option<Self> {
        Self::within(part, whole, 1.959_963_984_540_054)
    }

    /// Whether `part` of `whole` is less than the share among the rest, by more than chance:
    /// Newcombe's interval for the difference of independent proportions (Statistics in Medicine
    /// 17, 1998, pages 873 to 890, method 10), four standard errors wide to each side, is below 0.
    /// With a hundred slices that are all alike, not one report in a hundred says so of any.
    pub fn is_below([part, whole]: [u64; 2], [rest_part, rest]: [u64; 2]) -> bool {
        let shares = Self::within(part, whole, 4.0).zip(Self::within(rest_part, rest, 4.0));
        shares.is_some_and(|(this, rest)| {
            let above = (this.high - this.share).hypot(rest.share - rest.low);
            this.share - rest.share + above < 0.0
        })
    }

    /// The interval of `z` standard errors to each side.
    fn within(part: u64, whole: u64, z: f64) -> Option<Self> {
        if whole == 0 {
            return None;
        }
        let n = whole as f64;
        let share = part as f64 / n;
        let scale = 1.0 + z * z / n;
        let middle = (share + z * z / (2.0 * n)) / scale;
        let half = z / scale * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
        Some(Self {
            share,
            low: (middle - half).max(0.0),
            high: (middle + half).min(1.0),
        })
    }
}

/// The difference of two shares of the same requests with its 95 % interval, all from -1 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The difference that was observed.
    pub difference: f64,
    /// The interval's lower end.
    pub low: f64,
    /// The interval's upper end.
    pub high: f64,
}

impl Difference {
    /// How much more often the versions disagreed than one with itself; nothing of no pairs.
    pub fn of_noise(pairs: &NoisePairs) -> Option<Self> {
        // To disagree is the event here, as it is there to be right.
        Self::of(&RightPairs {
            both_right: pairs.both,
            production_only: pairs.itself,
            shadow_only: pairs.versions,
            neither: pairs.neither,
        })
    }

    /// How much more often the shadow was right than production; nothing of no pairs.
    ///
    /// Both versions were asked the same, so their shares are not independent: the interval is
    /// Newcombe's for paired proportions (Statistics in Medicine 17, 1998, pages 2635 to 2650,
    /// method 10), which combines both Wilson intervals by the correlation of the pairs.
    pub fn of(pairs: &RightPairs) -> Option<Self> {
        let figures = [
            pairs.both_right,
            pairs.shadow_only,
            pairs.production_only,
            pairs.neither,
        ];
        let [a, b, c, d] = figures.map(|count| count as f64);
        let n = pairs.count();
        let shadow = Share::of(pairs.both_right + pairs.shadow_only, n)?;
        let production = Share::of(pairs.both_right + pairs.production_only, n)?;
        let margins = (a + b) * (c + d) * (a + c) * (b + d);
        let association = match a * d - b * c {
            positive if positive > 0.0 => (positive - n as f64 / 2.0).max(0.0),
            negative => negative,
        };
        let correlation = if margins > 0.0 {
            association / margins.sqrt()
        } else {
            0.0
        };
        let half = |x: f64, y: f64| (x * x - 2.0 * correlation * x * y + y * y).max(0.0).sqrt();
        let difference = (b - c) / n as f64;
        let below = half(
            shadow.share - shadow.low,
            production.high - production.share,
        );
        let above = half(
            shadow.high - shadow.share,
            production.share - production.low,
        );
        Some(Self {
            difference,
            low: (difference - below).max(-1.0),
            high: (difference + above).min(1.0),
        })
    }
}

/// Durations in milliseconds, to three significant digits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// 95 % are no longer.
    pub p95: f64,
    /// 99 % are no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// Durations as they come.
#[derive(Clone, Debug)]
pub(super) struct Durations(Option<Histogram<u64>>);

impl Default for Durations {
    fn default() -> Self {
        Self(Histogram::new(3).ok())
    }
}

impl Durations {
    pub(super) fn add(&mut self, milliseconds: f64) {
        const DAY: u64 = 86_400_000_000;
        if let Some(histogram) = &mut self.0 {
            let microseconds = (milliseconds * 1000.0).round() as u64;
            // Cannot fail: the histogram grows by itself, and a day is in its range.
            let _ = histogram.record(microseconds.min(DAY));
        }
    }

    pub(super) fn quantiles(&self) -> Option<Quantiles> {
        let histogram = self.0.as_ref().filter(|histogram| !histogram.is_empty())?;
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Some(Quantiles {
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            max: histogram.max() as f64 / 1000.0,
        })
    }
}

/// A uniform sample of what came (reservoir sampling, Vitter 1985), with exact extremes and mean.
/// Deterministic, so that two reports of the same records are the same.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    values: Vec<f64>,
    pub(super) count: u64,
    sum: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    random: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            values: Vec::new(),
            count: 0,
            sum: 0.0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }
}

impl Sample {
    const SIZE: usize = 1 << 16;

    pub(super) fn add(&mut self, value: f64) {
        self.count += 1;
        self.sum += value;
        self.min = self.min.min(value);
        self.max = self.max.max(value);
        if self.values.len() < Self::SIZE {
            self.values.push(value);
            return;
        }
        // xorshift64 (Marsaglia, 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let place = (self.random % self.count) as usize;
        if let Some(old) = self.values.get_mut(place) {
            *old = value;
        }
    }

    pub(super) fn mean(&self) -> f64 {
        self.sum / self.count as f64
    }

    /// The sampled values in their order.
    pub(super) fn sorted(&self) -> Vec<f64> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values
    }
}

/// The `quantile` of sorted values, the nearest one below.
pub(super) fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let index = (quantile * last as f64).round() as usize;
    sorted.get(index.min(last)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_wilson_s_interval() {
        let check = |part, whole, (low, high): (f64, f64)| {
            let share = Share::of(part, whole).unwrap();
            assert!(
                (share.low - low).abs() < 5e-4 && (share.high - high).abs() < 5e-4,
                "{share:?}"
            );
        };
        check(0, 10, (0.0, 0.2775));
        check(10, 10, (0.7225, 1.0));
        check(81, 263, (0.2553, 0.3662));
        assert_eq!(Share::of(0, 0), None);
    }

    #[test]
    fn a_slice_is_worse_beyond_chance_alone() {
        let check = |slice, rest, expected| {
            assert_eq!(Share::is_below(slice, rest), expected, "{slice:?} {rest:?}");
        };
        check([80, 100], [9_900, 10_000], true);
        check([95, 100], [9_900, 10_000], false);
        check([950, 1_000], [9_900, 10_000], true);
        check([100, 100], [9_900, 10_000], false);
        check([0, 5], [9_900, 10_000], true);
        check([0, 0], [9_900, 10_000], false);
        check([0, 100], [0, 0], false);
    }

    #[test]
    fn a_difference_of_pairs_has_newcombe_s_interval() {
        let check = |[a, b, c, d]: [u64; 4], (low, high): (f64, f64)| {
            let pairs = RightPairs {
                both_right: a,
                shadow_only: b,
                production_only: c,
                neither: d,
            };
            let found = Difference::of(&pairs).unwrap();
            assert!(
                (found.low - low).abs() < 5e-4 && (found.high - high).abs() < 5e-4,
                "{pairs:?}: {found:?}"
            );
        };
        // Newcombe's own example, and that of Fagerland, Lydersen and Laake (Statistics in Medicine
        // 33, 2014).
        check([20, 12, 2, 16], (0.0562, 0.3292));
        check([1, 1, 7, 12], (-0.507, -0.0256));
        check([36, 0, 0, 14], (-0.0491, 0.0491));
        check([0, 0, 0, 5], (-0.4345, 0.4345));
        assert_eq!(Difference::of(&RightPairs::default()), None);
    }

    #[test]
    fn a_sample_stays_bounded_and_fair() {
        let mut sample = Sample::default();
        for value in 0..500_000 {
            sample.add(f64::from(value));
        }
        let sorted = sample.sorted();
        assert_eq!(sorted.len(), Sample::SIZE);
        let median = quantile(&sorted, 0.5);
        assert!((median - 250_000.0).abs() < 5_000.0, "{median}");
        assert_eq!((sample.min, sample.max), (0.0, 499_999.0));
    }
}
