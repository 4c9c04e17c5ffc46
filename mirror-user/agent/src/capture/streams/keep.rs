//! What is kept of a tap while its connections come and go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use mirror_wire::memory::{Lease, Memory};
use mirror_wire::message::TapId;
use tokio::sync::mpsc;

use super::error::{Refusal, Refused};
use super::line::{Item, Outlet, Progress};
use super::order::{Copied, Order};
use super::tap::Said;
use mirror_base::transport::frame::{Header, Hello, Kind, Position, Positions, Welcome};

/// How far an agent has got in a tap's rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Got {
    /// The tap.
    pub(crate) name: String,
    /// The life in which its rings had these positions.
    pub(crate) boot: u64,
    /// Everything below has been processed.
    pub(crate) positions: Vec<Position>,
}

/// What one item for the capture may cost, in bytes; one record may cost more.
const BATCH: usize = 128 << 10;

/// Memory that every connection has, in bytes: what is read at once, and as much on its way.
pub(super) const BASE: usize = 128 << 10;

/// Echoes that wait to be sent.
const MAX_ECHOES: usize = 64;

/// An item for the capture, and what follows when it was taken in.
struct UnderWay {
    cost: usize,
    /// Everything below is then processed.
    positions: Vec<Position>,
    /// The report that it was: number and time.
    echo: Option<(u64, u64)>,
}

/// Everything of one tap that outlives a connection.
pub(super) struct Keep {
    id: TapId,
    name: String,
    boot: Option<u64>,
    order: Order,
    /// What the capture's queue has no room for.
    waiting: VecDeque<(Item, UnderWay)>,
    under_way: VecDeque<UnderWay>,
    /// What both cost.
    cost: usize,
    /// Items that the capture is known to have taken in.
    done: u64,
    items: mpsc::Sender<Item>,
    progress: Arc<Progress>,
    outlet: Outlet,
    processed: BTreeMap<u16, u64>,
    /// Those of `processed` that the tap does not know.
    untold: BTreeSet<u16>,
    /// What they cost, about.
    untold_bytes: usize,
    echoes: VecDeque<(u64, u64)>,
    room: Room,
    /// There is no memory: nothing is held back, and nothing read while something is under way.
    short: bool,
    /// Whether the tap has said that it does not come back.
    has_left: bool,
}

impl Keep {
    /// `got`: how far the agent before this one has got.
    pub(super) fn new(
        id: TapId,
        name: &str,
        outlet: Outlet,
        memory: &Memories,
        got: Option<&Got>,
    ) -> Self {
        let (items, progress) = outlet.line(id, name);
        let mut order = Order::new(memory.most_held());
        let positions = got.map_or(&[][..], |got| &got.positions);
        order.resume(positions);
        let positions = positions.iter();
        Self {
            id,
            name: name.to_owned(),
            boot: got.map(|got| got.boot),
            order,
            waiting: VecDeque::new(),
            under_way: VecDeque::new(),
            cost: 0,
            done: 0,
            items,
            progress,
            outlet,
            processed: positions
                .map(|&Position { lane, position }| (lane, position))
                .collect(),
            untold: BTreeSet::new(),
            untold_bytes: 0,
            echoes: VecDeque::new(),
            room: memory.room(),
            short: false,
            has_left: false,
        }
    }

    /// A connection of this tap begins. Another life of the tap's has other positions.
    pub(super) fn hello(&mut self, hello: Hello) -> Welcome {
        self.has_left = false;
        if self.boot != Some(hello.boot) {
            self.boot = Some(hello.boot);
            self.order.clear();
            let waiting = self.waiting.iter_mut().map(|(_, under_way)| under_way);
            for under_way in waiting.chain(&mut self.under_way) {
                under_way.positions.clear();
            }
            self.processed.clear();
        }
        let waiting = self.waiting.iter_mut().map(|(_, under_way)| under_way);
        for under_way in waiting.chain(&mut self.under_way) {
            under_way.echo = None;
        }
        self.echoes.clear();
        // The last connection may have broken before it was told.
        self.untold = self.processed.keys().copied().collect();
        self.push(Item::Hello(hello), 0, Vec::new(), None);
        Welcome {
            version: mirror_base::transport::frame::VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            tap: self.id.0,
            name: self.name.clone(),
            lanes: self.positions(),
        }
    }

