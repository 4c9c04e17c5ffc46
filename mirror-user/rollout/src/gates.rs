//! Which evidence decides what: the gates of a plan, each with its part of the error budget.
//!
//! The budget is `1 - confidence`, split evenly over all gates that can take the canary back by
//! statistics. Tests run through all stages, so that nothing is spent again when a stage begins.

mod clients;
mod crowds;
mod excess;
mod metrics;
mod resources;
mod shadow;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use self::clients::Clients;
pub(super) use self::clients::in_words;
pub(super) use self::crowds::FEW;
use self::crowds::{Crowds, Dialling};
use self::metrics::Metrics;
use self::shadow::Compared;
use super::figures::{percent, points};
use super::plan::{Baseline, Plan};
use super::statistics::{Counts, Crowd, Finding, Rate, RateDifference, Verdict};
use super::window::{Arm, Shadow, Window};

/// What the figures of a gate are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// A share of all, of one version.
    Share,
    /// How much more of all than of the other version's: 0.01 for a percentage point.
    Difference,
    /// How many times the other version's.
    Ratio,
    /// A share of spans of ten seconds.
    Spans,
    /// Whatever Prometheus says.
    Metric,
}

/// What one gate says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gate {
    /// Its name: `errors`, `p99`, `slice:blue`, or a metric's.
    pub name: String,
    /// Within its limit, beyond it, or not yet known.
    pub verdict: Verdict,
    /// The limit in words: `at most 1.2 times stable's`.
    pub limit: String,
    /// What its figures are.
    pub unit: Unit,
    /// The test, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finding: Option<Finding>,
    /// The value, where it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// What should be known of it, such as why there is no value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What follows from its verdict.
    pub role: Role,
}

/// What follows from a gate's verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It takes a version back, and where proof is asked for, it is waited for.
    Proof,
    /// It takes a version back.
    Watch,
    /// It takes a version back at once, unless stable fails as well.
    Severe,
    /// Nothing: it is shown, and its note says why it decides nothing.
    Info,
}

impl Gate {
    fn of(name: impl Into<String>, unit: Unit, limit: String, finding: Finding) -> Self {
        Self {
            name: name.into(),
            verdict: finding.verdict,
            limit,
            unit,
            finding: Some(finding),
            value: None,
            note: None,
            role: Role::Proof,
        }
    }

    fn with(mut self, role: Role) -> Self {
        self.role = role;
        self
    }
}

/// Everything that the gates of a plan know.
#[derive(Clone, Debug, PartialEq)]
pub struct Evidence {
    clients: Clients,
    compared: Option<Compared>,
    metrics: Metrics,
}

impl Evidence {
    /// Nothing is known.
    pub fn new(plan: &Plan) -> Self {
        let alpha = alpha(plan);
        let compared = plan.shadow.as_ref();
        Self {
            clients: Clients::new(plan, alpha),
            compared: compared.map(|limits| Compared::new(limits, &plan.baseline, alpha)),
            metrics: Metrics::new(&plan.gates),
        }
    }

    /// Takes in what may be severe. While stable fails as well, it says nothing of the canary that it fails.
    pub fn see_severe(&mut self, window: &Window, stable_fails: bool) {
        self.clients.see_severe(window, stable_fails);
    }

    /// Takes in what the canary did before clients, beside stable, and what Prometheus says of it.
    pub fn see_clients(&mut self, window: &Window, now: Timestamp) {
        self.clients.see(&window.stable, &window.canary, now);
        self.metrics.see(&window.metrics, now);
    }

    /// Takes in what stable did while the canary is not judged: how it varies by itself.
    pub fn see_stable(&mut self, stable: &Arm) {
        self.clients.see_stable(stable);
    }

    /// Takes in what the agent compared, while stable did so much before clients.
    pub fn see_shadow(&mut self, seen: &Shadow, stable: &Arm, now: Timestamp) {
        if let Some(compared) = &mut self.compared {
            compared.see(seen, stable, now);
        }
    }

    /// Whether the canary fails so badly that nothing else counts; in words.
    pub fn severe(&self) -> Option<String> {
        self.clients.severe()
    }

    /// The gates of the stages with clients.
    pub fn of_clients(&self, now: Timestamp) -> Vec<Gate> {
        let mut gates = self.clients.gates();
        gates.extend(self.metrics.gates(now));
        gates
    }

    /// The gates of the shadow.
    pub fn of_shadow(&self) -> Vec<Gate> {
        self.compared
            .as_ref()
            .map_or_else(Vec::new, Compared::gates)
    }
}

/// The part of the error budget that each gate has.
pub fn alpha(plan: &Plan) -> f64 {
    let compared = plan.baseline == Baseline::Stable;
    let shadow = plan.shadow.as_ref();
    let parts = clients::tests(&plan.canary, compared)
        + shadow.map_or(0, |limits| shadow::tests(limits, compared));
    (1.0 - plan.canary.confidence) / parts as f64
}

/// How often something happens, against the other version or against a limit of its own.
#[derive(Clone, Debug, PartialEq)]
enum Events {
    Difference(RateDifference),
    Alone(Rate),
}

impl Events {
    fn new(compared: bool, limit: f64, alpha: f64) -> Self {
        if compared {
            Self::Difference(RateDifference::new(limit, alpha))
        } else {
            Self::Alone(Rate::at_most(limit, alpha))
        }
    }

    fn observe(&mut self, stable: Counts, canary: Counts) {
        match self {
            Self::Difference(test) => test.observe(stable, canary),
            Self::Alone(test) => test.observe(canary),
        }
    }

    fn observe_stable(&mut self, stable: Counts) {
        if let Self::Difference(test) = self {
            test.observe_stable(stable);
        }
    }

    fn finding(&self, crowd: Option<Crowd>) -> Finding {
        match self {
            Self::Difference(test) => test.finding_of(crowd),
            Self::Alone(test) => test.finding_of(crowd),
        }
    }

    fn gate(&self, name: &str, limit: f64, crowd: Option<Crowd>) -> Gate {
        let (unit, limit) = match self {
            Self::Difference(_) => (
                Unit::Difference,
                format!("at most {} more than stable", points(limit)),
            ),
            Self::Alone(_) => (Unit::Share, format!("at most {}", percent(limit))),
        };
        Gate::of(name, unit, limit, self.finding(crowd))
    }
}

fn counts(events: u64, trials: u64) -> Counts {
    Counts { events, trials }
}

/// How long it is since; a clock that was set back has stood still.
pub fn elapsed(since: Timestamp, now: Timestamp) -> std::time::Duration {
    std::time::Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

impl Arm {
    /// Requests, and those that the server failed: 5xx, no response, half of one, what is
    /// none, or one that says so itself.
    pub fn failed(&self) -> Counts {
        let failed =
            self.errors + self.incomplete + self.unanswered + self.unreadable + self.says_error;
        counts(failed, self.requests.max(failed))
    }

    /// Connections, and those that the server reset, or did not answer.
    pub(super) fn failed_connections(&self) -> Counts {
        let failed = self.resets + self.unanswered_connections;
        // One that is reset may have been opened in an earlier window.
        counts(failed, self.connections.max(failed))
    }
}
