//! Models that disagree with themselves: what a copy of the old version is for.

use anyhow::ensure;
use tests::{Answers, Mood, Request, Server, Traffic, eventually_within, pattern};
use toml::Table;

use super::{LONG, Pilot};

/// One answer in so many is another one by chance: two answers to a request differ in a fifth of cases.
const NOISE: Mood = Mood::Noisy(8);

/// Where the copy of the old version listens, on the shadow's host.
const CONTROL: &str = "[::]:8001";

fn shadow_plan(plan: &mut Table, key: &str, value: impl Into<toml::Value>) {
    let shadow = plan["shadow"].as_table_mut();
    shadow.unwrap().insert(key.into(), value.into());
}

/// Production, shadow and control, all of them noisy; the excess may be so large.
#[track_caller]
fn with_control(max_excess: f64, answers: &Answers) -> Option<(Pilot, Server)> {
    let mut pilot = Pilot::with_shadow(|plan| shadow_plan(plan, "max_excess", max_excess))?;
    let scene = &mut pilot.trial.scene;
    scene.production.set_mood(NOISE);
    scene.start_model(answers);
    scene.model().set_mood(NOISE);
    let control = start_control(&pilot);
    let scene = &mut pilot.trial.scene;
    scene.set_shadow_service("control", "127.0.0.1:8001");
    scene.set_shadow_service("control_sample", 0.5);
    scene.agent = None;
    scene.start_agent();
    scene.wait_for_agent();
    Some((pilot, control))
}

#[track_caller]
fn start_control(pilot: &Pilot) -> Server {
    let host = &pilot.trial.scene.net.shadow;
    let control = Server::start(host, CONTROL.parse().unwrap(), &Answers::of("v12"));
    let control = control.expect("the control starts");
    control.set_mood(NOISE);
    control
}

#[test]
fn a_good_noisy_version_passes() {
    let Some((pilot, control)) = with_control(0.1, &Answers::of("v13")) else {
        return;
    };
    let _traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for("stage");
    assert!(!control.received().is_empty());
    let explained = pilot.order(&["explain"]);
    let words = "the old version differs from itself";
    assert!(explained.contains(words), "{explained}");
    let scene = &pilot.trial.scene;
    let records = scene.home.record_dir().display().to_string();
    let report = scene.modelmirror(&["report", "--records", &records]);
    assert!(report.contains(words), "{report}");
}

#[test]
fn changed_answers_are_caught_by_the_excess() {
    let answers = Answers {
        other_label_in: Some(10),
        ..Answers::of("v13")
    };
    let Some((pilot, _control)) = with_control(0.02, &answers) else {
        return;
    };
    let _traffic = pilot.traffic();
    let said = pilot.rollout(&["start", "--wait", "--timeout", "110s"]);
    assert_eq!(said.code, Some(3), "{said}");
    assert!(said.text.contains("excess exceeds its limit"), "{said}");
}

/// What goes wrong with the control is nobody's failure.
#[test]
fn a_control_that_is_gone_is_waited_for() {
    // So little excess is not proven within the time of a test.
    let Some((pilot, control)) = with_control(0.002, &Answers::of("v13")) else {
        return;
    };
    let _traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_until_held_by("not_proven");
    drop(control);
    let why = pilot.wait_until_held_by("control");
    assert!(why.contains("127.0.0.1:8001 gives no answers"), "{why}");
    let metrics = pilot.trial.scene.shadow_metrics();
    let labels = [("twin", "control"), ("outcome", "connect")];
    let missing = metrics.sum("modelmirror_shadow_second_answers_total", &labels);
    assert!(missing >= 3.0, "{missing}");
    let errors = metrics.sum("modelmirror_shadow_errors_total", &[]);
    assert_eq!(errors, 0.0, "the shadow has failed nobody");
    let _control = start_control(&pilot);
    eventually_within(LONG, "it is no longer waited for", || {
        let state = pilot.state()?;
        let waiting = state["waiting"].to_string();
        ensure!(!waiting.contains("\"control\""), "{state:#}");
        ensure!(state["step"] == "shadow", "{state:#}");
        Ok(())
    });
}

/// Nobody is asked twice, but clients ask the same again.
#[test]
fn without_a_control_agreement_is_watched_and_explained() {
    let Some(pilot) = Pilot::with_shadow(|_| {}) else {
        return;
    };
    let scene = &pilot.trial.scene;
    scene.production.set_mood(Mood::Noisy(4));
    scene.model().set_mood(Mood::Noisy(4));
    let few = |index: usize| Request::post("/label", &pattern(200, index as u64 % 20));
    let _traffic = Traffic::start(&scene.client, 8, few);
    eventually_within(LONG, "production is seen to disagree with itself", || {
        let labels = [("service", "digits"), ("answer", "different")];
        let metrics = scene.shadow_metrics();
        let seen = metrics.sum("modelmirror_shadow_repeated_requests_total", &labels);
        ensure!(seen >= 50.0, "{seen}");
        Ok::<_, anyhow::Error>(())
    });
    pilot.order(&["start"]);
    pilot.wait_for("stage");
    let explained = pilot.order(&["explain"]);
    for words in ["production itself answered", "control = "] {
        assert!(explained.contains(words), "{words} is not in\n{explained}");
    }
}
