//! What people say, while a rollout runs and besides.

use tests::{Trial, eventually};

use super::{Pilot, by_hand};

/// A rollout at its first stage that does not go on by itself.
fn waiting() -> Option<Pilot> {
    let pilot = Pilot::new(by_hand)?;
    pilot.order(&["start"]);
    pilot.wait_for_stage(0);
    Some(pilot)
}

/// An order that is followed, or was already, with these words.
#[track_caller]
fn check(pilot: &Pilot, arguments: &[&str], words: &str) {
    let said = pilot.order(arguments);
    assert!(said.contains(words), "{arguments:?}: {said}");
}

#[test]
fn it_is_paused_and_promoted_by_hand() {
    let Some(pilot) = waiting() else { return };
    let _traffic = pilot.traffic();
    check(&pilot, &["pause", "--reason", "lunch"], "paused");
    check(&pilot, &["pause"], "already");
    let state = pilot.wait_for("paused");
    assert_eq!(state["share"], 0.2, "{state:#}");
    assert!(state["reason"].to_string().contains("lunch"), "{state:#}");
    check(&pilot, &["resume"], "stage 1");
    check(&pilot, &["resume"], "already");
    check(&pilot, &["promote"], "stage 2");
    check(&pilot, &["promote", "--all"], "settling");
    check(&pilot, &["promote"], "promoted");
    check(&pilot, &["promote", "--all"], "already");
    eventually("it has everything", || {
        let share = pilot.share();
        anyhow::ensure!(share == 1.0, "{share}");
        Ok(())
    });
    for order in ["pause", "resume"] {
        let said = pilot.rollout(&[order]);
        assert_eq!(said.code, Some(1), "{said}");
        assert!(said.text.contains("it has ended"), "{said}");
    }
    // Also what was promoted may be taken back, as long as it is steered to.
    check(&pilot, &["abort"], "aborted");
    check(&pilot, &["abort"], "already");
    assert_eq!(pilot.share(), 0.0);
    let explained = pilot.order(&["explain"]);
    assert!(explained.contains("lunch"), "{explained}");
}

#[test]
fn the_share_is_the_rollout_s() {
    let Some(pilot) = waiting() else { return };
    let second = pilot.rollout(&["start"]);
    assert_eq!(second.code, Some(1), "{second}");
    let words = "a rollout of v13 has the canary's share";
    assert!(second.text.contains(words), "{second}");
    let (scene, canary) = (
        &pilot.trial.scene,
        ["canary", "set", "1", "--service", "digits"],
    );
    let said = scene.home.modelmirror(&scene.net.node, &canary);
    let said = format!("{:#}", said.unwrap_err());
    assert!(said.contains(words), "{said}");
    assert_eq!(pilot.share(), 0.2);
    pilot.trial.command(&["off"]);
    let state = pilot.wait_for("aborted");
    assert_eq!(pilot.share(), 0.0);
    let reason = state["reason"].to_string();
    assert!(reason.contains("its canary was switched off"), "{state:#}");
}

#[test]
fn off_ends_it() {
    let Some(pilot) = waiting() else { return };
    pilot.trial.scene.modelmirror(&["off"]);
    let state = pilot.wait_for("aborted");
    let reason = state["reason"].to_string();
    assert!(reason.contains("everything was switched off"), "{state:#}");
    let said = pilot.rollout(&["start", "--again"]);
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.text.contains("everything is off"), "{said}");
}

/// What would be done is said, and nothing is: of one service that need not be named.
#[test]
fn a_dry_run_begins_nothing() {
    let Some(pilot) = Pilot::new(by_hand) else {
        return;
    };
    let scene = &pilot.trial.scene;
    let said = scene.modelmirror(&["rollout", "start", "--dry-run"]);
    assert!(
        said.contains("digits: nothing was begun") && said.contains("v13 at "),
        "{said}"
    );
    assert!(pilot.state().unwrap().is_null());
    let history = scene.modelmirror(&["rollout", "history"]);
    assert!(history.contains("no rollout yet"), "{history}");
    let said = pilot.rollout(&["start", "--dry-run", "--canary-version", "v12"]);
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.text.contains("is the version in production"), "{said}");
}

/// A pipeline knows all of it: the config names neither a canary nor a plan.
#[test]
fn the_command_line_says_it_all() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.service().remove("canary");
    trial.start_daemon();
    let pilot = Pilot { trial };
    let said = pilot.rollout(&["start", "--canary-version", "v13"]);
    assert!(said.text.contains("--canary-address"), "{said}");
    let canary = [
        "--canary-version",
        "v13",
        "--canary-address",
        "10.0.0.5:8001",
    ];
    let said = pilot.rollout(&[&["start"], &canary[..]].concat());
    assert!(said.text.contains("there is no plan"), "{said}");

    let plan = pilot.trial.scene.home.path().join("plan.toml");
    let mut stages = super::plan();
    stages.insert("stages".into(), vec![0.5, 1.0].into());
    std::fs::write(&plan, stages.to_string()).unwrap();
    let traffic = pilot.traffic();
    let file = ["start", "--plan", plan.to_str().unwrap()];
    pilot.order(&[&file, &canary[..]].concat());
    pilot.wait_for_stage(0);
    assert_eq!(pilot.state().unwrap()["share"], 0.5);
    // All clients are of one address, and a user's connections stay together unless the config says
    // otherwise.
    let why = pilot.wait_until_held_by("one_client");
    assert!(why.contains("affinity = \"connection\""), "{why}");
    for _ in ["settling", "promoted"] {
        pilot.order(&["promote", "--all"]);
    }
    pilot.wait_for("promoted");
    let answered = |version: &str| {
        let got = traffic.got();
        let before = got.len();
        eventually(&format!("{version} answers all"), || {
            let got = traffic.got();
            let last = &got[before.max(got.len().saturating_sub(200))..];
            let others = last.iter().filter(|got| !got.is_of(version)).count();
            anyhow::ensure!(last.len() == 200 && others == 0, "{others}");
            Ok(())
        });
    };
    answered("v13");
    pilot.order(&["finish", "--force"]);
    answered("v12");
}
