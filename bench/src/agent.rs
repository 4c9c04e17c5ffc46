//! What a request costs the agent: received, rebuilt, replayed, compared and recorded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::{Metrics, try_within};

use crate::load::{Load, Measured};
use crate::machine;
use crate::nginx::MODEL_PORT;
use crate::stage::Stage;
use crate::variant::{Far, Modelmirror};

/// How often the agent's memory is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What came out of the tunnel.
const TUNNEL_BYTES: &str = "modelmirror_shadow_tunnel_bytes_total";

/// One load, from the agent's side.
pub(crate) struct Run {
    pub(crate) load: Measured,
    /// Exchanges, by what became of them.
    pub(crate) compared: f64,
    pub(crate) dropped: Vec<(String, f64)>,
    /// CPU seconds of the agent, all its threads, user and kernel.
    pub(crate) cpu_seconds: f64,
    /// Bytes that came out of the tunnel.
    pub(crate) bytes: f64,
    /// Memory in RAM, in bytes: a fifth of the way, and at the end.
    pub(crate) memory: [u64; 2],
}

impl Run {
    /// CPU time for one request, in microseconds.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu_seconds / self.load.requests * 1e6
    }

    /// Requests without a comparison.
    pub(crate) fn lost(&self) -> f64 {
        self.load.requests - self.compared
    }
}

/// A load that passes the real tap, and the real agent with a shadow model.
pub(crate) fn measure(stage: &Stage, load: &Load, body: usize, seconds: u32) -> Result<Run> {
    let mirror = Modelmirror::start(stage, "both", Far::Agent)?;
    let agent = mirror.agent.as_ref().context("there is no agent")?;
    let id = agent.process.id();
    let before = machine::process_seconds(id)?;
    let ended = AtomicBool::new(false);
    let (measured, memory) = thread::scope(|scope| {
        let looks = scope.spawn(|| memory_until(&ended, id));
        let measured = load.run(&stage.net.client, MODEL_PORT, seconds);
        ended.store(true, Ordering::Relaxed);
        (measured, looks.join())
    });
    let (measured, memory) = (
        measured?,
        memory.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
    );
    // What is still under way is waited for; what is lost wholly never appears.
    let settled = try_within(Duration::from_secs(3), "all is accounted for", || {
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
