//! What the records say, for people and programs: `modelmirror report`.

mod differences;
mod figures;
mod html;
mod labels;
mod prediction;
mod sections;
mod service;
mod statistics;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use self::labels::Labels;
use self::service::Tally;
use super::labels::Join;
use super::message::DropReason;
use super::record::read::{NoRecord, read};

pub use self::differences::{Difference, Example};
pub use self::labels::{Accuracy, Labelled, LabelsRead, Right, RightSlice};
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
        self.dropped(DropReason::NotCompared)
    }

    /// Those that the service's file leaves out.
    pub(super) fn excluded(&self) -> u64 {
        self.dropped(DropReason::Excluded)
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.get(reason.label()).copied().unwrap_or_default()
    }
}

/// What the records of one or all services say. `Display` is for people, `Serialize` for programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The folder that was read.
    pub record_dir: PathBuf,
    /// The services, by name.
    pub services: Vec<Service>,
    /// The file of labels, where one was given.
    pub labels: Option<LabelsRead>,
}

/// Reads all records under `record_dir`, of one service or of all, and holds them against labels
/// where there are any.
///
/// Lines that are no records, half a line at the end of a file included, are counted and left out;
/// files that are deleted meanwhile are left out too.
///
/// # Errors
/// The folder, or a file in it, cannot be read; there is no such service; the labels cannot be read.
pub fn summarize(
    record_dir: &Path,
    service: Option<&str>,
    labelled: Option<&Labelled>,
) -> anyhow::Result<Report> {
    let names = names(record_dir, service)?;
    let mut labels = labelled.map(Labels::read).transpose()?;
    let services = names
        .into_iter()
        .map(|name| read_service(record_dir, name, labels.as_mut()))
        .collect::<anyhow::Result<Vec<Service>>>()?;
    Ok(Report {
        record_dir: record_dir.to_owned(),
        services,
        labels: labels.map(Labels::finish),
    })
}

/// The services that have records, or the one that is asked for.
fn names(record_dir: &Path, service: Option<&str>) -> anyhow::Result<Vec<String>> {
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
    Ok(names)
}

fn read_service(
    record_dir: &Path,
    name: String,
    labels: Option<&mut Labels>,
) -> anyhow::Result<Service> {
    let folder = record_dir.join(&name);
    let (mut tally, mut join) = (Tally::default(), Join::default());
    read(&folder, None, |record| {
        match record {
            Ok(record) => {
                tally.add(&record);
                if let Some(labels) = &labels {
                    labels.add(&mut join, &name, &record);
                }
            }
            Err(NoRecord) => tally.unreadable(),
        }
        ControlFlow::Continue(())
    })?;
    let ledger = fs::read(folder.join(LEDGER)).ok();
    let ledger = ledger.and_then(|json| serde_json::from_slice(&json).ok());
    let mut service = tally.finish(name, ledger);
    service.labels = labels.map(|labels| labels.take(join));
    Ok(service)
}
