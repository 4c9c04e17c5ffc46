//! The packet ledger: what a tap sent = what arrived + what was lost + what the agent dropped.
//!
//! Pure. Every copy has a number per tap and lane (of a stream: one of a CPU's two rings; of datagrams: the
//! CPU), and says how many payload bytes it has in all; it may arrive in several datagrams, in any order, some twice. Numbers tell which copies are
//! missing; the tap's own counters, reported once a second, tell how many bytes those had.
//!
//! In a stream, copies of a lane arrive whole and in their order: each is settled when it arrives, and
//! those before it that have not arrived never will.
//!
//! ```text
//!   settled for good | window: may still come      | not sent yet
//!   -----------------+-----------------------------+--------------> copy number
//!                  floor                         next
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{AddAssign, Sub};

use mirror_api::tap_report::LaneSent;
use mirror_common::tunnel::Meta;

use mirror_base::transport::frame::MAX_LANES;

mod parts;

use parts::Parts;

/// Copies of one lane that may overtake each other: what is older is settled at once.
const WINDOW: u64 = 1 << 14;

/// The same of all lanes of one tap together, where it has many.
const WINDOWS: u64 = 1 << 17;

/// Reports of one lane that wait for copies.
const MAX_MARKS: usize = 64;

/// Copies of one lane that came in parts and are not whole.
const MAX_IN_PARTS: usize = 1 << 10;

/// What one of them takes, in bytes, about.
const IN_PARTS: usize = 128;

/// What became of a copy. Every copy that a tap sent has exactly one. Label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Outcome {
    /// All of it arrived and was handed on.
    Received,
    /// A part of it arrived and was handed on.
    Partial,
    /// Nothing of it arrived: dropped by the network, or by this host's socket buffer.
    Lost,
    /// It arrived, but no service of ours has its id.
    UnknownService,
    /// It arrived, but the packet inside is not whole: its end was cut off.
    Truncated,
    /// It arrived, but the packet inside is not TCP over IP, or contradicts itself.
    NotTcp,
    /// It arrived, but the agent had no room for it.
    Overloaded,
}

impl Outcome {
    /// Every outcome, in the order of its index.
    pub const ALL: [Self; 7] = [
        Self::Received,
        Self::Partial,
        Self::Lost,
        Self::UnknownService,
        Self::Truncated,
        Self::NotTcp,
        Self::Overloaded,
    ];

    /// The value of the `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Partial => "partial",
            Self::Lost => "lost",
            Self::UnknownService => "unknown_service",
            Self::Truncated => "truncated",
            Self::NotTcp => "not_tcp",
            Self::Overloaded => "overloaded",
        }
    }
}

/// Copies and payload bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Copies.
    pub copies: u64,
    /// Their payload, in bytes.
    pub bytes: u64,
}

impl AddAssign for Volume {
    fn add_assign(&mut self, other: Self) {
        self.copies += other.copies;
        self.bytes += other.bytes;
    }
}

impl Sub for Volume {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            copies: self.copies.saturating_sub(other.copies),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

/// Both sides of the ledger, as far as it is settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Copies by [`Outcome`], and the bytes that arrived of them. [`Outcome::Lost`] has the bytes
    /// that did not arrive, of lost copies as well as of partial ones.
    pub outcomes: [Volume; Outcome::ALL.len()],
    /// What the tap had sent before the ledger began: before the first copy that arrived, or the
    /// first report. Bytes of copies that were lost between these two are among it, since nothing
    /// tells them apart.
    pub earlier: Volume,
    /// What the tap says it has sent since then, up to its last settled report.
    pub sent: Volume,
    /// The part of `outcomes` up to the same report: equal to `sent` when the ledger closes.
    pub accounted: Volume,
    /// Datagrams that came after their copy was settled as lost or partial.
    pub late: u64,
    /// Datagrams with bytes that had arrived before.
    pub duplicates: u64,
}

impl Totals {
    /// What became of `outcome`.
    pub fn of(&self, outcome: Outcome) -> Volume {
        self.outcomes[outcome as usize]
    }

