//! What the agent tells the node: `GET /v1/summary` where it listens. Who may ask has been settled
//! before, by keys.

use std::collections::BTreeMap;
use std::iter::Sum;
use std::ops::{Add, Sub};

use mirror_rollout::noise::{Twin, in_words};
use serde::{Deserialize, Serialize};

/// All services of an agent, since its start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// When the agent started: another value = its figures began anew.
    pub since: jiff::Timestamp,
    /// When this was said.
    pub time: jiff::Timestamp,
    /// Its services.
    pub services: Vec<ServiceSummary>,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceSummary {
    /// Its name.
    pub name: String,
    /// Its id, the tunnel's VNI.
    pub id: u32,
    /// The shadow's version.
    pub version: String,
    /// Requests that were seen.
    pub seen: u64,
    /// Those of them that came from the node that asks; nothing where none of its taps has ever come.
    #[serde(default)]
    pub of_this_node: Option<OfNode>,
    /// Those that were compared.
    pub compared: u64,
    /// Those that were dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Comparisons of stable's answers, by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// Comparisons of the canary's answers, by verdict.
    #[serde(default)]
    pub canary_verdicts: BTreeMap<String, u64>,
    /// From the request's last byte to the answer's first, by production's stable version.
    pub production: Latency,
    /// The same of the shadow.
    pub shadow: Latency,
    /// Comparisons of stable's answers by who failed.
    #[serde(default)]
    pub pairs: ErrorPairs,
    /// Requests that stable and the shadow answered, by both latencies (as `production` and
    /// `shadow` have them): production's bucket of [`mirror_common::histogram::Latency`], the
    /// shadow's, and how many. In order, those that there are.
    #[serde(default)]
    pub latency_pairs: Vec<(u16, u16, u64)>,
    /// Comparisons of stable's answers that are not among `latency_pairs`, since the request had to wait
    /// until the shadow could be asked: it was as busy as `concurrency` lets it be, and how long it took
    /// tells of that, and not of its version.
    #[serde(default)]
    pub saturated: u64,
    /// Comparisons of stable's answers by the request's slice, in the order of their names; a
    /// hundred and `other` at most. Requests that have no slice are in none.
    #[serde(default)]
    pub slices: Vec<SliceSummary>,
    /// What is known of the old version's noise; nothing without a control.
    #[serde(default)]
    pub control: Option<ControlSummary>,
    /// What production says of itself where traffic repeats requests.
    #[serde(default)]
    pub traffic: TrafficSummary,
    /// The shadow's server, where it is on the agent's host and was found.
    #[serde(default)]
    pub server: Option<ServerSummary>,
    /// Requests that the shadow answered, whatever became of them afterwards: what `server` used
    /// its CPU time for.
    #[serde(default)]
    pub answered: u64,
    /// How right both versions were, by labels that came later; nothing without `[service.labels]`.
    #[serde(default)]
    pub labels: Option<LabelSummary>,
}

/// What an agent has seen of one node's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfNode {
    /// The life of the node's counters, as its tap has said.
    pub boot: u64,
    /// Requests since that life began, or since the service's counters began anew in it.
    pub seen: u64,
}

/// Pairs of answers to one request by who failed. An answer is an error when its status is 500 or
/// more; a shadow that cannot be reached, gives no whole answer in time, or none that is HTTP, has
/// failed too. Only HTTP/1 is compared, so nothing else is counted: gRPC and other protocols are
/// drops of the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorPairs {
    /// Both failed.
    pub both: u64,
    /// Production alone.
    pub production_only: u64,
    /// The shadow alone.
    pub shadow_only: u64,
    /// Neither.
    pub neither: u64,
}

impl ErrorPairs {
    /// Counts a pair in which production and the shadow failed, or not.
    pub fn add(&mut self, failed: [bool; 2]) {
        *match failed {
            [true, true] => &mut self.both,
            [true, false] => &mut self.production_only,
            [false, true] => &mut self.shadow_only,
            [false, false] => &mut self.neither,
        } += 1;
    }
}

/// Comparisons of one slice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SliceSummary {
    /// Its name, as records have it.
    pub slice: String,
    /// By verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// By who failed.
    pub pairs: ErrorPairs,
    /// By who disagreed, of those that the control answered too.
    #[serde(default)]
    pub control: NoisePairs,
}

/// Requests that were answered twice by one version, by who disagreed: this version's two answers, or those
/// of production and the shadow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoisePairs {
    /// Both.
    pub both: u64,
    /// This version with itself alone.
    pub itself: u64,
    /// The versions with each other alone.
    pub versions: u64,
    /// Nobody.
    pub neither: u64,
}

