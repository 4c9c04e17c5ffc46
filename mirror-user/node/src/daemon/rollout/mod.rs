//! Rollouts as the daemon drives them: what happens is brought to them, written down, and what they
//! decide is done.
//!
//! The state machine is [`mirror_rollout::machine`]; its record, an event a line, is what brings it
//! back after a restart. Going forward waits until the record has it on the disk; taking a canary
//! back waits for nothing: the map is written first.

mod asks;
mod clock;
mod counted;
mod finish;
mod headers;
mod hooks;
mod http;
mod journal;
mod orders;
mod overlay;
mod past;
mod prometheus;
mod records;
mod traffic;
mod watch;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mirror_common::steer::flag;

pub(super) use self::asks::{Asker, Heard, Question};
use self::clock::{Clock, Moment};
use self::counted::Counted;
pub(super) use self::journal::{Journal, Lines, Written};
#[cfg(test)]
pub(super) use self::past::{Earlier, Last};
pub(super) use self::past::{Found, LookedBack, Past, Query};
pub(super) use self::records::Records;
use self::traffic::Samples;
pub(super) use self::watch::LOOK;
use mirror_api::RolloutState;
use mirror_rollout::Share;
use mirror_rollout::gates::elapsed;
use mirror_rollout::machine::Rollout;
use mirror_rollout::plan::Target;
use mirror_rollout::record::{Decision, Entry, Event, Line};
use mirror_rollout::state::State;

use super::core::{Core, Effect};
use super::now::Now;
use super::settings::Update;
use crate::config::{Node, Service};
use crate::state::Overrides;

/// After so long without a disk a rollout is told of what happened ...
const LONG_UNWRITTEN: Duration = Duration::from_secs(600);

/// ... no more often than this.
const SELDOM: Duration = Duration::from_secs(60);

/// The rollouts of all services: the last one of each.
#[derive(Debug)]
pub(super) struct Rollouts {
    records: Records,
    /// Boxed: each is tens of kilobytes, and a map moves what it holds.
    running: BTreeMap<String, Box<Running>>,
    /// What stable has done of late, of services that are measured.
    traffic: BTreeMap<String, Samples>,
    /// Services whose record cannot be understood: their steering stays as the kernel has it.
    unreadable: BTreeMap<String, String>,
    pub(super) clock: Clock,
}

/// One rollout, and what is known beside it.
#[derive(Debug)]
struct Running {
    rollout: Rollout,
    path: PathBuf,
    /// The last entry that was handed to the journal ...
    number: u64,
    /// ... and the last that is on the disk, ...
    durable: u64,
    /// ... with the share that it allows.
    durable_share: Share,
    shares: VecDeque<(u64, Share)>,
    /// Whether the disk did not have how the one before has ended when this began.
    follows_unwritten: bool,
    /// Why the record cannot be written, and since when.
    trouble: Option<(String, Instant)>,
    /// When an earlier daemon wrote its last line.
    last: Option<Moment>,
    /// When it was told what happened.
    told: Timestamp,
    /// What both versions had done then.
    counted: Option<[Counted; 2]>,
    /// What they had done at the last look, where it was not told of that.
    looked: Option<[Counted; 2]>,
    asked: asks::Asked,
    warnings: BTreeSet<String>,
}

impl Running {
    fn new(rollout: Rollout, path: PathBuf, now: Timestamp) -> Self {
        Self {
            durable_share: rollout.share(),
            rollout,
            path,
            number: 0,
            durable: 0,
            shares: VecDeque::new(),
            follows_unwritten: false,
            trouble: None,
            last: None,
            told: now,
            counted: None,
            looked: None,
            asked: asks::Asked::default(),
            warnings: BTreeSet::new(),
        }
    }

    /// The share that is safe: never more than the record has.
    fn share(&self) -> Share {
        self.rollout.share().min(self.durable_share)
    }

    /// How often it is told what happened: while its record has not been written for long, lines that wait for
    /// the disk are few.
    fn tick(&self, now: Instant) -> Duration {
        let tick = self.rollout.started().plan.tick;
        match &self.trouble {
            Some((_, since)) if now.duration_since(*since) > LONG_UNWRITTEN => tick.max(SELDOM),
            _ => tick,
        }
    }

    /// Whether what was decided is on the disk.
    fn is_durable(&self) -> bool {
        self.durable == self.number
    }
}

