//! The canary's part of the control API.

use std::net::{IpAddr, SocketAddr};

use mirror_rollout::Share;
use serde::{Deserialize, Serialize};

use crate::Affinity;
use crate::XdpHook;

/// What the command line changes about one service's canary.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CanaryChange {
    /// The share of new connections, whatever the file says.
    Share(Share),
    /// No new connections, and what becomes of those there are.
    Off(Rest),
    /// The same where nobody listens for stable, so that clients have nobody.
    ForceOff(Rest),
    /// Back to what the file says.
    Clear,
}

/// What becomes of the canary's connections when its share is taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rest {
    /// They go on until they end by themselves.
    Finish,
    /// They end at once, with a reset: clients come back, to stable.
    Reset,
    /// They may finish for so long, in milliseconds; then they end.
    Drain(u64),
}

/// The canary of one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CanaryState {
    /// Its version.
    pub version: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// What stays together.
    pub affinity: Affinity,
    /// Its share of new connections.
    pub share: ShareState,
    /// Both versions: stable, then the canary.
    pub arms: Vec<Arm>,
    /// The interface that leads to it, if it is on another host.
    pub by: Option<String>,
    /// Where its packets are taken at XDP; nothing = at TC.
    pub xdp: Option<XdpHook>,
    /// Why they are not, though they should be.
    pub xdp_error: Option<String>,
    /// Whether it answers when it is dialled; nothing for one on this host, where the kernel knows.
    pub up: Option<bool>,
    /// Why it does not.
    pub silent: Option<String>,
    /// How the traffic is spread over clients; nothing where there is too little of it.
    pub concentration: Option<Concentration>,
    /// What keeps it from being steered to.
    pub error: Option<String>,
    /// Connections that are translated, of a canary on another host.
    #[serde(default)]
    pub translations: Option<Translations>,
}

/// Connections that are translated, and how many there can be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Translations {
    /// Those that live.
    pub open: u64,
    /// Handshakes that are not complete.
    pub handshakes: u64,
    /// Those that have ended, and whose ports the canary's host waits out.
    pub closing: u64,
    /// How many there can be.
    pub limit: u64,
    /// How much of the ports, or of the table, is taken: 0 to 1.
    pub used: f64,
    /// Connections that were forgotten although nobody had ended them, since they had been silent for hours
    /// and their room was needed.
    pub evicted: u64,
}

impl Translations {
    /// From here on somebody should know.
    const MUCH: f64 = 0.7;

    /// How many have a port.
    pub fn held(&self) -> u64 {
        self.open + self.handshakes + self.closing
    }

    /// What somebody should know, if it is much.
    pub fn warning(&self, service: &str) -> Option<String> {
        (self.used >= Self::MUCH).then(|| {
            format!(
                "{service}: {:.0} % of the room for translated connections is taken ({} of {}); what finds none is stable's (no_port, no_room): add `translation_addresses`, or widen `translation_ports` and `connections`",
                self.used * 100.0,
                self.held(),
                self.limit
            )
        })
    }
}

/// A share of new connections, 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShareState {
    /// In the file.
    pub configured: Share,
    /// By the command line; nothing while a rollout has it.
    pub set: Option<Share>,
    /// Whether a rollout has it.
    #[serde(default)]
    pub by_rollout: bool,
    /// What holds.
    pub effective: Share,
    /// What was reached since it holds.
    pub achieved: Achieved,
}

/// The canary's part of what both versions did since the share last changed, or the daemon began;
/// nothing where they did nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Achieved {
    /// How long that is, in seconds; nothing before the share was written first.
    pub seconds: Option<f64>,
    /// Of connections.
    pub connections: Option<f64>,
    /// Of answered requests.
    pub requests: Option<f64>,
    /// Of bytes, both ways.
    pub bytes: Option<f64>,
}

/// What one version did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// `stable` or `canary`.
    pub arm: String,
    /// Its version.
    pub version: String,
    /// New connections by why they came here; zeros are left out.
    pub choices: Vec<ChoiceCount>,
    /// New connections.
    pub connections: u64,
    /// Those of them that are open.
    pub open: u64,
    /// Handshakes that the server did not answer at the first SYN.
    pub unanswered: u64,
    /// Connections of the canary's that somebody else has got.
    #[serde(default)]
    pub strayed: u64,
    /// Packets, request then response.
    pub packets: [u64; 2],
    /// Payload bytes, request then response.
    pub bytes: [u64; 2],
    /// Resets by the client and by the server.
    pub resets: [u64; 2],
    /// Packets that brought bytes once more, request then response.
    pub retransmissions: [u64; 2],
    /// Packets that could not be translated and went nowhere, request then response.
    pub untranslated: [u64; 2],
    /// Packets that were taken at XDP, request then response.
    pub early: [u64; 2],
    /// Requests that ended, of the connections that are read, as what follows up to `complete`.
    pub requests: u64,
    /// Whole responses by the hundreds of their status, from 1xx to 5xx.
    pub responses: [u64; 5],
    /// Those with another status.
    pub other_responses: u64,
    /// Requests whose response was cut by the server.
    pub incomplete: u64,
    /// Requests without a response.
    pub unanswered_requests: u64,
    /// Requests whose response is not HTTP.
    pub unreadable: u64,
    /// Requests whose response says in its body that it is a failure.
    #[serde(default)]
    pub says_error: u64,
    /// Requests that the client gave up.
    pub aborted: u64,
    /// From a request's last byte to the first of the response's header, in seconds.
    pub first_byte: Quantiles,
    /// To the first byte of its body.
    pub first_body: Quantiles,
    /// To its last byte.
    pub complete: Quantiles,
    /// From the SYN to its acknowledgement, in seconds.
    pub handshake: Quantiles,
    /// Its server's processes; nothing where they cannot be seen from here.
    pub server: Option<ServerUse>,
}

/// What a version's server uses, all its processes together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerUse {
    /// How many processes there are; none = it is gone.
    pub processes: u64,
    /// CPU time in seconds, since it was found first.
    pub cpu_seconds: f64,
    /// CPUs in use, over the last second.
    pub cpus: Option<f64>,
    /// Memory in RAM; what processes share counts for each.
    pub resident_bytes: u64,
}

/// How the bytes of requests are spread over clients, of late: what came half a minute ago counts
/// half.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Concentration {
    /// Client addresses that sent any.
    pub clients: u64,
    /// Connections that carried any.
    pub connections: u64,
    /// The busiest of the addresses.
    pub busiest: IpAddr,
    /// Its part.
    pub busiest_client: f64,
    /// The busiest connection's part.
    pub busiest_connection: f64,
    /// So many equally busy addresses would be spread as unevenly.
    pub client_keys: f64,
    /// So many equally busy connections would be spread as unevenly.
    pub connection_keys: f64,
}

impl Concentration {
    /// How many keys there are to share out, weighted by how busy they are.
    pub fn keys(&self, affinity: Affinity) -> f64 {
        match affinity {
            Affinity::Client => self.client_keys,
            Affinity::Connection => self.connection_keys,
        }
    }
}

/// Connections that came for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceCount {
    /// As in `modelmirror_steered_connections_total`.
    pub reason: String,
    /// How many.
    pub connections: u64,
}

/// Quantiles of durations, in seconds; nothing where there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// How many durations.
    pub count: u64,
    /// Half of them took no longer.
    pub p50: Option<f64>,
    /// 99 of 100 took no longer.
    pub p99: Option<f64>,
}
