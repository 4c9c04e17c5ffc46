//! What the command line sets: decided here, and carried out by [`commands`](super::commands).
//!
//! What lowers a risk reaches the kernel first and the disk afterwards; what raises it waits until the
//! disk has it. So there is what is wanted, what the disk may have (a write may be under way), and, of each
//! service the least of these, what holds. Nothing here waits: an order whose
//! outcome is not known yet is answered by a later input, or when its patience is over.

mod waiting;
mod words;

use std::collections::VecDeque;
use std::time::Instant;

use mirror_api::{CanaryChange, Change, Done, Rest};
use mirror_rollout::Share;

use self::waiting::{Needs, Waiting};
use super::keeper::Kept;
use crate::config;
use crate::control::Refusal;
use crate::state::{Configured, Overrides, Trouble};

/// Which order an answer belongs to.
pub(super) type Ticket = u64;

/// The ticket of what the daemon orders by itself: nobody waits for an answer.
pub(super) const NOBODY: Ticket = 0;

/// A service as far as it can be changed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    /// Its name.
    pub(super) name: String,
    /// The canary's version, where it has one.
    pub(super) canary: Option<String>,
    /// Whether it has a mirror.
    pub(super) mirror: bool,
    /// What the file says.
    pub(super) configured: Configured,
}

impl From<&config::Service> for Known {
    fn from(service: &config::Service) -> Self {
        let (mirror, canary) = (&service.mirror, &service.canary);
        Self {
            name: service.name.clone(),
            canary: canary.as_ref().map(|canary| canary.version.clone()),
            mirror: mirror.is_some(),
            configured: Configured {
                sample: mirror.as_ref().map_or(0.0, |mirror| mirror.sample),
                share: canary.as_ref().map_or(Share::NONE, |canary| canary.share),
            },
        }
    }
}

/// What the command line wants.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Order {
    /// Another mirror of a service.
    Mirror(String, Change),
    /// Another share of a service's canary. A rollout that has it, in words, allows nothing but to take it
    /// away.
    Canary(String, CanaryChange, Option<String>),
    /// Nothing of anything; what was done to that end is told with it.
    Off(Vec<String>),
}

/// What has happened.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Update {
    /// Somebody wants something.
    Order(Ticket, Order),
    /// A rollout was told something, which this entry of its record has; the answer waits for it.
    Told(Ticket, Done, Option<(String, u64)>),
    /// What is set was written, or could not be.
    Kept(Kept),
    /// A rollout's record has this entry.
    Recorded(String, u64),
    /// So many connections of a canary were ended for an order, or why they were not.
    Ended(Ticket, Result<u64, String>),
    /// Time has passed.
    Tick,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// A canary gets no more than this of new connections.
    Lower(String, Share),
    /// A service's rollout loses its canary, for this reason.
    TakeBack(String, &'static str),
    /// What is mirrored becomes less.
    StopMirror,
    /// Nothing stays attached.
    Detach,
    /// This is written to the disk.
    Persist(u64, Overrides),
    /// A canary's connections are given no time any more, or so many milliseconds.
    Drain(String, Option<u64>),
    /// A canary's connections end now.
    End(Ticket, String),
    /// Everything becomes what it should be.
    Settle,
    /// An order is answered.
    Answer(Ticket, Result<Done, Refusal>),
}

/// What is on its way to the disk.
#[derive(Debug)]
struct Write {
    number: u64,
    overrides: Overrides,
    since: Instant,
}

/// What is set, and who waits for it to be on the disk.
#[derive(Debug)]
pub(super) struct Settings {
    services: Vec<Known>,
    wanted: Overrides,
    kept: Overrides,
    holds: Overrides,
    /// The last write that was asked for, ...
    number: u64,
    /// ... and the last that is on the disk.
    kept_number: u64,
    /// Writes on their way.
    under_way: VecDeque<Write>,
    /// Why the last one failed.
    failure: Option<String>,
    trouble: Option<Trouble>,
    waiting: Vec<Waiting>,
}

