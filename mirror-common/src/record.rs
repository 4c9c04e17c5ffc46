//! The rings of the `stream` transport: what a record of a copied packet looks like, and where it lies.
//!
//! Every agent has two rings for each CPU of the node, its lanes: a small one that stays in the
//! processor's caches, the hot lane, and a deep one for what finds no room there. A lane is a ring of its
//! own: positions, numbers and counts are each lane's.
//!
//! ```text
//!   control | hot ring | slack | control | deep ring            | slack     one CPU
//! ```
//!
//! Positions in a ring only grow; a position's place is the position modulo the ring's size. A record
//! that begins before the end of the ring runs on into the slack behind it, so that every record lies
//! in one piece, and the bytes between two positions in two pieces at the most:
//!
//! ```text
//!   control | ring, a power of two                     | slack, one record
//!           |      head            tail                |
//!           |>>>>>>|               |>>>>>>>>>>>>>>>>>>>>>>>|
//!           ^ crossing: the first record after the turn begins where the last one ended
//! ```
//!
//! All numbers are little-endian: the ring's bytes are the stream's bytes.

use crate::abi::words;
use crate::tunnel::{Arm, Direction};

/// A record's header, in bytes.
pub const HEADER_LENGTH: usize = 32;

/// The longest packet that a record holds, from its IP header on, in bytes: what IPv6 can say, whose
/// header does not count itself.
pub const LONGEST_PACKET: u32 = 40 + 65_535;

/// The longest record, in bytes.
pub const LONGEST_RECORD: u32 = record_length(LONGEST_PACKET);

/// Bytes behind the ring, for a record that begins before its end.
pub const SLACK: u32 = (64 << 10) + 128;

/// Bytes before the ring: [`place`].
pub const CONTROL: u32 = 512;

/// Lanes of each CPU. Their numbers are twice the CPU's for the hot one, and one more for the deep one.
pub const LANES: u16 = 2;

/// Whether a lane is its CPU's deep one.
pub const fn is_deep(lane: u16) -> bool {
    !lane.is_multiple_of(LANES)
}

/// Bytes of a hot lane's ring: as much as a core's caches hold beside all else, since the tap comes back to
/// every place in it.
pub const HOT_RING: u32 = 512 << 10;

/// Where a CPU's deep lane begins, in bytes behind its hot one.
pub const DEEP: u32 = lane_size(HOT_RING);

/// The smallest ring of one CPU's deep lane, in bytes.
pub const SMALLEST_RING: u32 = 512 << 10;

/// The largest ring of one CPU's deep lane, in bytes: with what is around it, less than the verifier lets a
/// program reach in one value.
pub const LARGEST_RING: u32 = 256 << 20;

words! {
    /// Places of words in a lane's control block. Each side writes to cache lines of its own. What concerns a
    /// whole CPU is in its hot lane's.
    pub mod place: usize {
        /// Where the next record will begin. Written by the tap, last of all that it writes.
        HEAD = 0;
        /// Where the record ended that ran into the slack last. Written by the tap before the head.
        CROSSING = 8;
        /// Hot lane: 1 while the tap writes a record; only used where programs may interrupt each other.
        BUSY = 16;
        /// What the tap has put in: [`crate::counters::Sent`]. Written by the tap, before the head. What neither
        /// lane has room for counts as refused by the deep one.
        SENT = 24;
        /// Hot lane: 1 = the reader sleeps, and wants to be woken. Set by the reader, cleared by the tap.
        ASLEEP = 128;
        /// Names this life of the ring: positions and numbers of another one begin anew. Written once by the
        /// daemon, for CPU 0.
        LIFE = 384;
        /// Where the oldest record begins that may not be overwritten. Written by the reader.
        TAIL = 256;
    }
}

/// Version of the record's layout.
const FORMAT_VERSION: u8 = 1;

const FLAG_RESPONSE: u8 = 1;
const FLAG_CANARY: u8 = 2;
const FLAG_SHIP: u8 = 4;
const FLAG_LOOK: u8 = 8;

/// For whom a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// The agent, to which the sender ships it.
    Sender,
    /// The local reader in the daemon.
    Look,
}

/// What a record says of its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Which way the packet went.
    pub direction: Direction,
    /// Which version answers its connection.
    pub arm: Arm,
    /// For whom it is.
    pub reader: Reader,
    /// The lane in which it lies, see [`LANES`]: numbers count per agent and lane.
    pub lane: u16,
    /// The service's id.
    pub service: u32,
    /// The packet from its IP header on, in bytes.
    pub packet_length: u32,
    /// The copy's number, from 0.
    pub sequence: u64,
    /// When the tap saw the packet, on its monotonic clock, in nanoseconds.
    pub time_ns: u64,
}

/// Bytes of a record of a packet with `packet_length` bytes: header, packet, and padding to a multiple
/// of 8.
#[inline(always)]
pub const fn record_length(packet_length: u32) -> u32 {
    (HEADER_LENGTH as u32 + packet_length + 7) & !7
}

/// Bytes of a lane whose ring has `ring` bytes.
const fn lane_size(ring: u32) -> u32 {
    CONTROL + ring + SLACK
}

/// Bytes of both lanes of a CPU whose deep ring has `ring` bytes: the size of the map's value.
pub const fn value_size(ring: u32) -> u32 {
    DEEP + lane_size(ring)
}

/// Bytes of the deep ring in a map's value of so many bytes; nothing where that is another layout's.
pub fn ring_in(value: u64) -> Option<u32> {
    let ring = u32::try_from(value).ok()?.checked_sub(value_size(0))?;
    (ring.is_power_of_two() && (SMALLEST_RING..=LARGEST_RING).contains(&ring)).then_some(ring)
}

