//! What was seen of both versions in some time.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::held::{Held, Kind};
use super::statistics::{Clusters, Counts, Latencies, Pairs};

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
