//! Canaries: what it takes to remember connections, and those on other hosts.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use mirror_api::XdpHook;
use tokio::net::TcpStream;

use super::memory::{Memory, shown};
use super::services::about;
use crate::config::{Canary, Node, PortRange, Service};
use crate::dataplane;
use crate::netlink::{self, HostAddress, Link, Netlink};
use crate::offload::Lro;
use mirror_base::check::Finding;
use mirror_base::sock_diag;

/// Kernel memory for each connection, measured: an entry of both tables, 200 and 192 bytes.
const CONNECTION_BYTES: u64 = 392;

/// How long a canary may take to answer.
const PATIENCE: Duration = Duration::from_millis(500);

const LOCAL_PORTS: &str = "net.ipv4.ip_local_port_range";
const RESERVED_PORTS: &str = "net.ipv4.ip_local_reserved_ports";

pub(super) async fn findings(
    netlink: &Netlink,
    node: &Node,
    host: &[HostAddress],
) -> Result<Vec<Finding>, netlink::Error> {
    let canaries = || {
        let services = node.services.iter();
        services.filter_map(|service| Some((service, service.canary.as_ref()?)))
    };
    if canaries().next().is_none() {
        return Ok(Vec::new());
    }
    let here = |ip: IpAddr| ip.is_loopback() || host.iter().any(|own| own.ip == ip);
    let table = |memory| table(node.connections, memory);
    let mut findings = Vec::from_iter(Memory::of_host().map(table));
    let mut away = canaries()
        .filter(|(_, canary)| !here(canary.address.ip()))
        .peekable();
    if away.peek().is_some() {
        findings.push(ports(node.translation_ports, &Ports::read()));
        let strange = node.translation_addresses.iter();
        findings.extend(strange.filter(|ip| !here(**ip)).map(not_ours));
    }
    for (service, canary) in away {
        let route = netlink.route(canary.address.ip()).await?;
        let link = match &route {
            Some(route) => netlink.link_by_index(route.interface).await?,
            None => None,
        };
        let Some(link) = link else {
            findings.push(no_route(service, canary));
            continue;
        };
        findings.push(answer(service, canary, &link, dial(canary.address).await));
        let mut links = vec![link];
        for name in &node.interfaces {
            links.extend(netlink.link(name).await?);
        }
        let links = links.into_iter().map(|link| {
            let ours = dataplane::has_xdp(&node.pin_dir, &link.name, link.index);
            (link, ours)
        });
        findings.extend(xdp(service, &links.collect::<Vec<_>>()));
    }
    Ok(findings)
}

/// Canaries that the network keeps from their connections: the service, why, and what to write instead.
pub(super) fn unreached(canaries: &[(String, String, String)]) -> Vec<Finding> {
    let refuse = |(service, why, cure): &(String, String, String)| {
        let what = format!("nothing can be steered: {why}");
        Finding::refuse(format!("service {service}"), what, cure)
    };
    canaries.iter().map(refuse).collect()
}

/// That nobody knows whether netfilter leads a canary's connections on.
pub(super) fn hidden(why: &str) -> Finding {
    Finding::warn(
        "netfilter",
        format!(
            "{why}: whether it leads connections on that should go to a canary of this host cannot be seen"
        ),
        "look for DNAT, REDIRECT and TPROXY of the services' ports; a share of connections that do not arrive goes back by itself",
    )
}

/// What is done about a device that merges what it receives, by which packets of a canary on another host come in.
pub(super) fn merged(name: &str, lro: Lro) -> Option<Finding> {
    let about = format!("interface {name}");
    match lro {
        Lro::Off => None,
        Lro::On => Some(Finding::warn(
            about,
            "LRO is on: the daemon switches it off, since merged packets cannot be sent on to a canary on another host, and `modelmirror off` puts it back",
            format!(
                "nothing; or ethtool -K {name} lro off at a quiet time, since switching can reset the NIC's queues"
            ),
        )),
        Lro::Fixed => Some(Finding::refuse(
            about,
            "LRO is on and cannot be switched off: merged packets cannot be sent on, so canaries on other hosts get no connections",
            "name another interface, or run the canary on this host",
        )),
    }
}

fn table(connections: u32, host: Memory) -> Finding {
    let bytes = u64::from(connections) * CONNECTION_BYTES;
    let what = format!(
        "{connections} are remembered, in {} of kernel memory",
        shown(bytes)
    );
    let cure =
        "lower `connections`: where more are open at once, the oldest are no longer remembered";
    host.price("connections", &what, bytes, cure)
}

/// What this host does with ports.
#[derive(Debug, Default)]
struct Ports {
    /// Given to connections that do not ask for one.
    local: Option<RangeInclusive<u16>>,
    /// But for these.
    reserved: Vec<RangeInclusive<u16>>,
    /// Somebody listens there.
    taken: Vec<u16>,
}

