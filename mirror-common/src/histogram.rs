//! Durations by size, counted in the kernel: log-linear buckets, as in HdrHistogram.

use core::hint::black_box;
use core::ops::AddAssign;

/// Durations in `COUNT` buckets, `2^BITS` to the octave, the first from `2^FIRST` ns on. The first
/// bucket has all that is shorter as well, the last all that is longer.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram<const FIRST: u32, const BITS: u32, const COUNT: usize> {
    /// How many durations each bucket has.
    pub buckets: [u64; COUNT],
    /// Their sum, in nanoseconds.
    pub sum_ns: u64,
}

/// How long our programs take: from 8 ns to 0.5 ms, four buckets to the octave.
pub type RunTime = Histogram<3, 2, 64>;

/// How long a server takes: from 1 us to 137 s. No bucket is wider than 6.25 %.
pub type Latency = Histogram<10, 4, { 27 * 16 }>;

impl<const FIRST: u32, const BITS: u32, const COUNT: usize> Histogram<FIRST, BITS, COUNT> {
    /// The bucket of a duration.
    #[inline(always)]
    pub const fn bucket(ns: u64) -> usize {
        let ns = if ns >> FIRST == 0 { 1 << FIRST } else { ns };
        let exponent = highest_bit(ns);
        let part = (ns >> (exponent - BITS)) & ((1 << BITS) - 1);
        let index = (((exponent - FIRST) as u64) << BITS) + part;
        if index >= COUNT as u64 {
            COUNT - 1
        } else {
            index as usize
        }
    }

    /// The smallest duration above bucket `index`, in nanoseconds.
    pub const fn upper_bound_ns(index: usize) -> u64 {
        let exponent = (index >> BITS) as u32 + FIRST;
        let part = index as u64 & ((1 << BITS) - 1);
        ((1 << BITS) + part + 1) << (exponent - BITS)
    }

    /// Counts a duration.
    #[inline(always)]
    pub fn count_in(&mut self, ns: u64) {
        // The compiler knows that it is in range; the verifier has to be shown.
        if let Some(bucket) = self.buckets.get_mut(black_box(Self::bucket(ns))) {
            *bucket += 1;
        }
        self.sum_ns += ns;
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The upper bound, in nanoseconds, of the bucket in which a quantile lies; nothing where there
    /// are no durations.
    pub fn quantile(&self, part: f64) -> Option<u64> {
        let rank = self.count() as f64 * part;
        let mut below = 0;
        let found = self.buckets.iter().position(|count| {
            below += count;
            below > 0 && below as f64 >= rank
        });
        found.map(Self::upper_bound_ns)
    }
}

impl<const FIRST: u32, const BITS: u32, const COUNT: usize> Default
    for Histogram<FIRST, BITS, COUNT>
{
    fn default() -> Self {
        Self {
            buckets: [0; COUNT],
            sum_ns: 0,
        }
    }
}

impl<const FIRST: u32, const BITS: u32, const COUNT: usize> AddAssign<&Self>
    for Histogram<FIRST, BITS, COUNT>
{
    fn add_assign(&mut self, other: &Self) {
        for (sum, value) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += value;
        }
        self.sum_ns += other.sum_ns;
    }
}

/// The number of the highest bit, by binary search: the BPF instruction set has no `clz`.
#[inline(always)]
const fn highest_bit(value: u64) -> u32 {
    let mut exponent = 0;
    let mut rest = value;
    if rest >> 32 != 0 {
        rest >>= 32;
        exponent += 32;
    }
    if rest >> 16 != 0 {
        rest >>= 16;
        exponent += 16;
    }
    if rest >> 8 != 0 {
        rest >>= 8;
        exponent += 8;
    }
    if rest >> 4 != 0 {
        rest >>= 4;
        exponent += 4;
    }
    if rest >> 2 != 0 {
        rest >>= 2;
        exponent += 2;
    }
    if rest >> 1 != 0 {
        exponent += 1;
    }
    exponent
}

#[cfg(feature = "user")]
// SAFETY: integers only, `repr(C)`, no padding, every bit pattern is a value.
unsafe impl<const FIRST: u32, const BITS: u32, const COUNT: usize> aya::Pod
    for Histogram<FIRST, BITS, COUNT>
{
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    /// Every duration lies within its bucket, and no bucket is wider than it should be.
    fn check<const FIRST: u32, const BITS: u32, const COUNT: usize>() {
        type Of<const FIRST: u32, const BITS: u32, const COUNT: usize> =
            Histogram<FIRST, BITS, COUNT>;
        let durations = (FIRST..48).flat_map(|octave| {
            (0..1_000).map(move |part| (1 << octave) + ((1u64 << octave) * part) / 1_000)
        });
        for ns in durations {
            let index = Of::<FIRST, BITS, COUNT>::bucket(ns);
            if index + 1 == COUNT {
                continue;
            }
            let above = Of::<FIRST, BITS, COUNT>::upper_bound_ns(index);
            let below = match index {
                0 => 1 << FIRST,
                _ => Of::<FIRST, BITS, COUNT>::upper_bound_ns(index - 1),
            };
            assert!(below <= ns && ns < above, "{ns} ns in bucket {index}");
            let width = (above - below) as f64 / below as f64;
            assert!(
                width <= 1.0 / f64::from(1 << BITS),
                "bucket {index}: {width}"
            );
        }
        assert_eq!(Of::<FIRST, BITS, COUNT>::bucket(0), 0);
        assert_eq!(Of::<FIRST, BITS, COUNT>::bucket(u64::MAX), COUNT - 1);
    }

    #[test]
    fn a_duration_lies_in_a_narrow_bucket() {
        check::<3, 2, 64>();
        check::<10, 4, 432>();
    }

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        let mut histogram = RunTime::default();
        assert_eq!(histogram.quantile(0.5), None);
        for _ in 0..98 {
            histogram.count_in(100);
        }
        histogram.count_in(900);
        histogram.count_in(900);
        assert_eq!(
            (histogram.count(), histogram.sum_ns),
            (100, 98 * 100 + 1_800)
        );
        let quantiles = [0.0, 0.5, 0.98, 0.99, 1.0].map(|part| histogram.quantile(part));
        assert_eq!(quantiles, [112, 112, 112, 1024, 1024].map(Some));
    }
}
