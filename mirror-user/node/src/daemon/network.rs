//! The host's network as the daemon sees it. A task of its own asks the kernel, which answers only
//! when whoever configures the network has let go of it: that can take seconds, and the daemon's
//! loop has no seconds to wait.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use super::lro::{self, Receivers};
use super::place::{self, Obstacle};
use super::way::{self, NoWay, Way};
use crate::config::Node;
use crate::netlink::netfilter::Netfilter;
use crate::netlink::stack::{self, Pair};
use crate::netlink::{self, Link, Netlink};
use crate::offload::Lro;

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
    /// What clients dial.
    pub(super) dialled: BTreeSet<IpAddr>,
    /// Where canaries listen.
    pub(super) canaries: BTreeSet<SocketAddr>,
    /// Whether it matters at once that an uplink drops packets.
    pub(super) drops: bool,
}

impl Interest {
    /// Where canaries listen.
    pub(super) fn canaries(node: &Node) -> BTreeSet<SocketAddr> {
        let canaries = node
            .services
            .iter()
            .filter_map(|service| service.canary.as_ref());
        canaries.map(|canary| canary.address).collect()
    }

    /// What the services' clients dial.
    pub(super) fn dialled(node: &Node) -> BTreeSet<IpAddr> {
        let addresses = node.services.iter().flat_map(|service| &service.addresses);
        addresses.filter_map(|address| address.ip).collect()
    }
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
    /// Those of the interfaces that show the same packets.
    pub(super) pairs: Vec<Pair>,
    /// The bridges, bonds and VRFs that have the interfaces as ports, by the port's name.
    pub(super) masters: BTreeMap<String, Master>,
    /// Interfaces whose frames have VLAN tags, with a VLAN on each, where a canary is on another host.
    pub(super) tagged: BTreeMap<String, String>,
    /// What netfilter does to connections that come in, where a canary is on this host.
    pub(super) netfilter: Netfilter,
    /// Where packets leave for what clients dial, by the interface's number, if that is another host's.
    pub(super) onward: BTreeMap<IpAddr, u32>,
    /// By which devices packets come in, and whether they are merged there, where a canary is on another host.
    pub(super) receivers: Receivers,
}

/// What has an interface as its port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Master {
    /// Its name.
    pub(super) name: String,
    /// `bridge`, `bond`, `vrf`.
    pub(super) kind: String,
    /// Whether a bridge has netfilter take what comes in by its ports.
    pub(super) filters: bool,
}

/// What the last look came to: a view, or why there is none.
pub(super) type Look = Result<Arc<View>, String>;

impl View {
    async fn look(
        netlink: &Netlink,
        interest: &Interest,
        before: Netfilter,
    ) -> Result<Self, netlink::Error> {
        let mut view = Self::default();
        let addresses = netlink.addresses().await?;
        view.addresses = addresses.iter().map(|address| address.ip).collect();
        for name in &interest.interfaces {
            let link = netlink.link(name).await?;
            view.links.insert(name.clone(), link);
        }
        for &host in &interest.hosts {
            view.ways.insert(host, way::find(netlink, host).await?);
        }
        let is_stacked = |link: &&Link| link.master != 0;
        let is_here = |host: &SocketAddr| place::is_here(host.ip(), &view.addresses);
        let is_steered_away = !interest.canaries.iter().all(is_here);
        if interest.interfaces.len() > 1
            || is_steered_away
            || view.links.values().flatten().any(|link| is_stacked(&link))
        {
            let links = netlink.links().await?;
            view.pairs = stack::pairs(&interest.interfaces, &links);
            view.tagged = stack::tagged(&interest.interfaces, &links, &addresses);
            if is_steered_away {
                let mut names = interest.interfaces.clone();
                for canary in &interest.canaries {
                    if let Some(Ok(way)) = view.ways.get(canary) {
                        names.push(way.link.name.clone());
                    }
                }
                view.receivers = lro::receivers(&names, &links).await;
            }
            for port in view.links.values().flatten().filter(is_stacked) {
                let master = links.iter().find(|link| link.index == port.master);
                view.masters
                    .extend(master.map(|link| (port.name.clone(), Master::of(link))));
            }
        }
        let is_here = |host: &SocketAddr| place::is_here(host.ip(), &view.addresses);
        if interest.canaries.iter().any(is_here) {
            let read = tokio::task::spawn_blocking(move || Netfilter::read(before));
            view.netfilter = read.await.unwrap_or_default();
        }
        for ip in &interest.dialled {
            let route = netlink.route(*ip).await?.filter(|route| !route.local);
            view.onward
                .extend(route.map(|route| (*ip, route.interface)));
        }
        Ok(view)
    }

