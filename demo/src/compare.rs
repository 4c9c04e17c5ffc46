//! The first act: the next version answers in the shadow, and is compared; and what clients notice
//! of the mirror.

use std::fmt;
use std::time::Duration;

use anyhow::Result;

use crate::interrupt::Interrupt;
use crate::load::{Load, Seen};
use crate::screen::Screen;
use crate::stage::{Counted, STABLE, Stage};

/// Times that the mirror is switched off and on again.
const ROUNDS: u32 = 4;

/// Whether requests are mirrored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mirror {
    Off,
    On,
}

impl Mirror {
    fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
        }
    }
}

/// What clients have seen, with the mirror off and on.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    off: Seen,
    on: Seen,
}

/// Sends for so long, with the mirror off and on in turn, and leaves it off.
pub(crate) fn run(
    stage: &Stage,
    load: Load,
    time: Duration,
    screen: &mut Screen,
    interrupt: &Interrupt,
) -> Result<Costs> {
    let mut costs = Costs::default();
    let mut phase = |mirror: Mirror, time, before| {
        stage.command(&["mirror", mirror.word()])?;
        load.send(stage, |running| {
            running.wait(time, interrupt, || {
                let now = match mirror {
                    Mirror::Off => 0,
                    Mirror::On => running.counts(STABLE).0,
                };
                screen.update(|| progress(mirror, before + now, stage));
            })
        })
    };
    // A first, short phase warms up caches and neighbours, and is not counted.
    phase(Mirror::Off, Duration::from_secs(1), 0)?;
    for _ in 0..ROUNDS {
        let before = costs.mirrored();
        let time = time / (2 * ROUNDS);
        costs.off.append(phase(Mirror::Off, time, before)?);
        costs.on.append(phase(Mirror::On, time, before)?);
    }
    stage.command(&["mirror", Mirror::Off.word()])?;
    screen.finish();
    Ok(costs)
}

fn progress(mirror: Mirror, mirrored: u64, stage: &Stage) -> String {
    let line = format!("mirror {:<3}  mirrored {mirrored:>6}", mirror.word());
    let Ok(Counted {
        compared,
        matching,
        dropped,
    }) = stage.counted()
    else {
        return line + "  the agent does not answer";
    };
    let agreeing = 100.0 * matching as f64 / compared.max(1) as f64;
    format!("{line}  compared {compared:>6}  agreeing {agreeing:>5.1} %  drops {dropped}")
}

impl Costs {
    /// How many requests were answered with the mirror on.
    pub(crate) fn mirrored(&self) -> u64 {
        self.on.answers(STABLE).count()
    }

    /// Why requests failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &String> {
        self.off.failures().iter().chain(self.on.failures())
    }
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Cost for clients         requests   failed       p50       p99"
        )?;
        for (name, seen) in [("mirror off", &self.off), ("mirror on", &self.on)] {
            let (answers, failed) = (seen.answers(STABLE), seen.failures().len());
            let [p50, p99] = answers.quantiles().unwrap_or_default();
            let requests = answers.count();
            writeln!(
                f,
                "  {name:<20} {requests:>10} {failed:>8} {p50:>6.3} ms {p99:>6.3} ms"
            )?;
        }
        Ok(())
    }
}
