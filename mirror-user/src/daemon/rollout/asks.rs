//! Who is asked for what the kernel does not know: the agent, Prometheus, hooks. Each in a task of
//! its own, one at a time; what they say comes back as [`Heard`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::mpsc;

use super::finish::Probed;
use super::prometheus::Prometheus;
use super::{counted, hooks, http};
use crate::agent_api::{self, Access};
use crate::daemon::Daemon;
use crate::rollout::machine::{Call, Rollout, State, Step};
use crate::rollout::plan::{self, HookPoint, MetricGate, fill};
use crate::rollout::record::{Answer, Called, Event, Reading, Window};
use crate::rollout::waits::{Held, Kind};
use crate::shadow::summary::{ServiceSummary, Summary};

/// What somebody said, of which service's rollout.
#[derive(Debug)]
pub(in crate::daemon) struct Heard {
    pub(super) service: String,
    /// The rollout's id: an answer may come when another one runs.
    pub(super) id: String,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    Summary(Box<Result<Summary, String>>),
    Metric(String, Reading),
    Called(Called),
    Probed(Probed),
}

/// Where answers go, and by which means questions are asked.
#[derive(Debug)]
pub(super) struct Heeded {
    pub(super) heard: mpsc::UnboundedSender<Heard>,
    pub(super) client: reqwest::Client,
}

impl Heeded {
    pub(super) fn new() -> reqwest::Result<(Self, mpsc::UnboundedReceiver<Heard>)> {
        let (sender, heard) = mpsc::unbounded_channel();
        let client = http::client()?;
        let heeded = Self {
            heard: sender,
            client,
        };
        Ok((heeded, heard))
    }
}

/// What one rollout has asked, and what it has heard.
#[derive(Debug, Default)]
pub(super) struct Asked {
    agent: bool,
    metrics: BTreeSet<String>,
    hooks: BTreeSet<usize>,
    /// What the agent said last, and what of that the rollout was told.
    summary: Option<Result<(Timestamp, ServiceSummary), String>>,
    known: Option<(Timestamp, ServiceSummary)>,
    readings: BTreeMap<String, Reading>,
    prometheus: Option<Arc<Prometheus>>,
}

impl Asked {
    /// The rollout knows all that was said.
    pub(super) fn told(&mut self) {
        if let Some(Ok(said)) = &self.summary {
            self.known = Some(said.clone());
        }
        self.readings.clear();
    }

    /// Puts what was said since into a window.
    pub(super) fn fill(&self, window: &mut Window, rollout: &Rollout) {
        window.metrics.clone_from(&self.readings);
        let plan = &rollout.started().plan;
        if plan.shadow.is_none() {
            return;
        }
        let wanted = &rollout.started().canary.version;
        let held = |why: String| Held {
            kind: Kind::Agent,
            why,
        };
        match &self.summary {
            None => {}
            Some(Err(why)) => window.held.push(held(format!("the agent {why}"))),
            Some(Ok((_, said))) if said.version != *wanted => window.held.push(held(format!(
                "the agent's shadow is {}, not {wanted}: set `version` (and `target`) in its config",
                said.version
            ))),
            Some(Ok((since, said))) => {
                let none = ServiceSummary::default();
                let then = match &self.known {
                    Some((known, then)) if known == since => Some(then),
                    // The agent has begun anew: if it did so after us, all it says is news.
                    _ if *since > rollout.began() => Some(&none),
                    _ => None,
                };
                let shadow = then.map(|then| counted::shadow(said, then, &plan.baseline));
                window.shadow = shadow.filter(|shadow| *shadow != Default::default());
            }
        }
    }

    fn heard(&mut self, service: &str, what: What) -> Option<Event> {
        match what {
            What::Summary(said) => {
                self.agent = false;
                let of_service = said.and_then(|said| {
                    let Summary {
                        since, services, ..
                    } = said;
                    let mut services = services.into_iter();
                    let found = services.find(|known| known.name == service);
                    found
                        .map(|found| (since, found))
                        .ok_or_else(|| format!("does not know {service}"))
                });
                self.summary = Some(of_service);
                None
            }
            What::Metric(gate, reading) => {
                self.metrics.remove(&gate);
                self.readings.insert(gate, reading);
                None
            }
            What::Called(called) => {
                self.hooks.remove(&called.hook);
                Some(Event::Called(called))
            }
            What::Probed(_) => None,
        }
    }
}

impl Daemon {
    /// Somebody has answered.
    pub(in crate::daemon) fn heard(&mut self, heard: Heard) {
        let Heard { service, id, what } = heard;
        if let What::Probed(probed) = what {
            return self.probed(&service, &id, probed);
        }
        let Some(running) = self.rollouts.running.get_mut(&service) else {
            return;
        };
        if running.rollout.started().id != id {
            return;
        }
        if let Some(event) = running.asked.heard(&service, what) {
            self.tell(&service, event);
            self.settle();
        }
    }

    /// Asks for what the next window needs.
    pub(super) fn ask_for(&mut self, service: &str) {
        self.ask_agent(service);
        self.ask_metrics(service);
    }

