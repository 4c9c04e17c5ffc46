//! What people and pipelines want of a rollout.

use std::collections::BTreeSet;
use std::path::Path;

use mirror_api::{CanaryChange, Done, Promote, Rest, RolloutOrder, RolloutOutcome, Start};
use mirror_rollout::Share;
use mirror_rollout::explain;
use mirror_rollout::machine::Rollout;
use mirror_rollout::plan::{Plan, Target};
use mirror_rollout::record::{Entry, Event, Order, Started, Want};
use mirror_rollout::state::By;

use super::journal::Lines;
use super::past::{Beginning, Earlier, LookedBack, Query};
use super::{Running, id, overlay, records};
use crate::config::Protocol;
use crate::control::{Refusal, Reply};
use crate::daemon::canary::fresh_key;
use crate::daemon::core::{Core, Effect};
use crate::daemon::settings::{Ticket, Update};

impl Core {
    /// Carries out an order: at once, or when it is known what it depends on.
    pub(in crate::daemon) fn order(&mut self, ticket: Ticket, service: &str, order: RolloutOrder) {
        if let Some(told) = self.try_order(ticket, service, order) {
            self.told_rollout(ticket, service, told);
        }
    }

    /// A rollout was told something: the answer waits for its record.
    pub(super) fn told_rollout(
        &mut self,
        ticket: Ticket,
        service: &str,
        told: Result<Done, Refusal>,
    ) {
        match told {
            Ok(done) => {
                let record = self.rollouts.unwritten(service);
                self.take(Update::Told(ticket, done, record));
            }
            Err(refusal) => self.effect(Effect::Answer(ticket, Err(refusal))),
        }
    }

    /// Nothing = somebody is asked first.
    fn try_order(
        &mut self,
        ticket: Ticket,
        service: &str,
        order: RolloutOrder,
    ) -> Option<Result<Done, Refusal>> {
        if let Err(refusal) = self.find(service) {
            return Some(Err(refusal));
        }
        let (want, by) = match order {
            RolloutOrder::Start(start) => return self.look_back(ticket, service, start, false),
            RolloutOrder::DryRun(start) => return self.look_back(ticket, service, start, true),
            RolloutOrder::Finish(finish) => return self.finish_rollout(ticket, service, finish),
            RolloutOrder::Pause(by) => (Want::Pause, by),
            RolloutOrder::Resume(by) => (Want::Resume, by),
            RolloutOrder::Promote(Promote { all: false, by }) => (Want::Promote, by),
            RolloutOrder::Promote(Promote { all: true, by }) => (Want::PromoteAll, by),
            RolloutOrder::Abort(by) => {
                let rest = CanaryChange::Off(Rest::Finish);
                if let Err(refusal) = self.check_stable(service, rest) {
                    return Some(Err(refusal));
                }
                (Want::Abort, by)
            }
        };
        Some(self.command(service, want, by))
    }

    /// A rollout is to begin: its service's records are read first.
    fn look_back(
        &mut self,
        ticket: Ticket,
        service: &str,
        start: Box<Start>,
        is_dry_run: bool,
    ) -> Option<Result<Done, Refusal>> {
        let before = Query::Before(Beginning {
            service: service.to_owned(),
            start,
            is_dry_run,
        });
        self.effect(Effect::Read(ticket, before));
        None
    }

    /// It is known what was before a rollout that is to begin.
    pub(in crate::daemon) fn looked_back(&mut self, ticket: Ticket, known: LookedBack) {
        let LookedBack { beginning, earlier } = known;
        let Beginning {
            service,
            start,
            is_dry_run,
        } = beginning;
        let started = match earlier {
            Ok(earlier) => self.prepare_rollout(&service, *start, earlier),
            Err(why) => Err(Refusal::Failed(why)),
        };
        if is_dry_run {
            let answer = started.map(|started| Reply::Done(self.would_begin(&started)));
            self.effect(Effect::Answer(ticket, answer));
        } else {
            let told = started.map(|started| self.begin_rollout(started));
            self.told_rollout(ticket, &service, told);
        }
    }

    /// What would be done.
    fn would_begin(&self, started: &Started) -> Done {
        let (service, canary) = (&started.service, &started.canary);
        let said = vec![
            format!(
                "{service}: nothing was begun; a rollout would bring {} at {} into the place of {}",
                canary.version, canary.address, started.stable
            ),
            explain::outline(&started.plan),
        ];
        done(said, self.forecast(service, &started.plan))
    }

