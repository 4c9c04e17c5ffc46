//! Everything of the design's picture, of which each part may be missing, or fail.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use toml::Table;

use crate::answers::Answers;
use crate::client::{Client, Exchange};
use crate::metrics::Metrics;
use crate::program::{Agent, Daemon, Home};
use crate::server::{Received, Server};
use crate::topology::Topology;
use crate::wait::{eventually, eventually_within};
use crate::watch::Watch;

/// Client, node and shadow host; the model in production and the shadow; the daemon and the agent.
/// When a test fails, it shows what all of them say.
#[derive(Debug)]
pub struct Site {
    /// `modelmirror run`.
    pub daemon: Option<Daemon>,
    /// `modelmirror shadow`.
    pub agent: Option<Agent>,
    /// The model in production, version `v12`.
    pub production: Server,
    /// The shadow model, version `v13`.
    pub shadow: Option<Server>,
    /// Who talks to production.
    pub client: Client,
    /// What comes in at the client's.
    pub watch: Watch,
    /// Configs, records, pins.
    pub home: Home,
    /// The hosts.
    pub net: Topology,
}

/// More than any test copies: for tests that are not about the budget.
pub const NO_BUDGET: i64 = 10_000_000_000;

/// The one service of the configs.
const SERVICE: (&str, &str) = ("service", "digits");

impl Site {
    /// Hosts, both models and a client; neither daemon nor agent.
    ///
    /// # Errors
    /// Needs root.
    pub fn quiet() -> Result<Self> {
        let net = Topology::new()?;
        let answers = Answers::of("v12");
        let production = Server::start(&net.node, "[::]:8000".parse()?, &answers)?;
        let shadow = Server::start(&net.shadow, SHADOW.parse()?, &Answers::of("v13"))?;
        Ok(Self {
            daemon: None,
            agent: None,
            production,
            shadow: Some(shadow),
            client: Client::new(&net.client, "10.0.0.5:8000".parse()?, &answers),
            watch: Watch::start(&net.client)?,
            home: Home::new()?,
            net,
        })
    }

    /// All of it, ready to mirror.
    ///
    /// # Errors
    /// Needs root.
    pub fn start() -> Result<Self> {
        Self::with(|_| {}, |_| {})
    }

    /// All of it, ready to mirror, with changed configs.
    ///
    /// # Errors
    /// Needs root.
    pub fn with(node: impl FnOnce(&mut Table), shadow: impl FnOnce(&mut Table)) -> Result<Self> {
        let mut site = Self::quiet()?;
        let (mut node_config, mut shadow_config) = (site.node_config(), site.home.shadow_config());
        node(&mut node_config);
        shadow(&mut shadow_config);
        site.start_agent(&shadow_config)?;
        site.start_daemon(&node_config)?;
        site.wait_for_agent();
        Ok(site)
    }

    /// The node's config, without a budget that would be felt.
    pub fn node_config(&self) -> Table {
        let mut config = self.home.node_config();
        config["service"][0]["mirror"]["max_bytes_per_second"] = NO_BUDGET.into();
        config
    }

    /// Starts the daemon.
    ///
    /// # Errors
    /// With its output, when it does not become ready.
    pub fn start_daemon(&mut self, config: &Table) -> Result<()> {
        self.daemon = Some(Daemon::start(&self.net.node, &self.home, config)?);
        Ok(())
    }

    /// Counts the copies that reach the shadow host from now on.
    ///
    /// # Errors
    /// With what `nft` says.
    pub fn count_copies(&self) -> Result<()> {
        self.net.shadow.nft(COPIES)
    }

