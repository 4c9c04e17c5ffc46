//! What the records say, for people and programs: `modelmirror report`.

mod differences;
mod figures;
mod html;
mod labels;
mod prediction;
mod proposal;
mod recompare;
mod sections;
mod selection;
mod service;
mod statistics;
#[cfg(test)]
mod tests;
mod text;
mod threshold;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use mirror_wire::message::DropReason;
use serde::Serialize;

use self::labels::Labels;
use self::service::Tally;
use super::compare::Comparer;
use super::labels::Join;
use super::record::read::{NoRecord, read};

pub use self::differences::{Difference, Example};
pub use self::labels::{Accuracy, Labelled, LabelsRead, Right, RightSlice};
pub use self::prediction::{
    Bar, Change, LabelCount, Meaning, Numbers, Predictions, Spread, Unusual,
};
pub use self::proposal::{Place, Proposal};
pub use self::recompare::Recompared;
pub use self::selection::{Pair, PairRecords, Versions, Wanted};
pub use self::service::{Canary, Fidelity, Latency, LegLatency, Noise, Service, Slice, Verdicts};
use crate::record::{LEDGER, LedgerFile};

pub use self::statistics::{Difference as Excess, Quantiles, Share};
pub use self::threshold::{Measure, Reached, Threshold};

impl LedgerFile {
    /// Whether it is of these versions alone, as far as it says.
    pub(super) fn is_of(&self, pair: &Pair) -> bool {
        let mut said = self.production_versions.iter();
        self.shadow_version.is_empty()
            || self.shadow_version == pair.shadow && said.all(|said| *said == pair.production)
    }

    /// Of which versions it is.
    fn versions(&self) -> String {
        let said: Vec<&str> = self
            .production_versions
            .iter()
            .map(String::as_str)
            .collect();
        let production = match said.is_empty() {
            true => "a version that no tap has named".to_owned(),
            false => said.join(" and "),
        };
        format!("{} in the shadow of {production}", self.shadow_version)
    }

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
    /// What was to be reached, see [`Report::check`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub thresholds: Vec<Reached>,
}

/// What a report is to be of.
#[derive(Debug, Default)]
pub struct Options {
    /// One service rather than all.
    pub service: Option<String>,
    /// Which of its records.
    pub wanted: Wanted,
    /// Labels that came later.
    pub labelled: Option<Labelled>,
    /// The services' present rules, by name, to compare what was recorded once more.
    pub rules: Option<BTreeMap<String, Comparer>>,
    /// What services ignore by now, by name.
    pub ignored: BTreeMap<String, Vec<String>>,
}

/// Sums up the records under `record_dir`, of one service or of all, for each those of one version
/// pair.
///
/// Lines that are no records, half a line at the end of a file included, are counted and left out;
/// files that are deleted meanwhile are left out too.
///
/// # Errors
/// The folder, or a file in it, cannot be read; there is no such service; the labels cannot be read.
pub fn summarize(record_dir: &Path, options: &Options) -> anyhow::Result<Report> {
    let names = names(record_dir, options.service.as_deref())?;
    let mut labels = options.labelled.as_ref().map(Labels::read).transpose()?;
    let services = names
        .into_iter()
        .map(|name| read_service(record_dir, name, options, labels.as_mut()))
        .collect::<anyhow::Result<Vec<Service>>>()?;
    Ok(Report {
        record_dir: record_dir.to_owned(),
        services,
        labels: labels.map(Labels::finish),
        thresholds: Vec::new(),
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
    options: &Options,
    labels: Option<&mut Labels>,
) -> anyhow::Result<Service> {
    let folder = record_dir.join(&name);
    let wanted = &options.wanted;
    let mut chosen = wanted.choose(&folder)?;
    let (mut tally, mut join) = (Tally::default(), Join::default());
    let rules = options.rules.as_ref();
    let rules = rules.map(|rules| {
        let known = rules.get(&name);
        known.with_context(|| format!("the config has no service {name:?} to compare by"))
    });
    let rules = rules.transpose()?;
    let mut recompared = Recompared::default();
    read(&folder, wanted.files_since(), |record| {
        match record {
            Ok(mut record) => {
                let taken = chosen.takes(&record)
                    && rules.is_none_or(|rules| recompared.apply(rules, &mut record));
                if taken {
                    tally.add(&record);
                    if let Some(labels) = &labels {
                        labels.add(&mut join, &name, &record);
                    }
                }
            }
            Err(NoRecord) => tally.unreadable(),
        }
        ControlFlow::Continue(())
    })?;
    let ledger = fs::read(folder.join(LEDGER)).ok();
    let ledger: Option<LedgerFile> = ledger.and_then(|json| serde_json::from_slice(&json).ok());
    let pair = chosen.pair.as_ref().map(|found| &found.pair);
    let (of_pair, other) = match ledger {
        Some(ledger) if pair.is_some_and(|pair| !ledger.is_of(pair)) => (None, Some(ledger)),
        ledger => (ledger, None),
    };
    let ignored = options.ignored.get(&name).map_or(&[][..], Vec::as_slice);
    let mut service = tally.finish(name, of_pair, ignored);
    service.labels = labels.map(|labels| labels.take(join));
    service.pair = chosen.pair;
    service.other_pairs = chosen.others;
    service.since = wanted.since;
    service.last_only = wanted.last;
    service.recompared = rules.map(|_| recompared);
    service.ledger_of_others = other.map(|ledger| ledger.versions());
    Ok(service)
}
