//! How the tap and the uplink's program talk about a clone. `bpf_clone_redirect` sends at once
//! and on the same CPU, so one slot per CPU is enough, and skb.mark is never touched.

use mirror_common::connection::{Connection, HEADER, Said, Seen};
use mirror_common::flow::Flow;
use mirror_common::packet::Packet;
use mirror_common::policy::Agent;
use mirror_common::translate::Translation;
use mirror_common::tunnel::mac::NO_KEY;
use mirror_common::tunnel::{Arm, Direction, Header, Meta};
use mirror_common::verdict::Reason;

use crate::away::Answer;
use crate::split::Progress;
use crate::steer::Followed;

/// What the next packet through the uplink is.
pub mod state {
    /// A packet of the host.
    pub const EMPTY: u32 = 0;
    /// A clone that wants its tunnel headers.
    pub const CLONE: u32 = 1;
    /// A piece of a clone that was cut, of a size that fits.
    pub const PIECE: u32 = 2;
    /// A copy that has its headers and passes a lower device.
    pub const SENT: u32 = 3;
}

/// Outcome of a clone that the uplink's program has not seen.
pub const UNSEEN: u32 = u32::MAX;

/// The longest header that is read at once: TCP's has 60 bytes, and some to end on a word.
pub const HEADER_BUFFER: usize = HEADER;

/// The longest outer headers, Ethernet and IPv6 with ours: 98 bytes, and some to end on a word.
pub const OUT_LENGTH: usize = 104;

/// One per CPU.
#[repr(C)]
pub struct Slot {
    /// One of [`state`].
    pub state: u32,
    /// A [`Reason`], or [`UNSEEN`].
    pub outcome: u32,
    /// The tunnel's VNI.
    pub service_id: u32,
    /// Number of the agent.
    pub agent: u32,
    /// A [`Direction`].
    pub direction: u32,
    /// An [`Arm`].
    pub arm: u32,
    /// 1 = the packet is IPv6.
    pub ipv6: u32,
    /// From the IP header to the transport header, in bytes.
    pub transport_offset: u32,
    /// From the IP header to the payload, in bytes.
    pub payload_offset: u32,
    /// Payload of the whole packet, in bytes.
    pub payload_length: u32,
    /// The outer UDP source port.
    pub source_port: u32,
    /// The copy's number.
    pub sequence: u32,
    /// 1 = the piece at hand is the last.
    pub last_piece: u32,
    /// Keeps what follows on a multiple of 8.
    pub pad: u32,
    /// When the tap saw the packet.
    pub time_ns: u64,
    /// Runs on this CPU, to time one in 1,024.
    pub runs: u64,
    /// When this run began; 0 = it is not timed.
    pub start_ns: u64,
    /// The packet at hand. Here, and not in registers, it is the same to the verifier whichever way
    /// it was parsed: otherwise every way through one step is tried with every way through the next.
    pub packet: Packet,
    /// Whether it is an answer of a canary on another host.
    pub answer: Answer,
    /// What became of it so far.
    pub followed: Followed,
    /// The connection that it belongs to.
    pub flow: Flow,
    /// What is remembered of it from now on, while that is formed.
    pub connection: Connection,
    /// The connection as a canary on another host sees it; none where it is served here.
    pub away: Flow,
    /// Whose its answers are, while that is formed.
    pub translation: Translation,
    /// Who had a port before.
    pub former: Flow,
    /// By which connection of a canary's an answer came.
    pub via: Flow,
    /// What else stands in the packet.
    pub said: Said,
    /// What it told of its connection. Here it is the same to the verifier whatever that is.
    pub seen: Seen,
    /// `struct bpf_sock_tuple` of a look-up: both addresses, then both ports.
    pub tuple: [u32; 9],
    /// Keeps what follows on a multiple of 8.
    pub pad2: u32,
    /// The way to the agent, as of when the tap decided: spares the uplink's program the look-up.
    pub way: Agent,
    /// How far a packet that is sent in pieces has come.
    pub cut: Progress,
    /// The outer headers, while they are written.
    pub out: [u8; OUT_LENGTH],
    /// A header that lies outside the packet's linear part, while it is parsed.
    pub header: [u8; HEADER_BUFFER],
}

/// What the uplink's program makes of a packet.
pub enum Fate {
    /// It is the host's.
    Production,
    /// It is a copy on its way.
    Copy,
    /// It is a clone that was sent in pieces, or that could not be sent.
    SpentCopy,
}

impl Slot {
    /// Puts the packet at hand here.
    #[inline(always)]
    pub fn hold(&mut self, packet: Packet) {
        self.packet = packet;
        self.answer.ifindex = 0;
    }

    /// The packet at hand.
    #[inline(always)]
    pub fn packet(&self) -> &'static Packet {
        // SAFETY: the slot is a map's value, which outlives the run, and the packet in it is not
        // replaced once somebody looks at it.
        unsafe { &*core::hint::black_box(&raw const self.packet) }
    }

    /// The way to the clone's agent.
    #[inline(always)]
    pub fn way(&self) -> &'static Agent {
        // SAFETY: as in `packet`: the tap fills it before it sends the clone.
        unsafe { &*core::hint::black_box(&raw const self.way) }
    }

    /// The tunnel header of the clone, or piece, at hand, signed.
    #[inline(always)]
    pub fn header(&self, agent: &Agent, cpu: u32, piece: bool) -> Header {
        let mut header = Header {
            vni: self.service_id,
            ipv6: self.ipv6 != 0,
            meta: Meta {
                direction: if self.direction == Direction::Request as u32 {
                    Direction::Request
                } else {
                    Direction::Response
                },
                arm: if self.arm == Arm::Stable as u32 {
                    Arm::Stable
                } else {
                    Arm::Canary
                },
                piece,
                last_piece: piece && self.last_piece != 0,
                cpu: cpu as u16,
                length: self.payload_length,
                sequence: self.sequence,
                time_ns: self.time_ns,
                tap: agent.tap as u16,
                mac: 0,
            },
        };
        if agent.mac_key != NO_KEY {
            header.meta.mac = header.mac(agent.mac_key, self.packet());
        }
        header
    }

    /// Tells the tap how it went.
    #[inline(always)]
    pub fn report(&mut self, outcome: Reason) {
        self.outcome = outcome as u32;
        self.state = state::SENT;
    }
}
