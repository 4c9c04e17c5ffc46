//! Where the three parts of an exchange meet: joined, compared, recorded, counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mirror_common::tunnel::{Arm, Direction};

use self::seconds::Noise;
pub(super) use self::seconds::SecondSink;
use mirror_api::shadow::{
    AgentStatus, LastError, LastRefusal, Malformed, RecordStatus, ServiceStatus, TapStatus,
};
use mirror_api::summary::{LabelSummary, OfNode, ServerSummary, ServiceSummary, Summary};
use mirror_wire::body::Room;
use mirror_wire::exchange::Forgotten;
use mirror_wire::message::{
    DropReason, Exchange, ExchangeId, Response, ShadowError, TapId, Unreadable,
};

use super::Figures;
use super::workers::{Job, Workers};
use crate::compare::{Comparer, Slices};
use crate::config;
use crate::evidence::Evidence;
use crate::health::{Health, News, Queue};
use crate::join::{Dropped, Joined, Origin, Pair, Pending};
use crate::metrics::{self, Leg, ServiceFigures, ServiceMetrics};
use crate::record::LedgerFile;
use crate::record::Recorder;
use crate::replay::{Answered, Sink};
use crate::requests::{Balance, RequestLedger};
use mirror_base::servers::Usage;

mod seconds;

/// The version of production before its tap has said one.
const UNKNOWN: &str = "unknown";

/// Versions of production that one run remembers.
const MAX_VERSIONS: usize = 100;

/// All that is shared by those who see a part of an exchange.
pub(super) struct Judge {
    pending: Mutex<Pending>,
    services: Vec<Service>,
    /// What each tap calls production's versions, by service and arm.
    versions: Mutex<HashMap<(TapId, usize, Arm), String>>,
    recorder: Recorder,
    record_dir: PathBuf,
    /// As they were at the capture's last look, with who was refused last.
    taps: Mutex<(Vec<TapStatus>, Option<LastRefusal>)>,
    metrics: metrics::Agent,
    since: jiff::Timestamp,
    workers: Arc<Workers<Pair>>,
    /// Exchanges whose production answers nobody needs, for the capture thread.
    unneeded: Mutex<Vec<ExchangeId>>,
    /// What came from each tap, by its name.
    of_taps: Mutex<HashMap<String, OfTap>>,
}

/// What came from one tap.
#[derive(Clone, Debug, Default)]
pub(super) struct OfTap {
    /// The life of its counters.
    pub(super) boot: u64,
    /// Requests since they began, by service.
    pub(super) seen: HashMap<usize, u64>,
}

impl OfTap {
    fn of(&self, service: usize) -> OfNode {
        OfNode {
            boot: self.boot,
            seen: self.seen.get(&service).copied().unwrap_or_default(),
        }
    }
}

struct Service {
    name: String,
    id: u32,
    version: String,
    target: SocketAddr,
    queue: usize,
    concurrency: usize,
    comparer: Comparer,
    health: Mutex<Health>,
    last_error: Mutex<Option<LastError>>,
    slices: Mutex<Slices>,
    /// The versions that were in production since the agent's start.
    production: Mutex<BTreeSet<String>>,
    evidence: Mutex<Evidence>,
    noise: Noise,
    labels: Mutex<Option<LabelSummary>>,
    ledger: RequestLedger,
    /// What was last written of it.
    written: Mutex<Option<LedgerFile>>,
    /// Says that this host has no sockets left.
    limited: Throttle,
    /// Says that connections are forgotten, with how many there were when it was said.
    crowded: Mutex<u64>,
    metrics: ServiceMetrics,
}

/// The log says the same at most once in so long.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A ledger that stays the same is written again after so long: its time tells that the agent lives.
const UNCHANGED: Duration = Duration::from_secs(60);

/// When something was last said.
#[derive(Default)]
struct Throttle(Mutex<Option<Instant>>);

