//! A ring as its reader sees it: the kernel's memory, mapped into ours.
//!
//! How records lie in it is told in [`mirror_common::record`].

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use mirror_common::counters::Sent;
use mirror_common::record::{CONTROL, HEADER_LENGTH, SLACK, place, value_size};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// The rings of all CPUs for one reader. Positions of one CPU have nothing to do with another's.
#[derive(Debug)]
pub struct Ring {
    memory: Memory,
    /// Bytes from one CPU's value to the next one's.
    stride: usize,
    /// Bytes of each CPU's ring.
    size: u64,
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
    /// Maps a ring of `cpus` CPUs with `size` bytes each.
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
            size: size.into(),
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

    /// CPUs that may write: `0..cpus()`.
    pub fn cpus(&self) -> u16 {
        self.cpus
    }

    /// Bytes of each CPU's ring.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Where a CPU's next record will begin. Everything below can be read.
    pub fn head(&self, cpu: u16) -> u64 {
        self.word(cpu, place::HEAD).load(Ordering::Acquire)
    }

    /// Where a CPU's oldest record begins that is kept.
    pub fn tail(&self, cpu: u16) -> u64 {
        self.word(cpu, place::TAIL).load(Ordering::Acquire)
    }

    /// What the tap has put in. Read after a head, it counts at least what lies below that.
    pub fn sent(&self, cpu: u16) -> Sent {
        let word = |at: usize| {
            let place = place::SENT + at * size_of::<u64>();
            self.word(cpu, place).load(Ordering::Relaxed)
        };
        Sent {
            copies: word(0),
            bytes: word(1),
            refused: word(2),
        }
    }

    /// What the tap has put in, CPU by CPU.
    pub fn sent_by_cpu(&self) -> Vec<Sent> {
        (0..self.cpus).map(|cpu| self.sent(cpu)).collect()
    }

    /// Copies for which there was no room.
    pub fn refused(&self) -> u64 {
        (0..self.cpus).map(|cpu| self.sent(cpu).refused).sum()
    }

    /// Gives everything below `position` back to the tap. It never goes back, nor beyond the head.
    pub fn release(&self, cpu: u16, position: u64) {
        let position = position.min(self.head(cpu));
        self.word(cpu, place::TAIL)
            .fetch_max(position, Ordering::AcqRel);
    }

    /// Whether a CPU's ring holds nothing.
    pub fn is_empty(&self, cpu: u16) -> bool {
        self.head(cpu) == self.tail(cpu)
    }

    /// Bytes that all rings hold.
    pub fn held(&self) -> u64 {
        (0..self.cpus)
            .map(|cpu| self.head(cpu).saturating_sub(self.tail(cpu)))
            .sum()
    }

    /// How full the fullest ring is, 0..=1.
    pub fn fullness(&self) -> f64 {
        let held = |cpu| self.head(cpu).saturating_sub(self.tail(cpu));
        let most = (0..self.cpus).map(held).max().unwrap_or(0);
        most as f64 / self.size as f64
    }