    /// All settled copies, and all bytes that are known to have been sent.
    pub fn settled(&self) -> Volume {
        let mut sum = Volume::default();
        for &volume in &self.outcomes {
            sum += volume;
        }
        sum
    }

    /// Whether both sides are equal.
    pub fn closes(&self) -> bool {
        self.sent == self.accounted
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        for (sum, volume) in self.outcomes.iter_mut().zip(other.outcomes) {
            *sum += volume;
        }
        self.earlier += other.earlier;
        self.sent += other.sent;
        self.accounted += other.accounted;
        self.late += other.late;
        self.duplicates += other.duplicates;
    }
}

/// How many ticks a lane's first report waits for copies that were sent before it, in a stream.
const PATIENCE: u8 = 3;

/// The ledger of one tap.
#[derive(Debug, Default)]
pub struct TapLedger {
    boot: Option<u64>,
    /// Whether copies come in a stream.
    streamed: bool,
    lanes: BTreeMap<u16, LaneLedger>,
    /// Lanes whose rings no longer held their first copy when the tap connected; nothing where it has not
    /// said so.
    begun: Option<BTreeSet<u16>>,
    /// First reports of lanes whose ledgers have not begun, with the ticks since.
    early: BTreeMap<u16, (LaneSent, u8)>,
    /// Of lanes of earlier lives.
    closed: Totals,
}

impl TapLedger {
    /// A datagram arrived that carries `length` payload bytes of a copy, from TCP's `sequence` on,
    /// and `outcome` is what the agent makes of it ([`Outcome::Received`] when it is handed on).
    /// Whether it brings anything new: what came before, or long ago, somebody may have recorded and sent again.
    pub fn datagram(&mut self, meta: &Meta, sequence: u32, length: u32, outcome: Outcome) -> bool {
        let room = self.lanes.len() < MAX_LANES;
        let window = WINDOW.min(WINDOWS / (self.lanes.len() as u64 + 1));
        let ledger = match self.lanes.get_mut(&meta.cpu) {
            Some(ledger) => ledger,
            None if room => self
                .lanes
                .entry(meta.cpu)
                .or_insert_with(|| LaneLedger::starting_at(u64::from(meta.sequence))),
            None => return false,
        };
        ledger.datagram(meta, sequence, length, outcome, window)
    }

    /// A copy with `length` payload bytes arrived in a stream: whole, and in its lane's order.
    pub fn copy(&mut self, lane: u16, sequence: u64, length: u32, outcome: Outcome) {
        if let Some(ledger) = self.lanes.get_mut(&lane) {
            if sequence < ledger.floor && ledger.is_untouched() {
                ledger.begin_at(sequence);
            }
            ledger.copy(sequence, length, outcome);
            return;
        }
        if self.lanes.len() >= MAX_LANES {
            return;
        }
        if self.is_fresh(lane) {
            let ledger = self.lanes.entry(lane);
            let ledger = ledger.or_insert_with(LaneLedger::of_all);
            ledger.copy(sequence, length, outcome);
            return;
        }
        // Between a first report and a first copy, some may have been lost.
        let early = self.early.remove(&lane).map(|(sent, _)| sent);
        let start = early.map_or(sequence, |sent| sent.copies.min(sequence));
        let mut ledger = LaneLedger::starting_at(start);
        if let Some(sent) = early {
            ledger.report(&sent);
        }
        ledger.copy(sequence, length, outcome);
        self.lanes.insert(lane, ledger);
    }

    /// The tap lives the life `boot`, and sends its copies in a stream, or else as datagrams.
    pub fn hello(&mut self, boot: u64, streamed: bool) {
        if self.boot.is_some_and(|known| known != boot) {
            self.close();
            self.begun = None;
        }
        self.boot = Some(boot);
        self.streamed = streamed;
    }

    /// A tap that streams has said hello: of these lanes it no longer has the first copy. Those of all
    /// others are still to come, however late: a deep lane's come after all that its hot one holds.
    pub fn begun(&mut self, lanes: impl Iterator<Item = u16>) {
        self.begun = Some(lanes.collect());
    }

