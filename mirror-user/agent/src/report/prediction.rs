//! What both versions said: the distributions of their predictions, and what stands out.

use serde::{Deserialize as _, Serialize};
use serde_json::Value;

use super::statistics::{Sample, quantile};
use crate::compare::Summary;
use crate::compare::distribution::{Label, labels};
use crate::frequent::Frequent;

/// Labels that are told apart.
const MAX_LABELS: usize = 1000;

/// Integers of no more different values than this are taken for labels.
const FEW: usize = 20;

/// Values at each end that are kept with their exchange.
const ENDS: usize = 3;

/// Bars of a histogram.
const BARS: usize = 10;

/// Both versions' predictions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Predictions {
    /// What `numbers` are.
    pub of: Meaning,
    /// How often each label was given, the most frequent first.
    pub labels: Vec<LabelCount>,
    /// Labels that changed from production to shadow, the most frequent first.
    pub changes: Vec<Change>,
    /// The numbers.
    pub numbers: Option<Numbers>,
}

/// What the numbers of a prediction are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Meaning {
    /// The numbers that were predicted; of those too many to be recorded, their mean.
    Values,
    /// The probability of the label, where class distributions were predicted.
    Confidence,
}

/// How often each version gave a label.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LabelCount {
    /// The label: its index in a class distribution, or itself.
    pub label: String,
    /// Production's count.
    pub production: u64,
    /// The shadow's count.
    pub shadow: u64,
}

/// A label that became another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Production's label.
    pub from: String,
    /// The shadow's label.
    pub to: String,
    /// How often.
    pub count: u64,
}

/// Distributions of numbers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Numbers {
    /// Production's.
    pub production: Option<Spread>,
    /// The shadow's.
    pub shadow: Option<Spread>,
    /// Bars of equal width over what both versions said most (0.5 % at each end go to the outer
    /// bars).
    pub histogram: Vec<Bar>,
    /// Unusually high and low ones: further than three interquartile ranges outside the quartiles
    /// (Tukey's far outliers), at most three at each end of each leg.
    pub unusual: Vec<Unusual>,
}

/// A distribution in figures; the quantiles are of a sample of 65,536 values where there are more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// How many numbers.
    pub count: u64,
    /// The smallest.
    pub min: f64,
    /// The 5 % quantile.
    pub p5: f64,
    /// The 25 % quantile.
    pub p25: f64,
    /// The median.
    pub p50: f64,
    /// The 75 % quantile.
    pub p75: f64,
    /// The 95 % quantile.
    pub p95: f64,
    /// The largest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

/// One bar of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bar {
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
    /// Share of production's numbers in it.
    pub production: f64,
    /// Share of the shadow's.
    pub shadow: f64,
}

/// A number that stands out, with what the other leg said in its place.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Unusual {
    /// The exchange.
    pub id: uuid::Uuid,
    /// What production said.
    pub production: Option<f64>,
    /// What the shadow said.
    pub shadow: Option<f64>,
}

/// What one element of a prediction says.
#[derive(Clone, Debug, PartialEq)]
enum Said {
    Label(String),
    Number(f64),
    Integer(f64),
    Class(Label),
}

impl Said {
    fn label(&self) -> Option<String> {
        match self {
            Self::Label(label) => Some(label.clone()),
            Self::Class(label) => Some(label.index.to_string()),
            Self::Integer(number) => Some(number.to_string()),
            Self::Number(_) => None,
        }
    }

    fn number(&self) -> Option<f64> {
        match self {
            Self::Number(number) | Self::Integer(number) => Some(*number),
            Self::Class(label) => Some(label.probability),
            Self::Label(_) => None,
        }
    }
}

