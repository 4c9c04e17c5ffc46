//! Pairs requests with production's responses, connection by connection.
//!
//! Segments go in, events come out; `now` is time since the agent's start. Every exchange that is
//! [`Event::Seen`] ends in exactly one [`Event::Response`], [`Event::Dropped`], or
//! [`Event::Request`] that will not be answered.

mod acceptance;
mod anchor;
mod clock;
mod connection;
mod ending;
mod framing;
mod greeting;
mod half;
mod handover;
mod handshake;
mod multipath;
mod multiplexed;
mod parking;
mod recent;
mod resync;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, hash_map};
use std::net::SocketAddr;
use std::time::Duration;

use mirror_common::flow::Flow;
use mirror_common::packet::{FIN, RST, SYN};
use mirror_common::tunnel::{Arm, Direction};

use super::http::{Fault, begins_request};
use super::memory::Memory;
use super::message::{
    DropReason, Ending, ExchangeId, Partial, Request, Response, Segment, TapId, Unreadable,
};
pub use crate::limits::Limits;
pub use anchor::Anchor;
use clock::Clock;
use connection::Connection;
pub use handover::HandedOver;
use handshake::Claim;
pub use parking::COST;
pub use parking::Forgotten;
use parking::Parking;

/// The most connections at once, of all services and taps together.
pub const MAX_CONNECTIONS: usize = 65_536;

/// Exchanges whose answers nobody needs, as long as they are not seen to be over.
const MAX_UNNEEDED: usize = 1 << 14;

/// How long a closed connection is remembered, so that late copies do not look like a new one.
const LINGER: Duration = Duration::from_secs(1);

/// Number of a connection, unique within one run of the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// What happened on a connection.
#[derive(Debug)]
pub enum Event {
    /// The first byte of a request, or of its response; exactly once per exchange.
    Seen {
        /// The exchange.
        id: ExchangeId,
        /// Index of the service.
        service: usize,
        /// The tap it comes from.
        tap: TapId,
        /// Which version answers its connection.
        arm: Arm,
        /// When the tap saw its connection's SYN; nothing where it did not.
        opened_ns: Option<u64>,
        /// The client's end.
        client: SocketAddr,
    },
    /// A whole request, to be replayed. Requests of one connection come in their order; in HTTP/2, which has none, in
    /// that of their last bytes.
    Request {
        /// The exchange.
        id: ExchangeId,
        /// The connection whose order it keeps.
        connection: ConnectionId,
        /// Index of the service.
        service: usize,
        /// The tap it comes from.
        tap: TapId,
        /// The client's end.
        client: SocketAddr,
        /// Which version answers it in production.
        arm: Arm,
        /// Whether its response, or its drop, will be told. Where requests alone are copied this is
        /// the last that is heard of it.
        answered: bool,
        /// The request.
        request: Request,
    },
    /// Production's whole answer. Always after the exchange's [`Event::Request`].
    Response {
        /// The exchange.
        id: ExchangeId,
        /// Production's answer.
        response: Response,
    },
    /// The exchange is over without being compared; may come after [`Event::Request`].
    Dropped {
        /// The exchange.
        id: ExchangeId,
        /// Why.
        reason: DropReason,
        /// How it ended for its client.
        ending: Ending,
        /// What of it cannot be read: [`DropReason::Malformed`].
        unreadable: Option<Unreadable>,
    },
    /// No more requests on a connection that had some.
    Closed {
        /// The connection.
        connection: ConnectionId,
    },
}

/// A connection's name. Connections of two taps never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Key {
    service: usize,
    tap: TapId,
    flow: Flow,
}

impl Key {
    fn of(segment: &Segment) -> Self {
        Self {
            service: segment.service,
            tap: segment.tap,
            flow: segment.flow,
        }
    }
}

/// Numbers exchanges, and takes down what happens.
struct Journal<'a> {
    service: usize,
    tap: TapId,
    arm: Arm,
    opened_ns: Option<u64>,
    /// [`Ending::by`] of what is dropped now.
    by: Option<Direction>,
    client: SocketAddr,
    /// Why what is dropped now cannot be read.
    why: Option<&'static str>,
    exchanges: &'a mut u64,
    events: &'a mut Vec<Event>,
    /// Exchanges whose answers nobody needs.
    unneeded: &'a mut HashSet<ExchangeId>,
}

