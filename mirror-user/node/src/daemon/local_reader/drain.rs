//! Reads a ring empty, the records of all lanes in the order of their time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use mirror_common::record::{LONGEST_RECORD, Record, decode, is_deep};

use crate::dataplane::Ring;

/// So much is read before it is given back to the tap: more than a record has.
const STRETCH: u64 = 128 << 10;

/// What a look at a ring came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drained {
    /// Records that were read.
    pub(super) records: u64,
    /// The ring was so full that the tap may have found no room in it.
    pub(super) lost: bool,
    /// What lay there was no record, and was skipped.
    pub(super) broken: bool,
}

/// Reads what the ring holds now, and gives it back to the tap. A record that comes late, of a lane that
/// was slower than the others, is read the next time.
pub(super) fn drain(ring: &Ring, mut take: impl FnMut(&Record, &[u8])) -> Drained {
    let mut drained = Drained::default();
    let heads = (0..).zip(ring.heads());
    let cursors = heads.map(|(lane, head)| Cursor::new(ring, lane, head, &mut drained));
    let mut cursors: Vec<Cursor<'_>> = cursors.collect();
    let firsts = cursors.iter().enumerate();
    let mut oldest: BinaryHeap<_> = firsts
        .filter_map(|(at, cursor)| Some(Reverse((cursor.time()?, at))))
        .collect();
    while let Some(Reverse((_, at))) = oldest.pop() {
        let cursor = &mut cursors[at];
        // Usually many in a row: CPUs copy bursts.
        while let Some((record, packet)) = cursor.record() {
            take(&record, packet);
            drained.records += 1;
            cursor.advance(&mut drained);
            let others = oldest.peek().map(|Reverse((time, _))| *time);
            if let Some(time) = cursor.time()
                && others.is_some_and(|others| others < time)
            {
                oldest.push(Reverse((time, at)));
                break;
            }
        }
    }
    drained
}

/// How far one lane's records have been read.
struct Cursor<'a> {
    ring: &'a Ring,
    lane: u16,
    /// Where the next record begins, and where the last one ended when the look began.
    position: u64,
    head: u64,
    /// What was got from the ring and not read.
    bytes: &'a [u8],
    next: Option<(Record, &'a [u8], usize)>,
}

impl<'a> Cursor<'a> {
    fn new(ring: &'a Ring, lane: u16, head: u64, drained: &mut Drained) -> Self {
        let mut cursor = Self {
            ring,
            lane,
            position: ring.tail(lane),
            head,
            bytes: &[],
            next: None,
        };
        drained.lost |= cursor.may_have_overflowed();
        cursor.find(drained);
        cursor
    }

    fn time(&self) -> Option<u64> {
        self.next.as_ref().map(|(record, ..)| record.time_ns)
    }

    fn record(&self) -> Option<(Record, &'a [u8])> {
        self.next.map(|(record, packet, _)| (record, packet))
    }

    fn advance(&mut self, drained: &mut Drained) {
        if let Some((_, _, length)) = self.next.take() {
            self.bytes = &self.bytes[length..];
            self.position += length as u64;
        }
        self.find(drained);
    }

    /// Finds the next record. What came before it is given back once nothing more of what was got from
    /// the ring can be read.
    fn find(&mut self, drained: &mut Drained) {
        let mut found = decode(self.bytes);
        if found == Ok(None) {
            self.give_back(drained);
            (self.bytes, _) = self
                .ring
                .stretch(self.lane, self.position, self.head, STRETCH);
            found = decode(self.bytes);
        }
        self.next = found.unwrap_or_else(|_| {
            drained.broken = true;
            None
        });
        if self.next.is_none() {
            self.position = self.head;
            self.give_back(drained);
        }
    }

    fn give_back(&mut self, drained: &mut Drained) {
        drained.lost |= self.may_have_overflowed();
        self.bytes = &[];
        self.ring.release(self.lane, self.position);
    }

    /// Whether the tap may have found no room since the last time that some was given back: until then
    /// the ring only fills. What finds none in a hot lane has still a deep one.
    fn may_have_overflowed(&self) -> bool {
        let held = self.ring.held_by(self.lane);
        is_deep(self.lane) && held + u64::from(LONGEST_RECORD) > self.ring.size(self.lane)
    }
}

#[cfg(test)]
mod tests {
    use mirror_common::record::Reader;
    use mirror_common::tunnel::{Arm, Direction};
    use proptest::prelude::*;

    use super::*;

    fn record(lane: u16, time_ns: u64, packet: &[u8]) -> Record {
        Record {
            direction: Direction::Request,
            arm: Arm::Stable,
            reader: Reader::Look,
            lane,
            service: 7,
            packet_length: packet.len() as u32,
            sequence: 0,
            time_ns,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Whatever two CPUs write, and whenever it is read: each record comes out once, whole, by
        /// time, from whichever lane; and where one found no room, that is known.
        #[test]
        fn records_come_out_by_time_and_losses_are_known(
            steps in proptest::collection::vec(
                (0_u16..2, prop_oneof![1_usize..3_000, 50_000_usize..65_500], any::<u8>()),
                1..300,
            ),
        ) {
            let ring = Ring::of_memory(2);
            let (mut written, mut read, mut time) = (Vec::new(), Vec::new(), 0_u64);
            let mut refused = false;
            for (cpu, length, dice) in steps {
                time += 1;
                let packet = vec![time as u8; length];
                match ring.copy(cpu, record(0, time, &packet), &packet) {
                    Some(_) => written.push((time, length)),
                    None => refused = true,
                }
                if dice < 5 {
                    let before = read.len();
                    let drained = drain(&ring, |record, packet| {
                        assert!(packet.iter().all(|byte| *byte == record.time_ns as u8));
                        read.push((record.time_ns, packet.len()));
                    });
                    prop_assert_eq!(drained.records as usize, read.len() - before);
                    prop_assert!(drained.lost || !refused);
                    prop_assert!(!drained.broken && ring.held() == 0);
                    refused = false;
                }
            }
            drain(&ring, |record, packet| read.push((record.time_ns, packet.len())));
            prop_assert_eq!(read, written);
        }
    }

    #[test]
    fn what_is_no_record_is_skipped() {
        let ring = Ring::of_memory(1);
        let mut bad = record(0, 1, &[1; 40]);
        bad.packet_length = 9;
        ring.write(&bad, &[1; 40]);
        ring.write(&record(0, 2, b"ab"), b"ab");
        let drained = drain(&ring, |_, _| ());
        assert!(drained.broken && ring.held() == 0, "{drained:?}");
        ring.write(&record(0, 3, b"ab"), b"ab");
        let mut times = Vec::new();
        let drained = drain(&ring, |record, _| times.push(record.time_ns));
        assert!(!drained.broken && times == [3], "{drained:?}");
    }
}
