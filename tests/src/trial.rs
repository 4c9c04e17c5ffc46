//! A canary beside stable: who answers what is told by what both servers were asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::ensure;
use toml::Table;

use crate::answers::{Answers, pattern};
use crate::client::{Exchange, Request};
use crate::handmade::{Handmade, flood};
use crate::namespace::Namespace;
use crate::scene::Scene;
use crate::server::{Received, Server};
use crate::wait::eventually;

/// Where the canary listens, unless a test is about another place.
const CANARY: &str = "[::]:8001";

/// Where stable is dialled by hand.
const STABLE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 5), 8000);

/// A host that is not there, behind the client's.
const STRANGER: Ipv4Addr = Ipv4Addr::new(10, 8, 0, 1);

/// The first of many more.
const FLOOD: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 0);

/// What the kernel counts when a connection goes wrong. Not the resets that it sends: one that
/// answers a late packet of a connection that has ended is no trouble.
const TROUBLES: [(&str, &str); 2] = [("Tcp", "AttemptFails"), ("Tcp", "EstabResets")];

/// Stable and canary, the client, and the daemon. The canary is on the node, at port 8001 of all
/// its addresses, until [`place_canary`](Self::place_canary) says otherwise.
#[derive(Debug)]
pub struct Trial {
    /// Everything else: production is stable.
    pub scene: Scene,
    /// The canary's servers, version `v13`.
    pub canary: Vec<Server>,
    /// What servers that are gone were asked: stable's, the canary's.
    former: [Vec<Received>; 2],
    host: Namespace,
    listen: SocketAddr,
    flooded: AtomicU32,
    /// What [`troubles`](Self::troubles) were when the daemon was ready.
    before: Vec<u64>,
}

/// What the trial begins with.
impl Trial {
    /// Every connection by itself, the share 0, nothing mirrored; nothing where this process may
    /// not make namespaces.
    #[track_caller]
    pub fn new() -> Option<Self> {
        Self::with(|_| {})
    }

    /// The same, with changes to `[service.canary]`.
    #[track_caller]
    pub fn with(change: impl FnOnce(&mut Table)) -> Option<Self> {
        let mut trial = Self::quiet(change)?;
        trial.start_daemon();
        Some(trial)
    }

    /// The same before the daemon starts, and with the mirror's config still there.
    #[track_caller]
    pub fn quiet(change: impl FnOnce(&mut Table)) -> Option<Self> {
        let scene = Scene::new()?;
        let mut trial = Self {
            host: scene.net.node.clone(),
            listen: address(CANARY),
            canary: Vec::new(),
            former: Default::default(),
            flooded: AtomicU32::new(0),
            before: Vec::new(),
            scene,
        };
        trial.start_canary();
        let mut canary = toml::toml! {
            version = "v13"
            address = "10.0.0.5:8001"
            affinity = "connection"
        };
        change(&mut canary);
        trial.service().insert("canary".into(), canary.into());
        Some(trial)
    }

    /// The daemon's config of the service.
    pub fn service(&mut self) -> &mut Table {
        let service = self.scene.node_config["service"][0].as_table_mut();
        service.expect("a service is a table")
    }

    /// Starts the daemon, without a mirror.
    #[track_caller]
    pub fn start_daemon(&mut self) {
        self.service().remove("mirror");
        self.scene.start_daemon(&[]);
        self.note_troubles();
    }

    /// Starts the daemon with its mirror, and what there is to copy to.
    #[track_caller]
    pub fn start_mirrored(&mut self) {
        self.scene.start();
        self.note_troubles();
    }

    #[track_caller]
    fn note_troubles(&mut self) {
        let troubles = self.troubles().into_iter();
        self.before = troubles.map(|(_, count)| count).collect();
    }

    /// Has the canary run on `host` and listen at `listen`; the next daemon finds it at `known_as`.
    #[track_caller]
    pub fn place_canary(&mut self, host: &Namespace, listen: &str, known_as: &str) {
        self.stop_canary();
        (self.host, self.listen) = (host.clone(), address(listen));
        self.start_canary();
        self.service()["canary"]["address"] = known_as.into();
    }
}

/// Servers come and go.
impl Trial {
    /// Starts the canary where it is placed.
    #[track_caller]
    pub fn start_canary(&mut self) {
        let canary = Server::start(&self.host, self.listen, &Answers::of("v13"));
        self.canary.push(canary.expect("the canary starts"));
    }

