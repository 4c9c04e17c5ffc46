//! What is told of the comparisons: to Prometheus, to people, to the node, and to the file beside the records.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use mirror_api::shadow::{
    AgentStatus, LastRefusal, Malformed, RecordStatus, ServiceStatus, TapStatus,
};
use mirror_api::summary::{OfNode, ServerSummary, ServiceSummary, Summary};
use mirror_base::servers::Usage;
use mirror_common::tunnel::{Arm, Direction};
use mirror_wire::message::Unreadable;

use super::service::Service;
use super::{Judge, lock};
use crate::agent::Figures;
use crate::metrics::{Leg, ServiceFigures};
use crate::record::LedgerFile;
use crate::requests::Balance;

/// A ledger that stays the same is written again after so long: its time tells that the agent lives.
const UNCHANGED: Duration = Duration::from_secs(60);

/// What came from one tap.
#[derive(Clone, Debug, Default)]
pub(in crate::agent) struct OfTap {
    /// The life of its counters.
    pub(in crate::agent) boot: u64,
    /// Requests since they began, by service.
    pub(in crate::agent) seen: HashMap<usize, u64>,
}

impl OfTap {
    fn of(&self, service: usize) -> OfNode {
        OfNode {
            boot: self.boot,
            seen: self.seen.get(&service).copied().unwrap_or_default(),
        }
    }
}

impl Judge {
    /// Shows the figures.
    pub(in crate::agent) fn show(&self, figures: &Figures) {
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

    /// How the taps are.
    pub(in crate::agent) fn show_taps(&self, taps: Vec<TapStatus>, refused: Option<LastRefusal>) {
        *lock(&self.taps) = (taps, refused);
    }

    /// What people are told.
    pub(in crate::agent) fn status(&self, figures: &Figures) -> AgentStatus {
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
    pub(in crate::agent) fn summary(&self, figures: &Figures, tap: &str) -> Summary {
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

    /// Has the ledgers written beside the records.
    pub(in crate::agent) fn write_ledgers(&self) {
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

impl Service {
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

pub(super) fn side(unreadable: &Unreadable) -> &'static str {
    match unreadable.side {
        Some(Direction::Request) => "request",
        Some(Direction::Response) => "response",
        None => "unknown",
    }
}
