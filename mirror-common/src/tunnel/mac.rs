//! Who wrote a copy's headers: a MAC under a key that only the tap and its agent have.
//!
//! It covers everything that [`Header`] says and the inner packet's addresses and ports, so that a
//! header cannot stand before another connection's packet. Neither payload nor TCP header is
//! covered: the kernel copies the option into every segment that it cuts of a super-packet, each of
//! which has its own. Whoever cannot see the tap's datagrams can forge none. Whoever sees them on
//! their way can repeat one, or send other payload under its header while the key holds, which is as
//! long as the tap's connection to the agent.

use crate::packet::Packet;
use crate::siphash::siphash;

use super::Header;

/// The key of one tap for one agent. Zeros = none.
pub type Key = [u64; 2];

/// No key: copies are not signed.
pub const NO_KEY: Key = [0; 2];

impl Header {
    /// The MAC of this header, [`super::Meta::mac`] apart, in front of `packet`: SipHash-2-4.
    #[inline(always)]
    pub fn mac(&self, key: Key, packet: &Packet) -> u64 {
        let [origin, number] = self.meta.words();
        let ports = (packet.source.port() as u64) << 16 | packet.destination.port() as u64;
        let whose = (self.vni as u64) << 40 | (self.ipv6 as u64) << 32 | ports;
        let [s0, s1] = packet.source.address.lanes();
        let [d0, d1] = packet.destination.address.lanes();
        if self.ipv6 {
            siphash::<2, 4, 7>(key, &[origin, number, whose, s0, s1, d0, d1])
        } else {
            // All of an IPv4 address stands in the upper half of its second word.
            let addresses = s1 >> 32 << 32 | d1 >> 32;
            siphash::<2, 4, 4>(key, &[origin, number, whose, addresses])
        }
    }

    /// Whether whoever wrote this header in front of `packet` has the key. Takes the same time
    /// whichever byte differs.
    pub fn is_signed(&self, key: Key, packet: &Packet) -> bool {
        let difference = self.mac(key, packet) ^ self.meta.mac;
        // What the compiler cannot see through it cannot cut short.
        core::hint::black_box(difference) == 0 && packet.ipv6 == self.ipv6
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::flow::Endpoint;
    use crate::packet::{ACK, Transport};
    use crate::tunnel::{Arm, Direction, Meta};
    use core::net::SocketAddr;
    use std::vec::Vec;

    const KEY: Key = [3, 5];

    fn packet(source: &str, destination: &str) -> Packet {
        let end = |text: &str| Endpoint::from(text.parse::<SocketAddr>().unwrap());
        Packet {
            source: end(source),
            destination: end(destination),
            transport: Transport::Tcp,
            ipv6: source.starts_with('['),
            hop_limit: 64,
            flags: ACK,
            sequence: 1,
            acknowledgement: 1,
            window: 1,
            network_offset: 0,
            transport_offset: 20,
            payload_offset: 40,
            payload_length: 100,
        }
    }

    fn signed(packet: &Packet) -> Header {
        let mut header = Header {
            vni: 101,
            ipv6: packet.ipv6,
            meta: Meta {
                direction: Direction::Request,
                arm: Arm::Stable,
                piece: false,
                last_piece: false,
                cpu: 1,
                length: 100,
                sequence: 7,
                time_ns: 1_000,
                tap: 4,
                mac: 0,
            },
        };
        header.meta.mac = header.mac(KEY, packet);
        header
    }

    #[test]
    fn the_key_s_owner_is_believed() {
        for (from, to) in [
            ("10.0.0.1:40000", "10.0.0.5:8000"),
            ("[fd00::1]:40000", "[fd00::5]:8000"),
        ] {
            let packet = packet(from, to);
            let header = signed(&packet);
            assert!(header.is_signed(KEY, &packet));
            assert!(!header.is_signed([KEY[0], KEY[1] ^ 1], &packet));
            assert!(!header.is_signed(NO_KEY, &packet));
        }
    }

    #[test]
    fn nothing_can_be_changed() {
        let packet = packet("10.0.0.1:40000", "10.0.0.5:8000");
        let header = signed(&packet);
        let changes: [fn(&mut Header); 11] = [
            |header| header.vni ^= 1 << 23,
            |header| header.ipv6 = true,
            |header| header.meta.direction = Direction::Response,
            |header| header.meta.arm = Arm::Canary,
            |header| header.meta.piece = true,
            |header| header.meta.last_piece = true,
            |header| header.meta.cpu ^= 1 << 11,
            |header| header.meta.length ^= 1 << 15,
            |header| header.meta.sequence ^= 1 << 31,
            |header| header.meta.time_ns ^= 1 << 57,
            |header| header.meta.tap ^= 1 << 15,
        ];
        let mut macs = Vec::from([header.meta.mac]);
        for change in changes {
            let mut changed = header;
            change(&mut changed);
            assert!(!changed.is_signed(KEY, &packet), "{changed:?}");
            macs.push(changed.mac(KEY, &packet));
        }
        macs.sort_unstable();
        macs.dedup();
        assert_eq!(
            macs.len(),
            changes.len() + 1,
            "each changes it in its own way"
        );
    }

    #[test]
    fn a_header_belongs_to_its_connection() {
        let header = signed(&packet("10.0.0.1:40000", "10.0.0.5:8000"));
        for (from, to) in [
            ("10.0.0.1:40001", "10.0.0.5:8000"),
            ("10.0.0.1:40000", "10.0.0.5:8001"),
            ("10.0.0.2:40000", "10.0.0.5:8000"),
            ("10.0.0.1:40000", "10.0.0.6:8000"),
            ("10.0.0.5:8000", "10.0.0.1:40000"),
            // An IPv6 packet whose addresses end as those of the IPv4 packet do.
            ("[fd00::a00:1]:40000", "[fd00::a00:5]:8000"),
        ] {
            let other = packet(from, to);
            assert!(!header.is_signed(KEY, &other), "{from} {to}");
        }
    }
}
