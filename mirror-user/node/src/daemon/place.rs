//! Where a canary is: on this host, or elsewhere, and how to get there. Pure.

use std::net::IpAddr;

use super::network::{Master, View};
use super::way::Way;
use crate::config::{Canary, ServiceAddress};

/// Where a canary is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place<'a> {
    /// On this host: connections are given to its listener.
    Here,
    /// On another host: addresses are translated.
    Away(&'a Way),
}

/// Why nobody can be taken to a canary.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Obstacle {
    /// The same, where another config works.
    #[error("{why}; {cure}")]
    Topology {
        /// What is in the way.
        why: String,
        /// What to write instead.
        cure: String,
    },
    /// The config would have to change, or this host's network.
    #[error("{0}")]
    Lasting(String),
    /// It may have gone in a moment.
    #[error("{0}")]
    Passing(String),
}

impl Obstacle {
    /// Whether it stays until somebody changes something.
    pub(super) fn is_lasting(&self) -> bool {
        !matches!(self, Self::Passing(_))
    }
}

/// Where a canary of a service with these addresses is, or why nobody can be taken there.
pub(super) fn find<'a>(
    canary: &Canary,
    service: &[ServiceAddress],
    view: &'a View,
) -> Result<Place<'a>, Obstacle> {
    let lasting = |why: String| Err(Obstacle::Lasting(why));
    let ip = canary.address.ip();
    if is_here(ip, &view.addresses) {
        let own = ServiceAddress::of_listener(canary.address);
        if let Some(taken) = service.iter().find(|taken| taken.overlaps(own)) {
            return lasting(format!("{own} is the service's own address, {taken}"));
        }
        return match led_aside(service, view) {
            Some(obstacle) => Err(obstacle),
            None => Ok(Place::Here),
        };
    }
    let same_family =
        |address: &ServiceAddress| address.ip.is_none_or(|own| own.is_ipv4() == ip.is_ipv4());
    if !service.iter().any(same_family) {
        return lasting(format!(
            "{ip} is on another host, and none of the service's addresses is of its family"
        ));
    }
    match view.ways.get(&canary.address) {
        Some(Ok(way)) if way.link.loopback => lasting(format!("the route to {ip} leads back here")),
        Some(Ok(way)) => match only_leaves(service, view)
            .or_else(|| has_tags(view))
            .or_else(|| is_port(view))
        {
            Some(obstacle) => Err(obstacle),
            None => Ok(Place::Away(way)),
        },
        Some(Err(why)) => lasting(why.to_string()),
        None => Err(Obstacle::Passing(format!(
            "the way to {ip} is not known yet"
        ))),
    }
}

/// Why connections do not stay where they would be given to a canary of this host.
fn led_aside(service: &[ServiceAddress], view: &View) -> Option<Obstacle> {
    let elsewhere = |address: &ServiceAddress| {
        let ip = address.ip.filter(|ip| !is_here(*ip, &view.addresses));
        ip.filter(|_| !view.addresses.is_empty())
    };
    let passing: Vec<IpAddr> = service.iter().filter_map(elsewhere).collect();
    if passing.len() == service.len() && !passing.is_empty() {
        return Some(Obstacle::Topology {
            why: format!("{} is no address of this host, so its connections pass through, and none can be given to a canary that listens here", passing[0]),
            cure: "run the canary where it has an address of its own, such as a pod, and write that as its `address`".to_owned(),
        });
    }
    let tapped = view.links.values().flatten();
    let led_on = service.iter().find_map(|address| {
        let rule = view
            .netfilter
            .leads_on((address.ip, address.port), tapped.clone())?;
        Some((address, rule))
    });
    if let Some((address, rule)) = led_on {
        return Some(Obstacle::Topology {
            why: format!(
                "netfilter leads connections to {address} on to somebody else ({}), before a canary of this host could have them",
                rule.rule
            ),
            cure: "name the server's own address, and the interface before it, and give the canary an address of its own; docs/how-to/choose-interface.md has what works".to_owned(),
        });
    }
    view.masters.iter().find_map(|(port, master)| {
        let Master { name, kind, filters } = master;
        match kind.as_str() {
            "vrf" => Some(Obstacle::Topology {
                why: format!("{port} belongs to the VRF {name}, where the kernel resets connections that are given to a canary of this host"),
                cure: "run the canary where it has an address of its own, such as a pod or another host, and write that as its `address`".to_owned(),
            }),
            "bridge" if *filters => Some(Obstacle::Topology {
                why: format!("{port} is a port of the bridge {name}, which has netfilter take packets on their way (bridge-nf-call-iptables): the canary would not get them"),
                cure: format!("name {name} itself in `interfaces` in place of {port}"),
            }),
            _ => None,
        }
    })
}

