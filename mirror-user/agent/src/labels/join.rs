//! Labels and records brought together by their ids. Pure.

use std::collections::{BTreeMap, HashMap};

use mirror_api::summary::RightPairs;
use mirror_common::tunnel::Arm;

use super::{Id, Label, is_right};
use crate::compare::{OTHER, Tolerance};
use crate::frequent::Frequent;
use crate::record::line::Record;

/// Labels and slices that are told apart: the most frequent.
const MAX_KINDS: usize = 1000;

/// Why a label says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unused {
    /// Its line is not one of a label.
    BadLine,
    /// The same id has the same label in an earlier line.
    Repeated,
    /// The same id has another label in an earlier line, which counts.
    Contradicting,
    /// No record has its id.
    NoRecord,
    /// Several records have its id.
    Ambiguous,
    /// A version has not answered, or its answer has no prediction.
    NoPrediction,
    /// A prediction and the label are of different kinds, see [`is_right`].
    NotComparable,
    /// The agent's memory is used up.
    Memory,
}

impl Unused {
    /// Every reason.
    pub const ALL: &'static [Self] = &[
        Self::BadLine,
        Self::Repeated,
        Self::Contradicting,
        Self::NoRecord,
        Self::Ambiguous,
        Self::NoPrediction,
        Self::NotComparable,
        Self::Memory,
    ];

    /// The word for it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadLine => "bad_line",
            Self::Repeated => "repeated",
            Self::Contradicting => "contradicting",
            Self::NoRecord => "no_record",
            Self::Ambiguous => "ambiguous",
            Self::NoPrediction => "no_prediction",
            Self::NotComparable => "not_comparable",
            Self::Memory => "memory",
        }
    }
}

/// What a label and its record come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// Production and the shadow, right or not, in the slice of that number.
    Right([bool; 2], Option<u64>),
    Unused(Unused),
}

/// Records of one service, as they come.
#[derive(Clone, Debug)]
pub struct Join {
    found: HashMap<Id, Found>,
    /// Each has a number that no other one had, nor one that made room for it.
    slices: Frequent<String, u64>,
    last_slice: u64,
}

impl Default for Join {
    fn default() -> Self {
        Self {
            found: HashMap::new(),
            slices: Frequent::new(MAX_KINDS),
            last_slice: 0,
        }
    }
}

/// What the labels of one service say.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    /// By who was right.
    pub pairs: RightPairs,
    /// The same by label.
    pub by_label: Kinds,
    /// The same by the request's slice.
    pub slices: Kinds,
    /// Labels that have a record, and say nothing.
    pub unused: BTreeMap<Unused, u64>,
}

/// Who was right, by kinds: the most frequent thousand, and what made room for them as [`OTHER`].
#[derive(Clone, Debug)]
pub struct Kinds {
    frequent: Frequent<String, RightPairs>,
    all: RightPairs,
}

impl Default for Kinds {
    fn default() -> Self {
        Self {
            frequent: Frequent::new(MAX_KINDS),
            all: RightPairs::default(),
        }
    }
}

impl Kinds {
    fn add(&mut self, name: &str, right: [bool; 2]) {
        self.all.count_one(right);
        let pairs = self.frequent.add(name, RightPairs::default);
        pairs.count_one(right);
    }

    /// Each with its figures: together they are all that were added.
    pub fn figures(&self) -> BTreeMap<String, RightPairs> {
        let kept = self.frequent.iter();
        let mut figures: BTreeMap<_, _> =
            kept.map(|(name, pairs)| (name.clone(), *pairs)).collect();
        let known = figures.values().copied().sum();
        let rest = self.all - known;
        if rest.count() > 0 {
            let other = figures.entry(OTHER.to_owned()).or_default();
            *other = *other + rest;
        }
        figures
    }
}

impl Join {
    /// Takes in a record. Of the ids that it has, the client's request id comes first, then the
    /// trace's, then ours. The canary's answers are of another version.
    pub fn add(&mut self, labels: &HashMap<Id, Label>, record: &Record<'_>, tolerance: Tolerance) {
        if record.arm != Arm::Stable.label() {
            return;
        }
        let Some((id, label)) = find(labels, record) else {
            return;
        };
        let found = match self.found.contains_key(&id) {
            true => Found::Unused(Unused::Ambiguous),
            false => self.judge(label, record, tolerance),
        };
        self.found.insert(id, found);
    }