/// Reads a prediction: one thing, or several in an array.
fn read(prediction: &Value, said: &mut Vec<Said>) {
    match prediction {
        Value::String(label) => said.push(Said::Label(label.clone())),
        Value::Bool(label) => said.push(Said::Label(label.to_string())),
        Value::Number(number) => {
            let value = number.as_f64().unwrap_or_default();
            said.push(if number.is_f64() {
                Said::Number(value)
            } else {
                Said::Integer(value)
            });
        }
        Value::Array(items) => {
            let numbers: Option<Vec<f64>> = items.iter().map(Value::as_f64).collect();
            match numbers.as_deref().and_then(labels) {
                Some(labels) => said.extend(labels.into_iter().map(Said::Class)),
                None => items.iter().for_each(|item| read(item, said)),
            }
        }
        Value::Object(_) => {
            if let Ok(summary) = Summary::deserialize(prediction) {
                let class = summary.class().map(Said::Class);
                said.push(class.unwrap_or(Said::Number(summary.mean)));
            }
        }
        Value::Null => {}
    }
}

/// Predictions as they come.
#[derive(Clone, Debug)]
pub(super) struct Gathered {
    labels: Frequent<String, [u64; 2]>,
    /// Of both versions, whatever became of their labels.
    labelled: [u64; 2],
    changes: Frequent<(String, String), ()>,
    samples: [Sample; 2],
    ends: [Ends; 2],
    fractions: bool,
    integers: bool,
    classes: bool,
    names: bool,
}

impl Default for Gathered {
    fn default() -> Self {
        Self {
            labels: Frequent::new(MAX_LABELS),
            labelled: [0; 2],
            changes: Frequent::new(MAX_LABELS),
            samples: Default::default(),
            ends: Default::default(),
            fractions: false,
            integers: false,
            classes: false,
            names: false,
        }
    }
}

impl Gathered {
    pub(super) fn add(
        &mut self,
        id: uuid::Uuid,
        production: Option<&Value>,
        shadow: Option<&Value>,
    ) {
        let mut legs = [Vec::new(), Vec::new()];
        for (leg, prediction) in legs.iter_mut().zip([production, shadow]) {
            prediction
                .into_iter()
                .for_each(|prediction| read(prediction, leg));
        }
        for index in 0..legs[0].len().max(legs[1].len()) {
            let pair = [legs[0].get(index), legs[1].get(index)];
            for (leg, said) in pair.iter().enumerate() {
                let Some(said) = said else { continue };
                let other = pair[1 - leg].and_then(Said::number);
                self.said(id, leg, said, other);
            }
            if let [Some(from), Some(to)] = pair.map(|said| said.and_then(Said::label))
                && from != to
            {
                self.changes.add(&(from, to), || ());
            }
        }
    }

    fn said(&mut self, id: uuid::Uuid, leg: usize, said: &Said, other: Option<f64>) {
        match said {
            Said::Label(_) => self.names = true,
            Said::Number(_) => self.fractions = true,
            Said::Integer(_) => self.integers = true,
            Said::Class(..) => self.classes = true,
        }
        if let Some(label) = said.label() {
            self.labels.add(label.as_str(), || [0; 2])[leg] += 1;
            self.labelled[leg] += 1;
        }
        if let Some(number) = said.number() {
            self.samples[leg].add(number);
            self.ends[leg].add(id, number, other);
        }
    }

    /// Nothing where no prediction was recorded.
    pub(super) fn finish(self) -> Option<Predictions> {
        if self.labels.is_empty() && self.samples.iter().all(|sample| sample.count == 0) {
            return None;
        }
        // Whole numbers among fractions are measurements; a few of them alone are labels.
        let named = self.names || self.classes;
        let labelled = named || (!self.fractions && self.labels.len() <= FEW);
        let measured = self.fractions || self.classes || !labelled;
        let numbers = measured.then(|| numbers(&self.samples, &self.ends));
        Some(Predictions {
            of: if self.classes {
                Meaning::Confidence
            } else {
                Meaning::Values
            },
            labels: if labelled {
                label_counts(self.labels, self.labelled)
            } else {
                Vec::new()
            },
            changes: if labelled {
                changes(self.changes)
            } else {
                Vec::new()
            },
            numbers,
        })
    }
}

