//! From the config, what the command line set, and the host's addresses to the rules that the
//! programs obey. Pure.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use mirror_common::flow::Endpoint;
use mirror_common::policy::{self, byte_cost, here, mirror, threshold};
use mirror_common::tunnel::{Arm, Direction};

use crate::config::{Directions, ServiceAddress};

/// How far a budget may be overdrawn at once, in nanoseconds of what it earns.
const BURST_NS: u64 = 1_000_000_000;

/// What holds for one service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rule<'a> {
    /// What clients dial.
    pub(super) addresses: &'a [ServiceAddress],
    /// Row of its counters.
    pub(super) row: u32,
    /// The tunnel's VNI.
    pub(super) id: u32,
    /// The number of its agent.
    pub(super) agent: u32,
    /// What is mirrored; nothing = the mirror is off.
    pub(super) mirror: Option<Directions>,
    /// Whose connections are mirrored.
    pub(super) arms: &'a [Arm],
    /// The share of connections, 0..=1.
    pub(super) sample: f64,
    /// Limit in bytes per second.
    pub(super) budget: Option<u64>,
    /// The shares of stable's and of the canary's connections that the daemon itself reads.
    pub(super) look: [f64; 2],
    /// [`mirror::HELD`] and [`mirror::OFF`], as they hold.
    pub(super) held: u32,
}

impl Rule<'_> {
    fn service(&self, key: [u64; 2], here: bool) -> policy::Service {
        let arms = self
            .arms
            .iter()
            .fold(0, |bits, arm| bits | mirror::arm(*arm));
        policy::Service {
            index: self.row,
            id: self.id,
            agent: self.agent,
            mirror: self.mirror.map_or(0, bits) | arms | self.held,
            threshold: threshold(self.sample),
            key,
            byte_cost: self.budget.map_or(0, byte_cost),
            burst_ns: BURST_NS,
            here: if here { here::LISTENS } else { here::ELSEWHERE },
            look: self.look.map(threshold),
        }
    }
}

/// [`policy::Service::mirror`].
const fn bits(directions: Directions) -> u32 {
    match directions {
        Directions::Both => mirror::BOTH,
        Directions::Requests => mirror::bit(Direction::Request),
    }
}

/// The rules by endpoint. A wildcard stands for each of `local`, the host's own addresses: a
/// connection of this host to the same port elsewhere is not the service's. The agents' tunnel
/// ends are in it too, with row 0, so that nothing to or from them is ever copied.
pub(super) fn by_endpoint(
    rules: &[Rule<'_>],
    agents: impl IntoIterator<Item = SocketAddr>,
    local: &[IpAddr],
    key: [u64; 2],
) -> HashMap<Endpoint, policy::Service> {
    let mut endpoints = HashMap::new();
    for agent in agents {
        endpoints.insert(Endpoint::from(agent), policy::Service::default());
    }
    // Wildcards first: what is named wins.
    for named in [false, true] {
        for rule in rules {
            for address in rule
                .addresses
                .iter()
                .filter(|address| address.ip.is_some() == named)
            {
                let ips = address.ip.as_ref().map_or(local, std::slice::from_ref);
                for &ip in ips {
                    let endpoint = Endpoint::from(SocketAddr::new(ip, address.port));
                    let here = ip.is_loopback() || local.contains(&ip);
                    endpoints.insert(endpoint, rule.service(key, here));
                }
            }
        }
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u64; 2] = [1, 2];

    fn address(text: &str) -> ServiceAddress {
        match text.strip_prefix("*:") {
            Some(port) => ServiceAddress {
                ip: None,
                port: port.parse().unwrap(),
            },
            None => {
                let socket: SocketAddr = text.parse().unwrap();
                ServiceAddress {
                    ip: Some(socket.ip()),
                    port: socket.port(),
                }
            }
        }
    }

    fn endpoint(text: &str) -> Endpoint {
        Endpoint::from(text.parse::<SocketAddr>().unwrap())
    }

    #[test]
    fn a_wildcard_is_every_address_of_the_host_and_what_is_named_wins() {
        let (any, named) = (
            [address("*:8000")],
            [address("10.0.0.5:8000"), address("[::1]:8001")],
        );
        let rule = |addresses, row| Rule {
            addresses,
            row,
            id: row + 100,
            agent: 0,
            mirror: Some(Directions::Both),
            arms: &[Arm::Stable],
            sample: 0.5,
            budget: None,
            look: [0.0; 2],
            held: 0,
        };
        let rules = [rule(&named[..], 2), rule(&any[..], 1)];
        let local: Vec<IpAddr> = ["127.0.0.1", "10.0.0.5", "::1"]
            .map(|ip| ip.parse().unwrap())
            .to_vec();
        let agent = "10.0.0.9:6181".parse().unwrap();
        let endpoints = by_endpoint(&rules, [agent], &local, KEY);
        let rows: HashMap<Endpoint, u32> = endpoints
            .iter()
            .map(|(end, service)| (*end, service.index))
            .collect();
        let expected = [
            ("10.0.0.9:6181", 0),
            ("127.0.0.1:8000", 1),
            ("10.0.0.5:8000", 2),
            ("[::1]:8000", 1),
            ("[::1]:8001", 2),
        ];
        assert_eq!(rows, expected.map(|(end, row)| (endpoint(end), row)).into());
        assert_eq!(
            endpoints[&endpoint("[::1]:8000")].threshold,
            policy::WHOLE / 2
        );
    }
}
