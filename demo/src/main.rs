//! `cargo xtask demo`: a model in production, its next version in the shadow and then before
//! clients, and modelmirror between them; then what it cost.

#![expect(
    clippy::print_stdout,
    reason = "a demonstration, whose output is its result"
)]

mod compare;
mod figures;
mod interrupt;
mod latency;
mod load;
mod rollout;
mod screen;
mod stage;
mod steer;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Parser;

use crate::interrupt::{Interrupt, Interrupted};
use crate::load::Load;
use crate::screen::Screen;
use crate::stage::{NEXT, STABLE, Stage};

/// Shows modelmirror at work in three network namespaces, which are gone afterwards.
#[derive(Parser)]
struct Options {
    /// Seconds of load: half of them in the shadow, half of them before clients.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Requests in a second, all clients together.
    #[arg(long, default_value_t = 400)]
    rate: u32,
    /// Clients, each with one connection at a time.
    #[arg(long, default_value_t = 8)]
    clients: u32,
}

fn main() -> ExitCode {
    match show(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<Interrupted>() => {
            println!("\ndemo: interrupted; everything was taken away");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn show(options: &Options) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let shown = acts(options, &interrupt);
    // What failed because of the signal is no error of its own.
    interrupt.check()?;
    shown?;
    println!("demo: done; namespaces, programs and files are gone");
    Ok(())
}

fn acts(options: &Options, interrupt: &Interrupt) -> Result<()> {
    let mut stage = Stage::build(interrupt)?;
    let load = Load {
        clients: options.clients.max(1),
        rate: options.rate.max(1),
    };
    let time = Duration::from_secs(options.seconds.into()) / 2;
    let mut screen = Screen::new();

    println!(
        "demo: {} clients send {} requests a second, with the mirror off and on in turn",
        load.clients, load.rate
    );
    let costs = compare::run(&stage, load, time, &mut screen, interrupt)?;
    let mirrored = costs.mirrored();
    let compared = stage.wait_for_comparisons(mirrored, interrupt)?;
    println!("demo: {mirrored} requests were sent with the mirror on, {compared} compared\n");
    println!("{}", stage.report(compared)?);
    println!("{costs}");

    println!("demo: they go on sending, while {NEXT} takes clients from {STABLE}");
    let steered = steer::run(&stage, load, time, &mut screen, interrupt)?;
    println!("\n{steered}");
    println!("{}", stage.kernel_cost()?);

    println!("\ndemo: now versions come and go by themselves");
    let rolled_out = rollout::run(&mut stage, load, &mut screen, interrupt)?;

    let failures: Vec<_> = costs.failures().chain(steered.failures()).collect();
    let failures: Vec<_> = failures.into_iter().chain(&rolled_out).collect();
    if let Some(first) = failures.first() {
        bail!("{} requests failed, the first one: {first}", failures.len());
    }
    Ok(())
}