impl Rollouts {
    /// Takes up what the records say.
    pub(super) fn new(config: &Node, past: Past, now: Now) -> Self {
        let mut rollouts = Self {
            records: Records::new(&config.state_dir),
            running: BTreeMap::new(),
            traffic: BTreeMap::new(),
            unreadable: BTreeMap::new(),
            clock: Clock::start(None, now),
        };
        rollouts.take_up(past);
        let running = rollouts.running.values();
        let watched = running.filter(|running| running.rollout.is_watched());
        rollouts.clock = match watched.filter_map(|running| running.last).max() {
            Some(last) => Clock::resume(last, now),
            None => {
                let running = rollouts.running.values();
                Clock::start(running.map(|running| running.rollout.entered()).max(), now)
            }
        };
        rollouts
    }

    /// Services that the config names anew may have been here before.
    pub(super) fn take_up(&mut self, past: Past) {
        for (service, last) in past {
            if self.running.contains_key(&service) || self.unreadable.contains_key(&service) {
                continue;
            }
            match last {
                Ok(None) => {}
                Ok(Some(last)) => {
                    let mut running = Running::new(last.rollout, last.path, self.clock.now());
                    running.last = last.written;
                    self.running.insert(service, Box::new(running));
                }
                Err(why) => {
                    tracing::error!(service, "its steering stays as it is: {why}");
                    self.unreadable.insert(service, why);
                }
            }
        }
    }

    /// The config as rollouts change it.
    pub(super) fn effective(&self, file: &Node, overrides: &Overrides) -> Node {
        overlay::effective(file, overrides, |service| self.target(service))
    }

    /// The version on trial, or promoted and still steered to. One that was taken back stays where the
    /// file has no other: its last connections have to find their way.
    fn target(&self, service: &Service) -> Option<&Target> {
        let rollout = &self.running.get(&service.name)?.rollout;
        let taken_back = matches!(
            rollout.state(),
            State::RolledBack { .. } | State::Aborted { .. }
        );
        let is_canary = rollout.is_on() || taken_back && service.canary.is_none();
        is_canary.then_some(&rollout.started().canary)
    }

    /// The last rollout of a service, and how long ago it began.
    pub(super) fn trial(&self, service: &str) -> Option<(String, Duration)> {
        let rollout = &self.running.get(service)?.rollout;
        let since = elapsed(rollout.began(), self.clock.now());
        Some((rollout.started().id.clone(), since))
    }

    /// The share of a service's canary; nothing = no rollout has a say in it.
    pub(super) fn share(&self, service: &str) -> Option<Share> {
        let running = self.running.get(service)?;
        running.rollout.is_on().then(|| running.share())
    }

    /// Whether steering goes on without a daemon: nothing = by the share.
    pub(super) fn is_for_good(&self, service: &str) -> Option<bool> {
        let running = self.running.get(service)?;
        running
            .rollout
            .is_on()
            .then(|| running.rollout.is_for_good() && running.is_durable())
    }

    /// Whether the kernel's steering must stay as it is.
    pub(super) fn is_unreadable(&self, service: &str) -> bool {
        self.unreadable.contains_key(service)
    }

    /// Whether the kernel has to remember that a canary was taken back, since the disk does not yet:
    /// this rollout's, or that of the one before.
    pub(super) fn is_remembered(&self, service: &str) -> bool {
        let running = self.running.get(service);
        running.is_some_and(|running| {
            let rollout = &running.rollout;
            let has_clients = rollout.step().is_some_and(|step| step.has_clients());
            let has_begun = running.durable > 0 || has_clients && !running.follows_unwritten;
            !running.is_durable() && (!rollout.is_on() || !has_begun)
        })
    }

    /// Where the last rollout of a service is.
    pub(super) fn state(&self, service: &str) -> Option<RolloutState> {
        let running = self.running.get(service)?;
        let mut state = RolloutState::of(&running.rollout, self.clock.now());
        state.warnings = running.warnings.iter().cloned().collect();
        let trouble = running.trouble.as_ref().map(|(why, _)| why.clone());
        state.warnings.extend(trouble);
        Some(state)
    }

