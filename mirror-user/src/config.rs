//! What will run: both config files after they were read, checked and completed.
//!
//! What was typed and what will run are two layers: [`node()`] and [`shadow()`] take the text apart
//! key by key, remember where each value stands, collect every problem, and only then build the
//! types below.

mod canary;
mod defaults;
mod errors;
mod node;
mod reload;
mod rollout;
mod shadow;
mod table;
mod values;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use globset::Glob;
use mirror_api::Transport;
use mirror_api::{AgentAddress, XdpHook};
use mirror_common::tunnel::Arm;
use toml::Spanned;
use toml::de::DeValue;

use crate::transport::keys::PublicKey;

pub use canary::Canary;
pub use defaults::default_text;
pub use errors::{Error, Fault, Place, Problem, Report};
pub use node::node;
pub use reload::{Changes, NeedsRestart, changes};
pub use rollout::{plan, read_plan};
pub use shadow::shadow;
pub use values::{glob, is_name};

/// Where the daemon is controlled unless the config says otherwise.
pub const CONTROL_SOCKET: &str = "/run/modelmirror/control.sock";

/// Where the shadow agent is asked unless the config says otherwise.
pub const SHADOW_SOCKET: &str = "/run/modelmirror/shadow.sock";

/// Where maps and links are pinned unless the config says otherwise.
pub const PIN_DIR: &str = "/sys/fs/bpf/modelmirror";
/// Where what the command line set is kept unless the config says otherwise.
pub const STATE_DIR: &str = "/var/lib/modelmirror";
/// Where a host's key is kept unless the config says otherwise.
pub const KEY_FILE: &str = "/var/lib/modelmirror/key";
/// Where records are written unless the config says otherwise.
pub const RECORD_DIR: &str = "/var/log/modelmirror";

/// Which host a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The inference node: `modelmirror run`.
    Node,
    /// The shadow host: `modelmirror shadow`.
    Shadow,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Node => "node",
            Self::Shadow => "shadow",
        })
    }
}

/// Either file.
#[derive(Clone, Debug, PartialEq)]
pub enum File {
    /// The inference node's.
    Node(Node),
    /// The shadow host's.
    Shadow(Shadow),
}

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

/// Reads a file of the given kind, or of the kind that its keys tell.
///
/// # Errors
/// When it cannot be read, and with every problem that was found in it.
pub fn read_either(file: &Path, kind: Option<Kind>) -> Result<File, Error> {
    read(file, |text| match kind.unwrap_or_else(|| kind_of(text)) {
        Kind::Node => node(text).map(File::Node),
        Kind::Shadow => shadow(text).map(File::Shadow),
    })
}

/// What is said of a text as either host's config, where it is none.
pub fn said_of(text: &str) -> Vec<String> {
    let said = |problems| Report::new(Path::new("file.toml"), text, problems).to_string();
    let refused = [node(text).err(), shadow(text).err()];
    refused.into_iter().flatten().map(said).collect()
}

fn read<T>(file: &Path, parse: impl Fn(&str) -> Result<T, Vec<Problem>>) -> Result<T, Error> {
    let text = std::fs::read_to_string(file).map_err(|why| Error::Read {
        file: file.to_owned(),
        why,
    })?;
    parse(&text).map_err(|problems| Error::Refused(Report::new(file, &text, problems)))
}

/// Which host a text is for, told by the keys that only one of them has.
pub fn kind_of(text: &str) -> Kind {
    told(text).unwrap_or(Kind::Node)
}