    /// Where the tap goes on: what has been read and does not count has to come to the next agent.
    fn positions(&mut self) -> Vec<Position> {
        self.settle();
        match self.progress.last() {
            u64::MAX => self.order.positions(),
            _ => self.processed(),
        }
    }

    fn processed(&self) -> Vec<Position> {
        let processed = self.processed.iter();
        processed
            .map(|(&lane, &position)| Position { lane, position })
            .collect()
    }

    /// How far it has got; nothing of a tap without rings.
    pub(super) fn got(&mut self) -> Option<Got> {
        self.settle();
        let positions = self.processed();
        Some(Got {
            name: self.name.clone(),
            boot: self.boot.filter(|_| !positions.is_empty())?,
            positions,
        })
    }

    pub(super) fn order(&mut self) -> &mut Order {
        &mut self.order
    }

    /// Takes in what the tap has said.
    pub(super) fn take(&mut self, said: Vec<Said>) {
        for said in said {
            match said {
                Said::Copies(copies) => self.copies(copies),
                Said::Report(reported) => {
                    let echo = (reported.number, reported.sent_ns);
                    let report = Item::Report(reported.report);
                    self.push(report, reported.cost, Vec::new(), Some(echo));
                }
                Said::Bye => {
                    tracing::info!(tap = self.name, "tap has left");
                    self.has_left = true;
                }
            }
        }
        self.forward();
    }

    /// Whether records are held back.
    pub(super) fn holds_records(&self) -> bool {
        self.order.holds_records()
    }

    /// Releases what is held back.
    pub(super) fn release_all(&mut self) {
        let mut copies = Vec::new();
        self.order.release_all(&mut copies);
        self.copies(copies);
        self.forward();
    }

    /// The connection is over: what is whole is handed on, the rest will come once more.
    pub(super) fn break_off(&mut self) {
        let mut copies = Vec::new();
        self.order.break_off(&mut copies);
        self.copies(copies);
        self.forward();
    }

    /// Says that the tap is not there. For one that does not come back time goes on: what it has begun
    /// gets no more copies.
    pub(super) fn leave(&mut self) {
        if self.has_left {
            return;
        }
        self.push(Item::Gone, 0, Vec::new(), None);
        self.forward();
    }

    fn copies(&mut self, copies: Vec<Copied>) {
        let mut batch = Vec::new();
        let mut cost = 0;
        for copied in copies {
            if cost > 0 && cost + copied.cost() > BATCH {
                self.batch(std::mem::take(&mut batch), std::mem::take(&mut cost));
            }
            cost += copied.cost();
            batch.push(copied);
        }
        if !batch.is_empty() {
            self.batch(batch, cost);
        }
    }

    fn batch(&mut self, batch: Vec<Copied>, cost: usize) {
        let mut ends = BTreeMap::new();
        for copied in &batch {
            ends.insert(copied.record.lane, copied.end);
        }
        let positions = ends.into_iter();
        let positions = positions.map(|(lane, position)| Position { lane, position });
        self.push(Item::Copies(batch), cost, positions.collect(), None);
    }

    fn push(
        &mut self,
        item: Item,
        cost: usize,
        positions: Vec<Position>,
        echo: Option<(u64, u64)>,
    ) {
        self.cost += cost;
        let under_way = UnderWay {
            cost,
            positions,
            echo,
        };
        self.waiting.push_back((item, under_way));
    }

    /// Hands on to the capture what its queue has room for.
    pub(super) fn forward(&mut self) {
        let mut any = false;
        while let Some((item, under_way)) = self.waiting.pop_front() {
            match self.items.try_send(item) {
                Ok(()) => {
                    any = true;
                    self.under_way.push_back(under_way);
                }
                Err(
                    mpsc::error::TrySendError::Full(item) | mpsc::error::TrySendError::Closed(item),
                ) => {
                    self.waiting.push_front((item, under_way));
                    break;
                }
            }
        }
        if any {
            self.outlet.wake();
        }
    }