impl NoisePairs {
    /// Counts a request, unless it tells nothing: whether the version disagreed with itself, and the
    /// versions with each other.
    pub fn add(&mut self, disagree: Option<[bool; 2]>) {
        let Some(disagree) = disagree else { return };
        *match disagree {
            [true, true] => &mut self.both,
            [true, false] => &mut self.itself,
            [false, true] => &mut self.versions,
            [false, false] => &mut self.neither,
        } += 1;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.both + self.itself + self.versions + self.neither
    }
}

impl NoisePairs {
    /// How often the versions disagree, and how often one with itself, in words; nothing of nothing.
    pub fn in_words(&self, twin: Twin) -> Option<String> {
        let count = self.count();
        let share = |part: u64| part as f64 / count as f64;
        let [versions, itself] = [self.versions, self.itself].map(|only| share(self.both + only));
        (count > 0).then(|| in_words(twin, versions, itself))
    }
}

/// What second answers say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ControlSummary {
    /// Where the copy of the old version listens.
    pub address: String,
    /// Why it gives no answers any more, if so: the last failure.
    pub down: Option<String>,
    /// Comparisons of stable's answers that it answered too, by who disagreed.
    pub pairs: NoisePairs,
    /// Second answers of the control that tell nothing, by reason.
    pub missing: BTreeMap<String, u64>,
    /// Comparisons of stable's answers that the shadow answered twice, by who disagreed.
    pub repeat: NoisePairs,
    /// Second answers of the shadow that tell nothing, by reason.
    pub repeat_missing: BTreeMap<String, u64>,
    /// Whether the shadow is asked twice at all.
    pub repeats: bool,
}

/// Requests to stable that were the same as one not long before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficSummary {
    /// How many.
    pub repeated: u64,
    /// Those that were not answered as the last time.
    pub differing: u64,
}

/// What the shadow's server uses, all its processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerSummary {
    /// How many processes there are.
    pub processes: u64,
    /// CPU time since the agent found it; it stays when the processes are gone.
    pub cpu_seconds: f64,
    /// Memory in RAM.
    pub resident_bytes: u64,
}

/// What labels say of stable's and the shadow's predictions, of this agent's run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LabelSummary {
    /// Requests with a label and both predictions.
    pub labelled: u64,
    /// By who was right.
    pub pairs: RightPairs,
    /// The same by label, a thousand labels at most, the most frequent; all others are `other`.
    pub by_label: BTreeMap<String, RightPairs>,
    /// Labels that say nothing, by reason.
    #[serde(default)]
    pub unused: BTreeMap<String, u64>,
    /// When the labels were last joined to the records.
    pub time: jiff::Timestamp,
    /// Why the figures are older than they should be, where they are.
    pub error: Option<String>,
}

/// Pairs of predictions for one request by who was right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RightPairs {
    /// Both were right.
    pub both_right: u64,
    /// Production alone.
    pub production_only: u64,
    /// The shadow alone.
    pub shadow_only: u64,
    /// Neither.
    pub neither: u64,
}

impl RightPairs {
    /// Counts a pair in which production and the shadow were right, or not.
    pub fn count_one(&mut self, right: [bool; 2]) {
        *match right {
            [true, true] => &mut self.both_right,
            [true, false] => &mut self.production_only,
            [false, true] => &mut self.shadow_only,
            [false, false] => &mut self.neither,
        } += 1;
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.both_right + self.production_only + self.shadow_only + self.neither
    }
}

impl Add for RightPairs {
    type Output = Self;

    fn add(self, more: Self) -> Self {
        Self {
            both_right: self.both_right + more.both_right,
            production_only: self.production_only + more.production_only,
            shadow_only: self.shadow_only + more.shadow_only,
            neither: self.neither + more.neither,
        }
    }
}

impl Sub for RightPairs {
    type Output = Self;

    fn sub(self, less: Self) -> Self {
        Self {
            both_right: self.both_right - less.both_right,
            production_only: self.production_only - less.production_only,
            shadow_only: self.shadow_only - less.shadow_only,
            neither: self.neither - less.neither,
        }
    }
}

impl Sum for RightPairs {
    fn sum<I: Iterator<Item = Self>>(pairs: I) -> Self {
        pairs.fold(Self::default(), Add::add)
    }
}

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many there are.
    pub count: u64,
    /// Their sum, in seconds.
    pub sum_seconds: f64,
    /// Upper bound in seconds, and how many are not above it.
    pub buckets: Vec<(f64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_said_in_words() {
        let pairs = NoisePairs {
            both: 200,
            itself: 86,
            versions: 90,
            neither: 624,
        };
        let words = "differs 29 %, of which 28.6 % the old version differs from itself";
        assert_eq!(pairs.in_words(Twin::Control).as_deref(), Some(words));
        assert_eq!(NoisePairs::default().in_words(Twin::Control), None);
    }
}
