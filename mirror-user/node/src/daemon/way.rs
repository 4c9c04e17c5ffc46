//! The way to an agent, or to a canary on another host: the link, our address there, the next hop.

use std::net::{IpAddr, SocketAddr};

use crate::netlink::{self, Link, Netlink};

/// The way to another host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// The link it leaves by.
    pub(super) link: Link,
    /// Our address there.
    pub(super) local: IpAddr,
    /// The largest IP packet on the way, in bytes.
    pub(super) mtu: u32,
    /// Who takes packets on: a router, or the other end itself.
    pub(super) next_hop: IpAddr,
    /// The next hop's MAC address; zero on links that have none. Nothing = it has not answered yet.
    pub(super) mac: Option<[u8; 6]>,
    /// The link's speed in bytes per second, where it has one.
    pub(super) speed: Option<u64>,
    /// Packets that the link and its queue have dropped, of whomever.
    pub(super) dropped: u64,
}

impl Way {
    /// The way, if the next hop's hardware address is known.
    pub(super) fn resolved(self) -> Result<Self, NoWay> {
        match self.mac {
            Some(_) => Ok(self),
            None => Err(NoWay::NoNeighbour(self.next_hop)),
        }
    }

    /// The next hop's MAC address and the link's, as the programs write them; all 0 while the former
    /// is not known.
    pub(super) fn macs(&self) -> [u32; 3] {
        let mut macs = [0; 12];
        let Some(mac) = self.mac else {
            return [0; 3];
        };
        macs[..6].copy_from_slice(&mac);
        macs[6..].copy_from_slice(&self.link.mac);
        let word =
            |at: usize| u32::from_ne_bytes([macs[at], macs[at + 1], macs[at + 2], macs[at + 3]]);
        [word(0), word(4), word(8)]
    }
}

/// Why there is no way to a host right now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoWay {
    /// It has a name, whose address is not known yet.
    #[error("the address of {0} is not known yet")]
    Unresolved(String),
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
    #[error("{0} is down")]
    Down(String),
}

/// Asks the kernel's own routing.
///
/// # Errors
/// When the kernel does not answer, which says nothing of the way.
pub(super) async fn find(
    netlink: &Netlink,
    host: SocketAddr,
) -> Result<Result<Way, NoWay>, netlink::Error> {
    let ip = host.ip();
    let Some(route) = netlink.route(ip).await? else {
        return Ok(Err(NoWay::NoRoute(ip)));
    };
    let link = netlink.link_by_index(route.interface).await?;
    let (Some(link), Some(local)) = (link, route.source) else {
        return Ok(Err(NoWay::NoInterface(ip)));
    };
    if !link.up {
        return Ok(Err(NoWay::Down(link.name)));
    }
    let hop = route.gateway.unwrap_or(ip);
    let mac = if link.ethernet && !link.loopback {
        netlink.neighbour(link.index, hop).await?
    } else {
        Some([0; 6])
    };
    Ok(Ok(Way {
        local,
        mtu: route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu)),
        next_hop: hop,
        mac,
        speed: netlink::speed(&link.name).await,
        dropped: link.dropped + netlink.queue_drops(link.index).await?,
        link,
    }))
}