    /// Why things are not as they should be.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> + '_ {
        let unreadable = self.unreadable.iter().map(|(service, why)| {
            format!("{service}: its last rollout cannot be read, and its steering stays as it is ({why}): mend or move that file, and restart")
        });
        let unwritten = self.running.iter().filter_map(|(service, running)| {
            let (why, _) = running.trouble.as_ref()?;
            Some(format!(
                "{service}: the rollout's record cannot be written, so it does not go on: {why}"
            ))
        });
        unreadable.chain(unwritten)
    }

    /// Whether there is anything to look at.
    pub(super) fn are_on(&self) -> bool {
        self.running.values().any(|running| running.rollout.is_on())
    }

    /// The last entry of a service's record, if the disk does not have it yet.
    pub(super) fn unwritten(&self, service: &str) -> Option<(String, u64)> {
        let running = self.running.get(service)?;
        (!running.is_durable()).then(|| (service.to_owned(), running.number))
    }

    fn service_of(&self, record: &Path) -> Option<String> {
        let mut running = self.running.iter();
        let found = running.find(|(_, running)| running.path == record);
        found.map(|(service, _)| service.clone())
    }

    fn names(&self) -> Vec<String> {
        self.running.keys().cloned().collect()
    }

    /// What a record gets.
    fn append(&mut self, service: &str, lines: &[Line]) -> Option<Effect> {
        let running = self.running.get_mut(service)?;
        if lines.is_empty() {
            return None;
        }
        let mut text = String::new();
        for line in lines {
            // Strings and numbers only: there is nothing that could fail.
            text += &serde_json::to_string(line).unwrap_or_default();
            text.push('\n');
        }
        let sync = lines.iter().any(matters);
        running.number += 1;
        let share = running.rollout.share();
        running.shares.push_back((running.number, share));
        Some(Effect::Append(Lines {
            path: running.path.clone(),
            text,
            sync,
            number: running.number,
        }))
    }

    /// Lines are on the disk, or not yet. Says whether something follows from that.
    fn landed(&mut self, written: Written, now: Instant) -> bool {
        let path = &written.path;
        let Some(running) = self
            .running
            .values_mut()
            .find(|running| running.path == *path || records::secrets(&running.path) == *path)
        else {
            return false;
        };
        if let Some(why) = written.failure {
            let since = running.trouble.take().map(|(_, since)| since);
            if since.is_none() {
                tracing::error!("a rollout's record cannot be written: {why}");
            }
            running.trouble = Some((why, since.unwrap_or(now)));
            return true;
        }
        running.trouble = None;
        running.durable = written.number;
        let before = running.durable_share;
        while let Some(&(number, share)) = running.shares.front() {
            if number > written.number {
                break;
            }
            running.durable_share = share;
            running.shares.pop_front();
        }
        before != running.durable_share || running.is_durable()
    }
}

/// Whether it must be on the disk before anything follows from it.
fn matters(line: &Line) -> bool {
    match &line.entry {
        Entry::Event(event) => !matches!(event, Event::Seen(_)),
        Entry::Decision(decision) => matches!(decision, Decision::Moved(_)),
    }
}

impl Core {
    /// What the file says, as rollouts change it.
    pub(super) fn overlay(&mut self) {
        self.config = self.rollouts.effective(&self.file, self.settings.holds());
    }

    /// After another version has come on trial, or has left it.
    pub(super) fn take_over_again(&mut self) {
        self.overlay();
        if let Err(error) = self.take_over() {
            tracing::error!("{error}");
        }
        self.say_interest();
        self.settle();
    }

    /// Takes up the rollouts that an earlier daemon has left, once it is known which row of the maps
    /// is whose.
    pub(super) fn resume_rollouts(&mut self) {
        for service in self.rollouts.names() {
            // By the command line, while there was no daemon.
            if self.settings.holds().is_off() {
                self.abort_rollout(&service, "everything was switched off");
                continue;
            }
            let Some(row) = self.row(&service) else {
                continue;
            };
            let steering = self.kernel.steering(row);
            let was_taken_back =
                steering.is_ok_and(|steering| steering.flags & flag::TAKEN_BACK != 0);
            let running = self.rollouts.running.get(&service);
            let rollout = running.map(|running| &running.rollout);
            let (is_on, is_watched) = rollout.map_or((false, false), |rollout| {
                (rollout.is_on(), rollout.is_watched())
            });
            match was_taken_back {
                true if is_watched => self.tell(&service, Event::TakenBack),
                true if is_on => {
                    self.abort_rollout(&service, "it had been, before the daemon ended")
                }
                _ => {}
            }
        }
    }

    pub(super) fn row(&self, service: &str) -> Option<u32> {
        let mut services = self.services.iter();
        let found = services.find(|known| known.config.name == service)?;
        Some(found.row)
    }

