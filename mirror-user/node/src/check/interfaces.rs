//! Where clients' packets arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use crate::config::Node;
use crate::dataplane::{self, Hook};
use crate::netlink::stack::Pair;
use crate::netlink::{self, Link, Netlink, offloads};
use mirror_base::check::Finding;

/// The largest packet that IPv4's length field can say.
const LARGEST: u32 = 65_536;

pub(super) async fn findings(
    netlink: &Netlink,
    name: &str,
    node: &Node,
) -> Result<Vec<Finding>, netlink::Error> {
    let Some(link) = netlink.link(name).await? else {
        return Ok(vec![missing(name)]);
    };
    let mut findings = vec![state(&link)];
    findings.extend(vrf(&link));
    // Ours is told of with the canary that it is for.
    let ours = node.services.iter().any(|service| service.xdp().is_some());
    findings.extend(xdp(&link).filter(|_| !ours));
    findings.extend(big_packets(&link));
    findings.extend(receive_offload(&link, &offloads(name).await));
    if link.loopback {
        findings.extend(loopback(&link, &long_routes(netlink, node).await?));
    }
    let others: Vec<_> = [Hook::Ingress, Hook::Egress]
        .into_iter()
        .flat_map(|hook| dataplane::foreign_programs(name, hook))
        .collect();
    findings.extend(foreign(
        &link,
        &others,
        &netlink.clsact_filters(link.index).await,
    ));
    Ok(findings)
}

/// Interfaces that may not be named together.
pub(super) fn pairs(pairs: &[Pair]) -> Vec<Finding> {
    let refuse = |Pair {
                      first,
                      second,
                      why,
                      cure,
                  }: &Pair| {
        let what =
            format!("{second} shows the same packets as {first}, and nothing is seen there: {why}");
        Finding::refuse("interfaces", what, cure)
    };
    pairs.iter().map(refuse).collect()
}

fn about(link: &Link) -> String {
    format!("interface {}", link.name)
}

fn missing(name: &str) -> Finding {
    Finding::refuse(
        format!("interface {name}"),
        "there is none of this name",
        "correct `interfaces` (`ip link` lists them); a daemon that runs attaches when it appears",
    )
}

fn state(link: &Link) -> Finding {
    let kind = link
        .kind
        .as_deref()
        .unwrap_or(if link.loopback { "loopback" } else { "device" });
    if link.up {
        return Finding::ok(about(link), format!("{kind}, up, MTU {}", link.mtu));
    }
    let cure = format!("ip link set {} up", link.name);
    Finding::warn(
        about(link),
        format!("{kind}, down: nothing arrives there"),
        cure,
    )
}

/// What a VRF's ports receive is never received by its own device, and what leaves passes it by.
fn vrf(link: &Link) -> Option<Finding> {
    if link.kind.as_deref() != Some("vrf") {
        return None;
    }
    let Link { name, .. } = link;
    Some(Finding::refuse(
        about(link),
        format!("{name} is a VRF: packets pass its ports, and not the device itself"),
        format!("name its ports in `interfaces` (`ip link show master {name}`)"),
    ))
}

fn xdp(link: &Link) -> Option<Finding> {
    let mode = link.xdp?;
    Some(Finding::warn(
        about(link),
        format!("an XDP program is attached ({mode}): what it drops or redirects is not mirrored"),
        "nothing, if it only passes the service's packets; see `bpftool net`",
    ))
}

fn big_packets(link: &Link) -> Option<Finding> {
    if link.largest <= LARGEST {
        return None;
    }
    let what = format!(
        "BIG TCP: packets of up to {} bytes; copies of those above {LARGEST} are cut or counted as split_failed",
        link.largest
    );
    let cure = format!(
        "ip link set {} gso_max_size {LARGEST} gro_max_size {LARGEST}",
        link.name
    );
    Some(Finding::warn(about(link), what, cure))
}

fn receive_offload(link: &Link, offloads: &BTreeMap<String, bool>) -> Option<Finding> {
    // Virtual links get super-packets from their other end, GRO or not.
    if link.kind.is_some() || link.loopback || offloads.get("rx-gro") != Some(&false) {
        return None;
    }
    Some(Finding::warn(
        about(link),
        "GRO is off: every packet is copied by itself, which costs several times the CPU",
        format!("ethtool -K {} gro on", link.name),
    ))
}

/// An address that local clients dial by a route on which TCP makes the longest packets there are.
struct LongRoute {
    ip: IpAddr,
    device: String,
}

