//! `cargo xtask bench`: what mirroring and steering cost, against other ways of doing it, and how fast a bad canary is
//! taken back, on one machine and in one run. Writes docs/benchmarks.md.

#![expect(
    clippy::print_stdout,
    reason = "a program for people, who want to see how far it is"
)]

mod agent;
mod churn;
mod classes;
mod cores;
mod frames;
mod idle;
mod kernel_time;
mod load;
mod machine;
mod nginx;
mod page;
mod raw_clone;
mod rollout;
mod samples;
mod single;
mod sink;
mod soak;
mod stage;
mod statistics;
mod steering;
mod throughput;
mod variant;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;

use crate::agent::Agents;
use crate::classes::Classes;
use crate::idle::Idle;
use crate::kernel_time::KernelTimes;
use crate::load::Load;
use crate::machine::Machine;
use crate::page::Page;
use crate::rollout::Rollbacks;
use crate::stage::{Offloads, Stage};
use crate::steering::Steering;
use crate::throughput::Throughput;

/// Sizes of request bodies, in bytes.
const SMALL: usize = 500;
const LARGE: usize = 2048;
const HUGE: usize = 20_000;

/// Rounds of steering.
const ROUNDS_OF_STEERING: usize = 3;

/// Seconds without traffic.
const IDLE_SECONDS: u64 = 10;

/// Times that each kind of packet is measured by itself.
const ROUNDS_OF_PACKETS: usize = 9;

/// Times that a canary is switched off.
const TIMES_OFF: usize = 30;

/// Times that a canary goes bad in each way.
const TIMES_BAD: usize = 20;

