//! One service's records, added up.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use mirror_api::summary::NoisePairs;
use mirror_common::tunnel::Arm;
use serde::Serialize;

use super::differences::{self, Differences};
use super::labels::Accuracy;
use super::prediction::{Gathered, Predictions};
use super::proposal::{Places, Proposal};
use super::recompare::Recompared;
use super::selection::PairRecords;
use super::statistics::{Difference, Durations, Quantiles, Share};
use crate::compare::{OTHER, Verdict};
use crate::frequent::Frequent;
use crate::noise;
use crate::record::LedgerFile;
use crate::record::line::{Answer, Record};

/// Slices that are told apart.
const MAX_SLICES: usize = 1000;

/// What the records of one service say.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Service {
    /// The service's name.
    pub service: String,
    /// The versions that it is of, with all that was recorded of them.
    pub pair: Option<PairRecords>,
    /// Other pairs that there are records of, which are not in here; the last one first.
    pub other_pairs: Vec<PairRecords>,
    /// Records from before this are not in here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// At most so many records were wanted, the last ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_only: Option<u64>,
    /// How many could be compared once more, where that was asked for; the others are not in here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompared: Option<Recompared>,
    /// Of which other versions the agent's present ledger is, so that nothing is said of fidelity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger_of_others: Option<String>,
    /// Versions that answered in production.
    pub production_versions: BTreeSet<String>,
    /// Versions that answered in the shadow.
    pub shadow_versions: BTreeSet<String>,
    /// When the first recorded request was seen.
    pub first: Option<Timestamp>,
    /// When the last one was.
    pub last: Option<Timestamp>,
    /// Records: requests that were compared.
    pub compared: u64,
    /// What the comparisons came to.
    pub verdicts: Verdicts,
    /// Share of comparisons that matched, of those that were [`Verdicts::judged`].
    pub agreement: Option<Share>,
    /// Mean score of the comparisons in which both served.
    pub mean_score: Option<f64>,
    /// Exchanges without an answer of the shadow's, by kind.
    pub errors: BTreeMap<String, u64>,
    /// Production's status by class (`2xx`).
    pub production_status: BTreeMap<String, u64>,
    /// The shadow's.
    pub shadow_status: BTreeMap<String, u64>,
    /// How long both took.
    pub latency: Latency,
    /// How much of what was seen was compared, by the agent's ledger.
    pub fidelity: Option<Fidelity>,
    /// The most frequent differences first, errors included.
    pub differences: Vec<differences::Difference>,
    /// Differences of rare kinds, where more than a thousand came.
    pub other_differences: u64,
    /// What always differs and may be ignored.
    pub proposal: Option<Proposal>,
    /// What both versions said.
    pub predictions: Option<Predictions>,
    /// Agreement by slice, worst first: by the upper end of the interval, so that a slice of few
    /// requests is not taken for a bad one.
    pub slices: Vec<Slice>,
    /// How right both versions were, where there are labels.
    pub labels: Option<Accuracy>,
    /// How often the old version differs from itself, where a control was asked too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise: Option<Noise>,
    /// The same of the new version, where it was asked twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Noise>,
    /// What the canary answered in production; all else is of stable's answers.
    pub canary: Option<Canary>,
    /// Lines that are no records.
    pub unreadable_lines: u64,
}

/// Requests that one version answered twice.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Noise {
    /// By who disagreed.
    pub requests: NoisePairs,
    /// How much more often the versions disagree than the one with itself.
    pub excess: Difference,
}

impl Noise {
    fn of(requests: NoisePairs) -> Option<Self> {
        Some(Self {
            requests,
            excess: Difference::of_noise(&requests)?,
        })
    }
}

/// Comparisons of answers that the canary gave in production.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Canary {
    /// Versions that answered.
    pub versions: BTreeSet<String>,
    /// Records.
    pub compared: u64,
    /// What the comparisons came to.
    pub verdicts: Verdicts,
    /// Share of comparisons that matched.
    pub agreement: Option<Share>,
    /// How long both took.
    pub latency: Latency,
}

/// Comparisons by verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Verdicts {
    /// Equal by the service's rules.
    pub r#match: u64,
    /// Not equal.
    pub different: u64,
    /// Without an answer of the shadow's.
    pub error: u64,
    /// Answered with a status of 400 or more by both.
    pub both_failed: u64,
}

