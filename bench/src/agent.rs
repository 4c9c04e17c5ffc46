//! What a request costs the agent: received, rebuilt, replayed, compared and recorded.

mod page;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Metrics, Transport, try_within};

use crate::load::{CONNECTIONS, Load, Measured};
use crate::machine;
use crate::nginx::MODEL_PORT;
use crate::stage::Stage;
use crate::variant::{Far, Modelmirror};

/// How often the agent's memory is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What came out of the tunnel.
const TUNNEL_BYTES: &str = "modelmirror_shadow_tunnel_bytes_total";

/// All loads.
pub(crate) struct Agents(Vec<Run>);

/// One load, from the agent's side.
struct Run {
    pace: Pace,
    load: Measured,
    /// Exchanges, by what became of them.
    compared: f64,
    dropped: Vec<(String, f64)>,
    /// CPU seconds of the agent, all its threads, user and kernel.
    cpu_seconds: f64,
    /// Bytes that came out of the tunnel.
    bytes: f64,
    /// Memory in RAM, in bytes: a fifth of the way, and at the end.
    memory: [u64; 2],
}

impl Run {
    /// CPU time for one request, in microseconds.
    fn cpu_us(&self) -> f64 {
        self.cpu_seconds / self.load.requests * 1e6
    }

    /// Requests without a comparison.
    fn lost(&self) -> f64 {
        self.load.requests - self.compared
    }
}

/// How fast clients send, and who shares which cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    /// Each connection waits so many milliseconds before it sends; everybody has all cores.
    Steady(u64),
    /// About 30,000/s, clients and node on one core, agent and shadow model on the others.
    Apart,
}

/// Rates that this machine can also replay with everybody on the same cores, and one that it cannot.
const PACES: [Pace; 3] = [Pace::Steady(3), Pace::Steady(1), Pace::Apart];

/// Measures all of them, with bodies of so many bytes.
pub(crate) fn measure(body: usize, seconds: u32) -> Result<Agents> {
    let measure = |pace| {
        println!("bench: the agent, {pace:?}");
        one(pace, body, seconds).with_context(|| format!("measuring {pace:?}"))
    };
    Ok(Agents(
        PACES.into_iter().map(measure).collect::<Result<_>>()?,
    ))
}

/// A load that passes the real tap, and the real agent with a shadow model.
fn one(pace: Pace, body: usize, seconds: u32) -> Result<Run> {
    let (stage, pause, connections) = match pace {
        Pace::Steady(pause) => (Stage::build()?, pause, CONNECTIONS),
        Pace::Apart => (Stage::build_apart()?, 1, 3 * CONNECTIONS),
    };
    let stage = &stage;
    let load = Load::new(stage.folder.path(), body, Duration::from_millis(pause))?;
    let load = load.over(connections);
    let started =
        stage.on_node(|| Modelmirror::start(stage, Transport::Stream, Far::Agent, |_| {}));
    let mirror = started?;
    let agent = mirror.agent.as_ref().context("there is no agent")?;
    let id = agent.process.id();
    let before = machine::process_seconds(id)?;
    let ended = AtomicBool::new(false);
    let (measured, memory) = thread::scope(|scope| {
        let looks = scope.spawn(|| memory_until(&ended, id));
        let run = || load.run(&stage.net.client, MODEL_PORT, seconds);
        let measured = stage.on_node(|| mirror.watch(run));
        ended.store(true, Ordering::Relaxed);
        (measured, looks.join())
    });
    let (measured, memory) = (
        measured?,
        memory.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
    );
    // What is still under way is waited for; what is lost wholly never appears.
    let settled = try_within(Duration::from_secs(5), "all is accounted for", || {
        let metrics = agent.metrics()?;
        let seen: f64 = outcomes(&metrics).iter().map(|(_, count)| count).sum();
        ensure!(seen >= measured.requests, "{seen}");
        // Counted once a second, when the tap reports.
        let bytes = metrics.sum(TUNNEL_BYTES, &[]);
        ensure!(bytes >= measured.requests * body as f64, "{bytes}");
        Ok(metrics)
    });
    let metrics = settled.or_else(|_| agent.metrics())?;
    let outcomes = outcomes(&metrics);
    let compared = |outcome: &str| outcome == "compared";
    Ok(Run {
        pace,
        load: measured,
        compared: outcomes
            .iter()
            .filter(|(name, _)| compared(name))
            .map(|(_, count)| count)
            .sum(),
        dropped: outcomes
            .into_iter()
            .filter(|(name, count)| !compared(name) && *count > 0.0)
            .collect(),
        cpu_seconds: machine::process_seconds(id)? - before,
        bytes: metrics.sum(TUNNEL_BYTES, &[]),
        memory: [
            memory.get(memory.len() / 5).copied().unwrap_or_default(),
            memory.last().copied().unwrap_or_default(),
        ],
    })
}

fn outcomes(metrics: &Metrics) -> Vec<(String, f64)> {
    metrics.by("modelmirror_shadow_requests_total", "outcome")
}

fn memory_until(ended: &AtomicBool, id: u32) -> Result<Vec<u64>> {
    let mut looks = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        thread::sleep(LOOK);
        looks.push(machine::resident_bytes(id)?);
    }
    Ok(looks)
}
