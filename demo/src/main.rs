//! `cargo xtask demo`: a model in production, its next version in the shadow, and modelmirror
//! between them; then what it cost.

#![expect(
    clippy::print_stdout,
    reason = "a demonstration, whose output is its result"
)]

mod cost;
mod interrupt;
mod load;
mod screen;
mod stage;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

use crate::cost::Costs;
use crate::interrupt::{Interrupt, Interrupted};
use crate::load::{Load, Mirror};
use crate::screen::Screen;
use crate::stage::Stage;

/// Shows modelmirror at work in three network namespaces, which are gone afterwards.
#[derive(Parser)]
struct Options {
    /// Seconds of load, half of them with the mirror on.
    #[arg(long, default_value_t = 40)]
    seconds: u32,
    /// Requests in a second, all connections together.
    #[arg(long, default_value_t = 400)]
    rate: u32,
    /// Connections at once.
    #[arg(long, default_value_t = 8)]
    connections: u32,
}

/// Times that the mirror is switched off and on again.
const ROUNDS: u32 = 4;

fn main() -> ExitCode {
    let result = show(&Options::parse());
    match result {
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
    let stage = Stage::build(&interrupt)?;
    let load = Load {
        connections: options.connections.max(1),
        rate: options.rate.max(1),
        duration: Duration::from_secs(options.seconds.into()) / (2 * ROUNDS),
    };
    println!(
        "demo: {} clients send {} requests a second, with the mirror off and on in turn",
        load.connections, load.rate
    );
    let mut screen = Screen::new();
    let mut costs = Costs::default();
    // A first, short phase warms up caches and neighbours, and is not counted.
    stage.switch(Mirror::Off)?;
    load.warm_up().run(&stage, &interrupt, |_| ())?;
    for _ in 0..ROUNDS {
        for mirror in [Mirror::Off, Mirror::On] {
            stage.switch(mirror)?;
            let before = costs.requests(Mirror::On);
            let sent = load.run(&stage, &interrupt, |sent| {
                let now = if mirror == Mirror::On { sent } else { 0 };
                screen.update(mirror, before + now, &stage);
            })?;
            costs.add(mirror, sent);
        }
    }
    screen.finish();
    let mirrored = costs.requests(Mirror::On);
    let compared = stage.wait_for_comparisons(mirrored, &interrupt)?;
    println!("demo: {mirrored} requests were sent with the mirror on, {compared} compared\n");
    println!("{}", stage.report(compared)?);
    println!("{costs}");
    println!("{}", stage.kernel_cost()?);
    drop(stage);
    println!("demo: done; namespaces, programs and files are gone");
    Ok(())
}
