//! The second act: the next version serves a share of the clients, more and more of them, and is
//! taken back, while they go on sending.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result};
use tests::Metrics;

use crate::figures::Figures;
use crate::interrupt::Interrupt;
use crate::load::{Load, Running, Seen};
use crate::screen::Screen;
use crate::stage::{NEXT, SERVICE, STABLE, Stage};

/// The canary's shares, and the commands that set them.
const STEPS: [(&str, &[&str]); 5] = [
    ("0 %", &["canary", "set", "0"]),
    ("5 %", &["canary", "set", "0.05"]),
    ("25 %", &["canary", "set", "0.25"]),
    ("100 %", &["canary", "set", "1"]),
    ("off", &["canary", "off"]),
];

/// What happened in some time.
#[derive(Debug)]
struct Step {
    /// The share that held; nothing while it changed.
    share: Option<&'static str>,
    seen: Seen,
    before: Metrics,
    after: Metrics,
}

/// What became of all shares, without a gap.
#[derive(Debug)]
pub(crate) struct Steered(Vec<Step>);

/// Sends for so long, while the canary's share goes up and is taken away.
pub(crate) fn run(
    stage: &Stage,
    load: Load,
    time: Duration,
    screen: &mut Screen,
    interrupt: &Interrupt,
) -> Result<Steered> {
    let mut steps: Vec<Step> = Vec::new();
    let rest = load.send(stage, |running| {
        let mut before = stage.metrics()?;
        let mut step = |share| -> Result<()> {
            let after = stage.metrics()?;
            steps.push(Step {
                share,
                seen: running.take(),
                before: std::mem::replace(&mut before, after.clone()),
                after,
            });
            Ok(())
        };
        for (share, command) in STEPS {
            println!(
                "demo: modelmirror {} --service {SERVICE}",
                command.join(" ")
            );
            stage.command(command)?;
            step(None)?;
            running.wait(time / STEPS.len() as u32, interrupt, || {
                screen.update(|| progress(share, running));
            })?;
            screen.finish();
            step(Some(share))?;
        }
        Ok(())
    })?;
    // What was on its way when the load ended.
    let last = steps.last_mut().context("there are no steps")?;
    last.seen.append(rest);
    last.after = stage.metrics()?;
    Ok(Steered(steps))
}

fn progress(share: &str, running: &Running) -> String {
    let [(stable, failed), (canary, _)] = [STABLE, NEXT].map(|version| running.counts(version));
    format!("share {share:<5}  answers: {STABLE} {stable:>5}, {NEXT} {canary:>5}  failed {failed}")
}

impl Steered {
    /// Why requests failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &String> {
        self.0.iter().flat_map(|step| step.seen.failures())
    }

    /// Who answered: every answer names its version, and the kernel was not told.
    fn write_answers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answers = [STABLE, NEXT].map(|version| {
            let named = |step: &Step| step.seen.answers(version).count();
            let named: u64 = self.0.iter().map(named).sum();
            let counted = |step: &Step| step.figures(version).requests;
            let counted: f64 = self.0.iter().map(counted).sum();
            format!("{version} {named} and {counted}")
        });
        writeln!(
            f,
            "Answers, as they name their version and as the kernel counts: {}",
            answers.join(", ")
        )
    }
}

impl fmt::Display for Steered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Canary       connections         requests     answer, ms  first byte, ms  errors"
        )?;
        writeln!(
            f,
            " share       new  of all    answered  of all    p50    p99     p50     p99"
        )?;
        for step in &self.0 {
            if let Some(share) = step.share {
                step.write(f, share)?;
            }
        }
        writeln!(
            f,
            "Connections keep their version; what came while the share changed is only counted below."
        )?;
        self.write_answers(f)?;
        writeln!(f, "Failed requests: {}", self.failures().count())
    }
}

impl Step {
    fn figures(&self, version: &str) -> Figures {
        Figures::between(&self.before, &self.after, version)
    }

    /// A line for each version.
    fn write(&self, f: &mut fmt::Formatter<'_>, share: &str) -> fmt::Result {
        let figures = [STABLE, NEXT].map(|version| self.figures(version));
        let [stable, canary] = &figures;
        let connections = stable.connections + canary.connections;
        let requests = stable.requests + canary.requests;
        let shares = [share, ""].into_iter();
        for ((share, version), its) in shares.zip([STABLE, NEXT]).zip(&figures) {
            let answers = self.seen.answers(version).quantiles();
            writeln!(
                f,
                "{share:>6}  {version} {:>5} {} {:>9} {} {} {} {:>7}",
                its.connections,
                part(its.connections, connections),
                its.requests,
                part(its.requests, requests),
                milliseconds(answers),
                milliseconds(its.first_byte),
                its.errors,
            )?;
        }
        Ok(())
    }
}

/// In percent.
fn part(of: f64, all: f64) -> String {
    format!("{:>5.1} %", 100.0 * of / all.max(1.0))
}

fn milliseconds(quantiles: Option<[f64; 2]>) -> String {
    let shown = match quantiles {
        Some(quantiles) => quantiles.map(|value| format!("{value:.2}")),
        None => ["-", "-"].map(str::to_owned),
    };
    shown.map(|value| format!("{value:>7}")).concat()
}
