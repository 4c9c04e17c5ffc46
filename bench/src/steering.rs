//! What steering costs, against proxies that split connections between the same two servers.

mod connection;
mod off;
mod packets;
mod page;
mod way;

use std::time::Duration;

use anyhow::{Context, Result};
use tests::Process;

use crate::load::{Load, Measured};
use crate::nginx;
use crate::samples::{Samples, turns};
use crate::stage::Stage;
use crate::{LARGE, SMALL};

use off::Off;
use packets::Packets;
use way::{CANARY_PORT, Way};

/// Connections at once: so many that a share of them is near the share.
const CONNECTIONS: u32 = 64;

/// How long a connection of the paced load waits before it sends.
const PAUSE: Duration = Duration::from_millis(5);

/// Times that each kind of packet is measured by itself.
const ROUNDS_OF_PACKETS: usize = 9;

/// All that was measured.
pub(crate) struct Steering {
    samples: Samples<Cell>,
    offs: Vec<Off>,
    packets: Packets,
}

/// What is measured in each round.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cell {
    way: Way,
    rate: Rate,
    /// Bytes of a request's body.
    body: usize,
}

/// How much clients want.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rate {
    /// All that can be had.
    Highest,
    /// The same of every way, which each of them can bear.
    Paced,
}

/// The loads of a round.
const LOADS: [(Rate, usize); 3] = [
    (Rate::Highest, SMALL),
    (Rate::Highest, LARGE),
    (Rate::Paced, LARGE),
];

/// Measures it all, with the stage's model as stable and a canary beside it.
pub(crate) fn measure(stage: &Stage, rounds: usize, seconds: u32, offs: usize) -> Result<Steering> {
    let folder = stage.folder.path();
    let _canary: Process = nginx::model(&stage.net.node, folder, "v13", CANARY_PORT)?;
    let load = |(rate, body)| -> Result<(Rate, usize, Load)> {
        let pause = match rate {
            Rate::Highest => Duration::ZERO,
            Rate::Paced => PAUSE,
        };
        let load = Load::new(folder, body, pause)?.over(CONNECTIONS);
        Ok((rate, body, load))
    };
    let loads = LOADS.into_iter().map(load).collect::<Result<Vec<_>>>()?;
    let mut samples = Samples::default();
    for round in 0..rounds {
        println!("bench: steering, round {} of {rounds}", round + 1);
        for way in turns(&Way::ALL, round) {
            let failed = || format!("measuring {}", way.label());
            let attached = way.attach(stage).with_context(failed)?;
            for (rate, body, load) in &loads {
                let measured: Measured = load
                    .run(&stage.net.client, way.port(), seconds)
                    .with_context(failed)?;
                let (rate, body) = (*rate, *body);
                samples.push(round, Cell { way, rate, body }, measured);
            }
            drop(attached);
        }
    }
    println!("bench: the canary is switched off");
    let offs = off::measure(stage, offs)?;
    println!("bench: packets that are steered");
    let packets = packets::measure(ROUNDS_OF_PACKETS)?;
    Ok(Steering {
        samples,
        offs,
        packets,
    })
}
