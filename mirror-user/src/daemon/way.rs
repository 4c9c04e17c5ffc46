//! The way to an agent: the uplink, our address there, the next hop.

use std::net::{IpAddr, SocketAddr};

use crate::dataplane::Interface;
use crate::netlink::{self, Link, Netlink};

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
    /// The link's speed in bytes per second, where it has one.
    pub(super) speed: Option<u64>,
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

/// An interface as the programs are attached to it.
pub(super) fn interface(link: &Link) -> Interface {
    Interface {
        name: link.name.clone(),
        index: link.index,
        ethernet: link.ethernet,
    }
}

/// Asks the kernel's own routing.
pub(super) async fn find(netlink: &Netlink, agent: SocketAddr) -> Result<Way, NoWay> {
    let ip = agent.ip();
    let route = netlink.route(ip).await.ok_or(NoWay::NoRoute(ip))?;
    let link = netlink
        .link_by_index(route.interface)
        .await
        .ok_or(NoWay::NoInterface(ip))?;
    let local = route.source.ok_or(NoWay::NoInterface(ip))?;
    if !link.up {
        return Err(NoWay::Down(link.name));
    }
    let hop = route.gateway.unwrap_or(ip);
    let next_hop = if link.ethernet && !link.loopback {
        netlink
            .neighbour(link.index, hop)
            .await
            .ok_or(NoWay::NoNeighbour(hop))?
    } else {
        [0; 6]
    };
    Ok(Way {
        local,
        mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        next_hop,
        speed: netlink::speed(&link.name).await,
        link,
    })
}
