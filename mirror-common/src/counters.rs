//! What the programs count, per CPU, and how the daemon adds it up.

use core::ops::AddAssign;

use crate::verdict::Reason;

/// Counters of one service in one direction. Row `service.index * 2 + direction`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Packets by [`Reason`].
    pub packets: [u64; Reason::COUNT],
    /// Payload bytes of packets that were copied.
    pub mirrored_bytes: u64,
    /// SYNs seen.
    pub connections: u64,
    /// Connections that hit the mirror budget.
    pub over_budget_connections: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            packets: [0; Reason::COUNT],
            mirrored_bytes: 0,
            connections: 0,
            over_budget_connections: 0,
        }
    }
}

impl AddAssign<&Self> for Counters {
    fn add_assign(&mut self, other: &Self) {
        for (sum, value) in self.packets.iter_mut().zip(other.packets) {
            *sum += value;
        }
        self.mirrored_bytes += other.mirrored_bytes;
        self.connections += other.connections;
        self.over_budget_connections += other.over_budget_connections;
    }
}

/// What one CPU has sent to one agent: the tap's side of the packet ledger. Kept per CPU, never
/// added up, since every CPU numbers its own copies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Copies handed to the uplink = the next copy's sequence number, before it wraps at 2^32.
    pub copies: u64,
    /// Their payload bytes.
    pub bytes: u64,
}

/// Bounds of [`RunTime`]'s buckets: four to the octave.
pub const RUN_TIME_BUCKETS: usize = 64;

/// How long our programs take: one run in 1,024 is timed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunTime {
    /// Timed runs by duration, see [`RunTime::bucket`].
    pub buckets: [u64; RUN_TIME_BUCKETS],
    /// Sum of the timed runs, in nanoseconds.
    pub sum_ns: u64,
}

impl Default for RunTime {
    fn default() -> Self {
        Self {
            buckets: [0; RUN_TIME_BUCKETS],
            sum_ns: 0,
        }
    }
}

impl AddAssign<&Self> for RunTime {
    fn add_assign(&mut self, other: &Self) {
        for (sum, value) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += value;
        }
        self.sum_ns += other.sum_ns;
    }
}

impl RunTime {
    /// The bucket of a duration: log-linear, four buckets to the octave from 8 ns on.
    #[inline(always)]
    pub const fn bucket(ns: u64) -> usize {
        bucket::<3, 2, RUN_TIME_BUCKETS>(ns)
    }

    /// The smallest duration above bucket `index`, in nanoseconds.
    pub const fn upper_bound_ns(index: usize) -> u64 {
        upper_bound::<3, 2>(index)
    }
}

/// Buckets of a [`Histogram`]: 16 to the octave from 1,024 ns to 137 s.
pub const HISTOGRAM_BUCKETS: usize = 27 * 16;

/// Durations, each within a sixteenth of its octave: no bucket is wider than 6.25 %.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Durations by size, see [`Histogram::bucket`].
    pub buckets: [u64; HISTOGRAM_BUCKETS],
    /// Their sum, in nanoseconds.
    pub sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [0; HISTOGRAM_BUCKETS],
            sum_ns: 0,
        }
    }
}

impl AddAssign<&Self> for Histogram {
    fn add_assign(&mut self, other: &Self) {
        for (sum, value) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += value;
        }
        self.sum_ns += other.sum_ns;
    }
}

impl Histogram {
    /// The bucket of a duration; the first has all that is shorter, the last all that is longer.
    #[inline(always)]
    pub const fn bucket(ns: u64) -> usize {
        bucket::<10, 4, HISTOGRAM_BUCKETS>(ns)
    }

