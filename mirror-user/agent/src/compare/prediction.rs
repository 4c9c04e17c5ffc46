//! What a model said: the values that the prediction pointer names, kept small.

use mirror_wire::body::json::{Node, Redacted};
use mirror_wire::body::pointer::Pointers;
use serde::Serialize;
use serde_json::Value;

use super::distribution::{Label, is_one};

/// Numbers that a prediction is written with; with more it is summarised.
const MAX_NUMBERS: usize = 64;

/// Bytes of JSON that a prediction is written with; with more it is summarised.
const MAX_BYTES: usize = 1024;

/// Characters of a string that are kept.
const MAX_CHARACTERS: usize = 256;

/// A prediction of too many numbers to be written down.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// How many numbers.
    pub length: usize,
    /// Index of the first largest one.
    pub argmax: usize,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Their mean.
    pub mean: f64,
}

impl Summary {
    /// The label, where the numbers are one class distribution.
    pub(crate) fn class(&self) -> Option<Label> {
        let sum = self.mean * self.length as f64;
        (self.min >= 0.0 && is_one(sum)).then_some(Label {
            index: self.argmax,
            probability: self.max,
        })
    }

    fn of(numbers: &[f64]) -> Option<Self> {
        let mut summary = Self {
            length: numbers.len(),
            argmax: 0,
            min: f64::INFINITY,
            max: f64::NEG_INFINITY,
            mean: numbers.iter().sum::<f64>() / numbers.len() as f64,
        };
        for (index, &number) in numbers.iter().enumerate() {
            summary.min = summary.min.min(number);
            if number > summary.max {
                summary.argmax = index;
                summary.max = number;
            }
        }
        (!numbers.is_empty() && summary.mean.is_finite()).then_some(summary)
    }
}

/// The values in `answer` that `pointers` names: the value itself, or all of them in an array where
/// the pointer has a `*`; nothing when there are none. What `redact` names is left out.
pub(super) fn extract(answer: &Node<'_>, pointers: &Pointers, redact: &Pointers) -> Option<Value> {
    let mut found = Vec::new();
    collect(answer, Some(pointers), Some(redact), &mut found);
    let numbers = numbers(&found);
    if let Some(numbers) = &numbers
        && numbers.len() > MAX_NUMBERS
    {
        return Summary::of(numbers).and_then(|summary| serde_json::to_value(summary).ok());
    }
    let leaves: u64 = found.iter().map(|value| value.node.leaves()).sum();
    let single = !pointers.has_wildcard();
    if leaves > (MAX_BYTES / 2) as u64 {
        return Some(length_of(&found, single));
    }
    let values: Option<Vec<Value>> = found.iter().map(|v| serde_json::to_value(v).ok()).collect();
    let value = if single {
        values?.pop()?
    } else {
        Some(Value::Array(values?)).filter(|_| !found.is_empty())?
    };
    Some(bounded(value, numbers.as_deref()).unwrap_or_else(|| length_of(&found, single)))
}

fn collect<'n, 'a>(
    node: &'n Node<'a>,
    pointers: Option<&Pointers>,
    redact: Option<&'n Pointers>,
    found: &mut Vec<Redacted<'n, 'a>>,
) {
    let Some(pointers) = pointers else { return };
    if pointers.is_named() || redact.is_some_and(Pointers::is_named) {
        found.push(Redacted { node, redact });
        return;
    }
    match node {
        Node::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                let redact = redact.and_then(|redact| redact.index(index));
                collect(item, pointers.index(index), redact, found);
            }
        }
        Node::Object(members) => {
            for (key, member) in members {
                let redact = redact.and_then(|redact| redact.key(key));
                collect(member, pointers.key(key), redact, found);
            }
        }
        _ => {}
    }
}

/// All leaves in their order, where every one is a number and none is redacted.
fn numbers(found: &[Redacted<'_, '_>]) -> Option<Vec<f64>> {
    fn push(value: Redacted<'_, '_>, numbers: &mut Vec<f64>) -> Option<()> {
        if value.redact.is_some_and(Pointers::is_named) {
            return None;
        }
        match value.node {
            Node::Number(number) => numbers.push(number.as_f64()),
            Node::Array(items) => {
                for (index, node) in items.iter().enumerate() {
                    let redact = value.redact.and_then(|redact| redact.index(index));
                    push(Redacted { node, redact }, numbers)?;
                }
            }
            _ => return None,
        }
        Some(())
    }
    let mut numbers = Vec::new();
    found
        .iter()
        .try_for_each(|value| push(*value, &mut numbers))?;
    (!numbers.is_empty()).then_some(numbers)
}

/// `value` where it is short enough, cut or summarised where that is possible.
fn bounded(value: Value, numbers: Option<&[f64]>) -> Option<Value> {
    if let Value::String(text) = &value {
        return Some(match text.char_indices().nth(MAX_CHARACTERS) {
            Some((end, _)) => Value::String(format!("{}…", &text[..end])),
            None => value,
        });
    }
    if is_short(&value) || serde_json::to_string(&value).ok()?.len() <= MAX_BYTES {
        return Some(value);
    }
    let summary = Summary::of(numbers?)?;
    serde_json::to_value(summary).ok()
}

/// Whether it is a plain list of numbers, short however they are written: each takes up to 24
/// characters.
fn is_short(value: &Value) -> bool {
    let Value::Array(items) = value else {
        return false;
    };
    items.len() <= MAX_BYTES / 32 && items.iter().all(Value::is_number)
}

/// All that is left of a prediction that is too large and not of numbers.
fn length_of(found: &[Redacted<'_, '_>], single: bool) -> Value {
    let length = match found {
        [only] if single => match only.node {
            Node::Array(items) => items.len(),
            Node::Object(members) => members.len(),
            _ => 1,
        },
        found => found.len(),
    };
    serde_json::json!({ "length": length })
}
