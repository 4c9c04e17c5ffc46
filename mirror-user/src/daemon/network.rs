//! The host's network as the daemon sees it. A task of its own asks the kernel, which answers only
//! when whoever configures the network has let go of it: that can take seconds, and the daemon's
//! loop has no seconds to wait.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::way::{self, NoWay, Way};
use crate::netlink::{self, Link, Netlink};

/// How long the kernel may take for all answers of one look.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often to look when nothing is heard of changes.
const INTERVAL: Duration = Duration::from_secs(5);

/// The same where packets that an uplink has dropped count, of which the kernel tells nobody; and how
/// long until the kernel is asked again that has not answered.
const SOON: Duration = Duration::from_secs(1);

/// The least time between two looks: a table full of restless neighbours is no reason to do
/// nothing else.
const REST: Duration = Duration::from_millis(50);

/// What the daemon wants to know of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Interest {
    /// Interfaces, by name.
    pub(super) interfaces: Vec<String>,
    /// The agents' tunnel ends, and where canaries listen.
    pub(super) hosts: Vec<SocketAddr>,
    /// Whether it matters at once that an uplink drops packets.
    pub(super) drops: bool,
}

/// The network at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    /// Every address of this host.
    pub(super) addresses: Vec<IpAddr>,
    /// The interfaces asked for, by name; nothing where there is none.
    pub(super) links: BTreeMap<String, Option<Link>>,
    /// The ways to the hosts asked for.
    pub(super) ways: BTreeMap<SocketAddr, Result<Way, NoWay>>,
}

/// What the last look came to: a view, or why there is none.
pub(super) type Look = Result<Arc<View>, String>;

impl View {
    async fn look(netlink: &Netlink, interest: &Interest) -> Result<Self, netlink::Error> {
        let mut view = Self::default();
        let addresses = netlink.addresses().await?;
        view.addresses = addresses.into_iter().map(|address| address.ip).collect();
        for name in &interest.interfaces {
            let link = netlink.link(name).await?;
            view.links.insert(name.clone(), link);
        }
        for &host in &interest.hosts {
            view.ways.insert(host, way::find(netlink, host).await?);
        }
        Ok(view)
    }
}

/// Looks at the network whenever it changes, or the interest does, and now and then, until nobody
/// wants to know any more. After a failure it asks through a new socket.
pub(super) async fn watch(
    mut interest: watch::Receiver<Interest>,
    looks: watch::Sender<Option<Look>>,
) {
    while !looks.is_closed() {
        let failure = match Netlink::watch() {
            Ok((netlink, changes)) => {
                look_while_it_works(&netlink, changes, &mut interest, &looks).await
            }
            Err(error) => Err(format!("cannot open netlink: {error}")),
        };
        if let Err(error) = failure {
            looks.send_replace(Some(Err(error)));
        }
        tokio::time::sleep(SOON).await;
    }
}

/// Ends with the first failure, or when nobody wants to know any more.
async fn look_while_it_works(
    netlink: &Netlink,
    mut changes: mpsc::Receiver<()>,
    interest: &mut watch::Receiver<Interest>,
    looks: &watch::Sender<Option<Look>>,
) -> Result<(), String> {
    while !looks.is_closed() {
        let wanted = interest.borrow_and_update().clone();
        let look = tokio::time::timeout(PATIENCE, View::look(netlink, &wanted)).await;
        let look =
            look.map_err(|_| format!("the kernel has not answered for {} s", PATIENCE.as_secs()))?;
        let view = look.map_err(|error| error.to_string())?;
        looks.send_replace(Some(Ok(Arc::new(view))));
        tokio::time::sleep(REST).await;
        tokio::select! {
            Some(()) = changes.recv() => {}
            Ok(()) = interest.changed() => {}
            () = tokio::time::sleep(if wanted.drops { SOON } else { INTERVAL }) => {}
        }
    }
    Ok(())
}
