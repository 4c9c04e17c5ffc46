//! Keeps the tables of translations clean: a thread forgets what is over, and counts what there is.
//!
//! The programs need nobody for that: they take a port whose connection is over by themselves. What they do
//! not come by stays in the tables until it is forgotten here.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mirror_api::Translations as Use;
use mirror_common::flow::{Endpoint, Flow};
use mirror_common::translate::{IDLE_NS, Translation, phase};
use mirror_rollout::Share;

use crate::dataplane::{self, Translations};

/// New connections a second for each port, as measured: 2,000 with 4,536 ports, whoever closes first (`cargo xtask
/// bench --connections`).
const MEASURED: f64 = 2_000.0 / 4_536.0;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// After a look it rests for so many times what that took: 2 % of a CPU at most.
const REST: u32 = 50;

/// Every so many looks it holds both tables against each other.
const WHOLE: u64 = 30;

/// An entry without its counterpart may be on its way for so long.
const YOUNG_NS: u64 = 10_000_000_000;

/// So much of the ports, or of the table, is a lot: connections that have long been silent give way then.
const SCARCE: f64 = 0.9;

/// How much there is room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Ports for the connections of one canary, all addresses together.
    pub(super) ports: u64,
    /// Connections in the table, of all canaries.
    pub(super) table: u64,
}

impl Room {
    /// Connections of one canary at the most.
    pub(super) fn limit(self) -> u64 {
        self.ports.min(self.table)
    }
}

/// Why a canary elsewhere, that gets this part of new connections, would not find ports for them: `open` are
/// stable's now, and so many begin each second.
pub(super) fn lacking(room: Room, share: Share, open: u64, new_per_second: f64) -> Option<String> {
    let share_of = |figure: f64| figure * f64::from(share.parts()) / f64::from(Share::ALL.parts());
    let cure = "add `translation_addresses`, or widen `translation_ports` and `connections`";
    let (limit, wanted) = (room.limit(), share_of(open as f64));
    if wanted > limit as f64 {
        return Some(format!(
            "{open} connections are open, of which {wanted:.0} would be translated at a share of {share}, and there is room for {limit}: {cure}"
        ));
    }
    let (sure, wanted) = (room.ports as f64 * MEASURED, share_of(new_per_second));
    (wanted > sure).then(|| {
        format!(
            "{wanted:.0} connections a second would be translated at a share of {share}, and {sure:.0} were measured to find a port each: {cure}"
        )
    })
}

/// What there is, and what became of what was.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Figures {
    /// By canary.
    pub(super) by_canary: BTreeMap<SocketAddr, Use>,
}

/// What the thread is told, and what it has found.
#[derive(Debug)]
pub(super) struct Janitor {
    figures: Arc<Mutex<Figures>>,
    room: Arc<Mutex<Room>>,
    _stop: SyncSender<()>,
}

/// The thread's end of it.
#[derive(Debug)]
pub(super) struct Rooms {
    figures: Arc<Mutex<Figures>>,
    room: Arc<Mutex<Room>>,
    stopped: Receiver<()>,
}

/// Starts the thread, which looks once a second until the janitor is dropped.
///
/// # Errors
/// When there can be no more threads.
pub(super) fn start(rooms: Rooms, tables: Translations) -> io::Result<()> {
    let thread = std::thread::Builder::new().name("translations".to_owned());
    let work = move || {
        let (mut rest, mut looks) = (INTERVAL, 0);
        while rooms.stopped.recv_timeout(rest) == Err(RecvTimeoutError::Timeout) {
            let begun = Instant::now();
            let room = *lock(&rooms.room);
            let looked = look(&tables, room, looks % WHOLE == 0, &rooms.figures);
            if let Err(error) = looked {
                tracing::warn!("the tables of translations cannot be cleaned: {error}");
            }
            looks += 1;
            rest = INTERVAL.max(begun.elapsed() * REST);
        }
    };
    thread.spawn(work).map(drop)
}

impl Janitor {
    /// The work is for a thread, see [`start`].
    pub(super) fn new(room: Room) -> (Self, Rooms) {
        let (stop, stopped) = sync_channel::<()>(0);
        let figures = Arc::new(Mutex::default());
        let room = Arc::new(Mutex::new(room));
        let rooms = Rooms {
            figures: Arc::clone(&figures),
            room: Arc::clone(&room),
            stopped,
        };
        let janitor = Self {
            figures,
            room,
            _stop: stop,
        };
        (janitor, rooms)
    }

    /// Says how much there is room for.
    pub(super) fn has_room(&self, room: Room) {
        *lock(&self.room) = room;
    }

