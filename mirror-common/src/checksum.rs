//! Internet checksums (RFC 1071) that follow a change, without a look at what stayed (RFC 1624).
//!
//! Words and checksum fields are taken as they lie in memory: the sum does not care for their order.

use crate::connection::HEADER;
use crate::packet::Packet;

/// What replacing `from` by `to` adds to a ones' complement sum. Several changes add up by [`add`].
#[inline(always)]
pub const fn difference<const N: usize>(from: [u32; N], to: [u32; N]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum = add(add(sum, to[i]), !from[i]);
        i += 1;
    }
    sum
}

/// The sum of two ones' complement numbers.
#[inline(always)]
pub const fn add(a: u32, b: u32) -> u32 {
    let sum = a as u64 + b as u64;
    // Cannot carry again.
    (sum as u32).wrapping_add((sum >> 32) as u32)
}

/// A checksum after a change: equation 3 of RFC 1624.
#[inline(always)]
pub const fn updated(checksum: [u8; 2], difference: u32) -> [u8; 2] {
    let sum = add(!u16::from_ne_bytes(checksum) as u32 & 0xffff, difference);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (!sum as u16).to_ne_bytes()
}

/// Whether a TCP header, filled up with zeros, bears the checksum of `packet`, which has no payload. One that a
/// device will finish has the sum over the pseudo header alone.
#[inline(always)]
pub fn is_of_segment(header: &[u8; HEADER], packet: &Packet) -> bool {
    if packet.payload_length != 0 {
        return false;
    }
    let length = packet.payload_offset - packet.transport_offset;
    let [a, b] = (length as u16).to_be_bytes();
    let protocol = u16::from_ne_bytes([0, 6]) as u32;
    let mut pseudo = add(protocol, u16::from_ne_bytes([a, b]) as u32);
    // The first words of an IPv4 address add up to nothing.
    let (source, destination) = (packet.source.address, packet.destination.address);
    pseudo = add(pseudo, difference([0; 4], source.words()));
    pseudo = add(pseudo, difference([0; 4], destination.words()));
    let mut all = pseudo;
    let mut i = 0;
    while i < header.len() {
        let word = [header[i], header[i + 1], header[i + 2], header[i + 3]];
        all = add(all, u32::from_ne_bytes(word));
        i += 4;
    }
    let unfinished = u16::from_ne_bytes([header[16], header[17]]);
    folded(all) == 0 || folded(pseudo) == folded(unfinished as u32)
}

/// A sum as 16 bits, of which all ones are none.
#[inline(always)]
const fn folded(sum: u32) -> u32 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    if sum == 0xffff { 0 } else { sum }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::flow::{Address, Endpoint};
    use crate::packet::{RST, Transport};
    use proptest::prelude::*;

    /// A reset from 10.0.0.1:40000 to 10.0.0.5:8000, as Wireshark has it.
    #[test]
    fn a_segment_s_checksum_is_held_against_its_ends() {
        let end = |last, port| Endpoint::new(Address::from_v4([10, 0, 0, last]), port);
        let packet = Packet {
            source: end(1, 40_000),
            destination: end(5, 8_000),
            transport: Transport::Tcp,
            ipv6: false,
            hop_limit: 64,
            flags: RST,
            sequence: 1,
            acknowledgement: 0,
            window: 0,
            network_offset: 0,
            transport_offset: 20,
            payload_offset: 40,
            payload_length: 0,
        };
        let mut header = [0; 64];
        header[..4].copy_from_slice(&[0x9c, 0x40, 0x1f, 0x40]);
        (header[7], header[12], header[13]) = (1, 0x50, RST);
        let check = |sum: [u8; 2], source: Endpoint| {
            let mut header = header;
            header[16..18].copy_from_slice(&sum);
            is_of_segment(&header, &Packet { source, ..packet })
        };
        // 0a00 + 0001 + 0a00 + 0005 + 0006 + 0014 = 1420, and with the header b..: see RFC 1071.
        let pseudo = 0x0a00_u32 + 1 + 0x0a00 + 5 + 6 + 20;
        let all = pseudo + 0x9c40 + 0x1f40 + 1 + 0x5000 + u32::from(RST);
        let sum = !(((all & 0xffff) + (all >> 16)) as u16);
        assert!(check(sum.to_be_bytes(), packet.source));
        assert!(check((pseudo as u16).to_be_bytes(), packet.source));
        assert!(!check((sum + 1).to_be_bytes(), packet.source));
        assert!(!check(sum.to_be_bytes(), end(2, 40_000)));
        assert!(!check([0, 0], packet.source));
    }

    /// RFC 1071, section 1, over whole words.
    fn checksum(words: &[u32]) -> u16 {
        let bytes = words.iter().flat_map(|word| word.to_ne_bytes());
        let bytes: std::vec::Vec<u8> = bytes.collect();
        let pairs = bytes
            .chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1]));
        let mut sum: u64 = pairs.sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn a_change_is_followed(before in any::<[u32; 5]>(), after in any::<[u32; 3]>()) {
            let [a, b, c, rest @ ..] = before;
            let changed: std::vec::Vec<u32> = after.iter().chain(&rest).copied().collect();
            let difference = difference([a, b, c], after);
            let found = updated(checksum(&before).to_be_bytes(), difference);
            // Both zeros are right (RFC 1624, section 3); the sum over everything tells neither apart.
            let equal = |checksum: u16| checksum % 0xffff;
            prop_assert_eq!(equal(u16::from_be_bytes(found)), equal(checksum(&changed)));
        }
    }
}
