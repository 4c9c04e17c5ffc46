//! Each version measured apart: what the packets of one connection tell of its server.

use core::ops::AddAssign;

use crate::flow::Flow;
use crate::packet::{ACK, FIN, Packet, RST, SYN};
use crate::policy::opens;
use crate::steer::Choice;
use crate::tunnel::{Arm, Direction};

/// Bits of [`Connection::state`].
pub mod state {
    /// The canary serves it.
    pub const CANARY: u32 = 1;
    /// The server has acknowledged the SYN.
    pub const ANSWERED: u32 = 1 << 1;
    /// The SYN came again before that.
    pub const REPEATED: u32 = 1 << 2;
    /// The kernel has a socket for it, and finds it by itself.
    pub const SETTLED: u32 = 1 << 3;
    /// Its first request found no socket: it may be what ends a handshake by SYN cookie.
    pub const UNMET: u32 = 1 << 4;
    /// Ended by a reset, or by both sides.
    pub const CLOSED: u32 = 1 << 5;
    /// `next` of the request direction is known; the response direction has the bit above.
    pub const KNOWN: u32 = 1 << 6;
    /// The client has sent its FIN; the server has the bit above.
    pub const FINISHED: u32 = 1 << 8;
    /// Nobody but the canary can serve it.
    pub const SOLE: u32 = 1 << 10;
    /// This host was to have it, and somebody else has.
    pub const STRAYED: u32 = 1 << 11;
}

/// What is remembered of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// When its SYN was seen, on the monotonic clock, in nanoseconds; 0 = it is older than we.
    pub opened_ns: u64,
    /// The sequence number after the last byte seen, by [`Direction`].
    pub next: [u32; 2],
    /// The SYN's sequence number: a SYN with another one is another connection.
    pub initial: u32,
    /// Bits of [`state`].
    pub state: u32,
    /// Row of the service.
    pub service: u32,
    /// Keeps the size a multiple of 8.
    pub pad: u32,
    /// The connection as a canary on another host sees it: our end, and the canary's; all 0 = it is
    /// served on this host.
    pub away: Flow,
}

/// What one packet told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// It brings bytes that have been here before.
    pub retransmission: bool,
    /// A SYN that came again, the first time, since nobody answered.
    pub unanswered: bool,
    /// The server has acknowledged the SYN.
    pub answered: bool,
    /// So long after it, in nanoseconds; nothing where the SYN had to come twice.
    pub handshake_ns: Option<u64>,
    /// It ends the connection.
    pub closed: bool,
}

impl Connection {
    /// One that a SYN opens.
    #[inline(always)]
    pub const fn opened(packet: &Packet, service: u32, arm: Arm, now_ns: u64) -> Self {
        Self {
            opened_ns: now_ns,
            next: [packet.sequence.wrapping_add(1), 0],
            initial: packet.sequence,
            state: (arm as u32 * state::CANARY) | state::KNOWN,
            service,
            pad: 0,
            away: Flow::NONE,
        }
    }

    /// One that is met when it is already open.
    #[inline(always)]
    pub const fn joined(service: u32, arm: Arm) -> Self {
        Self {
            opened_ns: 0,
            next: [0, 0],
            initial: 0,
            state: (arm as u32 * state::CANARY) | state::ANSWERED,
            service,
            pad: 0,
            away: Flow::NONE,
        }
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
        self.state & state::ANSWERED == 0
    }

    /// Whether what it comes to is told of the canary that has been on trial since then: one that is older
    /// may be served by the version before.
    #[inline(always)]
    pub const fn is_since(&self, trial_ns: u64) -> bool {
        self.state & state::CANARY == 0 || self.opened_ns >= trial_ns
    }

    /// Whether the server has acknowledged the SYN, and no end of it was seen since.
    #[inline(always)]
    pub const fn is_open(&self) -> bool {
        self.state & (state::ANSWERED | state::CLOSED) == state::ANSWERED
    }

    /// Takes in a packet of the server's that accepts another connection from the same ends: one that it
    /// has forgotten, since it has been started anew, for one that the client has begun anew.
    #[inline(always)]
    pub const fn renew(&mut self, packet: &Packet) {
        let accepts = packet.flags & (SYN | ACK) == SYN | ACK;
        let initial = packet.acknowledgement.wrapping_sub(1);
        if !accepts || !self.is_open() || initial == self.initial {
            return;
        }
        self.initial = initial;
        self.next = [packet.acknowledgement, packet.sequence.wrapping_add(1)];
        self.state &= state::CANARY | state::SETTLED | state::SOLE;
        self.state |= state::ANSWERED | state::KNOWN | state::KNOWN << 1;
    }

