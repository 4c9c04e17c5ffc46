//! Hours of an ordinary load, with an agent that is restarted every minute: production does not notice,
//! nothing is lost without a name, and memory stays as it is.

use std::thread;
use std::time::{Duration, Instant};

use ::tests::{Agent, Outcome, Transport, try_within};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::LARGE;
use crate::load::{Load, Measured};
use crate::machine;
use crate::nginx::MODEL_PORT;
use crate::stage::Stage;
use crate::variant::{Far, Modelmirror};

/// How long a connection waits before it sends: 16 of them come to about 2,000 requests/s.
const PAUSE: Duration = Duration::from_millis(7);

/// Of each minute, in seconds; the rest is for the ledgers to close.
const LOAD: u32 = 50;

/// When in it the agent is restarted.
const RESTART: Duration = Duration::from_secs(25);

/// How long the ledgers may take. The agent waits half a minute for a connection of which it hears
/// nothing more.
const CLOSING: Duration = Duration::from_secs(90);

/// What memory may differ from that of an earlier minute, in bytes and as a part of it.
const FLAT_BYTES: f64 = 4e6;
const FLAT_PART: f64 = 0.1;

/// Minutes after which memory is compared: what is needed once has been taken then.
const WARM: usize = 2;

/// Soaks for so many minutes, a line each.
pub(crate) fn run(minutes: usize) -> Result<()> {
    let stage = Stage::build()?;
    let load = Load::new(stage.folder.path(), LARGE, PAUSE)?;
    let mut mirror = Modelmirror::start(&stage, Transport::Stream, Far::Agent, |_| {})?;
    let mut memories: Vec<[f64; 2]> = Vec::new();
    for minute in 1..=minutes {
        let began = Instant::now();
        let (measured, down) = one_minute(&stage, &load, &mut mirror)?;
        let outcome = closed(&mirror)?;
        let memory = memory(&mirror)?;
        println!(
            "soak: minute {minute}: {:.0} requests ({:.0}/s), 0 failed, p99 {:.2} ms; agent restarted in {:.0} ms; ledgers closed: \
             {} copies received, {} before it, {} lost; requests of this agent's: {}; daemon {:.1} MB, agent {:.1} MB",
            measured.requests,
            measured.rate(),
            measured.p99_ms,
            down.as_secs_f64() * 1e3,
            outcome.copies("received"),
            outcome.earlier(),
            outcome.copies("lost"),
            ends(&outcome),
            memory[0] / 1e6,
            memory[1] / 1e6,
        );
        memories.push(memory);
        thread::sleep(Duration::from_secs(60).saturating_sub(began.elapsed()));
    }
    if let (Some(warm), Some(last)) = (memories.get(WARM - 1), memories.last()) {
        for (of, at) in ["daemon", "agent"].into_iter().zip(0..) {
            let grown = last[at] - warm[at];
            ensure!(
                grown <= FLAT_BYTES.max(warm[at] * FLAT_PART),
                "the {of}'s memory has grown by {:.1} MB since minute {WARM}",
                grown / 1e6
            );
        }
    }
    println!("soak: {minutes} minutes, not one request failed, all ledgers closed, memory flat");
    Ok(())
}

/// A load, in whose middle the agent is restarted; and for how long there was none.
fn one_minute(
    stage: &Stage,
    load: &Load,
    mirror: &mut Modelmirror,
) -> Result<(Measured, Duration)> {
    thread::scope(|scope| {
        let load = scope.spawn(|| load.run(&stage.net.client, MODEL_PORT, LOAD));
        thread::sleep(RESTART);
        let began = Instant::now();
        // This thread's: what it starts ends with it.
        let restarted = restart(stage, mirror);
        let down = began.elapsed();
        let measured = load.join();
        restarted?;
        let measured = measured.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((measured, down))
    })
}

fn restart(stage: &Stage, mirror: &mut Modelmirror) -> Result<()> {
    let mut agent = mirror.agent.take().context("there is no agent")?;
    agent.process.signal(Signal::SIGTERM)?;
    agent.process.wait(Duration::from_secs(30))?;
    let config = mirror.home.shadow_config();
    mirror.agent = Some(Agent::start(&stage.net.shadow, &mirror.home, &config)?);
    Ok(())
}

/// Waits until both ledgers are.
fn closed(mirror: &Modelmirror) -> Result<Outcome> {
    let agent = mirror.agent.as_ref().context("there is no agent")?;
    try_within(CLOSING, "both ledgers close", || {
        Outcome::of(&mirror.daemon.metrics()?, agent.metrics()?)
    })
}

/// What the daemon and the agent have in RAM, in bytes.
fn memory(mirror: &Modelmirror) -> Result<[f64; 2]> {
    let agent = mirror.agent.as_ref().context("there is no agent")?;
    let of = |id| machine::resident_bytes(id).map(|bytes| bytes as f64);
    Ok([of(mirror.daemon.process.id())?, of(agent.process.id())?])
}

fn ends(outcome: &Outcome) -> String {
    let all = outcome.all_requests();
    let words = all.iter().map(|(end, count)| format!("{count} {end}"));
    words.collect::<Vec<_>>().join(", ")
}
