//! No data means hold, with the reason named.

use tests::{Mood, Traffic, Trial};

use super::{Pilot, request, set};

#[test]
fn without_traffic_nothing_goes_on() {
    let Some(pilot) = Pilot::new(|plan| set(plan, "max_duration", "8s")) else {
        return;
    };
    let said = pilot.rollout(&["start", "--wait", "--timeout", "60s"]);
    assert_eq!(said.code, Some(4), "{said}");
    assert!(
        said.text.contains("0 of 50 requests of v13 were seen"),
        "{said}"
    );
    let state = pilot.wait_for("held");
    assert_eq!(state["share"], 0.2, "{state:#}");
    pilot.order(&["abort", "--reason", "nobody is there"]);
    assert_eq!(pilot.share(), 0.0);
    let state = pilot.wait_for("aborted");
    assert!(
        state["reason"]
            .as_str()
            .unwrap()
            .contains("nobody is there"),
        "{state:#}"
    );
}

#[test]
fn traffic_that_stops_holds() {
    let Some(pilot) = Pilot::new(|plan| set(plan, "min_duration", "35s")) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for("stage");
    drop(traffic);
    pilot.wait_until_held_by("no_traffic");
}

/// Whose address decides for all connections can have no share of them.
#[test]
fn one_client_alone_holds() {
    let by_client = Trial::quiet(|canary| {
        canary.insert("affinity".into(), "client".into());
    });
    let Some(trial) = by_client else { return };
    let pilot = Pilot::of(trial, |_| {});
    let _traffic = pilot.traffic();
    pilot.order(&["start"]);
    let why = pilot.wait_until_held_by("one_client");
    assert!(why.contains("10.0.0.2 sends nearly everything"), "{why}");
    assert!(why.contains("set affinity = \"connection\""), "{why}");
    assert_eq!(pilot.state().unwrap()["stage"], 0);
}

/// Connections that were there before keep their version for as long as they live.
#[test]
fn connections_that_never_end_hold() {
    let Some(pilot) = Pilot::new(|_| {}) else {
        return;
    };
    let client = &pilot.trial.scene.client;
    let traffic = Traffic::over(client, 8, usize::MAX, request);
    tests::eventually("all clients are connected", || {
        let open = pilot.trial.metrics("modelmirror_connections_open", &[]);
        anyhow::ensure!(open == [8, 0], "{open:?}");
        Ok(())
    });
    pilot.order(&["start"]);
    let why = pilot.wait_until_held_by("share_not_reached");
    for words in ["0.00 %", "20.00 %", "nginx: keepalive_requests"] {
        assert!(why.contains(words), "{words} is not in {why}");
    }
    assert_eq!(pilot.state().unwrap()["stage"], 0);
    drop(traffic);
}

/// Whoever is bad is better than nobody.
#[test]
fn a_canary_is_not_taken_back_towards_nobody() {
    let Some(mut pilot) = Pilot::new(|plan| set(plan, "min_duration", "60s")) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for("stage");
    tests::eventually("both have answered", || {
        let responses = pilot.trial.metrics("modelmirror_responses_total", &[]);
        anyhow::ensure!(responses.iter().all(|count| *count > 20), "{responses:?}");
        Ok(())
    });
    pilot.trial.stop_stable();
    pilot.trial.canary[0].set_mood(Mood::Fails(2));
    let why = pilot.wait_until_held_by("stable_gone");
    assert!(why.contains("nobody listens for v12"), "{why}");
    let since = std::time::Instant::now();
    tests::eventually("the canary serves everybody", || {
        let got = traffic.got();
        let after = got.iter().filter(|got| got.sent > since);
        let answered = after.filter(|got| got.answer.is_ok()).count();
        anyhow::ensure!(answered > 200, "{answered}");
        Ok(())
    });
    assert_eq!(pilot.state().unwrap()["step"], "stage");
    let refused = pilot.rollout(&["abort"]);
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(refused.text.contains("canary off --force"), "{refused}");
    let scene = &pilot.trial.scene;
    let off = ["canary", "off", "--service", "digits"];
    let said = scene.home.modelmirror(&scene.net.node, &off).unwrap_err();
    assert!(
        said.to_string().contains("nobody listens for v12"),
        "{said:#}"
    );
    // Once there is somebody, it goes as always.
    pilot.trial.restart_stable();
    pilot.wait_for("rolled_back");
    drop(traffic);
}
