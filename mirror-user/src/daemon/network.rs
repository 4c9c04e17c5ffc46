//! What the kernel says of links, addresses, routes and neighbours, through netlink.

use std::net::{IpAddr, SocketAddr};

use futures_util::{StreamExt as _, TryStreamExt as _};
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMetric};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcStats2};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};

use crate::dataplane::Interface;

/// A link and what copying to or from it needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Its name and number.
    pub(super) interface: Interface,
    /// Whether it is up.
    pub(super) up: bool,
    /// Whether it is the loopback.
    pub(super) loopback: bool,
    /// The largest IP packet, in bytes.
    pub(super) mtu: u32,
    /// Its own MAC address, where it has one.
    pub(super) mac: [u8; 6],
    /// Packets that it could not send, of whomever.
    pub(super) dropped: u64,
}

/// The way to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// The link it leaves by.
    pub(super) link: Link,
    /// Our address there.
    pub(super) local: IpAddr,
    /// The largest IP packet on the way, in bytes.
    pub(super) mtu: u32,
    /// The next hop's MAC address; zero on links that have none.
    pub(super) next_hop: [u8; 6],
}

/// Why there is no way to an agent right now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoWay {
    /// The routing table has none.
    #[error("no route to {0}")]
    NoRoute(IpAddr),
    /// The route leads into a hole.
    #[error("the route to {0} names no interface")]
    NoInterface(IpAddr),
    /// The next hop has not answered yet.
    #[error("no neighbour entry for the next hop {0} yet")]
    NoNeighbour(IpAddr),
    /// The link is down.
    #[error("the uplink {0} is down")]
    Down(String),
}

/// A netlink connection.
#[derive(Clone, Debug)]
pub(super) struct Network {
    handle: Handle,
}

impl Network {
    /// Opens it, in the network namespace of the calling thread. The channel wakes its reader
    /// when something has changed.
    pub(super) fn open() -> std::io::Result<(Self, tokio::sync::mpsc::Receiver<()>)> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, mut messages) = new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        // One place: a reader that has not come yet need not be told twice.
        let (changed, changes) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                let _ = changed.try_send(());
            }
        });
        Ok((Self { handle }, changes))
    }

    /// The link of this name, if there is one.
    pub(super) async fn link(&self, name: &str) -> Option<Link> {
        let request = self.handle.link().get().match_name(name.to_owned());
        let message = request.execute().try_next().await.ok()??;
        Some(link(&message))
    }

    async fn link_by_index(&self, index: u32) -> Option<Link> {
        let request = self.handle.link().get().match_index(index);
        let message = request.execute().try_next().await.ok()??;
        Some(link(&message))
    }

    /// Every address of this host.
    pub(super) async fn addresses(&self) -> Vec<IpAddr> {
        let mut messages = std::pin::pin!(self.handle.address().get().execute());
        let mut addresses = Vec::new();
        while let Ok(Some(message)) = messages.try_next().await {
            // On point-to-point links `Address` is the peer's.
            let local = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                });
            let any = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                });
            addresses.extend(local.or(any));
        }
        addresses
    }

    /// The way to `agent`, by the kernel's own routing.
    pub(super) async fn way(&self, agent: SocketAddr) -> Result<Way, NoWay> {
        let address = agent.ip();
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let Ok(builder) = RouteMessageBuilder::<IpAddr>::new().destination_prefix(address, prefix)
        else {
            return Err(NoWay::NoRoute(address));
        };
        let mut routes = std::pin::pin!(self.handle.route().get(builder.build()).execute());
        let Ok(Some(route)) = routes.try_next().await else {
            return Err(NoWay::NoRoute(address));
        };
        let (mut index, mut local, mut hop, mut mtu) = (None, None, address, None);
        for attribute in &route.attributes {
            match attribute {
                RouteAttribute::Oif(oif) => index = Some(*oif),
                RouteAttribute::PrefSource(source) => local = ip(source),
                RouteAttribute::Gateway(gateway) => hop = ip(gateway).unwrap_or(hop),
                RouteAttribute::Metrics(metrics) => {
                    mtu = metrics.iter().find_map(|metric| match metric {
                        RouteMetric::Mtu(mtu) => Some(*mtu),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        let (Some(index), Some(local)) = (index, local) else {
            return Err(NoWay::NoInterface(address));
        };
        let link = self
            .link_by_index(index)
            .await
            .ok_or(NoWay::NoInterface(address))?;
        if !link.up {
            return Err(NoWay::Down(link.interface.name));
        }
        let next_hop = if link.interface.ethernet && !link.loopback {
            self.neighbour(index, hop)
                .await
                .ok_or(NoWay::NoNeighbour(hop))?
        } else {
            [0; 6]
        };
        let mtu = mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
        Ok(Way {
            link,
            local,
            mtu,
            next_hop,
        })
    }

    async fn neighbour(&self, index: u32, address: IpAddr) -> Option<[u8; 6]> {
        let mut neighbours = std::pin::pin!(self.handle.neighbours().get().execute());
        let mut found = None;
        // To its end, also once it is found: netlink complains of answers that nobody takes.
        while let Ok(Some(neighbour)) = neighbours.try_next().await {
            let header = &neighbour.header;
            if header.ifindex != index
                || matches!(
                    header.state,
                    NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None
                )
            {
                continue;
            }
            let mut mac = None;
            let mut matches = false;
            for attribute in &neighbour.attributes {
                match attribute {
                    NeighbourAttribute::Destination(destination) => {
                        matches = match destination {
                            NeighbourAddress::Inet(v4) => address == IpAddr::V4(*v4),
                            NeighbourAddress::Inet6(v6) => address == IpAddr::V6(*v6),
                            _ => false,
                        };
                    }
                    NeighbourAttribute::LinkLocalAddress(bytes) => {
                        mac = bytes.first_chunk::<6>().copied()
                    }
                    _ => {}
                }
            }
            if matches {
                found = found.or(mac);
            }
        }
        found
    }

    /// Packets that the queue of a link has dropped, of whomever.
    pub(super) async fn queue_drops(&self, index: u32) -> u64 {
        let mut queues = std::pin::pin!(self.handle.qdisc().get().index(index as i32).execute());
        let mut drops = 0;
        while let Ok(Some(queue)) = queues.try_next().await {
            if queue.header.index != index as i32 || queue.header.parent != TcHandle::ROOT {
                continue;
            }
            for attribute in &queue.attributes {
                let TcAttribute::Stats2(stats) = attribute else {
                    continue;
                };
                for stat in stats {
                    if let TcStats2::Queue(stat) = stat {
                        drops += u64::from(stat.drops);
                    }
                }
            }
        }
        drops
    }
}

fn link(message: &LinkMessage) -> Link {
    let layer = message.header.link_layer_type;
    let loopback = layer == LinkLayerType::Loopback;
    let mut link = Link {
        interface: Interface {
            name: String::new(),
            index: message.header.index,
            ethernet: loopback || layer == LinkLayerType::Ether,
        },
        up: message.header.flags.contains(LinkFlags::Up),
        loopback,
        mtu: 0,
        mac: [0; 6],
        dropped: 0,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) => {
                link.mac = bytes.first_chunk().copied().unwrap_or_default()
            }
            LinkAttribute::Stats64(stats) => link.dropped = stats.tx_dropped,
            _ => {}
        }
    }
    link
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}
