//! What is no fault of the new version: a restart, a network of this host that is made anew.

use anyhow::ensure;
use tests::{Traffic, Trial, eventually_within};

use super::{LONG, Pilot, set};

/// So many more answers of the canary come.
#[track_caller]
fn wait_for_answers(traffic: &Traffic, more: usize) {
    let answers = || traffic.got().iter().filter(|got| got.is_of("v13")).count();
    let before = answers();
    eventually_within(LONG, "the canary answers", || {
        let now = answers();
        ensure!(now >= before + more, "{before}, {now}");
        Ok(())
    });
}

/// The rollout has not taken the canary back, and goes on to its end.
#[track_caller]
fn assert_goes_on(pilot: &Pilot) {
    let state = pilot.state().unwrap();
    assert!(state["share"].as_f64() > Some(0.0), "{state:#}");
    pilot.wait_for("promoted");
}

#[test]
fn a_canary_that_is_back_at_once_goes_on() {
    let Some(mut pilot) = Pilot::new(|_| {}) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    wait_for_answers(&traffic, 50);
    pilot.trial.stop_canary();
    pilot.trial.start_canary();
    wait_for_answers(&traffic, 50);
    assert_goes_on(&pilot);
}

/// The only way to the canary is gone for a moment, by the node's own doing.
#[test]
fn an_interface_that_is_made_anew_is_no_fault_of_the_canary() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    let far = trial.scene.net.shadow.clone();
    trial.place_canary(&far, "[::]:8001", "10.1.0.9:8001");
    // Who was on the way then has failed, and is one of few.
    let pilot = Pilot::of(trial, |plan| set(plan, "max_aborted_delta", 1.0));
    pilot.trial.wait_for_canary(1.0);
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    wait_for_answers(&traffic, 50);
    let net = &pilot.trial.scene.net;
    net.node.ip("link delete eth1").unwrap();
    let why = pilot.wait_until_held_by("not_steered");
    assert!(why.contains("10.1.0.9"), "{why}");
    net.cable("eth1").unwrap();
    wait_for_answers(&traffic, 50);
    assert_goes_on(&pilot);
}
