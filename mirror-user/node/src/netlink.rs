//! What the kernel says of links, addresses, routes and neighbours, through netlink and ethtool.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use ethtool::{EthtoolAttr, EthtoolFeatureAttr, EthtoolLinkModeAttr};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMetric, RouteType,
};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcStats2};
use rtnetlink::{
    Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::offload::Lro;

pub(crate) mod netfilter;
pub(crate) mod stack;

/// The kernel did not answer, or not as expected. That it knows nothing of the kind is an answer.
pub(crate) type Error = rtnetlink::Error;

/// The number of a clsact qdisc: `ffff:`.
const CLSACT: u32 = 0xffff_0000;

/// `IFLA_GRO_MAX_SIZE`, which the crate does not name.
const GRO_MAX_SIZE: u16 = 58;

/// The kernel's name for LRO.
const LRO: &str = "rx-lro";

/// A link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) up: bool,
    pub(crate) mtu: u32,
    pub(crate) loopback: bool,
    /// Whether its packets have Ethernet headers.
    pub(crate) ethernet: bool,
    /// Its own MAC address, where it has one.
    pub(crate) mac: [u8; 6],
    /// Packets that it could not send, of whomever.
    pub(crate) dropped: u64,
    /// `veth`, `wireguard` and so on; nothing for hardware.
    pub(crate) kind: Option<String>,
    /// How an XDP program is attached, if one is.
    pub(crate) xdp: Option<&'static str>,
    /// The largest packets that it merges or sends, in bytes.
    pub(crate) largest: u32,
    /// The bridge, bond or VRF that has it as a port; 0 = none.
    pub(crate) master: u32,
    /// The link of this host that it stands on (a VLAN's NIC), or a veth's other end; 0 = none.
    pub(crate) lower: u32,
}

/// What a route lookup answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// Whether it leads to this host itself.
    pub(crate) local: bool,
    pub(crate) interface: u32,
    pub(crate) source: Option<IpAddr>,
    pub(crate) gateway: Option<IpAddr>,
    pub(crate) mtu: Option<u32>,
    pub(crate) advmss: Option<u32>,
}

impl Route {
    fn read(&mut self, metrics: &[RouteMetric]) {
        for metric in metrics {
            match metric {
                RouteMetric::Mtu(mtu) => self.mtu = Some(*mtu),
                RouteMetric::Advmss(advmss) => self.advmss = Some(*advmss),
                _ => {}
            }
        }
    }
}

/// An address of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostAddress {
    pub(crate) interface: u32,
    pub(crate) ip: IpAddr,
}

/// A netlink socket. Dropped, it is closed, also while the kernel owes it answers.
#[derive(Clone, Debug)]
pub(crate) struct Netlink {
    handle: Handle,
    _tasks: Arc<JoinSet<()>>,
}

