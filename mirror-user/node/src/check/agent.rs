//! The way to each shadow agent, and whether it answers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use bytesize::ByteSize;
use mirror_api::{AgentAddress, Transport};
use mirror_common::tunnel::{OVERHEAD_IPV4, OVERHEAD_IPV6};

use super::api;
use crate::config::{Mirror, Node};
use crate::daemon;
use crate::netlink::{self, Link, Netlink, offloads};
use mirror_base::check::Finding;

/// Ports where other tunnels listen: VXLAN (RFC 7348), Linux's VXLAN, GENEVE (RFC 8926).
const TAKEN_PORTS: [(u16, &str); 3] = [(4789, "VXLAN"), (8472, "Linux's VXLAN"), (6081, "GENEVE")];

/// The longest packet that the tunnel is asked to carry whole, in bytes: a jumbo frame's.
const LARGEST: u32 = 9_000;
/// By this feature a device cuts what is inside a UDP tunnel.
const TUNNEL_SEGMENTATION: &str = "tx-udp_tnl-segmentation";
/// What it costs without, see docs/benchmarks.md.
const SOFTWARE: &str =
    "the CPU cuts copies that are longer than a packet, at about 1 us for each 2 KB";

pub(super) async fn findings(
    netlink: &Netlink,
    node: &Node,
) -> Result<Vec<Finding>, netlink::Error> {
    let mut tapped_mtu = 0;
    for name in &node.interfaces {
        // The loopback's long packets are another matter, see `interfaces`.
        let link = netlink.link(name).await?.filter(|link| !link.loopback);
        tapped_mtu = tapped_mtu.max(link.map_or(0, |link| link.mtu));
    }
    let mirrors = || {
        node.services
            .iter()
            .filter_map(|service| service.mirror.as_ref())
    };
    // One agent is reached in one way: the config sees to that.
    let agents: BTreeMap<&AgentAddress, &Mirror> =
        mirrors().map(|mirror| (&mirror.agent, mirror)).collect();
    let (mut findings, mut uplinks) = (Vec::new(), BTreeSet::new());
    let mut reachable = Vec::new();
    for (named, mirror) in agents {
        let agent = match resolve(named).await {
            Ok(agent) => agent,
            Err(finding) => {
                findings.push(finding);
                continue;
            }
        };
        let route = netlink.route(agent.ip()).await?;
        let uplink = match &route {
            Some(route) => netlink.link_by_index(route.interface).await?,
            None => None,
        };
        let (Some(route), Some(uplink)) = (route, uplink) else {
            findings.push(no_route(agent));
            continue;
        };
        findings.push(privacy(agent, &uplink, mirror));
        if mirror.transport == Transport::Geneve {
            let mtu = route.mtu.map_or(uplink.mtu, |mtu| mtu.min(uplink.mtu));
            findings.extend(port(agent));
            findings.push(room(agent, &uplink, mtu, tapped_mtu));
            findings.extend(reach(agent, &uplink, &node.interfaces));
            if uplinks.insert(uplink.index) {
                findings.extend(segmentation(&uplink, &offloads(&uplink.name).await));
            }
        }
        if mirrors().any(|mirror| mirror.agent == *named && mirror.max_bytes_per_second.is_none()) {
            findings.extend(budget(agent, &uplink, netlink::speed(&uplink.name).await));
        }
        reachable.push(api::findings(node, mirror));
    }
    // Each takes its time where nobody answers.
    let answers = futures_util::future::join_all(reachable).await;
    findings.extend(answers.into_iter().flatten());
    Ok(findings)
}

