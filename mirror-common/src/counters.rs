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
    /// Resets of connections that nobody remembers: they tell nothing of a version.
    pub stray_resets: u64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            packets: [0; Reason::COUNT],
            mirrored_bytes: 0,
            connections: 0,
            over_budget_connections: 0,
            stray_resets: 0,
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
        self.stray_resets += other.stray_resets;
    }
}

/// What one CPU has sent to one agent, or put into one of its lanes: the tap's side of the packet ledger.
/// Never added up there, since each numbers its own copies.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Copies handed to the uplink, or put into the ring = the next copy's sequence number, before it wraps at 2^32.
    pub copies: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Copies for which a ring had no room.
    pub refused: u64,
}

#[cfg(feature = "user")]
mod pod {
    use super::{Counters, Sent};

    // SAFETY: integers only, `repr(C)`, no padding, every bit pattern is a value.
    unsafe impl aya::Pod for Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Sent {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::measure::ArmCounters {}
    // SAFETY: integers, `repr(C)`, no padding, every bit pattern is a value.
    unsafe impl aya::Pod for crate::measure::ByClient {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::connection::Connection {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::steer::Steering {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::steer::Health {}
    // SAFETY: as above.
    unsafe impl aya::Pod for crate::steer::Arrivals {}
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::connection::Connection;
    use crate::flow::{Endpoint, Flow};
    use crate::histogram::{Latency, RunTime};
    use crate::measure::{ArmCounters, ByClient};
    use crate::policy::{Agent, Budget, Service, Tap};
    use crate::steer::{Arrivals, Choice, Health, Steering};
    use crate::translate::{Ports, Translation};
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
            ("Latency", size_of::<Latency>()),
            ("Flow", size_of::<Flow>()),
            ("Connection", size_of::<Connection>()),
            ("ArmCounters", size_of::<ArmCounters>()),
            ("ByClient", size_of::<ByClient>()),
            ("Steering", size_of::<Steering>()),
            ("reasons", Reason::COUNT),
            ("Health", size_of::<Health>()),
            ("Ports", size_of::<Ports>()),
            ("Translation", size_of::<Translation>()),
            ("choices", Choice::COUNT),
            ("Arrivals", size_of::<Arrivals>()),
        ];
        let version_7 = [
            ("Endpoint", 24),
            ("Service", 80),
            ("Agent", 104),
            ("Budget", 16),
            ("Tap", 40),
            ("Counters", 264),
            ("Sent", 24),
            ("RunTime", 520),
            ("Latency", 3464),
            ("Flow", 48),
            ("Connection", 128),
            ("ArmCounters", 240),
            ("ByClient", 1024),
            ("Steering", 272),
            ("reasons", 29),
            ("Health", 16),
            ("Ports", 8),
            ("Translation", 96),
            ("choices", 12),
            ("Arrivals", 16),
        ];
        assert_eq!((crate::ABI_VERSION, layouts), (7, version_7));
    }
}