    /// How many copies have reached the shadow host since [`Site::count_copies`]. A copy is there
    /// before the packet that it is of has reached its own end.
    ///
    /// # Errors
    /// When they are not counted.
    pub fn copies(&self) -> Result<u64> {
        self.net.shadow.nft_counter("netdev", "copies", "copies")
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// With its output, when it does not become ready.
    pub fn start_agent(&mut self, config: &Table) -> Result<()> {
        self.agent = Some(Agent::start(&self.net.shadow, &self.home, config)?);
        Ok(())
    }

    /// Waits until the daemon knows that the agent is there.
    ///
    /// # Panics
    /// When that takes longer than ten seconds.
    #[track_caller]
    pub fn wait_for_agent(&self) {
        self.wait_for("the agent is alive", |metrics| {
            metrics.sum("modelmirror_agent_up", &[]) == 1.0
        });
    }

    /// Waits until the daemon's metrics are so.
    ///
    /// # Panics
    /// When that takes longer than ten seconds.
    #[track_caller]
    pub fn wait_for(&self, what: &str, holds: impl Fn(&Metrics) -> bool) -> Metrics {
        eventually(what, || {
            let metrics = self.node_metrics()?;
            ensure!(holds(&metrics), "{metrics}");
            Ok(metrics)
        })
    }

    /// Waits until the agent's metrics are so.
    ///
    /// # Panics
    /// When that takes longer than fifteen seconds.
    #[track_caller]
    pub fn wait_for_shadow(&self, what: &str, holds: impl Fn(&Metrics) -> bool) -> Metrics {
        eventually_within(std::time::Duration::from_secs(15), what, || {
            let metrics = self.shadow_metrics()?;
            ensure!(holds(&metrics), "{metrics}");
            Ok(metrics)
        })
    }

    /// What the daemon's /metrics says now.
    ///
    /// # Errors
    /// When there is no daemon, or it does not answer.
    pub fn node_metrics(&self) -> Result<Metrics> {
        self.daemon.as_ref().context("no daemon")?.metrics()
    }

    /// What the agent's /metrics says now.
    ///
    /// # Errors
    /// When there is no agent, or it does not answer.
    pub fn shadow_metrics(&self) -> Result<Metrics> {
        self.agent.as_ref().context("no agent")?.metrics()
    }

    /// How many of the service's packets had this reason.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn packets(&self, reason: &str) -> Result<u64> {
        let labels = [SERVICE, ("reason", reason)];
        Ok(self
            .node_metrics()?
            .sum("modelmirror_packets_total", &labels) as u64)
    }

    /// What the shadow model was asked.
    pub fn shadowed(&self) -> Vec<Received> {
        self.shadow
            .as_ref()
            .map(Server::received)
            .unwrap_or_default()
    }

    /// Waits until nothing is under way: every request that the agent has seen has an outcome, and
    /// it has settled every copy that the tap says it sent.
    ///
    /// # Panics
    /// When that takes longer than a minute: the agent waits half of that for a connection that it
    /// hears nothing more of.
    #[track_caller]
    pub fn settle(&self) -> Outcome {
        let metrics =
            eventually_within(std::time::Duration::from_secs(60), "all is settled", || {
                let sent = self
                    .node_metrics()?
                    .sum("modelmirror_tunnel_sent_packets_total", &[]);
                let metrics = self.shadow_metrics()?;
                let settled = metrics.sum("modelmirror_shadow_tunnel_sent_packets_total", &[]);
                let open = metrics.sum("modelmirror_shadow_requests_in_flight", &[]);
                ensure!(
                    sent == settled && open == 0.0,
                    "{sent} copies sent\n{metrics}"
                );
                anyhow::Ok(metrics)
            });
        Outcome { metrics }
    }

    /// Settles, and holds what came out of it against the client's own list: production answered
    /// every request, once; the shadow was asked nothing that the client had not asked, byte for
    /// byte, and nothing twice; every record tells the truth, and there is one for each request
    /// that was compared; both ledgers close; nothing but production's answers reached the client.
    ///
    /// # Panics
    /// When it does not settle.
    ///
    /// # Errors
    /// Says which of it does not hold.
    #[track_caller]
    pub fn account(&self, sent: &[Exchange]) -> Result<Outcome> {
        let outcome = self.settle();
        self.serves(sent)?;
        let by_id = by_id(sent);
        let mut replayed = HashSet::new();
        for asked in &self.shadowed() {
            let exchange = find(&by_id, asked.id())?;
            ensure!(
                asked.body_sha256 == exchange.request_sha256
                    && asked.method == exchange.request.method
                    && asked.path == exchange.request.path,
                "the shadow was asked {asked:?}\nthe client asked {exchange:?}"
            );
            ensure!(asked.header("x-modelmirror-shadow") == "1", "{asked:?}");
            ensure!(replayed.insert(asked.id().to_owned()), "twice: {asked:?}");
        }
        let compared = outcome.requests("compared");
        let records = eventually("all records are written", || {
            let records = self.records()?;
            ensure!(
                records.len() as u64 >= compared,
                "{} of {compared}",
                records.len()
            );
            anyhow::Ok(records)
        });
        ensure!(
            records.len() as u64 == compared,
            "{} of {compared}",
            records.len()
        );
        for record in &records {
            let exchange = find(&by_id, record["request_id"].as_str().unwrap_or_default())?;
            let hashes = (
                &record["request"]["sha256"],
                &record["production"]["sha256"],
            );
            let truth = (&exchange.request_sha256, &exchange.body_sha256);
            ensure!(
                hashes.0 == truth.0 && hashes.1 == truth.1,
                "{record}\n{exchange:?}"
            );
        }
        let seen = outcome.seen();
        ensure!(
            seen <= sent.len() as u64,
            "{seen} requests seen\n{}",
            outcome.metrics
        );
        let (told, known) = outcome.copies();
        ensure!(
            told == known,
            "{told} copies sent, {known} known\n{}",
            outcome.metrics
        );
        Ok(outcome)
    }

