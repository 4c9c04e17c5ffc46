//! Which interfaces show the same packets: a packet passes a NIC, and then the bridge, bond or VLAN that
//! stands on it. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{HostAddress, Link};

/// Two interfaces of which a packet passes both, and would be counted and copied twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    /// The one that is named first.
    pub(crate) first: String,
    /// The other one.
    pub(crate) second: String,
    /// Why they show the same.
    pub(crate) why: String,
    /// What to name instead.
    pub(crate) cure: String,
}

/// Kinds of links that change packets: what they carry looks different on the link that they stand on.
const TUNNELS: [&str; 13] = [
    "vxlan",
    "geneve",
    "gre",
    "gretap",
    "ip6gre",
    "ip6gretap",
    "erspan",
    "ip6erspan",
    "ipip",
    "sit",
    "ip6tnl",
    "vti",
    "macsec",
];

/// Pairs among the interfaces of these names.
pub(crate) fn pairs(tapped: &[String], links: &[Link]) -> Vec<Pair> {
    let find = |name: &String| links.iter().find(|link| link.name == *name);
    let tapped: Vec<&Link> = tapped.iter().filter_map(find).collect();
    let mut pairs = Vec::new();
    for (number, first) in tapped.iter().enumerate() {
        for second in &tapped[number + 1..] {
            if let Some((why, cure)) = double(first, second, links) {
                pairs.push(Pair {
                    first: first.name.clone(),
                    second: second.name.clone(),
                    why,
                    cure,
                });
            }
        }
    }
    pairs
}

/// Those of the interfaces of these names whose frames for this host all have VLAN tags, each with a VLAN that
/// stands on it: they have no address of their own.
pub(crate) fn tagged(
    tapped: &[String],
    links: &[Link],
    addresses: &[HostAddress],
) -> BTreeMap<String, String> {
    let is_link_local = |ip: IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    let has_address = |link: &Link| {
        let mut own = addresses.iter().filter(|own| own.interface == link.index);
        own.any(|own| !is_link_local(own.ip))
    };
    let plain = links
        .iter()
        .filter(|link| tapped.contains(&link.name) && link.master == 0 && !has_address(link));
    plain
        .filter_map(|link| {
            let is_above =
                |above: &&Link| above.lower == link.index && above.kind.as_deref() == Some("vlan");
            let vlan = links.iter().find(is_above)?;
            Some((link.name.clone(), vlan.name.clone()))
        })
        .collect()
}

fn double(first: &Link, second: &Link, links: &[Link]) -> Option<(String, String)> {
    let one = || format!("name {} or {} alone", first.name, second.name);
    for (upper, lower) in [(first, second), (second, first)] {
        if stands_on(upper, lower, links) {
            let kind = upper.kind.as_deref().unwrap_or("link");
            let why = format!(
                "{} is a {kind} on {}: a packet passes both",
                upper.name, lower.name
            );
            return Some((why, one()));
        }
    }
    if first.kind.as_deref() == Some("veth") && first.lower == second.index {
        let why = format!(
            "{} and {} are the two ends of one cable",
            first.name, second.name
        );
        return Some((why, one()));
    }
    [(first, second), (second, first)]
        .into_iter()
        .find_map(|(port, other)| leaves_its_bridge(port, other, links))
}

/// Once a packet has left the bridge or bond that it came in by, nobody knows by which port that was.
fn leaves_its_bridge(port: &Link, other: &Link, links: &[Link]) -> Option<(String, String)> {
    let master = links.iter().find(|link| link.index == port.master)?;
    if other.loopback || other.master == port.master {
        return None;
    }
    let (port, master, other) = (&port.name, &master.name, &other.name);
    let why = format!(
        "what comes in by {port}, a port of {master}, and leaves by {other} would be seen as two packets"
    );
    let cure = format!("name {other} alone, or {other} and {master}, or {port} alone");
    Some((why, cure))
}

/// The link of this name, and all that it stands on: a VLAN's NIC, a bond's ports.
pub(crate) fn below<'a>(name: &str, links: &'a [Link]) -> Vec<&'a Link> {
    let mut found: Vec<&Link> = links.iter().filter(|link| link.name == name).collect();
    let mut next = 0;
    while let Some(upper) = found.get(next).copied() {
        next += 1;
        let kind = upper.kind.as_deref().unwrap_or_default();
        let is_stacked = kind != "veth" && !TUNNELS.contains(&kind);
        let is_lower = |link: &&Link| {
            is_stacked && upper.lower == link.index || link.master == upper.index && kind != "vrf"
        };
        for lower in links.iter().filter(is_lower) {
            if !found.iter().any(|known| known.index == lower.index) {
                found.push(lower);
            }
        }
    }
    found
}