    /// Tells a rollout something, does what cannot wait, and writes it down.
    pub(super) fn tell(&mut self, service: &str, event: Event) {
        let now = self.now();
        let Some(running) = self.rollouts.running.get_mut(service) else {
            return;
        };
        let was_on = running.rollout.is_on();
        let is_idle = matches!(&event, Event::Seen(window) if window.is_idle());
        let decisions = running.rollout.tell(&event, now);
        let mut lines = Vec::new();
        if !is_idle || !decisions.is_empty() {
            lines.push(self.line(Entry::Event(event)));
        }
        say(service, &decisions);
        let entries = decisions.into_iter().map(Entry::Decision);
        lines.extend(entries.map(|entry| self.line(entry)));
        lines.extend(self.take_back(service, was_on, now));
        let written = self.rollouts.append(service, &lines);
        self.effects.extend(written);
        self.end_canary(service, was_on);
    }

    /// One map write, before anything else.
    fn take_back(&mut self, service: &str, was_on: bool, now: Timestamp) -> Vec<Line> {
        let Some(running) = self.rollouts.running.get(service) else {
            return Vec::new();
        };
        let is_due = match running.rollout.state() {
            State::RollingBack { .. } => true,
            State::Aborted { .. } => was_on,
            _ => false,
        };
        let (true, Some(row)) = (is_due, self.row(service)) else {
            return Vec::new();
        };
        if let Err(error) = self.lower(row, 0) {
            tracing::error!(service, "rollback failed; retrying: {error}");
            return Vec::new();
        }
        tracing::info!(service, "rollout: no new connections go to the canary");
        let Some(running) = self.rollouts.running.get_mut(service) else {
            return Vec::new();
        };
        if !matches!(running.rollout.state(), State::RollingBack { .. }) {
            return Vec::new();
        }
        let decisions = running.rollout.tell(&Event::TakenBack, now);
        say(service, &decisions);
        let entries = decisions.into_iter().map(Entry::Decision);
        let mut lines = vec![self.line(Entry::Event(Event::TakenBack))];
        lines.extend(entries.map(|entry| self.line(entry)));
        lines
    }

    /// What becomes of the canary's open connections when it was taken back: those of one that fails
    /// badly end at once, so that clients come back to stable; others may finish.
    fn end_canary(&mut self, service: &str, was_on: bool) {
        let Some(running) = self.rollouts.running.get(service) else {
            return;
        };
        if !was_on || running.rollout.is_on() {
            return;
        }
        let rest = running.rollout.started().plan.canary.drain;
        let at = match running.rollout.state() {
            State::RolledBack { severe: true, .. } => Duration::ZERO,
            State::RolledBack { .. } | State::Aborted { .. } => rest,
            _ => return,
        };
        if let Some(row) = self.row(service) {
            self.drain(row, service, at);
        }
        self.take_over_again();
    }

    /// Lines of records are on the disk, or not.
    pub(super) fn landed(&mut self, written: Written) {
        if let (Some(service), None) = (self.rollouts.service_of(&written.path), &written.failure) {
            let number = written.number;
            self.take(Update::Recorded(service, number));
        }
        if self.rollouts.landed(written, self.now.at) {
            self.settle();
            self.call_hooks();
        }
    }

    /// The time that rollouts go by.
    fn now(&self) -> Timestamp {
        self.rollouts.clock.now()
    }

    /// What a record gets of it.
    fn line(&self, entry: Entry) -> Line {
        let time = self.now();
        Line {
            time,
            wall: clock::differing(time, self.now.wall),
            up_ms: self.now.up.map(|up| up.as_millis() as u64),
            entry,
        }
    }
}

/// What was decided, in the log.
fn say(service: &str, decisions: &[Decision]) {
    for decision in decisions {
        match decision {
            Decision::Moved(moved) => {
                let (from, to) = (&moved.from, &moved.to);
                let reason = &moved.reason;
                match to {
                    State::RollingBack { .. } | State::RolledBack { .. } => {
                        tracing::warn!(service, reason, "rollout {to}; it was {from}");
                    }
                    State::Promoted => tracing::info!(service, reason, "rollout promoted"),
                    _ => tracing::info!(service, reason, "rollout: {from} -> {to}"),
                }
            }
            Decision::Judged(gate) => tracing::info!(service, "rollout: {gate}"),
            Decision::Waits(_) => {}
        }
    }
}

/// What a new rollout is called, and its record: by its time and version.
fn id(now: Timestamp, version: &str) -> String {
    format!("{}-{version}", now.strftime("%Y%m%dT%H%M%SZ"))
}
