//! Where two JSON answers differ: what a report proposes to ignore is told from it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use mirror_wire::body::json::Node;

/// Places of one exchange that are noted.
const MAX_PLACES: usize = 16;

/// Differences of one exchange that are looked at.
const MAX_LOOKED_AT: u64 = 256;

/// Characters of the longest text that names something, rather than says it.
const TOKEN: usize = 128;

/// Characters of the longest written time.
const MOMENT: usize = 40;

/// What two values that differ are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Values {
    /// Two short texts without white space, such as ids, or two written times.
    Token,
    /// Two other texts.
    Text,
    /// Two integers.
    Integer,
    /// Two numbers, or arrays of them.
    Number,
    /// Only one answer has a value there.
    Missing,
    /// Two arrays of different lengths.
    Length,
    /// Values of two kinds.
    Kinds,
    /// What the model said.
    Prediction,
    /// What is not shown.
    Redacted,
}

impl Values {
    /// What differs in `a` and `b`.
    pub(super) fn of(a: &Node<'_>, b: &Node<'_>) -> Self {
        match (a, b) {
            (Node::Number(a), Node::Number(b)) if a.is_integer() && b.is_integer() => Self::Integer,
            (Node::Number(_), Node::Number(_)) => Self::Number,
            (Node::Text(a), Node::Text(b)) if is_token(a) && is_token(b) => Self::Token,
            (Node::Text(_), Node::Text(_)) => Self::Text,
            _ => Self::Kinds,
        }
    }

    /// Whether such values may be an id, a time or a version: nothing that a model was asked for.
    pub fn is_incidental(self) -> bool {
        matches!(self, Self::Token | Self::Integer | Self::Missing)
    }
}

fn is_token(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    let is_moment = text.len() <= MOMENT && digits >= 4;
    text.len() <= TOKEN && (is_moment || !text.contains(char::is_whitespace))
}

/// The places where two answers differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// JSON pointers with `*` for every index, and what differs there.
    pub found: BTreeMap<String, Values>,
    /// Whether there are more than these.
    pub more: bool,
    looked_at: u64,
}

impl Places {
    /// Whether one more difference is looked at.
    pub(super) fn wants(&mut self) -> bool {
        self.looked_at += 1;
        self.more |= self.looked_at > MAX_LOOKED_AT;
        !self.more
    }

    pub(super) fn add(&mut self, place: String, values: Values) {
        if let Some(known) = self.found.get_mut(&place) {
            // What is incidental at one index must be so at all.
            if known.is_incidental() {
                *known = values;
            }
        } else if self.found.len() < MAX_PLACES {
            self.found.insert(place, values);
        } else {
            self.more = true;
        }
    }
}
