//! How the shadow agent is: what `modelmirror status` prints on the shadow host, and how it is asked.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::summary::{ControlSummary, TrafficSummary};

mod render;

/// Where the agent's control socket answers.
pub const PATH: &str = "/v1/shadow";

/// The agent and all it looks after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent's version.
    pub version: String,
    /// When it started, or read its config last: its figures are since then.
    pub since: jiff::Timestamp,
    /// When this was said.
    pub time: jiff::Timestamp,
    /// Who sends copies.
    pub taps: Vec<TapStatus>,
    /// The last connection that was refused, or closed for what it sent.
    pub last_refusal: Option<LastRefusal>,
    /// What is replayed.
    pub services: Vec<ServiceStatus>,
    /// All that is buffered, in bytes, and how much may be.
    pub memory_bytes: [u64; 2],
    /// How recording goes.
    pub records: RecordStatus,
    /// Where records are.
    pub record_dir: std::path::PathBuf,
}

/// A connection that was refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastRefusal {
    /// A tap's name, or an address.
    pub peer: String,
    /// The metric's `reason`.
    pub reason: String,
    /// What was wrong.
    pub why: String,
    /// When.
    pub time: jiff::Timestamp,
}

/// One tap, since it was heard first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TapStatus {
    /// What it is called.
    pub name: String,
    /// Since when it is connected; nothing = it is not, or sends datagrams without a connection.
    pub connected_since: Option<jiff::Timestamp>,
    /// `stream` or `geneve`, by its last hello.
    pub transport: Option<String>,
    /// The version of its program.
    pub program: Option<String>,
    /// When it last reported.
    pub last_report: Option<jiff::Timestamp>,
    /// Copies by what became of them.
    pub copies: BTreeMap<String, u64>,
    /// Copies that it says it sent and that have no outcome yet: on their way, or waiting in its rings.
    pub outstanding: u64,
    /// Bytes that were lost.
    pub lost_bytes: u64,
    /// Whether what it sent is accounted for, as far as it is settled.
    pub closes: bool,
}

/// How recording goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordStatus {
    /// Records on the disk.
    pub written: u64,
    /// Records that found the queue full, or are too large.
    pub lost: u64,
    /// Records that the disk refused.
    pub failed: u64,
    /// Whether recording is stopped because the disk refused.
    pub stopped: bool,
}

/// One service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its id, the tunnel's VNI.
    pub id: u32,
    /// The shadow's version.
    pub version: String,
    /// The versions that were in production since the agent's start.
    pub production_versions: BTreeSet<String>,
    /// The shadow model.
    pub target: String,
    /// Seconds since when the shadow gives no answers.
    pub down_seconds: Option<f64>,
    /// Seconds since when it gets more than it takes.
    pub saturated_seconds: Option<f64>,
    /// Requests that wait for the shadow, and how many may.
    pub queue: [u64; 2],
    /// Exchanges with the shadow going on, and how many may.
    pub active: [u64; 2],
    /// Requests that were seen.
    pub seen: u64,
    /// Those that were compared.
    pub compared: u64,
    /// Those without an outcome.
    pub in_flight: u64,
    /// Those that were dropped, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Compared, or replayed alone, as a share of those that were meant to be.
    pub fidelity: Option<f64>,
    /// Comparisons of stable's answers, by verdict.
    pub verdicts: BTreeMap<String, u64>,
    /// What second answers say of the noise; nothing without a control.
    #[serde(default)]
    pub control: Option<ControlSummary>,
    /// What production says of itself where traffic repeats requests.
    #[serde(default)]
    pub traffic: TrafficSummary,
    /// The shadow's last failure.
    pub last_error: Option<LastError>,
    /// The last exchange that could not be read.
    pub last_malformed: Option<Malformed>,
}

/// A request without an answer of the shadow's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastError {
    /// `connect`, `timeout`, `closed`, `malformed`, `too_large`.
    pub error: String,
    /// When.
    pub time: jiff::Timestamp,
    /// The exchange: a record has it too, where there is one.
    pub id: uuid::Uuid,
}

/// An exchange that could not be read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Malformed {
    /// The client's end.
    pub client: std::net::SocketAddr,
    /// `request`, `response`, or `unknown`.
    pub side: String,
    /// What is wrong with it.
    pub why: String,
}

#[cfg(test)]
pub(crate) mod tests;
