//! One connection, as its packets tell of it: who serves it, and how far it has come.
//!
//! Anybody can send a packet, so only what the end host would take moves anything: segments whose numbers
//! fit both sides' windows (RFC 9293, 3.10.7.4; RFC 5961, section 5.2), resets with the very number that
//! is expected next (RFC 5961, section 3.2), acknowledged handshakes.

use core::num::NonZeroU64;

use crate::abi::{shared, words};
use crate::flow::Flow;
use crate::packet::{ACK, FIN, Packet};
use crate::tunnel::{Arm, Direction};

mod live;

pub use self::live::Live;

words! {
    /// Bits of [`Connection::state`]. Written as requests come by.
    pub mod state: u32 {
        /// The canary serves it.
        CANARY = 1;
        /// The kernel has a socket for it, and finds it by itself.
        SETTLED = 1 << 1;
        /// Its first request found no socket: it may be what ends a handshake by SYN cookie.
        UNMET = 1 << 2;
        /// Nobody but the canary can serve it.
        SOLE = 1 << 3;
        /// This host was to have it, and somebody else has.
        STRAYED = 1 << 4;
        /// It has the port of a handshake that nobody had completed. The canary's host may still have that, and resets
        /// it at a SYN whose number lies in its window (RFC 9293, 3.10.7.4): which tells nothing of the canary.
        REUSED = 1 << 5;
    }
}

words! {
    /// Bits of [`Connection::sides`]: each word is written by packets of its own side alone, since both may be
    /// seen at the same time.
    pub mod side: u32 {
        /// `next` of this side is known.
        KNOWN = 1;
        /// The server has acknowledged the SYN.
        ANSWERED = 1 << 1;
        /// The client has acknowledged the server's SYN.
        ESTABLISHED = 1 << 2;
        /// The client's SYN came again before it was answered.
        REPEATED = 1 << 3;
        /// It has sent its FIN.
        FINISHED = 1 << 4;
        /// The server sent its FIN when it had the client's: it need not wait out the end.
        PASSIVE = 1 << 5;
        /// The connection has ended, by a reset or by both sides.
        CLOSED = 1 << 6;
        /// The number of another handshake is in `pending`.
        PENDING = 1 << 7;
        /// Both FINs were acknowledged.
        RELEASED = 1 << 8;
    }
}

/// A window that nobody has told yet is taken to be no larger.
const UNTOLD_WINDOW: u32 = 1 << 24;

/// Scales of [`Connection::scales`] where nobody has seen the handshake: the largest there are.
const UNTOLD_SCALES: u32 = 15 | 15 << 8;

shared! {
    /// What is remembered of a connection.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Connection {
        /// When its SYN was seen, on the monotonic clock, in nanoseconds; 0 = it is older than we.
        pub opened_ns: u64,
        /// When a packet of it was last taken in, of those that are translated.
        pub seen_ns: u64,
        /// The sequence number after the last byte seen, by [`Direction`].
        pub next: [u32; 2],
        /// What the other side has acknowledged of that.
        pub acked: [u32; 2],
        /// The largest window that the other side has offered.
        pub window: [u32; 2],
        /// The number after the FIN, once there is one.
        pub end: [u32; 2],
        /// The numbers after the SYNs of another handshake, which takes this one's place when it is complete.
        pub pending: [u32; 2],
        /// Bits of [`side`], by [`Direction`].
        pub sides: [u32; 2],
        /// The SYN's sequence number: a SYN with another one is another connection.
        pub initial: u32,
        /// Bits of [`state`].
        pub state: u32,
        /// Row of the service.
        pub service: u32,
        /// How windows are scaled (RFC 7323, section 2), a byte for each side: 0 = not, or the shift and one.
        pub scales: u32,
        /// The connection as a canary on another host sees it: our end, and the canary's; all 0 = it is
        /// served on this host.
        pub away: Flow,
    }
}