    /// Production was asked what the client asked, once each, and nobody else talked to the client.
    ///
    /// # Errors
    /// Says what does not hold.
    pub fn serves(&self, sent: &[Exchange]) -> Result<()> {
        let received = self.production.received();
        ensure!(
            received.len() == sent.len(),
            "{} of {}",
            received.len(),
            sent.len()
        );
        let by_id = by_id(sent);
        for asked in &received {
            let exchange = find(&by_id, asked.id())?;
            ensure!(asked.body_sha256 == exchange.request_sha256, "{asked:?}");
        }
        let foreign = self.watch.foreign()?;
        ensure!(foreign == 0, "{foreign} foreign frames reached the client");
        Ok(())
    }

    /// Everything that the agent has recorded.
    ///
    /// # Errors
    /// When a line is not JSON.
    pub fn records(&self) -> Result<Vec<Value>> {
        self.agent.as_ref().context("no agent")?.records()
    }
}

/// Not the control packets, which have the first bit of the byte after the UDP header's 9 set.
const COPIES: &str = "
table netdev copies {
    counter copies { }
    chain door {
        type filter hook ingress device eth0 priority 0
        udp dport 6181 @th,72,1 0 counter name copies
    }
}
";

/// Where the shadow model listens.
const SHADOW: &str = "127.0.0.1:8000";

fn by_id(sent: &[Exchange]) -> HashMap<&str, &Exchange> {
    sent.iter()
        .map(|exchange| (&*exchange.id, exchange))
        .collect()
}

fn find<'a>(sent: &HashMap<&str, &'a Exchange>, id: &str) -> Result<&'a Exchange> {
    let found = sent.get(id).copied();
    found.with_context(|| format!("the client never sent `{id}`"))
}

/// What the agent says has become of everything.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its metrics.
    pub metrics: Metrics,
}

impl Outcome {
    /// How many requests ended so: `compared`, or the reason of a drop.
    pub fn requests(&self, outcome: &str) -> u64 {
        let labels = [SERVICE, ("outcome", outcome)];
        self.metrics
            .sum("modelmirror_shadow_requests_total", &labels) as u64
    }

    /// How many requests have an outcome.
    pub fn seen(&self) -> u64 {
        self.metrics
            .sum("modelmirror_shadow_requests_total", &[SERVICE]) as u64
    }

    /// How many comparisons had this verdict.
    pub fn verdicts(&self, verdict: &str) -> u64 {
        let labels = [SERVICE, ("verdict", verdict)];
        self.metrics
            .sum("modelmirror_shadow_comparisons_total", &labels) as u64
    }

    /// How many copies ended so.
    pub fn tunnel(&self, outcome: &str) -> u64 {
        let labels = [("outcome", outcome)];
        self.metrics
            .sum("modelmirror_shadow_tunnel_packets_total", &labels) as u64
    }

    /// Copies that the tap says it sent, and copies whose fate the agent knows.
    fn copies(&self) -> (u64, u64) {
        let sent = self
            .metrics
            .sum("modelmirror_shadow_tunnel_sent_packets_total", &[]);
        let fates = [
            "received",
            "partial",
            "lost",
            "unknown_service",
            "truncated",
            "not_tcp",
            "overloaded",
        ];
        (
            sent as u64,
            fates.map(|fate| self.tunnel(fate)).iter().sum(),
        )
    }
}

/// Runs a test on a site; what fails in it shows how things were.
///
/// # Panics
/// When the test fails.
#[track_caller]
pub fn on(site: Result<Site>, test: impl FnOnce(&mut Site) -> Result<()>) {
    let mut site = site.expect("cannot build the site");
    let result = test(&mut site);
    if let Err(error) = result {
        panic!("{error:#}");
    }
}

impl Drop for Site {
    #[expect(clippy::print_stderr, reason = "a failing test shows the state")]
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let show = |title: &str, text: Result<String>| match text {
            Ok(text) => eprintln!("--- {title}:\n{text}"),
            Err(error) => eprintln!("--- {title}: {error:#}"),
        };
        if self.daemon.is_some() {
            show("status", self.home.modelmirror(&self.net.node, &["status"]));
            show(
                "the daemon's metrics",
                self.node_metrics().map(|m| m.to_string()),
            );
        }
        if self.agent.is_some() {
            show(
                "the agent's metrics",
                self.shadow_metrics().map(|m| m.to_string()),
            );
        }
        show("links of the node", self.net.node.ip("-s link"));
    }
}