/// Why clients' packets are seen only as they leave for the servers, when nobody can be given them any more.
fn only_leaves(service: &[ServiceAddress], view: &View) -> Option<Obstacle> {
    let ways: Option<Vec<u32>> = service
        .iter()
        .map(|address| {
            let ip = address.ip.filter(|ip| !is_here(*ip, &view.addresses))?;
            view.onward.get(&ip).copied()
        })
        .collect();
    let ways = ways?;
    let mut names = Vec::new();
    for link in view.links.values().flatten() {
        // Clients may come in by the NIC by which the servers are reached; by a pod's cable only the pod does.
        let is_inside = link.master != 0 || matches!(link.kind.as_deref(), Some("veth" | "bridge"));
        let leads_there = ways
            .iter()
            .any(|way| [link.index, link.master].contains(way));
        if !is_inside || !leads_there {
            return None;
        }
        names.push(link.name.as_str());
    }
    (!names.is_empty()).then(|| Obstacle::Topology {
        why: format!("connections are seen on {} only as they leave for the servers, too late to be given to a canary of another host", names.join(", ")),
        cure: "name the interface where clients come in, such as the NIC, in `interfaces` in place of it".to_owned(),
    })
}

/// Why clients' frames cannot be taken away: each has a VLAN tag, and would lose it.
fn has_tags(view: &View) -> Option<Obstacle> {
    let links = || view.links.values().flatten();
    if !links().all(|link| view.tagged.contains_key(&link.name)) {
        return None;
    }
    let (link, vlan) = links().find_map(|link| Some((link, view.tagged.get(&link.name)?)))?;
    Some(Obstacle::Topology {
        why: format!(
            "frames on {} have VLAN tags, and none is taken to a canary of another host",
            link.name
        ),
        cure: format!(
            "name {vlan} itself in `interfaces` in place of {}",
            link.name
        ),
    })
}

/// Why answers would not get back to clients: who they are is known to a bridge or bond, and its ports learn
/// nobody's hardware address.
fn is_port(view: &View) -> Option<Obstacle> {
    let mut masters = view.masters.iter();
    let (port, Master { name, kind, .. }) = masters.find(|(_, master)| master.kind != "vrf")?;
    Some(Obstacle::Topology {
        why: format!(
            "{port} is a port of the {kind} {name}, by which answers of a canary of another host find no way back to clients"
        ),
        cure: format!("name {name} itself in `interfaces` in place of {port}"),
    })
}

