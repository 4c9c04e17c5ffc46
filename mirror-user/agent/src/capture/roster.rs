//! Taps' names and numbers: who has a place, and who gives way. Pure but for what is shared.
//!
//! A tap that is connected keeps its place. One that is not gives way when nothing was heard of it for
//! [`REMEMBERED`], and when all places are taken the one that has been silent longest does, but none that was heard of
//! within [`LIVE`]: whoever makes up addresses fills what is free, and pushes nobody out who sends. Taps that the
//! config names have places of their own.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mirror_wire::memory::{Lease, Memory};
use mirror_wire::message::TapId;

/// Taps at once, besides those that the config names; what comes of more is not listened to.
const MAX_TAPS: usize = 4096;

/// How long a tap is remembered that is silent: a node that is away overnight goes on with its counts.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

/// A tap that was heard of within so long makes room for nobody.
const LIVE: Duration = Duration::from_secs(60);

/// What a tap takes, in bytes, wherever something is kept by taps: most of it are its series in the metrics.
const TAP: usize = 16 << 10;

/// Why a tap is not remembered any more. Label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GaveWay {
    /// Nothing was heard of it for a day.
    Silent,
    /// Another one needed its place.
    Room,
}

impl GaveWay {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 2] = [Self::Silent, Self::Room];

    /// The value of the `reason` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Room => "room",
        }
    }
}

/// A tap that is not remembered any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gone {
    pub(super) id: TapId,
    pub(super) name: String,
    pub(super) silent: Duration,
    pub(super) why: GaveWay,
}

/// Who has which number. Shared by all ways in: the same name is the same tap, however it comes.
#[derive(Clone, Debug)]
pub(super) struct Roster(Arc<Mutex<Book>>);

#[derive(Debug)]
struct Book {
    /// What the config calls its taps.
    named: HashSet<String>,
    taps: HashMap<String, Entry>,
    /// Taps that the config does not name.
    others: usize,
    ids: HashSet<u16>,
    last: u16,
    gone: Vec<Gone>,
    /// Until then nobody can give way.
    full_until: Option<Instant>,
    memory: Memory,
}

#[derive(Debug)]
struct Entry {
    id: u16,
    heard: Instant,
    connections: usize,
    /// Whether the config names it.
    is_named: bool,
    _lease: Option<Lease>,
}

/// A connected tap's place. Dropped when its connection is over.
pub(super) struct Seat {
    roster: Roster,
    name: String,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(entry) = self.roster.book().taps.get_mut(&self.name) {
            entry.connections -= 1;
            entry.heard = Instant::now();
        }
    }
}

impl Roster {
    /// `named`: the taps that the config names, which always have a place.
    pub(super) fn new(named: impl Iterator<Item = String>, memory: &Memory) -> Self {
        Self(Arc::new(Mutex::new(Book {
            named: named.collect(),
            taps: HashMap::new(),
            others: 0,
            ids: HashSet::new(),
            last: 0,
            gone: Vec::new(),
            full_until: None,
            memory: memory.clone(),
        })))
    }

    /// The number of the tap with this name, a new one where the name is new; nothing where no place is free.
    pub(super) fn number(&self, name: &str, now: Instant) -> Option<TapId> {
        let mut book = self.book();
        Some(book.entry(name, now)?.id())
    }

    /// The same for a tap that has connected: it keeps its place as long as it does.
    pub(super) fn connect(&self, name: &str, now: Instant) -> Option<(TapId, Seat)> {
        let mut book = self.book();
        let entry = book.entry(name, now)?;
        entry.connections += 1;
        let seat = Seat {
            roster: self.clone(),
            name: name.to_owned(),
        };
        Some((entry.id(), seat))
    }

    /// Whether this number is still this tap's.
    pub(super) fn is(&self, id: TapId, name: &str) -> bool {
        let book = self.book();
        book.taps.get(name).is_some_and(|entry| entry.id() == id)
    }

