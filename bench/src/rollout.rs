//! How long clients notice that a canary has gone bad which a rollout watches.

use std::fmt;
use std::time::Duration;

use ::tests::{Got, Mood, Request, Traffic, Trial, try_within};
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::page::verdict;
use crate::statistics::Spread;

/// From the first answer that is missing or wrong until all are stable's, in milliseconds.
const NOTICED_TARGET_MS: f64 = 1_100.0;

/// The write that takes the canary back, in milliseconds.
const WRITE_TARGET_MS: f64 = 100.0;

/// Clients, each of which asks a hundred times a second, over connections of ten requests.
const CLIENTS: usize = 8;

/// The canary's part of new connections.
const SHARE: f64 = 0.2;

/// How many answers of the canary's come before it goes bad, and of stable's after that.
const ANSWERS: usize = 50;

/// For what must come, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the daemon's log says of the write.
const WRITTEN: &str = "written_us=";

/// In what way a canary goes bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Ends,
    Fails,
    Resets,
}

/// One rollback, by the clients' clock and by the daemon's.
#[derive(Clone, Copy, Debug)]
struct Rollback {
    harm: Harm,
    /// From the first answer that is missing or wrong to the first of stable's after which all are.
    noticed_ms: f64,
    /// Answers that were missing or wrong.
    bad: usize,
    write_ms: f64,
}

/// All that was measured.
pub(crate) struct Rollbacks(Vec<Rollback>);

impl Harm {
    const ALL: [Self; 3] = [Self::Ends, Self::Fails, Self::Resets];

    const fn label(self) -> &'static str {
        match self {
            Self::Ends => "it ends, with its connections",
            Self::Fails => "it answers 500 to everything",
            Self::Resets => "it resets every connection",
        }
    }

    fn begin(self, trial: &mut Trial) {
        match self {
            Self::Ends => trial.stop_canary(),
            Self::Fails => trial.canary[0].set_mood(Mood::Fails(1)),
            Self::Resets => trial.canary[0].set_mood(Mood::Reset),
        }
    }

    fn end(self, trial: &mut Trial) {
        match self {
            Self::Ends => trial.start_canary(),
            Self::Fails | Self::Resets => trial.canary[0].set_mood(Mood::Answer),
        }
    }
}

/// Has a canary go bad so many times in each way.
pub(crate) fn measure(times: usize) -> Result<Rollbacks> {
    let mut trial = Trial::quiet(|_| {}).context("needs root")?;
    let mut plan = toml::toml! {
        [canary]
        min_duration = "10m"
    };
    plan.insert("stages".to_owned(), vec![SHARE, 1.0].into());
    trial.service().insert("rollout".to_owned(), plan.into());
    trial.start_daemon();
    let mut rollbacks = Vec::new();
    for _ in 0..times {
        for harm in Harm::ALL {
            rollbacks.push(once(&mut trial, harm).with_context(|| harm.label())?);
        }
    }
    Ok(Rollbacks(rollbacks))
}

fn once(trial: &mut Trial, harm: Harm) -> Result<Rollback> {
    let client = &trial.scene.client;
    let traffic = Traffic::start(client, CLIENTS, |_| Request::post("/label", b"digits"));
    let (home, node) = (&trial.scene.home, &trial.scene.net.node);
    let start = ["rollout", "start", "--again", "--service", "digits"];
    home.modelmirror(node, &start)?;
    let state_then = || format!("{:#}", state(trial).unwrap_or_default());
    wait_for_answers(&traffic, "v13").with_context(state_then)?;
    harm.begin(trial);
    try_within(PATIENCE, "it is taken back", || {
        let state = state(trial)?;
        ensure!(state["step"] == "rolled_back", "{state:#}");
        Ok(())
    })?;
    wait_for_answers(&traffic, "v12")?;
    let (noticed, bad) = judge(&traffic.stop())?;
    harm.end(trial);
    Ok(Rollback {
        harm,
        noticed_ms: noticed.as_secs_f64() * 1e3,
        bad,
        write_ms: last_write_us(&trial.scene.daemon().process.output())? / 1e3,
    })
}

/// Waits until this version has answered so many requests that are sent from now on.
fn wait_for_answers(traffic: &Traffic, version: &str) -> Result<()> {
    let before = traffic.got().len();
    try_within(PATIENCE, &format!("{version} answers"), || {
        let got = traffic.got();
        let answers = got[before..].iter().filter(|got| got.is_of(version));
        let answers = answers.count();
        ensure!(answers >= ANSWERS, "{answers}");
        Ok(())
    })
}

