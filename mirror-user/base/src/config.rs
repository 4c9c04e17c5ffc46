//! What both config files have in common: how text becomes values, and how a problem is shown.
//!
//! What was typed and what will run are two layers: the halves (`config/keys.rs` of node and agent) take the text
//! apart key by key, remember where each value stands, collect every problem, and only then build what will run.

mod errors;
pub mod table;
pub mod values;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use toml::Spanned;
use toml::de::DeValue;

pub use errors::{Error, Fault, Place, Problem, Report};
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

/// Reads a config file by `parse`.
///
/// # Errors
/// When it cannot be read, and with every problem that was found in it.
pub fn read<T>(file: &Path, parse: impl Fn(&str) -> Result<T, Vec<Problem>>) -> Result<T, Error> {
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
///
/// # Errors
/// With this one problem.
pub fn meant(text: &str, kind: Kind) -> Result<(), Vec<Problem>> {
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
pub fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let (first, second) = (a.ip().to_canonical(), b.ip().to_canonical());
    let any = first.is_unspecified() || second.is_unspecified();
    a.port() == b.port() && (any || first == second)
}

/// Refuses the keys of the api that had a port and a token of its own.
pub fn refuse_api(section: &mut table::Section<'_>, why: &str, cure: &str) {
    for key in ["api", "token_file"] {
        section.gone(key, why, cure);
    }
}

/// Refuses two services of one name or one id.
pub fn refuse_shared_names<'a>(
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

/// An address that clients dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAddress {
    /// Nothing = any address of this host (`*`).
    pub ip: Option<IpAddr>,
    /// TCP port.
    pub port: u16,
}

impl ServiceAddress {
    /// Whether one packet could belong to both.
    pub fn overlaps(self, other: Self) -> bool {
        let any = self.ip.is_none() || other.ip.is_none();
        self.port == other.port && (any || self.ip == other.ip)
    }

    /// Whether a canary that listens there is certainly what clients dial: `*` means this host's addresses,
    /// which only the daemon knows.
    pub fn is_taken_by(self, canary: SocketAddr) -> bool {
        let own = Self::of_listener(canary);
        let is_known = self.ip.is_some() || own.ip.is_none_or(|ip| ip.is_loopback());
        is_known && self.overlaps(own)
    }

    /// What a listener of this host occupies; an unspecified address is any.
    pub fn of_listener(listener: SocketAddr) -> Self {
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

/// For tests, of this crate and others.
#[cfg(any(test, feature = "fixtures"))]
pub mod fixture {
    use std::path::Path;

    use super::{Problem, Report};

    /// What is said of a text, as that of `file.toml`; nothing where it can be used.
    pub fn said<T>(text: &str, parse: impl Fn(&str) -> Result<T, Vec<Problem>>) -> String {
        let problems = parse(text).err();
        problems.map_or_else(String::new, |problems| {
            Report::new(Path::new("file.toml"), text, problems).to_string()
        })
    }

    /// Puts `with` in place of `what` in this file, and expects these parts, and no other problem, in the report.
    #[track_caller]
    pub fn check<T>(
        file: &str,
        parse: impl Fn(&str) -> Result<T, Vec<Problem>>,
        (what, with): (&str, &str),
        expected: &[&str],
    ) {
        assert!(file.contains(what), "{what:?} is not in the file");
        let report = said(&file.replacen(what, with, 1), parse);
        for part in expected {
            assert!(report.contains(part), "{part:?} is not in:\n{report}");
        }
        let places = expected
            .iter()
            .filter(|part| part.starts_with("file.toml:"));
        let found = report.matches("file.toml:").count();
        assert_eq!(found, places.count(), "{report}");
    }
}