    /// Whether `packet` is this connection's SYN once more.
    #[inline(always)]
    pub const fn is_repeated_by(&self, packet: &Packet) -> bool {
        self.opened_ns != 0 && self.initial == packet.sequence
    }

    /// Takes in a packet. `now` reads the clock, which costs a third of all that is done here.
    #[inline(always)]
    pub fn observe(
        &mut self,
        packet: &Packet,
        direction: Direction,
        now: impl Fn() -> u64,
    ) -> Seen {
        let mut seen = Seen::default();
        let answered = self.state & state::ANSWERED != 0;
        if packet.flags & SYN != 0 {
            if opens(packet) {
                if !answered && self.state & state::REPEATED == 0 && now() != self.opened_ns {
                    self.state |= state::REPEATED;
                    seen.unanswered = true;
                }
            } else if !answered && direction as u32 == Direction::Response as u32 {
                self.state |= state::ANSWERED;
                seen.answered = true;
                self.advance(direction, packet.sequence.wrapping_add(1));
                if self.opened_ns != 0 && self.state & state::REPEATED == 0 {
                    seen.handshake_ns = Some(now().saturating_sub(self.opened_ns));
                }
            }
            return seen;
        }
        if packet.payload_length > 0 {
            seen.retransmission = self.has_seen(packet, direction);
            if !seen.retransmission {
                let end = packet.sequence.wrapping_add(packet.payload_length);
                self.advance(direction, end);
            }
        }
        seen.closed = self.ends(packet, direction);
        seen
    }

    #[inline(always)]
    fn has_seen(&self, packet: &Packet, direction: Direction) -> bool {
        let known = self.state & (state::KNOWN << direction as u32) != 0;
        let next = self.next[direction as usize & 1];
        let end = packet.sequence.wrapping_add(packet.payload_length);
        // A keep-alive probe repeats one byte on purpose (RFC 9293, 3.8.4).
        let probe = packet.payload_length == 1 && end == next;
        known && !probe && (end.wrapping_sub(next) as i32) <= 0
    }

    #[inline(always)]
    fn advance(&mut self, direction: Direction, next: u32) {
        self.next[direction as usize & 1] = next;
        self.state |= state::KNOWN << direction as u32;
    }

    #[inline(always)]
    fn ends(&mut self, packet: &Packet, direction: Direction) -> bool {
        const BOTH: u32 = state::FINISHED | state::FINISHED << 1;
        if self.state & state::CLOSED != 0 {
            return false;
        }
        if packet.flags & FIN != 0 {
            self.state |= state::FINISHED << direction as u32;
        }
        if packet.flags & RST == 0 && self.state & BOTH != BOTH {
            return false;
        }
        self.state |= state::CLOSED;
        true
    }
}

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

/// What is counted of one version of one service. Row = service index * 2 + [`Arm`].
#[repr(C)]
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

