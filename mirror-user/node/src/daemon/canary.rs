//! The canaries of services: their shares are changed and written, and their connections ended.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mirror_api::CanaryChange;
use mirror_common::steer::{Health, Steering, flag};
use mirror_common::translate::{MAX_LOCAL, Ports};
use mirror_rollout::Share;

use super::attachments::Away;
use super::core::{Core, Effect};
use super::ending::{Ended, Job};
use super::health::{Attempt, Failure};
use super::network::View;
use super::place;
use super::place::Place;
use super::services::Service;
use super::settings::Update;
use super::steering::{Wanted, share, steering};
use super::translating::Room;
use crate::config::{Canary, Node};
use crate::control::Refusal;
use crate::dataplane;

/// When the canary's connections of a service are ended.
#[derive(Debug)]
pub(super) struct Drain {
    row: u32,
    service: String,
    at: Instant,
}

impl Core {
    /// Refuses a share for a canary that cannot be steered to.
    pub(super) fn check_place(&self, name: &str, change: CanaryChange) -> Result<(), Refusal> {
        let config = &self.find(name)?.config;
        if let (Some(canary), Some(view), CanaryChange::Share(share)) =
            (&config.canary, &self.view, change)
            && share != Share::NONE
            && let Err(why) = self.place(canary, &config.addresses, view)
            && why.is_lasting()
        {
            return Err(Refusal::Invalid(format!("{}: {why}", canary.address)));
        }
        Ok(())
    }

    /// Refuses a share for a canary of this host that would get none of its connections.
    pub(super) fn check_arrivals(
        &mut self,
        name: &str,
        change: CanaryChange,
    ) -> Result<(), Refusal> {
        let gives = |change| matches!(change, CanaryChange::Share(share) if share != Share::NONE && share != Share::ALL);
        if !gives(change) {
            return Ok(());
        }
        // What has come to pass in the last second counts.
        self.watch_arrivals();
        if self.obstacle_here(name)?.is_some() {
            // A server may have been started a moment ago.
            self.write_rules();
        }
        match self.obstacle_here(name)? {
            Some(why) => Err(Refusal::Invalid(format!("{name}: {why}"))),
            None => Ok(()),
        }
    }

    /// Why connections of a service would not arrive at a canary of this host, if it has one.
    pub(super) fn obstacle_here(&self, name: &str) -> Result<Option<String>, Refusal> {
        let service = self.find(name)?;
        let (canary, view) = (&service.config.canary, &self.view);
        let (Some(canary), Some(view)) = (canary, view) else {
            return Ok(None);
        };
        if !place::is_here(canary.address.ip(), &view.addresses) {
            return Ok(None);
        }
        let led_on = self.arrivals.obstacle(service.row);
        let unseen = || self.listening.obstacle(service.row).map(str::to_owned);
        Ok(led_on.or_else(unseen))
    }

    /// Refuses to send everybody where nobody listens, unless by force.
    pub(super) fn check_stable(&self, name: &str, change: CanaryChange) -> Result<(), Refusal> {
        let takes_all = match change {
            CanaryChange::Off(_) => true,
            CanaryChange::Share(share) => share == Share::NONE,
            CanaryChange::ForceOff(_) | CanaryChange::Clear => false,
        };
        let service = self.find(name)?;
        let has_some = self.share(service) != Share::NONE;
        if takes_all && has_some && self.is_stable_gone(service) {
            let stable = &service.config.stable_version;
            return Err(Refusal::Invalid(format!(
                "{name}: nobody listens for {stable} any more, so clients would have nobody: start {stable} first, or write `canary off --force`"
            )));
        }
        Ok(())
    }

    /// Whether nobody listens for stable any more.
    pub(super) fn is_stable_gone(&self, service: &Service) -> bool {
        let addresses = &service.config.addresses;
        self.listening
            .is_gone(addresses, || self.kernel.listeners())
    }

    /// Lowers the part of a service's new connections that the canary gets, by one map write.
    pub(super) fn lower(&mut self, row: u32, threshold: u64) -> Result<(), dataplane::Error> {
        let before = self.kernel.steering(row)?;
        let mut lowered = Steering {
            flags: before.flags | flag::TAKEN_BACK,
            ..before
        };
        if threshold < before.threshold {
            (lowered.threshold, lowered.previous) = (threshold, before.threshold);
            lowered.flags &= !flag::FOR_GOOD;
        }
        if lowered == before {
            return Ok(());
        }
        self.kernel.set_steering(row, lowered)
    }

