//! From the bytes of several rings to records in the order of their time. Pure.
//!
//! Every CPU's records come in order; those of different CPUs come stretch by stretch. A record is
//! held back until no older one can come: until the tap has said so, at the end of a round. What is
//! held back is bounded: a record that so much has been read after is released anyway, and all that
//! are older with it.
//!
//! ```text
//!   CPU 0   a────c──────f─g┊          held: f, g        ┊ known up to here, of all CPUs
//!   CPU 1      b───d──e────┊──h──i    held: h, i
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Buf as _, Bytes};
use mirror_common::record::{self, HEADER_LENGTH, Record};

use super::error::Broken;
use crate::transport::frame::Position;

/// CPUs of one tap.
const MAX_CPUS: usize = 1024;

/// No ring gets so far: 2^60 bytes.
const LAST_POSITION: u64 = 1 << 60;

/// What a held record costs, beside its bytes.
const OVERHEAD: usize = 128;

/// A record, out of its ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Copied {
    /// What it says.
    pub(crate) record: Record,
    /// Its packet, from the IP header on: a part of what was read together.
    pub(crate) packet: Bytes,
    /// Where it ends in its ring.
    pub(crate) end: u64,
}

impl Copied {
    /// What it costs to hold it, in bytes.
    pub(crate) fn cost(&self) -> usize {
        self.packet.len() + OVERHEAD
    }
}

#[derive(Debug)]
struct Held {
    /// No older than the one before it of the same CPU.
    time: u64,
    /// How much had been read when it came.
    read: u64,
    copied: Copied,
}

/// Invariant: `begun` is the last part of what lies before `next`, and shorter than a record.
#[derive(Debug, Default)]
struct Cpu {
    /// Where the next byte lies.
    next: u64,
    /// A record that is not whole.
    begun: Vec<u8>,
    queue: VecDeque<Held>,
    /// When the last one was copied.
    newest: u64,
}

/// Invariant: `fronts` has the first of every queue; `held` is the cost of all queues, and the
/// length of what is begun.
#[derive(Debug)]
pub(crate) struct Order {
    cpus: BTreeMap<u16, Cpu>,
    fronts: BTreeSet<(u64, u16)>,
    /// CPUs whose rings hold more than this round has brought.
    more: BTreeSet<u16>,
    held: usize,
    read: u64,
    /// How much may be read after a record that is held.
    most: u64,
}

impl Order {
    /// Holds records back while no more than `most` bytes have been read after them.
    pub(crate) fn new(most: u64) -> Self {
        Self {
            cpus: BTreeMap::new(),
            fronts: BTreeSet::new(),
            more: BTreeSet::new(),
            held: 0,
            read: 0,
            most,
        }
    }

    /// What everything that is held costs, in bytes.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Whether records are held back.
    pub(crate) fn holds_records(&self) -> bool {
        !self.fronts.is_empty()
    }

    /// Takes in bytes of a CPU's ring from `position` on. Those that are known already are left
    /// out; where some are missing, the record that they end goes with them.
    pub(crate) fn records(
        &mut self,
        cpu: u16,
        position: u64,
        more: bool,
        mut bytes: Bytes,
    ) -> Result<(), Broken> {
        if position > LAST_POSITION {
            return Err(Broken::Position(position));
        }
        if self.cpus.len() >= MAX_CPUS && !self.cpus.contains_key(&cpu) {
            return Err(Broken::TooManyCpus(MAX_CPUS));
        }
        self.read += bytes.len() as u64;
        if more {
            self.more.insert(cpu);
        } else {
            self.more.remove(&cpu);
        }
        let ring = self.cpus.entry(cpu).or_insert_with(|| Cpu {
            next: position,
            ..Cpu::default()
        });
        if position > ring.next {
            self.held -= ring.begun.len();
            ring.begun = Vec::new();
            ring.next = position;
        }
        let known = usize::try_from(ring.next - position).unwrap_or(usize::MAX);
        bytes.advance(known.min(bytes.len()));
        let (begun, first) = (ring.begun.len(), ring.queue.len());
        let result = ring.take(cpu, bytes, self.read);
        self.held = self.held - begun + ring.begun.len();
        let new = ring.queue.range(first..);
        self.held += new.map(|held| held.copied.cost()).sum::<usize>();
        if first == 0
            && let Some(front) = ring.queue.front()
        {
            self.fronts.insert((front.time, cpu));
        }
        result
    }

    /// The round is over: every record older than `until` has come, but of CPUs that have more.
    pub(crate) fn round(&mut self, until: u64, out: &mut Vec<Copied>) {
        let more = std::mem::take(&mut self.more);
        let newest = more
            .iter()
            .filter_map(|cpu| Some(self.cpus.get(cpu)?.newest));
        let known = newest.fold(until, u64::min);
        self.release(known, out);
    }