impl Settings {
    /// With what is on the disk, and why that cannot be used.
    pub(super) fn new(kept: Overrides, trouble: Option<Trouble>) -> Self {
        Self {
            services: Vec::new(),
            wanted: kept.clone(),
            holds: kept.clone(),
            kept,
            number: 0,
            kept_number: 0,
            under_way: VecDeque::new(),
            failure: None,
            trouble,
            waiting: Vec::new(),
        }
    }

    /// What is wanted.
    pub(super) fn wanted(&self) -> &Overrides {
        &self.wanted
    }

    /// What holds.
    pub(super) fn holds(&self) -> &Overrides {
        &self.holds
    }

    /// Why the file could not be used.
    pub(super) fn trouble(&self) -> Option<&Trouble> {
        self.trouble.as_ref()
    }

    /// What is not on the disk.
    pub(super) fn unkept(&self) -> Option<String> {
        let why = self.failure.as_ref()?;
        (self.number > self.kept_number).then(|| {
            format!("what was set last is not on the disk, and is tried again every second: {why}")
        })
    }

    /// The services are these, as the file has them now.
    pub(super) fn know(&mut self, services: Vec<Known>) {
        self.services = services;
        self.meet();
    }

    /// What the disk may have.
    fn on_disk(&self) -> impl Iterator<Item = &Overrides> {
        let under_way = self.under_way.iter().map(|write| &write.overrides);
        std::iter::once(&self.kept).chain(under_way)
    }

    /// Whether the disk may have more of a canary than it should get.
    pub(super) fn owes_share(&self, service: &str) -> bool {
        let Some(Known { configured, .. }) = self.find(service) else {
            return false;
        };
        let share = |set: &Overrides| set.share(service, *configured);
        self.on_disk().any(|set| share(set) > share(&self.wanted))
    }

    /// The same of a mirror.
    pub(super) fn owes_mirror(&self, service: &str) -> bool {
        let Some(Known { configured, .. }) = self.find(service) else {
            return false;
        };
        let mirrored = |set: &Overrides| set.mirrored(service, *configured);
        self.on_disk()
            .any(|set| mirrored(set) > mirrored(&self.wanted))
    }

    /// Whether everything is off and the disk may not say so.
    pub(super) fn owes_off(&self) -> bool {
        self.wanted.is_off() && self.on_disk().any(|set| !set.is_off())
    }

    /// What an earlier daemon left in the kernel is less than the disk says: then it is what holds.
    pub(super) fn recover(
        &mut self,
        service: &str,
        share: Option<Share>,
        sample: Option<f64>,
        now: Instant,
    ) -> Vec<Action> {
        let Some(Known { configured, .. }) = self.find(service) else {
            return Vec::new();
        };
        let (had, mirrored) = (
            self.wanted.share(service, *configured),
            self.wanted.mirrored(service, *configured),
        );
        self.change(now, |set| {
            if let Some(share) = share.filter(|share| *share < had) {
                set.lower_share(service, share);
            }
            match sample.filter(|sample| *sample < mirrored) {
                Some(0.0) => set.change(service, Change::Off, []),
                Some(sample) => set.change(service, Change::Sample(sample), []),
                None => {}
            }
        })
    }

    /// What an earlier daemon switched off stays off.
    pub(super) fn recover_off(&mut self, now: Instant) -> Vec<Action> {
        self.change(now, Overrides::switch_off)
    }

    /// Changes what is neither a share nor a sample, or lowers one: has it written, and does not wait.
    pub(super) fn change(
        &mut self,
        now: Instant,
        change: impl FnOnce(&mut Overrides),
    ) -> Vec<Action> {
        change(&mut self.wanted);
        self.number += 1;
        self.under_way.push_back(Write {
            number: self.number,
            overrides: self.wanted.clone(),
            since: now,
        });
        self.meet();
        vec![Action::Persist(self.number, self.wanted.clone())]
    }

    /// Whether the disk has what a service's connections are chosen by.
    pub(super) fn is_key_kept(&self, service: &str) -> bool {
        self.wanted.has_same_salt(&self.kept, service)
    }

