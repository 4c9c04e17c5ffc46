//! Everything that the demo builds: three hosts, three model servers, the daemon and the agent.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Agent, Client, Daemon, Home, Metrics, Namespace, Process, Topology};
use tests::{Request, binary, try_within};

use crate::interrupt::Interrupt;
use crate::rollout;

/// The service's name.
pub(crate) const SERVICE: &str = "digits";
/// The version in production.
pub(crate) const STABLE: &str = "v12";
/// The next one: in the shadow first, then the canary.
pub(crate) const NEXT: &str = "v13";

/// Hosts and programs. What is declared first is taken down first.
pub(crate) struct Stage {
    daemon: Daemon,
    agent: Agent,
    /// Stable's, the canary's, the shadow's.
    servers: [Process; 3],
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
        println!(
            "demo: model server `{SERVICE}` {STABLE} and {NEXT} on the node, {NEXT} on the shadow host"
        );
        let servers = [
            model_server(&net.node, 8000, STABLE, &[])?,
            model_server(&net.node, 8001, NEXT, &[])?,
            model_server(&net.shadow, 8000, NEXT, &[])?,
        ];
        interrupt.check()?;
        println!("demo: the agent on the shadow host, the daemon on the node");
        let agent = Agent::start(&net.shadow, &home, &shadow_config(&home, NEXT))?;
        let daemon = Daemon::start(&net.node, &home, &node_config(&home))?;
        daemon.wait_for_agent()?;
        interrupt.check()?;
        Ok(Self {
            daemon,
            agent,
            servers,
            home,
            net,
        })
    }

    /// A client of the model in production.
    pub(crate) fn client(&self) -> Client {
        Client::of_any(&self.net.client, ([10, 0, 0, 5], 8000).into())
    }

    /// `modelmirror ARGUMENTS --service digits` on the node, as a user would type it.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<()> {
        let command = [arguments, &["--service", SERVICE]].concat();
        self.home.modelmirror(&self.net.node, &command).map(drop)
    }

    /// Starts `modelmirror rollout ARGUMENTS --service digits`, which says how it goes.
    pub(crate) fn rollout(&self, arguments: &[&str]) -> Result<Child> {
        let mut command = self.net.node.command(binary("modelmirror")?);
        command.arg("rollout").args(arguments);
        command.args(["--service", SERVICE, "--control"]);
        Ok(command.arg(self.home.control()).spawn()?)
    }

    /// What `modelmirror rollout explain` says of the last one.
    pub(crate) fn explain(&self) -> Result<String> {
        let command = ["rollout", "explain", "--service", SERVICE];
        self.home.modelmirror(&self.net.node, &command)
    }

    /// Ends a rollout, as soon as the daemon has found who listens at the service's own address.
    pub(crate) fn finish(&self) -> Result<()> {
        let finish = || self.command(&["rollout", "finish"]);
        try_within(Duration::from_secs(15), "the rollout is finished", finish)
    }

    /// Starts another version at the service's own address, where nobody is served any more.
    pub(crate) fn replace_stable(&mut self, version: &str) -> Result<()> {
        end(&mut self.servers[0])?;
        self.servers[0] = model_server(&self.net.node, 8000, version, &[])?;
        Ok(())
    }

    /// Puts a bad version into the canary's place and into the shadow's.
    pub(crate) fn put_on_trial(&mut self, version: &str) -> Result<()> {
        let faults = ["--delay-ms", "25", "--upside-down-for", "school"];
        end(&mut self.servers[1])?;
        self.servers[1] = model_server(&self.net.node, 8001, version, &faults)?;
        end(&mut self.servers[2])?;
        self.servers[2] = model_server(&self.net.shadow, 8000, version, &faults)?;
        end(&mut self.agent.process)?;
        self.agent = Agent::start(
            &self.net.shadow,
            &self.home,
            &shadow_config(&self.home, version),
        )?;
        self.daemon.wait_for_agent()
    }

    /// A plan file that says the same, without a shadow stage.
    pub(crate) fn plan_without_shadow(&self, plan: &toml::Table) -> Result<PathBuf> {
        let mut plan = plan.clone();
        plan.remove("shadow");
        let path = self.home.path().join("straight.toml");
        std::fs::write(&path, plan.to_string())?;
        Ok(path)
    }

    /// What the daemon measures.
    pub(crate) fn metrics(&self) -> Result<Metrics> {
        self.daemon.metrics()
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
        let mut text =
            String::from("Cost of a packet in the kernel, copying and steering included");
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
fn shadow_config(home: &Home, version: &str) -> toml::Table {
    let mut config = home.shadow_config();
    config["service"][0]["version"] = version.into();
    let compare = &mut config["service"][0]["compare"];
    if let Some(compare) = compare.as_table_mut() {
        compare.insert("absolute".into(), 0.1.into());
        compare.insert("slice".into(), "header:x-tenant".into());
    }
    config
}

/// The node's config: every connection is steered by itself, since all come from one address.
fn node_config(home: &Home) -> toml::Table {
    let mut config = home.node_config();
    let canary = toml::toml! {
        version = "v13"
        address = "10.0.0.5:8001"
        affinity = "connection"
    };
    if let Some(service) = config["service"][0].as_table_mut() {
        service.insert("canary".into(), canary.into());
        service.insert("rollout".into(), rollout::plan().into());
    }
    config
}

/// Starts a model server at all addresses of a host, and waits until it is ready.
fn model_server(host: &Namespace, port: u16, version: &str, faults: &[&str]) -> Result<Process> {
    let mut command = host.command(binary("model-server")?);
    let listen = format!("0.0.0.0:{port}");
    command.args(["--listen", &listen, "--version", version]);
    command.args(faults);
    let mut process = host.spawn("model-server", command)?;
    let client = Client::of_any(host, ([127, 0, 0, 1], port).into());
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

fn end(process: &mut Process) -> Result<()> {
    process.signal(Signal::SIGKILL)?;
    process.wait(Duration::from_secs(10)).map(drop)
}