    /// Releases what has been held for too long.
    pub(crate) fn release_old(&mut self, out: &mut Vec<Copied>) {
        let Some(old) = self.read.checked_sub(self.most) else {
            return;
        };
        let too_old = self.fronts.iter().filter_map(|(_, cpu)| {
            let queue = &self.cpus.get(cpu)?.queue;
            let count = queue.partition_point(|held| held.read < old);
            Some(queue.get(count.checked_sub(1)?)?.time)
        });
        if let Some(time) = too_old.max() {
            self.release(time, out);
        }
    }

    /// Releases everything.
    pub(crate) fn release_all(&mut self, out: &mut Vec<Copied>) {
        self.release(u64::MAX, out);
    }

    /// Nothing more comes: releases what is whole, and forgets what is begun.
    pub(crate) fn break_off(&mut self, out: &mut Vec<Copied>) {
        self.release_all(out);
        self.more.clear();
        for cpu in self.cpus.values_mut() {
            cpu.next -= cpu.begun.len() as u64;
            cpu.begun = Vec::new();
        }
        self.held = 0;
    }

    /// The rings are others from now on.
    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.most);
    }

    /// Goes on at these positions.
    pub(crate) fn resume(&mut self, positions: &[Position]) {
        for &Position { cpu, position } in positions.iter().take(MAX_CPUS) {
            let next = position.min(LAST_POSITION);
            let ring = Cpu {
                next,
                ..Cpu::default()
            };
            self.cpus.insert(cpu, ring);
        }
    }

    /// Where to go on.
    pub(crate) fn positions(&self) -> Vec<Position> {
        let positions = self.cpus.iter();
        positions
            .map(|(&cpu, ring)| Position {
                cpu,
                position: ring.next - ring.begun.len() as u64,
            })
            .collect()
    }

    /// Releases every record up to `time`, the oldest first.
    fn release(&mut self, time: u64, out: &mut Vec<Copied>) {
        while let Some(&(front, cpu)) = self.fronts.first()
            && front <= time
        {
            self.fronts.pop_first();
            let others = self.fronts.first().copied().unwrap_or((u64::MAX, u16::MAX));
            let Some(ring) = self.cpus.get_mut(&cpu) else {
                continue;
            };
            // Usually many in a row: CPUs copy whole super-packets and bursts.
            while let Some(held) = ring
                .queue
                .pop_front_if(|held| held.time <= time && (held.time, cpu) <= others)
            {
                self.held -= held.copied.cost();
                out.push(held.copied);
            }
            match ring.queue.front() {
                Some(front) => drop(self.fronts.insert((front.time, cpu))),
                // What a burst needed is not kept.
                None => ring.queue.shrink_to(64),
            }
        }
    }
}

impl Cpu {
    /// Takes bytes in that follow those before.
    fn take(&mut self, cpu: u16, mut bytes: Bytes, read: u64) -> Result<(), Broken> {
        let end = self.next + bytes.len() as u64;
        self.next = end;
        if !self.begun.is_empty() {
            let Some(whole) = self.complete(&mut bytes)? else {
                return Ok(());
            };
            self.record(cpu, &whole, end - bytes.len() as u64, read)?;
        }
        while let Some((_, _, length)) = record::decode(&bytes).map_err(Broken::Record)? {
            let whole = bytes.split_to(length);
            self.record(cpu, &whole, end - bytes.len() as u64, read)?;
        }
        self.begun.extend_from_slice(&bytes);
        Ok(())
    }

    /// Moves bytes over to the record that is begun; the whole record, once it is.
    fn complete(&mut self, bytes: &mut Bytes) -> Result<Option<Bytes>, Broken> {
        loop {
            let needed = match record::decode(&self.begun).map_err(Broken::Record)? {
                Some(_) => return Ok(Some(std::mem::take(&mut self.begun).into())),
                None => match self.begun.first_chunk::<4>() {
                    Some(length) if self.begun.len() >= HEADER_LENGTH => {
                        u32::from_le_bytes(*length) as usize
                    }
                    _ => HEADER_LENGTH,
                },
            };
            let missing = needed.saturating_sub(self.begun.len());
            if bytes.is_empty() || missing == 0 {
                return Ok(None);
            }
            self.begun.reserve_exact(missing);
            let taken = missing.min(bytes.len());
            self.begun.extend_from_slice(&bytes.split_to(taken));
        }
    }

    fn record(&mut self, cpu: u16, whole: &Bytes, end: u64, read: u64) -> Result<(), Broken> {
        let Some((record, packet, _)) = record::decode(whole).map_err(Broken::Record)? else {
            return Ok(());
        };
        if record.cpu != cpu {
            return Err(Broken::OtherCpu {
                ring: cpu,
                of: record.cpu,
            });
        }
        self.newest = self.newest.max(record.time_ns);
        self.queue.push_back(Held {
            time: self.newest,
            read,
            copied: Copied {
                record,
                packet: whole.slice_ref(packet),
                end,
            },
        });
        Ok(())
    }
}