/// The first address of its name.
async fn resolve(agent: &AgentAddress) -> Result<SocketAddr, Finding> {
    if let Some(address) = agent.socket() {
        return Ok(address);
    }
    let found = tokio::net::lookup_host((&*agent.host, agent.port)).await;
    let why = match found.map(|mut found| found.next()) {
        Ok(Some(address)) => return Ok(address),
        Ok(None) => "it has no address".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(Finding::refuse(
        format!("agent {agent}"),
        format!("its name cannot be resolved: {why}"),
        format!("correct `agent`, or see `getent hosts {}`", agent.host),
    ))
}

fn about(agent: SocketAddr) -> String {
    format!("agent {agent}")
}

fn port(agent: SocketAddr) -> Option<Finding> {
    let (port, whose) = TAKEN_PORTS
        .into_iter()
        .find(|(port, _)| *port == agent.port())?;
    Some(Finding::warn(
        about(agent),
        format!("UDP port {port} is that of {whose}: another tunnel may own it"),
        "choose a port of your own, 6181 by default, on both hosts",
    ))
}

fn no_route(agent: SocketAddr) -> Finding {
    Finding::refuse(
        about(agent),
        "this host has no route to it",
        format!(
            "correct `agent`, or add a route (`ip route get {}`)",
            agent.ip()
        ),
    )
}

fn overhead(agent: SocketAddr) -> u32 {
    match agent {
        SocketAddr::V4(_) => OVERHEAD_IPV4,
        SocketAddr::V6(_) => OVERHEAD_IPV6,
    }
}

fn room(agent: SocketAddr, uplink: &Link, mtu: u32, tapped_mtu: u32) -> Finding {
    let (name, overhead) = (&uplink.name, overhead(agent));
    if !uplink.up {
        let cure = format!("ip link set {name} up");
        return Finding::refuse(about(agent), format!("its uplink {name} is down"), cure);
    }
    if mtu < 1280 {
        let what = format!("the path by {name} carries only {mtu} bytes a packet");
        let cure = "use a path with an MTU of 1500 or more: every copy is cut into many pieces";
        return Finding::warn(about(agent), what, cure);
    }
    let what = format!("by {name}, MTU {mtu}, the tunnel takes {overhead} bytes of it");
    if tapped_mtu + overhead <= mtu || uplink.loopback {
        return Finding::ok(about(agent), format!("{what}: every packet fits"));
    }
    let wanted = tapped_mtu.min(LARGEST) + overhead;
    let what = format!("{what}: the longest packets are cut (an MTU of {wanted} would spare that)");
    Finding::ok(about(agent), what)
}

fn privacy(agent: SocketAddr, uplink: &Link, mirror: &Mirror) -> Finding {
    let name = &uplink.name;
    if mirror.transport == Transport::Stream && !mirror.insecure {
        return Finding::ok(about(agent), "copies are encrypted by TLS 1.3");
    }
    if uplink.loopback {
        return Finding::ok(about(agent), "copies stay on this host");
    }
    if uplink.kind.as_deref() == Some("wireguard") {
        return Finding::ok(
            about(agent),
            format!("copies are encrypted by WireGuard ({name})"),
        );
    }
    if !uplink.ethernet {
        return Finding::ok(about(agent), format!("copies leave by the tunnel {name}"));
    }
    Finding::warn(
        about(agent),
        format!("copies leave {name} in clear text"),
        "let copies travel by transport = \"stream\" and keys, or the agent's address be one inside a WireGuard tunnel",
    )
}

/// A copy that comes from another interface enters the loopback as a foreign packet with a local
/// address, which the kernel drops as martian. The loopback's own copies keep their route.
fn reach(agent: SocketAddr, uplink: &Link, tapped: &[String]) -> Option<Finding> {
    let foreign = tapped.iter().find(|name| *name != &uplink.name)?;
    uplink.loopback.then(|| {
        Finding::refuse(
            about(agent),
            format!(
                "it is on this host, and copies from {foreign} cannot reach it over the loopback"
            ),
            "let the agent run on another host, or in a network namespace of its own behind a veth",
        )
    })
}

/// Who cuts the copies of what is longer than a packet. The loopback cuts nothing.
fn segmentation(uplink: &Link, offloads: &BTreeMap<String, bool>) -> Vec<Finding> {
    let name = &uplink.name;
    let about = format!("uplink {name}");
    let mut findings = Vec::new();
    if uplink.loopback || offloads.is_empty() {
        return findings;
    }
    let off = |feature: &str| offloads.get(feature) == Some(&false);
    if off("tx-tcp-segmentation") || off("tx-generic-segmentation") {
        findings.push(Finding::warn(
            &about,
            "TSO or GSO is off: production's packets and the copies are cut in software, which costs CPU",
            format!("ethtool -K {name} tso on gso on, where the device can"),
        ));
    }
    findings.push(match offloads.get(TUNNEL_SEGMENTATION) {
        Some(true) => Finding::ok(about, "cuts long copies itself (tx-udp_tnl-segmentation)"),
        Some(false) => Finding::warn(
            about,
            format!("tx-udp_tnl-segmentation is off: {SOFTWARE}"),
            format!("ethtool -K {name} tx-udp_tnl-segmentation on"),
        ),
        None => Finding::ok(about, format!("has no tx-udp_tnl-segmentation: {SOFTWARE}")),
    });
    findings
}

/// A tenth of the uplink's speed is the budget, unless the config says otherwise.
fn budget(agent: SocketAddr, uplink: &Link, speed: Option<u64>) -> Option<Finding> {
    if speed.is_some() {
        return None;
    }
    let budget = ByteSize(daemon::UNKNOWN_SPEED_BUDGET).display().si();
    let name = &uplink.name;
    Some(Finding::warn(
        about(agent),
        format!(
            "{name} does not say its speed: {budget}/s may be copied, rather than a tenth of it"
        ),
        "set `max_bytes_per_second` in [service.mirror]",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Directions;
    use mirror_base::check::Level;
    use mirror_base::check::fixture::check;

    fn uplink() -> Link {
        Link {
            name: "eth0".to_owned(),
            up: true,
            mtu: 1500,
            ethernet: true,
            ..Link::default()
        }
    }

    fn v4() -> SocketAddr {
        ([10, 0, 0, 9], 6181).into()
    }

    #[test]
    fn the_tunnel_s_overhead_is_weighed_against_the_path() {
        check(
            &room(v4(), &uplink(), 1564, 1500),
            Level::Ok,
            "takes 64 bytes of it: every packet fits",
        );
        check(
            &room(v4(), &uplink(), 1500, 1500),
            Level::Ok,
            "an MTU of 1564 would spare that",
        );
        let v6 = "[2001:db8::9]:6181".parse().unwrap();
        check(
            &room(v6, &uplink(), 1500, 1500),
            Level::Ok,
            "an MTU of 1584",
        );
        check(
            &room(v4(), &uplink(), 600, 1500),
            Level::Warn,
            "only 600 bytes",
        );
        let down = Link {
            up: false,
            ..uplink()
        };
        check(
            &room(v4(), &down, 1500, 1500),
            Level::Refuse,
            "eth0 is down",
        );
    }

    #[test]
    fn an_agent_on_this_host_is_reached_by_the_loopback_s_copies_alone() {
        let lo = Link {
            name: "lo".to_owned(),
            loopback: true,
            ..uplink()
        };
        let tapped = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(reach(v4(), &lo, &tapped(&["lo"])), None);
        assert_eq!(reach(v4(), &uplink(), &tapped(&["eth0"])), None);
        let refused = reach(v4(), &lo, &tapped(&["lo", "eth0"])).unwrap();
        check(&refused, Level::Refuse, "copies from eth0 cannot reach it");
    }

    #[test]
    fn who_cuts_long_copies_is_said() {
        let found = |features: &[(&str, bool)]| {
            let features = features.iter().map(|&(name, on)| (name.to_owned(), on));
            segmentation(&uplink(), &features.collect())
        };
        let tso = ("tx-tcp-segmentation", true);
        assert_eq!(found(&[]), [], "the kernel does not tell");
        check(&found(&[tso])[0], Level::Ok, "has no tx-udp_tnl");
        check(
            &found(&[tso, (TUNNEL_SEGMENTATION, true)])[0],
            Level::Ok,
            "itself",
        );
        check(
            &found(&[tso, (TUNNEL_SEGMENTATION, false)])[0],
            Level::Warn,
            "is off",
        );
        let both = found(&[("tx-tcp-segmentation", false), (TUNNEL_SEGMENTATION, true)]);
        check(&both[0], Level::Warn, "TSO or GSO is off");
        assert_eq!(both.len(), 2);
    }

    #[test]
    fn clear_text_is_said() {
        let mirror = |transport| Mirror {
            agent: v4().into(),
            agent_key: None,
            transport,
            insecure: false,
            sample: 1.0,
            directions: Directions::Both,
            arms: Vec::new(),
            max_bytes_per_second: None,
        };
        let (stream, geneve) = (mirror(Transport::Stream), mirror(Transport::Geneve));
        let insecure = Mirror {
            insecure: true,
            ..stream.clone()
        };
        check(&privacy(v4(), &uplink(), &stream), Level::Ok, "TLS");
        check(
            &privacy(v4(), &uplink(), &geneve),
            Level::Warn,
            "clear text",
        );
        check(
            &privacy(v4(), &uplink(), &insecure),
            Level::Warn,
            "clear text",
        );
        let wireguard = Link {
            kind: Some("wireguard".to_owned()),
            ethernet: false,
            ..uplink()
        };
        check(&privacy(v4(), &wireguard, &geneve), Level::Ok, "WireGuard");
        check(
            &privacy(
                v4(),
                &Link {
                    loopback: true,
                    ..uplink()
                },
                &geneve,
            ),
            Level::Ok,
            "this host",
        );
    }
}