impl Throttle {
    /// Whether it is to be said now.
    fn is_due(&self, now: Instant) -> bool {
        let mut last = lock(&self.0);
        let is_due = last.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

impl Judge {
    pub(super) fn new(config: &config::Shadow, metrics: metrics::Agent) -> anyhow::Result<Self> {
        let services = config.services.iter().map(|service| Service {
            name: service.name.clone(),
            id: service.id,
            version: service.version.clone(),
            target: service.target,
            queue: service.queue,
            concurrency: service.concurrency,
            comparer: Comparer::new(&service.compare, &service.record),
            health: Mutex::default(),
            last_error: Mutex::default(),
            slices: Mutex::new(Slices::new(&service.compare.slices)),
            production: Mutex::default(),
            evidence: Mutex::default(),
            noise: Noise::new(service.control.as_ref(), config.services.len()),
            labels: Mutex::default(),
            ledger: RequestLedger::default(),
            written: Mutex::default(),
            limited: Throttle::default(),
            crowded: Mutex::default(),
            metrics: metrics.service(&service.name),
        });
        Ok(Self {
            pending: Mutex::default(),
            services: services.collect(),
            versions: Mutex::default(),
            recorder: Recorder::open(config)?,
            record_dir: config.record_dir.clone(),
            taps: Mutex::default(),
            since: jiff::Timestamp::now(),
            workers: Arc::new(Workers::new()),
            unneeded: Mutex::default(),
            of_taps: Mutex::default(),
            metrics,
        })
    }

    pub(super) fn metrics(&self) -> &metrics::Agent {
        &self.metrics
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, Pending> {
        lock(&self.pending)
    }

    pub(super) fn seen(&self, service: usize) {
        if let Some(service) = self.services.get(service) {
            service.ledger.seen();
        }
    }

    /// What came from each tap by now.
    pub(super) fn came_from(&self, taps: HashMap<String, OfTap>) {
        *lock(&self.of_taps) = taps;
    }

    pub(super) fn dropped(&self, dropped: Dropped) {
        if let Some(service) = self.services.get(dropped.service) {
            service.ledger.dropped(dropped.reason);
            service.metrics.dropped(dropped.reason);
        }
    }

    /// The agent itself gives an exchange up.
    pub(super) fn discard(&self, pending: &mut Pending, id: ExchangeId, reason: DropReason) {
        if let Some(dropped) = pending.discard(id, reason) {
            lock(&self.unneeded).push(id);
            self.dropped(dropped);
        }
    }

    /// Exchanges whose production answers nobody needs, since this was last asked.
    pub(super) fn take_unneeded(&self) -> Vec<ExchangeId> {
        std::mem::take(&mut *lock(&self.unneeded))
    }

    /// What cannot be read is said in the log, now and then, with an example.
    pub(super) fn unreadable(&self, service: usize, unreadable: Unreadable) {
        let Some(service) = self.services.get(service) else {
            return;
        };
        if !service.ledger.unreadable(unreadable, Instant::now()) {
            return;
        }
        tracing::warn!(
            service = %service.name,
            client = %unreadable.client,
            side = side(&unreadable),
            why = unreadable.why,
            "exchange is not readable as HTTP/1; it is counted as malformed"
        );
    }

    /// A tap names a version of a service's that answers in production.
    pub(super) fn version(&self, whose: (TapId, usize, Arm), version: &str) {
        let mut versions = lock(&self.versions);
        let known = versions.entry(whose).or_default();
        if known == version {
            return;
        }
        version.clone_into(known);
        let (_, index, arm) = whose;
        if let Some(service) = self.services.get(index) {
            service.said(arm, version);
        }
    }

    /// A tap is not remembered any more.
    pub(super) fn forget_tap(&self, tap: TapId, name: &str) {
        lock(&self.versions).retain(|(known, ..), _| *known != tap);
        self.metrics.forget_tap(name);
    }

    /// Judges a pair, on another thread: others wait for this one meanwhile, and their latency is measured
    /// here; how long a body takes, its length does not tell.
    pub(super) fn complete(self: &Arc<Self>, pair: Pair) {
        let size = weight(&pair);
        let job = Job {
            // Of what unfolds to many times its memory, one at a time for each service.
            group: mirror_wire::body::is_huge(size).then_some(pair.origin.service),
            job: pair,
        };
        let judge = Arc::clone(self);
        self.workers.run(job, move |pair| judge.judge(pair));
    }

    /// Connections of each service that were given up for want of room.
    pub(super) fn forgotten(&self, forgotten: &[[u64; Forgotten::ALL.len()]]) {
        for (service, counts) in self.services.iter().zip(forgotten) {
            self.metrics.forgotten(&service.name, counts);
            let all = counts.iter().sum();
            let mut said = lock(&service.crowded);
            // Once for each time that they are ten times as many.
            if all > *said * 10 {
                *said = all;
                let [unasked, idle, busy] = *counts;
                tracing::warn!(
                    service = %service.name, unasked, idle, busy,
                    "more connections than memory has room for; some are forgotten: raise memory"
                );
            }
        }
    }

    /// Waits until the workers have nothing to do.
    pub(super) async fn idle(&self) {
        self.workers.idle().await;
    }

    fn judge(&self, mut pair: Pair) {
        let index = pair.origin.service;
        let seconds = std::mem::take(&mut pair.seconds);
        let Some(service) = self.services.get(index) else {
            return;
        };
        let exchange = self.exchange(pair);
        let room = Room::beside(&exchange.request.lease);
        let mut comparison = service.comparer.compare_within(&exchange, &room);
        if room.is_short() {
            return self.dropped(Dropped {
                service: index,
                reason: DropReason::Memory,
            });
        }
        service.compare_seconds(&exchange, &seconds, &mut comparison, &room);
        drop(room);
        // Records name every slice; the report tells the most frequent.
        self.recorder.write(index, &exchange, &comparison);
        let (slice, gone) = lock(&service.slices).admit(comparison.slice.take());
        comparison.slice = slice;
        service.metrics.compared(exchange.arm, comparison.verdict);
        service.count_latency(&exchange);
        let mut evidence = lock(&service.evidence);
        if let Some(gone) = gone {
            evidence.fold(&gone);
            self.metrics.forget_slice(&service.name, &gone);
        }
        evidence.add(&exchange, &comparison);
        drop(evidence);
        service.compare_traffic(&exchange);
        service.ledger.compared();
    }

    /// The shadow has answered what production's answer is not copied of.
    fn replayed(&self, origin: Origin, shadow: &Answered) {
        let Some(service) = self.services.get(origin.service) else {
            return;
        };
        if origin.arm == Arm::Stable {
            service.count_shadow(&shadow.shadow, shadow.written_ns);
        }
        self.dropped(Dropped {
            service: origin.service,
            reason: DropReason::NotCompared,
        });
    }

    fn exchange(&self, pair: Pair) -> Exchange {
        let Pair {
            origin,
            shadow,
            production,
            seconds: _,
        } = pair;
        let version = lock(&self.versions)
            .get(&(origin.tap, origin.service, origin.arm))
            .cloned();
        Exchange {
            id: shadow.job.id,
            time: origin.time,
            client: origin.client,
            request: shadow.job.request,
            arm: origin.arm,
            production_version: version.unwrap_or_else(|| UNKNOWN.to_owned()),
            production,
            shadow_request_ns: shadow.written_ns,
            shadow: shadow.shadow,
        }
    }

    /// When it began.
    pub(super) fn since(&self) -> jiff::Timestamp {
        self.since
    }

    /// Labels have been joined to a service's records.
    pub(super) fn labelled(&self, service: usize, summary: LabelSummary) {
        if let Some(service) = self.services.get(service) {
            *lock(&service.labels) = Some(summary);
        }
    }

    /// Shows the figures.
    pub(super) fn show(&self, figures: &Figures) {
        let memory = &figures.memory;
        let servers = figures.usage();
        for (index, service) in self.services.iter().enumerate() {
            let balance = service.ledger.balance();
            let load = figures.loads.get(index);
            if let Some(usage) = servers.get(&index) {
                self.metrics.server(&service.name, &service.version, usage);
            }
            for slice in lock(&service.evidence).slices() {
                self.metrics.slice(&service.name, &slice);
            }
            if let Some(labels) = &*lock(&service.labels) {
                self.metrics.labels(&service.name, labels);
            }
            service.show_noise(&self.metrics);
            service.metrics.show(&ServiceFigures {
                in_flight: balance.in_flight(),
                fidelity: balance.fidelity(),
                waiting: load.map_or(0, |load| load.waiting()),
                active: load.map_or(0, |load| load.active()),
                retries: load.map_or(0, |load| load.retries()),
            });
        }
        self.metrics.memory(memory.used(), memory.limit());
        self.metrics.recording(self.recorder.state());
    }

    /// Says how the shadows fare, where that has changed: about once a second.
    pub(super) fn look(&self, figures: &Figures) {
        let now = Instant::now();
        for (index, service) in self.services.iter().enumerate() {
            let load = figures.loads.get(index);
            let queue = Queue {
                waiting: load.map_or(0, |load| load.waiting()),
                limit: service.queue,
                dropped: service.ledger.balance().drops[DropReason::QueueFull as usize],
            };
            let active = load.map_or(0, |load| load.active());
            let news = lock(&service.health).look(queue, now);
            for news in news.into_iter().flatten() {
                service.say(news, queue.waiting, active);
            }
            service.noise.look(&service.name, now);
        }
    }

    /// How the taps are.
    pub(super) fn show_taps(&self, taps: Vec<TapStatus>, refused: Option<LastRefusal>) {
        *lock(&self.taps) = (taps, refused);
    }

    /// What people are told.
    pub(super) fn status(&self, figures: &Figures) -> AgentStatus {
        let status = |(index, service): (usize, &Service)| {
            let load = figures.loads.get(index);
            let now = [
                load.map_or(0, |load| load.waiting()),
                load.map_or(0, |load| load.active()),
            ];
            service.status(now.map(|count| count as u64))
        };
        let state = self.recorder.state();
        let memory = &figures.memory;
        let (taps, last_refusal) = lock(&self.taps).clone();
        AgentStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: self.since,
            time: jiff::Timestamp::now(),
            taps,
            last_refusal,
            services: self.services.iter().enumerate().map(status).collect(),
            memory_bytes: [memory.used(), memory.limit()].map(|bytes| bytes as u64),
            records: RecordStatus {
                written: state.written,
                lost: state.lost,
                failed: state.failed,
                stopped: state.stopped,
            },
            record_dir: self.record_dir.clone(),
        }
    }

    /// What the node is told.
    /// For the node with this tap.
    pub(super) fn summary(&self, figures: &Figures, tap: &str) -> Summary {
        let servers = figures.usage();
        let of_tap = lock(&self.of_taps).get(tap).cloned();
        let summary = |(index, service): (usize, &Service)| ServiceSummary {
            of_this_node: of_tap.as_ref().map(|of_tap| of_tap.of(index)),
            server: servers.get(&index).map(server),
            answered: figures.loads.get(index).map_or(0, |load| load.answered()),
            ..service.summary()
        };
        Summary {
            since: self.since,
            time: jiff::Timestamp::now(),
            services: self.services.iter().enumerate().map(summary).collect(),
        }
    }

    /// Drops what has no outcome, and writes the last ledgers.
    pub(super) fn finish(&self) {
        let waiting = self.workers.take_waiting().map(|pair| Dropped {
            service: pair.origin.service,
            reason: DropReason::Shutdown,
        });
        let mut rest = self.pending().finish();
        rest.extend(waiting);
        for dropped in rest {
            self.dropped(dropped);
        }
        self.write_ledgers();
    }

    /// Has the ledgers written beside the records.
    pub(super) fn write_ledgers(&self) {
        let time = jiff::Timestamp::now();
        for (index, service) in self.services.iter().enumerate() {
            let balance = service.ledger.balance();
            let mut written = lock(&service.written);
            let seldom = written
                .as_ref()
                .is_none_or(|ledger| time.duration_since(ledger.time).unsigned_abs() >= UNCHANGED);
            let ledger = LedgerFile {
                since: self.since,
                time,
                shadow_version: service.version.clone(),
                production_versions: lock(&service.production).clone(),
                seen: balance.seen,
                compared: balance.compared,
                drops: drops(&balance),
            };
            // A file whose time alone is another tells nothing new.
            let same = written.as_ref().is_some_and(|before| {
                let before = LedgerFile {
                    time,
                    ..before.clone()
                };
                before == ledger
            });
            if !same || seldom {
                self.recorder.write_ledger(index, &ledger);
                *written = Some(ledger);
            }
        }
    }
}

/// What judging a pair takes, in bytes, as far as lengths tell.
fn weight(pair: &Pair) -> usize {
    let Answered { job, shadow, .. } = &pair.shadow;
    let request = mirror_wire::body::weight(&job.request.headers, &job.request.body);
    let responses = [Some(&pair.production), shadow.as_ref().ok()];
    let responses = responses
        .into_iter()
        .flatten()
        .chain(pair.seconds.responses());
    let responses =
        responses.map(|response| mirror_wire::body::weight(&response.headers, &response.body));
    responses.fold(request, usize::saturating_add)
}

fn server(usage: &Usage) -> ServerSummary {
    ServerSummary {
        processes: usage.processes as u64,
        cpu_seconds: usage.cpu.as_secs_f64(),
        resident_bytes: usage.resident_bytes,
    }
}

/// Drops by the names of their reasons.
fn drops(balance: &Balance) -> BTreeMap<String, u64> {
    let reasons = balance.reasons();
    reasons
        .map(|(reason, count)| (reason.label().to_owned(), count))
        .collect()
}

fn side(unreadable: &Unreadable) -> &'static str {
    match unreadable.side {
        Some(Direction::Request) => "request",
        Some(Direction::Response) => "response",
        None => "unknown",
    }
}

impl Service {
    /// The shadow has answered a request, or not.
    fn heard(&self, answered: &Answered) {
        let answer = match &answered.shadow {
            Ok(_) => Ok(()),
            Err(error) => {
                *lock(&self.last_error) = Some(LastError {
                    error: error.label().to_owned(),
                    time: jiff::Timestamp::now(),
                    id: answered.job.id,
                });
                Err(*error)
            }
        };
        let news = lock(&self.health).heard(answer, Instant::now());
        if let Some(news) = news {
            self.say(news, 0, 0);
        }
    }