    /// When time will make a difference.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let answers = self.waiting.iter().filter_map(Waiting::deadline);
        answers.chain(self.silence()).min()
    }

    /// When a disk that says nothing is called silent.
    fn silence(&self) -> Option<Instant> {
        let oldest = self.under_way.front()?;
        self.failure
            .is_none()
            .then_some(oldest.since + waiting::PATIENCE)
    }

    /// Takes something in.
    pub(super) fn handle(&mut self, input: Update, now: Instant) -> Vec<Action> {
        let mut effects = match input {
            Update::Order(ticket, order) => {
                let ordered = match order {
                    Order::Mirror(service, change) => self.mirror(ticket, &service, change, now),
                    Order::Canary(service, change, rollout) => {
                        self.canary(ticket, &service, change, rollout, now)
                    }
                    Order::Off(done) => Ok(self.off(ticket, done, now)),
                };
                ordered.unwrap_or_else(|refusal| vec![Action::Answer(ticket, Err(refusal))])
            }
            Update::Told(ticket, done, record) => {
                let needs = Needs {
                    record,
                    ..Needs::default()
                };
                self.waiting.push(Waiting::new(ticket, done, needs, now));
                Vec::new()
            }
            Update::Kept(kept) => self.on_kept(kept, now),
            Update::Recorded(service, number) => {
                for waiting in &mut self.waiting {
                    waiting.on_recorded(&service, number);
                }
                Vec::new()
            }
            Update::Ended(ticket, ended) => {
                let mut waiting = self.waiting.iter_mut();
                if let Some(waiting) = waiting.find(|waiting| waiting.ticket == ticket) {
                    waiting.on_ended(ended);
                }
                Vec::new()
            }
            Update::Tick => Vec::new(),
        };
        if self.silence().is_some_and(|silence| now >= silence) {
            self.failure = Some("the disk does not answer".to_owned());
            effects.push(Action::Settle);
        }
        let why = self.failure.as_deref();
        for waiting in &mut self.waiting {
            waiting.pass(now, why);
        }
        let over = self.waiting.extract_if(.., |waiting| waiting.is_over());
        effects.extend(over.map(Waiting::answer));
        effects
    }

    fn mirror(
        &mut self,
        ticket: Ticket,
        service: &str,
        change: Change,
        now: Instant,
    ) -> Result<Vec<Action>, Refusal> {
        let Known {
            mirror, configured, ..
        } = self.named(service)?;
        if !mirror {
            let why = format!("{service} has no [service.mirror] in its config");
            return Err(Refusal::Invalid(why));
        }
        let names = self.names();
        let before = self.holds.mirrored(service, *configured);
        let configured = *configured;
        let persist = self.change(now, |set| {
            set.change(service, change, names.iter().map(String::as_str));
        });
        let mut effects = Vec::new();
        if self.holds.mirrored(service, configured) < before {
            effects.push(Action::StopMirror);
        }
        effects.extend(persist);
        effects.push(Action::Settle);
        let raises =
            self.wanted.mirrored(service, configured) > self.holds.mirrored(service, configured);
        let done = vec![words::of_mirror(service, change, &self.wanted)];
        self.wait(ticket, done, raises, now);
        Ok(effects)
    }

    fn canary(
        &mut self,
        ticket: Ticket,
        service: &str,
        change: CanaryChange,
        rollout: Option<String>,
        now: Instant,
    ) -> Result<Vec<Action>, Refusal> {
        let Known {
            canary, configured, ..
        } = self.named(service)?.clone();
        let Some(version) = canary else {
            let why = format!("{service} has no [service.canary] in its config");
            return Err(Refusal::Invalid(why));
        };
        let mut effects = Vec::new();
        if let Some(why) = rollout {
            if !matches!(change, CanaryChange::Off(_) | CanaryChange::ForceOff(_)) {
                return Err(Refusal::Invalid(format!("{service}: {why}")));
            }
            let why = "its canary was switched off";
            effects.push(Action::TakeBack(service.to_owned(), why));
        }
        let share = match change {
            CanaryChange::Share(share) => Some(share),
            CanaryChange::Off(_) | CanaryChange::ForceOff(_) => Some(Share::NONE),
            CanaryChange::Clear => None,
        };
        let names = self.names();
        let before = self.holds.share(service, configured);
        let persist = self.change(now, |set| {
            set.set_canary(service, share, names.iter().map(String::as_str));
        });
        let now_holds = self.holds.share(service, configured);
        if now_holds < before {
            effects.push(Action::Lower(service.to_owned(), now_holds));
        }
        effects.extend(persist);
        let rest = match change {
            CanaryChange::Off(Rest::Drain(milliseconds))
            | CanaryChange::ForceOff(Rest::Drain(milliseconds)) => Some(milliseconds),
            _ => None,
        };
        effects.push(Action::Drain(service.to_owned(), rest));
        effects.push(Action::Settle);
        let is_reset = matches!(
            change,
            CanaryChange::Off(Rest::Reset) | CanaryChange::ForceOff(Rest::Reset)
        );
        if is_reset {
            effects.push(Action::End(ticket, service.to_owned()));
        }
        let raises = self.wanted.share(service, configured) > now_holds;
        let done = words::of_canary(service, change, &version);
        self.wait(ticket, done, raises, now);
        if let (true, Some(waiting)) = (is_reset, self.waiting.last_mut()) {
            waiting.also_until_ended(now);
        }
        Ok(effects)
    }

    fn off(&mut self, ticket: Ticket, mut done: Vec<String>, now: Instant) -> Vec<Action> {
        let of_rollouts = self.services.iter().map(|known| {
            let why = "everything was switched off";
            Action::TakeBack(known.name.clone(), why)
        });
        let mut effects: Vec<Action> = of_rollouts.collect();
        let lowered = self.services.iter().filter_map(|known| {
            let share = self.holds.share(&known.name, known.configured);
            (share > Share::NONE).then(|| Action::Lower(known.name.clone(), Share::NONE))
        });
        effects.extend(lowered);
        effects.extend([Action::Detach, Action::StopMirror]);
        effects.extend(self.change(now, Overrides::switch_off));
        effects.push(Action::Settle);
        let said = "off, also after a restart; `modelmirror mirror on --service NAME` lifts it";
        done.push(said.to_owned());
        self.wait(ticket, done, false, now);
        effects
    }

    fn on_kept(&mut self, Kept { number, failure }: Kept, now: Instant) -> Vec<Action> {
        self.failure = failure;
        if self.failure.is_some() {
            for waiting in &mut self.waiting {
                waiting.on_unkept(number, now);
            }
            return vec![Action::Settle];
        }
        self.kept_number = number;
        self.trouble = None;
        while let Some(write) = self.under_way.pop_front_if(|write| write.number <= number) {
            self.kept = write.overrides;
        }
        self.meet();
        for waiting in &mut self.waiting {
            waiting.on_kept(number);
        }
        vec![Action::Settle]
    }

    fn wait(&mut self, ticket: Ticket, done: Vec<String>, raises: bool, now: Instant) {
        let done = Done {
            done,
            warnings: Vec::new(),
        };
        let needs = Needs {
            kept: Some(self.number),
            raises,
            ..Needs::default()
        };
        self.waiting.push(Waiting::new(ticket, done, needs, now));
    }

    fn meet(&mut self) {
        let mut holds = self.wanted.clone();
        for set in self.on_disk() {
            let services = self.services.iter();
            let configured = services.map(|known| (known.name.as_str(), known.configured));
            holds = holds.least(set, configured);
        }
        self.holds = holds;
    }

    fn find(&self, service: &str) -> Option<&Known> {
        self.services.iter().find(|known| known.name == service)
    }

    fn named(&self, service: &str) -> Result<&Known, Refusal> {
        self.find(service).ok_or_else(|| Refusal::UnknownService {
            name: service.to_owned(),
            known: self.names(),
        })
    }

    fn names(&self) -> Vec<String> {
        self.services
            .iter()
            .map(|known| known.name.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests;
