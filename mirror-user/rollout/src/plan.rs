//! What a rollout is to do: `[service.rollout]`, checked and completed. A running rollout keeps the
//! plan that it was started with, whatever the file says later.

mod defaults;
mod endpoint;
mod query;
mod unsound;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::Share;

pub use endpoint::{Endpoint, Secrets};
pub use query::{Asked, fill};
pub use unsound::Unsound;

/// The whole plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The canary's shares of new connections, rising; the last one is everything.
    pub stages: Vec<Share>,
    /// What the new version is held against.
    pub baseline: Baseline,
    /// How often gates decide.
    #[serde(with = "span")]
    pub tick: Duration,
    /// Stage 0; nothing = straight to the canary.
    pub shadow: Option<Shadow>,
    /// The stages with clients.
    pub canary: Canary,
    /// Where gates ask: `http://127.0.0.1:9090`.
    pub prometheus: Option<Endpoint>,
    /// What Prometheus has to say.
    pub gates: Vec<MetricGate>,
    /// Who is called.
    pub hooks: Vec<Hook>,
    /// How `finish` asks the service's own address for its version; nothing = it goes by processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_probe: Option<FinishProbe>,
}

impl Plan {
    /// The largest share of the canary's before it has everything.
    pub fn most(&self) -> Share {
        Share::of_parts(Share::ALL.parts() - self.canary.holdback.parts())
    }

    /// The canary's share at each stage.
    pub fn shares(&self) -> impl Iterator<Item = Share> {
        self.stages.iter().map(|stage| (*stage).min(self.most()))
    }
}

/// A request that tells a server's version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishProbe {
    /// What is asked for, by GET: `/v2`.
    pub path: String,
    /// The header whose value tells it; nothing = the body does.
    pub header: Option<String>,
    /// What is to be found there; nothing = the new version's name.
    pub expect: Option<String>,
}

/// What the new version is held against.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The version in production, in the same moment.
    Stable,
    /// Nothing: a first model. Limits on differences are limits on the figures themselves.
    None,
    /// Whoever would always give this answer: the text of the file. It never fails and takes no
    /// time; where there are labels, the new version must be right more often.
    Constant(String),
}

/// What the shadow has to show.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shadow {
    /// Fewer comparisons decide nothing.
    pub min_compared: u64,
    /// The least share of matching answers, 0 to 1; 0 = answers are not compared.
    pub agreement: f64,
    /// How much more often the versions may disagree than the old one with itself, where the agent has a
    /// control, 0 to 1; nothing in records from before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_excess: Option<f64>,
    /// The largest share of comparisons in which neither served, 0 to 1.
    #[serde(default = "defaults::max_both_failed")]
    pub max_both_failed: f64,
    /// The largest ratio of the 99th percentiles, the shadow's to production's; 0 = latency is not compared.
    pub max_latency_ratio: f64,
    /// How much more often than production the shadow may fail, 0 to 1.
    pub max_error_delta: f64,
    /// How much less often than production it may be right, where there are labels, 0 to 1.
    pub max_accuracy_drop: Option<f64>,
    /// The largest ratio of CPU seconds a request, the shadow's to production's.
    pub max_cpu_ratio: Option<f64>,
    /// The largest ratio of memory in RAM.
    pub max_memory_ratio: Option<f64>,
    /// After this the rollout no longer waits.
    #[serde(with = "span")]
    pub max_duration: Duration,
    /// What happens then.
    pub on_timeout: OnTimeout,
}

impl Shadow {
    /// Whether answers have to match: those of a better model may well differ.
    pub fn compares_answers(&self) -> bool {
        self.agreement > 0.0
    }

    /// Whether latency is held against production's: where another machine answers, it may tell nothing.
    pub fn compares_latency(&self) -> bool {
        self.max_latency_ratio > 0.0
    }
}