    /// Asks the tap to ring the bell with the next record of each CPU. Look at the heads afterwards:
    /// what came before did not ring.
    pub fn sleep(&self) {
        for cpu in 0..self.cpus {
            self.word(cpu, place::ASLEEP).store(1, Ordering::SeqCst);
        }
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    /// Has the tap leave the bell alone.
    pub fn wake(&self) {
        for cpu in 0..self.cpus {
            self.word(cpu, place::ASLEEP).store(0, Ordering::Relaxed);
        }
    }

    /// When the record was made that begins at `position`, below a head, in nanoseconds; and where the next
    /// one begins.
    pub fn record_at(&self, cpu: u16, position: u64) -> (u64, u64) {
        let offset = (position % self.size) as usize;
        let start = self.value(cpu) + CONTROL as usize + offset;
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
    pub fn stretch(&self, cpu: u16, from: u64, to: u64, limit: u64) -> (&[u8], u64) {
        let turn = (from / self.size + 1) * self.size;
        // A record that ended at the turn has crossed nothing: the word is then an older turn's.
        let crossing = self.word(cpu, place::CROSSING).load(Ordering::Relaxed);
        let crosses = crossing > turn && crossing <= turn + u64::from(SLACK) && crossing <= to;
        let in_one_piece = if crosses { crossing } else { turn };
        let wanted = to.min(from + limit);
        // Not even where it would end at the turn: what crosses that goes on behind it.
        let end = if wanted >= turn { in_one_piece } else { wanted };
        let end = end.max(from);
        let offset = (from % self.size) as usize;
        let length = ((end - from) as usize).min(self.size as usize + SLACK as usize - offset);
        let start = self.value(cpu) + CONTROL as usize + offset;
        // SAFETY: ring and slack of this CPU's value, cut to what they hold. The tap has written these
        // bytes before it moved the head there, and does not touch them until they are released.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(start), length) };
        (bytes, from + length as u64)
    }

    /// Where a CPU's value begins.
    fn value(&self, cpu: u16) -> usize {
        debug_assert!(cpu < self.cpus, "CPU {cpu} of {}", self.cpus);
        usize::from(cpu.min(self.cpus.saturating_sub(1))) * self.stride
    }

    fn word(&self, cpu: u16, place: usize) -> &AtomicU64 {
        let offset = self.value(cpu) + place;
        // SAFETY: within the CPU's control block, on a multiple of 8, and only ever used as an atomic
        // word, here and by the tap.
        unsafe { AtomicU64::from_ptr(self.memory.start.as_ptr().add(offset).cast()) }
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    use mirror_common::record::{LONGEST_PACKET, Record, SMALLEST_RING, record_length};

    use super::*;

    impl Ring {
        /// A ring in ordinary memory, to which [`Ring::write`] writes as the tap does.
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
                size: SMALLEST_RING.into(),
                cpus,
            }
        }

        /// Puts a record into a CPU's ring; says whether there was room.
        pub(crate) fn write(&self, record: &Record, packet: &[u8]) -> bool {
            assert!(packet.len() <= LONGEST_PACKET as usize);
            let (cpu, length) = (record.cpu, u64::from(record_length(packet.len() as u32)));
            let (head, tail) = (self.head(cpu), self.tail(cpu));
            if head + length - tail > self.size {
                return false;
            }
            let offset = (head % self.size) as usize;
            let start = self.value(cpu) + CONTROL as usize + offset;
            // SAFETY: as the tap does: a record that begins within the ring ends before the slack does.
            unsafe {
                let to = self.memory.start.as_ptr().add(start);
                to.cast::<[u64; 4]>().write(record.encode());
                to.add(32)
                    .copy_from_nonoverlapping(packet.as_ptr(), packet.len());
            }
            if offset as u64 + length > self.size {
                self.word(cpu, place::CROSSING)
                    .store(head + length, Ordering::Relaxed);
            }
            self.word(cpu, place::SENT).fetch_add(1, Ordering::Relaxed);
            self.word(cpu, place::SENT + 8)
                .fetch_add(packet.len() as u64, Ordering::Relaxed);
            self.word(cpu, place::HEAD)
                .store(head + length, Ordering::Release);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use mirror_common::record::{Reader, Record, decode};
    use mirror_common::tunnel::{Arm, Direction};
    use proptest::prelude::*;

    use super::*;

    fn record(sequence: u64, packet: &[u8]) -> Record {
        Record {
            direction: Direction::Request,
            arm: Arm::Stable,
            reader: Reader::Sender,
            cpu: 0,
            service: 7,
            packet_length: packet.len() as u32,
            sequence,
            time_ns: sequence,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// Whatever is written, read by stretches of whatever length, and released whenever: every
        /// record comes out once, whole, and in order.
        #[test]
        fn everything_comes_out_as_it_went_in(
            steps in proptest::collection::vec((1_usize..65_000, 1_u64..200_000, any::<bool>()), 1..200),
        ) {
            let ring = Ring::of_memory(1);
            let (mut written, mut expected) = (0, VecDeque::new());
            let (mut sent, mut bytes, mut position) = (0, Vec::new(), 0);
            for (length, limit, release) in steps {
                let packet: Vec<u8> = (0..length).map(|at| (at as u64 ^ written) as u8).collect();
                if ring.write(&record(written, &packet), &packet) {
                    written += 1;
                    expected.push_back(packet);
                }
                let (stretch, end) = ring.stretch(0, sent, ring.head(0), limit);
                prop_assert_eq!(stretch.len() as u64, end - sent);
                prop_assert!(end > sent || sent == ring.head(0), "it goes on");
                bytes.extend_from_slice(stretch);
                sent = end;
                while let Some((said, packet, length)) = decode(&bytes).unwrap() {
                    prop_assert_eq!(Some(packet.to_vec()), expected.pop_front());
                    prop_assert_eq!(said.sequence + expected.len() as u64 + 1, written);
                    position += length as u64;
                    bytes.drain(..length);
                }
                if release {
                    ring.release(0, position);
                }
            }
        }
    }

    #[test]
    fn what_is_released_is_not_taken_back_nor_more_than_there_is() {
        let ring = Ring::of_memory(2);
        assert!(ring.is_empty(1));
        ring.write(&record(0, &[1; 100]), &[1; 100]);
        assert_eq!((ring.head(0), ring.held()), (136, 136));
        ring.release(0, 1 << 40);
        ring.release(0, 0);
        assert_eq!((ring.tail(0), ring.held()), (136, 0));
    }
}