    fn ask_agent(&mut self, service: &str) {
        let config = self
            .config
            .services
            .iter()
            .find(|known| known.name == service);
        let mirror = config.and_then(|config| config.mirror.clone());
        let Some(running) = self.rollouts.running.get_mut(service) else {
            return;
        };
        let is_wanted =
            running.rollout.started().plan.shadow.is_some() && running.rollout.step().is_some();
        let (false, true, Some(mirror)) = (running.asked.agent, is_wanted, mirror) else {
            return;
        };
        running.asked.agent = true;
        let (heard, id) = (
            self.rollouts.heeded.heard.clone(),
            running.rollout.started().id.clone(),
        );
        let service = service.to_owned();
        let key_file = self.config.key_file.clone();
        tokio::spawn(async move {
            let said = async {
                let access = Access::of(&mirror, &key_file)?;
                agent_api::summary(&mirror.agent, &access).await
            };
            let said = said.await.map_err(|error| error.to_string());
            let what = What::Summary(Box::new(said));
            let _ = heard.send(Heard { service, id, what });
        });
    }

    fn ask_metrics(&mut self, service: &str) {
        let Some(running) = self.rollouts.running.get_mut(service) else {
            return;
        };
        let started = running.rollout.started();
        let has_clients = running
            .rollout
            .step()
            .is_some_and(|step| step.has_clients());
        let (true, Some(base)) = (has_clients, &started.plan.prometheus) else {
            return;
        };
        let client = &self.rollouts.heeded.client;
        let prometheus = running
            .asked
            .prometheus
            .get_or_insert_with(|| Arc::new(Prometheus::new(client.clone(), base)));
        for gate in &started.plan.gates {
            if !running.asked.metrics.insert(gate.name.clone()) {
                continue;
            }
            let gate = gate.clone();
            let prometheus = Arc::clone(prometheus);
            let versions = [started.stable.clone(), started.canary.version.clone()];
            let (heard, id) = (self.rollouts.heeded.heard.clone(), started.id.clone());
            let service = service.to_owned();
            tokio::spawn(async move {
                let reading = read(&prometheus, &gate, &service, &versions).await;
                let what = What::Metric(gate.name, reading);
                let _ = heard.send(Heard { service, id, what });
            });
        }
    }

    /// Calls the hooks that are due, once the record has what they are told.
    pub(in crate::daemon) fn call_hooks(&mut self) {
        for service in self.rollouts.names() {
            self.call_hooks_of(&service);
        }
    }

    fn call_hooks_of(&mut self, service: &str) {
        let now = self.now();
        let Some(running) = self.rollouts.running.get_mut(service) else {
            return;
        };
        if !running.is_durable() {
            return;
        }
        for Call { hook, point } in running.rollout.calls(now) {
            let started = running.rollout.started();
            let Some(wanted) = started.plan.hooks.get(hook).cloned() else {
                continue;
            };
            if !running.asked.hooks.insert(hook) {
                continue;
            }
            let body = serde_json::json!(notice(&running.rollout, point, now));
            let client = self.rollouts.heeded.client.clone();
            let (heard, id) = (self.rollouts.heeded.heard.clone(), started.id.clone());
            let service = service.to_owned();
            tokio::spawn(async move {
                let answer = hooks::call(&client, &wanted, &body).await.into();
                let what = What::Called(Called {
                    hook,
                    point,
                    answer,
                });
                let _ = heard.send(Heard { service, id, what });
            });
        }
    }
}

async fn read(
    prometheus: &Prometheus,
    gate: &MetricGate,
    service: &str,
    [stable, canary]: &[String; 2],
) -> Reading {
    let of = |arm, version| {
        let asked = plan::Asked {
            arm,
            version,
            service,
        };
        let query = fill(&gate.query, &asked);
        async move { prometheus.ask(&query, gate.staleness).await }
    };
    let canary = match of("canary", canary).await {
        Ok(canary) => canary,
        Err(missing) => return Reading::Missing(missing.to_string()),
    };
    if gate.max_delta.is_none() {
        return Reading::Value {
            canary,
            stable: None,
        };
    }
    match of("stable", stable).await {
        Ok(stable) => Reading::Value {
            canary,
            stable: Some(stable),
        },
        Err(missing) => Reading::Missing(format!("of stable: {missing}")),
    }
}

impl From<hooks::Outcome> for Answer {
    fn from(outcome: hooks::Outcome) -> Self {
        match outcome {
            hooks::Outcome::Approved | hooks::Outcome::Done(_) => Self::Approved,
            hooks::Outcome::Refused(status) => Self::Refused(status.to_string()),
            hooks::Outcome::Failed(why) => Self::Failed(why),
        }
    }
}

/// What a hook is told of where the rollout is.
fn notice(rollout: &Rollout, event: HookPoint, time: Timestamp) -> hooks::Notice<'_> {
    let started = rollout.started();
    let stage = match rollout.step() {
        Some(Step::ShadowPassed) => Some(hooks::Stage::Shadow),
        Some(Step::StagePassed(_)) => Some(hooks::Stage::Share(rollout.share())),
        _ => None,
    };
    let reason = match rollout.state() {
        State::RolledBack { why, .. } => Some(why.clone()),
        State::Aborted { by } => Some(by.to_string()),
        _ => None,
    };
    hooks::Notice {
        event,
        service: &started.service,
        rollout: &started.id,
        stable_version: &started.stable,
        canary_version: &started.canary.version,
        stage,
        reason,
        time,
    }
}