    /// Whether every copy of a lane is still to come, or has.
    fn is_fresh(&self, lane: u16) -> bool {
        self.streamed
            && self
                .begun
                .as_ref()
                .is_some_and(|begun| !begun.contains(&lane))
    }

    /// The tap reports what its lanes have sent in the life `boot`.
    pub fn report(&mut self, boot: u64, lanes: &[LaneSent]) {
        self.hello(boot, self.streamed);
        for sent in lanes {
            let is_fresh = self.is_fresh(sent.lane) && self.lanes.len() < MAX_LANES;
            match self.lanes.get_mut(&sent.lane) {
                Some(ledger) => ledger.report(sent),
                None if is_fresh => {
                    let mut ledger = LaneLedger::of_all();
                    ledger.report(sent);
                    self.lanes.insert(sent.lane, ledger);
                }
                // What it had sent may still be on its way here.
                None if self.streamed => drop(self.early.entry(sent.lane).or_insert((*sent, 0))),
                None => self.begin(sent),
            }
            if self.early.len() > MAX_LANES {
                self.early.pop_last();
            }
        }
    }

    /// A lane's ledger begins with a report.
    fn begin(&mut self, sent: &LaneSent) {
        if self.lanes.len() < MAX_LANES {
            self.lanes
                .entry(sent.lane)
                .or_insert_with(|| LaneLedger::starting_at(sent.copies))
                .report(sent);
        }
    }

    /// Settles what was known at the last call: call it about once a second.
    pub fn tick(&mut self) {
        for (sent, ticks) in self.early.values_mut() {
            *ticks += 1;
            if *ticks == PATIENCE && self.lanes.len() < MAX_LANES {
                let mut ledger = LaneLedger::starting_at(sent.copies);
                ledger.report(sent);
                self.lanes.insert(sent.lane, ledger);
            }
        }
        self.early.retain(|_, (_, ticks)| *ticks < PATIENCE);
        // In a stream, time does not tell what is lost: it may wait at the tap for long.
        if !self.streamed {
            for ledger in self.lanes.values_mut() {
                ledger.tick();
            }
        }
    }

    /// What is kept of copies that may still come, in bytes.
    pub fn bytes(&self) -> usize {
        let lanes = self.lanes.values();
        lanes.map(LaneLedger::bytes).sum()
    }

    /// Settles what has not come by now as lost.
    pub fn settle(&mut self) {
        for ledger in self.lanes.values_mut() {
            ledger.settle_to(ledger.next());
            ledger.window.shrink_to_fit();
        }
    }

    /// The agent stops, or the tap begins another life. What has not arrived is lost, but for what
    /// still waits at a tap that goes on: the ledger ends with the last copy.
    fn end(&mut self, goes_on: bool) {
        for (sent, _) in std::mem::take(&mut self.early).into_values() {
            self.begin(&sent);
        }
        for mut ledger in std::mem::take(&mut self.lanes).into_values() {
            let end = if goes_on {
                ledger.next()
            } else {
                ledger.horizon()
            };
            ledger.settle_to(end);
            self.closed += ledger.totals;
        }
    }

    /// Settles everything; what has not arrived is lost.
    pub fn close(&mut self) {
        self.end(false);
    }

    /// Settles everything, the agent being about to stop. What a stream has not brought yet is the
    /// next agent's.
    pub fn stop(&mut self) {
        self.end(self.streamed);
    }

    /// All lanes together, earlier lives of the tap included.
    pub fn totals(&self) -> Totals {
        let mut totals = self.closed;
        for ledger in self.lanes.values() {
            totals += ledger.totals;
        }
        totals
    }

    /// Copies that the tap said it has sent and that have no outcome yet.
    pub fn outstanding(&self) -> u64 {
        let lanes = self.lanes.values();
        lanes
            .map(|lane| lane.horizon().saturating_sub(lane.floor))
            .sum()
    }

