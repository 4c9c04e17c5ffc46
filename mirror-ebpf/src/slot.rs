//! How the tap and the uplink's program talk about a clone. `bpf_clone_redirect` sends at once
//! and on the same CPU, so one slot per CPU is enough, and skb.mark is never touched.

use mirror_common::connection::{Connection, HEADER, Said, Seen};
use mirror_common::flow::{Endpoint, Flow};
use mirror_common::packet::Packet;
use mirror_common::policy::Agent;
use mirror_common::translate::Translation;
use mirror_common::tunnel::mac::NO_KEY;
use mirror_common::tunnel::{Arm, Direction, Header, Meta};
use mirror_common::verdict::Reason;

/// What the next packet through the uplink is.
pub(crate) mod state {
    /// A packet of the host.
    pub(crate) const EMPTY: u32 = 0;
    /// A clone that wants its tunnel headers.
    pub(crate) const CLONE: u32 = 1;
    /// A piece of a clone that was cut, of a size that fits.
    pub(crate) const PIECE: u32 = 2;
    /// A copy that has its headers and passes a lower device.
    pub(crate) const SENT: u32 = 3;
}

/// Outcome of a clone that the uplink's program has not seen.
pub(crate) const UNSEEN: u32 = u32::MAX;

/// The longest header that is read at once: TCP's has 60 bytes, and some to end on a word.
pub(crate) const HEADER_BUFFER: usize = HEADER;

/// The longest outer headers, Ethernet and IPv6 with ours: 98 bytes, and some to end on a word.
pub(crate) const OUT_LENGTH: usize = 104;

/// The longest payload that an IP packet can have.
pub(crate) const LONGEST: u32 = 65_535;

/// The longest piece: see `tunnel::LARGEST_PLAIN`.
pub(crate) const LONGEST_PIECE: u32 = 16_383;

/// One per CPU.
#[repr(C)]
pub(crate) struct Slot {
    /// One of [`state`].
    pub(crate) state: u32,
    /// A [`Reason`], or [`UNSEEN`].
    pub(crate) outcome: u32,
    /// The tunnel's VNI.
    pub(crate) service_id: u32,
    /// Number of the agent.
    pub(crate) agent: u32,
    /// A [`Direction`].
    pub(crate) direction: u32,
    /// An [`Arm`].
    pub(crate) arm: u32,
    /// 1 = the packet is IPv6.
    pub ipv6: u32,
    /// From the IP header to the transport header, in bytes.
    pub(crate) transport_offset: u32,
    /// From the IP header to the payload, in bytes.
    pub(crate) payload_offset: u32,
    /// Payload of the whole packet, in bytes.
    pub(crate) payload_length: u32,
    /// The outer UDP source port.
    pub(crate) source_port: u32,
    /// The copy's number.
    pub(crate) sequence: u32,
    /// 1 = the piece at hand is the last.
    pub(crate) last_piece: u32,
    /// Keeps what follows on a multiple of 8.
    pub(crate) pad: u32,
    /// When the tap saw the packet.
    pub(crate) time_ns: u64,
    /// Runs on this CPU, to time one in 1,024.
    pub(crate) runs: u64,
    /// When this run began; 0 = it is not timed.
    pub(crate) start_ns: u64,
    /// The packet at hand. Here, and not in registers, it is the same to the verifier whichever way
    /// it was parsed: otherwise every way through one step is tried with every way through the next.
    pub(crate) packet: Packet,
    /// Whether it is an answer of a canary on another host.
    pub(crate) answer: Answer,
    /// What became of it so far.
    pub(crate) followed: Followed,
    /// The connection that it belongs to.
    pub(crate) flow: Flow,
    /// What is remembered of it from now on, while that is formed.
    pub(crate) connection: Connection,
    /// The connection as a canary on another host sees it; none where it is served here.
    pub(crate) away: Flow,
    /// Whose its answers are, while that is formed.
    pub(crate) translation: Translation,
    /// Whose a port was before.
    pub(crate) former: Translation,
    /// By which connection of a canary's an answer came.
    pub(crate) via: Flow,
    /// What else stands in the packet.
    pub(crate) said: Said,
    /// What it told of its connection. Here it is the same to the verifier whatever that is.
    pub(crate) seen: Seen,
    /// `struct bpf_sock_tuple` of a look-up: both addresses, then both ports.
    pub(crate) tuple: [u32; 9],
    /// Keeps what follows on a multiple of 8.
    pub pad2: u32,
    /// The way to the agent, as of when the tap decided: spares the uplink's program the look-up.
    pub(crate) way: Agent,
    /// How far a packet that is sent in pieces has come.
    pub(crate) cut: Progress,
    /// The outer headers, while they are written.
    pub(crate) out: [u8; OUT_LENGTH],
    /// A header that lies outside the packet's linear part, while it is parsed.
    pub(crate) header: [u8; HEADER_BUFFER],
}

