//! The decision record: what a rollout was told, in order, and what it decided. One JSON object a
//! line; the events alone bring it back to where it was.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::gates::Gate;
use super::machine::State;
use super::plan::{HookPoint, Plan, Target};
use super::statistics::{Clusters, Counts, Latencies, Pairs};
use super::waits::{Held, Kind};

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

/// Who wants something, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// A user's name, or a pipeline's.
    pub who: String,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl By {
    /// A record, every page and every hook has these: they are not for whole files.
    ///
    /// # Errors
    /// Which of them is too long.
    pub fn bounded(&self) -> Result<(), String> {
        const WHO: usize = 200;
        const REASON: usize = 2_000;
        let reason = self.reason.as_deref().unwrap_or_default();
        let mut texts = [("who", &*self.who, WHO), ("reason", reason, REASON)].into_iter();
        match texts.find(|(_, text, most)| text.chars().count() > *most) {
            Some((which, _, most)) => Err(format!("{which:?} has more than {most} characters")),
            None => Ok(()),
        }
    }
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
    /// Whether all connections of a client's address have one version.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub by_client: bool,
}

impl Window {
    /// Whether nothing happened.
    pub fn is_idle(&self) -> bool {
        let nothing = Self {
            by_client: self.by_client,
            ..Self::default()
        };
        *self == nothing
    }

    /// Whether clients would have nobody without the canary: however bad it is, it is not rolled back.
    pub(super) fn has_nobody_else(&self) -> bool {
        let mut held = self.held.iter();
        held.any(|held| held.kind == Kind::StableGone)
    }
}

/// What one version did in a window. Connections and bytes are of all of its connections, requests of
/// those that were read: the part `sample` of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arm {
    /// New connections.
    pub connections: u64,
    /// Those of them that were the canary's by its share and went to stable, by why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub turned_away: BTreeMap<String, u64>,
    /// Those whose first SYN it did not answer.
    #[serde(skip_serializing_if = "is_zero")]
    pub unanswered_connections: u64,
    /// Connections that it was seen to have got; of stable nobody looks.
    #[serde(skip_serializing_if = "is_zero")]
    pub delivered: u64,
    /// Connections that somebody else has got.
    #[serde(skip_serializing_if = "is_zero")]
    pub strayed: u64,
    /// Connections that its server reset.
    pub resets: u64,
    /// Bytes of requests.
    pub request_bytes: u64,
    /// Bytes of responses.
    pub response_bytes: u64,
    /// The share of connections that is read.
    pub sample: f64,
    /// Requests that ended: with a whole response, or as below.
    pub requests: u64,
    /// Whole responses.
    pub responses: u64,
    /// Those of them whose status is 3xx.
    #[serde(skip_serializing_if = "is_zero")]
    pub redirects: u64,
    /// Those whose status is 4xx.
    #[serde(skip_serializing_if = "is_zero")]
    pub client_errors: u64,
    /// Those whose status is 5xx.
    pub errors: u64,
    /// Requests whose response was cut by the server.
    #[serde(skip_serializing_if = "is_zero")]
    pub incomplete: u64,
    /// Requests that got no response.
    #[serde(skip_serializing_if = "is_zero")]
    pub unanswered: u64,
    /// Requests whose response is not HTTP.
    #[serde(skip_serializing_if = "is_zero")]
    pub unreadable: u64,
    /// Requests whose response says in its body that it is a failure.
    #[serde(skip_serializing_if = "is_zero")]
    pub says_error: u64,
    /// Requests that the client gave up.
    #[serde(skip_serializing_if = "is_zero")]
    pub aborted: u64,
    /// Requests whose end could not be seen, by why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unseen: BTreeMap<String, u64>,
    /// How long the bodies of 2xx responses are, a byte as 1,024 ns.
    #[serde(skip_serializing_if = "Latencies::is_empty")]
    pub sizes: Latencies,
    /// From a request's last byte to the first of the response's body.
    #[serde(alias = "first_byte", skip_serializing_if = "Latencies::is_empty")]
    pub first_body: Latencies,
    /// From a request's last byte to the response's last.
    #[serde(skip_serializing_if = "Latencies::is_empty")]
    pub complete: Latencies,
    /// Its requests by client.
    #[serde(skip_serializing_if = "Clusters::is_empty")]
    pub clients: Clusters,
    /// Its requests by connection, where each connection goes by the share for itself.
    #[serde(skip_serializing_if = "Clusters::is_empty")]
    pub by_connection: Clusters,
    /// Its connections, and those that its server reset or did not answer, by client.
    #[serde(skip_serializing_if = "Clusters::is_empty")]
    pub connections_by_client: Clusters,
    /// CPU seconds that its server used; nothing where it cannot be seen from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Bytes of memory in RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Default for Arm {
    /// It did nothing, and all of that was seen.
    fn default() -> Self {
        Self {
            connections: 0,
            turned_away: BTreeMap::new(),
            unanswered_connections: 0,
            delivered: 0,
            strayed: 0,
            resets: 0,
            request_bytes: 0,
            response_bytes: 0,
            sample: 1.0,
            requests: 0,
            responses: 0,
            redirects: 0,
            client_errors: 0,
            errors: 0,
            incomplete: 0,
            unanswered: 0,
            unreadable: 0,
            says_error: 0,
            aborted: 0,
            unseen: BTreeMap::new(),
            sizes: Latencies::default(),
            first_body: Latencies::default(),
            complete: Latencies::default(),
            clients: Clusters::default(),
            by_connection: Clusters::default(),
            connections_by_client: Clusters::default(),
            cpu_seconds: None,
            resident_bytes: None,
        }
    }
}

impl Arm {
    /// Whether nothing is known of it: of nothing, any sample is nothing.
    fn is_idle(&self) -> bool {
        let nothing = Self {
            sample: self.sample,
            ..Self::default()
        };
        *self == nothing
    }

    /// Its requests, those that were not read included.
    pub(super) fn all_requests(&self) -> f64 {
        self.requests as f64 / self.sample.clamp(1e-6, 1.0)
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
    /// Comparisons that are not among them, since the request had to wait until the shadow could be asked.
    #[serde(skip_serializing_if = "is_zero")]
    pub saturated: u64,
    /// Requests that were answered twice, where the agent has a control.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// Requests that traffic repeated (trials), and those that production answered otherwise than before (events);
    /// the first window also has what was seen before the rollout.
    #[serde(skip_serializing_if = "Counts::is_none")]
    pub traffic: Counts,
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
#[serde(default)]
pub struct Slice {
    /// Comparisons.
    pub compared: u64,
    /// Those of them that match.
    pub matching: u64,
    /// Those that the control answered too, see [`Control::pairs`].
    #[serde(skip_serializing_if = "Pairs::is_none")]
    pub control: Pairs,
}

/// Requests that one version answered twice. Of the pairs, `production_only` are those on which this version
/// alone disagreed with itself, and `shadow_only` those on which the versions alone disagreed with each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Control {
    /// Answered by stable and by a copy of it.
    pub pairs: Pairs,
    /// Second answers of the copy's that tell nothing, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub missing: BTreeMap<String, u64>,
    /// Answered twice by the shadow, where it is asked to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Pairs>,
    /// Second answers of the shadow's that tell nothing, by reason.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub repeat_missing: BTreeMap<String, u64>,
}

impl Control {
    /// Whether nothing was answered twice, or was to be.
    pub fn is_idle(&self) -> bool {
        let of_nothing = Self {
            repeat: self.repeat.map(|_| Pairs::default()),
            ..Self::default()
        };
        *self == of_nothing
    }
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