    /// Why nothing is tapped on an interface of the config: one before it shows the same packets.
    pub(super) fn excluded(&self, interfaces: &[String]) -> BTreeMap<String, String> {
        let mut excluded = BTreeMap::new();
        for name in interfaces {
            let pair = self
                .pairs
                .iter()
                .find(|pair| pair.second == *name && !excluded.contains_key(&pair.first));
            if let Some(Pair {
                first, why, cure, ..
            }) = pair
            {
                let said = format!(
                    "it shows the same packets as {first}, so nothing is seen there: {why}; {cure}"
                );
                excluded.insert(name.clone(), said);
            }
        }
        excluded
    }
}

impl Master {
    fn of(link: &Link) -> Self {
        let kind = link.kind.clone().unwrap_or_default();
        let own = format!("/sys/class/net/{}/bridge/nf_call_ip", link.name);
        let all = "/proc/sys/net/bridge/bridge-nf-call-ip";
        let is_on =
            |path: String| std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "1");
        let filters = kind == "bridge"
            && ["", "6"].into_iter().any(|family| {
                is_on(format!("{own}{family}tables")) || is_on(format!("{all}{family}tables"))
            });
        Self {
            name: link.name.clone(),
            kind,
            filters,
        }
    }
}

/// What the network has against a config, before a daemon runs by it.
#[derive(Debug, Default)]
pub(crate) struct Against {
    /// Interfaces that show the same packets.
    pub(crate) pairs: Vec<Pair>,
    /// Services whose canary gets nobody, with why and what to write instead.
    pub(crate) canaries: Vec<(String, String, String)>,
    /// Why netfilter's rules could not be seen, where they matter.
    pub(crate) hidden: Option<String>,
    /// Devices by which packets of canaries on other hosts come in.
    pub(crate) receivers: BTreeMap<String, Lro>,
}

impl Against {
    /// Asks the kernel.
    ///
    /// # Errors
    /// When it does not answer.
    pub(crate) async fn of(netlink: &Netlink, node: &Node) -> Result<Self, netlink::Error> {
        let with_canary = || {
            let services = node.services.iter();
            services.filter_map(|service| Some((service, service.canary.as_ref()?)))
        };
        let interest = Interest {
            interfaces: node.interfaces.clone(),
            hosts: with_canary().map(|(_, canary)| canary.address).collect(),
            dialled: Interest::dialled(node),
            canaries: Interest::canaries(node),
            drops: false,
        };
        let view = View::look(netlink, &interest, Netfilter::default()).await?;
        let canaries = with_canary().filter_map(|(service, canary)| {
            match place::find(canary, &service.addresses, &view) {
                Err(Obstacle::Topology { why, cure }) => Some((service.name.clone(), why, cure)),
                _ => None,
            }
        });
        Ok(Self {
            canaries: canaries.collect(),
            pairs: view.pairs.clone(),
            hidden: view.netfilter.hidden.clone(),
            receivers: view
                .receivers
                .into_values()
                .flatten()
                .map(|device| (device.name, device.lro))
                .collect(),
        })
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
    let mut netfilter = Netfilter::default();
    while !looks.is_closed() {
        let wanted = interest.borrow_and_update().clone();
        let look =
            tokio::time::timeout(PATIENCE, View::look(netlink, &wanted, netfilter.clone())).await;
        let look =
            look.map_err(|_| format!("the kernel has not answered for {} s", PATIENCE.as_secs()))?;
        let view = look.map_err(|error| error.to_string())?;
        netfilter = view.netfilter.clone();
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
