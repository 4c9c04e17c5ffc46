//! Canaries on other hosts: the addresses of their connections are translated at both ends, so that
//! the canary answers to us, and clients go on seeing the service (NAPT, RFC 3022, twice).

use crate::abi::{shared, words};
use crate::connection::Said;
use crate::flow::{Address, Flow};
use crate::packet::{Frame, Packet};

/// How many ports are tried for a new connection before stable gets it.
pub const PORT_ATTEMPTS: u32 = 24;

/// After so many, ports whose end the canary's host waits out are taken as well, where that will take the SYN
/// for a new connection's, see [`Translation::yields_to`]. Of two clients' clocks either may be behind, so each
/// attempt finds such a port with a chance of a half: as many as there are must be left for it.
const UNUSED_ATTEMPTS: u32 = 2;

/// After so many, handshakes give way early, and clients look beyond their own slice.
const CALM_ATTEMPTS: u32 = 8;

/// See [`Ports::candidate`].
const SLICES: u32 = 8;

/// How long the end of a connection may still be busy with it: twice a segment's life on the way
/// (RFC 9293, 3.6.1), as Linux counts it.
const TIME_WAIT_NS: u64 = 60_000_000_000;

/// How long a handshake may take, from the client's last SYN on.
pub const HANDSHAKE_NS: u64 = 5_000_000_000;

/// The same where ports are scarce.
const SHORT_HANDSHAKE_NS: u64 = 1_000_000_000;

/// How long a connection may be silent: RFC 5382, requirement 5, asks for two hours and four minutes.
pub const IDLE_NS: u64 = 7_440_000_000_000;

/// How long late packets still find the way of a connection that is over, before the daemon forgets it.
const LINGER_NS: u64 = 5_000_000_000;

/// How many addresses of ours there may be on a way.
pub const MAX_LOCAL: usize = 8;

shared! {
    /// The way to a canary on another host.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Way {
        /// Our addresses on the way: whom the canary sees.
        pub local: [Address; MAX_LOCAL],
        /// How many of them there are.
        pub locals: u32,
        /// Keeps the size a multiple of 8.
        pub pad: u32,
        /// Who takes the packets on: a router, or the canary itself.
        pub next_hop: Address,
        /// The interface that they leave by.
        pub ifindex: u32,
        /// The largest IP packet on the way, in bytes.
        pub mtu: u32,
        /// The next hop's MAC address, then the interface's.
        pub macs: [u32; 3],
        /// 1 = the interface is a veth: what XDP sends back by it (XDP_TX) stays there until something
        /// else passes, unless its other end runs XDP as well. Redirected frames go at once.
        pub veth: u32,
    }
}

impl Way {
    /// Our address to try for a connection with this hash.
    #[inline(always)]
    pub const fn candidate(&self, hash: u64, attempt: u32) -> Address {
        let place = ((hash >> 32) as u32).wrapping_add(attempt);
        let place = if self.locals > 1 {
            place % self.locals
        } else {
            0
        };
        self.local[place as usize & (MAX_LOCAL - 1)]
    }
}

shared! {
    /// Ports of ours that the canaries see.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Ports {
        /// The first.
        pub first: u32,
        /// How many; 0 = nothing is translated.
        pub count: u32,
    }
}

impl Ports {
    /// Whether a port is one of them.
    #[inline(always)]
    pub const fn contains(self, port: u16) -> bool {
        (port as u32).wrapping_sub(self.first) < self.count
    }

    /// The port to try for a connection with this hash, if there are any. After the first two, some stay in one
    /// of [`SLICES`], another for each client, before all are tried again: whose timestamps are behind another
    /// client's finds no port that may be used again where that one has been.
    #[inline(always)]
    pub const fn candidate(self, hash: u64, client: u32, attempt: u32) -> Option<u16> {
        if self.count == 0 {
            return None;
        }
        let place = (hash as u32).wrapping_add(attempt.wrapping_mul(0x9e37_79b1));
        let slice = self.count / SLICES;
        let port = if attempt < UNUSED_ATTEMPTS || attempt >= CALM_ATTEMPTS || slice == 0 {
            place % self.count
        } else {
            client % SLICES * slice + place % slice
        };
        Some((self.first + port) as u16)
    }
}

