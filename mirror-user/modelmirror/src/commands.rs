//! The short commands: ask, print, done.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use mirror_api::{CanaryChange, Change, Done, Rest};
use serde::Serialize;

use super::block_on;
use crate::arguments::{CanaryCommand, ConfigCommand, MirrorChange, Output, ReportArgs};
use crate::errors::BAD_CONFIG;
use crate::files::{File, default_text, read_either};
use crate::print::{Printer, write_out};
use mirror_agent::compare::Comparer;
use mirror_agent::report::{Labelled, Options, Wanted, summarize};
use mirror_base::config;
use mirror_base::control::Client;
use mirror_node::check;

/// Exit code of a report that is below a threshold.
const BELOW: u8 = 5;

/// Exit code of a report without the data that was asked for.
const NO_DATA: u8 = 6;

pub(super) fn mirror(
    printer: Printer,
    socket: &Path,
    change: MirrorChange,
) -> anyhow::Result<ExitCode> {
    let (service, change) = match change {
        MirrorChange::On(service) => (service, Change::On),
        MirrorChange::Off(service) => (service, Change::Off),
        MirrorChange::Sample { share, service } => (service, Change::Sample(share)),
        MirrorChange::Clear(service) => (service, Change::Clear),
    };
    let client = Client::new(socket);
    let done = block_on(async {
        let service = service.resolve(&client).await?;
        Ok(client.mirror(&service, change).await?)
    })?;
    print_done(printer, &done)
}

pub(super) fn canary(
    printer: Printer,
    socket: &Path,
    change: CanaryCommand,
) -> anyhow::Result<ExitCode> {
    let (service, change) = match change {
        CanaryCommand::Set { share, service } => (service, CanaryChange::Share(share)),
        CanaryCommand::Off {
            reset,
            drain,
            force,
            service,
        } => {
            let rest = match drain {
                Some(time) => Rest::Drain(time.as_millis().try_into()?),
                None if reset => Rest::Reset,
                None => Rest::Finish,
            };
            let off = match force {
                true => CanaryChange::ForceOff,
                false => CanaryChange::Off,
            };
            (service, off(rest))
        }
        CanaryCommand::Clear(service) => (service, CanaryChange::Clear),
    };
    let client = Client::new(socket);
    let done = block_on(async {
        let service = service.resolve(&client).await?;
        Ok(client.canary(&service, change).await?)
    })?;
    print_done(printer, &done)
}

pub(super) fn print_done(printer: Printer, done: &Done) -> anyhow::Result<ExitCode> {
    if printer.0 == Output::Text {
        for warning in &done.warnings {
            printer.warning(warning);
        }
    }
    printer.print(done)?;
    Ok(ExitCode::SUCCESS)
}

/// What `config check` found.
#[derive(Debug, Serialize)]
struct Checked {
    file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    services: Vec<String>,
    problems: Vec<config::Place>,
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.as_deref().unwrap_or("unknown");
        let services = self.services.join(", ");
        write!(
            f,
            "{}: ok, a {kind} config; services: {services}",
            self.file.display()
        )
    }
}

pub(super) fn config(printer: Printer, command: ConfigCommand) -> anyhow::Result<ExitCode> {
    let (path, kind) = match command {
        ConfigCommand::Default { kind } => {
            write_out(default_text(kind))?;
            return Ok(ExitCode::SUCCESS);
        }
        ConfigCommand::Check { file, kind } => (file.either()?, kind),
    };
    match read_either(&path, kind) {
        Ok(file) => {
            let (kind, services) = match file {
                File::Node(node) => (
                    config::Kind::Node,
                    node.services
                        .into_iter()
                        .map(|service| service.name)
                        .collect(),
                ),
                File::Shadow(shadow) => (
                    config::Kind::Shadow,
                    shadow
                        .services
                        .into_iter()
                        .map(|service| service.name)
                        .collect(),
                ),
            };
            printer.print(&Checked {
                file: path,
                kind: Some(kind.to_string()),
                services,
                problems: Vec::new(),
            })?;
            Ok(ExitCode::SUCCESS)
        }
        Err(config::Error::Refused(report)) if printer.0 == Output::Json => {
            printer.print(&Checked {
                file: path,
                kind: None,
                services: Vec::new(),
                problems: report.places(),
            })?;
            Ok(ExitCode::from(BAD_CONFIG))
        }
        Err(error) => Err(error.into()),
    }
}

pub(super) fn check(
    printer: Printer,
    path: &Path,
    probe_tls: bool,
    strict: bool,
) -> anyhow::Result<ExitCode> {
    let findings = match read_either(path, None)? {
        File::Node(node) => block_on(check::node(&node, check::Options { probe_tls }))?,
        File::Shadow(shadow) => block_on(async { Ok(mirror_agent::check::shadow(&shadow).await) })?,
    };
    let findings = match strict {
        true => findings.strict(),
        false => findings,
    };
    printer.print(&findings)?;
    let code = if findings.ready {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    };
    Ok(code)
}

pub(super) fn report(printer: Printer, arguments: ReportArgs) -> anyhow::Result<ExitCode> {
    let mut options = Options {
        service: arguments.service,
        wanted: Wanted {
            version: arguments.version,
            since: arguments.since,
            last: arguments.last,
        },
        ..Options::default()
    };
    let mut tolerances = BTreeMap::new();
    // Without a config there are no rules to compare by.
    let file = match arguments.recompare {
        true => Some(arguments.file.shadow()?),
        false => arguments.file.shadow_if_any(),
    };
    let records = match (arguments.records, file) {
        (Some(records), _) => records,
        (None, Some(file)) => {
            let config = mirror_agent::config::read_shadow(&file)?;
            for service in config.services {
                let (name, compare) = (service.name, service.compare);
                tolerances.insert(name.clone(), (&compare).into());
                if arguments.recompare {
                    let rules = options.rules.get_or_insert_default();
                    rules.insert(name.clone(), Comparer::new(&compare, &service.record));
                }
                options.ignored.insert(name, compare.ignore);
            }
            config.record_dir
        }
        (None, None) => config::RECORD_DIR.into(),
    };
    options.labelled = arguments.labels.map(|file| Labelled {
        file,
        columns: mirror_agent::config::Columns {
            id: arguments.id_field,
            label: arguments.label_field,
        },
        tolerances,
    });
    let mut report = summarize(&records, &options)?;
    report.check(&arguments.fail_under);
    if let Some(page) = arguments.html {
        // It quotes traffic, as the records do.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&page)
            .and_then(|mut file| file.write_all(report.to_html().as_bytes()))
            .with_context(|| format!("cannot write {}", page.display()))?;
    }
    printer.print(&report)?;
    let missed: Vec<_> = report.thresholds.iter().filter(|at| !at.passes()).collect();
    for threshold in &missed {
        printer.error(&threshold.to_string());
    }
    let has_none = report.services.iter().all(|service| service.compared == 0);
    let asks = !arguments.fail_under.is_empty() || options.wanted.version.is_some();
    Ok(
        if missed.iter().any(|threshold| threshold.found.is_some()) {
            ExitCode::from(BELOW)
        } else if !missed.is_empty() || asks && has_none {
            printer.error("no data");
            ExitCode::from(NO_DATA)
        } else {
            ExitCode::SUCCESS
        },
    )
}
