//! The program `modelmirror`: the command line of node and shadow host.

mod commands;
mod daemons;
mod files;
mod keys;
mod logging;
mod off;
mod rollout;
mod signals;
mod status;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use mirror_api::Mechanism;
use mirror_api::plain;
use serde::Serialize;

use mirror_agent::report::{Threshold, Versions};
use mirror_base::config;
use mirror_node::daemon;

/// Exit code for a config that is refused; clap uses the same for bad arguments.
const BAD_CONFIG: u8 = 2;

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
  modelmirror config default --for node|shadow >FILE    then fill in what is yours
  modelmirror check --config FILE                       until it says \"ready\"
  modelmirror shadow --config FILE                      on the shadow host, or
  modelmirror run --config FILE                         on the inference node

Exit codes: 0 done, 1 failed, 2 bad arguments or config; `rollout start --wait`: 0 promoted, 3 rolled
back or aborted, 4 held or timed out; `report`: 5 below a --fail-under, 6 no data for it."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
struct Global {
    /// The daemon's control socket [default: /run/modelmirror/control.sock], or the shadow agent's
    #[arg(long, global = true, value_name = "SOCKET")]
    control: Option<PathBuf>,
    /// How results are printed
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// How logs are written to stderr; RUST_LOG chooses what is logged
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    log_format: Output,
}