impl Slot {
    /// Puts the packet at hand here.
    #[inline(always)]
    pub(crate) fn hold(&mut self, packet: Packet) {
        self.packet = packet;
        self.answer.ifindex = 0;
        self.via.server = Endpoint::NONE;
    }

    /// What is done with the packet at hand: news to the verifier each time, whatever was done before.
    #[inline(always)]
    pub(crate) fn action(&self) -> Action {
        core::hint::black_box(self).followed.action
    }

    /// The packet at hand.
    #[inline(always)]
    pub(crate) fn packet(&self) -> &'static Packet {
        // SAFETY: the slot is a map's value, which outlives the run. Of the packet in it nothing changes
        // afterwards but its ends (`away::turn`), and who reads those asks again.
        unsafe { &*core::hint::black_box(&raw const self.packet) }
    }

    /// The way to the clone's agent.
    #[inline(always)]
    pub(crate) fn way(&self) -> &'static Agent {
        // SAFETY: as in `packet`: the tap fills it before it sends the clone.
        unsafe { &*core::hint::black_box(&raw const self.way) }
    }

    /// The tunnel header of the clone, or piece, at hand, signed.
    #[inline(always)]
    pub(crate) fn header(&self, agent: &Agent, cpu: u32, piece: bool) -> Header {
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
    pub(crate) fn report(&mut self, outcome: Reason) {
        self.outcome = outcome as u32;
        self.state = state::SENT;
    }
}

/// What the packet at hand is to a client of a canary on another host.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Answer {
    /// The interface that the client's packets come in by; 0 = it is no such answer.
    pub(crate) ifindex: u32,
    /// 1 = it has the service's address in place of the canary's.
    pub(crate) turned: u32,
}

/// What is done with a service's packet.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// It goes where the host sends it.
    Host,
    /// The same, and there the canary's listener has it.
    Give,
    /// It goes to the canary's host, as the connection that [`Slot::away`] says.
    Away,
    /// It goes to the client: an answer of a canary on another host.
    Back,
    /// It goes nowhere: a canary refuses a connection which stable can still have.
    Refuse,
    /// It goes nowhere: such an answer that nobody waits for any more, since another version serves the
    /// connection. It would be taken for stable's.
    Outdated,
    /// It goes where the host sends it, and was counted and copied when it came in.
    Counted,
}

impl Action {
    /// Whether such a packet is copied, where its service is mirrored.
    #[inline(always)]
    pub(crate) const fn is_copied(self) -> bool {
        match self {
            Self::Host | Self::Give | Self::Away | Self::Back | Self::Refuse => true,
            Self::Outdated | Self::Counted => false,
        }
    }

    /// Whether it is an answer that first becomes what the client will see, and what is copied.
    #[inline(always)]
    pub(crate) const fn is_turned(self) -> bool {
        match self {
            Self::Back | Self::Refuse => true,
            Self::Host | Self::Give | Self::Away | Self::Outdated | Self::Counted => false,
        }
    }
}

/// What was decided on a service's packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Followed {
    /// Whose it is.
    pub(crate) arm: Arm,
    /// What is done with it.
    pub(crate) action: Action,
}

impl Followed {
    /// It is stable's.
    pub(crate) const STABLE: Self = Self {
        arm: Arm::Stable,
        action: Action::Host,
    };
}

/// How far the cutting has come. Kept in the slot, a map's value: what is read from there is news
/// to the verifier at every turn of the loop, which else would follow each turn on its own.
#[repr(C)]
pub(crate) struct Progress {
    /// Payload that has been sent, in bytes.
    pub(crate) offset: u32,
    /// The sequence number of the payload's first byte.
    pub(crate) sequence: u32,
    /// TCP's header from its sequence number to its flags.
    pub(crate) fields: [u8; 12],
    /// Payload that a piece may have, in bytes.
    pub(crate) room: u32,
}

/// Payload of one packet; longer than it need be, so that the verifier can see that a piece which
/// starts within it ends within it.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) bytes: [u8; LONGEST as usize + 1 + LONGEST_PIECE as usize + 1],
}
