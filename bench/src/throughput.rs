//! Rounds of all ways of copying, one after the other.

mod page;

use anyhow::{Context, Result};

use crate::load::Load;
use crate::samples::{Samples, turns};
use crate::stage::{Offloads, Stage};
use crate::variant::Variant;

/// What is measured in each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    variant: Variant,
    /// Bytes of a request's body.
    body: usize,
    offloads: Offloads,
}

/// All rounds.
pub(crate) struct Throughput {
    samples: Samples<Cell>,
    cores: usize,
}

impl Throughput {
    /// Nothing yet, of a machine with so many cores.
    pub(crate) fn of(cores: usize) -> Self {
        Self {
            samples: Samples::default(),
            cores,
        }
    }
}

/// One round: every variant is attached afresh, and given each load.
pub(crate) fn round(
    throughput: &mut Throughput,
    stage: &Stage,
    round: usize,
    offloads: Offloads,
    loads: &[(usize, &Load)],
    seconds: u32,
) -> Result<()> {
    stage.set_offloads(offloads)?;
    for variant in turns(&Variant::ALL, round) {
        let failed = || format!("measuring {}", variant.label());
        let attached = variant.attach(stage).with_context(failed)?;
        for &(body, load) in loads {
            let run = || load.run(&stage.net.client, variant.port(), seconds);
            let measured = attached.watch(run).with_context(failed)?;
            let cell = Cell {
                variant,
                body,
                offloads,
            };
            throughput.samples.push(round, cell, measured);
        }
        drop(attached);
    }
    Ok(())
}
