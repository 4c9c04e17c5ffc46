//! Room for connections: when the table is full, those give way that can do without it.
//!
//! Of one that rests between two exchanges little has to be known to go on with it: that is parked, a
//! fraction of its size. Anybody can begin connections that ask for nothing, so those are forgotten, and parked only
//! where there is plenty of room. Last of all a busy one gives way, where its service and tap have more than
//! others.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use mirror_common::packet::SYN;
use mirror_common::tunnel::Arm;

use super::anchor::{Anchor, Pause};
use super::connection::{Connection, Mode};
use super::handshake::FastOpen;
use super::{ConnectionId, Event, Exchanges, Journal, Key, Limits};
use crate::memory::Memory;
use crate::message::{DropReason, Segment, TapId};

/// How many parked connections there may be for each one in the table.
const PARKED: usize = 4;

/// What a connection in the table takes besides what waits, with those that are parked for it, in bytes, about.
pub const COST: usize = 8 << 10;

/// Such a part of the table is given up at once: to find out which costs a look at all of it.
const PART: usize = 16;

/// So many busy ones give way at once, for the same reason.
const BUSY: usize = 64;

/// When nobody could give way, it is looked again after so long.
const AGAIN: Duration = Duration::from_millis(50);

/// So long one that has not asked for anything stays in the table.
pub(super) const UNASKED: Duration = Duration::from_secs(60);

/// Why a connection is not known any more. Label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    /// It had not asked for anything.
    Unasked,
    /// It had not asked for anything for the longest.
    Idle,
    /// There was no room for all that are busy.
    Busy,
}

impl Forgotten {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 3] = [Self::Unasked, Self::Idle, Self::Busy];

    /// The value of the `reason` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Unasked => "unasked",
            Self::Idle => "idle",
            Self::Busy => "busy",
        }
    }
}

/// What can be done without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Spare {
    /// All of it: it is over, or has not begun.
    Whole,
    /// All but where it goes on.
    Resting,
}

/// Where a connection goes on.
#[derive(Debug)]
struct Parked {
    id: ConnectionId,
    anchor: Anchor,
    known_ns: u64,
    scales: (Option<Option<u8>>, Option<Option<u8>>),
    has_requests: bool,
    /// Its place in the order in which they were parked.
    place: u64,
    until: Duration,
}

/// Connections that are parked.
#[derive(Debug, Default)]
pub(super) struct Parking {
    connections: HashMap<Key, Parked>,
    /// The first ones are the first to go; some are not there any more.
    order: VecDeque<(u64, Key)>,
    last: u64,
    /// Nobody in the table can give way until then.
    crowded_until: Duration,
}

impl Parking {
    fn insert(&mut self, key: Key, mut parked: Parked) {
        self.last += 1;
        parked.place = self.last;
        self.connections.insert(key, parked);
        self.order.push_back((self.last, key));
        if self.order.len() > 2 * self.connections.len() + PART {
            let connections = &self.connections;
            let is_there = |&(place, key): &(u64, Key)| {
                let parked = connections.get(&key);
                parked.is_some_and(|parked| parked.place == place)
            };
            self.order.retain(is_there);
        }
    }

    fn take(&mut self, key: &Key) -> Option<Parked> {
        let parked = self.connections.remove(key)?;
        if self.connections.is_empty() {
            // What a crowd took is given back.
            *self = Self {
                last: self.last,
                crowded_until: self.crowded_until,
                ..Self::default()
            };
        }
        Some(parked)
    }

    /// The one that was parked first, with when it is over.
    fn first(&mut self) -> Option<(Key, Duration)> {
        loop {
            let &(place, key) = self.order.front()?;
            match self.connections.get(&key) {
                Some(parked) if parked.place == place => return Some((key, parked.until)),
                _ => self.order.pop_front(),
            };
        }
    }

    /// Whether this one is.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.connections.contains_key(key)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// Forgets those that are not kept, by service, arm and ends.
    pub(super) fn retain(&mut self, keep: impl Fn(&Key, Arm) -> bool) {
        self.connections
            .retain(|key, parked| keep(key, parked.anchor.arm()));
    }

