//! The shadow stage: what is caught before any client gets it.

use tests::{Answers, Mood};

use super::{BLUE, Pilot};

#[test]
fn a_good_shadow_becomes_a_canary() {
    let Some(pilot) = Pilot::with_shadow(|_| {}) else {
        return;
    };
    let _traffic = pilot.traffic();
    let said = pilot.rollout(&["start", "--wait", "--timeout", "110s"]);
    assert_eq!(said.code, Some(0), "{said}");
    for words in ["shadowing", "stage 1", "promoted"] {
        assert!(said.text.contains(words), "{words} is not in\n{said}");
    }
}

/// The shadow answers as told, and is caught: no client was served by the new version.
#[track_caller]
fn check_caught(answers: &Answers, words: &str) {
    let Some(mut pilot) = Pilot::with_shadow(|_| {}) else {
        return;
    };
    pilot.trial.scene.start_model(answers);
    let traffic = pilot.traffic();
    let said = pilot.rollout(&["start", "--wait", "--timeout", "110s"]);
    assert_eq!(said.code, Some(3), "{said}");
    assert!(said.text.contains(words), "{said}");
    let explained = pilot.order(&["explain"]);
    assert!(explained.contains(words), "{explained}");
    let got = traffic.stop();
    assert!(got.iter().all(|got| got.is_of("v12")));
}

#[test]
fn one_that_disagrees_is_caught() {
    let answers = Answers {
        other_label_in: Some(3),
        ..Answers::of("v13")
    };
    check_caught(&answers, "agreement exceeds its limit");
}

#[test]
fn one_that_is_wrong_for_one_tenant_is_caught() {
    let answers = Answers {
        other_label_of: Some(BLUE),
        ..Answers::of("v13")
    };
    check_caught(&answers, "slice:blue exceeds its limit");
}

#[test]
fn one_that_fails_is_caught() {
    let Some(pilot) = Pilot::with_shadow(|plan| {
        // Who fails does not agree either.
        plan["shadow"]
            .as_table_mut()
            .unwrap()
            .insert("agreement".into(), 0.01.into());
    }) else {
        return;
    };
    let _traffic = pilot.traffic();
    pilot.trial.scene.model().set_mood(Mood::Fails(2));
    let said = pilot.rollout(&["start", "--wait", "--timeout", "110s"]);
    assert_eq!(said.code, Some(3), "{said}");
    assert!(
        said.text.contains("shadow errors exceeds its limit"),
        "{said}"
    );
}

/// The controller survives the agent's absence, and goes on when it is back.
#[test]
fn an_agent_that_is_gone_is_waited_for() {
    let Some(mut pilot) = Pilot::with_shadow(|_| {}) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.trial.scene.agent = None;
    pilot.order(&["start"]);
    let why = pilot.wait_until_held_by("agent");
    assert!(why.contains("cannot be reached"), "{why}");
    pilot.trial.scene.start_agent();
    pilot.wait_for("stage");
    drop(traffic);
}

#[test]
fn another_version_in_the_shadow_is_named() {
    let Some(pilot) = Pilot::with_shadow(|_| {}) else {
        return;
    };
    pilot.order(&["start", "--canary-version", "v14"]);
    let why = pilot.wait_until_held_by("agent");
    assert!(why.contains("the agent's shadow is v13, not v14"), "{why}");
}