impl Verdicts {
    fn add(&mut self, verdict: Verdict) {
        *match verdict {
            Verdict::Match => &mut self.r#match,
            Verdict::Different => &mut self.different,
            Verdict::Error => &mut self.error,
            Verdict::BothFailed => &mut self.both_failed,
        } += 1;
    }

    /// Comparisons in which both served.
    pub(super) fn served(&self) -> u64 {
        self.r#match + self.different
    }

    /// Comparisons that say whether the versions agree: errors disagree, and where both failed nobody
    /// knows.
    pub(super) fn judged(&self) -> u64 {
        self.served() + self.error
    }
}

/// Latency of both legs, from the last byte of the request on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Production, as the tap saw it.
    pub production: LegLatency,
    /// The shadow, as the agent saw it.
    pub shadow: LegLatency,
}

/// One leg's latency, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LegLatency {
    /// To the first byte of the answer.
    pub first_byte_ms: Option<Quantiles>,
    /// To its last byte.
    pub total_ms: Option<Quantiles>,
}

/// The agent's ledger of requests.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fidelity {
    /// compared / seen.
    pub ratio: f64,
    /// The ledger.
    #[serde(flatten)]
    pub ledger: LedgerFile,
}

/// One slice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Slice {
    /// Its name.
    pub slice: String,
    /// How many of its requests were compared, without those that both failed.
    pub compared: u64,
    /// Share of them that matched.
    pub agreement: Share,
    /// Whether that is less than in the rest, by more than chance.
    pub worse: bool,
}

/// Records as they come.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    compared: u64,
    verdicts: Verdicts,
    score: f64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    production: Leg,
    shadow: Leg,
    errors: BTreeMap<String, u64>,
    differences: Differences,
    places: Places,
    predictions: Gathered,
    slices: Slices,
    noise: NoisePairs,
    repeat: NoisePairs,
    canary: Option<Box<Tally>>,
    unreadable: u64,
}

/// Comparisons and matches by slice, and of all that have one.
#[derive(Clone, Debug)]
struct Slices {
    frequent: Frequent<String, [u64; 2]>,
    all: [u64; 2],
}

impl Default for Slices {
    fn default() -> Self {
        Self {
            frequent: Frequent::new(MAX_SLICES),
            all: [0; 2],
        }
    }
}

fn add(a: [u64; 2], b: [u64; 2]) -> [u64; 2] {
    [a[0] + b[0], a[1] + b[1]]
}

#[derive(Clone, Debug, Default)]
struct Leg {
    versions: BTreeSet<String>,
    status: BTreeMap<String, u64>,
    first_byte: Durations,
    total: Durations,
}

impl Leg {
    fn add(&mut self, answer: &Answer<'_>) {
        if !self.versions.contains(&*answer.version) {
            self.versions.insert(answer.version.to_string());
        }
        if let Some(status) = answer.status {
            *self
                .status
                .entry(format!("{}xx", status / 100))
                .or_default() += 1;
        }
        if let Some(milliseconds) = answer.first_byte_ms {
            self.first_byte.add(milliseconds);
        }
        if let Some(milliseconds) = answer.total_ms {
            self.total.add(milliseconds);
        }
    }

    fn latency(&self) -> LegLatency {
        LegLatency {
            first_byte_ms: self.first_byte.quantiles(),
            total_ms: self.total.quantiles(),
        }
    }
}

impl Tally {
    pub(super) fn unreadable(&mut self) {
        self.unreadable += 1;
    }

    pub(super) fn add(&mut self, record: &Record<'_>) {
        if record.arm == Arm::Canary.label() {
            self.canary.get_or_insert_default().add_answers(record);
        } else {
            self.add_answers(record);
            self.add_contents(record);
        }
    }

    /// How it went.
    fn add_answers(&mut self, record: &Record<'_>) {
        self.compared += 1;
        self.first = self.first.into_iter().chain([record.time]).min();
        self.last = self.last.max(Some(record.time));
        self.production.add(&record.production);
        self.shadow.add(&record.shadow);
        self.verdicts.add(record.verdict);
    }

