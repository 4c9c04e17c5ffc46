//! What people and pipelines want of a rollout.

use std::time::Instant;

use anyhow::Context as _;
use jiff::Timestamp;

use super::records::{self, Records};
use super::{Running, id, line};
use crate::config::{Protocol, Share};
use crate::control::{
    CanaryChange, Done, Promote, Refusal, Reply, Rest, RolloutOrder, RolloutOutcome,
    RolloutSummary, Start,
};
use crate::daemon::canary::fresh_key;
use crate::daemon::place;
use crate::daemon::{Daemon, rollout::overlay};
use crate::rollout::machine::Rollout;
use crate::rollout::plan::{Plan, Target};
use crate::rollout::record::{By, Entry, Event, Order, Started, Want};

impl Daemon {
    /// Carries out an order.
    pub(in crate::daemon) fn order(
        &mut self,
        service: &str,
        order: RolloutOrder,
    ) -> Result<Done, Refusal> {
        self.find(service)?;
        let (want, by) = match order {
            RolloutOrder::Start(start) => return self.start_rollout(service, *start),
            RolloutOrder::Finish(finish) => return self.finish_rollout(service, finish),
            RolloutOrder::Pause(by) => (Want::Pause, by),
            RolloutOrder::Resume(by) => (Want::Resume, by),
            RolloutOrder::Promote(Promote { all: false, by }) => (Want::Promote, by),
            RolloutOrder::Promote(Promote { all: true, by }) => (Want::PromoteAll, by),
            RolloutOrder::Abort(by) => {
                self.check_stable(service, CanaryChange::Off(Rest::Finish))?;
                (Want::Abort, by)
            }
        };
        self.command(service, want, by)
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
        self.rollouts.running.get(service).ok_or_else(|| {
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

    fn start_rollout(&mut self, service: &str, start: Start) -> Result<Done, Refusal> {
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
        if self.core.holds().is_off() {
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
            && let Err(why) = place::find(&canary, &config.addresses, view)
            && why.is_lasting()
        {
            return Err(invalid(format!("{}: {why}", target.address)));
        }
        if let Some(why) = self.obstacle_here(service)? {
            return Err(invalid(why));
        }
        let stable = config.stable_version.clone();
        let failed = failures(&self.rollouts.records, service, [&stable, &target.version])
            .map_err(|error| Refusal::Failed(format!("{error:#}")))?;
        if let Some(failed) = failed.last()
            && !start.again
        {
            let reason = failed.reason.as_deref().unwrap_or("no reason is known");
            return Err(invalid(format!(
                "{} was taken back from beside {stable} at {} ({reason}): --again tries it once more",
                target.version, failed.started
            )));
        }
        self.begin(service, plan, target, stable, start.by)
    }

    fn begin(
        &mut self,
        service: &str,
        plan: Plan,
        canary: Target,
        stable: String,
        by: By,
    ) -> Result<Done, Refusal> {
        let now = self.now();
        let version = canary.version.clone();
        let (id, path) = self.free_id(service, &version, now);
        let made = self.rollouts.records.make_room(service);
        let mut warnings: Vec<String> = made
            .err()
            .map(|error| error.to_string())
            .into_iter()
            .collect();
        // A share that somebody set earlier must not come back when the rollout ends.
        let known = self.names();
        let key = fresh_key();
        let persist = self.core.change(Instant::now(), |set| {
            set.set_canary(service, Some(Share::NONE), known.iter().map(String::as_str));
            set.set_salt(service, &version, key);
        });
        self.perform(persist);
        let started = Started {
            id: id.clone(),
            service: service.to_owned(),
            stable,
            canary,
            plan,
            by,
        };
        let forecast = self.forecast(service, &started.plan);
        let rollout = Rollout::start(started.clone(), now);
        self.rollouts.keep_secrets(&path, &started.plan);
        let mut running = Running::new(rollout, path, now);
        running.durable_share = Share::NONE;
        running.follows_unwritten = self.rollouts.is_remembered(service);
        running.warnings = forecast.iter().cloned().collect();
        warnings.extend(forecast);
        self.rollouts.running.insert(service.to_owned(), running);
        let begins = line(now, Entry::Event(Event::Started(Box::new(started))));
        self.rollouts.append(service, &[begins]);
        self.take_over_again();
        self.call_hooks();
        let said = vec![
            format!("{service}: the rollout of {version} has begun ({id})"),
            format!("`modelmirror rollout status --service {service}` says how it goes"),
        ];
        Ok(done(said, warnings))
    }

    /// Two rollouts of a second have different names.
    fn free_id(
        &self,
        service: &str,
        version: &str,
        now: Timestamp,
    ) -> (String, std::path::PathBuf) {
        let first = id(now, version);
        let others = (2..).map(|number| format!("{first}-{number}"));
        let ids = std::iter::once(first.clone()).chain(others);
        let with_path = ids.map(|id| {
            let path = self.rollouts.records.path(service, &id);
            (id, path)
        });
        let mut free = with_path.filter(|(_, path)| !path.exists());
        free.next().unwrap_or_default()
    }

    /// The rollouts of a service, or of all; the last one first.
    pub(in crate::daemon) fn history(&self, service: Option<&str>) -> Result<Reply, Refusal> {
        if let Some(service) = service {
            self.find(service)?;
        }
        let names = self.names();
        let wanted = names
            .iter()
            .filter(|name| service.is_none_or(|wanted| wanted == *name));
        let mut rollouts = Vec::new();
        for name in wanted {
            let found = summaries(&self.rollouts.records, name);
            rollouts.extend(found.map_err(|error| Refusal::Failed(format!("{error:#}")))?);
        }
        rollouts.sort_by_key(|rollout| std::cmp::Reverse(rollout.started));
        Ok(Reply::Rollouts(rollouts))
    }

    /// A rollout's record, for people: the last one's unless another is named.
    pub(in crate::daemon) fn told(
        &self,
        service: &str,
        id: Option<&str>,
    ) -> Result<Reply, Refusal> {
        self.find(service)?;
        let path = match id {
            Some(id) if super::is_file_name(id) => self.rollouts.records.path(service, id),
            Some(id) => return Err(Refusal::Invalid(format!("{id:?} is no rollout's id"))),
            None => self.running(service)?.path.clone(),
        };
        if !path.exists() {
            let id = id.unwrap_or_default();
            let cure = format!("`modelmirror rollout history --service {service}` lists them");
            return Err(Refusal::Invalid(format!(
                "{service} has no rollout {id}: {cure}"
            )));
        }
        let lines = records::told(&path);
        lines
            .map(Reply::Record)
            .map_err(|error| Refusal::Failed(format!("{error:#}")))
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
    if !crate::config::is_name(&version) {
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

fn summaries(records: &Records, service: &str) -> anyhow::Result<Vec<RolloutSummary>> {
    let paths = records.of(service).context("the rollouts' records")?;
    // One that cannot be understood is no reason to hide the others.
    let read = paths.iter().filter_map(|path| {
        let said = records::summary(path);
        said.inspect_err(|error| tracing::warn!(service, "{error:#}"))
            .ok()
    });
    Ok(read.collect())
}

/// Rollouts of these two versions that were taken back.
fn failures(
    records: &Records,
    service: &str,
    [stable, canary]: [&str; 2],
) -> anyhow::Result<Vec<RolloutSummary>> {
    let mut of_pair = summaries(records, service)?;
    of_pair.retain(|rollout| {
        rollout.stable_version == stable
            && rollout.canary.version == canary
            && rollout.outcome == Some(RolloutOutcome::RolledBack)
    });
    Ok(of_pair)
}

pub(super) fn done(done: Vec<String>, warnings: Vec<String>) -> Done {
    Done { done, warnings }
}
