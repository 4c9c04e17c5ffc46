//! A bad version is taken back, for the right reason.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tests::{Mood, Traffic, eventually, eventually_within};

use super::{LONG, Pilot, judge_latency, set};

/// The canary becomes bad while it serves; the rollout ends with exit code 3 and these words.
#[track_caller]
fn check(change: impl FnOnce(&mut Pilot, &Traffic), words: &str) {
    let Some(mut pilot) = Pilot::new(|plan| {
        set(plan, "min_duration", "30s");
        judge_latency(plan);
    }) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for("stage");
    eventually("the canary has answered", || {
        let got = traffic.got();
        let answered = got.iter().filter(|got| got.is_of("v13")).count();
        ensure!(answered > 20, "{answered}");
        Ok(())
    });
    change(&mut pilot, &traffic);
    let state = pilot.wait_for("rolled_back");
    let reason = state["reason"].as_str().unwrap();
    let is_told = |text: &str| words.split('|').any(|words| text.contains(words));
    assert!(is_told(reason), "{reason}");
    assert_eq!(pilot.share(), 0.0);
    let since = Instant::now();
    eventually_within(LONG, "clients are all back on stable", || {
        let got = traffic.got();
        let after: Vec<_> = got.iter().filter(|got| got.sent > since).collect();
        let last = after.rchunks(100).next().context("nothing was sent")?;
        let others: Vec<_> = last.iter().filter(|got| !got.is_of("v12")).collect();
        ensure!(last.len() == 100 && others.is_empty(), "{others:?}");
        Ok(())
    });
    let explained = pilot.order(&["explain"]);
    assert!(is_told(&explained), "{explained}");
    let again = pilot.rollout(&["start"]);
    assert_eq!(again.code, Some(1), "{again}");
    assert!(again.text.contains("--again"), "{again}");
}

fn mood(mood: Mood) -> impl FnOnce(&mut Pilot, &Traffic) {
    move |pilot, _| pilot.trial.canary[0].set_mood(mood)
}

#[test]
fn more_errors() {
    check(mood(Mood::Fails(3)), "errors exceeds its limit");
}

#[test]
fn nearly_only_errors() {
    // By the last twenty or by the gate, whichever is there first.
    check(mood(Mood::Fails(1)), " failed|errors exceeds its limit");
}

#[test]
fn slower() {
    let late = Mood::Late(Duration::from_millis(150));
    check(mood(late), "exceeds its limit, at most 3 times stable's");
}

#[test]
fn hanging() {
    check(mood(Mood::Silent), "has sent nothing");
}

#[test]
fn crashing() {
    check(|pilot, _| pilot.trial.stop_canary(), "cannot be reached");
}

/// It comes back every time, for some hundred requests of its clients.
#[test]
fn flapping() {
    let flap = |pilot: &mut Pilot, traffic: &Traffic| {
        let start = Instant::now();
        while pilot.state().unwrap()["step"] != "rolled_back" {
            assert!(start.elapsed() < LONG, "it is not taken back");
            pilot.trial.stop_canary();
            wait_for_more(traffic);
            pilot.trial.start_canary();
            wait_for_more(traffic);
        }
    };
    check(flap, "cannot be reached");
}

/// Waits until clients have sent some hundred more requests.
#[track_caller]
fn wait_for_more(traffic: &Traffic) {
    let before = traffic.got().len();
    eventually_within(LONG, "clients go on", || {
        let more = traffic.got().len() - before;
        ensure!(more > 300, "{more}");
        Ok(())
    });
}

#[test]
fn resetting() {
    check(mood(Mood::Reset), "the canary");
}
