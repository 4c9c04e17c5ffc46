//! The decision record: what a rollout was told, in order, and what it decided. One JSON object a
//! line; the events alone bring it back to where it was.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::gates::Gate;
use super::machine::State;
use super::plan::{HookPoint, Plan, Target};
use super::statistics::{Latencies, Pairs};
use super::waits::Held;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When, on the clock that rollouts go by: the wall clock at the daemon's start, and then as the
    /// monotonic clock goes.
    pub time: Timestamp,
    /// What the wall clock said, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall: Option<Timestamp>,
    /// What.
    #[serde(flatten)]
    pub entry: Entry,
}

/// What a line says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// What the rollout was told.
    Event(Event),
    /// What it made of that.
    Decision(Decision),
}

/// What a rollout can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// It begins: always the first.
    Started(Box<Started>),
    /// What happened since it was told last.
    Seen(Box<Window>),
    /// A person, or a pipeline, wants something.
    Ordered(Order),
    /// A hook was called.
    Called(Called),
    /// New connections go to stable alone: the kernel has it.
    TakenBack,
}

/// How it began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Started {
    /// Unique, and the record's name.
    pub id: String,
    /// The service.
    pub service: String,
    /// The version in production.
    pub stable: String,
    /// The version on trial.
    pub canary: Target,
    /// The plan.
    pub plan: Plan,
    /// Who started it, and why.
    #[serde(flatten)]
    pub by: By,
}

/// Who wants something, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// A user's name, or a pipeline's.
    pub who: String,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a person can want of a rollout that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// What.
    pub want: Want,
    /// Who, and why.
    #[serde(flatten)]
    pub by: By,
}

/// What is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Want {
    /// Stay at this stage.
    Pause,
    /// Go on, also after a hold, whose time begins anew.
    Resume,
    /// Go to the next stage, whatever the gates say.
    Promote,
    /// Go to the last stage.
    PromoteAll,
    /// Take the canary back.
    Abort,
    /// The new version listens at the service's own address: steering ends.
    Finish,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// The hook's place in the plan.
    pub hook: usize,
    /// When in the rollout.
    pub point: HookPoint,
    /// What it said.
    pub answer: Answer,
}

/// What a hook said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// 200.
    Approved,
    /// Another status: with it, and the beginning of what was said.
    Refused(String),
    /// Nothing, or nothing that could be understood.
    Failed(String),
}

/// What happened in some time, about a second.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Window {
    /// What the versions did before clients.
    #[serde(skip_serializing_if = "Arm::is_idle")]
    pub stable: Arm,
    /// The same of the canary.
    #[serde(skip_serializing_if = "Arm::is_idle")]
    pub canary: Arm,
    /// What the agent compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// What Prometheus said, by the gates' names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, Reading>,
    /// Why the canary cannot be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable: Option<String>,
    /// What keeps it from being judged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Held>,
}

impl Window {
    /// Whether nothing happened.
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }
}

/// What one version did in a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arm {
    /// New connections.
    pub connections: u64,
    /// Answers.
    pub responses: u64,
    /// Those of them whose status is 5xx.
    pub errors: u64,
    /// Connections that its server reset.
    pub resets: u64,
    /// Bytes of requests.
    pub request_bytes: u64,
    /// From a request's last byte to the first of its answer.
    #[serde(skip_serializing_if = "Latencies::is_empty")]
    pub first_byte: Latencies,
    /// CPU seconds that its server used; nothing where it cannot be seen from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Bytes of memory in RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
}

impl Arm {
    /// Whether it did nothing that a gate looks at.
    fn is_idle(&self) -> bool {
        (
            self.connections,
            self.responses,
            self.resets,
            self.request_bytes,
        ) == (0, 0, 0, 0)
    }
}

/// What the agent compared in a window: answers of stable with the shadow's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shadow {
    /// Comparisons in which one of them served at least.
    pub compared: u64,
    /// Those of them that match.
    pub matching: u64,
    /// Comparisons besides these, in which neither served.
    pub both_failed: u64,
    /// Who failed.
    pub failures: Pairs,
    /// Production's bucket, the shadow's, how many.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub latencies: Vec<(u16, u16, u64)>,
    /// Comparisons and matches by slice.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub slices: BTreeMap<String, Slice>,
    /// Who was wrong, where there are labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wrong: Option<Pairs>,
    /// CPU seconds that the shadow's server used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Bytes of memory in RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Requests that it answered.
    pub answered: u64,
}

/// One slice in a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slice {
    /// Comparisons.
    pub compared: u64,
    /// Those of them that match.
    pub matching: u64,
}

/// What Prometheus said for a gate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reading {
    /// The canary's value, and stable's where the gate asks for it.
    Value {
        /// The canary's.
        canary: f64,
        /// Stable's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stable: Option<f64>,
    },
    /// None, and why.
    Missing(String),
}

/// What a rollout decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// It went to another state.
    Moved(Box<Moved>),
    /// A gate says something else than before.
    Judged(Box<Gate>),
    /// It waits, for other reasons than before; none = it could go on.
    Waits(Vec<Held>),
}

/// From one state to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// Where it was.
    pub from: State,
    /// Where it is.
    pub to: State,
    /// Why.
    pub reason: String,
    /// Answers of stable and of the canary at the stage that was left.
    pub requests: [u64; 2],
    /// What every gate said.
    pub gates: Vec<Gate>,
}
