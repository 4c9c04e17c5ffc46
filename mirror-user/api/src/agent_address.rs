//! Where an agent listens: a name or an address, and a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name that DNS knows (RFC 1035, 2.3.4).
const LONGEST_NAME: usize = 253;

/// Where an agent listens. Names are resolved whenever it is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct AgentAddress {
    /// A name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// TCP's port, and UDP's.
    pub port: u16,
}

/// Why a text says of no host where to reach it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAddress {
    /// There is no host, or no port.
    #[error("{0:?} is not a host with a port")]
    NoPort(String),
    /// Colons that may belong to the address or to the port.
    #[error("{0:?} is not a host with a port: an IPv6 address stands in brackets")]
    NoBrackets(String),
    /// Port 0.
    #[error("nothing can be reached at port 0")]
    PortZero,
    /// Not one host.
    #[error("{0} is no host's address")]
    NoHost(IpAddr),
    /// Neither name nor address.
    #[error("{0:?} is neither a name nor an address")]
    NoName(String),
}

impl AgentAddress {
    /// Where it is, if that needs no resolving.
    pub fn socket(&self) -> Option<SocketAddr> {
        let ip = self.host.parse().ok()?;
        Some(SocketAddr::new(ip, self.port))
    }
}

impl From<SocketAddr> for AgentAddress {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_canonical().to_string(),
            port: address.port(),
        }
    }
}

impl FromStr for AgentAddress {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let no_port = || NoAddress::NoPort(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(no_port)?;
        let port: u16 = port.parse().map_err(|_| no_port())?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or_else(no_port)?;
                let ip: Ipv6Addr = inner
                    .parse()
                    .map_err(|_| NoAddress::NoName(host.to_owned()))?;
                one_host(ip.into())?
            }
            None if host.contains(':') => return Err(NoAddress::NoBrackets(text.to_owned())),
            None => match host.parse() {
                Ok(ip) => one_host(ip)?,
                Err(_) if is_name(host) => host.to_lowercase(),
                Err(_) => return Err(NoAddress::NoName(host.to_owned())),
            },
        };
        if port == 0 {
            return Err(NoAddress::PortZero);
        }
        Ok(Self { host, port })
    }
}

fn one_host(ip: IpAddr) -> Result<String, NoAddress> {
    let ip = ip.to_canonical();
    if ip.is_unspecified() || ip.is_multicast() {
        return Err(NoAddress::NoHost(ip));
    }
    Ok(ip.to_string())
}

/// Whether it can be asked for: labels of letters, digits, `-` and `_`. Digits alone at the end are
/// an address that was mistyped (RFC 3696, 2).
fn is_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(fit);
    let last = text.rsplit('.').next().unwrap_or_default();
    let is_number = last.chars().all(|c| c.is_ascii_digit());
    text.len() <= LONGEST_NAME && text.split('.').all(label) && !is_number
}

impl TryFrom<String> for AgentAddress {
    type Error = NoAddress;

    fn try_from(text: String) -> Result<Self, NoAddress> {
        text.parse()
    }
}

impl From<AgentAddress> for String {
    fn from(address: AgentAddress) -> Self {
        address.to_string()
    }
}

impl fmt::Display for AgentAddress {
    /// As it is typed: `shadow.ml.svc:6181`, `10.0.0.9:6181`, `[2001:db8::9]:6181`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        f.pad(&match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&str, &str>) {
        let found = text.parse::<AgentAddress>();
        let found = found.map(|address| address.to_string());
        let found = found.map_err(|error| error.to_string());
        assert_eq!(found.as_deref().map_err(|why| &**why), expected, "{text}");
    }

    #[test]
    fn names_and_addresses_are_taken() {
        check("shadow.ml.svc:6181", Ok("shadow.ml.svc:6181"));
        check("Shadow-1:6181", Ok("shadow-1:6181"));
        check("shadow.ml.svc.:1", Ok("shadow.ml.svc.:1"));
        check("10.0.0.9:6181", Ok("10.0.0.9:6181"));
        check("[2001:db8::0:9]:6181", Ok("[2001:db8::9]:6181"));
        check("[::ffff:10.0.0.9]:6181", Ok("10.0.0.9:6181"));
        let no_port = "\"shadow\" is not a host with a port";
        check("shadow", Err(no_port));
        check("10.0.0.9:", Err("\"10.0.0.9:\" is not a host with a port"));
        check("a:65536", Err("\"a:65536\" is not a host with a port"));
        check("a:0", Err("nothing can be reached at port 0"));
        let bare =
            "\"2001:db8::9:6181\" is not a host with a port: an IPv6 address stands in brackets";
        check("2001:db8::9:6181", Err(bare));
        check(":6181", Err("\"\" is neither a name nor an address"));
        check(
            "10.0.0:6181",
            Err("\"10.0.0\" is neither a name nor an address"),
        );
        check(
            "10.0.0.256:1",
            Err("\"10.0.0.256\" is neither a name nor an address"),
        );
        check("a b:1", Err("\"a b\" is neither a name nor an address"));
        check("[a]:1", Err("\"[a]\" is neither a name nor an address"));
        check("0.0.0.0:6181", Err("0.0.0.0 is no host's address"));
        check("[ff02::1]:6181", Err("ff02::1 is no host's address"));
    }

    #[test]
    fn an_address_needs_no_resolving() {
        let socket = |text: &str| text.parse::<AgentAddress>().unwrap().socket();
        let expected: SocketAddr = "[2001:db8::9]:6181".parse().unwrap();
        assert_eq!(socket("[2001:db8::9]:6181"), Some(expected));
        assert_eq!(AgentAddress::from(expected).socket(), Some(expected));
        assert_eq!(socket("shadow:6181"), None);
    }
}
