//! Sends production's requests to the shadow: one ordered queue and one real connection for each
//! connection of production's.
//!
//! Whatever the shadow does, slow, dead, refusing or resetting, it costs only counted drops and
//! errors: requests wait within `queue` and the agent's memory, answers come within `timeout`.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use uuid::Uuid;

use self::connection::{Answer, Connection, Failure};
use super::exchange::ConnectionId;
use super::memory::Memory;
use super::message::{ExchangeId, Request, Response, ShadowError};
use crate::config;

mod connection;
mod wire;

pub use self::wire::{ID_HEADER, SHADOW_HEADER};

/// A request to be replayed.
#[derive(Debug)]
pub struct Job {
    /// Which exchange it belongs to.
    pub exchange: ExchangeId,
    /// Sent along as [`ID_HEADER`].
    pub id: Uuid,
    /// The request.
    pub request: Request,
}

/// As many requests wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// A job that is done.
#[derive(Debug)]
pub struct Answered {
    /// The job.
    pub job: Job,
    /// When the request was fully written, in nanoseconds since the clock's start.
    pub written_ns: u64,
    /// The shadow's answer on the same clock, or why there is none.
    pub shadow: Result<Response, ShadowError>,
}

/// Where answers go.
pub trait Sink: Send + Sync + 'static {
    /// Whether anybody still wants this answer: production's may have turned out to be lost.
    fn wanted(&self, exchange: ExchangeId) -> bool;

    /// The shadow has answered, or failed to. Called for every job that was wanted.
    fn answered(self: &Arc<Self>, answered: Answered);
}

/// What the replay of one service is doing.
#[derive(Debug, Default)]
pub struct Load {
    waiting: AtomicUsize,
    active: AtomicUsize,
    retries: AtomicU64,
    answered: AtomicU64,
}

