//! How things are: what `status --output json` prints.

use std::net::SocketAddr;

use mirror_common::histogram::{Latency, RunTime};
use serde::{Deserialize, Serialize};

use super::{CanaryState, Quantiles, RolloutState};
use crate::AgentAddress;
use crate::Mechanism;
use crate::Source;
use crate::Transport;
use crate::XdpHook;

/// The daemon and all it looks after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Version of the layouts that it shares with the kernel.
    pub abi: u32,
    /// Seconds since the daemon started.
    pub uptime_seconds: f64,
    /// Whether `modelmirror off` holds.
    pub off: bool,
    /// What somebody should look at: an unusable state file, a refused reload.
    pub warnings: Vec<String>,
    /// Where the programs are attached.
    pub interfaces: Vec<Interface>,
    /// Where copies go.
    pub agents: Vec<Agent>,
    /// What is mirrored.
    pub services: Vec<Service>,
    /// What our programs cost.
    pub run_time: RunTimes,
}

/// One configured interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index, while it exists.
    pub ifindex: Option<u32>,
    /// How the programs are attached.
    pub hook: Option<Mechanism>,
    /// Whether both programs are attached.
    pub attached: bool,
    /// Where packets of canaries on other hosts are taken at XDP; nothing = at TC.
    pub xdp: Option<XdpHook>,
    /// Why they are not, though they should be.
    pub xdp_error: Option<String>,
    /// The last thing that went wrong.
    pub error: Option<String>,
    /// Nothing is attached on purpose: another one of `interfaces` shows the same packets.
    #[serde(default)]
    pub left_out: bool,
    /// Programs of others that run before ours, each with its hook: what they keep for themselves is not
    /// seen.
    #[serde(default)]
    pub before: Vec<String>,
}

/// One shadow agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agent {
    /// Its name or address in the config.
    pub address: AgentAddress,
    /// Where it was reached last.
    pub peer: Option<SocketAddr>,
    /// How copies travel.
    pub transport: Transport,
    /// Whether it is spoken to in clear text.
    pub insecure: bool,
    /// What it calls this node; nothing = there is no connection.
    pub known_as: Option<String>,
    /// Whether it answers.
    pub alive: bool,
    /// Connections that it welcomed since the daemon started.
    pub connections: u64,
    /// Attempts at which it showed another key than the config trusts.
    pub other_keys: u64,
    /// What waits for it; nothing where the kernel sends by itself.
    pub ring: Option<RingState>,
    /// Seconds since its last answer.
    pub last_echo_seconds: Option<f64>,
    /// Seconds from a report to its echo.
    pub round_trip_seconds: Option<f64>,
    /// The interface that leads there.
    pub uplink: Option<String>,
    /// The largest IP packet on the way, in bytes.
    pub mtu: Option<u32>,
    /// Why copying pauses, if it does.
    pub paused: Option<String>,
    /// The last thing that went wrong.
    pub error: Option<String>,
}

/// The copies that wait in the kernel for an agent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RingState {
    /// Bytes that all CPUs' rings have room for.
    pub size_bytes: u64,
    /// Bytes that the agent has not acknowledged.
    pub held_bytes: u64,
    /// How full the fullest CPU's ring is, 0..=1.
    pub fullness: f64,
}

/// One service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The tunnel's VNI.
    pub id: u32,
    /// What clients dial.
    pub addresses: Vec<String>,
    /// The version in production.
    pub version: String,
    /// Its mirror; nothing when the file has none.
    pub mirror: Option<MirrorState>,
    /// What the daemon reads of it itself; nothing when the file says nothing of it.
    #[serde(default)]
    pub look: Option<LookState>,
    /// Its canary; nothing when the file has none.
    pub canary: Option<CanaryState>,
    /// Its rollout, or the last one; nothing before the first.
    #[serde(default)]
    pub rollout: Option<RolloutState>,
    /// The direction of which no packet is seen, though the other one is: `request` or `response`.
    #[serde(default)]
    pub missing: Option<String>,
    /// Connections opened since the counters began.
    pub connections: u64,
    /// Those of them that the budget shut out.
    pub over_budget_connections: u64,
    /// Packets by direction and reason; zeros are left out.
    pub packets: Vec<PacketCount>,
    /// Copies, by direction.
    pub mirrored: Vec<Mirrored>,
}

/// The mirror of one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MirrorState {
    /// Whether it is on.
    pub on: bool,
    /// Who decided that.
    pub from: Source,
    /// Where the copies go.
    pub agent: AgentAddress,
    /// Whether the agent is spoken to in clear text, and not known by a key.
    #[serde(default)]
    pub insecure: bool,
    /// The share of connections.
    pub sample: Sample,
    /// Hard limit, in bytes per second.
    pub budget_bytes_per_second: Option<u64>,
    /// Bytes copied per second, of late.
    pub bytes_per_second: f64,
}

/// The daemon's own look at one service's exchanges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LookState {
    /// The most exchanges per second of each version.
    pub budget_exchanges_per_second: u64,
    /// Stable, and the canary where the file has one.
    pub arms: Vec<LookedArm>,
}

/// The look at one version's exchanges.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LookedArm {
    /// `stable` or `canary`.
    pub arm: String,
    /// The share of its connections in the file.
    pub configured: f64,
    /// The share that holds, after the budget lowered it.
    pub effective: f64,
    /// Exchanges begun per second, of late.
    pub exchanges_per_second: f64,
    /// Exchanges begun since the daemon started.
    pub seen: u64,
    /// What became of them; zeros are left out.
    pub exchanges: Vec<LookedExchanges>,
}

/// Exchanges of one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LookedExchanges {
    /// The class of the response, or why the exchange is not whole.
    pub outcome: String,
    /// How many.
    pub count: u64,
}

/// A share of connections, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// In the file.
    pub configured: f64,
    /// By the command line.
    pub set: Option<f64>,
    /// What holds, after the budget lowered it.
    pub effective: f64,
}

/// Packets of one direction and reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCount {
    /// `request` or `response`.
    pub direction: String,
    /// As in `modelmirror_packets_total`.
    pub reason: String,
    /// How many.
    pub packets: u64,
}

/// Copies of one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirrored {
    /// `request` or `response`.
    pub direction: String,
    /// How many packets.
    pub packets: u64,
    /// Their payload bytes.
    pub bytes: u64,
}

/// How long our programs take; one run in 1,024 is timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTimes {
    /// Timed runs.
    pub runs: u64,
    /// Half of them took no longer than this, in nanoseconds.
    pub p50_ns: Option<u64>,
    /// 99 of 100 took no longer than this, in nanoseconds.
    pub p99_ns: Option<u64>,
}

impl From<&RunTime> for RunTimes {
    fn from(run_time: &RunTime) -> Self {
        Self {
            runs: run_time.count(),
            p50_ns: run_time.quantile(0.50),
            p99_ns: run_time.quantile(0.99),
        }
    }
}

impl From<&Latency> for Quantiles {
    fn from(latency: &Latency) -> Self {
        let at = |part| {
            let ns = latency.quantile(part)?;
            Some(ns as f64 / 1e9)
        };
        Self {
            count: latency.count(),
            p50: at(0.50),
            p99: at(0.99),
        }
    }
}