impl<'a> Journal<'a> {
    fn of(
        key: &Key,
        connection: &Connection,
        exchanges: &'a mut u64,
        unneeded: &'a mut HashSet<ExchangeId>,
        events: &'a mut Vec<Event>,
    ) -> Self {
        Self {
            service: key.service,
            tap: key.tap,
            arm: connection.arm,
            opened_ns: connection.opened_ns(),
            by: connection.ended_by,
            client: connection.client,
            why: None,
            exchanges,
            events,
            unneeded,
        }
    }

    fn seen(&mut self) -> ExchangeId {
        *self.exchanges += 1;
        let id = ExchangeId(*self.exchanges);
        self.events.push(Event::Seen {
            id,
            service: self.service,
            tap: self.tap,
            arm: self.arm,
            opened_ns: self.opened_ns,
            client: self.client,
        });
        id
    }

    fn dropped(&mut self, id: ExchangeId, reason: DropReason, response: Option<Partial>) {
        let by = self.by;
        let ending = Ending { by, response };
        let unreadable = (reason == DropReason::Malformed).then(|| Unreadable {
            client: self.client,
            side: by,
            why: self.why.unwrap_or("a transfer coding besides chunked"),
        });
        self.events.push(Event::Dropped {
            id,
            reason,
            ending,
            unreadable,
        });
    }

    /// What is dropped from now on is so since this side's bytes cannot be read.
    fn blame(&mut self, fault: Fault, side: Direction) {
        if matches!(fault, Fault::Malformed(_) | Fault::HeadTooLarge) {
            self.by = Some(side);
            self.why = fault.why();
        }
    }

    /// An exchange of which nothing more is known than that it was there.
    fn missed(&mut self, reason: DropReason) {
        let id = self.seen();
        self.dropped(id, reason, None);
    }
}

/// All connections.
#[derive(Debug)]
pub struct Exchanges {
    services: Vec<Limits>,
    memory: Memory,
    connections: HashMap<Key, Box<Connection>>,
    /// Taps that copy requests alone, with the service.
    requests_only: HashSet<(TapId, usize)>,
    /// Taps whose copies come in a stream go by a clock of their own.
    clocks: HashMap<TapId, Clock>,
    /// When each connection wants to be looked at again, by its tap's clock: one entry a connection.
    timers: BTreeMap<TapId, BTreeSet<(Duration, Key)>>,
    /// First subflows of MPTCP connections, by token.
    multipaths: HashMap<u32, Key>,
    max_connections: usize,
    /// Connections that are not in the table for want of room.
    parking: Parking,
    /// By service.
    forgotten: Vec<[u64; Forgotten::ALL.len()]>,
    last_exchange: u64,
    last_connection: u64,
    /// Exchanges that are open, or were when this was said, and whose answers nobody needs.
    unneeded: HashSet<ExchangeId>,
    /// Another agent goes on with what streams bring.
    paused: bool,
}

impl Exchanges {
    /// An empty table. Services go by their index; buffers and messages lease from `memory`.
    pub fn new(services: Vec<Limits>, memory: Memory) -> Self {
        Self {
            services,
            memory,
            connections: HashMap::new(),
            requests_only: HashSet::new(),
            clocks: HashMap::new(),
            timers: BTreeMap::new(),
            multipaths: HashMap::new(),
            max_connections: MAX_CONNECTIONS,
            parking: Parking::default(),
            forgotten: Vec::new(),
            last_exchange: 0,
            last_connection: 0,
            unneeded: HashSet::new(),
            paused: false,
        }
    }

    /// The same, with room for fewer connections.
    pub fn with_max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// One more service; returns its index.
    pub fn add_service(&mut self, limits: Limits) -> usize {
        self.services.push(limits);
        self.services.len() - 1
    }

    /// Bounds for connections of this service that begin from now on.
    pub fn set_limits(&mut self, service: usize, limits: Limits) {
        if let Some(known) = self.services.get_mut(service) {
            *known = limits;
        }
    }

    /// A tap says whether it copies requests alone of this service. Exchanges end with their
    /// request from then on; those that await an answer now are dropped with the next segment of
    /// their connection.
    pub fn copies_requests_only(&mut self, tap: TapId, service: usize, alone: bool) {
        if alone {
            self.requests_only.insert((tap, service));
        } else {
            self.requests_only.remove(&(tap, service));
        }
    }

    /// The copies of this tap come in a stream, which has begun or ended: whatever it was told to copy comes
    /// sometime, in the order in which it was copied.
    pub fn streams(&mut self, tap: TapId, connected: bool, now: Duration) {
        if connected {
            self.clocks.entry(tap).or_insert_with(|| Clock::new(now));
        }
        if let Some(clock) = self.clocks.get_mut(&tap) {
            clock.set_connected(connected, now);
        }
    }

