//! The rules that the daemon writes and the programs obey, and the decision itself.

use crate::abi::{shared, words};
use crate::flow::{Endpoint, Flow};
use crate::packet::{ACK, FIN, Packet, RST, SYN, Transport};
use crate::tunnel::{Arm, Direction};
use crate::verdict::{Reason, Verdict};

/// Without a heartbeat for this long nothing is copied any more, in nanoseconds.
pub const HEARTBEAT_LIMIT_NS: u64 = 5_000_000_000;

/// The largest number of services, counting number 0, "none".
pub const MAX_SERVICES: u32 = 1024;

/// The largest number of agents.
pub const MAX_AGENTS: u32 = 64;

/// Number of the ring that the daemon itself reads, behind the agents' rings.
pub const LOOK_RING: u32 = MAX_AGENTS;

/// The largest number of rings.
pub const MAX_RINGS: u32 = MAX_AGENTS + 1;

/// The largest number of addresses of all services together.
pub const MAX_ENDPOINTS: u32 = 16384;

/// The hash threshold that takes every connection: shares are parts of 2^32.
pub const WHOLE: u64 = 1 << 32;

shared! {
    /// What one service wants of the tap. Value of the map from the service's endpoints.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Service {
        /// Row of its counters, 1 and up; 0 is "none".
        pub index: u32,
        /// The tunnel's VNI.
        pub id: u32,
        /// Which agent gets its copies.
        pub agent: u32,
        /// Bits of [`mirror`]: which of its packets are copied, of which versions' connections; no
        /// direction = mirroring is off.
        pub mirror: u32,
        /// A connection is copied when the upper half of its hash is below this; [`WHOLE`] takes all.
        pub threshold: u64,
        /// Key of the connection hash.
        pub key: [u64; 2],
        /// Time that the budget asks for a byte, in 2^-20 ns; 0 = no budget.
        pub byte_cost: u64,
        /// How far the budget may be overdrawn at once, in nanoseconds.
        pub burst_ns: u64,
        /// Whether the kernel knows who listens at the endpoint: one of [`here`].
        pub here: u64,
        /// Which connections of stable, and of the canary, the daemon itself reads: those whose lower half
        /// of the hash is below this. It has nothing to do with which ones are mirrored.
        pub look: [u64; 2],
    }
}

impl Service {
    /// Whether the daemon itself reads the connection with this hash.
    #[inline(always)]
    pub const fn is_looked_at(&self, arm: Arm, hash: u64) -> bool {
        let threshold = match arm {
            Arm::Stable => self.look[0],
            Arm::Canary => self.look[1],
        };
        chosen(hash << 32, threshold)
    }

    /// Whether the daemon itself reads any of its connections.
    #[inline(always)]
    pub const fn has_look(&self) -> bool {
        self.look[0] | self.look[1] != 0
    }
}

words! {
    /// Values of [`Service::here`].
    pub mod here: u64 {
        /// It is another host's.
        ELSEWHERE = 0;
        /// It is this host's, and somebody was seen to listen there: who is not found is gone.
        LISTENS = 1;
        /// It is this host's, and nobody was ever seen: connections may go on to others (DNAT).
        UNSEEN = 2;
    }
}

/// Bits of [`Service::mirror`].
pub mod mirror {
    use crate::tunnel::{Arm, Direction};

    /// Packets of both directions.
    pub const BOTH: u32 = bit(Direction::Request) | bit(Direction::Response);

    /// The bit of packets of one direction.
    #[inline(always)]
    pub const fn bit(direction: Direction) -> u32 {
        1 << direction as u32
    }

    /// The bit of connections that one version serves.
    #[inline(always)]
    pub const fn arm(arm: Arm) -> u32 {
        4 << arm as u32
    }

    /// The command line wants less of it than its file may have yet: for the next daemon, the programs
    /// do not look at it.
    pub const HELD: u32 = 16;

    /// The same, and everything is off.
    pub const OFF: u32 = 32;
}

words! {
    /// Bits of [`Agent::state`].
    pub mod agent_state: u32 {
        /// It answers the control packets.
        ALIVE = 1;
        /// The uplink drops packets: hold back.
        PAUSED = 2;
    }
}

shared! {
    /// The way to one agent. Value of the map from the agent's number.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Agent {
        /// The uplink's interface index.
        pub ifindex: u32,
        /// Bits of [`agent_state`].
        pub state: u32,
        /// Our address on the uplink and the agent's.
        pub local: crate::flow::Address,
        /// The agent's address.
        pub remote: crate::flow::Address,
        /// The agent's UDP port.
        pub port: u32,
        /// The largest IP packet on the way, in bytes.
        pub mtu: u32,
        /// 1 = IPv6 underlay.
        pub ipv6: u32,
        /// 1 = the uplink has Ethernet headers.
        pub ethernet: u32,
        /// The next hop's MAC address, then the uplink's.
        pub macs: [u32; 3],
        /// How copies travel: [`transport`].
        pub transport: u32,
        /// Tells agents apart: a restarted daemon finds by it whose number this is.
        pub id: u64,
        /// Key of the copies' MAC, see [`crate::tunnel::mac`]; zeros = copies are not signed.
        pub mac_key: [u64; 2],
        /// The number that the agent knows us by, in every copy's option; below 65,536.
        pub tap: u32,
        /// Another one each time that it gets its number: copies to it are numbered from 0 then. For the
        /// daemon, the programs do not look at it.
        pub tenure: u32,
    }
}