/// For people, or for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon on an inference node
    ///
    /// SIGHUP reads the config again. SIGTERM stops the daemon and leaves the programs attached, so
    /// that a restart takes over; without a daemon they stop copying after 5 s.
    Run {
        #[command(flatten)]
        file: ConfigFile,
        /// Remove programs and maps when the daemon stops
        #[arg(long)]
        detach_on_exit: bool,
        /// How to attach [default: tcx where the kernel has it (6.6), else clsact]
        #[arg(long, value_enum)]
        attach: Option<Attach>,
    },
    /// Run the agent on a shadow host
    Shadow {
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Check whether this host is ready: ok, warn or refuse, and what to do
    ///
    /// The config tells which host it is. Nothing is changed. On a node each agent is asked
    /// for its summary, which shows whether both hosts know each other's key; the tapped interfaces'
    /// traffic is measured; and the first bytes of what passes to and from the services are looked at
    /// for up to a second, to see whether it is TLS. Exit code 1 when something refuses.
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Dial each service once with a TLS greeting, rather than look at what passes
        #[arg(long)]
        probe_tls: bool,
    },
    /// Show what the daemon does, or the shadow agent, or both, whichever runs on this host
    Status {
        /// Only the shadow agent, at --control or /run/modelmirror/shadow.sock
        #[arg(long)]
        agent: bool,
        /// Only this service
        #[arg(long, value_name = "NAME", value_parser = service_name)]
        service: Option<String>,
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
        command: rollout::RolloutCommand,
    },
    /// Detach all programs, with or without a living daemon, and stay off after restarts
    Off {
        /// Where pin_dir, state_dir and control_socket stand, when they are not the defaults
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Only have it hold after a restart: `off` itself waits no longer for a disk than it has to
        #[arg(long, hide = true)]
        only_keep: bool,
    },
    /// Sum up the comparisons, on the shadow host
    Report(ReportArgs),
    /// Make and show this host's key
    Keys {
        #[command(subcommand)]
        command: keys::KeysCommand,
    },
    /// Print or check config files
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Attach {
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
struct ConfigFile {
    /// The config file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Args)]
struct ServiceName {
    /// The service
    #[arg(long = "service", value_name = "NAME", value_parser = service_name)]
    name: String,
}

#[derive(Debug, Subcommand)]
enum MirrorChange {
    /// Mirror the service, whatever the file says; lifts `off`
    On(ServiceName),
    /// Do not mirror the service, whatever the file says
    Off(ServiceName),
    /// Mirror a share of its connections
    Sample {
        /// From 0 to 1
        #[arg(value_parser = share)]
        share: f64,
        #[command(flatten)]
        service: ServiceName,
    },
    /// Back to what the file says
    Clear(ServiceName),
}

#[derive(Debug, Subcommand)]
enum CanaryCommand {
    /// Send a share of new connections to the canary
    Set {
        /// From 0 to 1, in steps of 0.0001
        #[arg(value_parser = fine_share)]
        share: mirror_rollout::Share,
        #[command(flatten)]
        service: ServiceName,
    },
    /// Send no new connections to the canary; those that are open may finish
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
    Clear(ServiceName),
}

#[derive(Debug, Args)]
struct ReportArgs {
    /// The agent's config: its record_dir is read
    #[arg(long, value_name = "FILE", conflicts_with = "records")]
    config: Option<PathBuf>,
    /// The folder of the records [default: /var/log/modelmirror]
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
    /// Only this service
    #[arg(long, value_name = "NAME", value_parser = service_name)]
    service: Option<String>,
    /// Of the last comparisons with this shadow version, or PRODUCTION/SHADOW [default: the pair that was
    /// compared last]
    #[arg(long, value_name = "VERSION")]
    version: Option<Versions>,
    /// None from before: a time (2026-11-22T12:00:00Z; without a zone, UTC), or how long ago (2h)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<jiff::Timestamp>,
    /// Only the last so many exchanges
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    last: Option<u64>,
    /// Compare recorded payloads once more, by the rules of --config
    #[arg(long, requires = "config")]
    recompare: bool,
    /// Exit with 5 when a figure is lower, and with 6 when there is no data: agreement=0.99;
    /// agreement_low, score, fidelity, answered, compared likewise
    #[arg(long, value_name = "NAME=VALUE")]
    fail_under: Vec<Threshold>,
    /// Write it as a page too, readable by its owner alone
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Labels that came later, CSV with a header or JSON lines: say how right both versions were
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// Where labels name the request [default: request_id, trace_id or id]
    #[arg(long, value_name = "NAME", requires = "labels")]
    id_field: Option<String>,
    /// Where labels say what was right [default: label]
    #[arg(long, value_name = "NAME", requires = "labels")]
    label_field: Option<String>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print a config with defaults and comments
    Default {
        /// For which host
        #[arg(long = "for", value_enum, default_value = "node")]
        kind: config::Kind,
    },
    /// Read a config and say everything that is wrong with it
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// For which host [default: told by its keys]
        #[arg(long = "for", value_enum)]
        kind: Option<config::Kind>,
    },
}

fn share(typed: &str) -> Result<f64, String> {
    match typed.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("write a share from 0 to 1, such as 0.25 for a quarter".to_owned()),
    }
}

/// A time, or how long ago.
fn moment(typed: &str) -> Result<jiff::Timestamp, String> {
    let utc = |date: jiff::civil::DateTime| date.to_zoned(jiff::tz::TimeZone::UTC);
    let ago = |typed: &str| {
        let ago = humantime::parse_duration(typed).ok()?;
        jiff::Timestamp::now().checked_sub(ago).ok()
    };
    let time = typed.parse::<jiff::Timestamp>().ok();
    time.or_else(|| Some(utc(typed.parse().ok()?).ok()?.timestamp()))
        .or_else(|| ago(typed))
        .ok_or_else(|| {
            "write a time such as 2026-11-22T12:00:00Z, or how long ago, such as 2h".to_owned()
        })
}

fn fine_share(typed: &str) -> Result<mirror_rollout::Share, String> {
    Ok(mirror_rollout::Share::try_from(share(typed)?)?)
}

fn service_name(typed: &str) -> Result<String, String> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if !typed.is_empty() && typed.chars().all(fit) {
        return Ok(typed.to_owned());
    }
    Err("names of services are made of letters, digits, `.`, `_` and `-`".to_owned())
}

/// The reader of our output went away, `modelmirror status | head`: nothing is wrong.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads the output")]
struct ReaderGone;

/// Prints one result.
struct Printer(Output);