    fn judge(&mut self, label: &Label, record: &Record<'_>, tolerance: Tolerance) -> Found {
        let predictions = [&record.production.prediction, &record.shadow.prediction];
        let [Some(production), Some(shadow)] = predictions else {
            return Found::Unused(Unused::NoPrediction);
        };
        let right = |prediction| is_right(prediction, label, tolerance);
        match (right(production), right(shadow)) {
            (Some(production), Some(shadow)) => {
                let slice = record.slice.as_deref().map(|slice| self.slice(slice));
                Found::Right([production, shadow], slice)
            }
            _ => Found::Unused(Unused::NotComparable),
        }
    }

    fn slice(&mut self, name: &str) -> u64 {
        let last = &mut self.last_slice;
        *self.slices.add(name, || {
            *last += 1;
            *last
        })
    }

    /// Labels that a record was found for.
    pub fn ids(&self) -> impl Iterator<Item = Id> {
        self.found.keys().copied()
    }

    /// Adds what was found to what was found before.
    pub fn finish(self, labels: &HashMap<Id, Label>, joined: &mut Joined) {
        let names = self.slices.iter();
        let names: HashMap<u64, &str> = names.map(|(name, number)| (*number, &**name)).collect();
        for (id, found) in &self.found {
            match *found {
                Found::Unused(why) => joined.unused(why, 1),
                Found::Right(right, slice) => {
                    joined.pairs.count_one(right);
                    if let Some(label) = labels.get(id) {
                        joined.by_label.add(label.as_str(), right);
                    }
                    if let Some(slice) = slice {
                        let name = names.get(&slice).copied().unwrap_or(OTHER);
                        joined.slices.add(name, right);
                    }
                }
            }
        }
    }
}

impl Joined {
    /// So many labels say nothing.
    pub fn unused(&mut self, why: Unused, count: u64) {
        if count > 0 {
            *self.unused.entry(why).or_default() += count;
        }
    }
}

