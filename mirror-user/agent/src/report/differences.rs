//! The most frequent differences: those that are alike but for their values, counted together.

use serde::Serialize;

use crate::frequent::Frequent;
use crate::record::line::Record;

/// Kinds of differences that are told apart.
const MAX_KINDS: usize = 1000;

/// Differences of one kind.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The words with numbers as `#` and quoted text as `"…"`.
    pub kind: String,
    /// How many exchanges.
    pub count: u64,
    /// At most so many more there are, where more kinds came than are told apart.
    #[serde(skip_serializing_if = "is_zero")]
    pub missed: u64,
    /// The first of them.
    pub example: Example,
}

/// One exchange that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Example {
    /// The exchange.
    pub id: uuid::Uuid,
    /// When it was seen.
    pub time: jiff::Timestamp,
    /// The difference in full.
    pub difference: String,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Differences as they come.
#[derive(Clone, Debug)]
pub(super) struct Differences {
    kinds: Frequent<String, Example>,
    all: u64,
}

impl Default for Differences {
    fn default() -> Self {
        Self {
            kinds: Frequent::new(MAX_KINDS),
            all: 0,
        }
    }
}

impl Differences {
    pub(super) fn add(&mut self, record: &Record<'_>, difference: &str) {
        self.all += 1;
        self.kinds.add(kind(difference).as_str(), || Example {
            id: record.id,
            time: record.time,
            difference: difference.to_owned(),
        });
    }

    /// The most frequent first, and how many were of kinds that made room for others.
    pub(super) fn finish(self) -> (Vec<Difference>, u64) {
        let kinds = self.kinds.finish().into_iter().map(|counted| Difference {
            kind: counted.key,
            count: counted.count,
            missed: counted.missed,
            example: counted.value,
        });
        let kinds: Vec<Difference> = kinds.collect();
        let counted: u64 = kinds.iter().map(|kind| kind.count).sum();
        (kinds, self.all - counted)
    }
}

/// `2 more differences`, with or without their names.
fn is_more(text: &str) -> bool {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let rest = rest.strip_prefix(" more difference");
    let rest = rest.map(|rest| rest.strip_prefix('s').unwrap_or(rest));
    text.starts_with(|c: char| c.is_ascii_digit())
        && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(": "))
}

/// A difference without its values. A status stays as it is: there are few, and they matter.
fn kind(difference: &str) -> String {
    if difference.starts_with("status ") {
        return difference.to_owned();
    }
    let mut ends = difference.rmatch_indices("; ");
    let first = ends
        .find(|&(at, found)| is_more(&difference[at + found.len()..]))
        .map_or(difference, |(at, _)| &difference[..at]);
    let mut kind = String::with_capacity(first.len());
    let mut characters = first.chars().peekable();
    let mut before = ' ';
    while let Some(character) = characters.next() {
        if character == '"' {
            while let Some(inner) = characters.next() {
                match inner {
                    '\\' => _ = characters.next(),
                    '"' => break,
                    _ => {}
                }
            }
            characters.next_if_eq(&'…');
            if kind.ends_with('…') {
                kind.pop();
            }
            kind.push_str("\"…\"");
        } else if character.is_ascii_digit() && !before.is_alphanumeric() {
            // 12, -0.5, 1.5e-9: a sign before it was pushed already.
            while characters
                .next_if(|&c| c.is_ascii_digit() || matches!(c, '.' | 'e' | '-'))
                .is_some()
            {}
            if kind.ends_with('-') {
                kind.pop();
            }
            kind.push('#');
        } else {
            kind.push(character);
        }
        before = character;
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(difference: &str, expected: &str) {
        assert_eq!(kind(difference), expected);
    }

    #[test]
    fn values_make_no_new_kind() {
        check("status 200 became 503", "status 200 became 503");
        check(
            "/outputs/0/data: label 3 became 5 (probability 0.61, now 5.8e-1); 2 more differences",
            "/outputs/#/data: label # became # (probability #, now #)",
        );
        check("/a: 1 became 2; 1 more difference", "/a: # became #");
        check(
            "/a: 1 became 2; 5 more differences: /b; c, /d, …",
            "/a: # became #",
        );
        check(
            "/a1/x2: -1.5 became 2e-9 (by 3)",
            "/a1/x2: # became # (by #)",
        );
        check(
            r#"/name: …"a \"b\" 3"… became null"#,
            r#"/name: "…" became null"#,
        );
        check(
            "line 3: only in production's answer",
            "line #: only in production's answer",
        );
        check(
            "/d: 2 of 3 numbers differ, most at index 1: 0.6 became 0.7 (by 0.1); the label agrees (1)",
            "/d: # of # numbers differ, most at index #: # became # (by #); the label agrees (#)",
        );
    }
}
