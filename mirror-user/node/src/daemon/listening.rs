//! Where somebody was seen to listen: only there "nobody listens" means that a server is gone.
//!
//! Where addresses are translated (DNAT, `docker -p`, a ClusterIP), or in another VRF, a service is well
//! without any listener of this host, and its connections must not all be given to the canary.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use mirror_common::flow::Endpoint;
use mirror_common::policy::{Service, here};

use crate::config::ServiceAddress;
use mirror_base::sock_diag::Listener;

/// Who was seen.
#[derive(Debug, Default)]
pub(super) struct Listening {
    /// The services' ends at which somebody listens, or did.
    seen: HashSet<Endpoint>,
    /// Rows of services at whose ends, all of this host, nobody ever did.
    unseen: BTreeSet<u32>,
}

impl Listening {
    /// What an earlier daemon has seen, by the rules that it left.
    pub(super) fn of(rules: &HashMap<Endpoint, Service>) -> Self {
        let seen = rules.iter().filter(|(_, rule)| rule.here == here::LISTENS);
        Self {
            seen: seen.map(|(endpoint, _)| *endpoint).collect(),
            unseen: BTreeSet::new(),
        }
    }

    /// Says in the rules where nobody was ever seen. It is looked at anew while that concerns a service
    /// that `matters`.
    pub(super) fn mark(
        &mut self,
        rules: &mut HashMap<Endpoint, Service>,
        matters: impl Fn(&Service) -> bool,
        listeners: impl Fn() -> io::Result<Vec<Listener>>,
    ) {
        let is_unseen = |endpoint: &Endpoint, rule: &Service, seen: &HashSet<Endpoint>| {
            rule.here == here::LISTENS && !seen.contains(endpoint)
        };
        let mut open = rules
            .iter()
            .filter(|(endpoint, rule)| is_unseen(endpoint, rule, &self.seen) && matters(rule))
            .peekable();
        if open.peek().is_some() {
            // Without sock_diag nobody was seen.
            let found = listeners().unwrap_or_default();
            let heard = open.filter(|(endpoint, _)| found.iter().any(|one| hears(one, endpoint)));
            let heard: Vec<Endpoint> = heard.map(|(endpoint, _)| *endpoint).collect();
            self.seen.extend(heard);
        }
        let mut others = BTreeSet::new();
        for (endpoint, rule) in rules {
            if is_unseen(endpoint, rule, &self.seen) {
                rule.here = here::UNSEEN;
                self.unseen.insert(rule.index);
            } else {
                others.insert(rule.index);
            }
        }
        self.unseen.retain(|row| !others.contains(row));
    }

    /// Whether nobody listens any more where somebody did, at none of a service's ends.
    pub(super) fn is_gone(
        &self,
        addresses: &[ServiceAddress],
        listeners: impl Fn() -> io::Result<Vec<Listener>>,
    ) -> bool {
        let mut its = self
            .seen
            .iter()
            .filter(|end| is_one_of(end, addresses))
            .peekable();
        // Who cannot be looked for is not called gone.
        its.peek().is_some()
            && listeners()
                .is_ok_and(|found| !its.any(|end| found.iter().any(|one| hears(one, end))))
    }

    /// Why no connection is given to a canary of this host, if so.
    pub(super) fn obstacle(&self, row: u32) -> Option<&'static str> {
        self.unseen.contains(&row).then_some(
            "nobody was seen to listen at the service's own address: where netfilter leads its connections on (docker -p, NodePort, ClusterIP), none can be given to a canary of this host; name the server's own address and interface, such as a pod's veth, or start the server",
        )
    }
}

fn is_one_of(endpoint: &Endpoint, addresses: &[ServiceAddress]) -> bool {
    let end = SocketAddr::from(*endpoint);
    let mut addresses = addresses.iter();
    addresses
        .any(|address| address.port == end.port() && address.ip.is_none_or(|ip| ip == end.ip()))
}

/// Whether connections to `endpoint` come to this listener.
fn hears(listener: &Listener, endpoint: &Endpoint) -> bool {
    let dialled = SocketAddr::from(*endpoint);
    let at = listener.address.ip();
    let any = match at {
        IpAddr::V4(ip) => ip.is_unspecified() && dialled.is_ipv4(),
        IpAddr::V6(ip) => ip.is_unspecified(),
    };
    listener.address.port() == dialled.port() && (any || at.to_canonical() == dialled.ip())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use mirror_base::sock_diag::listeners;

    #[test]
    fn who_is_listened_to_by_whom() {
        let check = |listener: &str, dialled: &str, expected| {
            let listener = Listener {
                address: listener.parse().unwrap(),
                inode: 1,
            };
            let endpoint = Endpoint::from(dialled.parse::<SocketAddr>().unwrap());
            assert_eq!(
                hears(&listener, &endpoint),
                expected,
                "{listener:?} {dialled}"
            );
        };
        check("0.0.0.0:80", "10.0.0.5:80", true);
        check("0.0.0.0:80", "[fd00::5]:80", false);
        check("[::]:80", "10.0.0.5:80", true);
        check("[::]:80", "[fd00::5]:80", true);
        check("10.0.0.5:80", "10.0.0.5:80", true);
        check("[::ffff:10.0.0.5]:80", "10.0.0.5:80", true);
        check("10.0.0.6:80", "10.0.0.5:80", false);
        check("0.0.0.0:81", "10.0.0.5:80", false);
    }

    #[test]
    fn who_was_seen_once_is_known() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let endpoint = Endpoint::from(address);
        let rules = || {
            let rule = Service {
                here: here::LISTENS,
                ..Service::default()
            };
            HashMap::from([(endpoint, rule)])
        };
        let (mut listening, mut marked) = (Listening::default(), rules());
        listening.mark(&mut marked, |_| false, listeners);
        assert_eq!(marked[&endpoint].here, here::UNSEEN, "not looked at");
        assert!(listening.obstacle(0).is_some());
        let mut marked = rules();
        listening.mark(&mut marked, |_| true, listeners);
        assert_eq!(marked[&endpoint].here, here::LISTENS);
        assert_eq!(listening.obstacle(0), None);
        let addresses = [ServiceAddress {
            ip: None,
            port: address.port(),
        }];
        assert!(!listening.is_gone(&addresses, listeners));
        drop(listener);
        assert!(listening.is_gone(&addresses, listeners));
        let (mut next, mut marked) = (Listening::of(&marked), rules());
        next.mark(&mut marked, |_| true, listeners);
        assert_eq!(
            marked[&endpoint].here,
            here::LISTENS,
            "it is gone, and was there"
        );
        let mut marked = rules();
        Listening::default().mark(&mut marked, |_| true, listeners);
        assert_eq!(marked[&endpoint].here, here::UNSEEN);
        assert!(
            !Listening::default().is_gone(&addresses, listeners),
            "it never was there"
        );
    }
}
