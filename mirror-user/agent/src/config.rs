//! The shadow host's file, after it was read, checked and completed.

mod keys;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::Glob;
use mirror_base::config::{Error, Kind, meant, read};
use mirror_base::transport::keys::PublicKey;

pub use keys::shadow;

/// The file with every key at its default, and an example where a key has none.
pub const DEFAULT: &str = include_str!("config/default.toml");

/// Reads the file of a shadow host.
///
/// # Errors
/// When it cannot be read, and with every problem that was found in it.
pub fn read_shadow(file: &Path) -> Result<Shadow, Error> {
    read(file, |text| {
        meant(text, Kind::Shadow)?;
        shadow(text)
    })
}

/// `modelmirror shadow --config FILE`, on the shadow host.
#[derive(Clone, Debug, PartialEq)]
pub struct Shadow {
    /// Where taps connect, and where datagrams arrive.
    pub listen: SocketAddr,
    /// Where plain VXLAN (AWS VPC Traffic Mirroring) arrives, if anywhere.
    pub vxlan: Option<SocketAddr>,
    /// Where /metrics, /healthz and /readyz listen.
    pub admin: SocketAddr,
    /// Where this host's private key is.
    pub key_file: PathBuf,
    /// Where `modelmirror status` asks.
    pub control_socket: PathBuf,
    /// The taps that are known by their keys.
    pub taps: Vec<Tap>,
    /// Whether `allow` may send in clear text.
    pub insecure: bool,
    /// Who may send without a key.
    pub allow: Vec<ipnet::IpNet>,
    /// Records, one folder a service.
    pub record_dir: PathBuf,
    /// Limit of everything in `record_dir` together, in bytes.
    pub record_limit: u64,
    /// All that is buffered, all services together, in bytes.
    pub memory: usize,
    /// How long copies come together before they are looked at.
    pub batch_interval: Duration,
    /// The services that are replayed.
    pub services: Vec<ShadowService>,
}

/// A tap that the agent takes copies from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// What metrics, records and logs call it.
    pub name: String,
    /// What it is known by.
    pub key: PublicKey,
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
    /// A copy of the old version, by which its own noise is told from a difference of the versions.
    pub control: Option<Control>,
    /// Which Host header the shadow sees.
    pub host: HostHeader,
    /// The shadow's version.
    pub version: String,
    /// How long the shadow may take for one answer.
    pub timeout: Duration,
    /// How much longer than that production's own exchange may be silent, or its answer take.
    pub incomplete_after: Duration,
    /// Exchanges with the shadow at once.
    pub concurrency: usize,
    /// Requests that wait, all connections together.
    pub queue: usize,
    /// Largest body that is rebuilt, in bytes.
    pub max_body: usize,
    /// Which requests are replayed, and what of them.
    pub requests: Requests,
    /// How answers are held against each other.
    pub compare: Compare,
    /// What is written down.
    pub record: Record,
    /// What turns out to be right later.
    pub labels: Option<Labels>,
}

/// A copy of the old version, and which requests are answered twice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Control {
    /// Where it listens.
    pub address: SocketAddr,
    /// The share of requests that it answers as well.
    pub sample: f64,
    /// The share of requests that the shadow answers twice.
    pub repeat: f64,
}

/// Which requests are replayed, and what of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requests {
    /// Methods that are replayed.
    pub methods: Vec<String>,
    /// Patterns of the paths that are replayed.
    pub include: Vec<Glob>,
    /// Patterns of those among them that are not.
    pub exclude: Vec<Glob>,
    /// Whether health checks and `/metrics` are replayed.
    pub health_checks: bool,
    /// Whether what administers the server is replayed.
    pub administration: bool,
    /// Headers that the shadow does not get, in lower case.
    pub strip_headers: Vec<String>,
}

/// What turns out to be right later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// The file that labels are appended to, or that is replaced by a newer one.
    pub file: PathBuf,
    /// What its columns, or members of its JSON objects, are called.
    pub columns: Columns,
    /// How often it is looked at.
    pub interval: Duration,
}

/// What the columns of labels, or the members of JSON objects, are called.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Columns {
    /// The correlation id; else the first there is of `request_id`, `trace_id` and `id`.
    pub id: Option<String>,
    /// The label; else `label`.
    pub label: Option<String>,
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
    /// Slices that always have their place.
    pub slices: Vec<String>,
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
    pub headers: Vec<String>,
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

#[cfg(test)]
mod tests;