    /// Takes all of them, with where they go on.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = (Key, Anchor)> {
        let parked = std::mem::take(self).connections.into_iter();
        parked.map(|(key, parked)| (key, parked.anchor))
    }
}

impl Connection {
    /// Whether it has asked for nothing, and nothing of a request has come.
    pub(super) fn is_unasked(&self) -> bool {
        let begins = self.starts.0 == Some(self.requests.position() as u32);
        let is_new = matches!(self.mode, Mode::Unknown { .. }) || begins;
        let is_http2 = matches!(self.mode, Mode::Http2(_));
        is_new && !is_http2 && self.open.is_empty() && self.is_quiet()
    }

    /// Whether nothing of it waits.
    fn is_quiet(&self) -> bool {
        self.requests.buffered() + self.responses.buffered() + self.aside() == 0
    }

    fn spare(&self) -> Option<Spare> {
        if self.is_paused() {
            return None;
        }
        if matches!(self.mode, Mode::Closed { .. }) || self.is_unasked() {
            return Some(Spare::Whole);
        }
        let rests = self.open.is_empty()
            && self.is_quiet()
            && !self.is_within_request()
            && self.closing.is_none()
            && self.resets.is_empty()
            && self.handshakes.is_empty()
            // What the ends of one in HTTP/2 refer to is not kept: it will be one that was joined late.
            && !self.has_open_http2()
            && !matches!(self.mode, Mode::Unknown { .. });
        rests.then_some(Spare::Resting)
    }

    fn park(&mut self, until: Duration) -> Parked {
        self.pause = Pause::At(self.requests.position());
        Parked {
            id: self.id,
            anchor: self.anchor(true),
            known_ns: self.known_ns,
            scales: self.scales,
            has_requests: self.has_requests,
            place: 0,
            until,
        }
    }

    fn unpark(key: &Key, parked: &Parked, limits: Limits, memory: &Memory, now: Duration) -> Self {
        let connection = Self::resume(parked.id, key, &parked.anchor, limits, memory, now);
        Self {
            known_ns: parked.known_ns,
            scales: parked.scales,
            has_requests: parked.has_requests,
            fast_open: FastOpen::default(),
            ..connection
        }
    }
}

impl Exchanges {
    /// Goes on with a connection that was parked, where this segment is one of it.
    pub(super) fn unpark(&mut self, key: Key, segment: &Segment, limits: Limits, now: Duration) {
        let Some(parked) = self.parking.take(&key) else {
            return;
        };
        let connection = Connection::unpark(&key, &parked, limits, &self.memory, now);
        if segment.flags & SYN != 0 && connection.is_replaced_by(segment) {
            // Its ends have begun another one.
            return;
        }
        self.connections.insert(key, Box::new(connection));
    }

    /// Whether a segment of this connection finds room in the table; others may have to go.
    pub(super) fn make_room(&mut self, key: &Key, now: Duration, events: &mut Vec<Event>) -> bool {
        if self.connections.len() < self.max_connections {
            return true;
        }
        if now < self.parking.crowded_until {
            return false;
        }
        let mut counts: HashMap<(usize, TapId), usize> = HashMap::new();
        let mut spare = Vec::new();
        for (key, connection) in &self.connections {
            *counts.entry((key.service, key.tap)).or_default() += 1;
            let rank = connection.spare();
            spare.extend(rank.map(|rank| (rank, connection.last_segment, *key)));
        }
        let own = *counts.entry((key.service, key.tap)).or_default();
        let share = self.max_connections / counts.len();
        let count = |key: &Key| counts.get(&(key.service, key.tap)).copied().unwrap_or(0);
        spare.sort_by_key(|&(rank, last, ref key)| (count(key) <= share, rank, last));
        spare.truncate(self.max_connections.div_ceil(PART));
        for &(rank, _, key) in &spare {
            self.spare(&key, rank, now);
        }
        if !spare.is_empty() || self.give_up_busy(&counts, own, events) {
            return true;
        }
        self.parking.crowded_until = now.saturating_add(AGAIN);
        false
    }

