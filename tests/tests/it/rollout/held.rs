//! No data means hold, with the reason named.

use super::Pilot;

#[test]
fn without_traffic_nothing_goes_on() {
    let Some(pilot) = Pilot::new(|plan| {
        plan["canary"]
            .as_table_mut()
            .unwrap()
            .insert("max_duration".into(), "8s".into());
    }) else {
        return;
    };
    let said = pilot.rollout(&["start", "--wait", "--timeout", "60s"]);
    assert_eq!(said.code, Some(4), "{said}");
    assert!(
        said.text.contains("has answered 0 of 50 requests"),
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
    let Some(pilot) = Pilot::new(|plan| {
        plan["canary"]
            .as_table_mut()
            .unwrap()
            .insert("min_duration".into(), "35s".into());
    }) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for("stage");
    drop(traffic);
    pilot.wait_until_held_by("no_traffic");
}