    /// Nobody needs these exchanges' answers: of what still comes of them nothing is kept.
    pub fn forgo(&mut self, exchanges: impl IntoIterator<Item = ExchangeId>) {
        if self.unneeded.len() >= MAX_UNNEEDED {
            // Most of them were over when it was said.
            self.unneeded.clear();
        }
        self.unneeded.extend(exchanges);
    }

    /// How many connections are remembered.
    pub fn connections(&self) -> usize {
        self.connections.len() + self.parking.len()
    }

    /// Takes a mirrored segment in. Segments of unknown services are ignored.
    pub fn segment(&mut self, segment: Segment, now: Duration, events: &mut Vec<Event>) {
        let Some(&limits) = self.services.get(segment.service) else {
            return;
        };
        if segment.extras.is_doubtful && (segment.flags & (SYN | FIN | RST) != 0) {
            // Nobody puts such segments together: their checksum is the sender's.
            return;
        }
        let key = Key::of(&segment);
        let is_left = self.paused && self.clocks.contains_key(&key.tap);
        let begin = events.len();
        let (mut late, wall) = (false, now);
        let now = match self.clocks.get_mut(&segment.tap) {
            Some(clock) => {
                let now = clock.at(segment.time_ns, wall);
                late = clock.is_late(segment.time_ns, wall);
                // Much may come at once that was copied long apart: what is due by then comes first.
                if self.is_due(segment.tap, now) {
                    self.tick_tap(segment.tap, now, events);
                }
                now
            }
            None => now,
        };
        self.note_multipath(&key, &segment, events);
        let mut full = false;
        let is_new = || self.parking.holds(&key) || Connection::is_begun_by(&segment);
        if !is_left && !self.connections.contains_key(&key) && is_new() {
            full = !self.make_room(&key, now, events);
            if !full {
                self.unpark(key, &segment, limits, now);
            }
        }
        let mut journal = Journal {
            service: segment.service,
            tap: segment.tap,
            arm: segment.arm,
            opened_ns: None,
            by: None,
            client: key.flow.client.into(),
            why: None,
            exchanges: &mut self.last_exchange,
            events,
            unneeded: &mut self.unneeded,
        };
        let mut before = Vec::new();
        let connection = match self.connections.entry(key) {
            hash_map::Entry::Occupied(entry) => {
                let connection = entry.into_mut();
                if connection.is_rested() {
                    return;
                }
                let claim = connection.claim(&segment);
                if matches!(claim, Claim::Held) {
                    return;
                }
                if let Claim::Whole(segments) = claim {
                    before = segments;
                    (journal.opened_ns, journal.by) = (connection.opened_ns(), connection.ended_by);
                    // A client that dials anew from the same port has left the old connection.
                    journal.by.get_or_insert(Direction::Request);
                    connection.close(now, None, &mut journal);
                    if is_left {
                        return;
                    }
                    self.last_connection += 1;
                    let id = ConnectionId(self.last_connection);
                    let timer = connection.timer.take();
                    let first = before.first().unwrap_or(&segment);
                    **connection = Connection::new(id, first, limits, &self.memory, now);
                    connection.timer = timer;
                }
                connection
            }
            hash_map::Entry::Vacant(_) if is_left || !Connection::is_begun_by(&segment) => return,
            hash_map::Entry::Vacant(_) if full => {
                // Its connection is not remembered, so only what is certainly a request counts.
                if segment.direction == Direction::Request && begins_request(&segment.payload) {
                    journal.missed(DropReason::TooManyConnections);
                }
                return;
            }
            hash_map::Entry::Vacant(entry) => {
                self.last_connection += 1;
                let id = ConnectionId(self.last_connection);
                let mut connection = Connection::new(id, &segment, limits, &self.memory, now);
                if segment.flags & SYN == 0 && self.clocks.contains_key(&key.tap) {
                    connection.awaits_no_handshake();
                }
                entry.insert(Box::new(connection))
            }
        };
        let alone = self.requests_only.contains(&(key.tap, key.service));
        (journal.opened_ns, journal.by) = (connection.opened_ns(), connection.ended_by);
        connection.expect_answers(!alone, &mut journal);
        for segment in before.into_iter().chain([segment]) {
            connection.segment(segment, now, &mut journal);
        }
        wind(&mut self.timers, key, connection, now);
        if late {
            for event in events.iter_mut().skip(begin) {
                if let Event::Request { request, .. } = event {
                    request.late = true;
                }
            }
        }
    }