    /// Each lane of the present life.
    pub fn lanes(&self) -> impl Iterator<Item = (u16, &Totals)> {
        self.lanes
            .iter()
            .map(|(&lane, ledger)| (lane, &ledger.totals))
    }
}

/// One copy in the window.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Nothing = none of it has arrived.
    outcome: Option<Outcome>,
    /// Payload of the whole copy.
    length: u32,
    /// How much of that has arrived.
    arrived: u32,
}

/// What the tap had sent when it reported.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// The next copy's, as numbers are counted here.
    number: u64,
    sent: Volume,
}

/// Invariant: `floor <= next`, `window.len() == next - floor <= WINDOW`; every copy below `floor` is
/// counted in exactly one of `totals.outcomes`.
#[derive(Debug)]
struct LaneLedger {
    floor: u64,
    window: VecDeque<Slot>,
    /// Of copies in the window that came in several datagrams and are not complete.
    parts: BTreeMap<u64, Parts>,
    totals: Totals,
    /// The last report whose copies are all settled, and what was settled then.
    base: Option<(Mark, Volume)>,
    /// Reports above the floor, oldest first.
    marks: VecDeque<Mark>,
    /// Where the last tick saw the horizon.
    due: u64,
}

impl LaneLedger {
    fn starting_at(number: u64) -> Self {
        Self {
            floor: number,
            window: VecDeque::new(),
            parts: BTreeMap::new(),
            totals: Totals::default(),
            base: None,
            marks: VecDeque::new(),
            due: number,
        }
    }

    /// Of a lane's copies from the first one on: nothing was sent earlier.
    fn of_all() -> Self {
        let nothing = Mark {
            number: 0,
            sent: Volume::default(),
        };
        Self {
            base: Some((nothing, Volume::default())),
            ..Self::starting_at(0)
        }
    }

    /// Whether reports are all that has come.
    fn is_untouched(&self) -> bool {
        self.window.is_empty() && self.totals.settled().copies == 0
    }

    /// The account begins earlier: what was taken for an earlier agent's has only been slow.
    fn begin_at(&mut self, number: u64) {
        let mut marks = std::mem::take(&mut self.marks);
        if let Some((mark, _)) = self.base {
            marks.push_front(mark);
        }
        *self = Self {
            marks,
            ..Self::starting_at(number)
        };
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.window.capacity() * size_of::<Slot>()
            + self.marks.capacity() * size_of::<Mark>()
            + self.parts.len() * IN_PARTS
    }

    fn next(&self) -> u64 {
        self.floor + self.window.len() as u64
    }

    /// All copies below are known to have been sent.
    fn horizon(&self) -> u64 {
        let reported = self.marks.back().map_or(0, |mark| mark.number);
        self.next().max(reported)
    }

    /// The copy number next to what is expected that ends in `sequence`; nothing when it lies
    /// before the ledger's beginning.
    fn unwrap(&self, sequence: u32) -> Option<u64> {
        let next = self.next();
        let distance = sequence.wrapping_sub(next as u32).cast_signed();
        next.checked_add_signed(i64::from(distance))
    }

    fn datagram(
        &mut self,
        meta: &Meta,
        sequence: u32,
        length: u32,
        outcome: Outcome,
        window: u64,
    ) -> bool {
        let Some(number) = self.unwrap(meta.sequence).filter(|&n| n >= self.floor) else {
            self.totals.late += 1;
            return false;
        };
        self.make_room_for(number, window);
        let index = (number - self.floor) as usize;
        let Some(slot) = self.window.get_mut(index) else {
            return false;
        };
        let new = if slot.outcome.is_none() && length >= meta.length {
            // The usual case: the whole copy in one datagram.
            meta.length
        } else if slot.outcome.is_some() && slot.arrived >= slot.length {
            0
        } else {
            while self.parts.len() >= MAX_IN_PARTS && !self.parts.contains_key(&number) {
                self.parts.pop_first();
            }
            let parts = self.parts.entry(number).or_default();
            parts
                .insert(sequence, length)
                .min(meta.length - slot.arrived)
        };
        if slot.outcome.is_some() && new == 0 {
            self.totals.duplicates += 1;
            return false;
        }
        slot.length = meta.length;
        slot.arrived += new;
        // What the agent dropped of a copy names the whole copy.
        if slot.outcome.is_none_or(|known| known == Outcome::Received) {
            slot.outcome = Some(outcome);
        }
        if slot.arrived >= slot.length {
            self.parts.remove(&number);
        }
        true
    }

