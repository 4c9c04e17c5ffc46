//! While a rollout runs, what happens is looked at four times a second, and told to it once a tick;
//! what cannot wait at once.

use std::time::Duration;

use mirror_api::Affinity;
use mirror_common::steer::Choice;
use mirror_common::tunnel::{Arm, Direction};
use mirror_common::verdict::Reason;
use mirror_rollout::held::{Held, Kind};
use mirror_rollout::record::Event;
use mirror_rollout::state::Step;
use mirror_rollout::statistics::Clusters;
use mirror_rollout::window::Window;

use super::asks::SentByNode;
use super::counted::{self, Counted};
use crate::daemon::core::Core;
use crate::daemon::health::Failure;
use crate::daemon::local_reader::Looked;
use crate::daemon::place::Place;
use crate::daemon::servers::Versioned;
use crate::daemon::services::{Service, counters};
use crate::dataplane;

/// How often: severe failures are to be answered within a second.
pub(in crate::daemon) const LOOK: Duration = Duration::from_millis(250);

/// Of fewer evenly busy clients, or connections, no share can be formed.
const FEWEST_KEYS: f64 = 1.5;

impl Core {
    /// One look at every rollout.
    pub(in crate::daemon) fn watch_rollouts(&mut self) {
        for service in self.rollouts.names() {
            self.watch_rollout(&service);
        }
        self.call_hooks();
    }

    fn watch_rollout(&mut self, service: &str) {
        let now = self.now();
        let Some(running) = self.rollouts.running.get_mut(service) else {
            return;
        };
        if !running.rollout.is_on() {
            return;
        }
        let tick = running.tick(self.now.at);
        let passed = Duration::try_from(now.duration_since(running.told)).unwrap_or_default();
        let is_due = passed >= tick;
        if !running.rollout.is_watched() {
            // Promoted: nothing is judged any more, only time passes.
            if is_due {
                running.told = now;
                self.tell(service, Event::Seen(Box::default()));
            }
            return;
        }
        let counted = self.count(service);
        let obstacles = self.obstacles(service);
        if let Ok(counted) = &counted {
            self.tell_rest(service, counted, &obstacles);
        }
        let window = self.window(service, counted.as_ref(), obstacles);
        let Some(running) = self.rollouts.running.get_mut(service) else {
            return;
        };
        if !is_due
            && !running.rollout.is_alarmed_by(&window)
            && !running.rollout.is_severe(&window, now)
        {
            running.looked = counted.ok();
            return;
        }
        running.told = now;
        running.looked = None;
        running.counted = counted.ok().or(running.counted.take());
        let counts = running.rollout.step() != Some(Step::Before);
        running.asked.told(counts);
        self.tell(service, Event::Seen(Box::new(window)));
        self.ask_for(service);
    }

    /// What happened since the last look may be alarming where it is not beside what the tick began
    /// with: then that is told first, by itself.
    fn tell_rest(&mut self, service: &str, counted: &[Counted; 2], obstacles: &[Held]) {
        let Some(running) = self.rollouts.running.get_mut(service) else {
            return;
        };
        let (Some(told), Some(looked)) = (&running.counted, &running.looked) else {
            return;
        };
        if running.rollout.is_alarmed_by(&between(looked, counted)) {
            let mut rest = between(told, looked);
            rest.held = obstacles.to_vec();
            running.counted = running.looked.take();
            self.tell(service, Event::Seen(Box::new(rest)));
        }
    }

    /// What both versions have done so far.
    fn count(&self, service: &str) -> Result<[Counted; 2], String> {
        let mut services = self.services.iter();
        let found = services.find(|known| known.config.name == service);
        let found = found.ok_or("it is not served here")?;
        let versions = self
            .rollouts
            .running
            .get(service)
            .map(|running| running.rollout.started())
            .map(|started| [started.stable.clone(), started.canary.version.clone()])
            .unwrap_or_default();
        let [stable, canary] = versions;
        let counted = || -> Result<_, dataplane::Error> {
            Ok([
                self.count_arm(found, Arm::Stable, stable)?,
                self.count_arm(found, Arm::Canary, canary)?,
            ])
        };
        counted().map_err(|error| error.to_string())
    }

