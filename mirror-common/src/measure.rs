//! Each version measured apart: what is counted of it.

use core::ops::AddAssign;

use crate::abi::shared;
use crate::connection::Seen;
use crate::flow::Endpoint;
use crate::packet::{ACK, FIN, Packet, RST, SYN};
use crate::siphash::siphash;
use crate::steer::Choice;
use crate::tunnel::{Arm, Direction};

/// Whether a packet without a socket may end a handshake by SYN cookie.
#[inline(always)]
pub const fn may_end_handshake(packet: &Packet) -> bool {
    packet.flags & (SYN | RST | FIN | ACK) == ACK
}

/// Where the handshakes of a service's version stand: how long they took.
#[inline(always)]
pub const fn handshake_key(service: u32, arm: Arm) -> u32 {
    service * 2 + arm as u32
}

shared! {
    /// What is counted of one version of one service. Row = service index * 2 + [`Arm`].
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ArmCounters {
        /// New connections by [`Choice`].
        pub choices: [u64; Choice::COUNT],
        /// SYNs that the server has acknowledged.
        pub answered: u64,
        /// Connections that the version was seen to have got: a socket of this host has them, or the canary's
        /// own host has answered.
        pub delivered: u64,
        /// Connections that were answered, and of which this host has no socket once a request has come:
        /// netfilter or a VRF has led them on.
        pub strayed: u64,
        /// SYNs that came again, since nobody had answered.
        pub unanswered: u64,
        /// Connections that ended.
        pub closed: u64,
        /// Connections that were met when they were already open.
        pub joined: u64,
        /// Packets by [`Direction`].
        pub packets: [u64; 2],
        /// Payload bytes by [`Direction`].
        pub bytes: [u64; 2],
        /// Connections that a reset ended, by the side that sent it: [`Direction::Request`] is the
        /// client's.
        pub resets: [u64; 2],
        /// Packets that brought bytes once more, by [`Direction`].
        pub retransmissions: [u64; 2],
        /// Packets whose addresses could not be translated, and that went nowhere, by [`Direction`].
        pub untranslated: [u64; 2],
        /// Packets that were taken at XDP, of those counted above, by [`Direction`].
        pub early: [u64; 2],
    }
}

/// Clients of a version are put together into so many clusters: those that share one count as one.
pub const CLUSTERS: usize = 64;

/// A client's cluster, by the service's key.
#[inline(always)]
pub const fn cluster(client: &Endpoint, key: [u64; 2]) -> usize {
    let [high, low] = client.address.lanes();
    // Where a connection has its own cluster, its port stands here.
    siphash::<1, 3, 3>(key, &[high, low, 0]) as usize % CLUSTERS
}

shared! {
    /// One version's connections by their clients' clusters: whose they are that fail. Row = as of [`ArmCounters`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ByClient {
        /// New connections.
        pub connections: [u64; CLUSTERS],
        /// Those that the server reset, and SYNs that it left unanswered.
        pub failed: [u64; CLUSTERS],
    }
}

impl Default for ByClient {
    fn default() -> Self {
        Self {
            connections: [0; CLUSTERS],
            failed: [0; CLUSTERS],
        }
    }
}

impl AddAssign<&Self> for ByClient {
    fn add_assign(&mut self, other: &Self) {
        add(&mut self.connections, &other.connections);
        add(&mut self.failed, &other.failed);
    }
}

fn add<const N: usize>(sums: &mut [u64; N], values: &[u64; N]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// Whether the version has failed a connection with this packet.
#[inline(always)]
pub const fn fails(direction: Direction, seen: &Seen, on_trial: bool) -> bool {
    let by_server = matches!(direction, Direction::Response);
    seen.unanswered || seen.reset && by_server && on_trial
}

impl ArmCounters {
    /// Counts a packet and what it told; a reset only where it tells of the version on trial.
    #[inline(always)]
    pub fn count(&mut self, packet: &Packet, direction: Direction, seen: &Seen, on_trial: bool) {
        let side = direction as usize & 1;
        self.packets[side] += 1;
        self.bytes[side] += packet.payload_length as u64;
        // One that comes when both sides have ended, or once more, tells of no trouble.
        self.resets[side] += (on_trial && seen.reset) as u64;
        self.retransmissions[side] += seen.retransmission as u64;
        self.unanswered += seen.unanswered as u64;
        self.answered += seen.answered as u64;
        self.closed += seen.closed as u64;
    }
}

impl ArmCounters {
    /// Connections that have not ended, those included that the table has forgotten.
    pub fn open(&self) -> u64 {
        // Those over the limit were not remembered: they were met when they first brought bytes.
        let limited = self.choices[Choice::Limited as usize];
        let remembered = self.choices.iter().sum::<u64>() - limited;
        (remembered + self.joined).saturating_sub(self.closed)
    }
}

impl AddAssign<&Self> for ArmCounters {
    fn add_assign(&mut self, other: &Self) {
        add(&mut self.choices, &other.choices);
        self.answered += other.answered;
        self.delivered += other.delivered;
        self.strayed += other.strayed;
        self.unanswered += other.unanswered;
        self.closed += other.closed;
        self.joined += other.joined;
        add(&mut self.packets, &other.packets);
        add(&mut self.bytes, &other.bytes);
        add(&mut self.resets, &other.resets);
        add(&mut self.retransmissions, &other.retransmissions);
        add(&mut self.untranslated, &other.untranslated);
        add(&mut self.early, &other.early);
    }
}
