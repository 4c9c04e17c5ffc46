//! The decision record: what a rollout was told, in order, and what it decided. One JSON object a
//! line; the events alone bring it back to where it was.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::gates::Gate;
use super::held::Held;
use super::plan::{HookPoint, Plan, Target};
use super::state::{By, State};
use super::window::Window;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// When, on the clock that rollouts go by: the wall clock at the daemon's start, and then as the
    /// monotonic clock goes.
    pub time: Timestamp,
    /// What the wall clock said, where that differs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall: Option<Timestamp>,
    /// How long the host was up then, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_ms: Option<u64>,
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
    /// Another status. What was said with it may be a secret, and is not read.
    Refused(String),
    /// Nothing, or nothing that could be understood.
    Failed(String),
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