    /// Something has come from these taps.
    pub(super) fn heard<'a>(&self, names: impl Iterator<Item = &'a str>, now: Instant) {
        let mut book = self.book();
        for name in names {
            if let Some(entry) = book.taps.get_mut(name) {
                entry.heard = now;
            }
        }
    }

    /// Taps that are not remembered any more, since this was last asked.
    pub(super) fn take_gone(&self, now: Instant) -> Vec<Gone> {
        let mut book = self.book();
        let is_old = |entry: &Entry| entry.silent(now).is_some_and(|long| long >= REMEMBERED);
        let old = book.taps.iter().filter(|(_, entry)| is_old(entry));
        let old: Vec<String> = old.map(|(name, _)| name.clone()).collect();
        for name in old {
            book.remove(&name, GaveWay::Silent, now);
        }
        std::mem::take(&mut book.gone)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn id(&self) -> TapId {
        TapId(self.id.into())
    }

    /// Since when nothing was heard of it; nothing while it is connected.
    fn silent(&self, now: Instant) -> Option<Duration> {
        (self.connections == 0).then(|| now.saturating_duration_since(self.heard))
    }
}

impl Book {
    fn entry(&mut self, name: &str, now: Instant) -> Option<&mut Entry> {
        if !self.taps.contains_key(name) {
            let entry = self.admit(name, now)?;
            self.taps.insert(name.to_owned(), entry);
        }
        let entry = self.taps.get_mut(name)?;
        entry.heard = now;
        Some(entry)
    }

    fn admit(&mut self, name: &str, now: Instant) -> Option<Entry> {
        // As many as the config has: they are bounded by it, and never short of room for others' sake.
        let is_named = self.named.contains(name);
        if !is_named && self.others >= MAX_TAPS {
            self.make_room(now)?;
        }
        let lease = self.memory.lease(TAP);
        if lease.is_none() && !is_named {
            return None;
        }
        let id = self.free_id()?;
        self.others += usize::from(!is_named);
        Some(Entry {
            id,
            heard: now,
            connections: 0,
            is_named,
            _lease: lease,
        })
    }

    /// The next one: what is still on its way from a tap that is gone is not taken for another's.
    fn free_id(&mut self) -> Option<u16> {
        let after = (1..=u16::MAX).map(|step| self.last.wrapping_add(step));
        let id = after
            .into_iter()
            .find(|id| *id != 0 && !self.ids.contains(id))?;
        self.ids.insert(id);
        self.last = id;
        Some(id)
    }

    fn make_room(&mut self, now: Instant) -> Option<()> {
        if self.full_until.is_some_and(|until| now < until) {
            return None;
        }
        let silent = self.taps.iter().filter(|(_, entry)| !entry.is_named);
        let silent = silent.filter_map(|(name, entry)| Some((entry.silent(now)?, name)));
        let (long, name) = silent.max().map(|(long, name)| (long, name.clone()))?;
        if long < LIVE {
            self.full_until = now.checked_add(LIVE.saturating_sub(long));
            return None;
        }
        self.remove(&name, GaveWay::Room, now);
        Some(())
    }

