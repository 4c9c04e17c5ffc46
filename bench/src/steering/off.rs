//! How long `modelmirror canary off` takes until new connections are stable's again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mirror_common::tunnel::Arm;

use super::Scene;
use super::connection::{self, Opened};
use super::way::Steered;
use crate::nginx::MODEL_PORT;

/// Clients that open one connection after another.
const CLIENTS: usize = 4;

/// How long they do before the command, and after it.
const AROUND: Duration = Duration::from_millis(150);

/// One command, by the clients' clock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Off {
    /// New connections in a second.
    pub(super) rate: f64,
    /// What the command itself takes, from its start to its end, in milliseconds.
    pub(super) command_ms: f64,
    /// From its start until the canary's last connection was open.
    pub(super) last_canary_ms: f64,
    /// From its start until the first answer of stable's.
    pub(super) first_stable_ms: f64,
    /// Connections begun after its end that the canary answered.
    pub(super) late: usize,
}

impl Off {
    /// From the command's start until all is stable's, in milliseconds.
    pub(super) fn until_stable_ms(&self) -> f64 {
        self.last_canary_ms.max(self.first_stable_ms)
    }
}

/// Switches a canary that gets everything off, so many times.
pub(super) fn measure(scene: &Scene, times: usize) -> Result<Vec<Off>> {
    let steered = scene.cores.node(|| Steered::start(&scene.stage, 0.0))?;
    (0..times).map(|_| once(scene, &steered)).collect()
}

fn once(scene: &Scene, steered: &Steered) -> Result<Off> {
    let net = &scene.stage.net;
    let canary = |arguments: &[&str]| {
        let line = [&["canary"], arguments, &["--service", "digits"]].concat();
        let run = || steered.home.modelmirror(&net.node, &line);
        scene.cores.node(run)
    };
    canary(&["set", "1"])?;
    let over = AtomicBool::new(false);
    let load = || -> Result<Vec<Opened>> {
        let mut opened = Vec::new();
        while !over.load(Ordering::Relaxed) {
            opened.push(connection::open(([10, 0, 0, 5], MODEL_PORT).into())?);
        }
        Ok(opened)
    };
    let (opened, command) = thread::scope(|scope| {
        let client = || scene.cores.clients(|| net.client.run(load));
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        thread::sleep(AROUND);
        let start = Instant::now();
        let said = canary(&["off"]);
        let end = Instant::now();
        thread::sleep(AROUND);
        over.store(true, Ordering::Relaxed);
        let opened: Result<Vec<_>> = clients
            .into_iter()
            .map(|client| {
                let joined = client.join();
                joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        (opened, said.map(|_| (start, end)))
    });
    let (start, end) = command?;
    judge(&opened?.concat(), start, end)
}

fn judge(opened: &[Opened], start: Instant, end: Instant) -> Result<Off> {
    let of = |arm| opened.iter().filter(move |one| one.arm == arm);
    let early = of(Arm::Stable).filter(|one| one.answered < start).count();
    ensure!(early == 0, "{early} connections were stable's before");
    let last = of(Arm::Canary).map(|one| one.connected).max();
    let first = of(Arm::Stable).map(|one| one.answered).min();
    let (last, first) = last.zip(first).context("only one version answered")?;
    let begun = opened.iter().map(|one| one.begun).min().unwrap_or(start);
    let ended = opened.iter().map(|one| one.answered).max().unwrap_or(end);
    let after_start = |moment: Instant| moment.saturating_duration_since(start).as_secs_f64() * 1e3;
    Ok(Off {
        rate: opened.len() as f64 / (ended - begun).as_secs_f64(),
        command_ms: after_start(end),
        last_canary_ms: after_start(last),
        first_stable_ms: after_start(first),
        late: of(Arm::Canary).filter(|one| one.begun > end).count(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Connections by when they were begun, connected and answered, in milliseconds; the command
    /// runs from 100 to 120.
    fn judged(opened: &[(u64, u64, u64, Arm)]) -> Result<String> {
        let zero = Instant::now();
        let at = |ms| zero + Duration::from_millis(ms);
        let opened: Vec<_> = opened
            .iter()
            .map(|&(begun, connected, answered, arm)| Opened {
                begun: at(begun),
                connected: at(connected),
                answered: at(answered),
                arm,
            })
            .collect();
        let off = judge(&opened, at(100), at(120))?;
        Ok(format!(
            "{:.0}/s, canary {:.0}, stable {:.0}, command {:.0}, late {}",
            off.rate, off.last_canary_ms, off.first_stable_ms, off.command_ms, off.late
        ))
    }

    #[test]
    fn the_last_and_the_first_connection_count() {
        use Arm::{Canary, Stable};
        #[track_caller]
        fn check(opened: &[(u64, u64, u64, Arm)], expected: Result<&str, &str>) {
            let judged = judged(opened).map_err(|error| error.to_string());
            assert_eq!(judged.as_deref().map_err(String::as_str), expected);
        }
        let before = (0, 1, 2, Canary);
        check(
            &[before, (108, 109, 115, Canary), (112, 113, 114, Stable)],
            Ok("26/s, canary 9, stable 14, command 20, late 0"),
        );
        check(
            &[before, (112, 113, 114, Stable), (121, 122, 125, Canary)],
            Ok("24/s, canary 22, stable 14, command 20, late 1"),
        );
        check(&[before], Err("only one version answered"));
        check(
            &[before, (1, 2, 3, Stable)],
            Err("1 connections were stable's before"),
        );
    }
}
