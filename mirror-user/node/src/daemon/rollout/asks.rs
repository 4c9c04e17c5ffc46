//! Who is asked for what the kernel does not know: the agent, Prometheus, hooks, servers. Each in a task of
//! its own, one at a time; what they say comes back as [`Heard`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use mirror_api::Finish;
use mirror_api::summary::{ServiceSummary, Summary, TrafficSummary};
use mirror_rollout::held::{Held, Kind};
use mirror_rollout::machine::{Call, Rollout};
use mirror_rollout::plan::{self, Endpoint, Hook, HookPoint, MetricGate, fill};
use mirror_rollout::record::{Answer, Called, Event};
use mirror_rollout::state::{State, Step};
use mirror_rollout::window::{Reading, Window};
use tokio::sync::mpsc;

use super::finish::{Probe, Probed};
use super::prometheus::Prometheus;
use super::{counted, hooks, http};
use crate::agent_api::{self, Access};
use crate::config::Mirror;
use crate::daemon::core::{Core, Effect};
use crate::daemon::settings::Ticket;

/// What somebody is asked, for which service's rollout.
#[derive(Debug)]
pub(in crate::daemon) struct Question {
    pub(super) service: String,
    /// The rollout's id.
    pub(super) id: String,
    pub(super) asks: Asks,
}

#[derive(Debug)]
pub(super) enum Asks {
    /// The agent, for its summary, by this key of ours.
    Agent(Box<Mirror>, PathBuf),
    /// Prometheus there, for what a gate goes by, of stable and of the canary.
    Metric(Box<MetricGate>, Endpoint, [String; 2]),
    /// A hook, which has this place in the plan, is called.
    Hook(Box<Hook>, usize, HookPoint, serde_json::Value),
    /// The servers at the service's own address, before the rollout ends by this order.
    Servers(Ticket, Finish, Result<Probe, String>),
}

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

/// Asks.
#[derive(Debug)]
pub(in crate::daemon) struct Asker {
    heard: mpsc::UnboundedSender<Heard>,
    client: reqwest::Client,
    /// What the last rollouts of services ask, by the rollout's id.
    prometheus: BTreeMap<String, (String, Arc<Prometheus>)>,
}

impl Asker {
    /// What is heard is sent to `heard`.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(in crate::daemon) fn new(heard: mpsc::UnboundedSender<Heard>) -> reqwest::Result<Self> {
        Ok(Self {
            heard,
            client: http::client()?,
            prometheus: BTreeMap::new(),
        })
    }

    /// Asks in a task.
    pub(in crate::daemon) fn ask(&mut self, question: Question) {
        let Question { service, id, asks } = question;
        let (client, heard) = (self.client.clone(), self.heard.clone());
        let prometheus = match &asks {
            Asks::Metric(_, base, _) => Some(self.prometheus(&service, &id, base)),
            _ => None,
        };
        tokio::spawn(async move {
            let what = match (asks, prometheus) {
                (Asks::Agent(mirror, key_file), _) => {
                    What::Summary(Box::new(summary(&mirror, &key_file).await))
                }
                (Asks::Metric(gate, _, versions), Some(prometheus)) => {
                    let reading = read(&prometheus, &gate, &service, &versions).await;
                    What::Metric(gate.name, reading)
                }
                (Asks::Metric(..), None) => return,
                (Asks::Hook(wanted, hook, point, body), _) => What::Called(Called {
                    hook,
                    point,
                    answer: hooks::call(&client, &wanted, &body).await.into(),
                }),
                (Asks::Servers(ticket, finish, probe), _) => What::Probed(Probed {
                    ticket,
                    finish,
                    outcome: match probe {
                        Ok(probe) => probe.ask(&client).await,
                        Err(why) => Err(why),
                    },
                }),
            };
            let _ = heard.send(Heard { service, id, what });
        });
    }

    fn prometheus(&mut self, service: &str, id: &str, base: &Endpoint) -> Arc<Prometheus> {
        match self.prometheus.get(service) {
            Some((of, known)) if of == id => Arc::clone(known),
            _ => {
                let made = Arc::new(Prometheus::new(self.client.clone(), base));
                let known = (id.to_owned(), Arc::clone(&made));
                self.prometheus.insert(service.to_owned(), known);
                made
            }
        }
    }
}

async fn summary(mirror: &Mirror, key_file: &Path) -> Result<Summary, String> {
    let said = async {
        let access = Access::of(mirror, key_file)?;
        agent_api::summary(&mirror.agent, &access).await
    };
    said.await.map_err(|error| error.to_string())
}

/// What this node has sent to an agent of one service, since its counters began.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SentByNode {
    /// The life of the counters.
    pub(super) boot: u64,
    /// Packets and their bytes, of both directions.
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// The shortest request that HTTP/1 knows: `G / HTTP/1.0`, and an empty line.
const SHORTEST: u64 = 16;

/// Requests that may have been on their way when a service's counters began anew.
const UNDERWAY: u64 = 100;

/// Why what an agent has seen cannot be true: of this node's requests it has seen more than the node's copies can
/// have carried. Each brings a packet, or stands in one behind others.
fn beyond(said: &ServiceSummary, sent: &SentByNode) -> Option<String> {
    let SentByNode {
        boot,
        packets,
        bytes,
    } = *sent;
    let Some(of_node) = said.of_this_node else {
        return Some("the agent has heard nothing of this node yet".to_owned());
    };
    if of_node.boot != boot {
        return Some("the agent has not heard of this node's present counters yet".to_owned());
    }
    let most = packets + bytes / SHORTEST + UNDERWAY;
    (of_node.seen > most).then(|| {
        format!(
            "the agent says that it has seen {} requests of this node's, which has sent it {packets} packets of {bytes} bytes: what it says is not used",
            of_node.seen
        )
    })
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
    /// What of repeated requests the rollout was told.
    traffic: TrafficSummary,
    readings: BTreeMap<String, Reading>,
}