    /// Waits until there may be room again; for ever when the capture has ended.
    pub(super) async fn queue_has_room(&self) {
        if self.items.reserve().await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until the capture has taken something in.
    pub(super) async fn moved(&self) {
        self.progress.moved.notified().await;
    }

    /// Sees what the capture has taken in.
    pub(super) fn settle(&mut self) {
        let done = self.progress.done();
        let last = self.progress.last();
        while self.done < done {
            self.done += 1;
            let Some(under_way) = self.under_way.pop_front() else {
                continue;
            };
            self.cost -= under_way.cost;
            if self.done > last {
                continue;
            }
            self.untold_bytes += under_way.cost;
            for Position { lane, position } in under_way.positions {
                self.processed.insert(lane, position);
                self.untold.insert(lane);
            }
            self.echoes.extend(under_way.echo);
        }
        if self
            .room
            .set((self.order.held() + self.cost).saturating_sub(BASE))
        {
            self.short = false;
        }
    }

    /// Whether something waits for the capture's queue.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the capture has taken everything in.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }

    /// Whether there is room for more.
    pub(super) fn may_read(&self) -> bool {
        self.waiting.is_empty() && (!self.short || self.under_way.is_empty())
    }

    /// Pays for what is held, `besides` among it.
    ///
    /// # Errors
    /// When there is no memory for what cannot be handed on.
    pub(super) fn account(&mut self, besides: usize) -> Result<(), Refused> {
        let wanted = |keep: &Self| (keep.order.held() + keep.cost + besides).saturating_sub(BASE);
        let all = wanted(self);
        self.short = !self.room.set(all);
        if !self.short {
            return Ok(());
        }
        self.release_all();
        // What is on its way was read when there was room, or fits into what every connection has.
        if self.order.held() + besides > BASE && !self.room.set(wanted(self)) {
            return Err(Refusal::Memory.because("the agent's memory is used up"));
        }
        Ok(())
    }

    /// What the tap is to be told now: echoes, and how far it has got when it is `late` or when much
    /// is untold. Says whether it is told that.
    pub(super) fn tell(&mut self, late: bool, out: &mut Vec<u8>) -> bool {
        const SOON: usize = 64 << 10;
        while let Some((number, sent_ns)) = self.echoes.pop_front() {
            let header = Header {
                position: number,
                until_ns: sent_ns,
                ..Header::new(Kind::Echo, 0)
            };
            out.extend_from_slice(&header.encode());
        }
        if self.untold.is_empty() || !(late || self.untold_bytes >= SOON) {
            return false;
        }
        self.untold_bytes = 0;
        let untold = std::mem::take(&mut self.untold);
        let positions: Vec<_> = untold
            .into_iter()
            .filter_map(|lane| {
                let position = *self.processed.get(&lane)?;
                Some(Position { lane, position })
            })
            .collect();
        out.extend_from_slice(&Positions::encode(&positions));
        true
    }

    /// Whether the tap does not know how far its copies were processed.
    pub(super) fn has_untold(&self) -> bool {
        !self.untold.is_empty()
    }

    /// Whether the tap has sent more reports than it reads echoes.
    pub(super) fn has_too_many_echoes(&self) -> bool {
        self.echoes.len() > MAX_ECHOES
    }
}

/// What all taps may use together: a part of the agent's memory, so that no number of them leaves
/// nothing for requests.
#[derive(Clone, Debug)]
pub(crate) struct Memories {
    all: Memory,
    share: Memory,
}

impl Memories {
    pub(super) fn new(all: &Memory) -> Self {
        Self {
            all: all.clone(),
            share: Memory::new(all.limit() / 4),
        }
    }

    /// How much may be read from one tap after a record that is held back.
    fn most_held(&self) -> u64 {
        (self.all.limit() as u64 / 64).clamp(1 << 20, 32 << 20)
    }

    pub(super) fn room(&self) -> Room {
        Room {
            all: self.all.empty_lease(),
            share: self.share.empty_lease(),
        }
    }
}

/// Memory of one tap.
#[derive(Debug)]
pub(super) struct Room {
    all: Lease,
    share: Lease,
}

impl Room {
    /// Has `wanted` bytes from now on, or says that there are none; it never has less than before
    /// then.
    pub(super) fn set(&mut self, wanted: usize) -> bool {
        let more = wanted.saturating_sub(self.all.bytes());
        if more > 0 {
            if !self.share.grow(more) {
                return false;
            }
            if !self.all.grow(more) {
                self.share.shrink_to(self.all.bytes());
                return false;
            }
        }
        self.all.shrink_to(wanted);
        self.share.shrink_to(wanted);
        true
    }
}