    /// Lets time pass: declares gaps, gives up what is silent. To be called 10 times a second.
    pub fn tick(&mut self, now: Duration, events: &mut Vec<Event>) {
        let taps: Vec<TapId> = self.timers.keys().copied().collect();
        self.expire_parked(now);
        for tap in taps {
            let clock = self.clocks.get(&tap);
            self.tick_tap(tap, clock.map_or(now, |clock| clock.now(now)), events);
        }
        self.timers.retain(|_, timers| !timers.is_empty());
    }

    fn is_due(&self, tap: TapId, now: Duration) -> bool {
        let first = self.timers.get(&tap).and_then(BTreeSet::first);
        first.is_some_and(|&(due, _)| due <= now)
    }

    fn tick_tap(&mut self, tap: TapId, now: Duration, events: &mut Vec<Event>) {
        while let Some(timers) = self.timers.get_mut(&tap)
            && let Some(&(due, key)) = timers.first()
            && due <= now
        {
            timers.pop_first();
            if self.park_unasked(key, now) {
                continue;
            }
            let Some(connection) = self.connections.get_mut(&key) else {
                continue;
            };
            connection.timer = None;
            let mut journal = Journal::of(
                &key,
                connection,
                &mut self.last_exchange,
                &mut self.unneeded,
                events,
            );
            if connection.tick(now, &mut journal) {
                self.connections.remove(&key);
            } else {
                wind(&mut self.timers, key, connection, now);
            }
        }
    }

    /// When [`Exchanges::tick`] has something to do next; nothing without connections.
    pub fn deadline(&self) -> Option<Duration> {
        let first = |timers: &BTreeSet<(Duration, Key)>| timers.first().map(|&(due, _)| due);
        self.timers.values().filter_map(first).min()
    }

    /// The agent stops: every open exchange is dropped as [`DropReason::Shutdown`].
    pub fn finish(&mut self, events: &mut Vec<Event>) {
        self.retain(|_, _, _| false, DropReason::Shutdown, events);
    }

    /// Forgets every connection but those that are kept, by service, arm and ends. Their open
    /// exchanges are dropped for `reason`.
    pub fn retain(
        &mut self,
        keep: impl Fn(usize, Arm, &Flow) -> bool,
        reason: DropReason,
        events: &mut Vec<Event>,
    ) {
        let keep = |key: &Key, arm| keep(key.service, arm, &key.flow);
        self.keep(keep, Some(reason), events);
    }

    /// Forgets a tap that sends no more, and what it has begun.
    pub fn forget_tap(&mut self, tap: TapId, events: &mut Vec<Event>) {
        self.keep(|key, _| key.tap != tap, None, events);
        self.clocks.remove(&tap);
        self.timers.remove(&tap);
        self.requests_only.retain(|(known, _)| *known != tap);
    }

    fn keep(
        &mut self,
        keep: impl Fn(&Key, Arm) -> bool,
        reason: Option<DropReason>,
        events: &mut Vec<Event>,
    ) {
        self.parking.retain(&keep);
        let dropped = self
            .connections
            .extract_if(|key, connection| !keep(key, connection.arm));
        for (key, mut connection) in dropped {
            let mut journal = Journal::of(
                &key,
                &connection,
                &mut self.last_exchange,
                &mut self.unneeded,
                events,
            );
            connection.close(Duration::MAX, reason, &mut journal);
            if let Some(timer) = connection.timer
                && let Some(timers) = self.timers.get_mut(&key.tap)
            {
                timers.remove(&(timer, key));
            }
        }
    }
}

/// Has the connection looked at in time, but later than `now`. A timer that rings too early does no
/// harm, so it is only moved when it would ring too late.
fn wind(
    timers: &mut BTreeMap<TapId, BTreeSet<(Duration, Key)>>,
    key: Key,
    connection: &mut Connection,
    now: Duration,
) {
    let soonest = now.saturating_add(Duration::from_millis(1));
    let deadline = connection.deadline().max(soonest);
    match connection.timer {
        Some(timer) if timer <= deadline => {}
        timer => {
            let timers = timers.entry(key.tap).or_default();
            if let Some(timer) = timer {
                timers.remove(&(timer, key));
            }
            timers.insert((deadline, key));
            connection.timer = Some(deadline);
        }
    }
}

#[cfg(test)]
mod tests;