    /// Takes the canary away, with its connections.
    pub fn stop_canary(&mut self) {
        for canary in std::mem::take(&mut self.canary) {
            self.former[1].extend(canary.received());
        }
    }

    /// A client by hand, at this port of a host behind the client's; it dials stable.
    #[track_caller]
    pub fn handmade(&self, port: u16) -> Handmade {
        let net = &self.scene.net;
        self.route_strangers();
        let client = SocketAddrV4::new(STRANGER, port);
        let made = Handmade::new(&net.client, "eth0", client, STABLE);
        made.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// SYNs from so many addresses that no host has, none of them twice in a trial.
    #[track_caller]
    pub fn flood(&self, syns: u32) {
        self.route_strangers();
        let from = Ipv4Addr::from_bits(FLOOD.to_bits() + self.flooded.fetch_add(syns, Relaxed));
        flood(&self.scene.net.client, STABLE, from, syns).expect("SYNs are sent");
    }

    /// The client's host gets what is for strangers, and does not answer.
    #[track_caller]
    fn route_strangers(&self) {
        let routed = self
            .scene
            .net
            .node
            .ip("route replace 10.8.0.0/14 via 10.0.0.2");
        routed.expect("there is a route");
    }

    /// Takes stable away: nobody listens at the service's port any more.
    #[track_caller]
    pub fn stop_stable(&mut self) {
        self.start_stable("v12", "127.0.0.1:0");
    }

    /// Takes stable away, and starts another at its place.
    #[track_caller]
    pub fn restart_stable(&mut self) {
        self.replace_stable("v12");
    }

    /// The same, and it is of this version.
    #[track_caller]
    pub fn replace_stable(&mut self, version: &str) {
        self.stop_stable();
        self.start_stable(version, "[::]:8000");
    }

    #[track_caller]
    fn start_stable(&mut self, version: &str, listen: &str) {
        let (node, answers) = (&self.scene.net.node, Answers::of(version));
        self.former[0].extend(self.scene.production.received());
        let stable = Server::start(node, address(listen), &answers);
        self.scene.production = stable.expect("stable starts");
    }
}

/// What people type, and what they see.
impl Trial {
    /// `modelmirror canary set SHARE`.
    #[track_caller]
    pub fn set(&self, share: &str) {
        self.command(&["set", share]);
    }

    /// `modelmirror canary ARGUMENTS`.
    #[track_caller]
    pub fn command(&self, arguments: &[&str]) -> String {
        let line = [&["canary"], arguments, &["--service", "digits"]].concat();
        self.scene.modelmirror(&line)
    }

    /// What a version's metric says.
    #[track_caller]
    pub fn metric(&self, name: &str, arm: &str, more: &[(&str, &str)]) -> u64 {
        let labels = [&[("service", "digits"), ("arm", arm)], more].concat();
        self.scene.node_metrics().sum(name, &labels) as u64
    }

    /// What the metric says of stable and of the canary.
    #[track_caller]
    pub fn metrics(&self, name: &str, more: &[(&str, &str)]) -> [u64; 2] {
        ["stable", "canary"].map(|arm| self.metric(name, arm, more))
    }

    /// Waits until the daemon has read so many whole responses of stable and of the canary.
    #[track_caller]
    pub fn wait_for_responses(&self, expected: [u64; 2]) {
        eventually("the responses are read", || {
            let responses = self.metrics("modelmirror_responses_total", &[]);
            ensure!(responses == expected, "{responses:?}, not {expected:?}");
            Ok(())
        });
    }

    /// Waits until the daemon knows of a canary on another host whether it answers: 1 or 0.
    #[track_caller]
    pub fn wait_for_canary(&self, answers: f64) {
        let name = "modelmirror_canary_up";
        self.scene.wait_for(name, &[("service", "digits")], answers);
    }

    /// How many connections the daemon has counted for stable and for the canary.
    #[track_caller]
    pub fn connections(&self) -> [u64; 2] {
        self.metrics("modelmirror_connections_total", &[])
    }

