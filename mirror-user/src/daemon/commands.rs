//! What the daemon is told to do: by the command line, and by its config when it is reloaded. What is
//! to be done is said by [`core`](super::core); here it is done.

use super::core::{Effect, Input, Known, Order, Ticket};
use super::ending::Job;
use super::keeper::Kept;
use super::services::Service;
use super::{Daemon, Instant};
use crate::config;
use crate::control::{Command, Refusal, Reply, Request};
use mirror_common::steer::share_threshold;

impl Daemon {
    /// Carries out a command. It is answered now, or when its outcome is known.
    pub(super) fn obey(&mut self, request: Request) {
        let Request { command, reply } = request;
        let answer = match command {
            Command::Status { service } => self.status(service),
            Command::RolloutRecord { service, id } => self.told(&service, id.as_deref()),
            Command::Rollouts { service } => self.history(service.as_deref()),
            changes => {
                self.tickets += 1;
                let ticket = self.tickets;
                self.replies.insert(ticket, reply);
                return self.change(ticket, changes);
            }
        };
        let _ = reply.send(answer);
    }

    fn change(&mut self, ticket: Ticket, command: Command) {
        let input = match command {
            Command::Mirror { service, change } => {
                Ok(Input::Order(ticket, Order::Mirror(service, change)))
            }
            Command::Canary { service, change } => {
                let rollout = self.taken_by_rollout(&service);
                let can = self
                    .check_place(&service, change)
                    .and_then(|()| self.check_arrivals(&service, change))
                    .and_then(|()| self.check_stable(&service, change));
                can.map(|()| Input::Order(ticket, Order::Canary(service, change, rollout)))
            }
            Command::Rollout { service, order } => {
                let Some(order) = self.probe_first(ticket, &service, order) else {
                    return;
                };
                let told = self.order(&service, order);
                let record = self.rollouts.unwritten(&service);
                told.map(|done| Input::Told(ticket, done, record))
            }
            Command::Off => {
                let attached = self.attachments.names();
                let done = attached.map(|name| format!("detached from {name}"));
                Ok(Input::Order(ticket, Order::Off(done.collect())))
            }
            Command::Status { .. } | Command::RolloutRecord { .. } | Command::Rollouts { .. } => {
                return;
            }
        };
        match input {
            Ok(input) => self.take(input),
            Err(refusal) => self.perform(vec![Effect::Answer(ticket, Err(refusal))]),
        }
    }

    /// Has the core take something in, and does what it says.
    pub(super) fn take(&mut self, input: Input) {
        let effects = self.core.handle(input, Instant::now());
        self.perform(effects);
    }

    /// Does what the core says, in its order.
    pub(super) fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Lower(service, share) => {
                    let Some(row) = self.row(&service) else {
                        continue;
                    };
                    if let Err(error) = self.lower(row, share_threshold(share.parts())) {
                        tracing::error!(service, "the canary keeps its share: {error}");
                    }
                }
                Effect::TakeBack(service, reason) => self.abort_rollout(&service, reason),
                Effect::StopMirror => self.write_rules(),
                Effect::Detach => self.attach(),
                Effect::Persist(number, overrides) => self.keeper.keep(number, overrides),
                Effect::Drain(service, rest) => self.drain_service(&service, rest),
                Effect::End(ticket, service) => {
                    if let Some(row) = self.row(&service) {
                        let ticket = Some(ticket);
                        self.ender.end(Job {
                            row,
                            service,
                            ticket,
                        });
                    }
                }
                Effect::Settle => self.settle(),
                Effect::Answer(ticket, answer) => {
                    if let Some(reply) = self.replies.remove(&ticket) {
                        let _ = reply.send(answer.map(Reply::Done));
                    }
                }
            }
        }
    }

    /// What is set was written, or could not be.
    pub(super) fn on_kept(&mut self, kept: Kept) {
        if let (Some(why), None) = (&kept.failure, self.core.unkept()) {
            tracing::error!("what was set is not on the disk: {why}");
        }
        self.take(Input::Kept(kept));
    }

    /// Tells the core of the services as they are configured now.
    pub(super) fn tell_core(&mut self) {
        let known = self.services.iter();
        let known = known.map(|service| Known::from(&service.config));
        self.core.know(known.collect());
    }

    /// The service of this name.
    pub(super) fn find(&self, name: &str) -> Result<&Service, Refusal> {
        let mut services = self.services.iter();
        services
            .find(|service| service.config.name == name)
            .ok_or_else(|| Refusal::UnknownService {
                name: name.to_owned(),
                known: self.names(),
            })
    }

    pub(super) fn names(&self) -> Vec<String> {
        let names = self.services.iter().map(|service| &service.config.name);
        names.cloned().collect()
    }

    /// Reads the config again. A bad one changes nothing and says why.
    pub(super) fn reload(&mut self) {
        let path = self.options.config.display().to_string();
        let read = config::read_node(&self.options.config).map_err(|error| error.to_string());
        let checked = read.and_then(|new| {
            let changes = config::changes(&self.file, &new).map_err(|error| error.to_string())?;
            Ok((new, changes))
        });
        let (new, changes) = match checked {
            Ok(checked) => checked,
            Err(error) => {
                tracing::error!("reload rejected; keeping current config: {error}");
                let why = format!("reload of {path} rejected, the current config stays: {error}");
                self.refused_config = Some(why);
                return self.publish();
            }
        };
        tracing::info!("config reloaded from {path}: {changes}");
        self.file = new;
        self.overlay();
        self.refused_config = None;
        if let Err(error) = self.take_over() {
            tracing::error!("{error}");
        }
        self.say_interest();
        self.settle();
    }
}
