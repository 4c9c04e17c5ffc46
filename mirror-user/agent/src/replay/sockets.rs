//! This host's connections to shadows: how many there may be, and those that rest between two requests.
//!
//! Descriptors and ports are this host's, not the shadow's: where they run out, what rests is given up, the
//! least recently used first, and the rest waits. All services draw from the same.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::connection::Connection;

/// A connection that rests for longer is closed: a server with few workers has one of them wait for it.
const REST: Duration = Duration::from_secs(2);

/// How soon the kernel is asked again for a descriptor or a port that it did not have.
const AGAIN: Duration = Duration::from_millis(20);

/// See the module's words. Clones are the same.
#[derive(Clone, Debug)]
pub struct Sockets(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    places: Arc<Semaphore>,
    /// Requests that wait for a place.
    wanted: AtomicUsize,
    resting: Mutex<Resting>,
}

#[derive(Debug, Default)]
struct Resting {
    /// By the shadow's address, the least recently used first.
    connections: HashMap<SocketAddr, VecDeque<(Instant, Connection)>>,
    /// Whether somebody closes those that rest for too long.
    swept: bool,
}

/// A socket that is connected.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) stream: TcpStream,
    _place: OwnedSemaphorePermit,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum Refused {
    /// The shadow's side.
    Shadow(io::Error),
    /// Nothing of it was heard in time.
    Silent,
    /// This host has none left.
    Ours(io::Error),
}

impl Sockets {
    /// At most so many at once.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Shared {
            places: Arc::new(Semaphore::new(most.clamp(1, Semaphore::MAX_PERMITS))),
            wanted: AtomicUsize::new(0),
            resting: Mutex::default(),
        }))
    }

    /// Connects to `address`, by `deadline`; says whether this host had to be waited for.
    pub(super) async fn open(
        &self,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<(Socket, bool), Refused> {
        let (place, mut waited) = self.place(deadline).await?;
        loop {
            let connected = timeout_at(deadline, TcpStream::connect(address)).await;
            let error = match connected {
                Err(_) => return Err(Refused::Silent),
                Ok(Ok(stream)) => {
                    let _place = place;
                    return Ok((Socket { stream, _place }, waited));
                }
                Ok(Err(error)) if is_ours(&error) => error,
                Ok(Err(error)) => return Err(Refused::Shadow(error)),
            };
            if self.give_up_oldest() {
                continue;
            }
            if Instant::now() + AGAIN >= deadline {
                return Err(Refused::Ours(error));
            }
            waited = true;
            sleep(AGAIN).await;
        }
    }

    async fn place(&self, deadline: Instant) -> Result<(OwnedSemaphorePermit, bool), Refused> {
        let places = || Arc::clone(&self.0.places);
        loop {
            if let Ok(place) = places().try_acquire_owned() {
                return Ok((place, false));
            }
            if !self.give_up_oldest() {
                break;
            }
        }
        self.0.wanted.fetch_add(1, Ordering::Relaxed);
        let acquired = timeout_at(deadline, places().acquire_owned()).await;
        self.0.wanted.fetch_sub(1, Ordering::Relaxed);
        match acquired {
            Ok(Ok(place)) => Ok((place, true)),
            // The semaphore is never closed.
            _ => Err(Refused::Ours(Errno::EMFILE.into())),
        }
    }

    /// The connection to `address` that was used last, of those that are still open.
    pub(super) fn take(&self, address: SocketAddr) -> Option<Connection> {
        let mut resting = self.resting();
        let connections = resting.connections.get_mut(&address)?;
        let mut newest = std::iter::from_fn(|| connections.pop_back());
        let found = newest.find(|(_, connection)| connection.is_open());
        found.map(|(_, connection)| connection)
    }

    /// A connection rests.
    pub(super) fn put(&self, address: SocketAddr, connection: Connection) {
        if self.0.wanted.load(Ordering::Relaxed) > 0 {
            // Its place is for somebody else.
            return connection.reset();
        }
        let mut resting = self.resting();
        let connections = resting.connections.entry(address).or_default();
        connections.push_back((Instant::now(), connection));
        if !std::mem::replace(&mut resting.swept, true) {
            tokio::spawn(sweep(self.clone()));
        }
    }

    /// Closes those to `address`.
    pub(super) fn close(&self, address: SocketAddr) {
        self.resting().connections.remove(&address);
    }

    /// Gives up the one that was not used for the longest. Whether there was one.
    fn give_up_oldest(&self) -> bool {
        let mut resting = self.resting();
        let oldest = resting.connections.values_mut();
        let oldest = oldest
            .filter(|connections| !connections.is_empty())
            .min_by_key(|connections| connections.front().map(|&(since, _)| since));
        let Some((_, connection)) = oldest.and_then(VecDeque::pop_front) else {
            return false;
        };
        // Otherwise its port would be remembered, and not be had, for another minute.
        connection.reset();
        true
    }

    /// Closes those that rest for too long; says when the next ones do.
    fn expire(&self, now: Instant) -> Option<Instant> {
        let mut resting = self.resting();
        let mut next: Option<Instant> = None;
        resting.connections.retain(|_, connections| {
            while connections
                .front()
                .is_some_and(|&(since, _)| since + REST <= now)
            {
                connections.pop_front();
            }
            let due = connections.front().map(|&(since, _)| since + REST);
            next = next.into_iter().chain(due).min();
            due.is_some()
        });
        resting.swept = next.is_some();
        next
    }

    fn resting(&self) -> MutexGuard<'_, Resting> {
        self.0
            .resting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs as long as something rests.
async fn sweep(sockets: Sockets) {
    while let Some(next) = sockets.expire(Instant::now()) {
        sleep_until(next).await;
    }
}

/// Whether it is this host that has no descriptor, no port or no memory for a socket.
fn is_ours(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::EADDRNOTAVAIL | Errno::ENOBUFS | Errno::ENOMEM)
    )
}
