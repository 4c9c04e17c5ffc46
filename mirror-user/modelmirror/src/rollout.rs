//! `modelmirror rollout`.

mod wait;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use mirror_api::{
    Finish, Promote, RolloutHistory, RolloutOrder, RolloutState, RolloutStates, ServiceRollout,
    Start,
};
use mirror_base::control::{Client, ClientError};
use mirror_node::config;
use mirror_rollout::gates::Role;
use mirror_rollout::record::Line;
use mirror_rollout::state::By;
use mirror_rollout::statistics::Verdict;
use mirror_rollout::{explain, words};
use nix::unistd::{User, getuid};
use serde::Serialize;

use self::wait::Watch;
use super::block_on;
use super::commands::print_done;
use crate::arguments::rollout::{RolloutCommand, StartArgs, Wish};
use crate::arguments::{self, Consent, ServiceName};
use crate::confirm;
use crate::print::Printer;

impl Wish {
    /// The service, and what is wanted of it by whom.
    fn order(self, order: impl FnOnce(By) -> RolloutOrder) -> (ServiceName, RolloutOrder) {
        let by = By {
            who: who(),
            reason: self.reason,
        };
        (self.service, order(by))
    }
}

pub(super) fn run(
    printer: Printer,
    socket: &Path,
    command: RolloutCommand,
) -> anyhow::Result<ExitCode> {
    let client = Client::new(socket);
    let (service, order) = match command {
        RolloutCommand::Start(arguments) => return start(printer, &client, arguments),
        RolloutCommand::Status { service, watch } => {
            return status(printer, &client, service.as_deref(), watch);
        }
        RolloutCommand::Explain { service, rollout } => {
            return tell(printer, &client, service, rollout.as_deref());
        }
        RolloutCommand::History { service } => return history(printer, &client, service),
        RolloutCommand::Pause(wish) => wish.order(RolloutOrder::Pause),
        RolloutCommand::Resume(wish) => wish.order(RolloutOrder::Resume),
        RolloutCommand::Promote {
            all: true,
            wish,
            consent,
        } => {
            let order = |by| RolloutOrder::Promote(Promote { all: true, by });
            return when_meant(printer, &client, wish.order(order), consent, promotes_all);
        }
        RolloutCommand::Promote { all, wish, .. } => {
            wish.order(|by| RolloutOrder::Promote(Promote { all, by }))
        }
        RolloutCommand::Abort { wish, consent } => {
            let order = wish.order(RolloutOrder::Abort);
            return when_meant(printer, &client, order, consent, aborts);
        }
        RolloutCommand::Finish { force, wish } => {
            wish.order(|by| RolloutOrder::Finish(Finish { force, by }))
        }
    };
    let done = block_on(async {
        let service = service.resolve(&client).await?;
        Ok(client.rollout(&service, &order).await?)
    })?;
    print_done(printer, &done)
}

/// Gives an order that a person is asked about first.
fn when_meant(
    printer: Printer,
    client: &Client,
    (service, order): (ServiceName, RolloutOrder),
    consent: Consent,
    question: fn(&str, &RolloutState) -> String,
) -> anyhow::Result<ExitCode> {
    let (service, rollout) = block_on(async {
        let service = service.resolve(client).await?;
        let rollout = match confirm::asks(consent) {
            true => rollout_of(client, &service).await?,
            false => None,
        };
        Ok((service, rollout))
    })?;
    // Without one the daemon says what is wrong.
    if let Some(rollout) = rollout.filter(|rollout| !rollout.ended) {
        confirm::confirm(consent, || question(&service, &rollout))?;
    }
    let done = block_on(async { Ok(client.rollout(&service, &order).await?) })?;
    print_done(printer, &done)
}

fn aborts(service: &str, rollout: &RolloutState) -> String {
    format!(
        "{service}: abort the rollout of {} ({}, {} of new connections)? It gets no new connections; {} serves all.",
        rollout.canary.version,
        rollout.state,
        words::share(rollout.share),
        rollout.stable_version
    )
}

