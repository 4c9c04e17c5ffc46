//! What is written down of every exchange: one JSON object a line, in
//! `record_dir/SERVICE/comparisons-*.jsonl`.
//!
//! Lines are formed and redacted where [`Recorder::write`] is called and written by one thread of
//! their own, so that neither a slow nor a full disk holds the pipeline up.

mod folder;
pub(crate) mod form;
mod ledger;
pub mod line;
pub mod read;
mod store;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mirror_wire::body::Room;
use mirror_wire::body::Written;
use mirror_wire::memory::Lease;
use mirror_wire::message::Exchange;

use self::form::Form;
pub use self::ledger::{LEDGER, LedgerFile};
use self::store::Store;
use super::compare::Comparison;
use super::resume;
use crate::config;

/// Records that wait to be written.
const QUEUE: usize = 4096;

/// Bytes that wait to be written, all services together. They also count into the agent's memory.
const QUEUE_BYTES: usize = 64 << 20;

/// Bytes that most records fit in, where they have no payload.
const LINE: usize = 1024;

/// How long a record waits for others before it is written.
const FLUSH: Duration = Duration::from_secs(1);

/// How long the writing thread rests when it has written what waited. To wake it for each record would cost
/// the sender more than to form one; where none comes, it sleeps.
const REST: Duration = Duration::from_millis(10);

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It will be written, unless the disk refuses.
    Queued,
    /// It is lost: too much waits to be written. The exchange itself is not affected.
    Lost,
}

/// How recording goes, since the agent's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Records on the disk.
    pub written: u64,
    /// Records that found the queue full, or are too large for `record_limit`.
    pub lost: u64,
    /// Records that the disk refused, or that came while recording was stopped for that.
    pub failed: u64,
    /// Whether recording is stopped because the disk refused (full, most often). It is tried again
    /// every 10 s.
    pub stopped: bool,
}

/// Writes records. Dropping it writes what still waits.
#[derive(Debug)]
pub struct Recorder {
    forms: Vec<Form>,
    queue: Option<SyncSender<Message>>,
    writer: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
}

enum Message {
    Line {
        service: usize,
        line: Vec<u8>,
        /// The line's part of the agent's memory.
        _lease: Lease,
    },
    Ledger {
        service: usize,
        json: Vec<u8>,
    },
}

/// What both sides of the queue count.
#[derive(Debug, Default)]
struct Shared {
    written: AtomicU64,
    lost: AtomicU64,
    failed: AtomicU64,
    stopped: AtomicBool,
    waiting_bytes: AtomicUsize,
}

impl Shared {
    fn written(&self, records: u64) {
        self.written.fetch_add(records, Ordering::Relaxed);
    }

    fn failed(&self, records: u64) {
        self.failed.fetch_add(records, Ordering::Relaxed);
    }

    fn lost(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    fn stop(&self, stopped: bool) {
        self.stopped.store(stopped, Ordering::Relaxed);
    }
}

/// Makes the folders of the records, where they are missing, and looks whether files can be made
/// there. Returns one for each service.
///
/// # Errors
/// When a folder cannot be made, made private, or written to.
pub fn prepare(config: &config::Shadow) -> anyhow::Result<Vec<PathBuf>> {
    let record_dir = &folder::behind_link(&config.record_dir);
    let names: Vec<&str> = config.services.iter().map(|s| s.name.as_str()).collect();
    folder::private(record_dir, |name| {
        name == resume::FILE || names.iter().any(|service| name == *service)
    })?;
    names
        .iter()
        .map(|name| service_folder(record_dir, name))
        .collect()
}

impl Recorder {
    /// Opens `config.record_dir`, creates what is missing and starts the writing thread.
    ///
    /// # Errors
    /// As [`prepare`], and when the folders cannot be listed.
    pub fn open(config: &config::Shadow) -> anyhow::Result<Self> {
        let record_dir = &config.record_dir;
        let folders = prepare(config)?;
        let shared = Arc::new(Shared::default());
        let store = Store::open(
            record_dir,
            folders,
            config.record_limit,
            Arc::clone(&shared),
        )?;
        let (queue, receiver) = sync_channel(QUEUE);
        let counts = Arc::clone(&shared);
        let writer = thread::Builder::new()
            .name("records".into())
            .spawn(move || write_all(store, &receiver, &counts))
            .context("cannot start the thread that writes records")?;
        Ok(Self {
            forms: config.services.iter().map(Form::new).collect(),
            queue: Some(queue),
            writer: Some(writer),
            shared,
        })
    }