/// What the canary has to show at every stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Canary {
    /// No stage is shorter.
    #[serde(with = "span")]
    pub min_duration: Duration,
    /// After this a stage no longer waits.
    #[serde(with = "span")]
    pub max_duration: Duration,
    /// What happens then.
    pub on_timeout: OnTimeout,
    /// Fewer answers of either version decide nothing.
    pub min_requests: u64,
    /// How much more often than stable it may fail, 0 to 1.
    pub max_error_delta: f64,
    /// How much more often than with stable its responses may have a status of 4xx, 0 to 1; at 1 it is
    /// not looked at, as with the three below.
    #[serde(default = "defaults::delta")]
    pub max_client_error_delta: f64,
    /// The same of 3xx.
    #[serde(default = "defaults::delta")]
    pub max_redirect_delta: f64,
    /// The same of 2xx responses that are empty, or much shorter than stable's.
    #[serde(default = "defaults::delta")]
    pub max_short_delta: f64,
    /// The same of requests that the client gave up.
    #[serde(default = "defaults::delta")]
    pub max_aborted_delta: f64,
    /// The largest ratio of latencies to stable's, at the median and at the 99th percentile: to the first
    /// byte of a response's body, and to its last; 0 = it is not compared.
    pub max_latency_ratio: f64,
    /// The longest 99th percentile to the first byte of a body, whatever stable's is.
    #[serde(with = "optional_span", default)]
    pub max_latency: Option<Duration>,
    /// Failing more often than this is severe, 0 to 1.
    pub hard_error_rate: f64,
    /// Resetting this much more of its connections than stable does is severe, 0 to 1.
    pub hard_reset_delta: f64,
    /// From this share on, every gate must be proven within its limit; below, none may be proven
    /// beyond.
    pub proven_from: f64,
    /// The chance that an equal version is not taken back, over the whole rollout.
    pub confidence: f64,
    /// The largest ratio of CPU seconds a request, the canary's to stable's.
    pub max_cpu_ratio: Option<f64>,
    /// The largest ratio of memory in RAM.
    pub max_memory_ratio: Option<f64>,
    /// How long the connections of a canary that was taken back may go on; those of one that fails
    /// badly end at once.
    #[serde(with = "span")]
    pub drain: Duration,
    /// How long it is watched before it gets everything.
    #[serde(with = "span")]
    pub bake: Duration,
    /// What stable keeps until then, so that both are seen side by side to the end.
    #[serde(default)]
    pub holdback: Share,
    /// After each rise of the share only severe failures count for so long.
    #[serde(with = "span", default)]
    pub warmup: Duration,
    /// How long stable should stay ready afterwards.
    #[serde(with = "span")]
    pub keep_stable: Duration,
}

impl Canary {
    /// Whether latency is held against stable's: of servers that are very restless, it proves nothing in time.
    pub fn compares_latency(&self) -> bool {
        self.max_latency_ratio > 0.0
    }
}

/// What follows when a stage has taken too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnTimeout {
    /// It stays as it is, and calls for a person.
    Hold,
    /// The canary is taken back.
    Rollback,
}

/// A gate on what Prometheus says. It counts at the stages with clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MetricGate {
    /// Unique name.
    pub name: String,
    /// PromQL for one number, with `$arm`, `$version` and `$service`.
    pub query: String,
    /// The smallest value of the canary that is right.
    pub min: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
    /// The largest excess over stable's value.
    pub max_delta: Option<f64>,
    /// Samples that are older count as none.
    #[serde(with = "span")]
    pub staleness: Duration,
    /// A value exceeds its limit when it has been for so long.
    #[serde(rename = "for", with = "span")]
    pub hold_for: Duration,
}

/// A call over HTTP.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hook {
    /// When.
    pub on: HookPoint,
    /// `http://` or `https://`.
    pub url: Endpoint,
    /// A file of headers that each call has, such as `Authorization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_file: Option<PathBuf>,
    /// Whether the rollout waits for a 200.
    pub approve: bool,
    /// How long one call may take.
    #[serde(with = "span")]
    pub timeout: Duration,
}

/// When a hook is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookPoint {
    /// Before anything else.
    Before,
    /// After each stage, the shadow's too, before the next one begins.
    Stage,
    /// After the canary was taken back.
    Rollback,
    /// After the promotion.
    Promotion,
}

/// The version on trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its name.
    pub version: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// Spans of time as people write them: "5m".
mod span {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_duration(*span))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        humantime::parse_duration(&text).map_err(D::Error::custom)
    }
}

mod optional_span {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Span(#[serde(with = "super::span")] Duration);

    pub(super) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        span.map(Span).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let span = Option::<Span>::deserialize(from)?;
        Ok(span.map(|Span(span)| span))
    }
}
