//! The gates that Prometheus answers: values against limits, with no statistics of ours.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Gate, Role, Unit, elapsed};
use crate::plan::MetricGate;
use crate::statistics::Verdict;
use crate::window::Reading;

/// What every metric said last.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Metrics(Vec<Metric>);

#[derive(Clone, Debug, PartialEq)]
struct Metric {
    gate: MetricGate,
    reading: Option<Reading>,
    beyond_since: Option<Timestamp>,
}

impl Metrics {
    pub(super) fn new(gates: &[MetricGate]) -> Self {
        let metric = |gate: &MetricGate| Metric {
            gate: gate.clone(),
            reading: None,
            beyond_since: None,
        };
        Self(gates.iter().map(metric).collect())
    }

    pub(super) fn see(&mut self, readings: &BTreeMap<String, Reading>, now: Timestamp) {
        for metric in &mut self.0 {
            if let Some(reading) = readings.get(&metric.gate.name) {
                let is_beyond = is_beyond(&metric.gate, reading) == Some(true);
                metric.beyond_since = is_beyond.then(|| metric.beyond_since.unwrap_or(now));
                metric.reading = Some(reading.clone());
            }
        }
    }

    pub(super) fn gates(&self, now: Timestamp) -> impl Iterator<Item = Gate> {
        self.0.iter().map(move |metric| metric.gate(now))
    }
}

impl Metric {
    fn gate(&self, now: Timestamp) -> Gate {
        let (value, note) = match &self.reading {
            Some(Reading::Value { canary, stable }) => {
                let note = stable.map(|stable| format!("stable has {stable}"));
                (Some(*canary), note)
            }
            Some(Reading::Missing(why)) => (None, Some(why.clone())),
            None => (None, Some("Prometheus has not answered yet".to_owned())),
        };
        let reading = self.reading.as_ref();
        let lasts = |since| elapsed(since, now) >= self.gate.hold_for;
        Gate {
            name: self.gate.name.clone(),
            verdict: match reading.and_then(|reading| is_beyond(&self.gate, reading)) {
                Some(true) if self.beyond_since.is_some_and(lasts) => Verdict::Worse,
                Some(false) => Verdict::Within,
                _ => Verdict::Unknown,
            },
            limit: limit(&self.gate),
            unit: Unit::Metric,
            finding: None,
            value,
            note,
            role: Role::Proof,
        }
    }
}

/// Whether a reading is beyond a gate's limit; nothing where that cannot be said.
fn is_beyond(gate: &MetricGate, reading: &Reading) -> Option<bool> {
    let Reading::Value { canary, stable } = reading else {
        return None;
    };
    let exceeds = match gate.max_delta {
        Some(most) => canary - (*stable)? > most,
        None => false,
    };
    let is_low = gate.min.is_some_and(|min| *canary < min);
    let is_high = gate.max.is_some_and(|max| *canary > max);
    Some(exceeds || is_low || is_high)
}

fn limit(gate: &MetricGate) -> String {
    let parts = [
        gate.min.map(|min| format!("at least {min}")),
        gate.max.map(|max| format!("at most {max}")),
        gate.max_delta
            .map(|delta| format!("at most {delta} more than stable")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    parts.join(", ")
}