/// Whether packets that pass `lower` pass `upper` as well, as they are.
fn stands_on(upper: &Link, lower: &Link, links: &[Link]) -> bool {
    let mut below = vec![lower.index];
    let mut seen = Vec::new();
    while let Some(index) = below.pop() {
        if seen.contains(&index) {
            continue;
        }
        seen.push(index);
        let Some(link) = links.iter().find(|link| link.index == index) else {
            continue;
        };
        let stacked = links.iter().filter(|above| {
            let kind = above.kind.as_deref().unwrap_or_default();
            above.lower == index && kind != "veth" && !TUNNELS.contains(&kind)
        });
        let master = (link.master != 0).then_some(link.master);
        let uppers: Vec<u32> = stacked.map(|above| above.index).chain(master).collect();
        if uppers.contains(&upper.index) {
            return true;
        }
        below.extend(uppers);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A NIC with a VLAN and a macvlan on it, a vxlan beside them; a bridge with two pods; a bond of two
    /// NICs with a VLAN on it, in a VRF; a pod that is routed; a cable that stays here.
    fn links() -> Vec<Link> {
        let rows = [
            (1, "lo", "", 0, 0),
            (2, "eth0", "", 0, 0),
            (3, "eth0.5", "vlan", 2, 0),
            (4, "mv0", "macvlan", 2, 0),
            (5, "vx0", "vxlan", 2, 0),
            (6, "cni0", "bridge", 0, 0),
            (7, "veth1", "veth", 0, 6),
            (8, "veth2", "veth", 0, 6),
            (9, "bond0", "bond", 0, 0),
            (10, "eth1", "", 0, 9),
            (11, "eth2", "", 0, 9),
            (12, "bond0.7", "vlan", 9, 13),
            (13, "vrf0", "vrf", 0, 0),
            (14, "cali1", "veth", 0, 0),
            (15, "one", "veth", 16, 0),
            (16, "other", "veth", 15, 0),
        ];
        let link = |(index, name, kind, lower, master): (u32, &str, &str, u32, u32)| Link {
            index,
            name: name.to_owned(),
            kind: (!kind.is_empty()).then(|| kind.to_owned()),
            loopback: name == "lo",
            lower,
            master,
            ..Link::default()
        };
        rows.into_iter().map(link).collect()
    }

    #[track_caller]
    fn check(first: &str, second: &str, why: Option<&str>) {
        for names in [[first, second], [second, first]] {
            let tapped = names.map(str::to_owned);
            let found = pairs(&tapped, &links());
            match (found.as_slice(), why) {
                ([], None) => {}
                ([pair], Some(why)) => assert!(pair.why.contains(why), "{pair:?}"),
                _ => panic!("{names:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_link_and_what_stands_on_it_show_the_same() {
        check("eth0", "eth0.5", Some("eth0.5 is a vlan on eth0"));
        check("eth0", "mv0", Some("mv0 is a macvlan on eth0"));
        check("eth1", "bond0", Some("bond0 is a bond on eth1"));
        check("eth1", "bond0.7", Some("bond0.7 is a vlan on eth1"));
        check("eth1", "vrf0", Some("vrf0 is a vrf on eth1"));
        check("cni0", "veth1", Some("cni0 is a bridge on veth1"));
        check("one", "other", Some("two ends of one cable"));
        check("eth0", "vx0", None);
        check("eth0.5", "mv0", None);
    }

    #[test]
    fn a_nic_without_an_address_has_tagged_frames() {
        let on = |interface, ip: &str| HostAddress {
            interface,
            ip: ip.parse().unwrap(),
        };
        let vlan = || vec![on(3, "10.0.0.5"), on(2, "fe80::5")];
        let both = || vec![on(3, "10.0.0.5"), on(2, "10.7.0.5")];
        for (name, addresses, vlan) in [
            ("eth0", vlan(), Some("eth0.5")),
            ("eth0", both(), None),
            ("eth0.5", vlan(), None),
            ("cali1", vlan(), None),
            // A port: what comes in is its bond's.
            ("eth1", vlan(), None),
            ("bond0", vlan(), Some("bond0.7")),
        ] {
            let found = tagged(&[name.to_owned()], &links(), &addresses);
            assert_eq!(found.get(name).map(String::as_str), vlan, "{name}");
        }
    }

    #[test]
    fn a_bond_stands_on_its_ports_and_a_cable_on_nothing() {
        let links = links();
        for (name, expected) in [
            ("bond0.7", &["bond0.7", "bond0", "eth1", "eth2"][..]),
            ("eth0", &["eth0"]),
            ("mv0", &["mv0", "eth0"]),
            ("cni0", &["cni0", "veth1", "veth2"]),
            ("one", &["one"]),
            ("vx0", &["vx0"]),
            ("eth7", &[]),
        ] {
            let found = below(name, &links);
            let names: Vec<&str> = found.iter().map(|link| link.name.as_str()).collect();
            assert_eq!(names, expected, "{name}");
        }
    }

    #[test]
    fn what_leaves_a_bridge_shows_twice() {
        check(
            "eth0",
            "veth1",
            Some("by veth1, a port of cni0, and leaves by eth0"),
        );
        check("eth1", "cali1", Some("by eth1, a port of bond0"));
        check("eth0", "cni0", None);
        check("eth0", "cali1", None);
        check("veth1", "veth2", None);
        check("veth1", "lo", None);
        check("eth1", "eth2", None);
    }
}