/// Whether an address is one of this host's.
pub(super) fn is_here(ip: IpAddr, local: &[IpAddr]) -> bool {
    ip.is_loopback() || local.contains(&ip)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{canary, link, way};
    use super::super::way::NoWay;
    use super::*;
    use crate::netlink::Link;

    fn view() -> View {
        let mut view = View {
            addresses: vec![[10, 0, 0, 5].into()],
            ..View::default()
        };
        let there = ([10, 1, 0, 7], 8001).into();
        view.ways.insert(there, Ok(way()));
        let gone = ([10, 9, 0, 7], 8001).into();
        view.ways
            .insert(gone, Err(NoWay::NoRoute([10, 9, 0, 7].into())));
        view
    }

    #[track_caller]
    fn check(canary_ip: [u8; 4], service: &str, expected: Result<bool, Obstacle>) {
        let canary = Canary {
            address: (canary_ip, 8001).into(),
            ..canary()
        };
        let ip = (service != "*").then(|| service.parse().unwrap());
        let service = [ServiceAddress { ip, port: 8000 }];
        let view = view();
        let found = find(&canary, &service, &view);
        assert_eq!(found.map(|place| place != Place::Here), expected);
    }

    /// What is in the way of a canary of a service at 10.0.0.5, or of a pod, where `link` is tapped.
    #[track_caller]
    fn check_tapped(
        service: [u8; 4],
        canary_ip: [u8; 4],
        link: Link,
        master: Option<Master>,
        expected: Option<&str>,
    ) {
        let canary = Canary {
            address: (canary_ip, 8001).into(),
            ..canary()
        };
        let mut view = view();
        view.onward.insert([10, 2, 0, 8].into(), 6);
        view.masters
            .extend(master.map(|master| (link.name.clone(), master)));
        view.links.insert(link.name.clone(), Some(link));
        let service = [ServiceAddress {
            ip: Some(service.into()),
            port: 8000,
        }];
        let found = find(&canary, &service, &view);
        match (&found, expected) {
            (Ok(_), None) => {}
            (Err(Obstacle::Topology { why, .. }), Some(words)) => {
                assert!(why.contains(words), "{why}")
            }
            _ => panic!("{found:?}, not {expected:?}"),
        }
    }

    #[test]
    fn what_is_tapped_decides_what_can_be_given_away() {
        let (own, pod) = ([10, 0, 0, 5], [10, 2, 0, 8]);
        let (here, away) = ([10, 0, 0, 5], [10, 1, 0, 7]);
        let master = |kind: &str, filters| {
            Some(Master {
                name: "m0".to_owned(),
                kind: kind.to_owned(),
                filters,
            })
        };
        let port = |master| Link {
            master,
            kind: Some("veth".to_owned()),
            ..link("veth1", 9)
        };
        let bridge = || Link {
            kind: Some("bridge".to_owned()),
            ..link("cni0", 6)
        };
        check_tapped(own, here, link("eth0", 2), None, None);
        check_tapped(own, here, port(7), master("bridge", false), None);
        check_tapped(
            own,
            here,
            port(7),
            master("bridge", true),
            Some("bridge-nf-call-iptables"),
        );
        check_tapped(
            own,
            here,
            port(7),
            master("vrf", false),
            Some("belongs to the VRF m0"),
        );
        check_tapped(
            pod,
            here,
            link("eth0", 2),
            None,
            Some("10.2.0.8 is no address of this host"),
        );
        check_tapped(pod, away, link("eth0", 2), None, None);
        check_tapped(pod, away, link("eth0", 6), None, None);
        check_tapped(
            pod,
            away,
            bridge(),
            None,
            Some("seen on cni0 only as they leave"),
        );
        check_tapped(
            pod,
            away,
            port(6),
            master("bridge", false),
            Some("seen on veth1 only as they leave"),
        );
        check_tapped(own, away, bridge(), None, None);
        let vrf = || master("vrf", false);
        check_tapped(own, away, port(7), vrf(), None);
        let in_bond = || master("bond", false);
        let lost = Some("eth0 is a port of the bond m0");
        let eth0 = || Link {
            master: 7,
            ..link("eth0", 2)
        };
        check_tapped(own, away, eth0(), in_bond(), lost);
        check_tapped(own, here, eth0(), in_bond(), None);
    }

    #[test]
    fn frames_with_tags_are_not_taken_away() {
        let mut view = view();
        view.links.insert("eth0".to_owned(), Some(link("eth0", 2)));
        let found = |view: &View| {
            let canary = Canary {
                address: ([10, 1, 0, 7], 8001).into(),
                ..canary()
            };
            let service = [ServiceAddress {
                ip: None,
                port: 8000,
            }];
            find(&canary, &service, view).err()
        };
        assert_eq!(found(&view), None);
        view.tagged.insert("eth0".to_owned(), "eth0.5".to_owned());
        let said = found(&view).unwrap().to_string();
        assert!(said.contains("name eth0.5 itself"), "{said}");
        view.links.insert("eth1".to_owned(), Some(link("eth1", 3)));
        assert_eq!(found(&view), None);
    }

    #[test]
    fn a_canary_is_here_or_there_or_out_of_reach() {
        check([10, 0, 0, 5], "10.0.0.5", Ok(false));
        check([127, 0, 0, 1], "10.0.0.5", Ok(false));
        check([10, 1, 0, 7], "10.0.0.5", Ok(true));
        check([10, 1, 0, 7], "*", Ok(true));
        let lasting = |why: &str| Err(Obstacle::Lasting(why.to_owned()));
        let passing = |why: &str| Err(Obstacle::Passing(why.to_owned()));
        let why =
            "10.1.0.7 is on another host, and none of the service's addresses is of its family";
        check([10, 1, 0, 7], "fd00::5", lasting(why));
        check([10, 9, 0, 7], "10.0.0.5", lasting("no route to 10.9.0.7"));
        let why = "the way to 10.8.0.7 is not known yet";
        check([10, 8, 0, 7], "10.0.0.5", passing(why));
    }
}