words! {
    /// Values of [`Agent::transport`].
    pub mod transport: u32 {
        /// The kernel sends each copy as a datagram.
        GENEVE = 0;
        /// Copies lie in a ring until the sender ships them.
        STREAM = 1;
    }
}

shared! {
    /// State of the whole tap.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Tap {
        /// When the daemon was last alive, on the monotonic clock, in nanoseconds.
        pub heartbeat_ns: u64,
        /// Names this life of the counters; 0 = nobody has written here yet.
        pub boot: u64,
        /// Key of the connection hash: kept as long as the maps, so that a restarted daemon samples
        /// the same connections.
        pub key: [u64; 2],
        /// Bytes of each CPU's value in the map of a ring.
        pub ring: u64,
    }
}

impl Tap {
    /// Whether nobody has watched over the mirror for too long.
    #[inline(always)]
    pub const fn is_stale(&self, now_ns: u64) -> bool {
        now_ns.saturating_sub(self.heartbeat_ns) > HEARTBEAT_LIMIT_NS
    }
}

shared! {
    /// State of a service's budget, shared by all CPUs.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Budget {
        /// When the bytes spent so far will have been earned, on the monotonic clock.
        pub due_ns: u64,
        /// 1 = some connection has hit the budget.
        pub tripped: u64,
    }
}

/// The service that a packet goes to, or else comes from, and which of the two.
#[inline(always)]
pub fn find<S>(
    packet: &Packet,
    look_up: impl Fn(&Endpoint) -> Option<S>,
) -> Option<(S, Direction)> {
    if let Some(service) = look_up(&packet.destination) {
        return Some((service, Direction::Request));
    }
    look_up(&packet.source).map(|service| (service, Direction::Response))
}

/// Names the connection of `packet` for a service found at its destination (request) or source.
#[inline(always)]
pub fn flow(packet: &Packet, direction: Direction) -> Flow {
    match direction {
        Direction::Request => Flow {
            client: packet.source,
            server: packet.destination,
        },
        Direction::Response => Flow {
            client: packet.destination,
            server: packet.source,
        },
    }
}

/// Whether a connection with this hash is below a threshold in parts of [`WHOLE`].
///
/// Monotone: raising the threshold only adds connections, lowering it only takes some away.
#[inline(always)]
pub const fn chosen(hash: u64, threshold: u64) -> bool {
    hash >> 32 < threshold
}

/// Whether a segment carries something that the shadow needs: payload, or the connection's
/// beginning or end.
#[inline(always)]
pub const fn worth_copying(packet: &Packet) -> bool {
    packet.payload_length > 0 || packet.flags & (SYN | FIN | RST) != 0
}

/// Whether a packet opens a connection.
#[inline(always)]
pub const fn opens(packet: &Packet) -> bool {
    packet.flags & (SYN | ACK) == SYN
}

/// Decides what becomes of a service's packet, the budget apart.
///
/// What is asked of a closure is asked for only where the decision needs it.
#[inline(always)]
pub fn decide(
    packet: &Packet,
    direction: Direction,
    arm: Arm,
    service: &Service,
    agent_state: impl FnOnce() -> Option<u32>,
    stale: impl FnOnce() -> bool,
    hash: impl FnOnce() -> u64,
) -> Verdict {
    if let Transport::Udp = packet.transport {
        return Verdict::Pass(Reason::Udp);
    }
    if service.mirror & mirror::bit(direction) == 0 {
        return Verdict::Pass(Reason::Off);
    }
    if service.mirror & mirror::arm(arm) == 0 {
        return Verdict::Pass(Reason::OtherArm);
    }
    if !worth_copying(packet) {
        return Verdict::Pass(Reason::PureAck);
    }
    if !chosen(hash(), service.threshold) {
        return Verdict::Pass(Reason::NotSampled);
    }
    if stale() {
        return Verdict::Pass(Reason::Stale);
    }
    let Some(state) = agent_state() else {
        return Verdict::Pass(Reason::NoTunnel);
    };
    if state & agent_state::ALIVE == 0 {
        return Verdict::Pass(Reason::AgentDown);
    }
    if state & agent_state::PAUSED != 0 {
        return Verdict::Pass(Reason::Paused);
    }
    Verdict::Copy
}

/// Whether a limit holds by a virtual scheduling algorithm (GCRA, ITU-T I.371), whose one word of
/// state is when all that was spent so far will have been earned.
#[inline(always)]
pub const fn within(due_ns: u64, now_ns: u64, burst_ns: u64) -> bool {
    due_ns <= now_ns + burst_ns
}

/// The budget, see [`within`]: returns the cost to add to it, or nothing when it is spent.
#[inline(always)]
pub const fn charge(service: &Service, due_ns: u64, now_ns: u64, bytes: u32) -> Option<u64> {
    if !within(due_ns, now_ns, service.burst_ns) {
        return None;
    }
    Some((bytes as u64 * service.byte_cost) >> 20)
}

/// [`Service::byte_cost`] for a budget in bytes per second.
pub const fn byte_cost(bytes_per_second: u64) -> u64 {
    if bytes_per_second == 0 {
        return 0;
    }
    (1_000_000_000 << 20) / bytes_per_second
}

/// The threshold of a share from 0 to 1.
pub fn threshold(share: f64) -> u64 {
    // Saturates at both ends; NaN becomes 0.
    ((share * WHOLE as f64) as u64).min(WHOLE)
}