    /// What happened since it was told last.
    fn window(
        &self,
        service: &str,
        counted: Result<&[Counted; 2], &String>,
        obstacles: Vec<Held>,
    ) -> Window {
        let mut window = Window::default();
        let Some(running) = self.rollouts.running.get(service) else {
            return window;
        };
        let rollout = &running.rollout;
        match (counted, &running.counted) {
            (Ok(now @ [_, canary]), Some(then @ [_, canary_then])) => {
                window = between(then, now);
                if rollout.step().is_some_and(|step| step.has_clients()) {
                    let turned_away = &window.stable.turned_away;
                    let reasons = [Choice::NoCanary, Choice::NoAnswer].map(Choice::label);
                    let turned_away = reasons.iter().filter_map(|why| turned_away.get(*why)).sum();
                    window.unreachable =
                        self.unreachable(service, turned_away, [canary_then, canary]);
                }
            }
            (Ok(_), None) => {}
            (Err(why), _) => window.held.push(Held {
                kind: Kind::Counters,
                why: format!("the kernel's counters cannot be read: {why}"),
            }),
        }
        let sent = match self.sent_by_node(service) {
            Ok(sent) => sent,
            Err(why) => {
                window.held.push(Held {
                    kind: Kind::Agent,
                    why: format!("the kernel's counters cannot be read: {why}"),
                });
                return window;
            }
        };
        running.asked.fill(&mut window, rollout, sent.as_ref());
        window.held.extend(obstacles);
        // What cannot be written down must not lead on, but back it may.
        window
            .held
            .extend(running.trouble.as_ref().map(|(why, _)| Held {
                kind: Kind::Record,
                why: format!("the rollout's record cannot be written: {why}"),
            }));
        let affinity = self.canary_of(service).map(|canary| canary.affinity);
        window.by_client = affinity == Some(Affinity::Client);
        if window.by_client {
            for arm in [&mut window.stable, &mut window.canary] {
                arm.by_connection = Clusters::default();
            }
        }
        window
    }

    /// What was sent to the agent of a service's, where that matters to its rollout.
    fn sent_by_node(&self, service: &str) -> Result<Option<SentByNode>, dataplane::Error> {
        let running = self.rollouts.running.get(service);
        let has_shadow =
            running.is_some_and(|running| running.rollout.started().plan.shadow.is_some());
        let mut services = self.services.iter();
        let found = services.find(|known| known.config.name == service);
        let Some(found) = found.filter(|_| has_shadow) else {
            return Ok(None);
        };
        let Some(agent) = found.agent().and_then(|address| self.agents.get(address)) else {
            return Ok(None);
        };
        let mut sent = SentByNode {
            boot: agent.life(self.tap.boot),
            ..SentByNode::default()
        };
        for direction in [Direction::Request, Direction::Response] {
            let counted = counters(&**self.kernel.counts(), found.row, direction)?;
            sent.packets += counted.packets[Reason::Mirrored as usize];
            sent.bytes += counted.mirrored_bytes;
        }
        Ok(Some(sent))
    }

    /// Why the canary cannot be reached, if it cannot. What keeps this host from dialling says nothing of it.
    fn unreachable(
        &self,
        service: &str,
        turned_away: u64,
        canary: [&Counted; 2],
    ) -> Option<String> {
        let address = self.canary_of(service)?.address;
        match self.health.of(address) {
            Some(Err(Failure::Ours(_))) => return None,
            Some(Err(Failure::Theirs(why))) => return Some(format!("{address}: {why}")),
            Some(Ok(())) | None => {}
        }
        if turned_away > 0 {
            return Some(format!(
                "{turned_away} connections went to stable instead, since {address} did not take them"
            ));
        }
        // One that has only just started is not found yet: who was there must have gone.
        let processes = canary.map(|then| then.server.map(|server| server.processes));
        let is_gone = matches!(processes, [Some(1..), Some(0)]);
        is_gone.then(|| format!("nobody listens at {address}"))
    }

