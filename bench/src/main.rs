//! `cargo xtask bench`: what mirroring and steering cost, against other ways of doing it, and how fast a bad canary is
//! taken back, on one machine and in one run. Writes docs/benchmarks.md.

#![expect(
    clippy::print_stdout,
    reason = "a program for people, who want to see how far it is"
)]

mod agent;
mod cores;
mod frames;
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

use crate::load::Load;
use crate::machine::Machine;
use crate::page::{Kernel, Page};
use crate::rollout::Rollbacks;
use crate::samples::Samples;
use crate::single::Single;
use crate::stage::{Offloads, Stage};
use crate::steering::Steering;

/// Sizes of request bodies, in bytes.
const SMALL: usize = 500;
const LARGE: usize = 2048;

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
    /// Rounds of all ways of mirroring.
    #[arg(long, default_value_t = 3)]
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
    if options.packets {
        let singles = single::measure(ROUNDS_OF_PACKETS)?;
        println!("an empty program: {:.0} ns", singles.empty);
        for Single { what, cost, .. } in singles.kinds {
            println!("{what}: {cost:.0} ns");
        }
        println!("\n{}", steering::packets::measure()?);
        return Ok(());
    }
    if options.agent {
        for run in agents(&Stage::build()?, options.seconds)? {
            println!(
                "{:.0} requests/s: {:.1} us each, {:.0} of {:.0} compared, {:.1} MB in RAM",
                run.load.rate(),
                run.cpu_us(),
                run.compared,
                run.load.requests,
                run.memory[1] as f64 / 1e6
            );
        }
        return Ok(());
    }
    if options.steering {
        println!("\n{}", steering(&options)?);
        return Ok(());
    }
    if options.rollout {
        println!("\n{}", rollbacks(&options)?);
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

fn measure(options: &Options) -> Result<Page> {
    let machine = Machine::this()?;
    println!("bench: packets that are not copied");
    let singles = single::measure(ROUNDS_OF_PACKETS)?;
    let stage = Stage::build()?;
    let folder = stage.folder.path();
    let small = Load::new(folder, SMALL, Duration::ZERO)?;
    let large = Load::new(folder, LARGE, Duration::ZERO)?;
    // Caches, neighbours and the processor's clock, before anything counts.
    large.run(&stage.net.client, nginx::MODEL_PORT, 1)?;
    let mut samples = Samples::default();
    let mut kernel = Vec::new();
    for round in 0..options.rounds {
        println!("bench: round {} of {}", round + 1, options.rounds);
        for offloads in [Offloads::On, Offloads::Off] {
            let loads = [(SMALL, &small), (LARGE, &large)];
            // Small packets are not cut by anything.
            let loads = match offloads {
                Offloads::On => &loads[..],
                Offloads::Off => &loads[1..],
            };
            throughput::round(
                &mut samples,
                &stage,
                round,
                offloads,
                loads,
                options.seconds,
            )?;
            let pairs = kernel_time::measure(&stage, &[&small, &large], 1)?;
            for (body, pair) in [SMALL, LARGE].into_iter().zip(pairs) {
                kernel.push(Kernel {
                    body,
                    offloads,
                    pair,
                });
            }
        }
    }
    stage.set_offloads(Offloads::On)?;
    let agents = agents(&stage, options.seconds)?;
    drop(stage);
    let steering = steering(options)?;
    let rollbacks = rollbacks(options)?;
    Ok(Page {
        machine,
        rounds: options.rounds,
        seconds: options.seconds,
        samples,
        kernel,
        singles,
        agents,
        steering,
        rollbacks,
    })
}

/// Steering, with as many rounds as the rest.
fn steering(options: &Options) -> Result<Steering> {
    let offs = if options.quick { 3 } else { TIMES_OFF };
    steering::measure(options.rounds, options.seconds, offs)
}

/// Canaries that go bad.
fn rollbacks(options: &Options) -> Result<Rollbacks> {
    println!("bench: canaries that go bad");
    rollout::measure(if options.quick { 2 } else { TIMES_BAD })
}

/// The agent at rates that this machine can also replay, and at the highest.
fn agents(stage: &Stage, seconds: u32) -> Result<Vec<agent::Run>> {
    let measure = |pause| {
        println!("bench: the agent, clients that wait {pause} ms");
        let load = Load::new(stage.folder.path(), LARGE, Duration::from_millis(pause))?;
        agent::measure(stage, &load, LARGE, seconds * 3)
    };
    [3, 1, 0].into_iter().map(measure).collect()
}