impl ArmCounters {
    /// Counts a packet and what it told; a reset only where it tells of the version on trial.
    #[inline(always)]
    pub fn count(&mut self, packet: &Packet, direction: Direction, seen: &Seen, on_trial: bool) {
        let side = direction as usize & 1;
        self.packets[side] += 1;
        self.bytes[side] += packet.payload_length as u64;
        // One that comes when both sides have ended, or once more, tells of no trouble.
        self.resets[side] += (on_trial && seen.closed && packet.flags & RST != 0) as u64;
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
        fn add<const N: usize>(sums: &mut [u64; N], values: &[u64; N]) {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
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

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::flow::Endpoint;
    use crate::packet::Transport;
    use std::vec::Vec;

    const MS: u64 = 1_000_000;

    /// A segment: direction, flags, sequence number, payload.
    type Step<'a> = (u64, Direction, u8, u32, &'a [u8]);

    fn packet(flags: u8, sequence: u32, payload: &[u8]) -> Packet {
        Packet {
            source: Endpoint::default(),
            destination: Endpoint::default(),
            transport: Transport::Tcp,
            ipv6: false,
            hop_limit: 64,
            flags,
            sequence,
            acknowledgement: 0,
            network_offset: 14,
            transport_offset: 34,
            payload_offset: 54,
            payload_length: payload.len() as u32,
        }
    }

    /// Opens a connection at 0 ms, client's numbers from 100 and server's from 500, and feeds it.
    fn run(steps: &[Step<'_>]) -> (Connection, Vec<Seen>, ArmCounters) {
        let syn = packet(SYN, 100, b"");
        let mut connection = Connection::opened(&syn, 1, Arm::Canary, MS);
        let mut counters = ArmCounters::default();
        let all = [
            (1, Request, SYN, 100, &b""[..]),
            (3, Response, SYN | ACK, 500, b""),
        ];
        let seen = all
            .iter()
            .chain(steps)
            .map(|&(ms, direction, flags, sequence, payload)| {
                let packet = packet(flags, sequence, payload);
                let seen = connection.observe(&packet, direction, || ms * MS);
                counters.count(&packet, direction, &seen, connection.is_since(0));
                seen
            })
            .collect();
        (connection, seen, counters)
    }

    use Direction::{Request, Response};

    #[test]
    fn packets_and_bytes_are_counted_and_the_handshake_is_timed() {
        let (connection, seen, counters) = run(&[
            (10, Request, ACK, 101, b"POST / HTTP/1.1\r\n"),
            (12, Request, ACK, 118, b"the rest"),
            (17, Response, ACK, 501, b"HTTP/1.1 200 OK\r\n"),
        ]);
        assert_eq!(seen[1].handshake_ns, Some(2 * MS));
        assert_eq!((counters.answered, counters.packets), (1, [3, 2]));
        assert_eq!(counters.bytes, [25, 17]);
        assert_eq!(connection.arm(), Arm::Canary);
    }

    #[test]
    fn what_comes_twice_is_a_retransmission() {
        let (_, seen, counters) = run(&[
            (10, Request, ACK, 101, b"GET / HTTP/1.1\r\n\r\n"),
            (20, Response, ACK, 501, b"HTTP/1.1 200 OK\r\n"),
            (30, Request, ACK, 101, b"GET / HTTP/1.1\r\n\r\n"),
            (31, Response, ACK, 501, b"HTTP/1.1 200 OK\r\n"),
            // A keep-alive probe.
            (90, Request, ACK, 118, b"\n"),
        ]);
        assert!(seen[4].retransmission && seen[5].retransmission && !seen[6].retransmission);
        assert_eq!(counters.retransmissions, [1, 1]);
    }

    #[test]
    fn sequence_numbers_wrap() {
        let syn = packet(SYN, u32::MAX - 4, b"");
        let mut connection = Connection::opened(&syn, 1, Arm::Stable, 0);
        for (sequence, expected) in [(u32::MAX - 3, false), (4, false), (u32::MAX - 3, true)] {
            let packet = packet(ACK, sequence, b"12345678");
            let seen = connection.observe(&packet, Request, || 1);
            assert_eq!(seen.retransmission, expected, "{sequence}");
        }
    }

    #[test]
    fn a_syn_that_nobody_answers_is_counted_once() {
        let syn = packet(SYN, 100, b"");
        let mut connection = Connection::opened(&syn, 1, Arm::Canary, MS);
        let mut observe = |flags, direction, ms: u64| {
            connection.observe(&packet(flags, 100, b""), direction, || ms * MS)
        };
        assert!(!observe(SYN, Request, 1).unanswered);
        assert!(observe(SYN, Request, 1_001).unanswered);
        assert!(!observe(SYN, Request, 3_001).unanswered);
        let late = observe(SYN | ACK, Response, 3_002);
        assert!(late.answered && late.handshake_ns.is_none());
        assert!(!observe(SYN | ACK, Response, 3_003).answered);
    }

    #[test]
    fn a_connection_ends_once() {
        let (_, seen, counters) = run(&[
            (10, Request, FIN | ACK, 101, b""),
            (11, Response, FIN | ACK, 501, b""),
            (12, Request, RST, 102, b""),
        ]);
        assert_eq!(
            seen.iter().map(|seen| seen.closed).collect::<Vec<_>>(),
            [false, false, false, true, false]
        );
        assert_eq!((counters.closed, counters.resets), (1, [0, 0]));
        let (_, _, counters) = run(&[
            (10, Response, RST | ACK, 501, b""),
            (11, Response, RST | ACK, 501, b""),
        ]);
        assert_eq!((counters.closed, counters.resets), (1, [0, 1]));
    }

    #[test]
    fn a_server_that_has_forgotten_a_connection_begins_another() {
        let mut connection = Connection::opened(&packet(SYN, 100, b""), 3, Arm::Canary, 5);
        connection.renew(&packet(SYN | ACK, 900, b""));
        assert!(!connection.is_open() && connection.initial == 100);
        connection.state |= state::ANSWERED | state::FINISHED;
        let accepts = |acknowledgement| Packet {
            acknowledgement,
            ..packet(SYN | ACK, 900, b"")
        };
        let before = connection;
        connection.renew(&accepts(101));
        connection.renew(&packet(ACK, 900, b"late"));
        assert_eq!(connection, before, "its own SYN's answer, once more");
        connection.renew(&accepts(501));
        assert_eq!((connection.initial, connection.next), (500, [501, 901]));
        assert!(connection.is_open() && connection.state & state::FINISHED == 0);
    }
}