/// Measures what mirroring and steering cost, in three network namespaces that are gone afterwards. Leave the
/// machine alone meanwhile.
#[derive(Parser)]
struct Options {
    /// One short round, only printed.
    #[arg(long)]
    quick: bool,
    /// Only single packets, a minute; only printed.
    #[arg(long)]
    packets: bool,
    /// Only what a request costs the agent, half a minute; only printed.
    #[arg(long)]
    agent: bool,
    /// Only steering, three minutes; only printed.
    #[arg(long)]
    steering: bool,
    /// Only rollbacks, two minutes; only printed.
    #[arg(long)]
    rollout: bool,
    /// Only the time in the kernel, a minute; only printed.
    #[arg(long)]
    kernel: bool,
    /// Only the throughput and the sender's class, some minutes; only printed.
    #[arg(long)]
    throughput: bool,
    /// Only the daemon without traffic; only printed.
    #[arg(long)]
    idle: bool,
    /// Only 2,000 new connections/s through one translation address, twice ten minutes; only printed.
    #[arg(long)]
    connections: bool,
    /// Seconds of each load of new connections.
    #[arg(long, default_value_t = 600)]
    connection_seconds: u64,
    /// An hour of 2,000 requests/s with an agent that is restarted every minute; only printed, a line a minute.
    #[arg(long)]
    soak: bool,
    /// How long to soak.
    #[arg(long, default_value_t = 60)]
    minutes: usize,
    /// Rounds of all ways of mirroring.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Seconds of each load.
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// Where to write the page.
    #[arg(long, default_value = "docs/benchmarks.md")]
    page: PathBuf,
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace that `{:?}` may have.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let mut options = Options::parse();
    if options.quick {
        (options.rounds, options.seconds) = (1, 1);
    }
    if options.soak {
        return soak::run(options.minutes);
    }
    if let Some(part) = part(&options)? {
        println!("\n{}", part.trim_end());
        return Ok(());
    }
    let start = Instant::now();
    let page = format!("{}\n", measure(&options)?.to_string().trim_end());
    if options.quick {
        println!("\n{page}");
    } else {
        let path = &options.page;
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
        println!("bench: {} written", path.display());
    }
    println!("bench: done after {:.0} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// The one section that was asked for.
fn part(options: &Options) -> Result<Option<String>> {
    let text = if options.packets {
        let rounds = if options.quick { 3 } else { ROUNDS_OF_PACKETS };
        println!("\n{}", single::measure(rounds)?);
        match options.quick {
            true => String::new(),
            false => steering::packets::measure()?.to_string(),
        }
    } else if options.agent {
        agents(options)?.to_string()
    } else if options.idle {
        idle(&Stage::build()?, options)?.to_string()
    } else if options.kernel || options.throughput {
        mirroring(options, Machine::this()?.cores)?.of(options)
    } else if options.steering {
        steering(options)?.to_string()
    } else if options.connections {
        churn::measure(options.connection_seconds)?.to_string()
    } else if options.rollout {
        rollbacks(options)?.to_string()
    } else {
        return Ok(None);
    };
    Ok(Some(text))
}

fn measure(options: &Options) -> Result<Page> {
    let machine = Machine::this()?;
    println!("bench: single packets");
    let singles = single::measure(ROUNDS_OF_PACKETS)?;
    let Mirroring {
        throughput,
        kernel,
        classes,
    } = mirroring(options, machine.cores)?;
    let stage = Stage::build()?;
    let idle = idle(&stage, options)?;
    drop(stage);
    Ok(Page {
        machine,
        rounds: options.rounds,
        seconds: options.seconds,
        throughput,
        kernel,
        singles,
        classes,
        agents: agents(options)?,
        idle,
        steering: steering(options)?,
        rollbacks: rollbacks(options)?,
        churn: churn::measure(options.connection_seconds)?,
    })
}

/// What is measured in rounds of all ways of mirroring.
struct Mirroring {
    throughput: Throughput,
    kernel: KernelTimes,
    classes: Classes,
}

impl Mirroring {
    fn of(&self, options: &Options) -> String {
        if options.kernel {
            self.kernel.to_string()
        } else {
            format!("{}\n{}", self.throughput, self.classes)
        }
    }
}

fn mirroring(options: &Options, cores: usize) -> Result<Mirroring> {
    let stage = Stage::build()?;
    let load = |body| Load::new(stage.folder.path(), body, Duration::ZERO);
    let (small, large, huge) = (load(SMALL)?, load(LARGE)?, load(HUGE)?);
    // Caches, neighbours and the processor's clock, before anything counts.
    large.run(&stage.net.client, nginx::MODEL_PORT, 1)?;
    let mut all = Mirroring {
        throughput: Throughput::of(cores),
        kernel: KernelTimes::default(),
        classes: Classes::of(cores),
    };
    let loads = [(SMALL, &small), (LARGE, &large), (HUGE, &huge)];
    let seconds = options.seconds;
    for round in 0..options.rounds {
        println!("bench: round {} of {}", round + 1, options.rounds);
        if !options.throughput {
            kernel_time::round(&mut all.kernel, &stage, round, &loads, 1)?;
        }
        if options.kernel {
            continue;
        }
        // Small packets are not cut by anything.
        for (offloads, loads) in [(Offloads::Off, &loads[1..2]), (Offloads::On, &loads[..2])] {
            throughput::round(&mut all.throughput, &stage, round, offloads, loads, seconds)?;
        }
        classes::round(&mut all.classes, &stage, round, &large, seconds)?;
    }
    Ok(all)
}

/// The daemon without traffic.
fn idle(stage: &Stage, options: &Options) -> Result<Idle> {
    println!("bench: no traffic");
    idle::measure(stage, if options.quick { 3 } else { IDLE_SECONDS })
}

/// Steering.
fn steering(options: &Options) -> Result<Steering> {
    let offs = if options.quick { 3 } else { TIMES_OFF };
    let rounds = options.rounds.min(ROUNDS_OF_STEERING);
    steering::measure(rounds, options.seconds, offs)
}

/// Canaries that go bad.
fn rollbacks(options: &Options) -> Result<Rollbacks> {
    println!("bench: canaries that go bad");
    rollout::measure(if options.quick { 2 } else { TIMES_BAD })
}

/// The agent at rates that this machine can also replay, and at the highest.
fn agents(options: &Options) -> Result<Agents> {
    agent::measure(LARGE, options.seconds * 3)
}
