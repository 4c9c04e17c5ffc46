//! What the daemon is told to do: by the command line, and by its config when it is reloaded.

use super::services::Service;
use super::{Daemon, status};
use crate::config;
use crate::control::{Command, Done, Refusal, Reply, Request};
use crate::state::Change;

impl Daemon {
    /// Carries out a command, and answers it.
    pub(super) fn obey(&mut self, request: Request) {
        let Request { command, reply } = request;
        let answer = match command {
            Command::Status { service } => self.status(service),
            Command::Mirror { service, change } => self.change(&service, change),
            Command::Canary { service, change } => self.change_canary(&service, change),
            Command::Rollout { service, order } => self.order(&service, order),
            Command::RolloutRecord { service, id } => self.told(&service, id.as_deref()),
            Command::Rollouts { service } => self.history(service.as_deref()),
            Command::Off => self.off(),
        };
        let _ = reply.send(answer);
    }

    fn change(&mut self, service: &str, change: Change) -> Result<Reply, Refusal> {
        let known = self.names();
        if self.find(service)?.config.mirror.is_none() {
            return Err(Refusal::Invalid(format!(
                "{service} has no [service.mirror] in {}",
                self.options.config.display()
            )));
        }
        let written = self
            .state
            .update(|set| set.change(service, change, known.iter().map(String::as_str)));
        self.settle();
        let done = vec![status::sentence(service, change, self.state.overrides())];
        Ok(answer(done, written))
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

    fn off(&mut self) -> Result<Reply, Refusal> {
        for service in self.names() {
            self.abort_rollout(&service, "everything was switched off");
        }
        let written = self.state.update(|set| set.switch_off());
        let before: Vec<String> = self.attachments.names().cloned().collect();
        self.settle();
        let mut done: Vec<String> = before
            .into_iter()
            .map(|name| format!("detached from {name}"))
            .collect();
        done.push(
            "off, also after a restart; `modelmirror mirror on --service NAME` lifts it".to_owned(),
        );
        Ok(answer(done, written))
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

fn answer(done: Vec<String>, written: anyhow::Result<()>) -> Reply {
    let warning = written.err().map(|error| format!("{error:#}"));
    Reply::Done(Done {
        done,
        warnings: warning.into_iter().collect(),
    })
}