    fn remove(&mut self, name: &str, why: GaveWay, now: Instant) {
        if let Some(entry) = self.taps.remove(name) {
            self.ids.remove(&entry.id);
            self.others -= usize::from(!entry.is_named);
            self.gone.push(Gone {
                id: entry.id(),
                name: name.to_owned(),
                silent: entry.silent(now).unwrap_or_default(),
                why,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roster(memory: usize) -> (Roster, Instant) {
        let named = ["node-a", "node-b"].map(str::to_owned);
        let roster = Roster::new(named.into_iter(), &Memory::new(memory));
        (roster, Instant::now())
    }

    /// Fills every place with taps that send a second apart, `t0` first.
    fn fill(roster: &Roster, from: Instant) -> Instant {
        for n in 0..MAX_TAPS {
            let now = from + Duration::from_millis(n as u64);
            assert!(roster.number(&format!("t{n}"), now).is_some(), "{n}");
        }
        from + Duration::from_millis(MAX_TAPS as u64)
    }

    #[test]
    fn a_name_has_one_number() {
        let (roster, now) = roster(1 << 30);
        assert_eq!(roster.number("a", now), Some(TapId(1)));
        assert_eq!(roster.number("b", now), Some(TapId(2)));
        assert_eq!(roster.clone().number("a", now), Some(TapId(1)));
        assert!(roster.is(TapId(2), "b") && !roster.is(TapId(2), "a"));
    }

    #[test]
    fn the_one_that_has_been_silent_longest_makes_room() {
        let (roster, now) = roster(1 << 30);
        let full = fill(&roster, now);
        // All were heard of within the minute.
        assert_eq!(roster.number("new", full), None);
        assert_eq!(roster.number("new", full + Duration::from_secs(1)), None);
        roster.heard(["t0"].into_iter(), full);
        let later = now + LIVE + Duration::from_secs(5);
        let new = roster.number("new", later).unwrap();
        let gone = roster.take_gone(later);
        assert_eq!(gone.len(), 1);
        assert_eq!((&*gone[0].name, gone[0].why), ("t1", GaveWay::Room));
        // Its number is nobody's for long.
        assert_eq!(new, TapId(MAX_TAPS as u32 + 1));
        assert!(roster.is(TapId(1), "t0") && !roster.is(TapId(2), "t1"));
    }

    /// Whoever makes up addresses takes no place of one that is connected, or that the config names.
    #[test]
    fn forged_taps_push_out_no_one_who_is_there() {
        let (roster, now) = roster(1 << 30);
        let (id, seat) = roster.connect("open", now).unwrap();
        let named = roster.number("node-a", now).unwrap();
        let hours = |n: usize| now + Duration::from_secs(3600) + Duration::from_millis(n as u64);
        for n in 0..MAX_TAPS + 1_000 {
            roster.number(&format!("forged-{n}"), hours(100 * n));
        }
        assert!(roster.is(id, "open") && roster.is(named, "node-a"));
        // Nor is one that the config names kept out.
        let full = hours(200 * MAX_TAPS);
        let fits = |n: &usize| roster.number(&format!("late-{n}"), full).is_some();
        assert!((0..2 * MAX_TAPS).filter(fits).count() <= MAX_TAPS);
        assert!(roster.connect("node-b", full).is_some());
        assert_eq!(roster.number("forged", full), None);
        drop(seat);
    }

    #[test]
    fn what_is_silent_for_a_day_is_forgotten() {
        let (roster, now) = roster(1 << 30);
        roster.number("away", now);
        let (_, seat) = roster.connect("node-a", now).unwrap();
        let tomorrow = now + REMEMBERED;
        assert_eq!(roster.take_gone(tomorrow - Duration::from_secs(1)), []);
        let gone = roster.take_gone(tomorrow);
        assert_eq!(gone.len(), 1);
        assert_eq!((&*gone[0].name, gone[0].why), ("away", GaveWay::Silent));
        assert_eq!(gone[0].silent, REMEMBERED);
        drop(seat);
        let gone = roster.take_gone(tomorrow + REMEMBERED);
        assert_eq!(gone[0].name, "node-a");
    }

    #[test]
    fn taps_keep_to_their_memory() {
        let (roster, now) = roster(2 * TAP);
        assert!(roster.number("a", now).is_some() && roster.number("b", now).is_some());
        assert_eq!(roster.number("c", now), None);
        assert!(roster.connect("node-a", now).is_some());
        assert_eq!(roster.take_gone(now + REMEMBERED).len(), 2);
        assert!(roster.number("c", now + REMEMBERED).is_some());
    }
}
