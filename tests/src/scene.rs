//! The design's picture, all of it real: client, production, tap, agent and shadow.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use toml::{Table, Value};

use crate::answers::Answers;
use crate::client::{Client, Exchange, Request};
use crate::metrics::Metrics;
use crate::program::{Agent, Daemon, Home, Transport};
use crate::server::Server;
use crate::topology::Topology;
use crate::wait::{LIMIT, eventually, privileged};
use crate::watch::Watch;

/// Where the model listens, on both hosts.
const MODEL: &str = "[::]:8000";

/// Where clients dial it, unless a test is about another way.
const PRODUCTION: &str = "10.0.0.5:8000";

/// More than any test copies.
const NO_BUDGET: i64 = 10_000_000_000;

/// Three hosts, and what runs on them. A new scene has a client and the model in production; change
/// what the test is about, and [`start`](Self::start) the rest of it. Any part may then be taken
/// away and started again.
///
/// Methods panic where something fails that a test does not expect to, and a scene says how things
/// are when it is dropped by a panic.
#[derive(Debug)]
pub struct Scene {
    /// The daemon on the node.
    pub daemon: Option<Daemon>,
    /// The agent on the shadow host.
    pub agent: Option<Agent>,
    /// The shadow model.
    pub model: Option<Server>,
    /// The model in production, version `v12`, at port 8000 of all the node's addresses.
    pub production: Server,
    /// Who talks to production.
    pub client: Client,
    /// What comes in at the client's.
    pub watch: Watch,
    /// The next daemon's config: [`Home::node_config`], without a budget that would be felt.
    pub node_config: Table,
    /// The next agent's config: [`Home::shadow_config`].
    pub shadow_config: Table,
    /// Configs, records, pins.
    pub home: Home,
    /// The hosts.
    pub net: Topology,
}

/// What is there before the first packet is.
impl Scene {
    /// Hosts, client and production; nothing where this process may not make them, see
    /// [`privileged`].
    #[track_caller]
    pub fn new() -> Option<Self> {
        privileged().then(|| Self::build().expect("the scene is set"))
    }

    /// All of it, ready to mirror.
    #[track_caller]
    pub fn started() -> Option<Self> {
        let mut scene = Self::new()?;
        scene.start();
        Some(scene)
    }

    /// The same, with an agent that has [`give_up_soon`](Self::give_up_soon).
    #[track_caller]
    pub fn started_to_give_up_soon() -> Option<Self> {
        let mut scene = Self::new()?;
        scene.give_up_soon();
        scene.start();
        Some(scene)
    }

    fn build() -> Result<Self> {
        let (net, home) = (Topology::new()?, Home::new()?);
        let answers = Answers::of("v12");
        let mut scene = Self {
            daemon: None,
            agent: None,
            model: None,
            production: Server::start(&net.node, MODEL.parse()?, &answers)?,
            client: Client::new(&net.client, PRODUCTION.parse()?, &answers),
            watch: Watch::start(&net.client)?,
            node_config: home.node_config(),
            shadow_config: home.shadow_config(),
            home,
            net,
        };
        scene.set_mirror("max_bytes_per_second", NO_BUDGET);
        Ok(scene)
    }

    /// Sets where packets are tapped.
    pub fn set_interfaces(&mut self, interfaces: &[&str]) {
        let interfaces = interfaces.to_vec().into();
        self.node_config.insert("interfaces".into(), interfaces);
    }

    /// Sets what clients dial.
    pub fn set_addresses(&mut self, addresses: &[&str]) {
        let addresses = addresses.to_vec().into();
        service(&mut self.node_config).insert("addresses".into(), addresses);
    }

    /// Sets a value of the node's `[service.mirror]`.
    pub fn set_mirror(&mut self, key: &str, value: impl Into<Value>) {
        let mirror = service(&mut self.node_config)["mirror"].as_table_mut();
        mirror
            .expect("a mirror is a table")
            .insert(key.into(), value.into());
    }

    /// Sets a value of the agent's config.
    pub fn set_shadow(&mut self, key: &str, value: impl Into<Value>) {
        self.shadow_config.insert(key.into(), value.into());
    }

    /// Sets a value of a section of the agent's `[[service]]`: `("compare", "slice", "/tenant")`.
    pub fn set_shadow_section(&mut self, section: &str, key: &str, value: impl Into<Value>) {
        let sections = service(&mut self.shadow_config);
        let section = sections.entry(section).or_insert(Table::new().into());
        let table = section.as_table_mut().expect("a section is a table");
        table.insert(key.into(), value.into());
    }