async fn long_routes(netlink: &Netlink, node: &Node) -> Result<Vec<LongRoute>, netlink::Error> {
    let addresses = node.services.iter().flat_map(|service| &service.addresses);
    let dialled: BTreeSet<IpAddr> = addresses
        .map(|address| address.ip.unwrap_or(Ipv4Addr::LOCALHOST.into()))
        .collect();
    let mut long = Vec::new();
    for ip in dialled {
        let route = netlink.local_route(ip).await?;
        let Some(route) = route.filter(|route| route.advmss.is_none()) else {
            continue;
        };
        if let Some(link) = netlink.link_by_index(route.interface).await? {
            let device = link.name;
            long.push(LongRoute { ip, device });
        }
    }
    Ok(long)
}

/// Without GSO the loopback's packets are as long as its MTU, and each is cut into pieces.
fn loopback(link: &Link, long: &[LongRoute]) -> Option<Finding> {
    let LongRoute { ip, device } = long.first().filter(|_| link.mtu > 9_000)?;
    let all: Vec<_> = long.iter().map(|route| route.ip.to_string()).collect();
    let what = format!(
        "packets to {} are up to 64 KB long, and copies of long ones are cut, at about 1 us a piece",
        all.join(", ")
    );
    let scope = match ip {
        IpAddr::V4(_) => format!("scope host src {ip}"),
        IpAddr::V6(_) => "metric 0".to_owned(),
    };
    let cure = format!(
        "ip route change local {ip} dev {device} table local proto kernel {scope} advmss 1400"
    );
    Some(Finding::warn(about(link), what, cure))
}

/// Programs of others are no trouble, but whoever hunts for a lost packet wants to know them.
fn foreign(link: &Link, tcx: &[String], clsact: &[String]) -> Option<Finding> {
    let mut others = Vec::new();
    if !tcx.is_empty() {
        others.push(format!("TCX: {}", tcx.join(", ")));
    }
    if !clsact.is_empty() {
        others.push(format!("clsact filters: {}", clsact.join(", ")));
    }
    if others.is_empty() {
        return None;
    }
    let what = format!(
        "others are attached ({}); ours runs before them",
        others.join("; ")
    );
    Some(Finding::ok(about(link), what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mirror_base::check::Level;

    fn nic() -> Link {
        Link {
            name: "eth0".to_owned(),
            index: 2,
            up: true,
            mtu: 1500,
            ethernet: true,
            largest: LARGEST,
            ..Link::default()
        }
    }

    fn check(finding: impl Into<Option<Finding>>, expected: Option<(Level, &str)>) {
        let found: Option<Finding> = finding.into();
        match (&found, expected) {
            (None, None) => {}
            (Some(found), Some((level, words))) => {
                assert!(
                    found.level == level && found.what.contains(words),
                    "{found:?}"
                );
            }
            _ => panic!("{found:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn what_is_odd_about_a_link_is_said() {
        let warn = |words| Some((Level::Warn, words));
        check(state(&nic()), Some((Level::Ok, "device, up, MTU 1500")));
        check(state(&Link { up: false, ..nic() }), warn("down"));
        check(xdp(&nic()), None);
        check(
            xdp(&Link {
                xdp: Some("native"),
                ..nic()
            }),
            warn("XDP program is attached (native)"),
        );
        check(big_packets(&nic()), None);
        check(
            big_packets(&Link {
                largest: 185_000,
                ..nic()
            }),
            warn("185000 bytes"),
        );
        check(foreign(&nic(), &[], &[]), None);
        let others = foreign(&nic(), &["cil_from_netdev".to_owned()], &["bpf".to_owned()]);
        check(
            others,
            Some((Level::Ok, "TCX: cil_from_netdev; clsact filters: bpf")),
        );
    }

    #[test]
    fn gro_matters_on_hardware() {
        let off = BTreeMap::from([("rx-gro".to_owned(), false)]);
        check(
            receive_offload(&nic(), &off),
            Some((Level::Warn, "GRO is off")),
        );
        check(receive_offload(&nic(), &BTreeMap::new()), None);
        let veth = Link {
            kind: Some("veth".to_owned()),
            ..nic()
        };
        check(receive_offload(&veth, &off), None);
    }

    #[test]
    fn the_loopback_is_better_off_with_gso() {
        let lo = Link {
            loopback: true,
            mtu: 65_536,
            ..nic()
        };
        let ip = [LongRoute {
            ip: Ipv4Addr::LOCALHOST.into(),
            device: "lo".to_owned(),
        }];
        let warned = Some((Level::Warn, "packets to 127.0.0.1 are up to 64 KB long"));
        check(loopback(&lo, &ip), warned);
        check(loopback(&lo, &[]), None);
        check(loopback(&Link { mtu: 1500, ..lo }, &ip), None);
    }
}