impl Netlink {
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _) = new_connection()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Self {
            handle,
            _tasks: Arc::new(tasks),
        })
    }

    /// The same, with a channel that wakes its reader when links, addresses, routes or neighbours
    /// have changed.
    pub(crate) fn watch() -> io::Result<(Self, mpsc::Receiver<()>)> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, mut messages) = new_multicast_connection(&groups)?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        // One place: a reader that has not come yet need not be told twice.
        let (changed, changes) = mpsc::channel(1);
        tasks.spawn(async move {
            while messages.next().await.is_some() {
                let _ = changed.try_send(());
            }
        });
        let netlink = Self {
            handle,
            _tasks: Arc::new(tasks),
        };
        Ok((netlink, changes))
    }

    pub(crate) async fn link(&self, name: &str) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_name(name.to_owned());
        Ok(first(request.execute()).await?.as_ref().map(link))
    }

    pub(crate) async fn link_by_index(&self, index: u32) -> Result<Option<Link>, Error> {
        let request = self.handle.link().get().match_index(index);
        Ok(first(request.execute()).await?.as_ref().map(link))
    }

    /// Every link of this host.
    pub(crate) async fn links(&self) -> Result<Vec<Link>, Error> {
        let messages = self.handle.link().get().execute();
        let messages: Vec<_> = messages.try_collect().await?;
        Ok(messages.iter().map(link).collect())
    }

    /// Every address of this host.
    pub(crate) async fn addresses(&self) -> Result<Vec<HostAddress>, Error> {
        let messages = self.handle.address().get().execute();
        let messages: Vec<_> = messages.try_collect().await?;
        let of = |message: &rtnetlink::packet_route::address::AddressMessage| {
            // On point-to-point links `Address` is the peer's.
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(ip) => Some(*ip),
                    _ => None,
                });
            let ip = local.or_else(|| {
                message
                    .attributes
                    .iter()
                    .find_map(|attribute| match attribute {
                        AddressAttribute::Address(ip) => Some(*ip),
                        _ => None,
                    })
            });
            Some(HostAddress {
                interface: message.header.index,
                ip: ip?,
            })
        };
        Ok(messages.iter().filter_map(of).collect())
    }

    /// The way to `ip`, by the kernel's own routing.
    pub(crate) async fn route(&self, ip: IpAddr) -> Result<Option<Route>, Error> {
        self.lookup(ip, RouteFlags::empty()).await
    }

    /// The entry of the local table by which this host talks to itself at `ip`.
    pub(crate) async fn local_route(&self, ip: IpAddr) -> Result<Option<Route>, Error> {
        // Asked plainly, the kernel answers without the entry's metrics.
        let route = self.lookup(ip, RouteFlags::FibMatch).await?;
        Ok(route.filter(|route| route.local))
    }

    async fn lookup(&self, ip: IpAddr, flags: RouteFlags) -> Result<Option<Route>, Error> {
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        let builder = RouteMessageBuilder::<IpAddr>::new();
        let Ok(builder) = builder.destination_prefix(ip, prefix) else {
            return Ok(None);
        };
        let mut message = builder.build();
        message.header.flags |= flags;
        let Some(route) = first(self.handle.route().get(message).execute()).await? else {
            return Ok(None);
        };
        let mut found = Route {
            local: route.header.kind == RouteType::Local,
            ..Route::default()
        };
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(index) => found.interface = *index,
                RouteAttribute::Gateway(RouteAddress::Inet(v4)) => {
                    found.gateway = Some((*v4).into());
                }
                RouteAttribute::Gateway(RouteAddress::Inet6(v6)) => {
                    found.gateway = Some((*v6).into());
                }
                RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => {
                    found.source = Some((*v4).into());
                }
                RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => {
                    found.source = Some((*v6).into());
                }
                RouteAttribute::Metrics(metrics) => found.read(metrics),
                _ => {}
            }
        }
        Ok(Some(found))
    }

    /// The MAC address of a neighbour, where the kernel knows one that may be used.
    pub(crate) async fn neighbour(&self, index: u32, ip: IpAddr) -> Result<Option<[u8; 6]>, Error> {
        let messages = self.handle.neighbours().get().execute();
        let messages: Vec<_> = messages.try_collect().await?;
        let usable = |state| {
            !matches!(
                state,
                NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None
            )
        };
        let named = |message: &&NeighbourMessage| {
            message.attributes.iter().any(|attribute| match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip == *v4,
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip == *v6,
                _ => false,
            })
        };
        let on_link = messages
            .iter()
            .filter(|message| message.header.ifindex == index);
        let mut known = on_link
            .filter(|message| usable(message.header.state))
            .filter(named);
        let mac = |attribute: &_| match attribute {
            NeighbourAttribute::LinkLocalAddress(mac) => mac.first_chunk().copied(),
            _ => None,
        };
        Ok(known.find_map(|message| message.attributes.iter().find_map(mac)))
    }

    /// Packets that the queue of a link has dropped, of whomever.
    pub(crate) async fn queue_drops(&self, index: u32) -> Result<u64, Error> {
        let index = i32::try_from(index).unwrap_or_default();
        let messages = self.handle.qdisc().get().index(index).execute();
        let messages: Vec<_> = messages.try_collect().await?;
        let root = |message: &&TcMessage| {
            message.header.index == index && message.header.parent == TcHandle::ROOT
        };
        let attributes = messages
            .iter()
            .filter(root)
            .flat_map(|message| &message.attributes);
        let drops = attributes
            .filter_map(|attribute| match attribute {
                TcAttribute::Stats2(stats) => Some(stats),
                _ => None,
            })
            .flatten()
            .map(|stat| match stat {
                TcStats2::Queue(queue) => u64::from(queue.drops),
                _ => 0,
            });
        Ok(drops.sum())
    }

    /// Takes a link's clsact qdisc away, unless somebody has a filter there. Says whether it is gone.
    pub(crate) async fn remove_empty_clsact(&self, index: u32) -> bool {
        if !self.clsact_filters(index).await.is_empty() {
            return false;
        }
        let index = i32::try_from(index).unwrap_or_default();
        let mut request = self.handle.qdisc().del(index);
        let header = &mut request.message_mut().header;
        (header.parent, header.handle) = (TcHandle::CLSACT, TcHandle::from(CLSACT));
        request.execute().await.is_ok()
    }

    /// Kinds of the filters that hang on a link's clsact qdisc, both directions.
    pub(crate) async fn clsact_filters(&self, index: u32) -> Vec<String> {
        let index = i32::try_from(index).unwrap_or_default();
        let mut kinds = Vec::new();
        for egress in [false, true] {
            let request = self.handle.traffic_filter(index).get();
            let request = if egress {
                request.egress()
            } else {
                request.ingress()
            };
            let filters: Vec<_> = request.execute().try_collect().await.unwrap_or_default();
            for kind in filters.iter().flat_map(|filter| &filter.attributes) {
                if let TcAttribute::Kind(kind) = kind
                    && !kinds.contains(kind)
                {
                    kinds.push(kind.clone());
                }
            }
        }
        kinds
    }
}