    /// That since the daemon started neither the kernel of the client's host nor that of the node
    /// has reset a connection, or refused one.
    #[track_caller]
    pub fn assert_calm(&self) {
        let since = |(before, (name, now)): (&u64, (String, u64))| (name, now - before);
        let counted = self.before.iter().zip(self.troubles()).map(since);
        let troubles: Vec<_> = counted.filter(|&(_, count)| count > 0).collect();
        assert_eq!(troubles, [], "of the kernel");
        assert_eq!(self.resets(), 0, "resets that the tap has seen");
    }

    /// What goes wrong in the kernels of the client's host and of the node.
    #[track_caller]
    fn troubles(&self) -> Vec<(String, u64)> {
        let hosts = [&self.scene.net.client, &self.scene.net.node];
        let each = hosts.into_iter().flat_map(|host| {
            TROUBLES.map(|(group, name)| {
                let count = host.counter(group, name).expect("the counter is there");
                (format!("{} {name}", host.name()), count)
            })
        });
        each.collect()
    }

    /// How many resets either side has sent over connections of either version.
    #[track_caller]
    pub fn resets(&self) -> u64 {
        self.metrics("modelmirror_resets_total", &[]).iter().sum()
    }

    /// How many connections went to that version for this reason.
    #[track_caller]
    pub fn steered(&self, arm: &str, reason: &str) -> u64 {
        let name = "modelmirror_steered_connections_total";
        self.metric(name, arm, &[("reason", reason)])
    }

    /// Everything that stable and the canary were asked so far, by servers that are gone too.
    pub fn received(&self) -> [Vec<Received>; 2] {
        let [mut stable, mut canary] = self.former.clone();
        stable.extend(self.scene.production.received());
        canary.extend(self.canary.iter().flat_map(Server::received));
        [stable, canary]
    }

    /// The ids of the requests that the canary was asked.
    pub fn canary_asked(&self) -> BTreeSet<String> {
        let [_, received] = self.received();
        let ids = received.iter().map(|request| request.id().to_owned());
        ids.collect()
    }

    /// How many connections stable and the canary that run have accepted.
    pub fn accepted(&self) -> u64 {
        let canary = self.canary.iter().map(Server::connections).sum::<u64>();
        self.scene.production.connections() + canary
    }

    /// Holds what both servers were asked against what was sent: every request was answered by one
    /// of them, once, and every connection by one alone.
    #[track_caller]
    pub fn split(&self, sent: &[Exchange]) -> Split {
        let mut served: HashMap<String, &str> = HashMap::new();
        for (arm, received) in ["stable", "canary"].into_iter().zip(self.received()) {
            for request in received {
                let twice = served.insert(request.id().to_owned(), arm);
                assert_eq!(twice, None, "{request:?} was asked twice");
            }
        }
        let mut versions: BTreeMap<SocketAddr, BTreeSet<&str>> = BTreeMap::new();
        let mut requests = [0, 0];
        for exchange in sent {
            let arm = served.get(&exchange.id);
            let arm = *arm.unwrap_or_else(|| panic!("nobody was asked {exchange:?}"));
            requests[usize::from(arm == "canary")] += 1;
            versions.entry(exchange.local).or_default().insert(arm);
        }
        let mut connections = [0, 0];
        for (local, arms) in versions {
            assert_eq!(arms.len(), 1, "{local} was answered by both versions");
            connections[usize::from(arms.contains("canary"))] += 1;
        }
        Split {
            connections,
            requests,
        }
    }
}

/// What went to stable, and what to the canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Connections, told apart by the client's ends.
    pub connections: [u64; 2],
    /// Requests.
    pub requests: [u64; 2],
}

impl Split {
    /// Whether the canary's connections are a share of all, as a fair coin would have it: outside
    /// these bounds, of five standard deviations, once in two million times.
    #[track_caller]
    pub fn assert_share(&self, share: f64) {
        let all = self.connections.iter().sum::<u64>() as f64;
        let canary = self.connections[1] as f64;
        let deviation = (all * share * (1.0 - share)).sqrt();
        assert!(
            (canary - all * share).abs() <= 5.0 * deviation,
            "{self:?} at {share}"
        );
    }
}

/// A request whose body takes several packets, both ways; both versions answer it alike.
pub fn large(connection: usize, index: usize) -> Request {
    let seed = (connection * 100 + index) as u64;
    Request::post("/echo", &pattern(20_000 + index, seed))
}

#[track_caller]
fn address(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}
