//! Sends production's requests to the shadow: those of one connection of production's one after another,
//! at most `concurrency` at once, over connections that are kept for the next ones.
//!
//! Whatever the shadow does, slow, dead, refusing or resetting, it costs only counted drops and
//! errors: requests wait within `queue` and the agent's memory, answers come within `timeout`.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mirror_wire::exchange::ConnectionId;
use mirror_wire::mark::Mark;
use mirror_wire::memory::Memory;
use mirror_wire::message::{ExchangeId, Request, Response, ShadowError};
use tokio::task::JoinSet;
use uuid::Uuid;

use self::connection::{Answer, Connection, Failure};
use self::order::Order;
use self::sockets::Refused;
use self::wire::Stamp;
use crate::config;

mod connection;
mod order;
mod sockets;
mod wire;

pub use self::sockets::Sockets;
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

    /// The shadow was not asked: this host has no socket left for it.
    fn limited(self: &Arc<Self>, exchange: ExchangeId, error: &io::Error);
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

/// The longest that a request on a new connection waits for a byte before the server is taken to have no
/// worker for it: others are waiting for what rests.
const STARVED: Duration = Duration::from_secs(1);

/// The replay of one service.
pub struct Replay<S> {
    target: Arc<Target>,
    sink: Arc<S>,
    queue: usize,
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
    order: Mutex<Order>,
    mark: Mark,
    sockets: Sockets,
    /// Requests on new connections that were not answered with a byte for long.
    starving: AtomicUsize,
    load: Arc<Load>,
}

impl<S: Sink> Replay<S> {
    /// Replays to `service`'s target; nothing is opened before the first request. Answers are
    /// timed in nanoseconds since `clock`.
    pub fn new(
        service: &config::ShadowService,
        mark: Mark,
        sockets: &Sockets,
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
                order: Mutex::new(Order::new(service.concurrency)),
                mark,
                sockets: sockets.clone(),
                starving: AtomicUsize::new(0),
                load: Arc::default(),
            }),
            sink,
            queue: service.queue,
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
        load.waiting.fetch_add(1, Ordering::Relaxed);
        if self.target.order().push(connection, job) {
            // Those that ended meanwhile give their place back.
            while self.tasks.try_join_next().is_some() {}
            let worker = Worker {
                target: Arc::clone(&self.target),
                done: None,
                is_over: false,
            };
            self.tasks.spawn(worker.run(Arc::clone(&self.sink)));
        }
        Ok(())
    }

    /// Sends what is queued and stops; what is not answered within `limit` is given up.
    pub async fn drain(mut self, limit: Duration) {
        let rest = async { while self.tasks.join_next().await.is_some() {} };
        // Dropping the tasks aborts them.
        let _ = tokio::time::timeout(limit, rest).await;
    }
}

/// Replays requests, one at a time, as long as some wait.
struct Worker {
    target: Arc<Target>,
    /// The connection whose request it has last begun.
    done: Option<ConnectionId>,
    is_over: bool,
}

impl Worker {
    async fn run<S: Sink>(mut self, sink: Arc<S>) {
        while let Some(job) = self.next() {
            if sink.wanted(job.exchange) {
                self.replay(job, &sink).await;
            }
        }
    }

    fn next(&mut self) -> Option<Job> {
        let next = self.target.order().next(self.done.take());
        let Some((connection, job)) = next else {
            self.is_over = true;
            return None;
        };
        self.done = Some(connection);
        self.target.load.waiting.fetch_sub(1, Ordering::Relaxed);
        Some(job)
    }

    async fn replay<S: Sink>(&self, job: Job, sink: &Arc<S>) {
        let load = &self.target.load;
        let result = {
            let _active = Counted::one_more(&load.active);
            self.target.exchange(&job).await
        };
        let (written_ns, shadow) = match result {
            Ok(answer) => {
                load.answered.fetch_add(1, Ordering::Relaxed);
                (answer.written_ns, Ok(answer.response))
            }
            Err(NoAnswer::Failure(failure)) => (failure.written_ns, Err(failure.error)),
            Err(NoAnswer::Limit(error)) => return sink.limited(job.exchange, &error),
        };
        sink.answered(Answered {
            job,
            written_ns,
            shadow,
        });
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.is_over {
            // Somebody's panic, or the end of all.
            self.target.order().abandon(self.done.take());
        }
    }
}