    /// What the last look came to.
    pub(super) fn figures(&self) -> Figures {
        lock(&self.figures).clone()
    }
}

fn look(
    tables: &Translations,
    room: Room,
    is_whole: bool,
    figures: &Mutex<Figures>,
) -> Result<(), dataplane::Error> {
    let now = super::now::ns();
    let mut counts: BTreeMap<Endpoint, Use> = BTreeMap::new();
    let (mut over, mut open) = (Vec::new(), Vec::new());
    tables.each(|away, translation| {
        if translation.is_over(now) {
            over.push(away);
            return;
        }
        add(counts.entry(away.server).or_default(), &translation);
        if is_whole && translation.phase == phase::OPEN && age(&translation, now) > YOUNG_NS {
            open.push(away);
        }
    })?;
    for away in over {
        tables.forget(&away, |translation| translation.is_over(now))?;
    }
    let held: u64 = counts.values().map(Use::held).sum();
    for counted in counts.values_mut() {
        counted.limit = room.limit();
        let of_ports = counted.held() as f64 / room.ports.max(1) as f64;
        let of_table = held as f64 / room.table.max(1) as f64;
        counted.used = of_ports.max(of_table);
    }
    for (canary, before) in &lock(figures).by_canary {
        counts.entry((*canary).into()).or_default().evicted = before.evicted;
    }
    if is_whole {
        let seen = tables.seen()?;
        for away in unneeded(&open, &seen, &counts, now) {
            let is_same = |translation: &Translation| translation.phase == phase::OPEN;
            let is_evicted = tables.forget(&away, is_same)? && seen.contains_key(&away);
            let counted = counts.entry(away.server).or_default();
            counted.evicted += u64::from(is_evicted);
        }
    }
    let by_canary = counts.into_iter();
    lock(figures).by_canary = by_canary
        .map(|(end, counted)| (end.into(), counted))
        .collect();
    Ok(())
}

fn age(translation: &Translation, now: u64) -> u64 {
    now.saturating_sub(translation.since_ns)
}

fn add(counted: &mut Use, translation: &Translation) {
    let of_phase = match translation.phase {
        phase::OPEN => &mut counted.open,
        phase::WAITING => &mut counted.handshakes,
        phase::CLOSED => &mut counted.closing,
        _ => return,
    };
    *of_phase += 1;
}

/// What of the open ones has lost its connection, or, where room is scarce, has been silent for hours.
fn unneeded(
    open: &[Flow],
    seen: &HashMap<Flow, u64>,
    counts: &BTreeMap<Endpoint, Use>,
    now: u64,
) -> Vec<Flow> {
    let is_unneeded = |away: &Flow| match seen.get(away) {
        None => true,
        Some(seen_ns) => {
            let counted = counts.get(&away.server);
            let is_scarce = counted.is_some_and(|counted| counted.used >= SCARCE);
            is_scarce && now.saturating_sub(*seen_ns) > IDLE_NS
        }
    };
    open.iter().copied().filter(is_unneeded).collect()
}

/// What a panic elsewhere left behind is still true.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_will_not_do_are_told_beforehand() {
        let room = Room {
            ports: 4_536,
            table: 65_536,
        };
        let half = Share::of_parts(5_000);
        let said = |open, new| lacking(room, half, open, new);
        assert_eq!(said(9_000, 3_999.0), None);
        let many_open = said(10_000, 0.0).unwrap();
        let words = "5000 would be translated at a share of 0.5, and there is room for 4536";
        assert!(many_open.contains(words), "{many_open}");
        let many_new = said(9_000, 4_400.0).unwrap();
        assert!(
            many_new.starts_with("2200 connections a second"),
            "{many_new}"
        );
    }

    #[test]
    fn the_silent_give_way_where_room_is_scarce() {
        let end = |last: u8, port| Endpoint::from(SocketAddr::from(([10, 0, 0, last], port)));
        let flow = |port| Flow {
            client: end(5, port),
            server: end(9, 8001),
        };
        let open = [1, 2, 3].map(flow);
        let now = 3 * IDLE_NS;
        // The first is silent, the second is not, of the third there is nothing.
        let seen = HashMap::from([(flow(1), now - IDLE_NS - 1), (flow(2), now - 1)]);
        let check = |used: f64, expected: &[u16]| {
            let counted = Use {
                used,
                ..Use::default()
            };
            let counts = BTreeMap::from([(end(9, 8001), counted)]);
            let found = unneeded(&open, &seen, &counts, now);
            let ports: Vec<u16> = found.iter().map(|away| away.client.port()).collect();
            assert_eq!(ports, expected);
        };
        check(0.89, &[3]);
        check(0.9, &[1, 3]);
    }
}
