//! Which records a report is of: those of one version pair, and of a time.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::SystemTime;

use jiff::Timestamp;
use mirror_common::tunnel::Arm;
use serde::{Deserialize, Serialize};

use crate::record::line::Record;
use crate::record::read;

/// Which records are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Of which versions; nothing = of the pair that was seen last.
    pub version: Option<Versions>,
    /// None that were seen before.
    pub since: Option<Timestamp>,
    /// No more than so many, the last ones.
    pub last: Option<u64>,
}

/// The versions that are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The one in production; nothing = any.
    pub production: Option<String>,
    /// The one in the shadow.
    pub shadow: String,
}

impl std::str::FromStr for Versions {
    type Err = std::convert::Infallible;

    /// `SHADOW`, or `PRODUCTION/SHADOW`: names of versions have no slash.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.split_once('/') {
            Some((production, shadow)) => Self {
                production: Some(production.to_owned()),
                shadow: shadow.to_owned(),
            },
            None => Self {
                production: None,
                shadow: text.to_owned(),
            },
        })
    }
}

impl Versions {
    fn are(&self, pair: &Pair) -> bool {
        let production = self.production.as_ref();
        self.shadow == pair.shadow && production.is_none_or(|wanted| *wanted == pair.production)
    }
}

/// Two versions that were compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Pair {
    /// The one in production.
    pub production: String,
    /// The one in the shadow.
    pub shadow: String,
}

/// What there is of a pair.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PairRecords {
    /// The versions.
    #[serde(flatten)]
    pub pair: Pair,
    /// How many records.
    pub compared: u64,
    /// When the first request was seen.
    pub first: Timestamp,
    /// When the last one was.
    pub last: Timestamp,
}

/// What there is in a service's folder, and what of it was chosen.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) pair: Option<PairRecords>,
    /// The others, the last one first.
    pub(super) others: Vec<PairRecords>,
    /// The shadow's version, whose comparisons with the canary are of interest too.
    shadow: Option<String>,
    since: Option<Timestamp>,
    /// Records of the pair that are passed over, and the first that is not looked at.
    skip: u64,
    end: u64,
    /// Those of the pair that have come by.
    passed: u64,
    /// When the first one of the pair that is not passed over was seen.
    begins: Option<Timestamp>,
}

/// As much of a record as it takes to choose.
#[derive(Deserialize)]
struct Head<'a> {
    time: Timestamp,
    #[serde(borrow)]
    arm: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    production: Leg<'a>,
    #[serde(borrow)]
    shadow: Leg<'a>,
}

#[derive(Deserialize)]
struct Leg<'a> {
    #[serde(borrow)]
    version: std::borrow::Cow<'a, str>,
}

impl Wanted {
    /// Files that were written last before this hold nothing that is wanted.
    pub(super) fn files_since(&self) -> Option<SystemTime> {
        Some(self.since?.into())
    }

    /// Looks at all records in a folder.
    pub(super) fn choose(&self, folder: &Path) -> anyhow::Result<Chosen> {
        let mut pairs: BTreeMap<Pair, PairRecords> = BTreeMap::new();
        let mut with_canary: Option<(Timestamp, String)> = None;
        read::lines(folder, self.files_since(), |line| {
            if let Ok(head) = serde_json::from_slice::<Head<'_>>(line)
                && self.since.is_none_or(|since| head.time >= since)
            {
                if head.arm == Arm::Canary.label() {
                    if with_canary
                        .as_ref()
                        .is_none_or(|(last, _)| *last < head.time)
                    {
                        with_canary = Some((head.time, head.shadow.version.into_owned()));
                    }
                } else {
                    add(&mut pairs, &head);
                }
            }
            ControlFlow::Continue(())
        })?;
        let mut pairs: Vec<PairRecords> = pairs.into_values().collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse(pair.last));
        let wanted = |found: &PairRecords| {
            let version = self.version.as_ref();
            version.is_none_or(|wanted| wanted.are(&found.pair))
        };
        let pair = pairs.iter().position(wanted).map(|at| pairs.remove(at));
        let end = pair.as_ref().map_or(0, |pair| pair.compared);
        let shadow = match (&pair, &self.version) {
            (Some(found), _) => Some(found.pair.shadow.clone()),
            (None, Some(wanted)) => Some(wanted.shadow.clone()),
            (None, None) => with_canary.map(|(_, version)| version),
        };
        Ok(Chosen {
            skip: self.last.map_or(0, |last| end.saturating_sub(last)),
            end,
            passed: 0,
            begins: None,
            since: self.since,
            shadow,
            pair,
            others: pairs,
        })
    }
}

fn add(pairs: &mut BTreeMap<Pair, PairRecords>, head: &Head<'_>) {
    let pair = Pair {
        production: head.production.version.as_ref().to_owned(),
        shadow: head.shadow.version.as_ref().to_owned(),
    };
    let known = pairs.entry(pair.clone()).or_insert(PairRecords {
        pair,
        compared: 0,
        first: head.time,
        last: head.time,
    });
    known.compared += 1;
    known.first = known.first.min(head.time);
    known.last = known.last.max(head.time);
}

impl Chosen {
    /// Whether a record is part of the report. Those of the canary are from the time on when the pair's
    /// begin: an earlier pair may have had the same shadow.
    pub(super) fn takes(&mut self, record: &Record<'_>) -> bool {
        if self.since.is_some_and(|since| record.time < since) {
            return false;
        }
        let shadow = self.shadow.as_deref() == Some(&*record.shadow.version);
        if record.arm == Arm::Canary.label() {
            let whole = self.pair.as_ref().filter(|_| self.skip == 0);
            let begins = whole.map(|pair| pair.first).or(self.begins);
            let is_in = match begins {
                Some(begins) => record.time >= begins,
                None => self.pair.is_none(),
            };
            return shadow && is_in;
        }
        let Some(PairRecords { pair, .. }) = &self.pair else {
            return false;
        };
        if !shadow || pair.production != record.production.version {
            return false;
        }
        let index = self.passed;
        self.passed += 1;
        let taken = (self.skip..self.end).contains(&index);
        if taken {
            self.begins.get_or_insert(record.time);
        }
        taken
    }
}
