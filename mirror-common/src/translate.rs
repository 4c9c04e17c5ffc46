//! Canaries on other hosts: the addresses of their connections are translated at both ends, so that
//! the canary answers to us, and clients go on seeing the service (NAPT, RFC 3022, twice).

use crate::flow::{Address, Flow};
use crate::packet::{Frame, Packet};

/// How many ports are tried for a new connection before stable gets it.
pub const PORT_ATTEMPTS: u32 = 8;

/// How long the end of a connection may still be busy with it: twice a segment's life on the way
/// (RFC 9293, 3.6.1), as Linux counts it.
const TIME_WAIT_NS: u64 = 60_000_000_000;

/// How long a SYN may wait for its answer: Linux' own patience is just over two minutes.
const SYN_NS: u64 = 130_000_000_000;

/// How long a connection may be silent: RFC 5382, requirement 5, asks for two hours and four minutes.
const IDLE_NS: u64 = 7_440_000_000_000;

/// The way to a canary on another host.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Our address on the way: whom the canary sees.
    pub local: Address,
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

/// Ports of ours that the canaries see.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// The first.
    pub first: u32,
    /// How many; 0 = nothing is translated.
    pub count: u32,
}

impl Ports {
    /// Whether a port is one of them.
    #[inline(always)]
    pub const fn contains(self, port: u16) -> bool {
        (port as u32).wrapping_sub(self.first) < self.count
    }

    /// The port to try for a connection with this hash, if there are any.
    #[inline(always)]
    pub const fn candidate(self, hash: u64, attempt: u32) -> Option<u16> {
        if self.count == 0 {
            return None;
        }
        let place = (hash as u32).wrapping_add(attempt.wrapping_mul(0x9e37_79b1));
        Some((self.first + place % self.count) as u16)
    }
}

/// Bits of [`Translation::state`].
pub mod state {
    /// The canary has acknowledged the SYN.
    pub const ANSWERED: u32 = 1;
    /// Ended by both sides.
    pub const CLOSED: u32 = 1 << 1;
    /// Ended by a reset: nobody waits out its end.
    pub const RESET: u32 = 1 << 2;
}

/// Whose the answers of a canary are. Key: the connection as the canary sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The connection as the client sees it.
    pub origin: Flow,
    /// When its last packet was seen.
    pub seen_ns: u64,
    /// The interface that the client's packets come in by.
    pub ifindex: u32,
    /// Bits of [`state`].
    pub state: u32,
    /// The MAC address that the client's packets come from, then ours; 0 = there are none.
    pub macs: [u32; 3],
    /// Keeps the size a multiple of 8.
    pub pad: u32,
}

impl Translation {
    /// Whether its port may serve another connection.
    #[inline(always)]
    pub const fn is_free(&self, now_ns: u64) -> bool {
        let idle = now_ns.saturating_sub(self.seen_ns);
        match self.state {
            bits if bits & state::RESET != 0 => true,
            bits if bits & state::CLOSED != 0 => idle > TIME_WAIT_NS,
            bits if bits & state::ANSWERED == 0 => idle > SYN_NS,
            _ => idle > IDLE_NS,
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

#[cfg(feature = "user")]
mod pod {
    use super::{Ports, Translation};

    // SAFETY: integers only, `repr(C)`, no padding, every bit pattern is a value.
    unsafe impl aya::Pod for Ports {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Translation {}
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
                let port = ports.candidate(hash, attempt).unwrap();
                prop_assert!(ports.contains(port), "{port} of {ports:?}");
            }
        }
    }

    #[test]
    fn ports_end_where_they_end() {
        let ports = Ports {
            first: 61_000,
            count: 4_536,
        };
        assert!(ports.contains(61_000) && ports.contains(65_535) && !ports.contains(60_999));
        assert!(!Ports::default().contains(0) && Ports::default().candidate(7, 0).is_none());
    }

    #[test]
    fn a_port_is_free_once_nobody_waits_for_it() {
        #[track_caller]
        fn check(state: u32, idle_s: u64, expected: bool) {
            let end = Endpoint::default();
            let translation = Translation {
                origin: Flow {
                    client: end,
                    server: end,
                },
                seen_ns: 1_000,
                ifindex: 2,
                state,
                macs: [0; 3],
                pad: 0,
            };
            let now = 1_000 + idle_s * 1_000_000_000;
            assert_eq!(
                translation.is_free(now),
                expected,
                "{state} after {idle_s} s"
            );
        }
        check(0, 120, false);
        check(0, 140, true);
        check(state::ANSWERED, 7_200, false);
        check(state::ANSWERED, 7_500, true);
        check(state::ANSWERED | state::CLOSED, 59, false);
        check(state::ANSWERED | state::CLOSED, 61, true);
        check(state::ANSWERED | state::RESET, 0, true);
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
