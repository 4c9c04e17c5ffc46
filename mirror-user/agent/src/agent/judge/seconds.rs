//! What second answers come to: those of a control, of a shadow that is asked twice, and of traffic.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use mirror_api::summary::{ControlSummary, TrafficSummary};
use mirror_common::tunnel::Arm;
use mirror_rollout::noise::Twin;
use mirror_wire::body::Room;
use mirror_wire::message::{Exchange, ExchangeId};

use super::service::Service;
use super::{Judge, lock};
use crate::compare::{Comparison, Verdict};
use crate::config;
use crate::evidence::Evidence;
use crate::health::{Health, News, Queue};
use crate::metrics;
use crate::noise::{self, NoData, Second, Seconds, Traffic};
use crate::replay::{Answered, Sink};

/// Where second answers go.
pub(in crate::agent) struct SecondSink {
    judge: Arc<Judge>,
    twin: Twin,
}

impl SecondSink {
    pub(in crate::agent) fn new(judge: Arc<Judge>, twin: Twin) -> Arc<Self> {
        Arc::new(Self { judge, twin })
    }

    fn second(&self, exchange: ExchangeId, second: Second) {
        let pair = self.judge.pending().second(exchange, self.twin, second);
        if let Some(pair) = pair {
            self.judge.complete(pair);
        }
    }
}

impl Sink for SecondSink {
    fn wanted(&self, exchange: ExchangeId) -> bool {
        self.judge.pending().wants_second(exchange, self.twin)
    }

    fn answered(self: &Arc<Self>, answered: Answered) {
        let exchange = answered.job.exchange;
        if self.twin == Twin::Control {
            let service = self.judge.pending().service(exchange);
            let service = service.and_then(|index| self.judge.services.get(index));
            if let Some(service) = service {
                service.noise.heard_control(&service.name, &answered);
            }
        }
        let second = match answered.shadow {
            Ok(response) => Second::Is(response),
            Err(error) => Second::Missing(error.into()),
        };
        self.second(exchange, second);
    }

    fn limited(self: &Arc<Self>, exchange: ExchangeId, _: &io::Error) {
        self.second(exchange, Second::Missing(NoData::AgentLimit));
    }
}

/// What is known of one service's noise.
pub(super) struct Noise {
    control: Option<Control>,
    traffic: Mutex<(Traffic, TrafficSummary)>,
}

struct Control {
    address: SocketAddr,
    repeats: bool,
    health: Mutex<(Health, Option<&'static str>)>,
    /// By [`Twin`] and [`NoData`].
    missing: Mutex<[[u64; NoData::ALL.len()]; 2]>,
}

impl Noise {
    pub(super) fn new(control: Option<&config::Control>, services: usize) -> Self {
        let control = control.map(|control| Control {
            address: control.address,
            repeats: control.repeat > 0.0,
            health: Mutex::default(),
            missing: Mutex::default(),
        });
        let traffic = Traffic::new(services);
        Self {
            control,
            traffic: Mutex::new((traffic, TrafficSummary::default())),
        }
    }

    /// The control has answered, or not: said once for each change.
    fn heard_control(&self, service: &str, answered: &Answered) {
        let Some(control) = &self.control else { return };
        let answer = answered.shadow.as_ref().map(|_| ()).map_err(|error| *error);
        let mut health = lock(&control.health);
        if let Err(error) = answer {
            health.1 = Some(error.label());
        }
        if let Some(News::Down(error)) = health.0.heard(answer, Instant::now()) {
            tracing::warn!(
                service, control = %control.address, error = error.label(),
                "control down; what the old version differs from itself is not known any more"
            );
        }
    }

    /// Says when the control is back: about once a second.
    pub(super) fn look(&self, service: &str, now: Instant) {
        let Some(control) = &self.control else { return };
        // Whether it keeps up, the counts of what is missing say.
        let queue = Queue {
            limit: usize::MAX,
            ..Queue::default()
        };
        let news = lock(&control.health).0.look(queue, now);
        for news in news.into_iter().flatten() {
            if let News::Up(after) = news {
                let after = humantime::format_duration(Duration::from_secs(after.as_secs()));
                tracing::info!(service, control = %control.address, %after, "control back");
            }
        }
    }

    fn missing(&self, twin: Twin, why: NoData) {
        if let Some(control) = &self.control {
            lock(&control.missing)[twin as usize][why as usize] += 1;
        }
    }

    /// What the control says, as far as `evidence` has it.
    pub(super) fn summary(&self, evidence: &Evidence) -> Option<ControlSummary> {
        let control = self.control.as_ref()?;
        let missing = *lock(&control.missing);
        let missing = |twin: Twin| -> BTreeMap<String, u64> {
            let counts = NoData::ALL.into_iter().zip(missing[twin as usize]);
            let counts = counts.filter(|(_, count)| *count > 0);
            counts
                .map(|(why, count)| (why.label().to_owned(), count))
                .collect()
        };
        let health = lock(&control.health);
        let down = health.0.down().and(health.1);
        Some(ControlSummary {
            address: control.address.to_string(),
            down: down.map(str::to_owned),
            pairs: evidence.control(),
            missing: missing(Twin::Control),
            repeat: evidence.repeat(),
            repeat_missing: missing(Twin::Repeat),
            repeats: control.repeats,
        })
    }

    /// What traffic says.
    pub(super) fn traffic(&self) -> TrafficSummary {
        lock(&self.traffic).1
    }
}

impl Service {
    /// Holds second answers against the first ones.
    pub(super) fn compare_seconds(
        &self,
        exchange: &Exchange,
        seconds: &Seconds,
        comparison: &mut Comparison,
        room: &Room,
    ) {
        let firsts = [Some(&exchange.production), exchange.shadow.as_ref().ok()];
        for (twin, first) in Twin::ALL.into_iter().zip(firsts) {
            let found = match noise::itself(&self.comparer, first, seconds.of(twin), room) {
                None => continue,
                Some(Ok(verdict)) => Some(verdict),
                Some(Err(why)) => {
                    self.noise.missing(twin, why);
                    None
                }
            };
            match twin {
                Twin::Control => comparison.control = found,
                Twin::Repeat => comparison.repeat = found,
            }
        }
    }

    /// Looks whether traffic has asked the same before, and what production said then.
    pub(super) fn compare_traffic(&self, exchange: &Exchange) {
        if exchange.arm != Arm::Stable {
            return;
        }
        let before = {
            let (traffic, _) = &mut *lock(&self.noise.traffic);
            let Some(key) = traffic.key(exchange) else {
                return;
            };
            let before = traffic.take(key);
            traffic.put(key, &exchange.production);
            before
        };
        let Some(before) = before else { return };
        let room = Room::beside(&exchange.request.lease);
        let verdict = self.comparer.agree(&before, &exchange.production, &room);
        if room.is_short() {
            return;
        }
        let (_, said) = &mut *lock(&self.noise.traffic);
        said.repeated += 1;
        said.differing += u64::from(verdict != Verdict::Match);
    }

    /// Shows what is known of the noise.
    pub(super) fn show_noise(&self, metrics: &metrics::Agent) {
        let control = self.noise.summary(&lock(&self.evidence));
        metrics.noise(&self.name, control.as_ref(), self.noise.traffic());
    }
}
