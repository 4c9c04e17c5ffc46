//! The canaries of services: their shares are changed and written, and their connections ended.

use std::net::SocketAddr;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use mirror_common::measure::state;
use mirror_common::steer::Steering;

use super::Daemon;
use super::steering::{obstacle, share, steering};
use crate::config::Share;
use crate::control::{CanaryChange, Done, Refusal, Reply, Rest};
use crate::dataplane;
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
        let share = match change {
            CanaryChange::Share(share) => Some(share),
            CanaryChange::Off(_) => Some(Share::NONE),
            CanaryChange::Clear => None,
        };
        let mut done = Done::default();
        if let (Some(view), Some(share)) = (&self.view, share)
            && share != Share::NONE
            && let Some(why) = obstacle(canary, &view.addresses)
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
                self.drains.push(Drain {
                    row,
                    service: name.to_owned(),
                    at: Instant::now() + time,
                });
                let time = humantime::format_duration(time);
                done.done
                    .push(format!("those that are open are reset in {time}"));
            }
            _ => {}
        }
        Ok(Reply::Done(done))
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
        drop(shared);
        let open = connections.into_iter().filter(|(_, connection)| {
            connection.service == row
                && connection.state & state::CANARY != 0
                && connection.state & state::CLOSED == 0
        });
        let mut sockets = Destroyer::open().map_err(|error| error.to_string())?;
        let mut ended = 0;
        for (flow, _) in open {
            let (local, remote) = (SocketAddr::from(flow.server), SocketAddr::from(flow.client));
            match sockets.destroy(local, remote) {
                Ok(true) => ended += 1,
                Ok(false) => {}
                Err(error) => return Err(format!("{remote} -> {local}: {error}")),
            }
        }
        Ok(ended)
    }

    /// Writes how new connections are shared out. A service without a canary gets nothing.
    pub(super) fn write_steering(&mut self) -> Result<(), dataplane::Error> {
        self.salt_canaries();
        let Some(view) = &self.view else {
            return Ok(());
        };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for service in &self.services {
            let before = shared.plane.steering(service.row)?;
            let wanted = match &service.config.canary {
                Some(canary) => {
                    let overrides = self.state.overrides();
                    let share = match obstacle(canary, &view.addresses) {
                        Some(_) => Share::NONE,
                        None => share(service, overrides),
                    };
                    let salt = overrides.salt(&service.config.name, &canary.version);
                    let protocol = service.config.protocol;
                    steering(canary, protocol, share, salt.unwrap_or_default(), &before)
                }
                None => Steering::default(),
            };
            if wanted != before {
                shared.plane.set_steering(service.row, wanted)?;
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
            let (a, b) = uuid::Uuid::new_v4().as_u64_pair();
            let (c, d) = uuid::Uuid::new_v4().as_u64_pair();
            let key = [a ^ d.rotate_left(32), b ^ c.rotate_left(32)];
            if let Err(error) = self
                .state
                .update(|set| set.set_salt(name, &canary.version, key))
            {
                tracing::warn!(
                    service = name,
                    "after a restart other clients go to the canary: {error:#}"
                );
            }
        }
    }
}