shared! {
    /// What stands in a packet beside the fields that each has: read once, of SYNs, FINs and resets.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Said {
        /// How its sender's windows are scaled, as a byte of [`Connection::scales`].
        pub scale: u32,
        /// The timestamp (RFC 7323), where there is one.
        pub timestamp: u32,
        /// 1 = there is.
        pub timed: u32,
        /// 1 = its checksum is right.
        pub sound: u32,
        /// How far the options have been read.
        pub cursor: u32,
    }
}

/// Bytes of a TCP header, and some to end on a power of two.
pub const HEADER: usize = 64;

impl Said {
    /// Of what this host sends itself: its windows may be large, and its checksum will be right.
    pub const OWN: Self = Self {
        scale: UNTOLD_SCALES & 0xff,
        timestamp: 0,
        timed: 0,
        sound: 1,
        cursor: 0,
    };

    /// Reads the options in a TCP header of `length` bytes, which is filled up with zeros.
    #[inline(always)]
    pub fn read(&mut self, header: &[u8; HEADER]) {
        const END: u8 = 0;
        const NOTHING: u8 = 1;
        const WINDOW_SCALE: u8 = 3;
        const TIMESTAMPS: u8 = 8;
        let at = |place: u32| header[place as usize & (HEADER - 1)];
        self.cursor = 20;
        let mut options = 0;
        while options < 8 {
            // Read back from memory it is the same to the kernel's verifier, whatever came before.
            let place = *core::hint::black_box(&self.cursor);
            let (kind, length) = (at(place), at(place + 1) as u32);
            if kind == END || kind != NOTHING && length < 2 || place >= 60 {
                return;
            }
            if kind == WINDOW_SCALE {
                let shift = at(place + 2) as u32;
                // More than 14 is 14 (RFC 7323, section 2.3).
                self.scale = if shift > 14 { 15 } else { shift + 1 };
            }
            if kind == TIMESTAMPS {
                let value = [at(place + 2), at(place + 3), at(place + 4), at(place + 5)];
                (self.timestamp, self.timed) = (u32::from_be_bytes(value), 1);
            }
            self.cursor = place + if kind == NOTHING { 1 } else { length };
            options += 1;
        }
    }
}

/// What one packet told.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// So long after the SYN the client has the server's answer, in nanoseconds; nothing where the SYN had to come
    /// twice. One word, so that there is none in it that nobody wrote: before 6.3 the kernel's verifier refuses to
    /// have such copied.
    pub handshake_ns: Option<NonZeroU64>,
    /// It moved the connection on: an end host would take it.
    pub taken: bool,
    /// It brings bytes that have been here before.
    pub retransmission: bool,
    /// A SYN that came again, the first time, since nobody answered.
    pub unanswered: bool,
    /// The server has acknowledged the SYN.
    pub answered: bool,
    /// The client has acknowledged the server's.
    pub established: bool,
    /// It ends the connection.
    pub closed: bool,
    /// By a reset that tells of who sent it: a server may refuse, but a client that answers a handshake with a
    /// reset has not begun one.
    pub reset: bool,
    /// Nobody waits for anything any more: both ends were acknowledged, and the server was not the first.
    pub released: bool,
}

impl Connection {
    /// One that a SYN opens.
    #[inline(always)]
    pub fn opened(packet: &Packet, service: u32, arm: Arm, now_ns: u64, said: &Said) -> Self {
        let mut connection = Self::default();
        connection.begin(packet, service, arm, now_ns, said);
        connection
    }

    /// The same in place: there is little room on the programs' stack.
    #[inline(always)]
    pub const fn begin(
        &mut self,
        packet: &Packet,
        service: u32,
        arm: Arm,
        now_ns: u64,
        said: &Said,
    ) {
        self.join(service, arm);
        let first = packet.sequence.wrapping_add(1);
        (self.opened_ns, self.seen_ns) = (now_ns, now_ns);
        self.next[0] = first.wrapping_add(packet.payload_length);
        self.acked[0] = first;
        self.window[1] = packet.window as u32;
        self.sides = [side::KNOWN, 0];
        self.initial = packet.sequence;
        self.scales = said.scale;
    }

