//! The main job set up: production, tap, agent and shadow, all real.

use std::fmt::Write as _;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use toml::{Table, Value};

use crate::answers::Answers;
use crate::client::{Client, Exchange, Request};
use crate::program::{Agent, Daemon, Home};
use crate::proof;
use crate::server::Server;
use crate::topology::Topology;
use crate::wait::eventually;

/// Where the model listens, on both hosts.
const MODEL: &str = "[::]:8000";

/// What a [`Scene`] is made of; change what the test is about, then [`start`](Self::start) it.
#[derive(Debug)]
pub struct Setup {
    /// The hosts.
    pub net: Topology,
    /// Their files.
    pub home: Home,
    /// The model in production, on all the node's addresses at port 8000; it runs already.
    pub production: Server,
    /// What the shadow model answers.
    pub shadow_answers: Answers,
    /// The daemon's config: [`Home::node_config`].
    pub node: Table,
    /// The agent's config: [`Home::shadow_config`].
    pub shadow: Table,
    /// What follows `modelmirror run --config FILE`.
    pub daemon_arguments: Vec<&'static str>,
}

impl Default for Setup {
    /// The hosts of [`Topology`], and a budget that nothing here exceeds.
    /// Panics when something of it cannot be made.
    #[track_caller]
    fn default() -> Self {
        let net = Topology::new().expect("the network is set up");
        let home = Home::new().expect("there is room for files");
        let production = Server::start(&net.node, address(MODEL), &Answers::of("v12"))
            .expect("production starts");
        let (node, shadow) = (home.node_config(), home.shadow_config());
        let mut setup = Self {
            net,
            home,
            production,
            shadow_answers: Answers::of("v13"),
            node,
            shadow,
            daemon_arguments: Vec::new(),
        };
        setup.mirror("max_bytes_per_second", 10_000_000_000_i64);
        setup
    }
}

impl Setup {
    /// Sets where packets are tapped.
    pub fn tap(&mut self, interfaces: &[&str]) -> &mut Self {
        self.node.insert("interfaces".into(), strings(interfaces));
        self
    }

    /// Sets what clients dial.
    pub fn addresses(&mut self, addresses: &[&str]) -> &mut Self {
        self.node["service"][0]
            .as_table_mut()
            .expect("a service is a table")
            .insert("addresses".into(), strings(addresses));
        self
    }

    /// Sets a value of the node's `[service.mirror]`.
    pub fn mirror(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.node["service"][0]["mirror"]
            .as_table_mut()
            .expect("a mirror is a table")
            .insert(key.into(), value.into());
        self
    }

    /// Starts the shadow model, the agent and the daemon, and waits until the daemon hears the
    /// agent: from then on every packet is copied.
    ///
    /// # Panics
    /// When one of them does not start; says what it wrote.
    #[track_caller]
    pub fn start(self) -> Scene {
        let Self {
            net,
            home,
            production,
            shadow_answers,
            node,
            shadow,
            daemon_arguments,
        } = self;
        let model = Server::start(&net.shadow, address(MODEL), &shadow_answers)
            .expect("the shadow model starts");
        let agent = Agent::start(&net.shadow, &home, &shadow).unwrap_or_else(|e| panic!("{e:#}"));
        let daemon = Daemon::start_with(&net.node, &home, &node, &daemon_arguments)
            .unwrap_or_else(|e| panic!("{e:#}"));
        let scene = Scene {
            daemon,
            agent,
            model,
            production,
            net,
            home,
            node,
        };
        scene.wait_for_agent();
        scene
    }
}

/// Production, tap, agent and shadow at work. Says how things are when the test panics.
#[derive(Debug)]
pub struct Scene {
    /// The daemon on the node.
    pub daemon: Daemon,
    /// The agent on the shadow host.
    pub agent: Agent,
    /// The shadow model.
    pub model: Server,
    /// The model in production.
    pub production: Server,
    /// The hosts.
    pub net: Topology,
    /// Their files.
    pub home: Home,
    /// The daemon's config, for another one.
    pub node: Table,
}

impl Scene {
    /// A client on the client's host.
    pub fn client(&self, server: &str) -> Client {
        Client::new(&self.net.client, address(server), self.production.answers())
    }

    /// Sends requests one after another over one connection from the client's host.
    ///
    /// # Panics
    /// When one fails.
    #[track_caller]
    pub fn send(&self, server: &str, requests: &[Request]) -> Vec<Exchange> {
        let load = self
            .client(server)
            .load(1, requests.len(), |_, index| requests[index].clone());
        load.unwrap_or_else(|error| panic!("production failed: {error:#}"))
    }

    /// Waits until the daemon copies to the agent.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn wait_for_agent(&self) {
        eventually("the daemon hears the agent", || {
            let metrics = self.daemon.metrics()?;
            let alive = metrics.sum("modelmirror_agent_up", &[]) >= 1.0
                && metrics.sum("modelmirror_mirror_paused", &[]) == 0.0;
            ensure!(alive, "{metrics}\n{}", self.daemon.process.output());
            Ok(())
        });
    }

    /// Everything that was sent was mirrored, replayed, compared and recorded to the byte, nothing
    /// else was, and both ledgers close: see [`proof`].
    ///
    /// # Panics
    /// When any of it is not so.
    #[track_caller]
    pub fn prove(&self, sent: &[Exchange]) {
        proof::requests_closed(self, sent.len() as u64, &[]);
        proof::replayed(self, sent);
        proof::recorded(self, sent);
        proof::packets_closed(self);
        proof::client_undisturbed(self);
    }

    /// How everything is, for a person who looks for what went wrong.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let mut part = |title: &str, content: Result<String>| {
            let content = content.unwrap_or_else(|error| format!("({error:#})\n"));
            let _ = write!(text, "--- {title}\n{content}");
        };
        part("status", self.home.modelmirror(&self.net.node, &["status"]));
        part(
            "daemon's metrics",
            self.daemon.metrics().map(|m| m.to_string()),
        );
        part(
            "agent's metrics",
            self.agent.metrics().map(|m| m.to_string()),
        );
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

fn strings(values: &[&str]) -> Value {
    Value::Array(values.iter().map(|&value| value.into()).collect())
}

#[track_caller]
fn address(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}
