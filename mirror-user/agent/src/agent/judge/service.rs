//! What the agent knows of one service.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use mirror_api::shadow::LastError;
use mirror_api::summary::LabelSummary;
use mirror_common::tunnel::Arm;
use mirror_wire::message::{Exchange, Response, ShadowError};

use super::lock;
use super::seconds::Noise;
use crate::compare::{Comparer, Slices};
use crate::config;
use crate::evidence::Evidence;
use crate::health::{Health, News};
use crate::metrics::{self, Leg, ServiceMetrics};
use crate::record::LedgerFile;
use crate::replay::Answered;
use crate::requests::RequestLedger;

/// Versions of production that one run remembers.
const MAX_VERSIONS: usize = 100;

pub(super) struct Service {
    pub(super) name: String,
    pub(super) id: u32,
    pub(super) version: String,
    pub(super) target: SocketAddr,
    pub(super) queue: usize,
    pub(super) concurrency: usize,
    pub(super) comparer: Comparer,
    pub(super) health: Mutex<Health>,
    pub(super) last_error: Mutex<Option<LastError>>,
    pub(super) slices: Mutex<Slices>,
    /// The versions that were in production since the agent's start.
    pub(super) production: Mutex<BTreeSet<String>>,
    pub(super) evidence: Mutex<Evidence>,
    pub(super) noise: Noise,
    pub(super) labels: Mutex<Option<LabelSummary>>,
    pub(super) ledger: RequestLedger,
    /// What was last written of it.
    pub(super) written: Mutex<Option<LedgerFile>>,
    /// Says that this host has no sockets left.
    pub(super) limited: Throttle,
    /// Says that connections are forgotten, with how many there were when it was said.
    pub(super) crowded: Mutex<u64>,
    pub(super) metrics: ServiceMetrics,
}

/// The log says the same at most once in so long.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// When something was last said.
#[derive(Default)]
pub(super) struct Throttle(Mutex<Option<Instant>>);

impl Throttle {
    /// Whether it is to be said now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let mut last = lock(&self.0);
        let is_due = last.is_none_or(|last| now.duration_since(last) >= LOG_INTERVAL);
        if is_due {
            *last = Some(now);
        }
        is_due
    }
}

impl Service {
    pub(super) fn new(
        service: &config::ShadowService,
        config: &config::Shadow,
        metrics: &metrics::Agent,
    ) -> Self {
        Self {
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
        }
    }

    /// The shadow has answered a request, or not.
    pub(super) fn heard(&self, answered: &Answered) {
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
    pub(super) fn say(&self, news: News, waiting: usize, active: usize) {
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

    /// A tap has named a version that answers in production.
    pub(super) fn said(&self, arm: Arm, version: &str) {
        tracing::info!(
            service = %self.name, arm = arm.label(), version, shadow = %self.version,
            "version in production"
        );
        let mut said = lock(&self.production);
        if arm == Arm::Stable && said.len() < MAX_VERSIONS {
            said.insert(version.to_owned());
        }
    }

    /// What the canary takes is in the records: a mixture of two versions would tell of neither.
    pub(super) fn count_latency(&self, exchange: &Exchange) {
        if exchange.arm != Arm::Stable {
            return;
        }
        let first_byte = exchange.production_first_byte();
        self.metrics.latency(Leg::Production, first_byte);
        self.count_shadow(&exchange.shadow, exchange.shadow_request_ns);
    }

    pub(super) fn count_shadow(&self, shadow: &Result<Response, ShadowError>, written_ns: u64) {
        match shadow {
            Ok(answer) => {
                let first_byte = answer.first_byte_after(written_ns);
                self.metrics.latency(Leg::Shadow, first_byte);
            }
            Err(error) => self.metrics.failed(*error),
        }
    }
}