    /// The canary's connections of a service may finish for so many milliseconds, or as long as they want.
    pub(super) fn drain_service(&mut self, service: &str, rest: Option<u64>) {
        let Some(row) = self.row(service) else {
            return;
        };
        match rest {
            Some(milliseconds) => self.drain(row, service, Duration::from_millis(milliseconds)),
            None => self.drains.retain(|drain| drain.row != row),
        }
    }

    /// The same, by its row.
    pub(super) fn drain(&mut self, row: u32, service: &str, time: Duration) {
        self.drains.retain(|drain| drain.row != row);
        self.drains.push(Drain {
            row,
            service: service.to_owned(),
            at: self.now.at + time,
        });
    }

    /// When the first of those that wait for their end come to it.
    pub(super) fn next_drain(&self) -> Option<Instant> {
        self.drains.iter().map(|drain| drain.at).min()
    }

    /// Has connections ended whose time to finish is over.
    pub(super) fn end_drains(&mut self) {
        let now = self.now.at;
        for drain in self.drains.extract_if(.., |drain| drain.at <= now) {
            let Drain { row, service, .. } = drain;
            self.effects.push(Effect::End(Job {
                row,
                service,
                ticket: None,
            }));
        }
    }

    /// A canary's connections were ended, or not.
    pub(super) fn on_ended(&mut self, Ended { job, outcome }: Ended) {
        let service = &job.service;
        match &outcome {
            Ok(ended) => tracing::info!(service, ended, "the canary's connections were reset"),
            Err(error) => tracing::error!(service, "the canary's connections go on: {error}"),
        }
        if let Some(ticket) = job.ticket {
            self.take(Update::Ended(ticket, outcome));
        }
    }

    /// Writes how new connections are shared out. A service without a canary gets nothing.
    pub(super) fn write_steering(&mut self) -> Result<(), dataplane::Error> {
        self.salt_canaries();
        let Some(view) = &self.view else {
            return Ok(());
        };
        let mut failed = Ok(());
        // What is not, or no longer, this host's, nobody would answer to.
        let mut addresses = self.config.translation_addresses.clone();
        addresses.retain(|address| view.addresses.contains(address));
        self.janitor.has_room(room(&self.config));
        self.kernel.set_translated_ports(ports(&self.config))?;
        for service in &self.services {
            let before = self.kernel.steering(service.row)?;
            let config = &service.config;
            let wanted = match &config.canary {
                Some(canary) => {
                    let place = place::find(canary, &config.addresses, view).ok();
                    let mut wanted = self.wanted(service, canary);
                    let is_merged = place.is_some_and(|place| self.merged(&place).is_some());
                    // Merged packets are still more than what nobody answers.
                    if is_merged && !self.is_stable_gone(service) {
                        wanted.share = Share::NONE;
                    }
                    steering(config, canary, wanted, place, &before, &addresses)
                }
                None => Steering::default(),
            };
            if self.rollouts.is_unreadable(&config.name) {
                continue;
            }
            // One that fails, since the kernel has no room for so many histograms at once, keeps no
            // other waiting, and is tried again.
            let is_other = (before.salt, before.canary) != (wanted.salt, wanted.canary);
            if wanted.threshold != 0 && (before.threshold == 0 || is_other) {
                self.kernel.clear_arrivals(service.row)?;
                self.arrivals.begin(&config.name, service.row);
            }
            if wanted != before {
                failed = failed.and(self.kernel.set_steering(service.row, wanted));
            }
        }
        failed
    }

    fn wanted(&self, service: &Service, canary: &Canary) -> Wanted {
        let name = &service.config.name;
        let share = self.share(service);
        let salt = self.settings.holds().salt(name, &canary.version);
        let by_share = share == Share::ALL;
        Wanted {
            share,
            salt: salt.unwrap_or_default(),
            for_good: self.rollouts.is_for_good(name).unwrap_or(by_share),
            taken_back: self.rollouts.is_remembered(name) || self.settings.owes_share(name),
            early: self.attachments.why_not_early().is_none(),
            trial_ns: self.local_reader.trial_ns(service.config.id),
        }
    }

