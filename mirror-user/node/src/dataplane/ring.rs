//! A ring as its reader sees it: the kernel's memory, mapped into ours.
//!
//! How records lie in it is told in [`mirror_common::record`].

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use mirror_common::counters::Sent;
use mirror_common::record::{
    CONTROL, DEEP, HEADER_LENGTH, HOT_RING, LANES, SLACK, is_deep, place, value_size,
};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The rings of all CPUs for one reader: two lanes each. Positions of one lane have nothing to do with
/// another's.
#[derive(Debug)]
pub struct Ring {
    memory: Memory,
    /// Bytes from one CPU's value to the next one's.
    stride: usize,
    /// Bytes of each CPU's deep ring.
    deep: u64,
    cpus: u16,
}

#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    length: usize,
    /// Keeps the map; nothing where the memory is not a map's.
    _map: Option<OwnedFd>,
}

// SAFETY: the memory is shared with the kernel in any case: words are read and written atomically, and
// the rest is only read, between two positions that the words give.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        if self._map.is_some() {
            // SAFETY: it was mapped with this length, and nothing borrows from it any more.
            let _ = unsafe { munmap(self.start.cast(), self.length) };
        }
    }
}

impl Ring {
    /// Maps a ring of `cpus` CPUs whose deep lanes have `size` bytes each.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn map(map: OwnedFd, size: u32, cpus: u16) -> std::io::Result<Self> {
        let stride = value_size(size) as usize;
        let length = stride * usize::from(cpus);
        let whole = std::num::NonZeroUsize::new(length).ok_or(std::io::ErrorKind::InvalidInput)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, at an address of the kernel's choice.
        let start = unsafe {
            mmap(
                None,
                whole,
                protection,
                MapFlags::MAP_SHARED,
                map.as_fd(),
                0,
            )
        }?;
        Ok(Self {
            memory: Memory {
                start: start.cast(),
                length,
                _map: Some(map),
            },
            stride,
            deep: size.into(),
            cpus,
        })
    }

    /// Names this life of the ring: what is known of another one's positions says nothing of these.
    pub fn life(&self) -> u64 {
        self.word(0, place::LIFE).load(Ordering::Relaxed)
    }

    /// Gives a ring that was just made a name.
    pub(super) fn begin_life(&self, name: u64) {
        let word = self.word(0, place::LIFE);
        // Whoever made it may have been killed before.
        let _ = word.compare_exchange(0, name, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Lanes into which is written: `0..lanes()`.
    pub fn lanes(&self) -> u16 {
        self.cpus * LANES
    }

    /// Bytes of a lane's ring.
    pub fn size(&self, lane: u16) -> u64 {
        match is_deep(lane) {
            true => self.deep,
            false => HOT_RING.into(),
        }
    }

    /// Bytes for which all lanes have room.
    pub fn capacity(&self) -> u64 {
        self.capacity_of_cpu() * u64::from(self.cpus)
    }

    fn capacity_of_cpu(&self) -> u64 {
        self.deep + u64::from(HOT_RING)
    }

    /// Where a lane's next record will begin. Everything below can be read.
    pub fn head(&self, lane: u16) -> u64 {
        self.word(lane, place::HEAD).load(Ordering::Acquire)
    }

    /// The heads of all lanes, both of a CPU as they were at one moment: what lies below them is all that
    /// the CPU had written by then.
    pub fn heads(&self) -> Vec<u64> {
        let mut heads = Vec::with_capacity(self.lanes().into());
        for hot in (0..self.lanes()).step_by(LANES.into()) {
            let mut before = self.head(hot);
            let both = loop {
                let deep = self.head(hot + 1);
                let after = self.head(hot);
                if before == after {
                    break [after, deep];
                }
                before = after;
            };
            heads.extend(both);
        }
        heads
    }

    /// Where a lane's oldest record begins that is kept.
    pub fn tail(&self, lane: u16) -> u64 {
        self.word(lane, place::TAIL).load(Ordering::Acquire)
    }

    /// What the tap has put in. Read after a head, it counts at least what lies below that.
    pub fn sent(&self, lane: u16) -> Sent {
        let word = |at: usize| {
            let place = place::SENT + at * size_of::<u64>();
            self.word(lane, place).load(Ordering::Relaxed)
        };
        Sent {
            copies: word(0),
            bytes: word(1),
            refused: word(2),
        }
    }

    /// What the tap has put in, lane by lane.
    pub fn sent_by_lane(&self) -> Vec<Sent> {
        (0..self.lanes()).map(|lane| self.sent(lane)).collect()
    }

    /// The same, CPU by CPU: not what copies are numbered by.
    pub fn sent_by_cpu(&self) -> Vec<Sent> {
        let both = |hot: Sent, deep: Sent| Sent {
            copies: hot.copies + deep.copies,
            bytes: hot.bytes + deep.bytes,
            refused: hot.refused + deep.refused,
        };
        (0..self.lanes())
            .step_by(LANES.into())
            .map(|hot| both(self.sent(hot), self.sent(hot + 1)))
            .collect()
    }

    /// Copies for which there was no room.
    pub fn refused(&self) -> u64 {
        (0..self.lanes()).map(|lane| self.sent(lane).refused).sum()
    }

    /// Gives everything below `position` back to the tap. It never goes back, nor beyond the head.
    pub fn release(&self, lane: u16, position: u64) {
        let position = position.min(self.head(lane));
        self.word(lane, place::TAIL)
            .fetch_max(position, Ordering::AcqRel);
    }

    /// Whether no lane holds anything.
    pub fn is_empty(&self) -> bool {
        (0..self.lanes()).all(|lane| self.held_by(lane) == 0)
    }

    /// Bytes that a lane holds.
    pub fn held_by(&self, lane: u16) -> u64 {
        self.head(lane).saturating_sub(self.tail(lane))
    }

    /// Bytes that all lanes hold.
    pub fn held(&self) -> u64 {
        (0..self.lanes()).map(|lane| self.held_by(lane)).sum()
    }

    /// How full the fullest CPU's lanes are, 0..=1.
    pub fn fullness(&self) -> f64 {
        let hot = (0..self.lanes()).step_by(LANES.into());
        let held = hot.map(|hot| self.held_by(hot) + self.held_by(hot + 1));
        held.max().unwrap_or(0) as f64 / self.capacity_of_cpu() as f64
    }

    /// Asks the tap to ring the bell with the next record of each CPU. Look at the heads afterwards:
    /// what came before did not ring.
    pub fn sleep(&self) {
        for cpu in 0..self.cpus {
            let hot = cpu * LANES;
            self.word(hot, place::ASLEEP).store(1, Ordering::SeqCst);
        }
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Has the tap leave the bell alone.
    pub fn wake(&self) {
        for cpu in 0..self.cpus {
            let hot = cpu * LANES;
            self.word(hot, place::ASLEEP).store(0, Ordering::Relaxed);
        }
    }

    /// When the record was made that begins at `position`, below a head, in nanoseconds; and where the next
    /// one begins.
    pub fn record_at(&self, lane: u16, position: u64) -> (u64, u64) {
        let offset = (position % self.size(lane)) as usize;
        let start = self.start(lane) + CONTROL as usize + offset;
        // SAFETY: a record that begins within the ring ends before the slack does, and the tap does not
        // touch it until it is released.
        let header = unsafe {
            self.memory
                .start
                .as_ptr()
                .add(start)
                .cast::<[u64; HEADER_LENGTH / 8]>()
                .read_unaligned()
        };
        let [first, _, _, time_ns] = header.map(u64::from_le);
        let length = u64::from(first as u32).max(HEADER_LENGTH as u64);
        (time_ns, position + length)
    }

    /// The bytes from `from` on in one piece, not beyond `to`, which a head once was, and no more than
    /// about `limit`; and the position behind them. They may end within a record, but not within one
    /// that runs into the slack. What lies there is the reader's until it is released.
    pub fn stretch(&self, lane: u16, from: u64, to: u64, limit: u64) -> (&[u8], u64) {
        let size = self.size(lane);
        let turn = (from / size + 1) * size;
        // A record that ended at the turn has crossed nothing: the word is then an older turn's.
        let crossing = self.word(lane, place::CROSSING).load(Ordering::Relaxed);
        let crosses = crossing > turn && crossing <= turn + u64::from(SLACK) && crossing <= to;
        let in_one_piece = if crosses { crossing } else { turn };
        let wanted = to.min(from + limit);
        // Not even where it would end at the turn: what crosses that goes on behind it.
        let end = if wanted >= turn { in_one_piece } else { wanted };
        let end = end.max(from);
        let offset = (from % size) as usize;
        let length = ((end - from) as usize).min(size as usize + SLACK as usize - offset);
        let start = self.start(lane) + CONTROL as usize + offset;
        // SAFETY: the lane's ring and slack, cut to what they hold. The tap has written these
        // bytes before it moved the head there, and does not touch them until they are released.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(start), length) };
        (bytes, from + length as u64)
    }

    /// Where a lane begins.
    fn start(&self, lane: u16) -> usize {
        debug_assert!(lane < self.lanes(), "lane {lane} of {}", self.lanes());
        let lane = lane.min(self.lanes().saturating_sub(1));
        let value = usize::from(lane / LANES) * self.stride;
        match is_deep(lane) {
            true => value + DEEP as usize,
            false => value,
        }
    }

    fn word(&self, lane: u16, place: usize) -> &AtomicU64 {
        let offset = self.start(lane) + place;
        // SAFETY: within the lane's control block, on a multiple of 8, and only ever used as an atomic
        // word, here and by the tap.
        unsafe { AtomicU64::from_ptr(self.memory.start.as_ptr().add(offset).cast()) }
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use mirror_common::record::{LONGEST_PACKET, Record, SMALLEST_RING, record_length};

    use super::*;

    impl Ring {
        /// A ring in ordinary memory, to which [`Ring::write`] and [`Ring::copy`] write as the tap does.
        pub(crate) fn of_memory(cpus: u16) -> Self {
            let stride = value_size(SMALLEST_RING) as usize;
            let words = vec![0_u64; stride * usize::from(cpus) / 8].leak();
            Self {
                memory: Memory {
                    start: NonNull::from(&mut *words).cast(),
                    length: stride * usize::from(cpus),
                    _map: None,
                },
                stride,
                deep: SMALLEST_RING.into(),
                cpus,
            }
        }

        /// Puts a record into the first lane of a CPU that has room, and says which; `record` is told what
        /// its number is there, too.
        pub(crate) fn copy(&self, cpu: u16, mut record: Record, packet: &[u8]) -> Option<u16> {
            let mut lanes = cpu * LANES..(cpu + 1) * LANES;
            lanes.find(|&lane| {
                record.lane = lane;
                record.sequence = self.sent(lane).copies;
                self.write(&record, packet)
            })
        }

        /// Puts a record into its lane; says whether there was room.
        pub(crate) fn write(&self, record: &Record, packet: &[u8]) -> bool {
            assert!(packet.len() <= LONGEST_PACKET as usize);
            let (lane, length) = (record.lane, u64::from(record_length(packet.len() as u32)));
            let (head, tail) = (self.head(lane), self.tail(lane));
            if head + length - tail > self.size(lane) {
                return false;
            }
            let offset = (head % self.size(lane)) as usize;
            let start = self.start(lane) + CONTROL as usize + offset;
            // SAFETY: as the tap does: a record that begins within the ring ends before the slack does.
            unsafe {
                let to = self.memory.start.as_ptr().add(start);
                to.cast::<[u64; 4]>().write(record.encode());
                to.add(32)
                    .copy_from_nonoverlapping(packet.as_ptr(), packet.len());
            }
            if offset as u64 + length > self.size(lane) {
                self.word(lane, place::CROSSING)
                    .store(head + length, Ordering::Relaxed);
            }
            self.word(lane, place::SENT).fetch_add(1, Ordering::Relaxed);
            self.word(lane, place::SENT + 8)
                .fetch_add(packet.len() as u64, Ordering::Relaxed);
            self.word(lane, place::HEAD)
                .store(head + length, Ordering::Release);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use mirror_common::record::{Reader, Record, decode, record_length};
    use mirror_common::tunnel::{Arm, Direction};
    use proptest::prelude::*;

    use super::*;

    fn record(sequence: u64, packet: &[u8]) -> Record {
        Record {
            direction: Direction::Request,
            arm: Arm::Stable,
            reader: Reader::Sender,
            lane: 0,
            service: 7,
            packet_length: packet.len() as u32,
            sequence,
            time_ns: sequence,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Whatever is written, read by stretches of whatever length, and released whenever: every
        /// record comes out of its lane once, whole, and in order.
        #[test]
        fn everything_comes_out_as_it_went_in(
            steps in proptest::collection::vec((1_usize..65_000, 1_u64..200_000, any::<bool>()), 1..200),
        ) {
            let ring = Ring::of_memory(1);
            let mut lanes = [Reading::default(), Reading::default()];
            for (step, (length, limit, release)) in steps.into_iter().enumerate() {
                let packet: Vec<u8> = (0..length).map(|at| (at ^ step) as u8).collect();
                let had_room = ring.held_by(0) + u64::from(record_length(length as u32)) <= ring.size(0);
                match ring.copy(0, record(0, &packet), &packet) {
                    Some(lane) => {
                        prop_assert_eq!(lane == 0, had_room);
                        lanes[usize::from(lane)].expected.push_back(packet);
                    }
                    None => prop_assert!(!had_room),
                }
                for (lane, reading) in (0..).zip(&mut lanes) {
                    reading.read(&ring, lane, limit)?;
                    if release {
                        ring.release(lane, reading.position);
                    }
                }
            }
        }
    }

    /// How far a lane has been read.
    #[derive(Default)]
    struct Reading {
        expected: VecDeque<Vec<u8>>,
        records: u64,
        got: u64,
        bytes: Vec<u8>,
        /// Where the next record begins.
        position: u64,
    }

    impl Reading {
        fn read(&mut self, ring: &Ring, lane: u16, limit: u64) -> Result<(), TestCaseError> {
            let (stretch, end) = ring.stretch(lane, self.got, ring.head(lane), limit);
            prop_assert_eq!(stretch.len() as u64, end - self.got);
            prop_assert!(end > self.got || end == ring.head(lane), "it goes on");
            self.bytes.extend_from_slice(stretch);
            self.got = end;
            while let Some((said, packet, length)) = decode(&self.bytes).unwrap() {
                prop_assert_eq!(Some(packet.to_vec()), self.expected.pop_front());
                prop_assert_eq!((said.lane, said.sequence), (lane, self.records));
                self.records += 1;
                self.position += length as u64;
                self.bytes.drain(..length);
            }
            Ok(())
        }
    }

    #[test]
    fn what_is_released_is_not_taken_back_nor_more_than_there_is() {
        let ring = Ring::of_memory(2);
        assert!(ring.is_empty());
        for lane in 0..ring.lanes() {
            let of_lane = Record {
                lane,
                ..record(0, &[1; 100])
            };
            assert!(ring.write(&of_lane, &[1; 100]));
            let held = 136 * u64::from(lane + 1);
            assert_eq!((ring.head(lane), ring.held()), (136, held));
        }
        assert_eq!(ring.heads(), [136; 4]);
        let copies = ring.sent_by_cpu().into_iter().map(|sent| sent.copies);
        assert!(copies.eq([2, 2]) && !ring.is_empty());
        for lane in 0..ring.lanes() {
            ring.release(lane, 1 << 40);
            ring.release(lane, 0);
            assert_eq!((ring.tail(lane), ring.held_by(lane)), (136, 0));
        }
        assert!(ring.is_empty() && ring.held() == 0);
    }
}
