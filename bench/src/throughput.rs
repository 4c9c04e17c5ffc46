//! Rounds of all ways of copying, one after the other.

use anyhow::{Context, Result};

use crate::load::Load;
use crate::samples::{Samples, turns};
use crate::stage::{Offloads, Stage};
use crate::variant::Variant;

/// What is measured in each round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) variant: Variant,
    /// Bytes of a request's body.
    pub(crate) body: usize,
    pub(crate) offloads: Offloads,
}

/// One round: every variant is attached afresh, and given each load.
pub(crate) fn round(
    samples: &mut Samples<Cell>,
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
            let measured = load
                .run(&stage.net.client, variant.port(), seconds)
                .with_context(failed)?;
            let cell = Cell {
                variant,
                body,
                offloads,
            };
            samples.push(round, cell, measured);
        }
        drop(attached);
    }
    Ok(())
}
