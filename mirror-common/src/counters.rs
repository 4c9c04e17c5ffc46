//! What the programs count, per CPU, and how the daemon adds it up.

use core::ops::AddAssign;

use crate::abi::shared;
use crate::verdict::Reason;

shared! {
    /// Counters of one service in one direction. Row `service.index * 2 + direction`.
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

shared! {
    /// What one CPU has sent to one agent, or put into one of its lanes: the tap's side of the packet ledger.
    /// Never added up there, since each numbers its own copies.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Sent {
        /// Copies handed to the uplink, or put into the ring = the next copy's sequence number, before it wraps at 2^32.
        pub copies: u64,
        /// Their payload bytes.
        pub bytes: u64,
        /// Copies for which a ring had no room.
        pub refused: u64,
    }
}