/// The size of each CPU's deep ring, when all of a host's deep rings together may have `total` bytes: a
/// power of two, at least [`SMALLEST_RING`].
pub fn ring_size(total: u64, rings: u64) -> u32 {
    let each =
        (total / rings.max(1)).clamp(u64::from(SMALLEST_RING), u64::from(LARGEST_RING)) as u32;
    1 << each.ilog2()
}

impl Record {
    /// The header's bytes, as words.
    #[inline(always)]
    pub const fn encode(&self) -> [u64; HEADER_LENGTH / 8] {
        let flags = (self.direction as u8 * FLAG_RESPONSE)
            | (self.arm as u8 * FLAG_CANARY)
            | match self.reader {
                Reader::Sender => FLAG_SHIP,
                Reader::Look => FLAG_LOOK,
            };
        [
            (record_length(self.packet_length) as u64
                | (FORMAT_VERSION as u64) << 32
                | (flags as u64) << 40
                | (self.lane as u64) << 48)
                .to_le(),
            (self.service as u64 | (self.packet_length as u64) << 32).to_le(),
            self.sequence.to_le(),
            self.time_ns.to_le(),
        ]
    }
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// Another version of the layout.
    UnknownVersion,
    /// Lengths that contradict each other.
    BadLength,
}

/// What a record says, its packet, and its length; nothing where bytes are missing.
pub type Decoded<'a> = Option<(Record, &'a [u8], usize)>;

/// A record at the beginning of `bytes`: what it says, its packet, and its length; nothing when more
/// bytes have to come first.
///
/// # Errors
/// When no further byte could make it one.
pub fn decode(bytes: &[u8]) -> Result<Decoded<'_>, DecodeError> {
    let Some(header) = bytes.first_chunk::<HEADER_LENGTH>() else {
        return Ok(None);
    };
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&header[at * 8..at * 8 + 8]);
        u64::from_le_bytes(word)
    };
    let [first, second] = [word(0), word(1)];
    if (first >> 32) as u8 != FORMAT_VERSION {
        return Err(DecodeError::UnknownVersion);
    }
    let (length, packet_length) = (first as u32, (second >> 32) as u32);
    if packet_length > LONGEST_PACKET || length != record_length(packet_length) {
        return Err(DecodeError::BadLength);
    }
    let length = length as usize;
    let Some(record) = bytes.get(..length) else {
        return Ok(None);
    };
    let flags = (first >> 40) as u8;
    let said = Record {
        direction: if flags & FLAG_RESPONSE == 0 {
            Direction::Request
        } else {
            Direction::Response
        },
        arm: if flags & FLAG_CANARY == 0 {
            Arm::Stable
        } else {
            Arm::Canary
        },
        reader: if flags & FLAG_LOOK == 0 {
            Reader::Sender
        } else {
            Reader::Look
        },
        lane: (first >> 48) as u16,
        service: second as u32,
        packet_length,
        sequence: word(2),
        time_ns: word(3),
    };
    let packet = &record[HEADER_LENGTH..HEADER_LENGTH + packet_length as usize];
    Ok(Some((said, packet, length)))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::mem::size_of;
    use proptest::prelude::*;
    use std::vec::Vec;

    /// The bytes of a record.
    fn bytes(record: &Record, packet: &[u8]) -> Vec<u8> {
        let header = record.encode();
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.extend_from_slice(packet);
        bytes.resize(record_length(record.packet_length) as usize, 0xaa);
        bytes
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            flags in any::<[bool; 3]>(),
            numbers in any::<(u16, u32, u64, u64)>(),
            packet in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0_usize..300,
        ) {
            let (lane, service, sequence, time_ns) = numbers;
            let record = Record {
                direction: if flags[0] { Direction::Response } else { Direction::Request },
                arm: if flags[1] { Arm::Canary } else { Arm::Stable },
                reader: if flags[2] { Reader::Look } else { Reader::Sender },
                lane,
                service,
                packet_length: packet.len() as u32,
                sequence,
                time_ns,
            };
            let whole = bytes(&record, &packet);
            prop_assert_eq!(decode(&whole), Ok(Some((record, &packet[..], whole.len()))));
            let part = &whole[..cut.min(whole.len() - 1)];
            prop_assert_eq!(decode(part), Ok(None));
        }

        #[test]
        fn decoding_never_panics(bytes in any::<Vec<u8>>()) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_host_s_rings_share_what_it_gives() {
        let check = |total, rings, expected: u32| assert_eq!(ring_size(total, rings), expected);
        check(256 << 20, 2, 128 << 20);
        check(256 << 20, 96, 2 << 20);
        check(256 << 20, 1024, SMALLEST_RING);
        check(0, 0, SMALLEST_RING);
        check(u64::MAX, 1, LARGEST_RING);
    }

    #[test]
    fn a_value_s_size_tells_its_ring_s() {
        let mut ring = SMALLEST_RING;
        while ring <= LARGEST_RING {
            assert_eq!(ring_in(value_size(ring).into()), Some(ring));
            // What had one lane named its ring, and had this size.
            assert_eq!(ring_in(ring.into()), None);
            assert_eq!(ring_in(lane_size(ring).into()), None);
            ring *= 2;
        }
        assert_eq!(ring_in(0), None);
        assert_eq!(ring_in(u64::MAX), None);
    }

    #[test]
    fn the_slack_holds_what_runs_over() {
        assert!(LONGEST_RECORD <= SLACK && CONTROL as usize >= place::LIFE + 8);
        // Both control blocks begin a cache line.
        assert!(
            DEEP.is_multiple_of(64) && HOT_RING.is_power_of_two() && HOT_RING >= LONGEST_RECORD
        );
        assert!(place::SENT + size_of::<crate::counters::Sent>() <= place::ASLEEP);
    }
}
