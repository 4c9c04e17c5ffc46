//! `modelmirror status`: of the daemon, of the shadow agent, or of both, where both run on this host.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{anyhow, bail};
use serde::Serialize;

use super::{Printer, block_on, complain};
use crate::config;
use crate::control::shadow::AgentStatus;
use crate::control::{Client, ClientError, Status};

/// What runs here. In JSON the daemon's status as it always was, and the agent's beside it.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    daemon: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow_agent: Option<AgentStatus>,
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(daemon) = &self.daemon {
            write!(f, "{daemon}")?;
        }
        if self.daemon.is_some() && self.shadow_agent.is_some() {
            writeln!(f)?;
        }
        match &self.shadow_agent {
            Some(agent) => write!(f, "{agent}"),
            None => Ok(()),
        }
    }
}

pub(super) fn status(
    printer: &Printer,
    control: Option<&Path>,
    only_agent: bool,
    service: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let shown = match control {
        Some(socket) if only_agent => of_agent(socket, service)?,
        Some(socket) => match daemon(socket, service) {
            // Whoever listens there is the other one.
            Err(ClientError::Refused { said, .. }) if said.contains(OTHER) => {
                of_agent(socket, service)?
            }
            answer => Shown {
                daemon: Some(answer?),
                shadow_agent: None,
            },
        },
        None if only_agent => of_agent(Path::new(config::SHADOW_SOCKET), service)?,
        None => whoever_runs(service)?,
    };
    printer.print(&shown)?;
    Ok(ExitCode::SUCCESS)
}

/// What an agent says to who takes it for a daemon.
const OTHER: &str = "this is a shadow agent";

fn of_agent(socket: &Path, service: Option<&str>) -> anyhow::Result<Shown> {
    let shadow_agent = agent(socket, service).map_err(|error| match error.downcast_ref() {
        Some(ClientError::NoDaemon { socket }) => anyhow!(
            "no shadow agent answers at {}: start it with `modelmirror shadow --config FILE`, or name its `control_socket` with --control",
            socket.display()
        ),
        _ => error,
    })?;
    Ok(Shown {
        daemon: None,
        shadow_agent: Some(shadow_agent),
    })
}

fn whoever_runs(service: Option<&str>) -> anyhow::Result<Shown> {
    let socket = Path::new(config::CONTROL_SOCKET);
    let agent = agent(Path::new(config::SHADOW_SOCKET), service);
    let daemon = match (daemon(socket, service), &agent) {
        (Ok(status), _) => Some(status),
        // There is the agent, which knows the service.
        (Err(ClientError::NoDaemon { .. }), Ok(_)) => None,
        (Err(error @ ClientError::NoDaemon { .. }), Err(_)) => {
            bail!(
                "{error}; and no shadow agent answers at {}",
                config::SHADOW_SOCKET
            )
        }
        (Err(error), _) => return Err(error.into()),
    };
    let shadow_agent = agent
        .inspect_err(|error| {
            let is_gone = matches!(error.downcast_ref(), Some(ClientError::NoDaemon { .. }));
            if !is_gone {
                complain(&format!("warning: the shadow agent: {error:#}"));
            }
        })
        .ok();
    Ok(Shown {
        daemon,
        shadow_agent,
    })
}

fn daemon(socket: &Path, service: Option<&str>) -> Result<Status, ClientError> {
    let client = Client::new(socket);
    let answer = block_on(async { Ok(client.status(service).await) });
    answer.unwrap_or_else(|error| {
        Err(ClientError::Broken {
            socket: socket.to_owned(),
            why: error.to_string(),
        })
    })
}

fn agent(socket: &Path, service: Option<&str>) -> anyhow::Result<AgentStatus> {
    let client = Client::new(socket);
    let mut status = block_on(async { Ok(client.shadow_status().await?) })?;
    if let Some(name) = service {
        let known: Vec<_> = status.services.iter().map(|s| s.name.clone()).collect();
        status.services.retain(|service| service.name == name);
        if status.services.is_empty() {
            let known = known.join(", ");
            bail!("the shadow agent has no service {name:?}; known: {known}");
        }
    }
    Ok(status)
}