fn promotes_all(service: &str, rollout: &RolloutState) -> String {
    let count = |verdict| {
        let gates = rollout.gates.iter();
        gates
            .filter(|gate| gate.role != Role::Info && gate.verdict == verdict)
            .count()
    };
    format!(
        "{service}: send 100 % of new connections to {}, whatever the gates say ({}; {} within their limits, {} not proven, {} beyond)?",
        rollout.canary.version,
        rollout.state,
        count(Verdict::Within),
        count(Verdict::Unknown),
        count(Verdict::Worse)
    )
}

fn start(printer: Printer, client: &Client, arguments: StartArgs) -> anyhow::Result<ExitCode> {
    let plan = arguments.plan.as_deref().map(config::read_plan);
    let plan = plan.transpose()?;
    let (service, order) = arguments.wish.order(|by| {
        let start = Box::new(Start {
            version: arguments.canary_version,
            address: arguments.canary_address,
            plan,
            again: arguments.again,
            by,
        });
        match arguments.dry_run {
            true => RolloutOrder::DryRun(start),
            false => RolloutOrder::Start(start),
        }
    });
    if !arguments.wait {
        let done = block_on(async {
            let service = service.resolve(client).await?;
            Ok(client.rollout(&service, &order).await?)
        })?;
        return print_done(printer, &done);
    }
    block_on(async {
        let service = service.resolve(client).await?;
        // What came of an earlier one must not be taken for what comes of this one.
        let earlier = rollout_of(client, &service).await?;
        let earlier = earlier.filter(|rollout| rollout.outcome.is_some());
        let done = client.rollout(&service, &order).await?;
        // What happens goes to stdout, an object a line where programs read it.
        for line in &done.done {
            printer.info(line);
        }
        for warning in &done.warnings {
            printer.warning(warning);
        }
        let watch = Watch::new(earlier.map(|rollout| rollout.id));
        wait::wait(printer, client, &service, arguments.timeout, watch).await
    })
}

/// The service's rollout, or the last one.
async fn rollout_of(client: &Client, service: &str) -> Result<Option<RolloutState>, ClientError> {
    let status = client.status(Some(service)).await?;
    let mut services = status.services.into_iter();
    Ok(services.next().and_then(|service| service.rollout))
}

fn status(
    printer: Printer,
    client: &Client,
    service: Option<&str>,
    watch: arguments::Watch,
) -> anyhow::Result<ExitCode> {
    let ask = || {
        let status = block_on(async { Ok(client.status(service).await?) })?;
        let entry = |service: mirror_api::Service| ServiceRollout {
            service: service.name,
            rollout: service.rollout,
        };
        let states = status.services.into_iter().map(entry).collect();
        Ok(RolloutStates(states))
    };
    match watch.watch {
        Some(every) => crate::watch::watch(printer, every, ask)?,
        None => printer.print(&ask()?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn history(printer: Printer, client: &Client, service: Option<String>) -> anyhow::Result<ExitCode> {
    let rollouts = block_on(async { Ok(client.rollouts(service.as_deref()).await?) })?;
    printer.print(&RolloutHistory(rollouts))?;
    Ok(ExitCode::SUCCESS)
}

/// A record: sentences for people, its lines for programs.
#[derive(Serialize)]
#[serde(transparent)]
struct Told(Vec<Line>);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&explain::tell(&self.0))
    }
}

fn tell(
    printer: Printer,
    client: &Client,
    service: ServiceName,
    rollout: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let lines = block_on(async {
        let service = service.resolve(client).await?;
        Ok(client.record(&service, rollout).await?)
    })?;
    printer.print(&Told(lines))?;
    Ok(ExitCode::SUCCESS)
}

/// Who runs this: the user behind `sudo`, or the process's own.
fn who() -> String {
    let behind = std::env::var("SUDO_USER").ok();
    let own = || {
        let uid = getuid();
        let user = User::from_uid(uid).ok().flatten();
        user.map_or_else(|| format!("uid {uid}"), |user| user.name)
    };
    behind.filter(|name| !name.is_empty()).unwrap_or_else(own)
}