impl Ports {
    fn read() -> Self {
        let read = |name: &str| {
            let path = format!("/proc/sys/{}", name.replace('.', "/"));
            std::fs::read_to_string(path).unwrap_or_default()
        };
        let (local, reserved) = (read(LOCAL_PORTS), read(RESERVED_PORTS));
        let listeners = sock_diag::listeners().unwrap_or_default().into_iter();
        Self {
            local: range(&local.split_whitespace().collect::<Vec<_>>().join("-")),
            reserved: reserved.trim().split(',').filter_map(range).collect(),
            taken: listeners.map(|listener| listener.address.port()).collect(),
        }
    }
}

/// One port, or the first and the last of several.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

/// Whether the ports that canaries on other hosts see are ours alone.
fn ports(range: PortRange, host: &Ports) -> Finding {
    let about = "translation_ports";
    let shown = format!("{}-{}", range.first, range.last);
    let mut ours = range.first..=range.last;
    if let Some(port) = host.taken.iter().find(|port| ours.contains(port)) {
        let what =
            format!("{shown}: somebody listens at {port}, whose answers would be taken away");
        return Finding::refuse(about, what, "choose another range, or move the listener");
    }
    let given = |port: u16| {
        let local = host
            .local
            .as_ref()
            .is_some_and(|local| local.contains(&port));
        local
            && !host
                .reserved
                .iter()
                .any(|reserved| reserved.contains(&port))
    };
    if let Some(port) = ours.find(|&port| given(port)) {
        let what = format!(
            "{shown}: the kernel gives {port} to connections of this host, whose answers would be taken away"
        );
        let cure = format!(
            "sysctl -w {RESERVED_PORTS}={shown}, also in /etc/sysctl.d; or choose ports outside {LOCAL_PORTS}"
        );
        return Finding::refuse(about, what, cure);
    }
    let what = format!(
        "{shown}: up to {} connections at a time with each canary on another host",
        range.count()
    );
    Finding::ok(about, what)
}

fn not_ours(ip: &IpAddr) -> Finding {
    let what = format!("{ip} is no address of this host: nobody would get what is sent there");
    let cure = "give it to an interface, or take it out";
    Finding::refuse("translation_addresses", what, cure)
}

fn no_route(service: &Service, canary: &Canary) -> Finding {
    let ip = canary.address.ip();
    let what =
        format!("canary {ip} is on another host, and there is no route: nothing is steered to it");
    Finding::warn(about(service), what, format!("ip route get {ip}"))
}

async fn dial(canary: SocketAddr) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, TcpStream::connect(canary)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {} ms", PATIENCE.as_millis())),
    }
}

fn answer(service: &Service, canary: &Canary, link: &Link, dialled: Result<(), String>) -> Finding {
    let where_ = format!(
        "canary {}, on another host by {}",
        canary.address, link.name
    );
    match dialled {
        Ok(()) => Finding::ok(
            about(service),
            format!(
                "{where_}, answers; this host's firewall and conntrack will not see its packets"
            ),
        ),
        Err(why) => Finding::warn(
            about(service),
            format!("{where_}: {why}: nothing is steered to it until it answers"),
            "start it, or correct `address` in [service.canary]",
        ),
    }
}

/// Where packets of a canary on another host will be taken, on these links, with whether our own program is
/// there.
fn xdp(service: &Service, links: &[(Link, bool)]) -> Vec<Finding> {
    let Some(hook) = service.canary.as_ref().and_then(|canary| canary.xdp) else {
        return Vec::new();
    };
    if service.mirrors_canary() {
        return vec![Finding::warn(
            about(service),
            format!(
                "xdp = {:?} does nothing: copies of the canary's connections are made at TC, so its packets stay there",
                hook.label()
            ),
            "nothing; or arms = [\"stable\"] in [service.mirror]",
        )];
    }
    let links = links.iter().filter(|(link, _)| !link.loopback);
    // A frame that is taken on one interface may find no way out by another: TC does all of it then.
    let without = |(link, _): &&(Link, bool)| {
        let kind = link.kind.as_deref().unwrap_or_default();
        !link.ethernet || hook == XdpHook::Native && NO_NATIVE.contains(&kind)
    };
    if let Some((link, _)) = links.clone().find(without) {
        let kind = link
            .kind
            .as_deref()
            .unwrap_or("interface without Ethernet headers");
        let what = format!(
            "xdp = {:?}, and {} is a {kind}, which takes none: packets of this canary would be taken at TC, on all interfaces",
            hook.label(),
            link.name
        );
        let cure = "take `xdp` out of [service.canary], or name interfaces that take XDP (the bridge's ports, the VLAN's device)";
        return vec![Finding::refuse(about(service), what, cure)];
    }
    links
        .map(|(link, ours)| at(service, hook, link, *ours))
        .collect()
}

/// Kinds of interfaces that have no native XDP.
const NO_NATIVE: [&str; 8] = [
    "bridge", "dummy", "ipvlan", "macvlan", "macvtap", "team", "vlan", "vxlan",
];

