//! The words of `modelmirror rollout`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::values::service_name;
use super::{Consent, ServiceName, Watch};

#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Begin a rollout: shadow, canary stages, promotion, or back
    ///
    /// With --wait: exit code 0 = promoted, 3 = rolled back or aborted, 4 = held, or the time is
    /// over. Ctrl-C ends the waiting, not the rollout.
    #[command(after_help = "Examples:
  modelmirror rollout start --dry-run                   what would be done, and how long it takes
  modelmirror rollout start -s sentiment --reason \"retrained on November\"
  modelmirror rollout start --canary-version v13 --canary-address 10.0.0.5:8001 --plan plan.toml \\
      --wait --timeout 2h                               in a pipeline")]
    Start(StartArgs),
    /// Show where rollouts are, why they wait, and what every gate says
    #[command(after_help = "Examples:
  modelmirror rollout status
  modelmirror rollout status -s sentiment --watch 5s")]
    Status {
        /// Only this service
        #[arg(short, long, value_name = "NAME", value_parser = service_name)]
        service: Option<String>,
        #[command(flatten)]
        watch: Watch,
    },
    /// Stay at this stage; the canary keeps its share, and is still rolled back when it is bad
    #[command(after_help = "Examples:
  modelmirror rollout pause --reason lunch")]
    Pause(Wish),
    /// Go on after a pause, or after a hold, whose time begins anew
    #[command(after_help = "Examples:
  modelmirror rollout resume -s sentiment")]
    Resume(Wish),
    /// Go on to the next stage, whatever the gates say
    #[command(after_help = "Examples:
  modelmirror rollout promote -s sentiment
  modelmirror rollout promote --all --yes --reason \"v12 leaks memory\"")]
    Promote {
        /// To 100 %
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        wish: Wish,
        #[command(flatten)]
        consent: Consent,
    },
    /// Abort: the canary gets no new connections
    #[command(after_help = "Examples:
  modelmirror rollout abort -s sentiment --reason \"complaints\"
  modelmirror rollout abort --yes                       without being asked, also on a terminal")]
    Abort {
        #[command(flatten)]
        wish: Wish,
        #[command(flatten)]
        consent: Consent,
    },
    /// Stop steering once the new version listens at the service's own address, after a promotion
    #[command(after_help = "Examples:
  modelmirror rollout finish -s sentiment")]
    Finish {
        /// Also when nobody is seen to listen there
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wish: Wish,
    },
    /// Tell a rollout in sentences: what was decided, when, and on which numbers
    #[command(after_help = "Examples:
  modelmirror rollout explain -s sentiment
  modelmirror rollout explain --rollout 20261129T100412Z-v13")]
    Explain {
        #[command(flatten)]
        service: ServiceName,
        /// Its id, as `history` lists it [default: the last one]
        #[arg(long, value_name = "ID", value_parser = rollout_id)]
        rollout: Option<String>,
    },
    /// List the rollouts that there were
    #[command(after_help = "Examples:
  modelmirror rollout history
  modelmirror rollout history -s sentiment -o json")]
    History {
        /// Only this service
        #[arg(short, long, value_name = "NAME", value_parser = service_name)]
        service: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    pub(crate) wish: Wish,
    /// The new version [default: as in [service.canary]]
    #[arg(long, value_name = "V", value_parser = service_name)]
    pub(crate) canary_version: Option<String>,
    /// Where it listens, an IP address and a port [default: as in [service.canary]]
    #[arg(long, value_name = "A")]
    pub(crate) canary_address: Option<SocketAddr>,
    /// What is done: a file with what stands under [service.rollout] [default: the service's own]
    #[arg(long, value_name = "FILE")]
    pub(crate) plan: Option<PathBuf>,
    /// Also when this version was rolled back before
    #[arg(long)]
    pub(crate) again: bool,
    /// Only say what would be done, and whether the traffic can decide it in time
    #[arg(long, conflicts_with = "wait")]
    pub(crate) dry_run: bool,
    /// Wait until it is promoted, rolled back or held, and print what happens
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "TIME", requires = "wait", value_parser = humantime::parse_duration)]
    pub(crate) timeout: Option<Duration>,
}

/// Of which service, and why.
#[derive(Debug, Args)]
pub(crate) struct Wish {
    #[command(flatten)]
    pub(crate) service: ServiceName,
    /// Why, for the record
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
}

fn rollout_id(typed: &str) -> Result<String, String> {
    service_name(typed).map_err(|_| "`modelmirror rollout history` lists the ids".to_owned())
}
