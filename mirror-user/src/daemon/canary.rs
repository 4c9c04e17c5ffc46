//! The canaries of services: their shares are changed and written, and their connections ended.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mirror_common::flow::Flow;
use mirror_common::measure::{Connection, state};
use mirror_common::steer::{Health, Steering};
use mirror_common::translate::Ports;

use super::attachments::Away;
use super::health::Attempt;
use super::network::View;
use super::place::{Obstacle, Place};
use super::services::Service;
use super::steering::{Wanted, share, steering};
use super::{Daemon, place};
use crate::config::{Canary, Node, Share};
use crate::control::{CanaryChange, Done, Refusal, Reply, Rest};
use crate::dataplane;
use crate::reset::{Resetter, Side};
use crate::sock_diag::Destroyer;

/// When the canary's connections of a service are ended.
#[derive(Debug)]
pub(super) struct Drain {
    row: u32,
    service: String,
    at: Instant,
}

impl Daemon {
    /// Carries out a change of a service's canary.
    pub(super) fn change_canary(
        &mut self,
        name: &str,
        change: CanaryChange,
    ) -> Result<Reply, Refusal> {
        let service = self.find(name)?;
        let (row, config) = (service.row, service.config.clone());
        let Some(canary) = &config.canary else {
            return Err(Refusal::Invalid(format!(
                "{name} has no [service.canary] in {}",
                self.options.config.display()
            )));
        };
        if let Some(why) = self.taken_by_rollout(name) {
            if !matches!(change, CanaryChange::Off(_)) {
                return Err(Refusal::Invalid(format!("{name}: {why}")));
            }
            self.abort_rollout(name, "its canary was switched off");
        }
        let share = match change {
            CanaryChange::Share(share) => Some(share),
            CanaryChange::Off(_) => Some(Share::NONE),
            CanaryChange::Clear => None,
        };
        let mut done = Done::default();
        if let (Some(view), Some(share)) = (&self.view, share)
            && share != Share::NONE
            && let Err(Obstacle::Lasting(why)) = place::find(canary, &config.addresses, view)
        {
            return Err(Refusal::Invalid(format!("{}: {why}", canary.address)));
        }
        let known = self.names();
        self.drains.retain(|drain| drain.row != row);
        let written = self
            .state
            .update(|set| set.set_canary(name, share, known.iter().map(String::as_str)));
        done.warnings
            .extend(written.err().map(|error| format!("{error:#}")));
        self.settle();
        done.done.push(match change {
            CanaryChange::Share(share) => {
                format!(
                    "{name}: {share} of new connections go to {}",
                    canary.version
                )
            }
            CanaryChange::Off(_) => format!("{name}: no new connections go to {}", canary.version),
            CanaryChange::Clear => format!("{name}: the canary's share is as the config file says"),
        });
        match change {
            CanaryChange::Off(Rest::Reset) => match self.end_connections(row) {
                Ok(ended) => done
                    .done
                    .push(format!("{ended} of its connections were reset")),
                Err(error) => return Err(Refusal::Failed(error)),
            },
            CanaryChange::Off(Rest::Drain(milliseconds)) => {
                let time = Duration::from_millis(milliseconds);
                self.drain(row, name, time);
                let time = humantime::format_duration(time);
                done.done
                    .push(format!("those that are open are reset in {time}"));
            }
            _ => {}
        }
        Ok(Reply::Done(done))
    }

    /// The canary's connections of a service may finish for so long.
    pub(super) fn drain(&mut self, row: u32, service: &str, time: Duration) {
        self.drains.retain(|drain| drain.row != row);
        self.drains.push(Drain {
            row,
            service: service.to_owned(),
            at: Instant::now() + time,
        });
    }

    /// Whether connections wait for their end.
    pub(super) fn is_draining(&self) -> bool {
        !self.drains.is_empty()
    }

    /// When the first of them come to it.
    pub(super) fn next_drain(&self) -> tokio::time::Instant {
        let due = self.drains.iter().map(|drain| drain.at).min();
        due.unwrap_or_else(Instant::now).into()
    }

    /// Ends connections whose time to finish is over.
    pub(super) fn end_drains(&mut self) {
        let now = Instant::now();
        let due: Vec<Drain> = self
            .drains
            .extract_if(.., |drain| drain.at <= now)
            .collect();
        for Drain { row, service, .. } in due {
            match self.end_connections(row) {
                Ok(ended) => {
                    tracing::info!(service, ended, "the canary's last connections were reset")
                }
                Err(error) => tracing::error!(service, "the canary's connections go on: {error}"),
            }
        }
    }

    /// Resets the canary's connections of a service, and says how many there were.
    fn end_connections(&mut self, row: u32) -> Result<u64, String> {
        let mut shared = self.lock();
        let connections = shared
            .plane
            .connections()
            .map_err(|error| error.to_string())?;
        let (away, here): (Vec<_>, Vec<_>) = connections
            .into_iter()
            .filter(|(_, connection)| {
                connection.service == row
                    && connection.state & state::CANARY != 0
                    && connection.state & state::CLOSED == 0
            })
            .partition(|(_, connection)| connection.is_away());
        for (flow, connection) in &away {
            let released = shared.plane.release(flow, connection);
            released.map_err(|error| error.to_string())?;
        }
        drop(shared);
        Ok(reset_here(&here)? + reset_away(&away)?)
    }