    fn spare(&mut self, key: &Key, rank: Spare, now: Duration) {
        let Some(mut connection) = self.remove(key) else {
            return;
        };
        match rank {
            Spare::Whole if matches!(connection.mode, Mode::Closed { .. }) => {}
            Spare::Whole => self.forget(key, Forgotten::Unasked),
            Spare::Resting => {
                let until = now.saturating_add(connection.limits.idle);
                self.park(*key, &mut connection, until);
            }
        }
    }

    fn park(&mut self, key: Key, connection: &mut Connection, until: Duration) {
        while self.parking.len() >= PARKED * self.max_connections
            && let Some((first, _)) = self.parking.first()
        {
            self.parking.take(&first);
            self.forget(&first, Forgotten::Idle);
        }
        self.parking.insert(key, connection.park(until));
    }

    /// Parks what has not asked for anything for long, where there is plenty of room. Whether it was.
    pub(super) fn park_unasked(&mut self, key: Key, now: Duration) -> bool {
        let Some(connection) = self.connections.get(&key) else {
            return false;
        };
        let is_long = connection.last_segment.saturating_add(UNASKED) <= now;
        let has_room = self.parking.len() < PARKED * self.max_connections / 2;
        let is_over = connection.is_one_sided || connection.closing.is_some();
        if !is_long || !has_room || is_over || !connection.is_unasked() || connection.is_paused() {
            return false;
        }
        if let Some(mut connection) = self.remove(&key) {
            let until = now.saturating_add(connection.limits.idle);
            self.park(key, &mut connection, until);
        }
        true
    }

    /// Those that were silent for the longest, of the service and tap with the most, where those have more than
    /// `own` and the next.
    fn give_up_busy(
        &mut self,
        counts: &HashMap<(usize, TapId), usize>,
        own: usize,
        events: &mut Vec<Event>,
    ) -> bool {
        let most = counts.iter().max_by_key(|&(_, count)| *count);
        let Some((&most, &count)) = most.filter(|&(_, &count)| count > own + 1) else {
            return false;
        };
        let theirs = self
            .connections
            .iter()
            .filter(|(key, connection)| (key.service, key.tap) == most && !connection.is_paused());
        let mut theirs: Vec<_> = theirs
            .map(|(key, connection)| (connection.last_segment, *key))
            .collect();
        theirs.sort_unstable();
        theirs.truncate(BUSY.min((count - own) / 2));
        for (_, key) in &theirs {
            let Some(mut connection) = self.remove(key) else {
                continue;
            };
            let mut journal = Journal::of(
                key,
                &connection,
                &mut self.last_exchange,
                &mut self.unneeded,
                events,
            );
            let reason = DropReason::TooManyConnections;
            connection.close(Duration::MAX, Some(reason), &mut journal);
            self.forget(key, Forgotten::Busy);
        }
        !theirs.is_empty()
    }

    fn forget(&mut self, key: &Key, why: Forgotten) {
        if self.forgotten.len() <= key.service {
            self.forgotten.resize(key.service + 1, Default::default());
        }
        self.forgotten[key.service][why as usize] += 1;
    }

    /// Connections of each service that were given up for want of room, by [`Forgotten`].
    pub fn forgotten(&self) -> &[[u64; Forgotten::ALL.len()]] {
        &self.forgotten
    }

    /// Takes a connection out of the table.
    fn remove(&mut self, key: &Key) -> Option<Box<Connection>> {
        let connection = self.connections.remove(key)?;
        if let Some(timer) = connection.timer
            && let Some(timers) = self.timers.get_mut(&key.tap)
        {
            timers.remove(&(timer, *key));
        }
        Some(connection)
    }

    /// Forgets what was parked for too long.
    pub(super) fn expire_parked(&mut self, now: Duration) {
        while let Some((key, until)) = self.parking.first()
            && until <= now
        {
            self.parking.take(&key);
        }
    }
}