    /// Once for each change: who is on call reads it.
    fn say(&self, news: News, waiting: usize, active: usize) {
        let (service, target) = (&*self.name, self.target);
        let (queue, concurrency) = (self.queue, self.concurrency);
        let span = |span: Duration| humantime::format_duration(Duration::from_secs(span.as_secs()));
        match news {
            News::Down(error) => tracing::warn!(
                service, %target, error = error.label(),
                "shadow down; its requests are compared as errors"
            ),
            News::Up(after) => {
                tracing::info!(service, %target, after = %span(after), "shadow back");
            }
            News::Saturated(dropped) => tracing::warn!(
                service,
                waiting,
                queue,
                active,
                concurrency,
                dropped,
                "shadow saturated; lower sample or raise concurrency"
            ),
            News::Eased(after) => tracing::info!(
                service, waiting, queue, after = %span(after), "shadow no longer saturated"
            ),
        }
    }

    fn status(&self, [waiting, active]: [u64; 2]) -> ServiceStatus {
        let balance = self.ledger.balance();
        let control = self.noise.summary(&lock(&self.evidence));
        let health = lock(&self.health);
        let since = |since: Option<Instant>| Some(since?.elapsed().as_secs_f64());
        let verdicts = self.metrics.verdicts(Arm::Stable);
        ServiceStatus {
            name: self.name.clone(),
            id: self.id,
            version: self.version.clone(),
            production_versions: lock(&self.production).clone(),
            target: self.target.to_string(),
            down_seconds: since(health.down()),
            saturated_seconds: since(health.saturated()),
            queue: [waiting, self.queue as u64],
            active: [active, self.concurrency as u64],
            seen: balance.seen,
            compared: balance.compared,
            in_flight: balance.in_flight(),
            drops: drops(&balance),
            fidelity: balance.fidelity(),
            verdicts: verdicts
                .map(|(verdict, count)| (verdict.label().to_owned(), count))
                .collect(),
            control,
            traffic: self.noise.traffic(),
            last_error: lock(&self.last_error).clone(),
            last_malformed: self.ledger.last_unreadable().map(|unreadable| Malformed {
                client: unreadable.client,
                side: side(&unreadable).to_owned(),
                why: unreadable.why.to_owned(),
            }),
        }
    }