    /// Queues the record of an exchange with the service of index `service`. Never waits.
    pub fn write(&self, service: usize, exchange: &Exchange, comparison: &Comparison) -> Outcome {
        let queued = self.line(service, exchange, comparison).is_some();
        if !queued {
            self.shared.lost();
            return Outcome::Lost;
        }
        Outcome::Queued
    }

    fn line(&self, service: usize, exchange: &Exchange, comparison: &Comparison) -> Option<()> {
        let form = self.forms.get(service)?;
        let room = Room::beside(&exchange.request.lease);
        let line = {
            let record = form.record(exchange, comparison, &room);
            let mut line = Written::new(&room, LINE)?;
            serde_json::to_writer(&mut line, &record).ok()?;
            line.write_all(b"\n").ok()?;
            line.into_bytes()
        };
        if room.is_short() {
            return None;
        }
        let lease = room.into_lease(line.capacity())?;
        let length = line.len();
        let waiting = self
            .shared
            .waiting_bytes
            .fetch_add(length, Ordering::Relaxed);
        let sent = waiting + length <= QUEUE_BYTES
            && self
                .queue
                .as_ref()?
                .try_send(Message::Line {
                    service,
                    line,
                    _lease: lease,
                })
                .is_ok();
        if !sent {
            self.shared
                .waiting_bytes
                .fetch_sub(length, Ordering::Relaxed);
        }
        sent.then_some(())
    }

    /// Puts the ledger of the service of index `service` beside its records, for the report. Never
    /// waits; one that finds the queue full is left out, the next one will tell.
    pub fn write_ledger(&self, service: usize, ledger: &LedgerFile) {
        let json = serde_json::to_vec(ledger);
        if let (Ok(json), Some(queue)) = (json, &self.queue) {
            let _ = queue.try_send(Message::Ledger { service, json });
        }
    }

    /// How recording goes.
    pub fn state(&self) -> State {
        State {
            written: self.shared.written.load(Ordering::Relaxed),
            lost: self.shared.lost.load(Ordering::Relaxed),
            failed: self.shared.failed.load(Ordering::Relaxed),
            stopped: self.shared.stopped.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn service_folder(record_dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let mut components = Path::new(name).components();
    let plain = matches!(components.next(), Some(Component::Normal(_)));
    ensure!(
        plain && components.next().is_none(),
        "service name {name:?} cannot name the folder of its records: leave out `/` and `..`"
    );
    let path = record_dir.join(name);
    // The recorder's files are all it finds in its own folder, so nobody else loses anything.
    folder::private(&path, |_| true)?;
    Ok(path)
}

fn write_all(mut store: Store, queue: &Receiver<Message>, shared: &Shared) {
    let mut flushed = Instant::now();
    let mut dirty = false;
    loop {
        let received = match queue.try_recv() {
            Err(TryRecvError::Empty) if !dirty => {
                queue.recv().map_err(|_| TryRecvError::Disconnected)
            }
            received => received,
        };
        let now = Instant::now();
        dirty |= received.is_ok();
        match received {
            Ok(Message::Line {
                service,
                line,
                _lease,
            }) => {
                shared
                    .waiting_bytes
                    .fetch_sub(line.len(), Ordering::Relaxed);
                store.append(service, &line, now);
            }
            Ok(Message::Ledger { service, json }) => store.ledger(service, &json),
            Err(TryRecvError::Empty) => thread::sleep(REST),
            Err(TryRecvError::Disconnected) => break,
        }
        if now.duration_since(flushed) >= FLUSH {
            store.flush_all(now);
            flushed = now;
            dirty = false;
        }
    }
    store.flush_all(Instant::now());
}