/// The same; nothing where it has keys of both or of neither.
fn told(text: &str) -> Option<Kind> {
    const ONLY_SHADOW: [&str; 6] = ["listen", "allow", "record_dir", "memory", "tap", "vxlan"];
    let (table, _) = toml::de::DeTable::parse_recoverable(text);
    let table = table.get_ref();
    let top = ONLY_SHADOW.iter().any(|&key| table.contains_key(key));
    let services = table.get("service").map(Spanned::get_ref);
    let replayed = |service: &Spanned<DeValue<'_>>| service.get_ref().get("target").is_some();
    let target = match services {
        Some(DeValue::Array(services)) => services.iter().any(replayed),
        _ => false,
    };
    match (table.contains_key("interfaces"), top || target) {
        (true, false) => Some(Kind::Node),
        (false, true) => Some(Kind::Shadow),
        _ => None,
    }
}

/// Refuses the other host's file as a whole: every line of it would be a problem.
fn meant(text: &str, kind: Kind) -> Result<(), Vec<Problem>> {
    let (what, cure) = match (told(text), kind) {
        (Some(Kind::Shadow), Kind::Node) => (
            "this is a config of the shadow host",
            "`modelmirror shadow` takes it; `modelmirror config default --for node` prints one for here",
        ),
        (Some(Kind::Node), Kind::Shadow) => (
            "this is a config of the inference node",
            "`modelmirror run` takes it; `modelmirror config default --for shadow` prints one for here",
        ),
        _ => return Ok(()),
    };
    let fault = Fault::new(what, cure);
    Err(vec![Problem { span: 0..0, fault }])
}

/// Whether two listeners of one protocol want the same port of the same address.
pub(crate) fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let (first, second) = (a.ip().to_canonical(), b.ip().to_canonical());
    let any = first.is_unspecified() || second.is_unspecified();
    a.port() == b.port() && (any || first == second)
}

/// Refuses the keys of the api that had a port and a token of its own.
fn refuse_api(section: &mut table::Section<'_>, why: &str, cure: &str) {
    for key in ["api", "token_file"] {
        section.gone(key, why, cure);
    }
}

/// Refuses two services of one name or one id.
fn refuse_shared_names<'a>(
    problems: &table::Problems,
    services: impl Iterator<Item = (Option<&'a Spanned<String>>, Option<&'a Spanned<u32>>)>,
) {
    let (names, ids): (Vec<_>, Vec<_>) = services.unzip();
    let names = names.into_iter().flatten();
    problems.refuse_twins(
        names,
        "service name",
        "give every service a name of its own",
    );
    let cure = "give every service an id of its own, the same on node and shadow host";
    problems.refuse_twins(ids.into_iter().flatten(), "service id", cure);
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

/// Ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl PortRange {
    /// Linux never gives these to connections by itself, unless `ip_local_port_range` was changed.
    pub const DEFAULT: Self = Self {
        first: 61_000,
        last: u16::MAX,
    };

    /// How many there are.
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }
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

/// An address that clients dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAddress {
    /// Nothing = any address of this host (`*`).
    pub ip: Option<IpAddr>,
    /// TCP port.
    pub port: u16,
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

impl ServiceAddress {
    /// Whether one packet could belong to both.
    pub fn overlaps(self, other: Self) -> bool {
        let any = self.ip.is_none() || other.ip.is_none();
        self.port == other.port && (any || self.ip == other.ip)
    }

    /// Whether a canary that listens there is certainly what clients dial: `*` means this host's addresses,
    /// which only the daemon knows.
    pub(crate) fn is_taken_by(self, canary: SocketAddr) -> bool {
        let own = Self::of_listener(canary);
        let is_known = self.ip.is_some() || own.ip.is_none_or(|ip| ip.is_loopback());
        is_known && self.overlaps(own)
    }

    /// What a listener of this host occupies; an unspecified address is any.
    pub(crate) fn of_listener(listener: SocketAddr) -> Self {
        let ip = listener.ip();
        Self {
            ip: (!ip.is_unspecified()).then_some(ip),
            port: listener.port(),
        }
    }
}

impl fmt::Display for ServiceAddress {
    /// As it is typed: `10.0.0.5:8000`, `[2001:db8::5]:8000`, `*:8000`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, "*:{}", self.port),
        }
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