words! {
    /// Values of [`Translation::phase`].
    pub mod phase: u32 {
        /// The handshake is not complete.
        WAITING = 0;
        /// It lives.
        OPEN = 1;
        /// Ended by both sides; the canary's host may wait out the end.
        CLOSED = 2;
        /// Nobody waits for anything.
        FREE = 3;
    }
}

shared! {
    /// Whose the answers of a canary are. Key: the connection as the canary sees it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Translation {
        /// The connection as the client sees it.
        pub origin: Flow,
        /// Since when it has been in its phase.
        pub since_ns: u64,
        /// The interface that the client's packets come in by.
        pub ifindex: u32,
        /// One of [`phase`].
        pub phase: u32,
        /// The MAC address that the client's packets come from, then ours; 0 = there are none.
        pub macs: [u32; 3],
        /// Keeps what follows on a multiple of 8.
        pub pad: u32,
        /// What the canary's host remembers of the client's side, once it is closed.
        pub last: Last,
    }
}

shared! {
    /// The last that a client said in a connection, or the first: by this the end of a connection is told from
    /// the beginning of another (RFC 6191).
    #[repr(align(8))]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Last {
        /// The sequence number.
        pub sequence: u32,
        /// The timestamp (RFC 7323), where it said one.
        pub timestamp: u32,
        /// Whether it did: 1, or 0. [`Last::UNKNOWN`] has another.
        pub timed: u32,
        /// Keeps the size a multiple of 8: the verifier wants what is copied aligned.
        pub pad: u32,
    }
}

impl Last {
    /// Nobody has seen it: nothing supersedes it.
    pub const UNKNOWN: Self = Self {
        sequence: 0,
        timestamp: 0,
        timed: 2,
        pad: 0,
    };

    /// What a packet says that ends, or begins, with this number.
    #[inline(always)]
    pub const fn of(sequence: u32, said: &Said) -> Self {
        Self {
            sequence,
            timestamp: said.timestamp,
            timed: said.timed,
            pad: 0,
        }
    }

    /// Whether whoever waits out `before` takes a SYN of these numbers for a new connection's.
    #[inline(always)]
    pub const fn supersedes(&self, before: &Self) -> bool {
        if before.timed > 1 {
            return false;
        }
        if self.timed & before.timed != 0 {
            return (self.timestamp.wrapping_sub(before.timestamp) as i32) > 0;
        }
        (self.sequence.wrapping_sub(before.sequence) as i32) > 0
    }
}

impl Translation {
    /// Whether its port may serve a connection that a SYN of these numbers opens. After a few attempts also
    /// a handshake gives way that has taken longer than most, and an end that the canary's host waits out and
    /// will not confuse with it. One that lives never does.
    #[inline(always)]
    pub const fn yields_to(&self, syn: &Last, attempt: u32, now_ns: u64) -> bool {
        let calm = attempt < CALM_ATTEMPTS;
        let unused = attempt < UNUSED_ATTEMPTS;
        let passed = now_ns.saturating_sub(self.since_ns);
        match self.phase {
            phase::WAITING if calm => passed > HANDSHAKE_NS,
            phase::WAITING => passed > SHORT_HANDSHAKE_NS,
            phase::CLOSED => passed > TIME_WAIT_NS || !unused && syn.supersedes(&self.last),
            phase::FREE => true,
            _ => false,
        }
    }

    /// Whether it can be forgotten, since nobody needs it any more.
    pub const fn is_over(&self, now_ns: u64) -> bool {
        let passed = now_ns.saturating_sub(self.since_ns);
        match self.phase {
            phase::WAITING => passed > HANDSHAKE_NS + LINGER_NS,
            phase::CLOSED => passed > TIME_WAIT_NS + LINGER_NS,
            phase::FREE => passed > LINGER_NS,
            _ => false,
        }
    }
}