    /// The canary's share: a rollout's, or what file and command line want. What connections of a rollout
    /// are chosen by must be on the disk first: after a restart others would go to the canary.
    pub(super) fn share(&self, service: &Service) -> Share {
        let (name, holds) = (&service.config.name, self.settings.holds());
        match self.rollouts.share(name) {
            Some(share) if !holds.is_off() && self.settings.is_key_kept(name) => share,
            Some(_) => Share::NONE,
            None => share(service, holds),
        }
    }

    /// Whether an address is another host's, as far as that is known.
    pub(super) fn is_away(&self, address: &SocketAddr) -> bool {
        let view = self.view.as_ref();
        view.is_some_and(|view| !place::is_here(address.ip(), &view.addresses))
    }

    /// Where canaries on other hosts listen: those that the programs may translate to, too.
    pub(super) fn canaries_away(&self) -> BTreeSet<SocketAddr> {
        let local = self.view.as_ref().map(|view| view.addresses.as_slice());
        let canaries = self
            .config
            .services
            .iter()
            .filter_map(|service| service.canary.as_ref());
        canaries
            .map(|canary| canary.address)
            .filter(|address| !place::is_here(address.ip(), local.unwrap_or_default()))
            .collect()
    }

    /// The ways to them, as far as they are known.
    pub(super) fn ways_away<'a>(&self, view: &'a View) -> Vec<Away<'a>> {
        let services = self.config.services.iter();
        let away = services.filter_map(|service| {
            let canary = service.canary.as_ref()?;
            match place::find(canary, &service.addresses, view) {
                Ok(Place::Away(way)) => Some(Away {
                    way,
                    xdp: service.xdp(),
                }),
                _ => None,
            }
        });
        away.collect()
    }

    /// A canary on another host was dialled.
    pub(super) fn tried(&mut self, attempt: Attempt) {
        let canary = attempt.canary;
        let down = match &attempt.failure {
            None => Some(false),
            Some(Failure::Theirs(_)) => Some(true),
            Some(Failure::Ours(_)) => None,
        };
        if !self.health.heard(attempt) {
            return;
        }
        if let Some(Err(error)) = down.map(|down| self.write_health(canary, down)) {
            tracing::error!("{error}");
        }
        self.publish();
    }

    fn write_health(&mut self, canary: SocketAddr, down: bool) -> Result<(), dataplane::Error> {
        let health = Health {
            waiting_ns: 0,
            down: down.into(),
        };
        for service in &self.services {
            let at = service.config.canary.as_ref().map(|canary| canary.address);
            if at == Some(canary) {
                self.kernel.set_health(service.row, health)?;
            }
        }
        Ok(())
    }

    /// Gives each version on trial a key of its own.
    fn salt_canaries(&mut self) {
        // A state file that cannot be used stays as it is, and nothing is steered meanwhile.
        if self.settings.trouble().is_some() {
            return;
        }
        let with_canary = self.services.iter().filter_map(|service| {
            let config = &service.config;
            Some((&config.name, &config.canary.as_ref()?.version))
        });
        let holds = self.settings.holds();
        let fresh: Vec<(String, String)> = with_canary
            .filter(|(name, version)| holds.salt(name, version).is_none())
            .map(|(name, version)| (name.clone(), version.clone()))
            .collect();
        if fresh.is_empty() {
            return;
        }
        let persist = self.settings.change(self.now.at, |set| {
            for (name, version) in &fresh {
                set.set_salt(name, version, fresh_key());
            }
        });
        self.carry_out(persist);
    }
}

/// What connections are chosen by, another for each version on trial.
pub(super) fn fresh_key() -> [u64; 2] {
    let (a, b) = uuid::Uuid::new_v4().as_u64_pair();
    let (c, d) = uuid::Uuid::new_v4().as_u64_pair();
    [a ^ d.rotate_left(32), b ^ c.rotate_left(32)]
}

/// How many connections there can be.
pub(super) fn room(config: &Node) -> Room {
    let addresses = config.translation_addresses.len().clamp(1, MAX_LOCAL) as u64;
    Room {
        ports: u64::from(config.translation_ports.count()) * addresses,
        table: config.connections.into(),
    }
}

/// The ports that canaries on other hosts see.
fn ports(config: &Node) -> Ports {
    let range = config.translation_ports;
    Ports {
        first: range.first.into(),
        count: range.count(),
    }
}
