//! A label, and whether a prediction is right by it.

use mirror_wire::body::json::Number;
use serde::Deserialize as _;
use serde_json::Value;

use crate::compare::distribution::labels;
use crate::compare::{Summary, Tolerance};

/// From this probability on a single one says yes.
const YES: f64 = 0.5;

/// What was right for one request: a word, a number, or yes and no.
#[derive(Clone, Debug, PartialEq)]
pub struct Label {
    text: Box<str>,
    number: Option<Number>,
}

impl Label {
    /// A label as it is written; nothing of white space alone.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        (!text.is_empty()).then(|| Self {
            text: text.into(),
            number: Number::parse(text),
        })
    }

    /// A label in JSON: a string, a number, `true` or `false`, or an array of one of them.
    pub fn of_json(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::new(text),
            Value::Number(_) | Value::Bool(_) => Self::new(&value.to_string()),
            Value::Array(items) => match items.as_slice() {
                [only] => Self::of_json(only),
                _ => None,
            },
            Value::Null | Value::Object(_) => None,
        }
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The answer to a question, where it may be one: `true`, `false`, `1` or `0`.
    fn truth(&self) -> Option<bool> {
        match &*self.text {
            "1" => Some(true),
            "0" => Some(false),
            word => truth(word),
        }
    }

    fn number(&self) -> Option<Number> {
        let truth = || Some(Number::Natural(u64::from(self.truth()?)));
        self.number.or_else(truth)
    }

    /// Whether the label names class `index` of `classes`, where it names one.
    fn names(&self, index: usize, classes: usize) -> Option<bool> {
        match self.number()? {
            Number::Natural(named) if named < classes as u64 => Some(named == index as u64),
            Number::Float(named)
                if named.fract() == 0.0 && (0.0..classes as f64).contains(&named) =>
            {
                Some(named == index as f64)
            }
            _ => None,
        }
    }
}

fn truth(word: &str) -> Option<bool> {
    let is = |other: &str| word.eq_ignore_ascii_case(other);
    is("true").then_some(true).or(is("false").then_some(false))
}

/// Whether `prediction`, as a record has it, is right by `label`; nothing where they cannot be held
/// against each other.
///
/// | prediction | is right when |
/// |---|---|
/// | a string | it is the label, or both are numbers that are equal |
/// | a number | the label is a number that is equal within the tolerance |
/// | a fraction between 0 and 1, the label `1`, `0`, `true` or `false` | it is at least 0.5, or below |
/// | `true` or `false` | the label is that, or `1` or `0` |
/// | scores of classes, probabilities or others | the label is the index, from 0, of the largest |
/// | an array of one of these | that one is |
/// | anything else, a batch above all | never: one label does not say which of them is meant |
pub fn is_right(prediction: &Value, label: &Label, tolerance: Tolerance) -> Option<bool> {
    match prediction {
        Value::String(text) => Some(is_text(text.trim(), label, tolerance)),
        Value::Bool(said) => Some(*said == label.truth()?),
        Value::Number(number) => is_number(Number::parse(&number.to_string())?, label, tolerance),
        Value::Array(items) => match items.as_slice() {
            [only] => is_right(only, label, tolerance),
            several => {
                let numbers: Option<Vec<f64>> = several.iter().map(Value::as_f64).collect();
                let (index, classes) = best(&numbers?)?;
                label.names(index, classes)
            }
        },
        Value::Object(_) => {
            let (index, classes) = best_of_many(&Summary::deserialize(prediction).ok()?)?;
            label.names(index, classes)
        }
        Value::Null => None,
    }
}

fn is_text(said: &str, label: &Label, tolerance: Tolerance) -> bool {
    if said == &*label.text {
        return true;
    }
    let words = truth(said).zip(truth(&label.text));
    let numbers = Number::parse(said).zip(label.number);
    words.is_some_and(|(said, label)| said == label)
        || numbers.is_some_and(|(said, label)| tolerance.equal(said, label))
}

fn is_number(said: Number, label: &Label, tolerance: Tolerance) -> Option<bool> {
    if let (Number::Float(probability), Some(truth)) = (said, label.truth())
        && probability > 0.0
        && probability < 1.0
    {
        return Some((probability >= YES) == truth);
    }
    Some(tolerance.equal(said, label.number()?))
}

/// The class with the largest of the scores, and how many classes there are. Whole numbers alone are
/// a batch of labels or counts rather than scores; so are several distributions.
fn best(scores: &[f64]) -> Option<(usize, usize)> {
    if let Some(rows) = labels(scores) {
        return match rows.as_slice() {
            [only] => Some((only.index, scores.len())),
            _ => None,
        };
    }
    let (index, _) = scores
        .iter()
        .enumerate()
        .reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    let fractions = scores.iter().any(|score| score.fract() != 0.0);
    fractions.then_some((index, scores.len()))
}