    fn command(&mut self, service: &str, want: Want, by: By) -> Result<Done, Refusal> {
        let running = self.running(service)?;
        running
            .rollout
            .can(want)
            .map_err(|why| Refusal::Invalid(format!("{service}: {why}")))?;
        let before = running.rollout.state().clone();
        self.tell(service, Event::Ordered(Order { want, by }));
        self.settle();
        self.call_hooks();
        let after = self.running(service)?.rollout.state();
        let said = if *after == before {
            format!("{service}: the rollout is {after} already")
        } else {
            format!("{service}: the rollout is {after}")
        };
        Ok(done(vec![said], Vec::new()))
    }

    pub(super) fn running(&self, service: &str) -> Result<&Running, Refusal> {
        self.rollouts
            .running
            .get(service)
            .map(Box::as_ref)
            .ok_or_else(|| {
                let start = format!("`modelmirror rollout start --service {service}` begins one");
                Refusal::Invalid(format!("{service} has no rollout: {start}"))
            })
    }

    /// Takes the canary of a running rollout back, since the command line said so in other words.
    pub(in crate::daemon) fn abort_rollout(&mut self, service: &str, reason: &str) {
        let running = self.rollouts.running.get(service);
        if running.is_some_and(|running| running.rollout.is_on()) {
            let by = By {
                who: "modelmirror".to_owned(),
                reason: Some(reason.to_owned()),
            };
            let want = Want::Abort;
            self.tell(service, Event::Ordered(Order { want, by }));
        }
    }

    /// Why nobody else may set a canary's share now.
    pub(in crate::daemon) fn taken_by_rollout(&self, service: &str) -> Option<String> {
        let running = self.rollouts.running.get(service)?;
        let rollout = &running.rollout;
        rollout.is_on().then(|| {
            format!(
                "a rollout of {} has the canary's share ({}): `modelmirror rollout abort --service {service}`, or `canary off`, takes the canary back",
                rollout.started().canary.version,
                rollout.state()
            )
        })
    }

    /// What would begin, or why nothing can.
    fn prepare_rollout(
        &self,
        service: &str,
        start: Start,
        earlier: Earlier,
    ) -> Result<Started, Refusal> {
        let invalid = |why: String| Refusal::Invalid(format!("{service}: {why}"));
        if let Some(why) = self.taken_by_rollout(service) {
            return Err(Refusal::Invalid(why));
        }
        if let Some(why) = self.rollouts.unreadable.get(service) {
            let cure = "move that file away, and restart the daemon";
            return Err(invalid(format!(
                "its last rollout cannot be read ({why}): {cure}"
            )));
        }
        if self.settings.holds().is_off() {
            return Err(invalid(
                "everything is off: `modelmirror mirror on` lifts it".to_owned(),
            ));
        }
        let config = self.find(service)?.config.clone();
        if config.protocol != Protocol::Http {
            return Err(invalid(format!(
                "protocol = {:?}: its requests cannot be read, so nobody would know whether the new version serves them; steer by hand with `modelmirror canary set`, and watch the servers' own metrics",
                config.protocol.label()
            )));
        }
        let target = target(&config, &start).map_err(invalid)?;
        let plan = start.plan.clone().or(config.rollout.clone());
        let plan = plan.ok_or_else(|| {
            invalid(
                "there is no plan: write a [service.rollout], or name a file with --plan"
                    .to_owned(),
            )
        })?;
        if plan.shadow.is_some() && config.mirror.is_none() {
            let cure = "add a [service.mirror] with `agent` and `agent_key`, or leave [shadow] out";
            return Err(invalid(format!("a shadow stage asks the agent: {cure}")));
        }
        let canary = overlay::on_trial(&config, &target);
        if let Some(view) = &self.view
            && let Err(why) = self.place(&canary, &config.addresses, view)
            && why.is_lasting()
        {
            return Err(invalid(format!("{}: {why}", target.address)));
        }
        if let Some(why) = self.obstacle_here(service)? {
            return Err(invalid(why));
        }
        let is_away = self.is_away(&target.address);
        if let (true, Some(why)) = (is_away, self.ports_lack(service, &plan)) {
            return Err(invalid(why));
        }
        let stable = config.stable_version.clone();
        let mut failed = earlier.rollouts.iter().filter(|rollout| {
            rollout.stable_version == stable
                && rollout.canary.version == target.version
                && rollout.outcome == Some(RolloutOutcome::RolledBack)
        });
        if let Some(failed) = failed.next_back()
            && !start.again
        {
            let reason = failed.reason.as_deref().unwrap_or("no reason is known");
            return Err(invalid(format!(
                "{} was rolled back beside {stable} at {} ({reason}): --again tries it once more",
                target.version, failed.started
            )));
        }
        let id = self.free_id(&target.version, &earlier.ids);
        Ok(Started {
            id,
            service: service.to_owned(),
            stable,
            canary: target,
            plan,
            by: start.by,
        })
    }