/// A segment size in a SYN that does not fit the way, and what to write instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clamp {
    /// Where it stands.
    pub offset: u32,
    /// What to write there.
    pub bytes: [u8; 2],
    /// What stands there now, as it counts in the checksum.
    pub before: u32,
    /// What will.
    pub after: u32,
}

impl Clamp {
    /// What `packet`, a SYN, announces, where packets on the way may have `mtu` bytes; 0 = any.
    #[inline(always)]
    pub fn of<F: Frame>(frame: &F, packet: &Packet, mtu: u32) -> Option<Self> {
        let (offset, announced) = announced_mss(frame, packet)?;
        let mss = mtu.checked_sub(if packet.ipv6 { 60 } else { 40 })?;
        if announced as u32 <= mss {
            return None;
        }
        let bytes = (mss as u16).to_be_bytes();
        let word = |[a, b]: [u8; 2]| {
            // At an odd offset bytes count the other way round.
            let pair = if (offset - packet.transport_offset).is_multiple_of(2) {
                [a, b]
            } else {
                [b, a]
            };
            u16::from_ne_bytes(pair) as u32
        };
        Some(Self {
            offset,
            bytes,
            before: word(announced.to_be_bytes()),
            after: word(bytes),
        })
    }
}

/// Where the maximum segment size stands that a SYN announces (RFC 9293, 3.2), and what it is.
#[inline(always)]
fn announced_mss<F: Frame>(frame: &F, packet: &Packet) -> Option<(u32, u16)> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const MSS: u8 = 2;
    let mut offset = packet.transport_offset + 20;
    let mut options = 0;
    while options < 10 && offset + 4 <= packet.payload_offset {
        let [kind, length, high, low] = frame.read_far(offset)?;
        match kind {
            END => return None,
            NOTHING => offset += 1,
            MSS => return Some((offset + 2, u16::from_be_bytes([high, low]))),
            _ if length < 2 => return None,
            _ => offset += length as u32,
        }
        options += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::flow::Endpoint;
    use crate::packet::{SYN, Transport};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ports_stay_in_their_range(first in 1024_u32..60_000, count in 1_u32..5_000, hash in any::<u64>()) {
            let ports = Ports { first, count };
            for attempt in 0..PORT_ATTEMPTS {
                let port = ports.candidate(hash, hash as u32 ^ 0x55, attempt).unwrap();
                prop_assert!(ports.contains(port), "{port} of {ports:?}");
            }
        }
    }

    #[test]
    fn clients_keep_to_a_part_of_the_ports_where_they_are_scarce() {
        let ports = Ports {
            first: 1_000,
            count: 807,
        };
        for hash in 0..1_000_u64 {
            let port = ports.candidate(hash * 7_919, 11, UNUSED_ATTEMPTS).unwrap();
            assert!((1_300..1_400).contains(&port), "{port}");
        }
    }

    #[test]
    fn ports_end_where_they_end() {
        let ports = Ports {
            first: 61_000,
            count: 4_536,
        };
        assert!(ports.contains(61_000) && ports.contains(65_535) && !ports.contains(60_999));
        assert!(!Ports::default().contains(0) && Ports::default().candidate(7, 0, 0).is_none());
    }

    fn translation(phase: u32) -> Translation {
        let end = Endpoint::default();
        Translation {
            origin: Flow {
                client: end,
                server: end,
            },
            since_ns: 1_000,
            ifindex: 2,
            phase,
            macs: [0; 3],
            pad: 0,
            last: Last {
                sequence: 5_000,
                timestamp: 700,
                timed: 1,
                pad: 0,
            },
        }
    }

    #[test]
    fn a_port_is_free_once_nobody_waits_for_it() {
        /// After so many milliseconds: whether it is given at the first attempt, at a later one, and whether
        /// it is forgotten.
        #[track_caller]
        fn check(phase: u32, passed_ms: u64, expected: [bool; 3]) {
            let translation = translation(phase);
            let now = 1_000 + passed_ms * 1_000_000;
            let syn = Last::default();
            let given = [0, CALM_ATTEMPTS].map(|at| translation.yields_to(&syn, at, now));
            let is_over = translation.is_over(now);
            assert_eq!(
                [given[0], given[1], is_over],
                expected,
                "{phase}: {passed_ms} ms"
            );
        }
        check(phase::WAITING, 900, [false, false, false]);
        check(phase::WAITING, 1_100, [false, true, false]);
        check(phase::WAITING, 5_100, [true, true, false]);
        check(phase::WAITING, 10_100, [true, true, true]);
        check(phase::OPEN, 100_000_000, [false, false, false]);
        check(phase::CLOSED, 59_000, [false, false, false]);
        check(phase::CLOSED, 61_000, [true, true, false]);
        check(phase::CLOSED, 66_000, [true, true, true]);
        check(phase::FREE, 0, [true, true, false]);
        check(phase::FREE, 6_000, [true, true, true]);
    }

    #[test]
    fn a_connection_that_is_waited_out_is_superseded_as_rfc_6191_says() {
        #[track_caller]
        fn check(sequence: u32, timestamp: Option<u32>, expected: bool) {
            let syn = Last {
                sequence,
                timestamp: timestamp.unwrap_or(0),
                timed: timestamp.is_some().into(),
                pad: 0,
            };
            let ended = translation(phase::CLOSED);
            assert_eq!(
                ended.yields_to(&syn, CALM_ATTEMPTS, 2_000),
                expected,
                "{syn:?}"
            );
            assert!(!ended.yields_to(&syn, 0, 2_000), "while there are others");
        }
        check(4_000, Some(701), true);
        check(6_000, Some(700), false);
        check(6_000, Some(699), false);
        check(6_000, None, true);
        check(4_000, None, false);
        let syn = translation(0).last;
        assert!(!syn.supersedes(&Last::UNKNOWN));
    }

    #[test]
    fn addresses_take_turns() {
        let address = |last| Address::from_v4([10, 0, 0, last]);
        let mut way = Way::default();
        (way.local[0], way.local[1], way.locals) = (address(1), address(2), 2);
        let tried = [0, 1, 2].map(|attempt| way.candidate(1 << 32, attempt));
        assert_eq!(tried, [address(2), address(1), address(2)]);
        way.locals = 1;
        assert_eq!(way.candidate(1 << 32, 0), address(1));
    }

    #[test]
    fn a_segment_size_that_does_not_fit_is_found_among_the_options() {
        /// Of a way for 1,000 bytes: the offset from the TCP header, and how the sum changes.
        #[track_caller]
        fn check(options: &[u8], expected: Option<(u32, [u8; 2], [u8; 2])>) {
            let frame = [&[0; 20][..], options].concat();
            let packet = Packet {
                source: Endpoint::default(),
                destination: Endpoint::default(),
                transport: Transport::Tcp,
                ipv6: false,
                hop_limit: 64,
                flags: SYN,
                sequence: 0,
                acknowledgement: 0,
                window: 0,
                network_offset: 0,
                transport_offset: 0,
                payload_offset: frame.len() as u32,
                payload_length: 0,
            };
            let clamp = Clamp::of(&frame.as_slice(), &packet, 1_000);
            let word = |bytes| u32::from(u16::from_ne_bytes(bytes));
            let expected = expected.map(|(offset, before, after)| Clamp {
                offset,
                bytes: 960_u16.to_be_bytes(),
                before: word(before),
                after: word(after),
            });
            assert_eq!(clamp, expected, "{options:?}");
        }
        check(&[2, 4, 5, 180], Some((22, [5, 180], [3, 192])));
        check(&[1, 1, 4, 2, 2, 4, 5, 180], Some((26, [5, 180], [3, 192])));
        check(&[1, 2, 4, 5, 180, 0, 0, 0], Some((23, [180, 5], [192, 3])));
        check(&[2, 4, 3, 192], None);
        check(&[0, 0, 0, 0, 2, 4, 5, 180], None);
        check(&[8, 0, 0, 0, 2, 4, 5, 180], None);
        check(&[8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1], None);
        check(&[], None);
    }
}
