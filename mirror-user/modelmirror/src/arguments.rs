//! What people type.

mod check;
pub(super) mod rollout;
#[cfg(test)]
mod tests;
pub(super) mod values;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use mirror_agent::report::{Threshold, Versions};
use mirror_api::Mechanism;
use mirror_base::config;

use self::rollout::RolloutCommand;
use self::values::{fine_share, interval, moment, service_name, share};
use super::keys::KeysCommand;

pub(super) use self::check::{parse, wants_json};

/// The program's version, and that of the layouts that it shares with the kernel.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let version = env!("CARGO_PKG_VERSION");
    format!("{version} (ABI {})", mirror_common::ABI_VERSION)
});

#[derive(Debug, Parser)]
#[command(
    name = "modelmirror",
    about = "Mirrors a model server's traffic in the kernel to a shadow model, and compares the responses",
    version = VERSION.as_str(),
    after_help = "To begin, on each host:
  modelmirror keys new                                  and give the other host what it prints
  modelmirror config default --for node >/etc/modelmirror/node.toml
  modelmirror config default --for shadow >/etc/modelmirror/shadow.toml
                                                        then fill in what is yours
  modelmirror check                                     until it says \"ready\"
  modelmirror shadow                                    on the shadow host, or
  modelmirror run                                       on the inference node

Exit codes: 0 done, 1 failed, 2 bad arguments or config. `rollout start --wait`: 0 promoted,
3 rolled back or aborted, 4 held or timed out. `report`: 5 below a --fail-under, 6 no data for it.
`check` and `status --check`: 1 not ready."
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(super) struct Global {
    /// The daemon's control socket [default: /run/modelmirror/control.sock], or the shadow agent's
    #[arg(
        long,
        global = true,
        value_name = "SOCKET",
        env = "MODELMIRROR_CONTROL",
        hide_env_values = true
    )]
    pub(super) control: Option<PathBuf>,
    /// How results and errors are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Text)]
    pub(super) output: Output,
    /// Whether levels and verdicts are in colour; `auto`: on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = When::Auto)]
    pub(super) color: When,
    /// How logs are written to stderr
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    pub(super) log_format: Output,
    /// Whether --config was typed, rather than found in the environment.
    #[arg(skip)]
    pub(super) names_config: bool,
}

/// For people, or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    Text,
    Json,
}

/// When output is in colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    Auto,
    Always,
    Never,
}