/// The same of more scores than a record has room for.
fn best_of_many(scores: &Summary) -> Option<(usize, usize)> {
    if let Some(class) = scores.class() {
        return Some((class.index, scores.length));
    }
    let sum = scores.mean * scores.length as f64;
    let rows = sum.round();
    // Probabilities that sum up to a whole number: one for each row of a batch.
    let batch = scores.min >= 0.0 && scores.max <= 1.0 && rows > 1.0 && (sum - rows).abs() < 1e-3;
    let fractions = [scores.min, scores.max]
        .iter()
        .any(|score| score.fract() != 0.0);
    (fractions && !batch).then_some((scores.argmax, scores.length))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// With a tolerance of 0.1 or a thousandth.
    #[track_caller]
    fn check(prediction: Value, label: &str, expected: Option<bool>) {
        let tolerance = Tolerance {
            absolute: 0.1,
            relative: 1e-3,
        };
        let label = Label::new(label).unwrap();
        let found = is_right(&prediction, &label, tolerance);
        assert_eq!(found, expected, "{prediction} {label:?}");
    }

    #[test]
    fn words_are_compared_as_words() {
        check(json!("positive"), "positive", Some(true));
        check(json!("positive "), " positive", Some(true));
        check(json!("positive"), "Positive", Some(false));
        check(json!(["positive"]), "positive", Some(true));
        check(json!("7"), "7.0", Some(true));
        check(json!("True"), "true", Some(true));
        check(json!("cat"), "7", Some(false));
        check(json!(true), "true", Some(true));
        check(json!(true), "0", Some(false));
        check(json!(true), "cat", None);
    }

    #[test]
    fn numbers_are_equal_within_the_tolerance() {
        check(json!(7), "7", Some(true));
        check(json!([7]), "7", Some(true));
        check(json!([[7]]), "7.0", Some(true));
        check(json!(7), "8", Some(false));
        // Whole numbers by the absolute tolerance alone.
        check(json!(10_000), "10001", Some(false));
        check(json!(10_000.5), "10001", Some(true));
        check(json!(21.56), "21.5", Some(true));
        check(json!(21.5), "22.5", Some(false));
        check(json!(-3), "-3", Some(true));
        check(json!(7), "cat", None);
        check(json!(1), "true", Some(true));
    }

    #[test]
    fn one_probability_answers_yes_or_no() {
        check(json!(0.83), "1", Some(true));
        check(json!([0.83]), "true", Some(true));
        check(json!(0.83), "0", Some(false));
        check(json!(0.5), "True", Some(true));
        check(json!(0.49), "false", Some(true));
        // What is written with a point is measured.
        check(json!(0.83), "1.0", Some(false));
        check(json!(0.95), "1.0", Some(true));
        check(json!(1.5), "1", Some(false));
    }

    #[test]
    fn of_scores_the_largest_names_the_class() {
        check(json!([0.1, 0.9]), "1", Some(true));
        check(json!([[0.1, 0.9]]), "1.0", Some(true));
        check(json!([0.1, 0.9]), "true", Some(true));
        check(json!([0.9, 0.1]), "1", Some(false));
        check(json!([-2.5, 4.25, 1.0]), "1", Some(true));
        check(json!([0.1, 0.9]), "2", None);
        check(json!([0.1, 0.9]), "-1", None);
        check(json!([0.1, 0.9]), "0.5", None);
        check(json!([0.1, 0.9]), "cat", None);
        let many = |min: f64, max: f64, mean: f64| json!({"length": 100, "argmax": 7, "min": min, "max": max, "mean": mean});
        check(many(0.0, 0.9, 0.01), "7", Some(true));
        check(many(-4.5, 9.0, 0.3), "8", Some(false));
        check(many(0.0, 0.9, 0.5), "7", None);
        check(many(0.0, 9.0, 3.0), "7", None);
    }

    #[test]
    fn of_a_batch_nobody_knows_which_is_meant() {
        check(json!([7, 3]), "7", None);
        check(json!([[0.1, 0.9], [0.8, 0.2]]), "1", None);
        check(json!([0.25, 0.75, 1.0, 0.0]), "1", None);
        check(json!(["cat", "dog"]), "cat", None);
        check(json!({"length": 3}), "1", None);
        check(json!(null), "1", None);
        check(json!([]), "1", None);
    }

    #[test]
    fn a_label_is_one_thing() {
        let check = |value: Value, expected: Option<&str>| {
            let label = Label::of_json(&value);
            assert_eq!(label.as_ref().map(Label::as_str), expected, "{value}");
        };
        check(json!("a "), Some("a"));
        check(json!(7), Some("7"));
        check(json!(7.5), Some("7.5"));
        check(json!(false), Some("false"));
        check(json!([3]), Some("3"));
        check(json!([3, 4]), None);
        check(json!({"a": 1}), None);
        check(json!(null), None);
        check(json!(" "), None);
    }
}