    /// The next copy of a stream.
    fn copy(&mut self, sequence: u64, length: u32, outcome: Outcome) {
        let Some(number) = self
            .unwrap(sequence as u32)
            .filter(|&number| number >= self.next())
        else {
            self.totals.late += 1;
            return;
        };
        self.settle_to(number);
        self.settle(Slot {
            outcome: Some(outcome),
            length,
            arrived: length,
        });
        self.floor += 1;
        self.reach_marks();
    }

    /// Moves the window on until `number` lies in it.
    fn make_room_for(&mut self, number: u64, window: u64) {
        if number >= self.floor + window {
            self.settle_to(number + 1 - window);
        }
        let wanted = (number + 1 - self.floor) as usize;
        if wanted > self.window.len() {
            self.window.resize(wanted, Slot::default());
        }
    }

    fn report(&mut self, sent: &LaneSent) {
        let Some(number) = self.unwrap(sent.copies as u32) else {
            return;
        };
        let mark = Mark {
            number,
            sent: Volume {
                copies: sent.copies,
                bytes: sent.bytes,
            },
        };
        let newest = self
            .marks
            .back()
            .or(self.base.as_ref().map(|(mark, _)| mark));
        let news = newest.is_none_or(|known| known.number < number);
        if number >= self.floor && news {
            if self.marks.len() >= MAX_MARKS {
                // It says all that the one before it says.
                self.marks.pop_back();
            }
            self.marks.push_back(mark);
            self.reach_marks();
        }
    }

    fn tick(&mut self) {
        self.settle_to(self.due);
        self.due = self.horizon();
    }

    /// Counts every copy below `floor` for good.
    fn settle_to(&mut self, floor: u64) {
        while self.floor < floor {
            self.reach_marks();
            let Some(slot) = self.window.pop_front() else {
                let stop = self
                    .marks
                    .front()
                    .map_or(floor, |mark| floor.min(mark.number));
                let lost = stop - self.floor;
                self.totals.outcomes[Outcome::Lost as usize].copies += lost;
                self.floor = stop;
                continue;
            };
            self.parts.remove(&self.floor);
            self.settle(slot);
            self.floor += 1;
        }
        self.reach_marks();
    }

    fn settle(&mut self, slot: Slot) {
        let whole = slot.arrived >= slot.length;
        let outcome = match slot.outcome {
            None => Outcome::Lost,
            Some(Outcome::Received) if !whole => Outcome::Partial,
            Some(outcome) => outcome,
        };
        self.totals.outcomes[outcome as usize] += Volume {
            copies: 1,
            bytes: u64::from(slot.arrived),
        };
    }

    /// Takes the reports whose copies are now all settled: what is missing of the bytes that the
    /// tap sent was lost.
    fn reach_marks(&mut self) {
        while let Some(mark) = self.marks.front().filter(|mark| mark.number <= self.floor) {
            let mark = *mark;
            self.marks.pop_front();
            let settled = self.totals.settled();
            if let Some((base, before)) = self.base {
                let sent = mark.sent - base.sent;
                let lost = sent.bytes.saturating_sub((settled - before).bytes);
                self.totals.outcomes[Outcome::Lost as usize].bytes += lost;
                self.totals.sent += sent;
                self.totals.accounted += self.totals.settled() - before;
            } else {
                self.totals.earlier = mark.sent - settled;
                self.totals.sent = settled;
                self.totals.accounted = settled;
            }
            self.base = Some((mark, self.totals.settled()));
        }
    }
}

#[cfg(test)]
mod tests;
