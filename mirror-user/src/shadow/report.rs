//! What the records say, for people and programs: `modelmirror report`.

mod differences;
mod figures;
mod html;
mod prediction;
mod sections;
mod service;
mod statistics;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use self::service::Tally;
use super::message::DropReason;
use super::record::is_records;
use super::record::line::Record;

pub use self::differences::{Difference, Example};
pub use self::prediction::{
    Bar, Change, LabelCount, Meaning, Numbers, Predictions, Spread, Unusual,
};
pub use self::service::{Canary, Fidelity, Latency, LegLatency, Service, Slice, Verdicts};
pub use self::statistics::{Quantiles, Share};

/// Name of the file beside the records that holds a [`LedgerFile`].
pub const LEDGER: &str = "ledger.json";

/// The agent's ledger of requests of one service, since the agent's start. The agent writes it once
/// a second through [`super::record::Recorder::write_ledger`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LedgerFile {
    /// When the agent started.
    pub since: jiff::Timestamp,
    /// When this was written.
    pub time: jiff::Timestamp,
    /// Requests of which at least one byte, or one byte of the response, was received.
    pub seen: u64,
    /// Those that were compared.
    pub compared: u64,
    /// Those that were dropped, by reason (label `outcome`).
    pub drops: BTreeMap<String, u64>,
}

impl LedgerFile {
    /// Those that the shadow answered and that nothing was to be compared with.
    pub(super) fn not_compared(&self) -> u64 {
        let label = DropReason::NotCompared.label();
        self.drops.get(label).copied().unwrap_or_default()
    }
}

/// What the records of one or all services say. `Display` is for people, `Serialize` for programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The folder that was read.
    pub record_dir: PathBuf,
    /// The services, by name.
    pub services: Vec<Service>,
}

/// Reads all records under `record_dir`, of one service or of all.
///
/// Lines that are no records, half a line at the end of a file included, are counted and left out;
/// files that are deleted meanwhile are left out too.
///
/// # Errors
/// The folder, or a file in it, cannot be read; there is no such service.
pub fn summarize(record_dir: &Path, service: Option<&str>) -> anyhow::Result<Report> {
    let shown = record_dir.display();
    let entries = fs::read_dir(record_dir).with_context(|| {
        format!(
            "cannot read the records in {shown}: name the agent's config or its record_dir \
             (--config, --records), and run as the user that the agent runs as"
        )
    })?;
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    if let Some(service) = service {
        if !names.iter().any(|name| name == service) {
            let known = names.join(", ");
            bail!("no records of service {service:?} in {shown}; there are: {known}");
        }
        names.retain(|name| name == service);
    }
    let services = names
        .into_iter()
        .map(|name| read_service(record_dir, name))
        .collect::<anyhow::Result<Vec<Service>>>()?;
    Ok(Report {
        record_dir: record_dir.to_owned(),
        services,
    })
}

fn read_service(record_dir: &Path, name: String) -> anyhow::Result<Service> {
    let folder = record_dir.join(&name);
    let mut tally = Tally::default();
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(is_records))
        .map(|entry| entry.path())
        .collect();
    files.sort_unstable();
    for file in files {
        read_file(&file, &mut tally).with_context(|| format!("cannot read {}", file.display()))?;
    }
    let ledger = fs::read(folder.join(LEDGER)).ok();
    let ledger = ledger.and_then(|json| serde_json::from_slice(&json).ok());
    Ok(tally.finish(name, ledger))
}

fn read_file(path: &Path, tally: &mut Tally) -> std::io::Result<()> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        match serde_json::from_slice::<Record<'_>>(&line) {
            Ok(record) => tally.add(&record),
            Err(_) => tally.unreadable(),
        }
        line.clear();
    }
    Ok(())
}