impl Load {
    /// Requests that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Exchanges with the shadow going on.
    pub fn active(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Requests that were sent a second time, since their connection had been closed.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Requests that the shadow answered.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

/// The replay of one service.
pub struct Replay<S> {
    target: Arc<Target>,
    sink: Arc<S>,
    queue: usize,
    queues: HashMap<ConnectionId, UnboundedSender<Job>>,
    tasks: JoinSet<()>,
}

/// The shadow model and what it is granted.
struct Target {
    address: SocketAddr,
    host: Option<String>,
    /// Headers that it does not get.
    strip: Vec<String>,
    timeout: Duration,
    max_body: usize,
    memory: Memory,
    clock: Instant,
    permits: Semaphore,
    load: Arc<Load>,
}

impl<S: Sink> Replay<S> {
    /// Replays to `service`'s target; nothing is opened before the first request. Answers are
    /// timed in nanoseconds since `clock`.
    pub fn new(
        service: &config::ShadowService,
        memory: Memory,
        clock: Instant,
        sink: Arc<S>,
    ) -> Self {
        let host = match service.host {
            config::HostHeader::Keep => None,
            config::HostHeader::Target => Some(service.target.to_string()),
        };
        Self {
            target: Arc::new(Target {
                address: service.target,
                host,
                strip: service.requests.strip_headers.clone(),
                timeout: service.timeout,
                max_body: service.max_body,
                memory,
                clock,
                permits: Semaphore::new(service.concurrency),
                load: Arc::default(),
            }),
            sink,
            queue: service.queue,
            queues: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// What it is doing, now and at any later time.
    pub fn load(&self) -> Arc<Load> {
        Arc::clone(&self.target.load)
    }

    /// Queues a request behind the earlier ones of its connection.
    ///
    /// # Errors
    /// When as many requests wait as may: this one is not replayed.
    pub fn push(&mut self, connection: ConnectionId, job: Job) -> Result<(), QueueFull> {
        let load = &self.target.load;
        if load.waiting() >= self.queue {
            return Err(QueueFull);
        }
        let queue = self.queues.entry(connection).or_insert_with(|| {
            // Those that ended meanwhile give their place back.
            while self.tasks.try_join_next().is_some() {}
            let (queue, jobs) = unbounded_channel();
            let (target, sink) = (Arc::clone(&self.target), Arc::clone(&self.sink));
            self.tasks.spawn(serve(target, sink, jobs));
            queue
        });
        load.waiting.fetch_add(1, Ordering::Relaxed);
        // The task ends when the queue is dropped, not before.
        let _ = queue.send(job);
        Ok(())
    }

    /// No more requests will come on this connection: what is queued is still sent, then the
    /// shadow's connection is closed.
    pub fn close(&mut self, connection: ConnectionId) {
        self.queues.remove(&connection);
    }

    /// Sends what is queued and stops; what is not answered within `limit` is given up.
    pub async fn drain(mut self, limit: Duration) {
        self.queues.clear();
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        // Dropping the tasks aborts them.
        let _ = tokio::time::timeout(limit, rest).await;
    }
}

/// Replays one connection's requests in their order.
async fn serve<S: Sink>(target: Arc<Target>, sink: Arc<S>, mut jobs: UnboundedReceiver<Job>) {
    let mut connection = None;
    while let Some(mut job) = jobs.recv().await {
        job.request.saturated = target.permits.available_permits() == 0;
        let turn = target.turn().await;
        target.load.waiting.fetch_sub(1, Ordering::Relaxed);
        let Some(turn) = turn.filter(|_| sink.wanted(job.exchange)) else {
            continue;
        };
        let result = target.exchange(&mut connection, &job).await;
        let (written_ns, shadow) = match result {
            Ok(answer) => {
                target.load.answered.fetch_add(1, Ordering::Relaxed);
                (answer.written_ns, Ok(answer.response))
            }
            Err(failure) => (failure.written_ns, Err(failure.error)),
        };
        drop(turn);
        sink.answered(Answered {
            job,
            written_ns,
            shadow,
        });
    }
}

/// One of the exchanges that may go on at once.
struct Turn<'a> {
    load: &'a Load,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.load.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Target {
    async fn turn(&self) -> Option<Turn<'_>> {
        // The semaphore is never closed.
        let permit = self.permits.acquire().await.ok()?;
        self.load.active.fetch_add(1, Ordering::Relaxed);
        Some(Turn {
            load: &self.load,
            _permit: permit,
        })
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// One exchange on `connection`, which is opened when there is none, and left there when it
    /// can carry another.
    async fn exchange(
        &self,
        connection: &mut Option<Connection>,
        job: &Job,
    ) -> Result<Answer, Failure> {
        let kept = connection.take().filter(Connection::is_open);
        let deadline = tokio::time::Instant::now() + self.timeout;
        let attempts = self.attempts(connection, kept, job);
        match tokio::time::timeout_at(deadline, attempts).await {
            Ok(result) => result,
            // The connection is gone with the attempt.
            Err(_) => Err(Failure::new(ShadowError::Timeout, self.now_ns())),
        }
    }

    /// A request on a kept connection is sent once more when that turns out to be closed before a
    /// byte of the answer: most likely the shadow closed it for idleness and never read the
    /// request. It may have read it, and then sees it twice (RFC 9110, 9.2.2, asks for caution);
    /// the shadow's answers reach nobody, and the id tells it that it is the same request.
    async fn attempts(
        &self,
        place: &mut Option<Connection>,
        kept: Option<Connection>,
        job: &Job,
    ) -> Result<Answer, Failure> {
        let request = wire::encode(&job.request, job.id, self.host.as_deref(), &self.strip);
        if let Some(mut kept) = kept {
            match kept.exchange(self, &job.request.method, &request).await {
                Err(failure) if failure.unanswered => {
                    self.load.retries.fetch_add(1, Ordering::Relaxed);
                }
                result => return keep(place, kept, result),
            }
        }
        let mut fresh = Connection::open(self).await?;
        let result = fresh.exchange(self, &job.request.method, &request).await;
        keep(place, fresh, result)
    }
}

/// Keeps a connection that can carry another exchange.
fn keep(
    place: &mut Option<Connection>,
    connection: Connection,
    result: Result<Answer, Failure>,
) -> Result<Answer, Failure> {
    if result.as_ref().is_ok_and(|answer| answer.persistent) {
        *place = Some(connection);
    }
    result
}

#[cfg(test)]
mod tests;