fn find<'l>(labels: &'l HashMap<Id, Label>, record: &Record<'_>) -> Option<(Id, &'l Label)> {
    let look = |text: &str| {
        let id = Id::of(text);
        Some((id, labels.get(&id)?))
    };
    let named = [&record.request_id, &record.trace_id].into_iter().flatten();
    named.into_iter().find_map(|text| look(text)).or_else(|| {
        look(
            record
                .id
                .hyphenated()
                .encode_lower(&mut uuid::Uuid::encode_buffer()),
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn labels(labels: &[(&str, &str)]) -> HashMap<Id, Label> {
        let pair = |(id, label): &(&str, &str)| (Id::of(id), Label::new(label).unwrap());
        labels.iter().map(pair).collect()
    }

    /// A record whose predictions are the labels 1 and 1.
    fn record(change: impl FnOnce(&mut Value)) -> String {
        let leg = |version: &str| json!({"version": version, "status": 200, "prediction": [1]});
        let mut record = json!({
            "id": "01a2017d-5f08-7315-a307-ff65ea446fa4",
            "time": "2026-11-22T03:00:00Z", "service": "digits", "client": "10.0.0.7:41000",
            "method": "POST", "path": "/", "arm": "stable", "slice": "a",
            "request": {"bytes": 1, "sha256": "00"},
            "production": leg("v12"), "shadow": leg("v13"),
            "verdict": "match", "score": 1.0,
        });
        change(&mut record);
        record.to_string()
    }

    fn join(labels: &HashMap<Id, Label>, records: &[String]) -> Joined {
        let mut join = Join::default();
        for record in records {
            let record = serde_json::from_str(record).unwrap();
            join.add(labels, &record, Tolerance::default());
        }
        let mut joined = Joined::default();
        join.finish(labels, &mut joined);
        joined
    }

    /// Four figures: both right, production alone, the shadow alone, neither.
    fn pairs([both_right, production_only, shadow_only, neither]: [u64; 4]) -> RightPairs {
        RightPairs {
            both_right,
            production_only,
            shadow_only,
            neither,
        }
    }

    #[test]
    fn who_was_right_is_counted_in_pairs() {
        let said = |id: &str, slice: &str, production: u8, shadow: u8| {
            record(|record| {
                record["request_id"] = id.into();
                record["slice"] = slice.into();
                record["production"]["prediction"] = production.into();
                record["shadow"]["prediction"] = shadow.into();
            })
        };
        let labels = labels(&[("a", "1"), ("b", "1"), ("c", "1"), ("d", "2"), ("e", "1")]);
        let records = [
            said("a", "x", 1, 1),
            said("b", "x", 1, 2),
            said("c", "y", 2, 1),
            said("d", "y", 1, 1),
            said("none", "y", 1, 1),
        ];
        let joined = join(&labels, &records);
        assert_eq!(joined.pairs, pairs([1, 1, 1, 1]));
        let by = |list: &[(&str, [u64; 4])]| -> BTreeMap<String, RightPairs> {
            let pair = |(name, figures): &(&str, [u64; 4])| ((*name).to_owned(), pairs(*figures));
            list.iter().map(pair).collect()
        };
        let expected = by(&[("1", [1, 1, 1, 0]), ("2", [0, 0, 0, 1])]);
        assert_eq!(joined.by_label.figures(), expected);
        let expected = by(&[("x", [1, 1, 0, 0]), ("y", [0, 0, 1, 1])]);
        assert_eq!(joined.slices.figures(), expected);
        assert_eq!(joined.unused, BTreeMap::new());
    }

    /// Ten thousand slices and labels of a request each come first, then one of each that makes up a third.
    #[test]
    fn the_rarest_kinds_give_way() {
        let ids: Vec<String> = (0..15_000).map(|index| format!("id-{index}")).collect();
        let kind = |index: usize| match index {
            0..10_000 => format!("{index}"),
            _ => "77".to_owned(),
        };
        let label = |(index, id): (usize, &String)| (Id::of(id), Label::new(&kind(index)).unwrap());
        let labels = ids.iter().enumerate().map(label).collect();
        let records: Vec<String> = ids
            .iter()
            .enumerate()
            .map(|(index, id)| {
                record(|record| {
                    record["request_id"] = id.as_str().into();
                    record["slice"] = format!("s{}", kind(index)).into();
                })
            })
            .collect();
        let joined = join(&labels, &records);
        let (by_label, slices) = (joined.by_label.figures(), joined.slices.figures());
        let count = |figures: &BTreeMap<String, RightPairs>, name: &str| figures[name].count();
        assert_eq!(count(&slices, "s77"), 5_000);
        // What made room for it and came back in between is among the others.
        assert!(count(&by_label, "77") >= 4_990, "{by_label:?}");
        for figures in [by_label, slices] {
            assert!(figures.len() <= MAX_KINDS + 1);
            assert!(figures[OTHER].count() > 8_000);
            assert_eq!(figures.values().copied().sum::<RightPairs>(), joined.pairs);
        }
    }

    /// One record, and one label for each of its ids that are given.
    #[track_caller]
    fn check(ids: &[&str], records: &[String], expected: Result<[u64; 4], Unused>) {
        let labels: Vec<(&str, &str)> = ids.iter().map(|id| (*id, "1")).collect();
        let joined = join(&self::labels(&labels), records);
        let (expected, unused) = match expected {
            Ok(expected) => (expected, None),
            Err(why) => ([0; 4], Some((why, 1))),
        };
        assert_eq!(joined.pairs, pairs(expected), "{records:?}");
        assert_eq!(joined.unused, unused.into_iter().collect(), "{records:?}");
    }

    #[test]
    fn any_of_the_ids_will_do() {
        let named = || {
            record(|record| {
                record["request_id"] = "r".into();
                record["trace_id"] = "t".into();
            })
        };
        let one = Ok([1, 0, 0, 0]);
        check(&["r"], &[named()], one);
        check(&["t"], &[named()], one);
        check(&["01a2017d-5f08-7315-a307-ff65ea446fa4"], &[named()], one);
        check(&["r", "t"], &[named()], one);
        check(&["x"], &[named()], Ok([0; 4]));
        check(&["r"], &[named(), record(|_| {})], one);
    }

    #[test]
    fn what_says_nothing_has_its_reason() {
        let changed = |pointer: &str, value: Value| {
            record(|record| {
                record["request_id"] = "r".into();
                *record.pointer_mut(pointer).unwrap() = value;
            })
        };
        let plain = || changed("/arm", "stable".into());
        check(&["r"], &[plain(), plain()], Err(Unused::Ambiguous));
        check(&["r"], &[plain(), plain(), plain()], Err(Unused::Ambiguous));
        let failed = json!({"version": "v13", "error": "timeout"});
        check(
            &["r"],
            &[changed("/shadow", failed)],
            Err(Unused::NoPrediction),
        );
        let silent = changed("/production/prediction", Value::Null);
        check(&["r"], &[silent], Err(Unused::NoPrediction));
        let batch = changed("/shadow/prediction", json!([1, 2]));
        check(&["r"], &[batch], Err(Unused::NotComparable));
        check(&["r"], &[changed("/arm", "canary".into())], Ok([0; 4]));
        check(
            &["r"],
            &[changed("/arm", "canary".into()), plain()],
            Ok([1, 0, 0, 0]),
        );
    }
}