    /// The smallest duration above bucket `index`, in nanoseconds.
    pub const fn upper_bound_ns(index: usize) -> u64 {
        upper_bound::<10, 4>(index)
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The bucket of `value`: log-linear, `2^BITS` to the octave, the first from `2^FIRST` on.
#[inline(always)]
const fn bucket<const FIRST: u32, const BITS: u32, const COUNT: usize>(value: u64) -> usize {
    let value = if value >> FIRST == 0 {
        1 << FIRST
    } else {
        value
    };
    let exponent = highest_bit(value);
    let part = (value >> (exponent - BITS)) & ((1 << BITS) - 1);
    let index = (((exponent - FIRST) as u64) << BITS) + part;
    if index >= COUNT as u64 {
        COUNT - 1
    } else {
        index as usize
    }
}

/// The smallest value above bucket `index`.
const fn upper_bound<const FIRST: u32, const BITS: u32>(index: usize) -> u64 {
    let exponent = (index >> BITS) as u32 + FIRST;
    let part = index as u64 & ((1 << BITS) - 1);
    ((1 << BITS) + part + 1) << (exponent - BITS)
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
mod pod {
    use super::{Counters, Histogram, RunTime, Sent};

    // SAFETY: integers only, `repr(C)`, no padding, every bit pattern is a value.
    unsafe impl aya::Pod for Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Sent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RunTime {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Histogram {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::measure::ArmCounters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::measure::Connection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::steer::Steering {}
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::flow::{Endpoint, Flow};
    use crate::measure::{ArmCounters, Connection};
    use crate::policy::{Agent, Budget, Service, Tap};
    use crate::steer::{Choice, Steering};
    use core::mem::size_of;

    /// A change here asks for a new [`crate::ABI_VERSION`].
    #[test]
    fn layouts_are_versioned() {
        let layouts = [
            ("Endpoint", size_of::<Endpoint>()),
            ("Service", size_of::<Service>()),
            ("Agent", size_of::<Agent>()),
            ("Budget", size_of::<Budget>()),
            ("Tap", size_of::<Tap>()),
            ("Counters", size_of::<Counters>()),
            ("Sent", size_of::<Sent>()),
            ("RunTime", size_of::<RunTime>()),
            ("Histogram", size_of::<Histogram>()),
            ("Flow", size_of::<Flow>()),
            ("Connection", size_of::<Connection>()),
            ("ArmCounters", size_of::<ArmCounters>()),
            ("Steering", size_of::<Steering>()),
            ("reasons", Reason::COUNT),
            ("choices", Choice::COUNT),
        ];
        let version_2 = [
            ("Endpoint", 24),
            ("Service", 56),
            ("Agent", 72),
            ("Budget", 16),
            ("Tap", 32),
            ("Counters", 216),
            ("Sent", 16),
            ("RunTime", 520),
            ("Histogram", 3464),
            ("Flow", 48),
            ("Connection", 40),
            ("ArmCounters", 208),
            ("Steering", 88),
            ("reasons", 24),
            ("choices", 8),
        ];
        assert_eq!((crate::ABI_VERSION, layouts), (2, version_2));
    }

    #[test]
    fn no_bucket_is_wider_than_a_sixteenth() {
        for ns in (0..40).flat_map(|octave| {
            (0..1_000).map(move |part| (1 << octave) + ((1u64 << octave) * part) / 1_000)
        }) {
            let index = Histogram::bucket(ns);
            if ns < 1_024 || index + 1 == HISTOGRAM_BUCKETS {
                continue;
            }
            let (above, below) = (
                Histogram::upper_bound_ns(index),
                if index == 0 {
                    1_024
                } else {
                    Histogram::upper_bound_ns(index - 1)
                },
            );
            assert!(below <= ns && ns < above, "{ns} ns in bucket {index}");
            assert!(
                (above - below) as f64 <= below as f64 * 0.0625,
                "bucket {index}"
            );
        }
        assert_eq!(Histogram::bucket(0), 0);
        assert_eq!(Histogram::bucket(u64::MAX), HISTOGRAM_BUCKETS - 1);
    }

    #[test]
    fn every_duration_lies_below_its_bucket_s_bound() {
        for ns in (8..5_000).chain((5_000..2_000_000).step_by(997)) {
            let index = RunTime::bucket(ns);
            if index + 1 == RUN_TIME_BUCKETS {
                continue;
            }
            assert!(
                ns < RunTime::upper_bound_ns(index),
                "{ns} ns in bucket {index}"
            );
            assert!(
                index == 0 || ns >= RunTime::upper_bound_ns(index - 1),
                "{ns} ns in bucket {index}"
            );
        }
    }
}
