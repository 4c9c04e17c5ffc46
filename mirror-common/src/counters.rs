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
        let ns = if ns < 8 { 8 } else { ns };
        // Binary search for the highest bit: the BPF instruction set has no `clz`.
        let mut exponent = 0;
        let mut rest = ns;
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
        let quarter = (ns >> (exponent - 2)) & 3;
        let index = (exponent - 3) * 4 + quarter;
        if index >= RUN_TIME_BUCKETS as u64 {
            RUN_TIME_BUCKETS - 1
        } else {
            index as usize
        }
    }

    /// The smallest duration above bucket `index`, in nanoseconds.
    pub const fn upper_bound_ns(index: usize) -> u64 {
        let exponent = index / 4 + 3;
        let quarter = index % 4;
        ((4 + quarter + 1) as u64) << (exponent - 2)
    }
}

#[cfg(feature = "user")]
mod pod {
    use super::{Counters, RunTime, Sent};

    // SAFETY: integers only, `repr(C)`, no padding, every bit pattern is a value.
    unsafe impl aya::Pod for Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Sent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for RunTime {}
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::flow::Endpoint;
    use crate::policy::{Agent, Budget, Service, Tap};
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
            ("reasons", Reason::COUNT),
        ];
        let version_1 = [
            ("Endpoint", 24),
            ("Service", 56),
            ("Agent", 72),
            ("Budget", 16),
            ("Tap", 32),
            ("Counters", 208),
            ("Sent", 16),
            ("RunTime", 520),
            ("reasons", 23),
        ];
        assert_eq!((crate::ABI_VERSION, layouts), (1, version_1));
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