impl Printer {
    /// As text, or as the type in JSON.
    fn print(&self, result: &(impl Serialize + std::fmt::Display)) -> anyhow::Result<()> {
        let text = match self.0 {
            Output::Text => plain::text(&result.to_string()).into_owned(),
            Output::Json => plain::json(&serde_json::to_string_pretty(result)?),
        };
        print_text(&text)
    }
}

fn print_text(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    let end = if text.ends_with('\n') || text.is_empty() {
        ""
    } else {
        "\n"
    };
    match write!(stdout, "{text}{end}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderGone.into()),
        written => Ok(written?),
    }
}

fn complain(text: &str) {
    // When stderr is gone too there is nobody left to tell.
    let _ = writeln!(io::stderr(), "{}", plain::text(text));
}

/// Runs the command that the process was started with.
fn main() -> ExitCode {
    let Cli { global, command } = Cli::parse();
    match run(&global, command) {
        Ok(code) => code,
        Err(error) if error.is::<ReaderGone>() => ExitCode::SUCCESS,
        Err(error) => {
            complain(&explain(&error));
            if error.is::<config::Error>() {
                ExitCode::from(BAD_CONFIG)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// One line; but for a config that is refused, every problem in its place.
fn explain(error: &anyhow::Error) -> String {
    match error.downcast_ref() {
        Some(config::Error::Refused(report)) => {
            let problems = match report.count() {
                1 => "1 problem".to_owned(),
                count => format!("{count} problems"),
            };
            let file = report.file().display();
            format!("{report}\nerror: {file} cannot be used: {problems}")
        }
        _ => format!("error: {error:#}"),
    }
}

fn run(global: &Global, command: Command) -> anyhow::Result<ExitCode> {
    let printer = Printer(global.output);
    match command {
        Command::Run {
            file,
            detach_on_exit,
            attach,
        } => {
            refuse_control(global);
            logging::start(global.log_format == Output::Json);
            daemons::run(daemon::Options {
                object: mirror_programs::OBJECT,
                config: file.config,
                detach_on_exit,
                mechanism: attach.map(Mechanism::from),
            })
        }
        Command::Shadow { file } => {
            logging::start(global.log_format == Output::Json);
            daemons::shadow(&file.config)
        }
        Command::Check { file, probe_tls } => commands::check(&printer, &file.config, probe_tls),
        Command::Status { agent, service } => status::status(
            &printer,
            global.control.as_deref(),
            agent,
            service.as_deref(),
        ),
        Command::Mirror { change } => commands::mirror(&printer, socket(global), change),
        Command::Canary { change } => commands::canary(&printer, socket(global), change),
        Command::Rollout { command } => rollout::run(&printer, socket(global), command),
        Command::Off {
            config,
            only_keep: true,
        } => off::keep(config.as_deref()),
        Command::Off { config, .. } => off::off(&printer, global, config.as_deref()),
        Command::Report(arguments) => commands::report(&printer, arguments),
        Command::Keys { command } => keys::run(&printer, command),
        Command::Config { command } => commands::config(&printer, command),
    }
}

/// `run` is not asked at a socket, it listens at one: ends the program when one is named.
fn refuse_control(global: &Global) {
    if global.control.is_some() {
        let said = "`run` listens where its config says (`control_socket`): leave --control out";
        let kind = clap::error::ErrorKind::ArgumentConflict;
        Cli::command().error(kind, said).exit();
    }
}

fn socket(global: &Global) -> &Path {
    let socket = global.control.as_deref();
    socket.unwrap_or(Path::new(config::CONTROL_SOCKET))
}

/// Runs a short exchange on this thread.
fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// `line` is accepted, or refused with these words.
    fn check(line: &str, expected: Result<(), &str>) {
        let parsed = Cli::try_parse_from(["modelmirror"].into_iter().chain(line.split(' ')));
        match (parsed, expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(words)) => {
                assert_eq!(error.exit_code(), 2, "{line}");
                let said = error.to_string();
                assert!(said.contains(words), "{line}: {said}");
            }
            (parsed, _) => panic!("{line}: {parsed:?}"),
        }
    }

    #[test]
    fn commands_are_those_of_the_contract() {
        check("run --config node.toml --detach-on-exit", Ok(()));
        check("run", Err("--config"));
        check("shadow --config shadow.toml --log-format json", Ok(()));
        check("check --config node.toml --output json", Ok(()));
        check("status --service a --control /tmp/c.sock", Ok(()));
        check("--output json status", Ok(()));
        check("status --agent --service a", Ok(()));
        check("status --service a/b", Err("letters, digits"));
        check("mirror on --service a", Ok(()));
        check("mirror off", Err("--service"));
        check("mirror sample 0.5 --service a", Ok(()));
        check("mirror sample 50 --service a", Err("from 0 to 1"));
        check("mirror sample nan --service a", Err("from 0 to 1"));
        check("mirror clear --service a", Ok(()));
        check("canary set 0.05 --service a", Ok(()));
        check("canary set 5 --service a", Err("from 0 to 1"));
        check("canary set 0.00005 --service a", Err("steps of 0.0001"));
        check("canary set 0.1", Err("--service"));
        check("canary off --service a --reset", Ok(()));
        check("canary off --service a --drain 30s", Ok(()));
        check(
            "canary off --service a --reset --drain 30s",
            Err("cannot be used with"),
        );
        check("canary off --service a --drain soon", Err("drain"));
        check("canary clear --service a", Ok(()));
        check("rollout start --service a", Ok(()));
        let whole = "rollout start --service a --canary-version v13 --canary-address 10.0.0.5:8001 --plan p.toml --again --reason nightly --wait --timeout 2h";
        check(whole, Ok(()));
        check("rollout start", Err("--service"));
        check("rollout start --service a --timeout 2h", Err("--wait"));
        check(
            "rollout start --service a --canary-address model:8001",
            Err("--canary-address"),
        );
        check("rollout status", Ok(()));
        check("rollout pause --service a --reason lunch", Ok(()));
        check("rollout resume --service a", Ok(()));
        check("rollout promote --service a --all", Ok(()));
        check("rollout abort --service a", Ok(()));
        check("rollout abort", Err("--service"));
        check("rollout finish --service a --force", Ok(()));
        check("rollout explain --service a --rollout a-1", Ok(()));
        check("rollout explain --service a --rollout a/1", Err("history"));
        check("rollout history --service a", Ok(()));
        check("off", Ok(()));
        check("report --config shadow.toml", Ok(()));
        check("report --records /var/log/modelmirror --service a", Ok(()));
        check("report", Ok(()));
        check(
            "report --labels l.csv --id-field order --label-field fraud",
            Ok(()),
        );
        check("report --id-field order", Err("--labels"));
        let whole = "report --version v12/v13 --since 2h --last 100 --fail-under agreement=0.99 --fail-under compared=1000";
        check(whole, Ok(()));
        check("report --since 2026-11-22T12:00:00Z", Ok(()));
        check("report --since 2026-11-22T12:00", Ok(()));
        check("report --since 2026-11-22", Ok(()));
        check("report --since soon", Err("how long ago"));
        check("report --last 0", Err("--last"));
        check("report --fail-under agreement=99", Err("from 0 to 1"));
        check("report --fail-under speed=1", Err("names: agreement"));
        check("report --fail-under compared=0", Err("compared=1000"));
        check("report --recompare", Err("--config"));
        check("report --recompare --config a", Ok(()));
        check("report --config a --records b", Err("cannot be used with"));
        check("keys new", Ok(()));
        check("keys new --key-file /tmp/key --replace", Ok(()));
        check("keys show --key-file /tmp/key --output json", Ok(()));
        check("keys show --replace", Err("--replace"));
        check("config default --for shadow", Ok(()));
        check("config check --config node.toml", Ok(()));
    }
}
