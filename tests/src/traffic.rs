//! Clients that go on whatever they get, and remember it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::{Client, Connection, Request};

/// Between two requests of a client.
const PAUSE: Duration = Duration::from_millis(8);

/// How many requests a connection carries: a share of connections is soon one of requests.
const LIFETIME: usize = 10;

/// What a client got.
#[derive(Clone, Debug)]
pub struct Got {
    /// When its request was sent.
    pub sent: Instant,
    /// When that was.
    pub at: Instant,
    /// Status, and the version that the answer names; nothing = it got no answer, and why.
    pub answer: Result<(u16, String), String>,
}

impl Got {
    /// Whether this version answered.
    pub fn is_of(&self, version: &str) -> bool {
        matches!(&self.answer, Ok((_, of)) if of == version)
    }
}

/// Clients at work, until they are dropped.
#[derive(Debug)]
pub struct Traffic {
    over: Arc<AtomicBool>,
    got: Arc<Mutex<Vec<Got>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// So many clients, each of which sends `make`'s requests one after another, a hundred or so in a
    /// second.
    pub fn start(
        client: &Client,
        clients: usize,
        make: impl Fn(usize) -> Request + Send + Sync + 'static,
    ) -> Self {
        Self::over(client, clients, LIFETIME, make)
    }

    /// The same over connections that carry so many requests.
    pub fn over(
        client: &Client,
        clients: usize,
        lifetime: usize,
        make: impl Fn(usize) -> Request + Send + Sync + 'static,
    ) -> Self {
        let (over, got) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let make = Arc::new(make);
        let spawn = |number: usize| {
            let (client, make) = (client.clone(), Arc::clone(&make));
            let (over, got) = (Arc::clone(&over), Arc::clone(&got));
            std::thread::spawn(move || send(&client, number, lifetime, &*make, &over, &got))
        };
        let threads = (0..clients).map(spawn).collect();
        Self { over, got, threads }
    }

    /// All that clients got so far, in the order in which it came.
    pub fn got(&self) -> Vec<Got> {
        self.got
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Ends it, and says what clients got.
    pub fn stop(mut self) -> Vec<Got> {
        self.end();
        self.got()
    }

    fn end(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

fn send(
    client: &Client,
    number: usize,
    lifetime: usize,
    make: &dyn Fn(usize) -> Request,
    over: &AtomicBool,
    got: &Mutex<Vec<Got>>,
) {
    let mut connection: Option<Connection> = None;
    let mut sent_over_it = 0;
    let mut index = number;
    while !over.load(Ordering::Relaxed) {
        index = index.wrapping_add(1_000);
        let sent = Instant::now();
        let asked = match connection.take().filter(|_| sent_over_it < lifetime) {
            Some(open) => Ok(open),
            None => {
                sent_over_it = 0;
                client.connect()
            }
        }
        .and_then(|mut open| {
            let answer = open.ask(&make(index))?;
            Ok((answer, open))
        });
        let answer = match asked {
            Ok((answer, open)) => {
                connection = Some(open);
                sent_over_it += 1;
                Ok((answer.status, version(&answer.body)))
            }
            Err(error) => Err(format!("{error:#}")),
        };
        let at = Instant::now();
        let mut all = got.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Got { sent, at, answer });
        drop(all);
        std::thread::sleep(PAUSE);
    }
}

/// The version that an answer names.
fn version(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    body["model_version"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}