    /// Has the agent not wait for half a minute for the rest of an exchange: for tests that lose copies, and then
    /// wait until every request has an outcome.
    pub fn give_up_soon(&mut self) {
        self.set_shadow_service("incomplete_after", "3s");
    }

    /// Sets a value of the agent's `[[service]]`.
    pub fn set_shadow_service(&mut self, key: &str, value: impl Into<Value>) {
        service(&mut self.shadow_config).insert(key.into(), value.into());
    }
}

/// Parts that come and go.
impl Scene {
    /// Starts what is not there yet of shadow model, agent and daemon, and waits until the daemon
    /// hears the agent: from then on every packet is copied.
    #[track_caller]
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// The same, with more arguments for the daemon: `&["--attach", "clsact"]`.
    #[track_caller]
    pub fn start_with(&mut self, arguments: &[&str]) {
        if self.model.is_none() {
            self.start_model(&Answers::of("v13"));
        }
        if self.agent.is_none() {
            self.start_agent();
        }
        self.start_daemon(arguments);
        self.wait_for_agent();
    }

    /// Starts the shadow model, in place of another one.
    #[track_caller]
    pub fn start_model(&mut self, answers: &Answers) {
        self.model = None;
        let model = Server::start(&self.net.shadow, address(MODEL), answers);
        self.model = Some(model.expect("the shadow model starts"));
    }

    /// Starts the agent.
    #[track_caller]
    pub fn start_agent(&mut self) {
        let agent = Agent::start(&self.net.shadow, &self.home, &self.shadow_config);
        self.agent = Some(agent.unwrap_or_else(|error| panic!("{error:#}")));
    }

    /// Starts the daemon, without waiting for the agent.
    #[track_caller]
    pub fn start_daemon(&mut self, arguments: &[&str]) {
        let (node, home) = (&self.net.node, &self.home);
        let daemon = Daemon::start_with(node, home, &self.node_config, arguments);
        self.daemon = Some(daemon.unwrap_or_else(|error| panic!("{error:#}")));
    }

    /// Ends the daemon by a signal, in good order unless that is SIGKILL.
    #[track_caller]
    pub fn end_daemon(&mut self, signal: Signal) {
        let mut daemon = self.daemon.take().expect("there is a daemon");
        daemon.process.signal(signal).expect("it is there");
        let status = daemon.process.wait(LIMIT);
        let status = status.unwrap_or_else(|error| panic!("{error:#}"));
        let output = daemon.process.output();
        assert!(
            signal == Signal::SIGKILL || status.success(),
            "{status}\n{output}"
        );
    }

    /// The daemon that runs.
    #[track_caller]
    pub fn daemon(&self) -> &Daemon {
        self.daemon.as_ref().expect("a daemon runs")
    }

    /// The agent that runs.
    #[track_caller]
    pub fn agent(&self) -> &Agent {
        self.agent.as_ref().expect("an agent runs")
    }

    /// The shadow model that runs.
    #[track_caller]
    pub fn model(&self) -> &Server {
        self.model.as_ref().expect("a shadow model runs")
    }

    /// What `modelmirror ARGUMENTS` prints on the node.
    #[track_caller]
    pub fn modelmirror(&self, arguments: &[&str]) -> String {
        let said = self.home.modelmirror(&self.net.node, arguments);
        said.unwrap_or_else(|error| panic!("{error:#}"))
    }
}

/// Traffic.
impl Scene {
    /// A client on the client's host that dials another address.
    #[track_caller]
    pub fn client_of(&self, server: &str) -> Client {
        Client::new(&self.net.client, address(server), self.production.answers())
    }

    /// Sends requests one after another over one connection.
    #[track_caller]
    pub fn send(&self, server: &str, requests: &[Request]) -> Vec<Exchange> {
        let client = self.client_of(server);
        answered(client.load(1, requests.len(), |_, index| requests[index].clone()))
    }

    /// [`Client::load`].
    #[track_caller]
    pub fn load(
        &self,
        connections: usize,
        requests: usize,
        make: impl Fn(usize, usize) -> Request + Sync,
    ) -> Vec<Exchange> {
        answered(self.client.load(connections, requests, make))
    }

