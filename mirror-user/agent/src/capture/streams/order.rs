//! From the bytes of several rings to records in the order of their time. Pure.
//!
//! Every lane's records come in order; those of different lanes come stretch by stretch. A record is
//! held back until no older one can come: until the tap has said so, at the end of a round. What is
//! held back is bounded: a record that so much has been read after is released anyway, and all that
//! are older with it.
//!
//! ```text
//!   lane 0   a────c──────f─g┊          held: f, g        ┊ known up to here, of all lanes
//!   lane 1      b───d──e────┊──h──i    held: h, i
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::{Buf as _, Bytes};
use mirror_common::record::{self, HEADER_LENGTH, Record};

use super::error::Broken;
use mirror_base::transport::frame::{MAX_LANES, Position};

/// No ring gets so far: 2^60 bytes.
const LAST_POSITION: u64 = 1 << 60;

/// What a held record costs, beside its bytes.
const OVERHEAD: usize = 128;

/// A record, out of its ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copied {
    /// What it says.
    pub record: Record,
    /// Its packet, from the IP header on: a part of what was read together.
    pub packet: Bytes,
    /// Where it ends in its ring.
    pub end: u64,
}

impl Copied {
    /// What it costs to hold it, in bytes.
    pub fn cost(&self) -> usize {
        self.packet.len() + OVERHEAD
    }
}

#[derive(Debug)]
struct Held {
    /// No older than the one before it of the same lane.
    time: u64,
    /// How much had been read when it came.
    read: u64,
    copied: Copied,
}

/// Invariant: `begun` is the last part of what lies before `next`, and shorter than a record.
#[derive(Debug, Default)]
struct Lane {
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
pub struct Order {
    lanes: BTreeMap<u16, Lane>,
    fronts: BTreeSet<(u64, u16)>,
    /// Lanes whose rings hold more than this round has brought.
    more: BTreeSet<u16>,
    held: usize,
    read: u64,
    /// How much may be read after a record that is held.
    most: u64,
}

impl Order {
    /// Holds records back while no more than `most` bytes have been read after them.
    pub fn new(most: u64) -> Self {
        Self {
            lanes: BTreeMap::new(),
            fronts: BTreeSet::new(),
            more: BTreeSet::new(),
            held: 0,
            read: 0,
            most,
        }
    }

    /// What everything that is held costs, in bytes.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether records are held back.
    pub fn holds_records(&self) -> bool {
        !self.fronts.is_empty()
    }

    /// Takes in bytes of a lane's ring from `position` on. Those that are known already are left
    /// out; where some are missing, the record that they end goes with them.
    pub fn records(
        &mut self,
        lane: u16,
        position: u64,
        more: bool,
        mut bytes: Bytes,
    ) -> Result<(), Broken> {
        if position > LAST_POSITION {
            return Err(Broken::Position(position));
        }
        if self.lanes.len() >= MAX_LANES && !self.lanes.contains_key(&lane) {
            return Err(Broken::TooManyLanes(MAX_LANES));
        }
        self.read += bytes.len() as u64;
        if more {
            self.more.insert(lane);
        } else {
            self.more.remove(&lane);
        }
        let ring = self.lanes.entry(lane).or_insert_with(|| Lane {
            next: position,
            ..Lane::default()
        });
        if position > ring.next {
            self.held -= ring.begun.len();
            ring.begun = Vec::new();
            ring.next = position;
        }
        let known = usize::try_from(ring.next - position).unwrap_or(usize::MAX);
        bytes.advance(known.min(bytes.len()));
        let (begun, first) = (ring.begun.len(), ring.queue.len());
        let result = ring.take(lane, bytes, self.read);
        self.held = self.held - begun + ring.begun.len();
        let new = ring.queue.range(first..);
        self.held += new.map(|held| held.copied.cost()).sum::<usize>();
        if first == 0
            && let Some(front) = ring.queue.front()
        {
            self.fronts.insert((front.time, lane));
        }
        result
    }

