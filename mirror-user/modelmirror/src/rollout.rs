//! `modelmirror rollout`.

mod wait;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use mirror_api::{
    Finish, Promote, RolloutHistory, RolloutOrder, RolloutState, RolloutStates, ServiceRollout,
    Start,
};
use mirror_rollout::explain;
use mirror_rollout::record::Line;
use mirror_rollout::state::By;
use nix::unistd::{User, getuid};
use serde::Serialize;

use self::wait::Watch;
use super::commands::print_done;
use super::{Printer, ServiceName, block_on, complain, service_name};
use mirror_base::control::{Client, ClientError};
use mirror_node::config;

#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// Begin a rollout: shadow, canary stages, promotion, or back
    ///
    /// With --wait: exit code 0 = promoted, 3 = rolled back or aborted, 4 = held, or the time is
    /// over. Ctrl-C ends the waiting, not the rollout.
    Start(StartArgs),
    /// Show where rollouts are, why they wait, and what every gate says
    Status {
        /// Only this service
        #[arg(long, value_name = "NAME", value_parser = service_name)]
        service: Option<String>,
    },
    /// Stay at this stage; the canary keeps its share, and is still rolled back when it is bad
    Pause(Wish),
    /// Go on after a pause, or after a hold, whose time begins anew
    Resume(Wish),
    /// Go on to the next stage, whatever the gates say
    Promote {
        /// To 100 %
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        wish: Wish,
    },
    /// Abort: the canary gets no new connections
    Abort(Wish),
    /// End steering after a promotion: the new version listens at the service's own address
    Finish {
        /// Also when nobody is seen to listen there
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wish: Wish,
    },
    /// Tell a rollout in sentences: what was decided, when, and on which numbers
    Explain {
        #[command(flatten)]
        service: ServiceName,
        /// Its id, as `history` lists it [default: the last one]
        #[arg(long, value_name = "ID", value_parser = rollout_id)]
        rollout: Option<String>,
    },
    /// List the rollouts that there were
    History {
        /// Only this service
        #[arg(long, value_name = "NAME", value_parser = service_name)]
        service: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct StartArgs {
    #[command(flatten)]
    wish: Wish,
    /// The new version [default: as in [service.canary]]
    #[arg(long, value_name = "V", value_parser = service_name)]
    canary_version: Option<String>,
    /// Where it listens, an IP address and a port [default: as in [service.canary]]
    #[arg(long, value_name = "A")]
    canary_address: Option<SocketAddr>,
    /// What is done: a file with what stands under [service.rollout] [default: the service's own]
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Also when this version was rolled back before
    #[arg(long)]
    again: bool,
    /// Wait until it is promoted, rolled back or held, and print what happens
    #[arg(long)]
    wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

/// Of which service, and why.
#[derive(Debug, Args)]
pub(super) struct Wish {
    #[command(flatten)]
    service: ServiceName,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

impl Wish {
    /// The service, and what is wanted of it by whom.
    fn order(self, order: impl FnOnce(By) -> RolloutOrder) -> (String, RolloutOrder) {
        let by = By {
            who: who(),
            reason: self.reason,
        };
        (self.service.name, order(by))
    }
}

fn rollout_id(typed: &str) -> Result<String, String> {
    service_name(typed).map_err(|_| "`modelmirror rollout history` lists the ids".to_owned())
}

pub(super) fn run(
    printer: &Printer,
    socket: &Path,
    command: RolloutCommand,
) -> anyhow::Result<ExitCode> {
    let client = Client::new(socket);
    let (service, order) = match command {
        RolloutCommand::Start(arguments) => return start(printer, &client, arguments),
        RolloutCommand::Status { service } => return status(printer, &client, service),
        RolloutCommand::Explain { service, rollout } => {
            return tell(printer, &client, &service.name, rollout.as_deref());
        }
        RolloutCommand::History { service } => return history(printer, &client, service),
        RolloutCommand::Pause(wish) => wish.order(RolloutOrder::Pause),
        RolloutCommand::Resume(wish) => wish.order(RolloutOrder::Resume),
        RolloutCommand::Promote { all, wish } => {
            wish.order(|by| RolloutOrder::Promote(Promote { all, by }))
        }
        RolloutCommand::Abort(wish) => wish.order(RolloutOrder::Abort),
        RolloutCommand::Finish { force, wish } => {
            wish.order(|by| RolloutOrder::Finish(Finish { force, by }))
        }
    };
    let done = block_on(async { Ok(client.rollout(&service, &order).await?) })?;
    print_done(printer, &done)
}

fn start(printer: &Printer, client: &Client, arguments: StartArgs) -> anyhow::Result<ExitCode> {
    let plan = arguments.plan.as_deref().map(config::read_plan);
    let plan = plan.transpose()?;
    let (service, order) = arguments.wish.order(|by| {
        RolloutOrder::Start(Box::new(Start {
            version: arguments.canary_version,
            address: arguments.canary_address,
            plan,
            again: arguments.again,
            by,
        }))
    });
    if !arguments.wait {
        let done = block_on(async { Ok(client.rollout(&service, &order).await?) })?;
        return print_done(printer, &done);
    }
    block_on(async {
        // What came of an earlier one must not be taken for what comes of this one.
        let earlier = rollout_of(client, &service).await?;
        let earlier = earlier.filter(|rollout| rollout.outcome.is_some());
        let done = client.rollout(&service, &order).await?;
        // What happens goes to stdout, an object a line where programs read it.
        for line in done.done.iter().chain(&done.warnings) {
            complain(line);
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

fn status(printer: &Printer, client: &Client, service: Option<String>) -> anyhow::Result<ExitCode> {
    let status = block_on(async { Ok(client.status(service.as_deref()).await?) })?;
    let entry = |service: mirror_api::Service| ServiceRollout {
        service: service.name,
        rollout: service.rollout,
    };
    let states = status.services.into_iter().map(entry).collect();
    printer.print(&RolloutStates(states))?;
    Ok(ExitCode::SUCCESS)
}

fn history(
    printer: &Printer,
    client: &Client,
    service: Option<String>,
) -> anyhow::Result<ExitCode> {
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
    printer: &Printer,
    client: &Client,
    service: &str,
    rollout: Option<&str>,
) -> anyhow::Result<ExitCode> {
    let lines = block_on(async { Ok(client.record(service, rollout).await?) })?;
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