    /// [`Client::load_while`], with connections of twenty requests each. What happens meanwhile may
    /// change the scene.
    #[track_caller]
    pub fn load_while(
        &mut self,
        connections: usize,
        make: impl Fn(usize, usize) -> Request + Sync,
        during: impl FnOnce(&mut Self),
    ) -> Vec<Exchange> {
        let client = self.client.clone();
        answered(client.load_while(connections, 20, make, || during(self)))
    }
}

/// What can be seen from outside, and waited for.
impl Scene {
    /// What the daemon's /metrics says now.
    #[track_caller]
    pub fn node_metrics(&self) -> Metrics {
        let metrics = self.daemon().metrics();
        metrics.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// What the agent's /metrics says now.
    #[track_caller]
    pub fn shadow_metrics(&self) -> Metrics {
        let metrics = self.agent().metrics();
        metrics.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// How many of the service's packets had this reason.
    #[track_caller]
    pub fn packets(&self, reason: &str) -> u64 {
        let labels = [("service", "digits"), ("reason", reason)];
        let metrics = self.node_metrics();
        metrics.sum("modelmirror_packets_total", &labels) as u64
    }

    /// Waits until more than a hundred packets more than now had this reason.
    #[track_caller]
    pub fn wait_for_packets(&self, reason: &str) {
        let before = self.packets(reason);
        eventually(&format!("packets are {reason}"), || {
            let now = self.packets(reason);
            ensure!(now > before + 100, "{now} after {before}");
            Ok(())
        });
    }

    /// Waits until one of the daemon's metrics has a value.
    #[track_caller]
    pub fn wait_for(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        eventually(&format!("{name} is {value}"), || {
            let metrics = self.daemon().metrics()?;
            let output = self.daemon().process.output();
            ensure!(metrics.sum(name, labels) == value, "{metrics}\n{output}");
            Ok(())
        });
    }

    /// Waits until the daemon hears the agent and copies to it.
    #[track_caller]
    pub fn wait_for_agent(&self) {
        self.wait_for("modelmirror_agent_up", &[], 1.0);
        self.wait_for("modelmirror_mirror_paused", &[], 0.0);
    }

    /// Counts copies from now on.
    #[track_caller]
    pub fn count_copies(&self) {
        if Transport::of_this_run() == Transport::Geneve {
            self.net.shadow.nft(COPIES).expect("nft counts");
        }
    }

    /// How many copies there were since [`Scene::count_copies`]. Datagrams are counted where they reach
    /// the shadow host, before the packet that each is of has reached its own end. What went into
    /// rings only the daemon knows; where none runs it is as if there were none.
    #[track_caller]
    pub fn copies(&self) -> u64 {
        if Transport::of_this_run() == Transport::Geneve {
            let copies = self.net.shadow.nft_counter("netdev", "copies", "copies");
            return copies.expect("they are counted");
        }
        let Some(_) = &self.daemon else { return 0 };
        let metrics = self.node_metrics();
        metrics.sum("modelmirror_tunnel_sent_packets_total", &[]) as u64
    }

    /// How everything is, for a person who looks for what went wrong.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut part = |title: &str, content: Result<String>| {
            let content = content.unwrap_or_else(|error| format!("({error:#})\n"));
            let _ = write!(text, "--- {title}\n{content}");
        };
        if let Some(daemon) = &self.daemon {
            part("status", self.home.modelmirror(&self.net.node, &["status"]));
            part("daemon's metrics", daemon.metrics().map(|m| m.to_string()));
        }
        if let Some(agent) = &self.agent {
            part("agent's metrics", agent.metrics().map(|m| m.to_string()));
        }
        part("links", self.net.node.ip("-s link"));
        text
    }
}

impl Drop for Scene {
    #[expect(clippy::print_stderr, reason = "a failing test shows the state")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.describe());
        }
    }
}

const COPIES: &str = "
table netdev copies {
    counter copies { }
    chain door {
        type filter hook ingress device eth0 priority 0
        udp dport 6181 counter name copies
    }
}
";

/// The one service of a config.
fn service(config: &mut Table) -> &mut Table {
    let service = config["service"][0].as_table_mut();
    service.expect("a service is a table")
}

#[track_caller]
fn answered(sent: Result<Vec<Exchange>>) -> Vec<Exchange> {
    sent.unwrap_or_else(|error| panic!("production failed: {error:#}"))
}

#[track_caller]
fn address(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}