impl From<When> for anstream::ColorChoice {
    fn from(when: When) -> Self {
        match when {
            When::Auto => Self::Auto,
            When::Always => Self::Always,
            When::Never => Self::Never,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the daemon on an inference node
    ///
    /// SIGHUP reads the config again. SIGTERM stops the daemon and leaves the programs attached, so
    /// that a restart takes over; without a daemon they stop copying after 5 s.
    #[command(after_help = "Examples:
  modelmirror run
  modelmirror run -c node.toml -v                       and log more
  modelmirror run --log-format json")]
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Remove programs and maps when the daemon stops
        #[arg(long)]
        detach_on_exit: bool,
        /// How to attach [default: tcx where the kernel has it (6.6), else clsact]
        #[arg(long, value_enum)]
        attach: Option<Attach>,
        #[command(flatten)]
        verbosity: Verbosity,
    },
    /// Run the agent on a shadow host
    #[command(after_help = "Examples:
  modelmirror shadow
  modelmirror shadow -c shadow.toml -q                  and log warnings and errors only")]
    Shadow {
        #[command(flatten)]
        file: ConfigFile,
        #[command(flatten)]
        verbosity: Verbosity,
    },
    /// Check whether this host is ready: ok, warn or refuse, and what to do
    ///
    /// The config tells which host it is. Nothing is changed. On a node each agent is asked
    /// for its summary, which shows whether both hosts know each other's key; the tapped interfaces'
    /// traffic is measured; and the first bytes of what passes to and from the services are looked at
    /// for up to a second, to see whether it is TLS. Exit code 1 when something refuses.
    #[command(after_help = "Examples:
  modelmirror check
  modelmirror check -c node.toml --strict               in a pipeline: warnings fail, too")]
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Dial each service once with a TLS greeting, rather than look at what passes
        #[arg(long)]
        probe_tls: bool,
        /// Exit with 1 when there is a warning, too
        #[arg(long)]
        strict: bool,
    },
    /// Show what the daemon does, or the shadow agent, or both, whichever runs on this host
    #[command(after_help = "Examples:
  modelmirror status
  modelmirror status -s sentiment --watch               once a second, until Ctrl-C
  modelmirror status --check || page-somebody           what is not ready, and exit code 1")]
    Status {
        /// Only the shadow agent, at --control or /run/modelmirror/shadow.sock
        #[arg(long)]
        agent: bool,
        /// Only this service
        #[arg(short, long, value_name = "NAME", value_parser = service_name)]
        service: Option<String>,
        /// Say only what is not ready, and exit with 1 when something is not: an agent is dead,
        /// mirroring is suspended or off, an interface is not attached, a canary or shadow does not answer
        #[arg(long, conflicts_with = "watch")]
        check: bool,
        #[command(flatten)]
        watch: Watch,
    },
    /// Change a service's mirror, at once and over restarts, until it is cleared
    Mirror {
        #[command(subcommand)]
        change: MirrorChange,
    },
    /// Change the share of new connections that a service's canary gets
    Canary {
        #[command(subcommand)]
        change: CanaryCommand,
    },
    /// Bring a new version from the shadow to all clients, or roll it back
    Rollout {
        #[command(subcommand)]
        command: RolloutCommand,
    },
    /// Detach all programs, with or without a living daemon, and stay off after restarts
    #[command(after_help = "Examples:
  modelmirror off
  modelmirror off --yes                                 without being asked, also on a terminal
  modelmirror off -c node.toml --yes --if-present       when a host is set up anew")]
    Off {
        #[command(flatten)]
        file: ConfigFile,
        /// Succeed also when nothing is attached, no daemon answers, and no config says where to look
        #[arg(long)]
        if_present: bool,
        #[command(flatten)]
        consent: Consent,
        /// Only have it hold after a restart: `off` itself waits no longer for a disk than it has to
        #[arg(long, hide = true)]
        only_keep: bool,
    },
    /// Sum up the comparisons, on the shadow host
    #[command(after_help = "Examples:
  modelmirror report
  modelmirror report --since 2h --html report.html
  modelmirror report --fail-under agreement=99% --fail-under compared=1000")]
    Report(ReportArgs),
    /// Make and show this host's key
    Keys {
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Print or check config files
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Attach {
    Tcx,
    Clsact,
}

impl From<Attach> for Mechanism {
    fn from(attach: Attach) -> Self {
        match attach {
            Attach::Tcx => Self::Tcx,
            Attach::Clsact => Self::Clsact,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct ConfigFile {
    /// The config file
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "MODELMIRROR_CONFIG",
        hide_env_values = true
    )]
    pub(super) config: Option<PathBuf>,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct Verbosity {
    /// Log more: -v debug, -vv trace. RUST_LOG, where it is set, decides instead
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub(super) verbose: u8,
    /// Log less: -q warnings and errors, -qq errors only. RUST_LOG, where it is set, decides instead
    #[arg(short, long, action = ArgAction::Count)]
    pub(super) quiet: u8,
}

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Watch {
    /// Show it again and again, every second or so often, until Ctrl-C: redrawn on a terminal, one
    /// after the other elsewhere
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = "1s", value_parser = interval)]
    pub(super) watch: Option<Duration>,
}

/// Whether a person has to be asked.
#[derive(Clone, Copy, Debug, Args)]
pub(super) struct Consent {
    /// Do not ask first; without a terminal nobody is asked
    #[arg(short, long)]
    pub(super) yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct ServiceName {
    /// The service [default: the only one that the daemon has]
    #[arg(short = 's', long = "service", value_name = "NAME", value_parser = service_name)]
    pub(super) name: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum MirrorChange {
    /// Mirror the service, whatever the file says; lifts `off`
    #[command(after_help = "Examples:
  modelmirror mirror on -s sentiment")]
    On(ServiceName),
    /// Do not mirror the service, whatever the file says
    #[command(after_help = "Examples:
  modelmirror mirror off -s sentiment")]
    Off(ServiceName),
    /// Mirror a share of its connections
    #[command(after_help = "Examples:
  modelmirror mirror sample 25% -s sentiment
  modelmirror mirror sample 0.25")]
    Sample {
        /// From 0 to 1, or in per cent: 0.25 or 25%
        #[arg(value_parser = share)]
        share: f64,
        #[command(flatten)]
        service: ServiceName,
    },
    /// Back to what the file says
    #[command(after_help = "Examples:
  modelmirror mirror clear -s sentiment")]
    Clear(ServiceName),
}

#[derive(Debug, Subcommand)]
pub(super) enum CanaryCommand {
    /// Send a share of new connections to the canary
    #[command(after_help = "Examples:
  modelmirror canary set 5% -s sentiment
  modelmirror canary set 0.05")]
    Set {
        /// From 0 to 1 in steps of 0.0001, or in per cent: 0.05 or 5%
        #[arg(value_parser = fine_share)]
        share: mirror_rollout::Share,
        #[command(flatten)]
        service: ServiceName,
    },
    /// Send no new connections to the canary; those that are open may finish
    #[command(after_help = "Examples:
  modelmirror canary off -s sentiment
  modelmirror canary off --drain 30s")]
    Off {
        /// Reset open canary connections at once
        #[arg(long, conflicts_with = "drain")]
        reset: bool,
        /// Reset open canary connections after this time
        #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
        drain: Option<Duration>,
        /// Also where nobody listens for stable
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        service: ServiceName,
    },
    /// Back to what the file says
    #[command(after_help = "Examples:
  modelmirror canary clear -s sentiment")]
    Clear(ServiceName),
}

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    #[command(flatten)]
    pub(super) file: ConfigFile,
    /// The folder of the records [default: as the config says, else /var/log/modelmirror]
    #[arg(long, value_name = "DIR")]
    pub(super) records: Option<PathBuf>,
    /// Only this service
    #[arg(short, long, value_name = "NAME", value_parser = service_name)]
    pub(super) service: Option<String>,
    /// Of the last comparisons with this shadow version, or PRODUCTION/SHADOW [default: the pair that was
    /// compared last]
    #[arg(long, value_name = "VERSION")]
    pub(super) version: Option<Versions>,
    /// None from before: a time (2026-11-22T12:00:00Z; without a zone, UTC), or how long ago (2h)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(super) since: Option<jiff::Timestamp>,
    /// Only the last so many exchanges
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) last: Option<u64>,
    /// Compare recorded payloads once more, by the rules of the config
    #[arg(long, conflicts_with = "records")]
    pub(super) recompare: bool,
    /// Exit with 5 when a figure is lower, and with 6 when there is no data: agreement=0.99 or
    /// agreement=99%; agreement_low, score, fidelity, answered, compared likewise
    #[arg(long, value_name = "NAME=VALUE")]
    pub(super) fail_under: Vec<Threshold>,
    /// Write it as a page too, readable by its owner alone
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Labels that came later, CSV with a header or JSON lines: say how right both versions were
    #[arg(long, value_name = "FILE")]
    pub(super) labels: Option<PathBuf>,
    /// Where labels name the request [default: request_id, trace_id or id]
    #[arg(long, value_name = "NAME", requires = "labels")]
    pub(super) id_field: Option<String>,
    /// Where labels say what was right [default: label]
    #[arg(long, value_name = "NAME", requires = "labels")]
    pub(super) label_field: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Print a config with defaults and comments
    #[command(after_help = "Examples:
  modelmirror config default >/etc/modelmirror/node.toml
  modelmirror config default --for shadow >/etc/modelmirror/shadow.toml")]
    Default {
        /// For which host
        #[arg(long = "for", value_enum, default_value = "node")]
        kind: config::Kind,
    },
    /// Read a config and say everything that is wrong with it
    #[command(after_help = "Examples:
  modelmirror config check
  modelmirror config check -c node.toml -o json")]
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// For which host [default: told by its keys]
        #[arg(long = "for", value_enum)]
        kind: Option<config::Kind>,
    },
}

/// What the process was started with.
pub(super) fn typed() -> Vec<OsString> {
    std::env::args_os().collect()
}
