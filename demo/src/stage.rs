//! Everything that the demo builds: three hosts, two model servers, the daemon and the agent.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tests::{Agent, Client, Daemon, Home, Metrics, Namespace, Process, Topology};
use tests::{Request, binary, try_within};

use crate::interrupt::Interrupt;
use crate::load::Mirror;

/// The service's name.
const SERVICE: &str = "digits";

/// Hosts and programs. What is declared first is taken down first.
pub(crate) struct Stage {
    _daemon: Daemon,
    agent: Agent,
    _production: Process,
    _candidate: Process,
    home: Home,
    net: Topology,
}

/// What the agent has counted so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted {
    pub(crate) compared: u64,
    pub(crate) matching: u64,
    pub(crate) dropped: u64,
}

impl Stage {
    /// Builds everything, and says so.
    pub(crate) fn build(interrupt: &Interrupt) -> Result<Self> {
        println!("demo: three hosts: client, inference node, shadow host");
        let net = Topology::new()?;
        let home = Home::new()?;
        interrupt.check()?;
        println!("demo: model server `{SERVICE}` v12 on the node, v13 on the shadow host");
        let production = model_server(&net.node, "0.0.0.0:8000", "v12")?;
        let candidate = model_server(&net.shadow, "127.0.0.1:8000", "v13")?;
        interrupt.check()?;
        println!("demo: the agent on the shadow host, the daemon on the node");
        let agent = Agent::start(&net.shadow, &home, &shadow_config(&home))?;
        let daemon = Daemon::start(&net.node, &home, &home.node_config())?;
        daemon.wait_for_agent()?;
        interrupt.check()?;
        Ok(Self {
            _daemon: daemon,
            agent,
            _production: production,
            _candidate: candidate,
            home,
            net,
        })
    }

    /// A client of the model in production.
    pub(crate) fn client(&self) -> Client {
        Client::of_any(&self.net.client, ([10, 0, 0, 5], 8000).into())
    }

    /// Switches the mirror, by the command that a user would give.
    pub(crate) fn switch(&self, mirror: Mirror) -> Result<()> {
        let word = match mirror {
            Mirror::Off => "off",
            Mirror::On => "on",
        };
        let command = ["mirror", word, "--service", SERVICE];
        self.home.modelmirror(&self.net.node, &command).map(drop)
    }

    /// What the agent has counted so far.
    pub(crate) fn counted(&self) -> Result<Counted> {
        Ok(Counted::from(&self.agent.metrics()?))
    }

    /// Waits until all of so many requests were compared or dropped, and returns how many were
    /// compared.
    pub(crate) fn wait_for_comparisons(&self, requests: u64, interrupt: &Interrupt) -> Result<u64> {
        let all = || {
            if interrupt.raised() {
                return Ok(Counted::default());
            }
            let counted = self.counted()?;
            ensure!(
                counted.compared + counted.dropped >= requests,
                "{counted:?} of {requests}"
            );
            Ok(counted)
        };
        let counted = try_within(
            Duration::from_secs(10),
            "all requests are accounted for",
            all,
        );
        interrupt.check()?;
        // What is missing shows in the figures.
        Ok(counted.or_else(|_| self.counted())?.compared)
    }

    /// What `modelmirror report` says, once so many comparisons are on the disk.
    pub(crate) fn report(&self, compared: u64) -> Result<String> {
        let written = || {
            let written = self.agent.records()?.len() as u64;
            ensure!(written >= compared, "{written} of {compared}");
            Ok(())
        };
        try_within(
            Duration::from_secs(10),
            "all comparisons are written",
            written,
        )?;
        let records = self.home.record_dir();
        let records = records.to_str().context("the folder's name is no text")?;
        let command = ["report", "--records", records];
        self.home.modelmirror(&self.net.shadow, &command)
    }

    /// What a packet costs in the kernel, as `modelmirror status` says.
    pub(crate) fn kernel_cost(&self) -> Result<String> {
        let status = self
            .home
            .modelmirror(&self.net.node, &["status", "--output", "json"])?;
        let status: Value = serde_json::from_str(&status).context("status is not JSON")?;
        let times = &status["run_time"];
        let mut text = String::from("Cost of a packet in the kernel, copying included");
        match (times["p50_ns"].as_u64(), times["p99_ns"].as_u64()) {
            (Some(p50), Some(p99)) => {
                let runs = times["runs"].as_u64().unwrap_or_default();
                write!(
                    text,
                    ": p50 {p50} ns, p99 {p99} ns ({runs} runs timed, 1 in 1,024)"
                )?;
            }
            _ => text += ": too few packets to say, one run in 1,024 is timed",
        }
        Ok(text)
    }
}

impl From<&Metrics> for Counted {
    fn from(metrics: &Metrics) -> Self {
        let requests = metrics.by("modelmirror_shadow_requests_total", "outcome");
        let sum = |compared: bool| {
            let chosen = requests
                .iter()
                .filter(|(outcome, _)| (outcome == "compared") == compared);
            chosen.map(|(_, value)| *value).sum::<f64>() as u64
        };
        let matching = [("service", SERVICE), ("verdict", "match")];
        Self {
            compared: sum(true),
            matching: metrics.sum("modelmirror_shadow_comparisons_total", &matching) as u64,
            dropped: sum(false),
        }
    }
}

/// The agent's config: probabilities may move a little, and answers are grouped by tenant.
fn shadow_config(home: &Home) -> toml::Table {
    let mut config = home.shadow_config();
    let compare = &mut config["service"][0]["compare"];
    if let Some(compare) = compare.as_table_mut() {
        compare.insert("absolute".into(), 0.1.into());
        compare.insert("slice".into(), "header:x-tenant".into());
    }
    config
}

/// Starts the model server, and waits until it is ready.
fn model_server(host: &Namespace, listen: &str, version: &str) -> Result<Process> {
    let mut command = host.command(binary("model-server")?);
    command.args(["--listen", listen, "--version", version]);
    let mut process = host.spawn("model-server", command)?;
    let client = Client::of_any(host, ([127, 0, 0, 1], 8000).into());
    try_within(Duration::from_secs(10), "the model server is ready", || {
        process.running()?;
        let answer = client.connect()?.ask(&Request::get("/v2/health/ready"))?;
        if answer.status != 200 {
            bail!("it answers {}", answer.status);
        }
        Ok(())
    })?;
    Ok(process)
}
