//! The inference node's file, after it was read, checked and completed.

mod canary;
mod keys;
mod reload;
mod rollout;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mirror_api::{AgentAddress, Transport, XdpHook};
use mirror_base::config::{Error, Kind, meant, read};
use mirror_base::transport::keys::PublicKey;
use mirror_common::tunnel::Arm;

pub use mirror_base::config::{PortRange, ServiceAddress};

pub use canary::Canary;
pub use keys::node;
pub use reload::{Changes, NeedsRestart, changes};
pub use rollout::{plan, read_plan};

/// The file with every key at its default, and an example where a key has none.
pub const DEFAULT: &str = include_str!("config/default.toml");

/// Reads the file of an inference node.
///
/// # Errors
/// When it cannot be read, and with every problem that was found in it.
pub fn read_node(file: &Path) -> Result<Node, Error> {
    read(file, |text| {
        meant(text, Kind::Node)?;
        node(text)
    })
}

/// `modelmirror run --config FILE`, on the inference node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Names of the interfaces where clients' packets arrive.
    pub interfaces: Vec<String>,
    /// What the command line set, and what must survive a restart.
    pub state_dir: PathBuf,
    /// Where maps and links are pinned.
    pub pin_dir: PathBuf,
    /// The control socket's path.
    pub control_socket: PathBuf,
    /// Where /metrics, /healthz and /readyz listen.
    pub admin: SocketAddr,
    /// Where this host's private key is.
    pub key_file: PathBuf,
    /// What all rings together may hold, in bytes.
    pub ring: u64,
    /// How long copies come together before they are sent.
    pub batch_interval: Duration,
    /// How much of a CPU the sender may use.
    pub sender_cpus: f64,
    /// How many connections of services with a canary are remembered.
    pub connections: u32,
    /// The ports of ours that canaries on other hosts see.
    pub translation_ports: PortRange,
    /// The addresses of ours that they see; none = the one that the route to them has.
    pub translation_addresses: Vec<IpAddr>,
    /// What is mirrored.
    pub services: Vec<Service>,
}

/// One mirrored service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique name, and the metrics' `service` label.
    pub name: String,
    /// Unique, 1..=16777215: the tunnel's VNI.
    pub id: u32,
    /// What clients dial.
    pub addresses: Vec<ServiceAddress>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// The version in production.
    pub stable_version: String,
    /// Where its copies go, if anywhere.
    pub mirror: Option<Mirror>,
    /// Which of its connections the daemon reads itself, if any.
    pub look: Option<Look>,
    /// The version on trial, if there is one.
    pub canary: Option<Canary>,
    /// What a rollout does unless it is started with a plan of its own.
    pub rollout: Option<mirror_rollout::plan::Plan>,
}

/// Which connections of a service the daemon reads itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Look {
    /// The share of stable's connections.
    pub stable: f64,
    /// The share of the canary's connections.
    pub canary: f64,
    /// The most exchanges of each version per second; with more, a smaller share is read.
    pub exchanges_per_second: u64,
    /// A request that waits for so long without a byte counts as failed.
    pub unanswered_after: Duration,
    /// A whole response fails nevertheless where something stands at this place of its JSON.
    pub fail_if: Option<String>,
}

impl Default for Look {
    /// What an empty `[service.look]` says.
    fn default() -> Self {
        Self {
            stable: 1.0,
            canary: 1.0,
            exchanges_per_second: 1_000,
            unanswered_after: Duration::from_secs(60),
            fail_if: None,
        }
    }
}

impl Service {
    /// Where packets of its canary are taken if that is on another host; nothing = at TC. Copies are
    /// made there, so the packets of one that is mirrored must come by; connections that the daemon reads
    /// itself go by TC one by one.
    pub fn xdp(&self) -> Option<XdpHook> {
        self.canary.as_ref()?.xdp.filter(|_| !self.mirrors_canary())
    }

    /// How its connections are looked at. What a rollout goes by has to be seen: a service with a canary,
    /// or a plan for one, is looked at unless the file says otherwise.
    pub fn looks(&self) -> Option<Look> {
        let has_trial = self.canary.is_some() || self.rollout.is_some();
        let can_be_read = self.protocol == Protocol::Http;
        let look = self.look.clone().or_else(|| has_trial.then(Look::default));
        look.filter(|_| can_be_read)
    }

    /// Whether connections of the canary are mirrored.
    pub fn mirrors_canary(&self) -> bool {
        let arms = self.mirror.iter().flat_map(|mirror| &mirror.arms);
        arms.into_iter().any(|arm| *arm == Arm::Canary)
    }
}

/// What a service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.
    Http,
    /// gRPC over HTTP/2.
    Grpc,
    /// Anything over TCP.
    Tcp,
}

impl Protocol {
    /// As configs and people write it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// Which packets of a connection are mirrored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Directions {
    /// Requests and responses: what comparing needs.
    #[default]
    Both,
    /// Requests only: the shadow gets the load, and nothing is compared.
    Requests,
}

/// Where and how much of a service is mirrored.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Where the shadow agent listens.
    pub agent: AgentAddress,
    /// What the agent is known by; there is one unless `insecure`.
    pub agent_key: Option<PublicKey>,
    /// How copies travel.
    pub transport: Transport,
    /// Whether the agent is spoken to in clear text.
    pub insecure: bool,
    /// Share of connections, 0..=1.
    pub sample: f64,
    /// Which of a connection's packets are copied.
    pub directions: Directions,
    /// Whose connections are copied.
    pub arms: Vec<Arm>,
    /// Hard limit, in bytes per second; nothing = a tenth of the uplink's speed.
    pub max_bytes_per_second: Option<u64>,
}

#[cfg(test)]
mod tests;
