//! How right both versions were, by labels that came later.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

use anyhow::bail;
use mirror_api::summary::RightPairs;
use serde::Serialize;

use super::statistics::{Difference, Share};
use crate::compare::Tolerance;
use crate::config::{self, Columns};
use crate::labels::file::LabelFile;
use crate::labels::{BadLine, Id, Join, Joined, Label, Unused};
use crate::record::line::Record;

/// Labels of one report: a gigabyte of memory.
const MAX_LABELS: usize = 10_000_000;

/// Bad lines that are quoted.
const EXAMPLES: usize = 5;

/// Where labels are, and how they are read.
#[derive(Clone, Debug, Default)]
pub struct Labelled {
    /// The file.
    pub file: PathBuf,
    /// What its columns are called.
    pub columns: Columns,
    /// How near a number must be to its label, by service; else as near as answers of two versions
    /// by default.
    pub tolerances: BTreeMap<String, Tolerance>,
}

/// A file of labels, and which of them said nothing.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelsRead {
    /// The file.
    pub file: PathBuf,
    /// Ids that have a label.
    pub labels: u64,
    /// Lines that are of no use, by reason, and ids without a record in any service.
    pub unused: BTreeMap<&'static str, u64>,
    /// The first of the bad lines.
    pub bad_lines: Vec<String>,
}

/// How right both versions were.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// In all.
    #[serde(flatten)]
    pub all: Right,
    /// By slice, the shadow's greatest loss first: by the upper end of the difference's interval, so
    /// that a slice of few labels is not taken for a bad one.
    pub slices: Vec<RightSlice>,
    /// Labels that have a record and say nothing, by reason.
    pub unused: BTreeMap<&'static str, u64>,
}

/// One slice of an [`Accuracy`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RightSlice {
    /// Its name.
    pub slice: String,
    /// How right both were in it.
    #[serde(flatten)]
    pub right: Right,
}

/// Predictions for the same requests, held against what was right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Right {
    /// Requests with a label and both predictions.
    pub labelled: u64,
    /// By who was right.
    pub pairs: RightPairs,
    /// How often production was.
    pub production: Option<Share>,
    /// How often the shadow was.
    pub shadow: Option<Share>,
    /// The shadow's share less production's.
    pub difference: Option<Difference>,
}

impl Right {
    fn of(pairs: RightPairs) -> Self {
        let labelled = pairs.count();
        Self {
            labelled,
            pairs,
            production: Share::of(pairs.both_right + pairs.production_only, labelled),
            shadow: Share::of(pairs.both_right + pairs.shadow_only, labelled),
            difference: Difference::of(&pairs),
        }
    }
}

/// The labels while records are read.
#[derive(Debug)]
pub(super) struct Labels {
    by_id: HashMap<Id, Label>,
    /// Those that a record was found for.
    used: HashSet<Id>,
    tolerances: BTreeMap<String, Tolerance>,
    read: LabelsRead,
}

impl Labels {
    /// # Errors
    /// When the file cannot be read, or no line of it is a label.
    pub(super) fn read(asked: &Labelled) -> anyhow::Result<Self> {
        let mut labels = Self {
            by_id: HashMap::new(),
            used: HashSet::new(),
            tolerances: asked.tolerances.clone(),
            read: LabelsRead {
                file: asked.file.clone(),
                labels: 0,
                unused: BTreeMap::new(),
                bad_lines: Vec::new(),
            },
        };
        let shown = asked.file.display();
        let mut file = LabelFile::new(&asked.file, &asked.columns);
        while !file.read(true, |line| labels.line(line))? {
            if labels.by_id.len() > MAX_LABELS {
                bail!("{shown} has more than {MAX_LABELS} labels: take them in parts");
            }
        }
        if labels.by_id.is_empty() {
            let bad = labels.read.bad_lines.first();
            let why = bad.map_or("it is empty", String::as_str);
            bail!("{shown} has no label: {why}");
        }
        Ok(labels)
    }

    fn line(&mut self, line: Result<(Id, Label), BadLine>) {
        let why = match line {
            Ok((id, label)) => match self.by_id.get(&id) {
                None => {
                    self.by_id.insert(id, label);
                    return;
                }
                Some(earlier) if *earlier == label => Unused::Repeated,
                Some(_) => Unused::Contradicting,
            },
            Err(bad) => {
                if self.read.bad_lines.len() < EXAMPLES {
                    self.read.bad_lines.push(bad.to_string());
                }
                Unused::BadLine
            }
        };
        *self.read.unused.entry(why.label()).or_default() += 1;
    }

    /// Looks for labels of a service's record.
    pub(super) fn add(&self, join: &mut Join, service: &str, record: &Record<'_>) {
        let usual = || Tolerance::from(&config::Compare::default());
        let tolerance = self.tolerances.get(service).copied();
        join.add(&self.by_id, record, tolerance.unwrap_or_else(usual));
    }

    /// What was found for a service.
    pub(super) fn take(&mut self, join: Join) -> Accuracy {
        self.used.extend(join.ids());
        let mut joined = Joined::default();
        join.finish(&self.by_id, &mut joined);
        let mut slices: Vec<RightSlice> = joined
            .slices
            .figures()
            .into_iter()
            .map(|(slice, pairs)| RightSlice {
                slice,
                right: Right::of(pairs),
            })
            .collect();
        let high = |slice: &RightSlice| slice.right.difference.map_or(0.0, |found| found.high);
        slices.sort_by(|a, b| high(a).total_cmp(&high(b)));
        Accuracy {
            all: Right::of(joined.pairs),
            slices,
            unused: joined
                .unused
                .into_iter()
                .map(|(why, count)| (why.label(), count))
                .collect(),
        }
    }

    /// What became of the file.
    pub(super) fn finish(mut self) -> LabelsRead {
        self.read.labels = self.by_id.len() as u64;
        let unseen = self.by_id.len() - self.used.len();
        if unseen > 0 {
            let reason = Unused::NoRecord.label();
            self.read.unused.insert(reason, unseen as u64);
        }
        self.read
    }
}
