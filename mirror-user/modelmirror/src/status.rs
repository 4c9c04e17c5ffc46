//! `modelmirror status`: of the daemon, of the shadow agent, or of both, where both run on this host.

use std::fmt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{anyhow, bail};
use mirror_api::Status;
use mirror_api::shadow::AgentStatus;
use serde::Serialize;

use super::block_on;
use crate::print::Printer;
use mirror_base::config;
use mirror_base::control::{Client, ClientError};

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

/// Whom to ask, and about what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The socket that was named.
    pub(super) control: Option<&'a Path>,
    /// Only the shadow agent.
    pub(super) only_agent: bool,
    /// Only this service.
    pub(super) service: Option<&'a str>,
}

pub(super) fn status(printer: Printer, asked: Asked<'_>) -> anyhow::Result<ExitCode> {
    printer.print(&ask(printer, asked)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The same again and again.
pub(super) fn watch(
    printer: Printer,
    asked: Asked<'_>,
    every: Duration,
) -> anyhow::Result<ExitCode> {
    crate::watch::watch(printer, every, || ask(printer, asked))?;
    Ok(ExitCode::SUCCESS)
}

/// What is not ready.
#[derive(Serialize)]
struct Checked {
    ready: bool,
    troubles: Vec<String>,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ready {
            return f.write_str("ready: nothing is amiss");
        }
        for trouble in &self.troubles {
            writeln!(f, "NOT READY: {trouble}")?;
        }
        Ok(())
    }
}

/// Says what is not ready; the exit code is 1 when something is not.
pub(super) fn check(printer: Printer, asked: Asked<'_>) -> anyhow::Result<ExitCode> {
    let shown = ask(printer, asked)?;
    let daemon = shown.daemon.iter().flat_map(Status::troubles);
    let agent = shown.shadow_agent.iter().flat_map(AgentStatus::troubles);
    let troubles: Vec<String> = daemon.chain(agent).collect();
    let ready = troubles.is_empty();
    printer.print(&Checked { ready, troubles })?;
    Ok(match ready {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn ask(printer: Printer, asked: Asked<'_>) -> anyhow::Result<Shown> {
    let Asked {
        control,
        only_agent,
        service,
    } = asked;
    Ok(match control {
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
        None => whoever_runs(
            printer,
            Path::new(config::CONTROL_SOCKET),
            Path::new(config::SHADOW_SOCKET),
            service,
        )?,
    })
}

/// What an agent says to who takes it for a daemon.
const OTHER: &str = "this is a shadow agent";

fn of_agent(socket: &Path, service: Option<&str>) -> anyhow::Result<Shown> {
    let shadow_agent = agent(socket, service).map_err(|error| match error.downcast_ref() {
        Some(ClientError::NoDaemon { socket }) => anyhow!(
            "no shadow agent answers at {}: start it with `modelmirror shadow`, or name its `control_socket` with --control",
            socket.display()
        ),
        _ => error,
    })?;
    Ok(Shown {
        daemon: None,
        shadow_agent: Some(shadow_agent),
    })
}

fn whoever_runs(
    printer: Printer,
    socket: &Path,
    shadow_socket: &Path,
    service: Option<&str>,
) -> anyhow::Result<Shown> {
    let is_gone =
        |error: &anyhow::Error| matches!(error.downcast_ref(), Some(ClientError::NoDaemon { .. }));
    let (daemon, agent) = (daemon(socket, service), agent(shadow_socket, service));
    let (daemon, shadow_agent) = match (daemon, agent) {
        (Err(ClientError::NoDaemon { .. }), Ok(agent)) => (None, Some(agent)),
        (Err(error @ ClientError::NoDaemon { .. }), Err(why)) if is_gone(&why) => {
            let shown = shadow_socket.display();
            bail!("{error}; and no shadow agent answers at {shown}")
        }
        (Err(ClientError::NoDaemon { .. }), Err(why)) => return Err(why),
        (Err(error), _) => return Err(error.into()),
        (Ok(status), Ok(agent)) => (Some(status), Some(agent)),
        (Ok(status), Err(why)) => {
            if !is_gone(&why) {
                printer.warning(&format!("the shadow agent: {why:#}"));
            }
            (Some(status), None)
        }
    };
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

#[cfg(test)]
mod tests {
    use axum::Json;
    use axum::routing::get;

    use super::*;
    use crate::arguments::Output;
    use mirror_base::control::bind;

    /// Somebody who answers at a socket until the test is over.
    fn serve(socket: &Path, router: axum::Router) {
        let socket = socket.to_owned();
        let (ready, is_ready) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let served = block_on(async {
                let listener = bind(&socket)?;
                ready.send(())?;
                mirror_base::serve::serve(listener, router).await;
                Ok(())
            });
            served.unwrap();
        });
        is_ready.recv().unwrap();
    }

    #[test]
    fn whoever_runs_here_is_shown() {
        let folder = tempfile::tempdir().unwrap();
        let (node, agent) = (folder.path().join("node"), folder.path().join("agent"));
        let shown = |service| whoever_runs(Printer(Output::Text), &node, &agent, service);
        let why = shown(None).err().unwrap().to_string();
        assert!(
            why.contains("no daemon") && why.contains("no shadow agent"),
            "{why}"
        );

        serve(
            &agent,
            mirror_agent::control::router(|| Some(mirror_api::fixtures::agent_status())),
        );
        let alone = shown(None).unwrap();
        assert!(alone.daemon.is_none() && alone.shadow_agent.is_some());
        let json = serde_json::to_value(&alone).unwrap();
        assert_eq!(
            json.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["shadow_agent"]
        );
        let one = shown(Some("sentiment")).unwrap();
        assert_eq!(one.shadow_agent.unwrap().services.len(), 1);
        let why = shown(Some("none")).err().unwrap().to_string();
        assert!(
            why.contains("no service \"none\"; known: sentiment"),
            "{why}"
        );

        let status = mirror_api::fixtures::status();
        let said = Json(status.clone());
        let router = axum::Router::new().route("/v1/status", get(async move || said));
        serve(&node, router);
        let both = shown(None).unwrap();
        let json = serde_json::to_value(&both).unwrap();
        assert_eq!(json["version"], status.version);
        assert_eq!(json["shadow_agent"]["version"], "0.1.0");
        let text = both.to_string();
        assert!(
            text.contains("(ABI 1)") && text.contains("shadow agent since"),
            "{text}"
        );
    }

    /// `--control` may name either.
    #[test]
    fn a_socket_is_asked_whoever_listens_there() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent");
        serve(
            &socket,
            mirror_agent::control::router(|| Some(mirror_api::fixtures::agent_status())),
        );
        let printer = Printer(Output::Json);
        let asked = |only_agent, service| Asked {
            control: Some(&socket),
            only_agent,
            service,
        };
        for only_agent in [false, true] {
            status(printer, asked(only_agent, None)).unwrap();
        }
        assert!(status(printer, asked(false, Some("none"))).is_err());
    }
}