/// One of what is counted, until it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn one_more(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why there is no answer.
enum NoAnswer {
    /// The shadow's side.
    Failure(Failure),
    /// This host's.
    Limit(io::Error),
}

impl From<Failure> for NoAnswer {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl Target {
    fn order(&self) -> MutexGuard<'_, Order> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// When what begins now has taken too long.
    fn deadline(&self) -> tokio::time::Instant {
        tokio::time::Instant::now() + self.timeout
    }

    /// One exchange, on a connection that rests where there is one.
    ///
    /// A request on a kept connection is sent once more when that turns out to be closed before a
    /// byte of the answer: most likely the shadow closed it for idleness and never read the
    /// request. It may have read it, and then sees it twice (RFC 9110, 9.2.2, asks for caution);
    /// the shadow's answers reach nobody, and the id tells it that it is the same request.
    async fn exchange(&self, job: &Job) -> Result<Answer, NoAnswer> {
        let stamp = Stamp {
            id: job.id,
            mark: self.mark.of(job.id),
        };
        let request = wire::encode(&job.request, &stamp, self.host.as_deref(), &self.strip);
        let method = &job.request.method;
        let mut deadline = self.deadline();
        if let Some(mut kept) = self.sockets.take(self.address) {
            let exchange = kept.exchange(self, method, &request, None);
            match self.within(deadline, exchange).await {
                Err(failure) if failure.unanswered => {
                    self.load.retries.fetch_add(1, Ordering::Relaxed);
                }
                result => return Ok(self.keep(kept, result)?),
            }
        }
        let mut fresh = match self.sockets.open(self.address, deadline).await {
            Ok((socket, false)) => Connection::new(socket),
            Ok((socket, true)) => {
                // The shadow has its time in any case.
                deadline = self.deadline();
                Connection::new(socket)
            }
            Err(Refused::Ours(error)) => return Err(NoAnswer::Limit(error)),
            Err(refused) => return Err(Failure::refused(refused, self.now_ns()).into()),
        };
        let begun = AtomicBool::new(false);
        let exchange = fresh.exchange(self, method, &request, Some(&begun));
        let result = self.within(deadline, self.watched(exchange, &begun)).await;
        Ok(self.keep(fresh, result)?)
    }

    async fn within(
        &self,
        deadline: tokio::time::Instant,
        exchange: impl Future<Output = Result<Answer, Failure>>,
    ) -> Result<Answer, Failure> {
        let result = tokio::time::timeout_at(deadline, exchange).await;
        result.unwrap_or_else(|_| Err(Failure::new(ShadowError::Timeout, self.now_ns())))
    }

    /// A server with fewer workers, or descriptors, than it has connections leaves the others waiting as long
    /// as those that it has are kept: then none is.
    async fn watched<T>(&self, exchange: impl Future<Output = T>, begun: &AtomicBool) -> T {
        let mut exchange = std::pin::pin!(exchange);
        let patience = STARVED.min(self.timeout / 4);
        if let Ok(result) = tokio::time::timeout(patience, &mut exchange).await {
            return result;
        }
        let _starves = (!begun.load(Ordering::Relaxed)).then(|| {
            let starves = Counted::one_more(&self.starving);
            self.sockets.close(self.address);
            starves
        });
        exchange.await
    }

    /// Keeps a connection that can carry another exchange.
    fn keep(
        &self,
        connection: Connection,
        result: Result<Answer, Failure>,
    ) -> Result<Answer, Failure> {
        let persistent = result.as_ref().is_ok_and(|answer| answer.persistent);
        if persistent && self.starving.load(Ordering::Relaxed) == 0 {
            self.sockets.put(self.address, connection);
        }
        result
    }
}

#[cfg(test)]
mod tests;