    /// Writes how new connections are shared out. A service without a canary gets nothing.
    pub(super) fn write_steering(&mut self) -> Result<(), dataplane::Error> {
        self.salt_canaries();
        let Some(view) = &self.view else {
            return Ok(());
        };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut failed = Ok(());
        shared.plane.set_translated_ports(ports(&self.config))?;
        for service in &self.services {
            let before = shared.plane.steering(service.row)?;
            let config = &service.config;
            let wanted = match &config.canary {
                Some(canary) => {
                    let place = place::find(canary, &config.addresses, view).ok();
                    steering(config, canary, self.wanted(service, canary), place, &before)
                }
                None => Steering::default(),
            };
            if self.rollouts.is_unreadable(&config.name) {
                continue;
            }
            // One that fails, since the kernel has no room for so many histograms at once, keeps no
            // other waiting, and is tried again.
            if wanted != before {
                failed = failed.and(shared.plane.set_steering(service.row, wanted));
            }
        }
        failed
    }

    fn wanted(&self, service: &Service, canary: &Canary) -> Wanted {
        let name = &service.config.name;
        let share = self.share(service);
        let salt = self.state.overrides().salt(name, &canary.version);
        let by_share = share == Share::ALL;
        Wanted {
            share,
            salt: salt.unwrap_or_default(),
            for_good: self.rollouts.is_for_good(name).unwrap_or(by_share),
            taken_back: self.rollouts.is_remembered(name),
            trial_ns: self.local_reader.trial_ns(service.config.id),
        }
    }

    /// The canary's share: a rollout's, or what file and command line want.
    pub(super) fn share(&self, service: &Service) -> Share {
        let overrides = self.state.overrides();
        let rollout = self.rollouts.share(&service.config.name);
        rollout
            .filter(|_| !overrides.is_off())
            .unwrap_or_else(|| share(service, overrides))
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
        let down = attempt.failure.is_some();
        if !self.health.heard(attempt) {
            return;
        }
        if let Err(error) = self.write_health(canary, down) {
            tracing::error!("{error}");
        }
        self.publish();
    }

    fn write_health(&mut self, canary: SocketAddr, down: bool) -> Result<(), dataplane::Error> {
        let health = Health {
            waiting_ns: 0,
            down: down.into(),
        };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for service in &self.services {
            let at = service.config.canary.as_ref().map(|canary| canary.address);
            if at == Some(canary) {
                shared.plane.set_health(service.row, health)?;
            }
        }
        Ok(())
    }

    /// Gives each version on trial a key of its own.
    fn salt_canaries(&mut self) {
        // A state file that cannot be used stays as it is, and nothing is steered meanwhile.
        if self.state.trouble().is_some() {
            return;
        }
        for service in &self.services {
            let (name, Some(canary)) = (&service.config.name, &service.config.canary) else {
                continue;
            };
            if self.state.overrides().salt(name, &canary.version).is_some() {
                continue;
            }
            let written = self
                .state
                .update(|set| set.set_salt(name, &canary.version, fresh_key()));
            if let Err(error) = written {
                tracing::warn!(
                    service = name,
                    "after a restart other clients go to the canary: {error:#}"
                );
            }
        }
    }
}

/// What connections are chosen by, another for each version on trial.
pub(super) fn fresh_key() -> [u64; 2] {
    let (a, b) = uuid::Uuid::new_v4().as_u64_pair();
    let (c, d) = uuid::Uuid::new_v4().as_u64_pair();
    [a ^ d.rotate_left(32), b ^ c.rotate_left(32)]
}

/// The ports that canaries on other hosts see.
fn ports(config: &Node) -> Ports {
    let range = config.translation_ports;
    Ports {
        first: range.first.into(),
        count: range.count(),
    }
}

/// Ends connections that sockets of this host belong to.
fn reset_here(connections: &[(Flow, Connection)]) -> Result<u64, String> {
    let mut sockets = Destroyer::open().map_err(|error| error.to_string())?;
    let mut ended = 0;
    for (flow, _) in connections {
        let (local, remote) = (SocketAddr::from(flow.server), SocketAddr::from(flow.client));
        match sockets.destroy(local, remote) {
            Ok(true) => ended += 1,
            Ok(false) => {}
            Err(error) => return Err(format!("{remote} -> {local}: {error}")),
        }
    }
    Ok(ended)
}

/// Tells both ends of connections of a canary on another host that they are over. What an end does
/// not believe, since bytes were on their way, it asks about, and is told by the kernel.
fn reset_away(connections: &[(Flow, Connection)]) -> Result<u64, String> {
    if connections.is_empty() {
        return Ok(0);
    }
    let resetter = Resetter::open().map_err(|error| error.to_string())?;
    for (flow, connection) in connections {
        let [to_canary, to_client] = connection.next;
        let sides = [
            (flow.server, flow.client, to_client),
            (connection.away.client, connection.away.server, to_canary),
        ];
        for (from, to, sequence) in sides {
            let (from, to) = (SocketAddr::from(from), SocketAddr::from(to));
            let sent = resetter.send(Side { from, to, sequence });
            sent.map_err(|error| format!("{from} -> {to}: {error}"))?;
        }
    }
    Ok(connections.len() as u64)
}