    /// What was said.
    fn add_contents(&mut self, record: &Record<'_>) {
        if record.verdict == Verdict::Error {
            let kind = record.shadow.error.as_deref().unwrap_or("unknown");
            *self.errors.entry(kind.to_owned()).or_default() += 1;
        } else {
            self.score += record.score;
        }
        if let Some(difference) = &record.difference {
            self.differences.add(record, difference);
        }
        let disagree = |itself: Option<Verdict>| noise::disagree(itself?, record.verdict);
        self.noise.add(disagree(record.control));
        self.repeat.add(disagree(record.repeat));
        self.places.add(record);
        self.predictions.add(
            record.id,
            record.production.prediction.as_deref(),
            record.shadow.prediction.as_deref(),
        );
        if let Some(slice) = &record.slice
            && record.verdict != Verdict::BothFailed
        {
            self.slice(slice, record.verdict);
        }
    }

    fn latency(&self) -> Latency {
        Latency {
            production: self.production.latency(),
            shadow: self.shadow.latency(),
        }
    }

    fn into_canary(self) -> Canary {
        Canary {
            compared: self.compared,
            verdicts: self.verdicts,
            agreement: Share::of(self.verdicts.r#match, self.verdicts.judged()),
            latency: self.latency(),
            versions: self.production.versions,
        }
    }

    fn slice(&mut self, slice: &str, verdict: Verdict) {
        let is_match = u64::from(verdict == Verdict::Match);
        self.slices.all = add(self.slices.all, [1, is_match]);
        let slice = self.slices.frequent.add(slice, || [0; 2]);
        *slice = add(*slice, [1, is_match]);
    }

    pub(super) fn finish(
        self,
        service: String,
        ledger: Option<LedgerFile>,
        ignored: &[String],
    ) -> Service {
        let latency = self.latency();
        let (differences, other_differences) = self.differences.finish();
        let served = self.verdicts.served();
        let matched = [self.verdicts.r#match, self.verdicts.judged()];
        Service {
            service,
            pair: None,
            other_pairs: Vec::new(),
            since: None,
            last_only: None,
            recompared: None,
            ledger_of_others: None,
            proposal: self.places.finish(ignored, matched),
            first: self.first,
            last: self.last,
            compared: self.compared,
            verdicts: self.verdicts,
            agreement: Share::of(self.verdicts.r#match, self.verdicts.judged()),
            mean_score: (served > 0).then(|| self.score / served as f64),
            errors: self.errors,
            latency,
            production_versions: self.production.versions,
            shadow_versions: self.shadow.versions,
            production_status: self.production.status,
            shadow_status: self.shadow.status,
            fidelity: ledger.and_then(|ledger| {
                let meant = ledger.seen - ledger.excluded().min(ledger.seen);
                let faithful = ledger.compared + ledger.not_compared();
                (meant > 0).then(|| Fidelity {
                    ratio: faithful as f64 / meant as f64,
                    ledger,
                })
            }),
            differences,
            other_differences,
            predictions: self.predictions.finish(),
            slices: slices(self.slices, [self.verdicts.r#match, self.verdicts.judged()]),
            labels: None,
            noise: Noise::of(self.noise),
            repeat: Noise::of(self.repeat),
            canary: self.canary.map(|canary| canary.into_canary()),
            unreadable_lines: self.unreadable,
        }
    }
}

/// Slices of so many requests, and how many of them matched; `all` are those that matched, and all. What
/// belongs to slices that made room for more frequent ones is [`OTHER`].
fn slices(counts: Slices, all: [u64; 2]) -> Vec<Slice> {
    let counted = counts.frequent.finish().into_iter();
    let mut counted: Vec<_> = counted.map(|slice| (slice.key, slice.value)).collect();
    let known = counted
        .iter()
        .fold([0; 2], |sum, (_, slice)| add(sum, *slice));
    let rest = [counts.all[0] - known[0], counts.all[1] - known[1]];
    match counted.iter_mut().find(|(name, _)| name == OTHER) {
        Some((_, other)) => *other = add(*other, rest),
        None => counted.push((OTHER.to_owned(), rest)),
    }
    let mut slices: Vec<Slice> = counted
        .into_iter()
        .filter_map(|(slice, [compared, matched])| {
            let agreement = Share::of(matched, compared)?;
            Some(Slice {
                slice,
                compared,
                agreement,
                worse: Share::is_below([matched, compared], [all[0] - matched, all[1] - compared]),
            })
        })
        .collect();
    slices.sort_by(|a, b| {
        let worse = a.agreement.high.total_cmp(&b.agreement.high);
        worse.then_with(|| a.slice.cmp(&b.slice))
    });
    slices
}