fn state(trial: &Trial) -> Result<Value> {
    let (home, node) = (&trial.scene.home, &trial.scene.net.node);
    let status = home.modelmirror(node, &["status", "--output", "json"])?;
    let status: Value = serde_json::from_str(&status)?;
    Ok(status["services"][0]["rollout"].clone())
}

/// How long clients noticed something, and how often.
fn judge(got: &[Got]) -> Result<(Duration, usize)> {
    let is_well = |got: &&Got| matches!(got.answer, Ok((200, _)));
    let bad: Vec<&Got> = got.iter().filter(|got| !is_well(got)).collect();
    let Some(first) = bad.iter().map(|got| got.at).min() else {
        // It fell between two requests of everybody's.
        return Ok((Duration::ZERO, 0));
    };
    let others = got.iter().filter(|got| !got.is_of("v12"));
    let last = others.map(|got| got.at).max().unwrap_or(first);
    let after = got.iter().filter(|got| got.at > last).map(|got| got.at);
    let all_well = after.min().context("stable does not answer")?;
    Ok((all_well - first, bad.len()))
}

/// What the log says last of the write.
fn last_write_us(log: &str) -> Result<f64> {
    let (_, said) = log.rsplit_once(WRITTEN).context("the log has no write")?;
    let digits = said.split(|end: char| !end.is_ascii_digit()).next();
    Ok(digits.unwrap_or_default().parse()?)
}

impl fmt::Display for Rollbacks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |harm| self.0.iter().filter(move |rollback| rollback.harm == harm);
        writeln!(
            f,
            "## From a bad canary to stable\n\n\
             A rollout's canary has {} % of new connections and goes bad, {} times in each way; {CLIENTS} clients send about a hundred requests a \
             second each, ten over a connection. Clients notice it from the first answer that is missing or wrong until the first of stable's with \
             nothing but stable's after it, by their own clock. The write is the daemon's, of the map that shares out new connections, waiting for the map \
             included.\n\n\
             | the canary | clients notice it for, ms | answers missing or wrong | the write, ms |\n|---|---|---|---|",
            SHARE * 100.0,
            of(Harm::Ends).count(),
        )?;
        let spread = |harm, figure: fn(&Rollback) -> f64| Spread::of(of(harm).map(figure));
        for harm in Harm::ALL {
            writeln!(
                f,
                "| {} | {:.0} | {:.0} | {:.2} |",
                harm.label(),
                spread(harm, |rollback| rollback.noticed_ms),
                spread(harm, |rollback| rollback.bad as f64),
                spread(harm, |rollback| rollback.write_ms),
            )?;
        }
        let most = |figure: fn(&Rollback) -> f64| Spread::of(self.0.iter().map(figure)).most;
        writeln!(
            f,
            "\nTargets, the worst of all: clients notice it for at most {NOTICED_TARGET_MS} ms: {}; the write takes at most {WRITE_TARGET_MS} ms: {}.",
            verdict(most(|rollback| rollback.noticed_ms) <= NOTICED_TARGET_MS),
            verdict(most(|rollback| rollback.write_ms) <= WRITE_TARGET_MS),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Answers by when they came, in milliseconds: the version, or what went wrong.
    #[track_caller]
    fn check(answers: &[(u64, &str)], expected: Result<(u128, usize), &str>) {
        let zero = Instant::now();
        let got = |&(at, answer): &(u64, &str)| {
            let at = zero + Duration::from_millis(at);
            let answer = match answer {
                "reset" => Err(answer.to_owned()),
                "500" => Ok((500, String::new())),
                version => Ok((200, version.to_owned())),
            };
            Got {
                sent: at,
                at,
                answer,
            }
        };
        let got: Vec<Got> = answers.iter().map(got).collect();
        let judged = judge(&got).map(|(noticed, bad)| (noticed.as_millis(), bad));
        let judged = judged.map_err(|error| error.to_string());
        assert_eq!(judged, expected.map_err(str::to_owned), "{answers:?}");
    }

    #[test]
    fn the_first_bad_answer_and_the_last_of_the_canary_s_count() {
        check(
            &[
                (1, "v13"),
                (5, "500"),
                (6, "v12"),
                (8, "reset"),
                (9, "v12"),
                (11, "v12"),
            ],
            Ok((4, 2)),
        );
        check(&[(5, "500"), (6, "v13"), (10, "v12")], Ok((5, 1)));
        check(&[(1, "v13"), (2, "v12")], Ok((0, 0)));
        check(&[(1, "v12"), (2, "500")], Err("stable does not answer"));
    }

    #[test]
    fn the_last_write_is_found() {
        let log = "a written_us=7 b\nINFO rollout written_us=123 service=\"digits\"\n";
        assert_eq!(last_write_us(log).unwrap(), 123.0);
        assert!(last_write_us("").is_err());
    }
}