fn at(service: &Service, hook: XdpHook, link: &Link, ours: bool) -> Finding {
    let Link { name, kind, .. } = link;
    let about = about(service);
    match (hook, link.xdp) {
        (_, Some(active)) if ours => {
            Finding::ok(about, format!("XDP is attached to {name}, {active}"))
        }
        (hook, Some(active)) => Finding::warn(
            about,
            format!(
                "somebody else's XDP program is attached to {name} ({active}), and xdp = {:?}: TC does the work, of what that program passes on",
                hook.label()
            ),
            "nothing; or take that program away (`bpftool net` shows it), and `modelmirror status` says what is active",
        ),
        (XdpHook::Generic, None) => {
            Finding::ok(about, format!("XDP will be attached to {name}, generic"))
        }
        (XdpHook::Native, None) if kind.as_deref() == Some("veth") => Finding::warn(
            about,
            format!(
                "XDP will be attached to {name}, a veth: the other end must write its checksums itself, and have NAPI"
            ),
            "at the other end: ethtool -K DEVICE tx off gro on",
        ),
        (XdpHook::Native, None) => Finding::warn(
            about,
            format!(
                "XDP will be attached to {name} in its driver: that can reset its queues, and turns LRO off"
            ),
            "attach at a quiet time; `modelmirror status` says whether the driver took it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::fixtures::{canary, link, service};
    use mirror_base::check::Level;
    use mirror_base::check::fixture::check;

    #[test]
    fn a_table_has_its_price() {
        let host = Memory {
            total: 1 << 30,
            available: 128 << 20,
        };
        let few = "65536 are remembered, in 24.5 MiB of kernel memory";
        check(&table(65_536, host), Level::Ok, few);
        check(&table(1_000_000, host), Level::Warn, "373.8 MiB");
    }

    #[test]
    fn what_merges_is_switched_off_or_refused() {
        assert_eq!(merged("eth0", Lro::Off), None);
        let on = merged("eth0", Lro::On).unwrap();
        check(&on, Level::Warn, "the daemon switches it off");
        let fixed = merged("eth0", Lro::Fixed).unwrap();
        check(&fixed, Level::Refuse, "cannot be switched off");
    }

    #[test]
    fn ports_are_ours_alone() {
        let range = PortRange {
            first: 61_000,
            last: 61_999,
        };
        let usual = || Ports {
            local: Some(32_768..=60_999),
            ..Ports::default()
        };
        check(&ports(range, &usual()), Level::Ok, "up to 1000 connections");
        let wide = Ports {
            local: Some(1_024..=65_535),
            ..usual()
        };
        check(
            &ports(range, &wide),
            Level::Refuse,
            "gives 61000 to connections",
        );
        let reserved = Ports {
            reserved: vec![8_080..=8_080, 61_000..=61_999],
            ..wide
        };
        check(&ports(range, &reserved), Level::Ok, "61000-61999");
        let taken = Ports {
            taken: vec![22, 61_500],
            ..usual()
        };
        check(&ports(range, &taken), Level::Refuse, "listens at 61500");
    }

    #[test]
    fn where_packets_will_be_taken_is_said_for_each_link() {
        let with = |xdp| Service {
            canary: Some(Canary { xdp, ..canary() }),
            ..service()
        };
        let found = |service: &Service, link: &Link, ours| xdp(service, &[(link.clone(), ours)]);
        let eth0 = link("eth0", 2);
        assert_eq!(found(&with(None), &eth0, false), []);
        let native = with(Some(XdpHook::Native));
        check(
            &found(&native, &eth0, false)[0],
            Level::Warn,
            "can reset its queues",
        );
        let active = Link {
            xdp: Some("native"),
            ..eth0.clone()
        };
        check(
            &found(&native, &active, true)[0],
            Level::Ok,
            "attached to eth0, native",
        );
        check(
            &found(&native, &active, false)[0],
            Level::Warn,
            "somebody else's XDP program",
        );
        let generic = with(Some(XdpHook::Generic));
        check(&found(&generic, &active, false)[0], Level::Warn, "(native)");
        check(&found(&generic, &eth0, false)[0], Level::Ok, "generic");
        let veth = Link {
            kind: Some("veth".to_owned()),
            ..eth0
        };
        check(&found(&native, &veth, false)[0], Level::Warn, "a veth");
        let bridge = Link {
            kind: Some("bridge".to_owned()),
            ..link("br0", 3)
        };
        let both = xdp(&native, &[(veth, false), (bridge.clone(), false)]);
        assert_eq!(both.len(), 1);
        check(&both[0], Level::Refuse, "br0 is a bridge");
        check(&found(&generic, &bridge, false)[0], Level::Ok, "generic");
    }

    #[test]
    fn a_canary_on_another_host_is_dialled() {
        let (service, canary, eth1) = (service(), canary(), link("eth1", 3));
        let found = answer(&service, &canary, &eth1, Ok(()));
        check(&found, Level::Ok, "on another host by eth1, answers");
        let found = answer(&service, &canary, &eth1, Err("refused".to_owned()));
        check(&found, Level::Warn, "refused: nothing is steered");
    }
}