/// The answer to a question about one thing; nothing when the kernel says that there is none.
async fn first<T>(stream: impl Stream<Item = Result<T, Error>>) -> Result<Option<T>, Error> {
    match std::pin::pin!(stream).try_next().await {
        Err(Error::NetlinkError(_)) => Ok(None),
        answer => answer,
    }
}

fn link(message: &LinkMessage) -> Link {
    let layer = message.header.link_layer_type;
    let loopback = layer == LinkLayerType::Loopback;
    let mut link = Link {
        index: message.header.index,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback,
        ethernet: loopback || layer == LinkLayerType::Ether,
        ..Link::default()
    };
    let mut is_elsewhere = false;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.master = *index,
            LinkAttribute::Link(index) => link.lower = *index,
            LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(mac) => {
                link.mac = mac.first_chunk().copied().unwrap_or_default()
            }
            LinkAttribute::Stats64(stats) => link.dropped = stats.tx_dropped,
            LinkAttribute::LinkInfo(infos) => link.kind = kind(infos),
            LinkAttribute::Xdp(facts) => link.xdp = xdp(facts),
            LinkAttribute::GsoMaxSize(size) => link.largest = link.largest.max(*size),
            LinkAttribute::Other(other) => link.largest = link.largest.max(gro_max_size(other)),
            _ => {}
        }
    }
    // The number is one of another network namespace's.
    if is_elsewhere {
        link.lower = 0;
    }
    link
}

fn kind(infos: &[LinkInfo]) -> Option<String> {
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Other(kind)) => Some(kind.clone()),
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

fn xdp(facts: &[LinkXdp]) -> Option<&'static str> {
    facts.iter().find_map(|fact| match fact {
        LinkXdp::Attached(XdpAttached::None) => None,
        LinkXdp::Attached(XdpAttached::Driver) => Some("native"),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some("generic"),
        LinkXdp::Attached(XdpAttached::Hardware) => Some("offloaded"),
        LinkXdp::Attached(_) => Some("several"),
        _ => None,
    })
}

fn gro_max_size(attribute: &impl rtnetlink::packet_core::Nla) -> u32 {
    let mut value = [0; 4];
    if attribute.kind() != GRO_MAX_SIZE || attribute.value_len() != value.len() {
        return 0;
    }
    attribute.emit_value(&mut value);
    u32::from_ne_bytes(value)
}

/// The offloads of a link, by the kernel's names; nothing when it cannot tell.
#[derive(Debug, Default)]
struct Offloads {
    active: BTreeSet<String>,
    changeable: BTreeSet<String>,
}

/// The offloads of a link and whether each is on; nothing when the kernel cannot tell.
pub(crate) async fn offloads(interface: &str) -> BTreeMap<String, bool> {
    let Offloads { active, changeable } = read_offloads(interface).await;
    let there = changeable.into_iter().map(|name| (name, false));
    there
        .chain(active.into_iter().map(|name| (name, true)))
        .collect()
}

/// Whether a link merges what it receives.
pub(crate) async fn lro(interface: &str) -> Lro {
    let Offloads { active, changeable } = read_offloads(interface).await;
    Lro::of(active.contains(LRO), changeable.contains(LRO))
}

async fn read_offloads(interface: &str) -> Offloads {
    let Ok((connection, mut handle, _)) = ethtool::new_connection() else {
        return Offloads::default();
    };
    let connection = tokio::spawn(connection);
    let answers = handle.feature().get(Some(interface)).execute().await;
    let answers: Vec<_> = answers.try_collect().await.unwrap_or_default();
    connection.abort();
    let mut offloads = Offloads::default();
    for attribute in answers.into_iter().flat_map(|answer| answer.payload.nlas) {
        match attribute {
            EthtoolAttr::Feature(EthtoolFeatureAttr::Active(active)) => {
                let on = active.into_iter().filter(|bit| bit.value);
                offloads.active.extend(on.map(|bit| bit.name));
            }
            EthtoolAttr::Feature(EthtoolFeatureAttr::Hw(there)) => {
                let there = there.into_iter().filter(|bit| bit.value);
                offloads.changeable.extend(there.map(|bit| bit.name));
            }
            _ => {}
        }
    }
    offloads
}

/// A link's speed in bytes per second, where it has one.
pub(crate) async fn speed(interface: &str) -> Option<u64> {
    let (connection, mut handle, _) = ethtool::new_connection().ok()?;
    let connection = tokio::spawn(connection);
    let answers = handle.link_mode().get(Some(interface)).execute().await;
    let answers: Vec<_> = answers.try_collect().await.unwrap_or_default();
    connection.abort();
    let attributes = answers.into_iter().flat_map(|answer| answer.payload.nlas);
    let mut speeds = attributes.filter_map(|attribute| match attribute {
        EthtoolAttr::LinkMode(EthtoolLinkModeAttr::Speed(speed)) => Some(speed),
        _ => None,
    });
    // In Mbit/s; all ones where the driver does not know.
    let speed = speeds
        .next_back()
        .filter(|&speed| speed != 0 && speed != u32::MAX)?;
    Some(u64::from(speed) * 1_000_000 / 8)
}