    /// A tap has named a version that answers in production.
    fn said(&self, arm: Arm, version: &str) {
        tracing::info!(
            service = %self.name, arm = arm.label(), version, shadow = %self.version,
            "version in production"
        );
        let mut said = lock(&self.production);
        if arm == Arm::Stable && said.len() < MAX_VERSIONS {
            said.insert(version.to_owned());
        }
    }

    fn summary(&self) -> ServiceSummary {
        let balance = self.ledger.balance();
        let verdicts = |arm| {
            let verdicts = self.metrics.verdicts(arm);
            verdicts
                .map(|(verdict, count)| (verdict.label().to_owned(), count))
                .collect()
        };
        let evidence = lock(&self.evidence);
        ServiceSummary {
            name: self.name.clone(),
            id: self.id,
            version: self.version.clone(),
            seen: balance.seen,
            compared: balance.compared,
            drops: drops(&balance),
            verdicts: verdicts(Arm::Stable),
            canary_verdicts: verdicts(Arm::Canary),
            production: self.metrics.distribution(Leg::Production),
            shadow: self.metrics.distribution(Leg::Shadow),
            pairs: evidence.pairs(),
            latency_pairs: evidence.latency_pairs(),
            saturated: evidence.saturated(),
            slices: evidence.slices(),
            control: self.noise.summary(&evidence),
            traffic: self.noise.traffic(),
            labels: lock(&self.labels).clone(),
            ..ServiceSummary::default()
        }
    }

