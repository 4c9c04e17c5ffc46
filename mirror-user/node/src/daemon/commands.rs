//! What the daemon is told to do: by the command line, and by its config when it is reloaded. What is
//! to be done is said by [`settings`](super::settings); here it is carried out.

use super::core::{Core, Effect};
use super::ending::Job;
use super::keeper::Kept;
use super::rollout::Past;
use super::services::Service;
use super::settings::{Action, Known, Order, Ticket, Update};
use crate::config::{self, Node};
use crate::control::{Command, Refusal, Reply};
use mirror_base::serve::Caller;
use mirror_common::steer::share_threshold;

impl Core {
    /// Carries out a command. It is answered now, or when its outcome is known.
    pub(super) fn obey(&mut self, ticket: Ticket, caller: Caller, command: Command) {
        if let Err(refusal) = self.try_to_obey(ticket, caller, command) {
            self.effect(Effect::Answer(ticket, Err(refusal)));
        }
    }

    fn try_to_obey(
        &mut self,
        ticket: Ticket,
        caller: Caller,
        command: Command,
    ) -> Result<(), Refusal> {
        let order = match command {
            Command::Status { service } => {
                let status = self.status(service)?;
                self.effect(Effect::Answer(ticket, Ok(status)));
                return Ok(());
            }
            Command::RolloutRecord { service, id } => return self.told(ticket, service, id),
            Command::Rollouts { service } => return self.history(ticket, service),
            Command::Rollout { service, order } => {
                self.order(ticket, &service, order);
                return Ok(());
            }
            Command::Mirror { service, change } => Order::Mirror(service, change),
            Command::Canary { service, change } => {
                let rollout = self.taken_by_rollout(&service);
                self.check_place(&service, change)?;
                self.check_arrivals(&service, change)?;
                self.check_stable(&service, change)?;
                Order::Canary(service, change, rollout)
            }
            Command::Off => {
                let attached = self.attachments.names();
                let done = attached.map(|name| format!("detached from {name}"));
                Order::Off(done.collect())
            }
        };
        let before = self.set(&order);
        let shown = order.clone();
        self.take(Update::Order(ticket, order));
        self.tell_of(&shown, caller, before);
        Ok(())
    }

    /// What is wanted of what an order is about.
    fn set(&self, order: &Order) -> Option<String> {
        let wanted = self.settings.wanted();
        match order {
            Order::Mirror(service, _) => {
                let service = &self.find(service).ok()?.config;
                let sample = service.mirror.as_ref().map_or(0.0, |mirror| mirror.sample);
                let wanted = wanted.effective(&service.name, sample);
                Some(if wanted.on {
                    format!("{}", wanted.sample)
                } else {
                    "off".to_owned()
                })
            }
            Order::Canary(service, ..) => {
                let service = self.find(service).ok()?;
                Some(super::steering::share(service, wanted).to_string())
            }
            Order::Off(_) => Some(if wanted.is_off() { "off" } else { "on" }.to_owned()),
        }
    }

    /// The log has who wanted what; nothing where it was refused.
    fn tell_of(&self, order: &Order, caller: Caller, before: Option<String>) {
        let (Some(from), Some(to)) = (before, self.set(order)) else {
            return;
        };
        let by = caller.to_string();
        match order {
            Order::Mirror(service, _) => tracing::info!(service, by, from, to, "mirror changed"),
            Order::Canary(service, ..) => {
                tracing::info!(service, by, from, to, "the canary's share was changed");
            }
            Order::Off(_) => tracing::info!(by, from, to, "everything was switched off"),
        }
    }

    /// Has the settings take something in, and does what they say.
    pub(super) fn take(&mut self, update: Update) {
        let actions = self.settings.handle(update, self.now.at);
        self.carry_out(actions);
    }

    /// Does what the settings say, in their order.
    pub(super) fn carry_out(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Lower(service, share) => {
                    let Some(row) = self.row(&service) else {
                        continue;
                    };
                    if let Err(error) = self.lower(row, share_threshold(share.parts())) {
                        tracing::error!(service, "the canary keeps its share: {error}");
                    }
                }
                Action::TakeBack(service, reason) => self.abort_rollout(&service, reason),
                Action::StopMirror => self.write_rules(),
                Action::Detach => self.attach(),
                Action::Persist(number, overrides) => {
                    self.effect(Effect::Persist(number, overrides));
                }
                Action::Drain(service, rest) => self.drain_service(&service, rest),
                Action::End(ticket, service) => {
                    if let Some(row) = self.row(&service) {
                        let ticket = Some(ticket);
                        self.effect(Effect::End(Job {
                            row,
                            service,
                            ticket,
                        }));
                    }
                }
                Action::Settle => self.settle(),
                Action::Answer(ticket, answer) => {
                    let answer = answer.map(Reply::Done);
                    self.effect(Effect::Answer(ticket, answer));
                }
            }
        }
    }

    /// What is set was written, or could not be.
    pub(super) fn on_kept(&mut self, kept: Kept) {
        if let (Some(why), None) = (&kept.failure, self.settings.unkept()) {
            tracing::error!("what was set is not on the disk: {why}");
        }
        self.take(Update::Kept(kept));
    }

    /// Tells the settings of the services as they are configured now.
    pub(super) fn tell_settings(&mut self) {
        let known = self.services.iter();
        let known = known.map(|service| Known::from(&service.config));
        self.settings.know(known.collect());
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

    /// The config was read again. A bad one changes nothing and says why.
    pub(super) fn reloaded(&mut self, read: Result<(Node, Past), String>) {
        let path = self.path.display();
        let checked = read.and_then(|(new, past)| {
            let changes = config::changes(&self.file, &new).map_err(|error| error.to_string())?;
            Ok((new, past, changes))
        });
        let (new, past, changes) = match checked {
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
        self.rollouts.take_up(past);
        self.overlay();
        self.refused_config = None;
        if let Err(error) = self.take_over() {
            tracing::error!("{error}");
        }
        self.say_interest();
        self.settle();
    }
}
