//! What to ignore: places that differ in nearly every answer, and hold nothing that a model was asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use super::statistics::Share;
use crate::compare::{Values, Verdict};
use crate::record::line::Record;

/// Places, and sets of them, that are told apart.
const MAX_KINDS: usize = 1000;

/// Fewer answers do not show what always differs.
const LEAST: u64 = 10;

/// The share of answers from which on a place always differs.
const ALWAYS: f64 = 0.95;

/// Entries for `ignore`, and what they would change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proposal {
    /// Where answers always differ.
    pub places: Vec<Place>,
    /// For `[service.compare]`: `ignore` with these, and with what it has already, where that is known.
    pub ignore: Vec<String>,
    /// The share of comparisons that would agree.
    pub agreement: Option<Share>,
}

/// One place.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Place {
    /// A JSON pointer.
    pub pointer: String,
    /// How many of the answers that both are JSON differ there, 0 to 1.
    pub share: f64,
    /// What differs there.
    pub values: Values,
}

impl Proposal {
    /// The line for the config.
    pub fn line(&self) -> String {
        let entries: Vec<String> = self
            .ignore
            .iter()
            .map(|pointer| toml::Value::from(pointer.as_str()).to_string())
            .collect();
        format!("ignore = [{}]", entries.join(", "))
    }
}

/// Places as they come.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    places: HashMap<String, (u64, Values)>,
    /// Exchanges by the places where they differ, those whose places are all known.
    sets: HashMap<Vec<String>, u64>,
    /// Answers that were compared as JSON, or are equal.
    answers: u64,
}

impl Places {
    pub(super) fn add(&mut self, record: &Record<'_>) {
        match (record.verdict, &record.differing) {
            (Verdict::Match, _) => self.answers += 1,
            (Verdict::Different, Some(differing)) => self.differs(differing, record.differing_more),
            _ => {}
        }
    }

    fn differs(&mut self, differing: &BTreeMap<String, Values>, more: bool) {
        self.answers += 1;
        for (place, &values) in differing {
            if let Some((count, known)) = self.places.get_mut(place) {
                *count += 1;
                if known.is_incidental() {
                    *known = values;
                }
            } else if self.places.len() < MAX_KINDS {
                self.places.insert(place.clone(), (1, values));
            }
        }
        let set: Vec<String> = differing.keys().cloned().collect();
        if !more && (self.sets.len() < MAX_KINDS || self.sets.contains_key(&set)) {
            *self.sets.entry(set).or_default() += 1;
        }
    }

    /// What to ignore besides `ignored`, where `matched` of `judged` comparisons agree by now.
    pub(super) fn finish(
        self,
        ignored: &[String],
        [matched, judged]: [u64; 2],
    ) -> Option<Proposal> {
        if self.answers < LEAST {
            return None;
        }
        let share = |count: u64| count as f64 / self.answers as f64;
        let mut places: Vec<Place> = self
            .places
            .into_iter()
            .filter(|(_, (count, values))| values.is_incidental() && share(*count) >= ALWAYS)
            .map(|(pointer, (count, values))| Place {
                share: share(count),
                pointer,
                values,
            })
            .collect();
        places.sort_by(|a, b| a.pointer.cmp(&b.pointer));
        let known: BTreeSet<&str> = places.iter().map(|place| &*place.pointer).collect();
        let agree: u64 = self
            .sets
            .iter()
            .filter(|(set, _)| set.iter().all(|place| known.contains(&**place)))
            .map(|(_, count)| count)
            .sum();
        let fresh = known.iter().map(|place| (*place).to_owned());
        let ignore = ignored.iter().cloned().chain(fresh).collect();
        (!places.is_empty()).then(|| Proposal {
            agreement: Share::of(matched + agree, judged),
            ignore,
            places,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(places: &mut Places, differing: &[(&str, Values)], more: bool) {
        let differing = differing.iter().map(|(p, v)| ((*p).to_owned(), *v));
        places.differs(&differing.collect(), more);
    }

    #[test]
    fn what_always_differs_is_proposed() {
        let mut places = Places::default();
        let id = ("/id", Values::Token);
        let created = ("/a\"b/*/created", Values::Integer);
        for index in 0..100 {
            let label = ("/label", Values::Token);
            let text = ("/text", Values::Text);
            match index {
                0 => add(&mut places, &[id], false),
                1..10 => add(&mut places, &[id, created, label], false),
                10 => add(&mut places, &[id, created], true),
                11..15 => add(&mut places, &[id, created, text], false),
                _ => add(&mut places, &[id, created], false),
            }
        }
        let found = places.finish(&["/old".to_owned()], [0, 200]).unwrap();
        let pointers: Vec<_> = found
            .places
            .iter()
            .map(|p| (&*p.pointer, p.share))
            .collect();
        assert_eq!(pointers, [("/a\"b/*/created", 0.99), ("/id", 1.0)]);
        // Of 100, but for nine labels, one with more, four texts.
        assert_eq!(found.agreement.unwrap().share, 86.0 / 200.0);
        let line = found.line();
        let read: toml::Table = line.parse().unwrap();
        let written: Vec<_> = read["ignore"].as_array().unwrap().iter().collect();
        assert_eq!(written.len(), 3, "{line}");
        assert_eq!(read["ignore"][1].as_str(), Some("/a\"b/*/created"));
    }

    #[test]
    fn what_a_model_says_is_not() {
        for values in [
            Values::Text,
            Values::Number,
            Values::Prediction,
            Values::Kinds,
        ] {
            let mut places = Places::default();
            for _ in 0..100 {
                add(&mut places, &[("/a", values)], false);
            }
            assert_eq!(places.finish(&[], [0, 100]), None);
        }
        // Nor what is only sometimes an id, nor what few answers show.
        let mut places = Places::default();
        for index in 0..100 {
            let values = if index == 50 {
                Values::Text
            } else {
                Values::Token
            };
            add(&mut places, &[("/a", values)], false);
        }
        assert_eq!(places.finish(&[], [0, 100]), None);
        let mut places = Places::default();
        add(&mut places, &[("/id", Values::Token)], false);
        assert_eq!(places.finish(&[], [0, 1]), None);
    }
}