    /// What the canary takes is in the records: a mixture of two versions would tell of neither.
    fn count_latency(&self, exchange: &Exchange) {
        if exchange.arm != Arm::Stable {
            return;
        }
        let first_byte = exchange.production_first_byte();
        self.metrics.latency(Leg::Production, first_byte);
        self.count_shadow(&exchange.shadow, exchange.shadow_request_ns);
    }

    fn count_shadow(&self, shadow: &Result<Response, ShadowError>, written_ns: u64) {
        match shadow {
            Ok(answer) => {
                let first_byte = answer.first_byte_after(written_ns);
                self.metrics.latency(Leg::Shadow, first_byte);
            }
            Err(error) => self.metrics.failed(*error),
        }
    }
}

impl Sink for Judge {
    fn wanted(&self, exchange: ExchangeId) -> bool {
        self.pending().wants_answer(exchange)
    }

    fn answered(self: &Arc<Self>, answered: Answered) {
        let mut pending = self.pending();
        let service = pending.service(answered.job.exchange);
        if let Some(service) = service.and_then(|index| self.services.get(index)) {
            service.heard(&answered);
        }
        let (id, failed) = (answered.job.exchange, answered.shadow.is_err());
        let joined = pending.answered(answered);
        let is_unneeded = failed && joined.is_none() && !pending.has_seconds(id);
        drop(pending);
        if is_unneeded {
            // There is nothing to hold it against.
            lock(&self.unneeded).push(id);
        }
        match joined {
            Some(Joined::Pair(pair)) => self.complete(*pair),
            Some(Joined::Alone(origin, shadow)) => self.replayed(origin, &shadow),
            None => {}
        }
    }

    fn limited(self: &Arc<Self>, exchange: ExchangeId, error: &std::io::Error) {
        let mut pending = self.pending();
        let service = pending.service(exchange);
        let service = service.and_then(|index| self.services.get(index));
        self.discard(&mut pending, exchange, DropReason::AgentLimit);
        drop(pending);
        if service.is_some_and(|service| service.limited.is_due(Instant::now())) {
            tracing::warn!(
                service = service.map(|service| &*service.name),
                %error,
                "no socket left for the shadow; requests are dropped as agent_limit: raise LimitNOFILE or \
                 net.ipv4.ip_local_port_range, or lower concurrency"
            );
        }
    }
}

/// What a panic elsewhere left behind is still counted by.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
