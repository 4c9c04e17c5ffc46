//! What a TCP header says beside the fields that decide about copying: options, urgent bytes, checksum. Pure.

use mirror_common::packet::{Packet, SYN};
use sha2::{Digest, Sha256};

use crate::message::{Extras, Multipath};

const URG: u8 = 0x20;

/// RFC 7323.
const WINDOW_SCALE: u8 = 3;

/// RFC 8684.
const MPTCP: u8 = 30;

/// What the header of this packet, which holds all that its lengths promise, says.
pub(super) fn extras(inner: &[u8], packet: &Packet) -> Extras {
    let transport = packet.transport_offset as usize;
    let end = packet.payload_offset as usize + packet.payload_length as usize;
    let Some(segment) = inner.get(transport..end) else {
        return Extras::default();
    };
    let options = &segment[20..packet.payload_offset as usize - transport];
    let mut extras = Extras {
        is_urgent: packet.flags & URG != 0 && segment[18..20] != [0, 0],
        is_doubtful: !is_sound(inner, packet, segment),
        ..Extras::default()
    };
    if packet.flags & SYN != 0 {
        read_options(options, &mut extras);
    }
    extras
}

fn read_options(mut options: &[u8], extras: &mut Extras) {
    while let [kind, rest @ ..] = options {
        let length = match (*kind, rest) {
            (0, _) => return,
            (1, _) => 1,
            (_, &[length, ..]) if length >= 2 => usize::from(length),
            _ => return,
        };
        let Some((option, rest)) = options.split_at_checked(length) else {
            return;
        };
        match option {
            // Beyond 14 it counts as 14 (RFC 7323, section 2.3).
            &[WINDOW_SCALE, 3, scale] => extras.window_scale = Some(scale.min(14)),
            [MPTCP, ..] => extras.multipath = multipath(option).or(extras.multipath),
            _ => {}
        }
        options = rest;
    }
}

/// The subtypes that stand in handshakes: MP_CAPABLE, with the server's key in its SYN-ACK, and MP_JOIN, with
/// the token in its SYN.
fn multipath(option: &[u8]) -> Option<Multipath> {
    match (option.get(2)? >> 4, option) {
        (0, [_, 12, _, _, key @ ..]) => {
            let token = Sha256::digest(key).first_chunk().copied();
            let token = token.map(u32::from_be_bytes);
            Some(Multipath::Capable { token })
        }
        (0, _) => Some(Multipath::Capable { token: None }),
        (1, [_, 12, _, _, rest @ ..]) => {
            let token = rest.first_chunk().copied().map(u32::from_be_bytes);
            Some(Multipath::Join { token })
        }
        (1, _) => Some(Multipath::Join { token: None }),
        _ => None,
    }
}

/// Whether the checksum is right, or is the sum of the pseudo header that a sender leaves to its hardware, and
/// the kernel to segments that it puts together. Some senders leave the length out of that, and some all of it.
fn is_sound(inner: &[u8], packet: &Packet, segment: &[u8]) -> bool {
    let network = packet.network_offset as usize;
    let addresses = match packet.ipv6 {
        true => inner.get(network + 8..network + 40),
        false => inner.get(network + 12..network + 20),
    };
    let Some(addresses) = addresses else {
        return true;
    };
    let bare = sum(addresses) + 6;
    let length = segment.len() as u64;
    let pseudo = bare + (length >> 16) + (length & 0xffff);
    let told = u16::from_be_bytes([segment[16], segment[17]]);
    let partial = [fold(pseudo), fold(bare), 0];
    partial.contains(&told) || fold(pseudo + sum(segment)) == 0xffff
}

/// The sum of 16-bit words (RFC 1071), not folded.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut sum = 0;
    for word in words {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum + u64::from(u32::from_be_bytes(last))
}

fn fold(mut sum: u64) -> u16 {
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use mirror_common::packet::{Link, parse};

    use super::*;

    fn packet(ipv6: bool, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        let builder = match ipv6 {
            false => etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 5], 64),
            true => etherparse::PacketBuilder::ipv6([7; 16], [9; 16], 64),
        };
        let builder = builder.tcp(40_000, 8_000, 1, 1_000);
        builder.write(&mut packet, payload).unwrap();
        packet
    }

    fn read(bytes: &[u8]) -> Extras {
        let packet = parse(&bytes, bytes.len() as u32, Link::Ip).unwrap();
        extras(bytes, &packet)
    }

    #[test]
    fn a_wrong_checksum_is_told_from_one_that_is_not_finished() {
        for ipv6 in [false, true] {
            for length in [0, 1, 2, 3, 1_447, 60_000] {
                let mut bytes = packet(ipv6, &vec![0xa7; length]);
                let checksum = if ipv6 { 56 } else { 36 };
                assert!(!read(&bytes).is_doubtful, "{length}");
                let addresses = if ipv6 { 8..40 } else { 12..20 };
                let transport = checksum - 16;
                let pseudo = sum(&bytes[addresses]) + 6 + (bytes.len() - transport) as u64;
                let right = [bytes[checksum], bytes[checksum + 1]];
                bytes[checksum..checksum + 2].copy_from_slice(&fold(pseudo).to_be_bytes());
                assert!(!read(&bytes).is_doubtful, "{length}, left to hardware");
                bytes[checksum..checksum + 2].copy_from_slice(&right);
                bytes[checksum + 1] ^= 0x10;
                assert!(read(&bytes).is_doubtful, "{length}");
                bytes[checksum + 1] ^= 0x10;
                if let Some(last) = bytes[transport + 20..].last_mut() {
                    *last ^= 1;
                    assert!(read(&bytes).is_doubtful, "{length}");
                }
            }
        }
    }

    #[test]
    fn options_of_handshakes_are_read() {
        let read = |options: &[u8]| {
            let mut extras = Extras::default();
            read_options(options, &mut extras);
            (extras.window_scale, extras.multipath)
        };
        assert_eq!(read(&[2, 4, 5, 180, 1, 3, 3, 7]), (Some(7), None));
        assert_eq!(read(&[3, 3, 200, 0, 3, 3, 1]), (Some(14), None));
        for broken in [&[3][..], &[3, 0, 7], &[3, 9, 7], &[], &[30, 2]] {
            assert_eq!(read(broken), (None, None), "{broken:?}");
        }
        let capable = |token| (None, Some(Multipath::Capable { token }));
        assert_eq!(read(&[30, 4, 1, 1]), capable(None));
        // The most significant bytes of the key's SHA-256 (RFC 8684, section 3.1).
        let reply = [30, 12, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(&reply), capable(Some(0xaf55_70f5)));
        let join = [30, 12, 0x10, 2, 0xde, 0xad, 0xbe, 0xef, 1, 2, 3, 4];
        let token = Some(0xdead_beef);
        assert_eq!(read(&join), (None, Some(Multipath::Join { token })));
    }

    #[test]
    fn urgent_bytes_are_told() {
        let mut bytes = packet(false, b"urgent");
        bytes[33] |= URG;
        // A pointer to nothing.
        assert!(!read(&bytes).is_urgent);
        bytes[39] = 1;
        assert!(read(&bytes).is_urgent);
    }
}
