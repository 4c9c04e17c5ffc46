//! Where the three parts of an exchange meet: joined, compared, recorded, counted.

mod seconds;
mod service;
mod shown;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mirror_common::tunnel::Arm;

pub(super) use self::seconds::SecondSink;
use self::service::Service;
pub(super) use self::shown::OfTap;
use self::shown::side;
use mirror_api::shadow::{LastRefusal, TapStatus};
use mirror_api::summary::LabelSummary;
use mirror_wire::body::Room;
use mirror_wire::exchange::Forgotten;
use mirror_wire::message::{DropReason, Exchange, ExchangeId, TapId, Unreadable};

use super::Figures;
use super::workers::{Job, Workers};
use crate::config;
use crate::health::Queue;
use crate::join::{Dropped, Joined, Origin, Pair, Pending};
use crate::metrics;
use crate::record::Recorder;
use crate::replay::{Answered, Sink};

/// The version of production before its tap has said one.
const UNKNOWN: &str = "unknown";

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

impl Judge {
    pub(super) fn new(config: &config::Shadow, metrics: metrics::Agent) -> anyhow::Result<Self> {
        let services = config.services.iter();
        let services = services.map(|service| Service::new(service, config, &metrics));
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