    fn begin_rollout(&mut self, started: Started) -> Done {
        let now = self.now();
        let (service, version) = (started.service.as_str(), &started.canary.version);
        let path = self.rollouts.records.path(service, &started.id);
        self.effect(Effect::MakeRoom(service.to_owned()));
        // A share that somebody set earlier must not come back when the rollout ends.
        let known = self.names();
        let key = fresh_key();
        let persist = self.settings.change(self.now.at, |set| {
            set.set_canary(service, Some(Share::NONE), known.iter().map(String::as_str));
            set.set_salt(service, version, key);
        });
        self.carry_out(persist);
        let forecast = self.forecast(service, &started.plan);
        let rollout = Rollout::start(started.clone(), now);
        self.keep_secrets(&path, &started.plan);
        let mut running = Running::new(rollout, path, now);
        running.durable_share = Share::NONE;
        running.follows_unwritten = self.rollouts.is_remembered(service);
        running.warnings = forecast.iter().cloned().collect();
        self.rollouts
            .running
            .insert(service.to_owned(), Box::new(running));
        let said = vec![
            format!(
                "{service}: the rollout of {version} has begun ({})",
                started.id
            ),
            format!("`modelmirror rollout status --service {service}` says how it goes"),
        ];
        let service = service.to_owned();
        let begins = self.line(Entry::Event(Event::Started(Box::new(started))));
        let written = self.rollouts.append(&service, &[begins]);
        self.effects.extend(written);
        self.take_over_again();
        self.call_hooks();
        done(said, forecast)
    }

    /// A new rollout's addresses are kept beside its record, for the daemon after this one.
    fn keep_secrets(&mut self, record: &Path, plan: &Plan) {
        if let Some(secrets) = plan.secrets() {
            self.effect(Effect::Append(Lines {
                path: records::secrets(record),
                // Strings only: there is nothing that could fail.
                text: serde_json::to_string(&secrets).unwrap_or_default(),
                sync: true,
                number: 0,
            }));
        }
    }

    /// Two rollouts of a second have different names.
    fn free_id(&self, version: &str, taken: &BTreeSet<String>) -> String {
        let first = id(self.now(), version);
        let others = (2..).map(|number| format!("{first}-{number}"));
        let mut ids = std::iter::once(first.clone()).chain(others);
        ids.find(|id| !taken.contains(id)).unwrap_or(first.clone())
    }
}

/// The version on trial: what was asked for, or what the config says.
fn target(config: &crate::config::Service, start: &Start) -> Result<Target, String> {
    let configured = config.canary.as_ref();
    let version = start
        .version
        .clone()
        .or_else(|| configured.map(|canary| canary.version.clone()))
        .ok_or("name the new version with --canary-version, or in [service.canary]")?;
    let address = start
        .address
        .or_else(|| configured.map(|canary| canary.address))
        .ok_or("say where it listens with --canary-address, or in [service.canary]")?;
    if !mirror_base::config::is_name(&version) {
        return Err(format!(
            "{version:?} is no version's name: write 1 to 63 letters, digits, `.`, `_` or `-`, beginning with a letter or digit"
        ));
    }
    if version == config.stable_version {
        return Err(format!("{version} is the version in production"));
    }
    let mut addresses = config.addresses.iter();
    if let Some(taken) = addresses.find(|taken| taken.is_taken_by(address)) {
        return Err(format!(
            "{address} is the service's own address, {taken}: say where the canary listens"
        ));
    }
    Ok(Target { version, address })
}

pub(super) fn done(done: Vec<String>, warnings: Vec<String>) -> Done {
    Done { done, warnings }
}
