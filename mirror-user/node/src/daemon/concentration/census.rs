//! The thread that looks at the table of connections.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mirror_api::Concentration;

use super::Tracker;
use crate::dataplane::Connections;

/// After a look it rests for so many times what that took: 2 % of a CPU at most.
const REST: u32 = 50;

/// By the services' rows.
type Found = BTreeMap<u32, Concentration>;

/// Looks when it is asked, until it is dropped.
#[derive(Debug)]
pub(in crate::daemon) struct Census {
    asks: SyncSender<BTreeMap<u32, u64>>,
    found: Arc<Mutex<Found>>,
}

impl Census {
    /// The work is for a thread, see [`start`].
    pub(in crate::daemon) fn new() -> (Self, Asked) {
        // One place: what cannot be looked at soon is looked at next time.
        let (asks, asked) = sync_channel(1);
        let found = Arc::new(Mutex::default());
        let finds = Arc::clone(&found);
        (Self { asks, found }, Asked { asked, finds })
    }

    /// Asks about services, which have answered so many requests by now. Does not wait.
    pub(in crate::daemon) fn ask(&self, requests: BTreeMap<u32, u64>) {
        let _ = self.asks.try_send(requests);
    }

    /// What the last look came to.
    pub(in crate::daemon) fn found(&self) -> Found {
        lock(&self.found).clone()
    }
}

/// What the thread is asked, and where it writes down what it finds.
#[derive(Debug)]
pub(in crate::daemon) struct Asked {
    asked: Receiver<BTreeMap<u32, u64>>,
    finds: Arc<Mutex<Found>>,
}

/// Starts the thread.
///
/// # Errors
/// When there can be no more threads.
pub(in crate::daemon) fn start(asked: Asked, connections: Connections) -> io::Result<()> {
    let Asked { asked, finds } = asked;
    let thread = std::thread::Builder::new().name("census".to_owned());
    let look = move || keep_looking(&connections, &asked, &finds);
    thread.spawn(look).map(drop)
}

fn keep_looking(
    connections: &Connections,
    asked: &Receiver<BTreeMap<u32, u64>>,
    finds: &Mutex<Found>,
) {
    let (mut tracker, mut rest_until) = (Tracker::default(), Instant::now());
    while let Ok(requests) = asked.recv() {
        let begun = Instant::now();
        if begun < rest_until {
            continue;
        }
        let now = Duration::from_nanos(crate::daemon::now::ns());
        let connections = match connections.read() {
            Ok(connections) => connections,
            Err(error) => {
                tracing::warn!("who sends the traffic cannot be seen: {error}");
                rest_until = Instant::now() + REST * begun.elapsed();
                continue;
            }
        };
        let count = connections.len();
        *lock(finds) = tracker.look(now, &requests, connections);
        let took = begun.elapsed();
        tracing::debug!(?took, count, "looked at the table of connections");
        rest_until = Instant::now() + took * REST;
    }
}

/// What a panic elsewhere left behind is still true.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