    /// The round is over: every record older than `until` has come, but of lanes that have more.
    pub fn round(&mut self, until: u64, out: &mut Vec<Copied>) {
        let more = std::mem::take(&mut self.more);
        let newest = more
            .iter()
            .filter_map(|lane| Some(self.lanes.get(lane)?.newest));
        let known = newest.fold(until, u64::min);
        self.release(known, out);
    }

    /// Releases what has been held for too long.
    pub fn release_old(&mut self, out: &mut Vec<Copied>) {
        let Some(old) = self.read.checked_sub(self.most) else {
            return;
        };
        let too_old = self.fronts.iter().filter_map(|(_, lane)| {
            let queue = &self.lanes.get(lane)?.queue;
            let count = queue.partition_point(|held| held.read < old);
            Some(queue.get(count.checked_sub(1)?)?.time)
        });
        if let Some(time) = too_old.max() {
            self.release(time, out);
        }
    }

    /// Releases everything.
    pub fn release_all(&mut self, out: &mut Vec<Copied>) {
        self.release(u64::MAX, out);
    }

    /// Nothing more comes: releases what is whole, and forgets what is begun.
    pub fn break_off(&mut self, out: &mut Vec<Copied>) {
        self.release_all(out);
        self.more.clear();
        for lane in self.lanes.values_mut() {
            lane.next -= lane.begun.len() as u64;
            lane.begun = Vec::new();
        }
        self.held = 0;
    }

    /// The rings are others from now on.
    pub fn clear(&mut self) {
        *self = Self::new(self.most);
    }

    /// Goes on at these positions.
    pub fn resume(&mut self, positions: &[Position]) {
        for &Position { lane, position } in positions.iter().take(MAX_LANES) {
            let next = position.min(LAST_POSITION);
            let ring = Lane {
                next,
                ..Lane::default()
            };
            self.lanes.insert(lane, ring);
        }
    }

    /// Where to go on.
    pub fn positions(&self) -> Vec<Position> {
        let positions = self.lanes.iter();
        positions
            .map(|(&lane, ring)| Position {
                lane,
                position: ring.next - ring.begun.len() as u64,
            })
            .collect()
    }

    /// Releases every record up to `time`, the oldest first.
    fn release(&mut self, time: u64, out: &mut Vec<Copied>) {
        while let Some(&(front, lane)) = self.fronts.first()
            && front <= time
        {
            self.fronts.pop_first();
            let others = self.fronts.first().copied().unwrap_or((u64::MAX, u16::MAX));
            let Some(ring) = self.lanes.get_mut(&lane) else {
                continue;
            };
            // Usually many in a row: CPUs copy whole super-packets and bursts.
            while let Some(held) = ring
                .queue
                .pop_front_if(|held| held.time <= time && (held.time, lane) <= others)
            {
                self.held -= held.copied.cost();
                out.push(held.copied);
            }
            match ring.queue.front() {
                Some(front) => drop(self.fronts.insert((front.time, lane))),
                // What a burst needed is not kept.
                None => ring.queue.shrink_to(64),
            }
        }
    }
}

impl Lane {
    /// Takes bytes in that follow those before.
    fn take(&mut self, lane: u16, mut bytes: Bytes, read: u64) -> Result<(), Broken> {
        let end = self.next + bytes.len() as u64;
        self.next = end;
        if !self.begun.is_empty() {
            let Some(whole) = self.complete(&mut bytes)? else {
                return Ok(());
            };
            self.record(lane, &whole, end - bytes.len() as u64, read)?;
        }
        while let Some((_, _, length)) = record::decode(&bytes).map_err(Broken::Record)? {
            let whole = bytes.split_to(length);
            self.record(lane, &whole, end - bytes.len() as u64, read)?;
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

    fn record(&mut self, lane: u16, whole: &Bytes, end: u64, read: u64) -> Result<(), Broken> {
        let Some((record, packet, _)) = record::decode(whole).map_err(Broken::Record)? else {
            return Ok(());
        };
        if record.lane != lane {
            return Err(Broken::OtherLane {
                ring: lane,
                of: record.lane,
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