    fn canary_of(&self, service: &str) -> Option<&crate::config::Canary> {
        let mut services = self.services.iter();
        let found = services.find(|known| known.config.name == service)?;
        found.config.canary.as_ref()
    }

    /// What keeps the canary from its share.
    fn obstacles(&self, service: &str) -> Vec<Held> {
        let mut held = Vec::new();
        let Some(found) = self
            .services
            .iter()
            .find(|known| known.config.name == service)
        else {
            return held;
        };
        let Some(canary) = &found.config.canary else {
            return held;
        };
        if self.is_stable_gone(found) {
            held.push(Held {
                kind: Kind::StableGone,
                why: format!(
                    "nobody listens for {} any more: without the canary clients would have nobody, so it stays; start {} again, or `modelmirror canary off --force`",
                    found.config.stable_version, found.config.stable_version
                ),
            });
        }
        let not_steered = |why: String| Held {
            kind: Kind::NotSteered,
            why,
        };
        if let Some(view) = &self.view {
            match self.place(canary, &found.config.addresses, view) {
                Ok(Place::Here) => {
                    let obstacle = self.obstacle_here(service).ok().flatten();
                    held.extend(obstacle.map(not_steered));
                }
                Ok(Place::Away(_)) => {
                    if let Some(Err(why @ Failure::Ours(_))) = self.health.of(canary.address) {
                        held.push(not_steered(format!("{}: {why}", canary.address)));
                    }
                }
                Err(why) => held.push(not_steered(format!("{}: {why}", canary.address))),
            }
        }
        held.extend(self.unwritten.clone().map(not_steered));
        held.extend(self.local_reader.trouble().map(|why| Held {
            kind: Kind::NotSeen,
            why: why.clone(),
        }));
        let spread = self.census.found().get(&found.row).copied();
        if let Some(spread) = spread
            && spread.keys(canary.affinity) < FEWEST_KEYS
        {
            let (who, cure) = match canary.affinity {
                Affinity::Client => (
                    format!("{} sends nearly everything", spread.busiest),
                    "where that is a gateway, set affinity = \"connection\" in [service.canary]",
                ),
                Affinity::Connection => (
                    format!(
                        "one connection of {} carries nearly everything",
                        spread.busiest
                    ),
                    "let clients open more connections (nginx: keepalive_requests; Envoy: max_requests_per_connection)",
                ),
            };
            held.push(Held {
                kind: Kind::OneClient,
                why: format!("{who}: {cure}"),
            });
        }
        held
    }
}

/// What both versions did between two looks.
fn between([stable_then, canary_then]: &[Counted; 2], [stable, canary]: &[Counted; 2]) -> Window {
    Window {
        stable: counted::arm(stable, stable_then),
        canary: counted::arm(canary, canary_then),
        ..Window::default()
    }
}

impl Core {
    /// What a version of a service has done so far.
    pub(super) fn count_arm(
        &self,
        service: &Service,
        arm: Arm,
        version: String,
    ) -> Result<Counted, dataplane::Error> {
        let config = &service.config;
        let server = Versioned {
            service: config.name.clone(),
            arm,
            version,
        };
        let tally = self.local_reader.tally(config.id);
        Ok(Counted {
            counters: self.kernel.counts().arm(service.row, arm)?,
            by_client: self.kernel.counts().clients(service.row, arm)?,
            looked: tally.map_or_else(Looked::default, |tally| tally.read(arm)),
            sample: self.local_reader.sample(config.id)[arm as usize],
            server: self
                .servers
                .usage()
                .get(&server)
                .map(super::super::servers::shown),
        })
    }
}