/// The labels, and what both versions said of those that made room for more frequent ones.
fn label_counts(counts: Frequent<String, [u64; 2]>, all: [u64; 2]) -> Vec<LabelCount> {
    let counted = counts.finish().into_iter();
    let mut labels: Vec<LabelCount> = counted
        .map(|counted| LabelCount {
            label: counted.key,
            production: counted.value[0],
            shadow: counted.value[1],
        })
        .collect();
    let known = labels.iter().fold([0, 0], |[production, shadow], label| {
        [production + label.production, shadow + label.shadow]
    });
    if known != all {
        labels.push(LabelCount {
            label: "(other)".to_owned(),
            production: all[0] - known[0],
            shadow: all[1] - known[1],
        });
    }
    labels
}

fn changes(counts: Frequent<(String, String), ()>) -> Vec<Change> {
    let counted = counts.finish().into_iter();
    counted
        .map(|counted| Change {
            from: counted.key.0,
            to: counted.key.1,
            count: counted.count,
        })
        .collect()
}

fn numbers(samples: &[Sample; 2], ends: &[Ends; 2]) -> Numbers {
    let sorted = [samples[0].sorted(), samples[1].sorted()];
    let spreads = [0, 1].map(|leg| spread(&samples[leg], &sorted[leg]));
    let mut unusual: Vec<Unusual> = Vec::new();
    for (leg, spread) in spreads.iter().enumerate() {
        for found in spread
            .iter()
            .flat_map(|spread| ends[leg].outside(spread, leg))
        {
            if !unusual.contains(&found) {
                unusual.push(found);
            }
        }
    }
    let said = |unusual: &Unusual| unusual.production.or(unusual.shadow).unwrap_or_default();
    unusual.sort_by(|a, b| said(a).total_cmp(&said(b)));
    Numbers {
        production: spreads[0],
        shadow: spreads[1],
        histogram: histogram(&sorted),
        unusual,
    }
}

fn spread(sample: &Sample, sorted: &[f64]) -> Option<Spread> {
    let at = |part| quantile(sorted, part);
    (sample.count > 0).then(|| Spread {
        count: sample.count,
        min: sample.min,
        p5: at(0.05),
        p25: at(0.25),
        p50: at(0.5),
        p75: at(0.75),
        p95: at(0.95),
        max: sample.max,
        mean: sample.mean(),
    })
}

fn histogram(sorted: &[Vec<f64>; 2]) -> Vec<Bar> {
    let legs = || sorted.iter().filter(|values| !values.is_empty());
    let from = legs()
        .map(|values| quantile(values, 0.005))
        .fold(f64::INFINITY, f64::min);
    let to = legs()
        .map(|values| quantile(values, 0.995))
        .fold(f64::NEG_INFINITY, f64::max);
    let width = (to - from) / BARS as f64;
    if !(width.is_finite() && width > 0.0) {
        return Vec::new();
    }
    let bar = |value: f64| (((value - from) / width) as usize).min(BARS - 1);
    let shares = sorted.each_ref().map(|values| {
        let mut counts = [0_u32; BARS];
        for &value in values {
            counts[bar(value)] += 1;
        }
        counts.map(|count| f64::from(count) / values.len().max(1) as f64)
    });
    (0..BARS)
        .map(|index| Bar {
            from: from + index as f64 * width,
            to: from + (index + 1) as f64 * width,
            production: shares[0][index],
            shadow: shares[1][index],
        })
        .collect()
}

/// The lowest and the highest numbers of one leg.
#[derive(Clone, Debug, Default)]
struct Ends {
    low: Vec<(f64, Option<f64>, uuid::Uuid)>,
    high: Vec<(f64, Option<f64>, uuid::Uuid)>,
}

