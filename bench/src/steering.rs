//! What steering costs, against proxies that split connections between the same two servers.

mod connection;
mod off;
pub(crate) mod packets;
mod page;
mod way;

use std::time::Duration;

use anyhow::{Context, Result};
use tests::Process;

use crate::cores::Cores;
use crate::load::Load;
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

/// Measures it all.
pub(crate) fn measure(rounds: usize, seconds: u32, offs: usize) -> Result<Steering> {
    let scene = Scene::build()?;
    let mut samples = Samples::default();
    for round in 0..rounds {
        println!("bench: steering, round {} of {rounds}", round + 1);
        for way in turns(&Way::ALL, round) {
            let failed = || format!("measuring {}", way.label());
            scene
                .measure(way, round, seconds, &mut samples)
                .with_context(failed)?;
        }
    }
    println!("bench: the canary is switched off");
    let offs = off::measure(&scene, offs)?;
    drop(scene);
    println!("bench: packets that are steered");
    let packets = packets::measure()?;
    Ok(Steering {
        samples,
        offs,
        packets,
    })
}

/// The stage, with its model as stable, a canary beside it, and the node on a core of its own. What
/// is declared first is taken down first.
struct Scene {
    _canary: Process,
    loads: Vec<(Rate, usize, Load)>,
    stage: Stage,
    cores: Cores,
}

impl Scene {
    fn build() -> Result<Self> {
        let cores = Cores::split()?;
        let stage = cores.node(Stage::build)?;
        cores.receive(&stage.net.node, true)?;
        cores.receive(&stage.net.client, false)?;
        let folder = stage.folder.path();
        let canary = || nginx::model(&stage.net.node, folder, "v13", CANARY_PORT);
        let load = |(rate, body)| -> Result<(Rate, usize, Load)> {
            let pause = match rate {
                Rate::Highest => Duration::ZERO,
                Rate::Paced => PAUSE,
            };
            let load = Load::new(folder, body, pause)?;
            Ok((rate, body, load.over(CONNECTIONS).timing(cores.node)))
        };
        Ok(Self {
            _canary: cores.node(canary)?,
            loads: LOADS.into_iter().map(load).collect::<Result<_>>()?,
            stage,
            cores,
        })
    }

    /// Sets a way up, and gives it each load.
    fn measure(
        &self,
        way: Way,
        round: usize,
        seconds: u32,
        samples: &mut Samples<Cell>,
    ) -> Result<()> {
        let _attached = self.cores.node(|| way.attach(&self.stage))?;
        for (rate, body, load) in &self.loads {
            let run = || load.run(&self.stage.net.client, way.port(), seconds);
            let measured = self.cores.clients(run)?;
            let (rate, body) = (*rate, *body);
            samples.push(round, Cell { way, rate, body }, measured);
        }
        Ok(())
    }
}