impl Asked {
    /// The rollout knows all that was said; whether it `counts` any of it yet.
    pub(super) fn told(&mut self, counts: bool) {
        if let Some(Ok(said)) = &self.summary {
            if counts && self.known.is_some() {
                self.traffic = said.1.traffic;
            }
            self.known = Some(said.clone());
        }
        self.readings.clear();
    }

    /// Puts what was said since into a window.
    pub(super) fn fill(&self, window: &mut Window, rollout: &Rollout, sent: Option<&SentByNode>) {
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
                let beyond = sent.and_then(|sent| beyond(said, sent));
                if let Some(why) = beyond {
                    return window.held.push(held(why));
                }
                let none = ServiceSummary::default();
                let then = match &self.known {
                    Some((known, then)) if known == since => Some(then),
                    // The agent has begun anew: if it did so after us, all it says is news.
                    _ if *since > rollout.began() => Some(&none),
                    _ => None,
                };
                let shadow = then.map(|then| counted::shadow(said, then, &plan.baseline));
                window.shadow = shadow.and_then(|mut shadow| {
                    // How production varies it did before the rollout as well. One that goes on in another
                    // daemon has heard that.
                    if rollout.has_compared_nothing() {
                        shadow.traffic = counted::traffic(said.traffic, self.traffic);
                    }
                    // That there is a control is told with the first comparisons.
                    let control = shadow.control.take();
                    let is_idle = shadow == Default::default();
                    shadow.control = control.filter(|control| !is_idle || !control.is_idle());
                    (shadow != Default::default()).then_some(shadow)
                });
                let control = said.control.as_ref();
                let down = control.and_then(|control| Some((control, control.down.as_ref()?)));
                window.held.extend(down.map(|(control, error)| Held {
                    kind: Kind::Control,
                    why: format!(
                        "the control at {} gives no answers ({error}), so that what the old version differs from itself is not known: start a copy of {} there",
                        control.address,
                        rollout.started().stable
                    ),
                }));
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

impl Core {
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

    pub(super) fn ask(&mut self, service: &str, id: String, asks: Asks) {
        let service = service.to_owned();
        self.effect(Effect::Ask(Question { service, id, asks }));
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
        let started = running.rollout.started();
        let is_wanted = started.plan.shadow.is_some() && running.rollout.step().is_some();
        let (false, true, Some(mirror)) = (running.asked.agent, is_wanted, mirror) else {
            return;
        };
        running.asked.agent = true;
        let id = started.id.clone();
        let key_file = self.config.key_file.clone();
        self.ask(service, id, Asks::Agent(Box::new(mirror), key_file));
    }

    fn ask_metrics(&mut self, service: &str) {
        let Some(running) = self.rollouts.running.get_mut(service) else {
            return;
        };
        let started = running.rollout.started();
        let mut steps = running.rollout.step().into_iter();
        let has_clients = steps.any(|step| step.has_clients());
        let (true, Some(base)) = (has_clients, &started.plan.prometheus) else {
            return;
        };
        let (id, base) = (started.id.clone(), base.clone());
        let versions = [started.stable.clone(), started.canary.version.clone()];
        let mut gates = started.plan.gates.clone();
        gates.retain(|gate| running.asked.metrics.insert(gate.name.clone()));
        for gate in gates {
            let asks = Asks::Metric(Box::new(gate), base.clone(), versions.clone());
            self.ask(service, id.clone(), asks);
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
        let mut asks = Vec::new();
        for Call { hook, point } in running.rollout.calls(now) {
            let started = running.rollout.started();
            let Some(wanted) = started.plan.hooks.get(hook).cloned() else {
                continue;
            };
            if !running.asked.hooks.insert(hook) {
                continue;
            }
            let body = serde_json::json!(notice(&running.rollout, point, now));
            asks.push(Asks::Hook(Box::new(wanted), hook, point, body));
        }
        let id = running.rollout.started().id.clone();
        for asks in asks {
            self.ask(service, id.clone(), asks);
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

#[cfg(test)]
mod tests {
    use mirror_api::summary::OfNode;

    use super::*;

    #[track_caller]
    fn check(of_this_node: Option<(u64, u64)>, why: Option<&str>) {
        let said = ServiceSummary {
            seen: 1 << 40,
            of_this_node: of_this_node.map(|(boot, seen)| OfNode { boot, seen }),
            ..ServiceSummary::default()
        };
        let sent = SentByNode {
            boot: 7,
            packets: 1_000,
            bytes: 160_000,
        };
        let found = beyond(&said, &sent);
        match (&found, why) {
            (None, None) => {}
            (Some(found), Some(why)) => assert!(found.contains(why), "{found}"),
            _ => panic!("{found:?}, not {why:?}"),
        }
    }

    /// What it has seen of other nodes' is not known here.
    #[test]
    fn more_than_was_sent_is_not_believed() {
        check(Some((7, 500)), None);
        check(Some((7, 11_100)), None);
        let why = "has seen 11101 requests of this node's, which has sent it 1000 packets";
        check(Some((7, 11_101)), Some(why));
        check(Some((6, 0)), Some("present counters"));
        check(None, Some("nothing of this node"));
    }
}
