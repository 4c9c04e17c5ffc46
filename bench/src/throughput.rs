//! Rounds of all ways of copying, one after the other.

use anyhow::{Context, Result};

use crate::load::{Load, Measured};
use crate::stage::{Offloads, Stage};
use crate::statistics::Spread;
use crate::variant::Variant;

/// One load in one round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) round: usize,
    pub(crate) variant: Variant,
    pub(crate) body: usize,
    pub(crate) offloads: Offloads,
    pub(crate) measured: Measured,
}

/// All loads of all rounds.
#[derive(Default)]
pub(crate) struct Samples(Vec<Sample>);

impl Samples {
    /// One round: every variant is attached afresh, and given each load. Rounds begin with
    /// another variant each.
    pub(crate) fn round(
        &mut self,
        stage: &Stage,
        round: usize,
        offloads: Offloads,
        loads: &[(usize, &Load)],
        seconds: u32,
    ) -> Result<()> {
        stage.set_offloads(offloads)?;
        let first = round * 3 % Variant::ALL.len();
        for variant in Variant::ALL
            .iter()
            .cycle()
            .skip(first)
            .take(Variant::ALL.len())
        {
            let failed = || format!("measuring {}", variant.label());
            let attached = variant.attach(stage).with_context(failed)?;
            for &(body, load) in loads {
                let measured = load
                    .run(&stage.net.client, variant.port(), seconds)
                    .with_context(failed)?;
                self.0.push(Sample {
                    round,
                    variant: *variant,
                    body,
                    offloads,
                    measured,
                });
            }
            drop(attached);
        }
        Ok(())
    }

    /// A figure of a variant over all rounds.
    pub(crate) fn spread(
        &self,
        variant: Variant,
        body: usize,
        offloads: Offloads,
        figure: impl Fn(&Measured) -> f64,
    ) -> Spread {
        let samples = self.of(variant, body, offloads);
        Spread::of(samples.map(|sample| figure(&sample.measured)))
    }

    /// A variant's throughput as a share of none, each round by itself.
    pub(crate) fn share(&self, variant: Variant, body: usize, offloads: Offloads) -> Spread {
        let samples = self.of(variant, body, offloads);
        Spread::of(samples.filter_map(|sample| {
            let mut none = self.of(Variant::None, body, offloads);
            let none = none.find(|none| none.round == sample.round)?;
            Some(sample.measured.rate() / none.measured.rate())
        }))
    }

    fn of(
        &self,
        variant: Variant,
        body: usize,
        offloads: Offloads,
    ) -> impl Iterator<Item = &Sample> {
        self.0.iter().filter(move |sample| {
            (sample.variant, sample.body, sample.offloads) == (variant, body, offloads)
        })
    }
}