impl Ends {
    fn add(&mut self, id: uuid::Uuid, value: f64, other: Option<f64>) {
        let ends = [(&mut self.low, value, 1.0), (&mut self.high, value, -1.0)];
        for (end, value, sign) in ends {
            let full = end.len() == ENDS;
            let last = end.last().map_or(f64::INFINITY, |(last, ..)| sign * last);
            if full && sign * value >= last {
                continue;
            }
            end.truncate(ENDS - usize::from(full));
            let place = end.partition_point(|(kept, ..)| sign * kept <= sign * value);
            end.insert(place, (value, other, id));
        }
    }

    fn outside(&self, spread: &Spread, leg: usize) -> Vec<Unusual> {
        let fence = 3.0 * (spread.p75 - spread.p25);
        let low = self.low.iter().filter(|(v, ..)| *v < spread.p25 - fence);
        let high = self.high.iter().filter(|(v, ..)| *v > spread.p75 + fence);
        let unusual = low.chain(high).map(|&(value, other, id)| {
            let value = Some(value);
            let (production, shadow) = match leg {
                0 => (value, other),
                _ => (other, value),
            };
            Unusual {
                id,
                production,
                shadow,
            }
        });
        unusual.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn gathered(pairs: &[(Value, Value)]) -> Predictions {
        let mut gathered = Gathered::default();
        for (index, (production, shadow)) in pairs.iter().enumerate() {
            let id = uuid::Uuid::from_u128(index as u128);
            gathered.add(id, Some(production), Some(shadow));
        }
        gathered.finish().unwrap()
    }

    #[test]
    fn class_distributions_give_labels_and_confidence() {
        let summary = json!({"length": 100, "argmax": 7, "min": 0.0, "max": 0.9, "mean": 0.01});
        let predictions = gathered(&[
            (json!([0.25, 0.75]), json!([0.75, 0.25])),
            (
                json!([[0.5, 0.5], [0.25, 0.75]]),
                json!([[0.5, 0.5], [0.25, 0.75]]),
            ),
            (summary.clone(), summary),
        ]);
        assert_eq!(predictions.of, Meaning::Confidence);
        let label = |label: &str, production, shadow| LabelCount {
            label: label.into(),
            production,
            shadow,
        };
        assert_eq!(
            predictions.labels,
            [label("0", 1, 2), label("1", 2, 1), label("7", 1, 1)]
        );
        let change = Change {
            from: "1".into(),
            to: "0".into(),
            count: 1,
        };
        assert_eq!(predictions.changes, [change]);
        assert_eq!(predictions.numbers.unwrap().production.unwrap().max, 0.9);
    }

    #[test]
    fn few_integers_are_labels_and_many_are_numbers() {
        let few = gathered(&[(json!(1), json!(2)), (json!(1), json!(1))]);
        assert_eq!(few.labels.len(), 2);
        assert_eq!(few.numbers, None);
        let pairs: Vec<_> = (0..100).map(|n| (json!(n), json!(n))).collect();
        let many = gathered(&pairs);
        assert!(many.labels.is_empty() && many.changes.is_empty());
        assert_eq!(many.numbers.unwrap().shadow.unwrap().p50, 50.0);
    }

    #[test]
    fn what_stands_out_is_named_with_its_exchange() {
        let mut pairs: Vec<_> = (0..100)
            .map(|n| (json!(f64::from(n % 10)), json!(f64::from(n % 10))))
            .collect();
        pairs.push((json!(5.0), json!(1000.5)));
        let numbers = gathered(&pairs).numbers.unwrap();
        let expected = Unusual {
            id: uuid::Uuid::from_u128(100),
            production: Some(5.0),
            shadow: Some(1000.5),
        };
        assert_eq!(numbers.unusual, [expected]);
        let shares: f64 = numbers.histogram.iter().map(|bar| bar.shadow).sum();
        assert!((shares - 1.0).abs() < 1e-9);
    }
}
