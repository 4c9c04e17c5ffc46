//! A good version goes all the way.

use anyhow::{Context as _, ensure};
use tests::{Trial, eventually_within};

use super::{LONG, Pilot, by_hand, judge_latency};

#[test]
fn a_good_version_goes_all_the_way() {
    let Some(pilot) = Pilot::new(|_| {}) else {
        return;
    };
    let traffic = pilot.traffic();
    let said = pilot.rollout(&["start", "--wait", "--timeout", "100s", "--reason", "a test"]);
    assert_eq!(said.code, Some(0), "{said}");
    for words in [
        "stage 1", "stage 2", "stage 3", "baking", "settling", "promoted",
    ] {
        assert!(said.text.contains(words), "{words} is not in\n{said}");
    }
    assert_eq!(pilot.share(), 1.0);
    let got = traffic.stop();
    let failed: Vec<_> = got.iter().filter(|got| got.answer.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    let explained = pilot.order(&["explain"]);
    for words in ["v13", "stage 1", "promoted", "a test"] {
        assert!(explained.contains(words), "{words} is not in\n{explained}");
    }
    let history = pilot.order(&["history"]);
    assert!(history.contains("promoted"), "{history}");

    // The new version takes the service's own address, and steering ends.
    let early = pilot.rollout(&["finish"]);
    assert_eq!(early.code, Some(1), "{early}");
    assert!(
        early.text.contains("was started before the rollout"),
        "{early}"
    );
    pilot.order(&["finish", "--force"]);
    assert_eq!(pilot.share(), 0.0);
    let status = pilot.trial.scene.modelmirror(&["status"]);
    assert!(status.contains("version v13"), "{status}");
}

/// What clients wait for is proven as well, where it is asked for: for the first byte and for the last.
#[test]
fn latency_is_proven() {
    let Some(pilot) = Pilot::new(|plan| {
        plan.insert("stages".into(), vec![0.5, 1.0].into());
        by_hand(plan);
        judge_latency(plan);
    }) else {
        return;
    };
    let _traffic = pilot.traffic();
    pilot.order(&["start"]);
    for name in ["p50", "complete p50"] {
        eventually_within(LONG, &format!("{name} is within its limit"), || {
            let state = pilot.state()?;
            let gates = state["gates"].as_array().context("no gates")?;
            let gate = gates.iter().find(|gate| gate["name"] == name);
            let gate = gate.with_context(|| format!("{state:#}"))?;
            ensure!(gate["verdict"] == "within", "{gate:#}");
            ensure!(gate["limit"] == "at most 3 times stable's", "{gate:#}");
            Ok(())
        });
    }
}

/// The same of one on another host, to which connections are translated.
#[test]
fn a_good_version_elsewhere_goes_all_the_way() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    let far = trial.scene.net.shadow.clone();
    trial.place_canary(&far, "[::]:8001", "10.1.0.9:8001");
    let pilot = Pilot::of(trial, |_| {});
    pilot.trial.wait_for_canary(1.0);
    let traffic = pilot.traffic();
    let said = pilot.rollout(&["start", "--wait", "--timeout", "100s"]);
    assert_eq!(said.code, Some(0), "{said}");
    let got = traffic.stop();
    let failed: Vec<_> = got.iter().filter(|got| got.answer.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    assert!(got.last().unwrap().is_of("v13"), "{:?}", got.last());
    pilot.order(&["abort"]);
    assert_eq!(pilot.share(), 0.0);
}
