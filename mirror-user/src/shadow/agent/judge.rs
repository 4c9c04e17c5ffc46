//! Where the three parts of an exchange meet: joined, compared, recorded, counted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mirror_common::tunnel::{Arm, Direction};

use super::Figures;
use super::workers::{Job, Workers};
use crate::config;
use crate::metrics::{self, Leg, ServiceFigures, ServiceMetrics};
use crate::servers::Usage;
use crate::shadow::compare::{self, Comparer, Slices};
use crate::shadow::evidence::Evidence;
use crate::shadow::join::{Dropped, Joined, Origin, Pair, Pending};
use crate::shadow::message::{
    DropReason, Exchange, ExchangeId, Response, ShadowError, TapId, Unreadable,
};
use crate::shadow::record::Recorder;
use crate::shadow::replay::{Answered, Sink};
use crate::shadow::report::LedgerFile;
use crate::shadow::requests::{Balance, RequestLedger};
use crate::shadow::summary::{LabelSummary, ServerSummary, ServiceSummary, Summary};

/// Exchanges of more bytes than this, request and both responses together, are judged by the
/// workers: others wait for the runtime's thread meanwhile, and their latency is measured there. To
/// hand one over costs as much as to judge one of a few KiB.
const LARGE: usize = 32 << 10;

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
    metrics: metrics::Agent,
    since: jiff::Timestamp,
    workers: Arc<Workers<Pair>>,
}

struct Service {
    name: String,
    id: u32,
    version: String,
    comparer: Comparer,
    slices: Mutex<Slices>,
    /// The versions that were in production since the agent's start.
    production: Mutex<BTreeSet<String>>,
    evidence: Mutex<Evidence>,
    labels: Mutex<Option<LabelSummary>>,
    ledger: RequestLedger,
    metrics: ServiceMetrics,
}

impl Judge {
    pub(super) fn new(config: &config::Shadow, metrics: metrics::Agent) -> anyhow::Result<Self> {
        let services = config.services.iter().map(|service| Service {
            name: service.name.clone(),
            id: service.id,
            version: service.version.clone(),
            comparer: Comparer::new(&service.compare, &service.record),
            slices: Mutex::default(),
            production: Mutex::default(),
            evidence: Mutex::default(),
            labels: Mutex::default(),
            ledger: RequestLedger::default(),
            metrics: metrics.service(&service.name),
        });
        Ok(Self {
            pending: Mutex::default(),
            services: services.collect(),
            versions: Mutex::default(),
            recorder: Recorder::open(config)?,
            since: jiff::Timestamp::now(),
            workers: Arc::new(Workers::new()),
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

    pub(super) fn dropped(&self, dropped: Dropped) {
        if let Some(service) = self.services.get(dropped.service) {
            service.ledger.dropped(dropped.reason);
            service.metrics.dropped(dropped.reason);
        }
    }

    /// What cannot be read is said in the log, now and then, with an example.
    pub(super) fn unreadable(&self, service: usize, unreadable: Unreadable) {
        let Some(service) = self.services.get(service) else {
            return;
        };
        if !service.ledger.unreadable(unreadable, Instant::now()) {
            return;
        }
        let side = match unreadable.side {
            Some(Direction::Request) => "request",
            Some(Direction::Response) => "response",
            None => "unknown",
        };
        tracing::warn!(
            service = %service.name,
            client = %unreadable.client,
            side,
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

    /// Judges a pair: a small one here, a large one on another thread.
    pub(super) fn complete(self: &Arc<Self>, pair: Pair) {
        let size = weight(&pair);
        if size < LARGE {
            self.judge(pair);
            return;
        }
        let job = Job {
            // Of what unfolds to many times its memory, one at a time for each service.
            group: compare::is_huge(size).then_some(pair.origin.service),
            job: pair,
        };
        let judge = Arc::clone(self);
        self.workers.run(job, move |pair| judge.judge(pair));
    }

    /// Waits until the workers have nothing to do.
    pub(super) async fn idle(&self) {
        self.workers.idle().await;
    }

    fn judge(&self, pair: Pair) {
        let index = pair.origin.service;
        let Some(service) = self.services.get(index) else {
            return;
        };
        let exchange = self.exchange(pair);
        let mut comparison = service.comparer.compare(&exchange);
        comparison.slice = lock(&service.slices).admit(comparison.slice);
        service.metrics.compared(exchange.arm, comparison.verdict);
        service.count_latency(&exchange);
        lock(&service.evidence).add(&exchange, &comparison);
        self.recorder.write(index, &exchange, &comparison);
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

    /// What the node is told.
    pub(super) fn summary(&self, figures: &Figures) -> Summary {
        let servers = figures.usage();
        let summary = |(index, service): (usize, &Service)| ServiceSummary {
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
            let ledger = LedgerFile {
                since: self.since,
                time,
                shadow_version: service.version.clone(),
                production_versions: lock(&service.production).clone(),
                seen: balance.seen,
                compared: balance.compared,
                drops: drops(&balance),
            };
            self.recorder.write_ledger(index, &ledger);
        }
    }
}

/// What judging a pair takes, in bytes, as far as lengths tell.
fn weight(pair: &Pair) -> usize {
    let Answered { job, shadow, .. } = &pair.shadow;
    let request = compare::weight(&job.request.headers, &job.request.body);
    let responses = [Some(&pair.production), shadow.as_ref().ok()];
    let responses = responses.into_iter().flatten();
    let responses = responses.map(|response| compare::weight(&response.headers, &response.body));
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

impl Service {
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
            slices: evidence.slices(),
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
        let joined = self.pending().answered(answered);
        match joined {
            Some(Joined::Pair(pair)) => self.complete(pair),
            Some(Joined::Alone(origin, shadow)) => self.replayed(origin, &shadow),
            None => {}
        }
    }
}

/// What a panic elsewhere left behind is still counted by.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