    /// One that is met when it is already open.
    #[inline(always)]
    pub const fn joined(service: u32, arm: Arm) -> Self {
        let mut connection = Self {
            opened_ns: 0,
            seen_ns: 0,
            next: [0; 2],
            acked: [0; 2],
            window: [0; 2],
            end: [0; 2],
            pending: [0; 2],
            sides: [0; 2],
            initial: 0,
            state: 0,
            service: 0,
            scales: 0,
            away: Flow::NONE,
        };
        connection.join(service, arm);
        connection
    }

    /// The same in place.
    #[inline(always)]
    pub const fn join(&mut self, service: u32, arm: Arm) {
        (self.opened_ns, self.seen_ns) = (0, 0);
        (self.next, self.acked) = ([0; 2], [0; 2]);
        self.window = [UNTOLD_WINDOW; 2];
        (self.end, self.pending) = ([0; 2], [0; 2]);
        self.sides = [side::ESTABLISHED, side::ANSWERED];
        self.initial = 0;
        self.state = arm as u32 * state::CANARY;
        self.service = service;
        self.scales = UNTOLD_SCALES;
        self.away = Flow::NONE;
    }

    /// Which version serves it.
    #[inline(always)]
    pub const fn arm(&self) -> Arm {
        if self.state & state::CANARY == 0 {
            Arm::Stable
        } else {
            Arm::Canary
        }
    }

    /// Whether a canary on another host serves it.
    #[inline(always)]
    pub const fn is_away(&self) -> bool {
        self.away.server.port() != 0
    }

    /// Whether the server has not even acknowledged the SYN.
    #[inline(always)]
    pub const fn is_waiting(&self) -> bool {
        self.sides[1] & side::ANSWERED == 0
    }

    /// Whether it has ended.
    #[inline(always)]
    pub const fn is_closed(&self) -> bool {
        (self.sides[0] | self.sides[1]) & side::CLOSED != 0
    }

    /// Whether both sides have acknowledged each other's SYN, and no end of it was seen since.
    #[inline(always)]
    pub const fn is_open(&self) -> bool {
        self.sides[0] & side::ESTABLISHED != 0 && !self.is_closed()
    }

    /// Whether both sides have sent their FIN.
    #[inline(always)]
    pub const fn has_finished(&self) -> bool {
        self.sides[0] & self.sides[1] & side::FINISHED != 0
    }

    /// Whether a side's numbers are known.
    #[inline(always)]
    pub const fn knows(&self, direction: Direction) -> bool {
        self.sides[direction as usize & 1] & side::KNOWN != 0
    }

    /// Whether what it comes to is told of the canary that has been on trial since then: one that is older
    /// may be served by the version before.
    #[inline(always)]
    pub const fn is_since(&self, trial_ns: u64) -> bool {
        self.state & state::CANARY == 0 || self.opened_ns >= trial_ns
    }

    /// Whether `packet` is this connection's SYN once more.
    #[inline(always)]
    pub const fn is_repeated_by(&self, packet: &Packet) -> bool {
        self.opened_ns != 0 && self.initial == packet.sequence
    }

    /// Whether a client's packet is the last of another handshake, from the same ends: of one that the
    /// server has forgotten, since it has been started anew, for one that the client has begun anew.
    #[inline(always)]
    const fn completes_another(&self, packet: &Packet) -> bool {
        self.sides[1] & side::PENDING != 0
            && packet.flags & (FIN | ACK) == ACK
            && packet.sequence == self.pending[0]
            && packet.acknowledgement == self.pending[1]
    }

    /// How far a side's windows are shifted: not at all unless both said so.
    #[inline(always)]
    const fn scale(&self, side: usize) -> u32 {
        let (client, server) = (self.scales & 0xff, self.scales >> 8 & 0xff);
        let own = if side == 0 { client } else { server };
        if client == 0 || server == 0 {
            0
        } else {
            (own - 1) & 15
        }
    }
}

#[cfg(test)]
mod tests;
