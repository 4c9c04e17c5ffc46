//! What will run: both config files after they were read, checked and completed.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

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
}

/// An address that clients dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAddress {
    /// Nothing = any address of this host (`*`).
    pub ip: Option<IpAddr>,
    /// TCP port.
    pub port: u16,
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

/// Where and how much of a service is mirrored.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// The shadow agent's tunnel end.
    pub agent: SocketAddr,
    /// The agent's summary, for the rollout.
    pub api: Option<String>,
    /// Share of connections, 0..=1.
    pub sample: f64,
    /// Hard limit, in bytes per second; nothing = a tenth of the uplink's speed.
    pub max_bytes_per_second: Option<u64>,
}

/// `modelmirror shadow --config FILE`, on the shadow host.
#[derive(Clone, Debug, PartialEq)]
pub struct Shadow {
    /// The tunnel's end.
    pub listen: SocketAddr,
    /// Where plain VXLAN (AWS VPC Traffic Mirroring) arrives, if anywhere.
    pub vxlan: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz listen.
    pub admin: SocketAddr,
    /// Where the summary for the node listens, and the bearer token it asks for.
    pub api: Option<Api>,
    /// Taps that are listened to.
    pub allow: Vec<ipnet::IpNet>,
    /// Records, one folder a service.
    pub record_dir: PathBuf,
    /// Limit of everything in `record_dir` together, in bytes.
    pub record_limit: u64,
    /// All that is buffered, all services together, in bytes.
    pub memory: usize,
    /// The services that are replayed.
    pub services: Vec<ShadowService>,
}

/// The agent's summary for the node.
#[derive(Clone, Debug, PartialEq)]
pub struct Api {
    /// Where it listens.
    pub listen: SocketAddr,
    /// What a caller must present.
    pub token: String,
}

/// One service as the agent sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct ShadowService {
    /// Same name as on the node.
    pub name: String,
    /// Same id as on the node.
    pub id: u32,
    /// The addresses that clients dial, needed only for VXLAN, which does not name the service.
    pub addresses: Vec<SocketAddr>,
    /// The shadow model.
    pub target: SocketAddr,
    /// Which Host header the shadow sees.
    pub host: HostHeader,
    /// The shadow's version.
    pub version: String,
    /// How long the shadow may take for one answer.
    pub timeout: Duration,
    /// Exchanges with the shadow at once.
    pub concurrency: usize,
    /// Requests that wait, all connections together.
    pub queue: usize,
    /// Largest body that is rebuilt, in bytes.
    pub max_body: usize,
    /// How answers are held against each other.
    pub compare: Compare,
    /// What is written down.
    pub record: Record,
}

/// Which Host header the shadow sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostHeader {
    /// The client's.
    Keep,
    /// The target's address.
    Target,
}

/// How answers are held against each other.
#[derive(Clone, Debug, PartialEq)]
pub struct Compare {
    /// Where an answer says what the model said: a JSON pointer (RFC 6901), `*` for one level.
    pub prediction: Option<String>,
    /// What requests are sliced by.
    pub slice: Option<Slice>,
    /// JSON pointers that are left out, `*` for one level.
    pub ignore: Vec<String>,
    /// Numbers that differ by no more than this are equal.
    pub absolute: f64,
    /// Numbers that differ by no more than this part of the larger one are equal.
    pub relative: f64,
}

/// What requests are sliced by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slice {
    /// A request header, in lower case.
    Header(String),
    /// A JSON pointer into the request's body.
    Pointer(String),
}

/// What is written down of an exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Which exchanges' payloads.
    pub payloads: Payloads,
    /// Share of exchanges for [`Payloads::Sampled`].
    pub sample: f64,
    /// Header names, in lower case, whose values are not written.
    pub redact_headers: Vec<String>,
    /// JSON pointers into bodies whose values are not written, `*` for one level.
    pub redact_fields: Vec<String>,
}

/// Which exchanges' headers and bodies are written down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payloads {
    /// None.
    None,
    /// Those whose answers differ.
    Different,
    /// A share.
    Sampled,
    /// All.
    All,
}
