//! Whole rollouts, with real servers and clients: who is promoted, who is taken back, who is held.

mod broken;
mod called;
mod crowd;
mod finished;
mod held;
mod killed;
mod lied;
mod metrics;
mod noisy;
mod orders;
mod outage;
mod promoted;
mod recorded;
mod shadowed;
mod taken_back;

use std::fmt;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{Request, Traffic, Trial, binary, eventually_within, pattern};
use toml::Table;

/// How long a rollout of seconds may take on a machine that is busy.
const LONG: std::time::Duration = std::time::Duration::from_secs(120);

/// A trial with a plan.
struct Pilot {
    trial: Trial,
}

/// What a command came to.
struct Said {
    code: Option<i32>,
    text: String,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit code {:?}\n{}", self.code, self.text)
    }
}

/// Seconds instead of minutes, and limits that a machine keeps on which other tests run. Where it is busy its servers are
/// restless, and no latency may be proven in time: it is left to [`judge_latency`].
fn plan() -> Table {
    toml::toml! {
        stages = [0.2, 0.5, 1.0]
        tick = "250ms"
        [canary]
        min_duration = "2s"
        max_duration = "60s"
        min_requests = 50
        max_error_delta = 0.1
        max_latency_ratio = 0
        proven_from = 0.5
        bake = "2s"
        warmup = "0s"
    }
}

impl Pilot {
    /// The daemon runs, the rollout has not begun; nothing where this process may not make
    /// namespaces.
    #[track_caller]
    fn new(change: impl FnOnce(&mut Table)) -> Option<Self> {
        Some(Self::of(Trial::quiet(|_| {})?, change))
    }

    /// The same of a trial that a test has made.
    #[track_caller]
    fn of(trial: Trial, change: impl FnOnce(&mut Table)) -> Self {
        let mut pilot = Self { trial };
        let mut plan = plan();
        change(&mut plan);
        pilot.trial.service().insert("rollout".into(), plan.into());
        pilot.trial.start_daemon();
        pilot
    }

    /// The same with a shadow stage: the agent and the shadow model run, and requests are mirrored.
    #[track_caller]
    fn with_shadow(change: impl FnOnce(&mut Table)) -> Option<Self> {
        let mut pilot = Self {
            trial: Trial::quiet(|_| {})?,
        };
        let mut plan = plan();
        let shadow = toml::toml! {
            min_compared = 200
            agreement = 0.9
            max_latency_ratio = 0
            max_error_delta = 0.1
            max_duration = "60s"
        };
        plan.insert("shadow".into(), shadow.into());
        change(&mut plan);
        pilot.trial.service().insert("rollout".into(), plan.into());
        let scene = &mut pilot.trial.scene;
        let compare = scene.shadow_config["service"][0]["compare"].as_table_mut();
        compare
            .unwrap()
            .insert("slice".into(), "header:x-tenant".into());
        scene.start();
        Some(pilot)
    }

    /// `modelmirror rollout ARGUMENTS --service digits`.
    #[track_caller]
    fn rollout(&self, arguments: &[&str]) -> Said {
        let scene = &self.trial.scene;
        let mut command = scene.net.node.command(binary("modelmirror").unwrap());
        command.arg("rollout").args(arguments);
        command.args(["--service", "digits", "--control"]);
        let output = command.arg(scene.home.control()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        Said {
            code: output.status.code(),
            text: String::from_utf8_lossy(&text).into_owned(),
        }
    }

    /// A command that is followed.
    #[track_caller]
    fn order(&self, arguments: &[&str]) -> String {
        let said = self.rollout(arguments);
        assert_eq!(said.code, Some(0), "{arguments:?}: {said}");
        said.text
    }

    /// The rollout as `status --output json` describes it.
    fn state(&self) -> Result<Value> {
        let scene = &self.trial.scene;
        let status = scene
            .home
            .modelmirror(&scene.net.node, &["status", "--output", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        Ok(status["services"][0]["rollout"].clone())
    }

    /// Waits until the rollout is there.
    #[track_caller]
    fn wait_for(&self, step: &str) -> Value {
        eventually_within(LONG, &format!("the rollout is at {step}"), || {
            let state = self.state()?;
            ensure!(state["step"] == step, "{state:#}");
            Ok(state)
        })
    }

    /// Waits until it waits for this reason.
    #[track_caller]
    fn wait_until_held_by(&self, kind: &str) -> String {
        eventually_within(LONG, &format!("the rollout waits: {kind}"), || {
            let state = self.state()?;
            let waiting = state["waiting"].as_array().context("no reasons")?;
            let held = waiting.iter().find(|held| held["kind"] == kind);
            let held = held.with_context(|| format!("{state:#}"))?;
            Ok::<_, anyhow::Error>(held["why"].as_str().unwrap_or_default().to_owned())
        })
    }

    /// Waits until this stage, counted from 0.
    #[track_caller]
    fn wait_for_stage(&self, stage: usize) {
        eventually_within(LONG, &format!("the rollout is at stage {stage}"), || {
            let state = self.state()?;
            ensure!(state["stage"] == stage, "{state:#}");
            Ok(())
        });
    }

    /// Clients that send small requests all the time.
    fn traffic(&self) -> Traffic {
        Traffic::start(&self.trial.scene.client, 8, request)
    }

    /// The share that the programs go by, as the daemon says.
    #[track_caller]
    fn share(&self) -> f64 {
        let labels = [("service", "digits")];
        let metrics = self.trial.scene.node_metrics();
        metrics.sum("modelmirror_canary_share", &labels)
    }
}

/// Changes a value of a plan's `[canary]`.
fn set(plan: &mut Table, key: &str, value: impl Into<toml::Value>) {
    let canary = plan["canary"].as_table_mut();
    canary.unwrap().insert(key.into(), value.into());
}

/// Clients that wait for three times as long are reason enough.
fn judge_latency(plan: &mut Table) {
    set(plan, "max_latency_ratio", 3.0);
}

/// Nothing goes on by itself for longer than a test lasts.
fn by_hand(plan: &mut Table) {
    set(plan, "min_duration", "10m");
    set(plan, "max_duration", "20m");
}

/// What the blue tenant's requests begin with.
const BLUE: u8 = b'b';

/// One request in twenty is of the blue tenant.
fn request(index: usize) -> Request {
    let (tenant, first) = match (index / 1_000) % 20 {
        0 => ("blue", BLUE),
        _ => ("green", b'g'),
    };
    let mut body = pattern(200, index as u64);
    body[0] = first;
    Request::post("/label", &body).header("x-tenant", tenant)
}
