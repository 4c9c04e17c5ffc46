//! A daemon that is killed goes on where it was.

use nix::sys::signal::Signal;
use serde_json::Value;

use super::Pilot;

#[test]
fn a_killed_daemon_goes_on_where_it_was() {
    let Some(mut pilot) = Pilot::new(|plan| {
        plan["canary"]
            .as_table_mut()
            .unwrap()
            .insert("min_duration".into(), "5s".into());
    }) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    let mut seen: Vec<Value> = Vec::new();
    for step in ["stage", "baking", "promoted"] {
        let before = pilot.wait_for(step);
        pilot.trial.scene.end_daemon(Signal::SIGKILL);
        pilot.trial.scene.start_daemon(&[]);
        let after = pilot.state().unwrap();
        let of = |state: &Value| {
            (
                state["step"].clone(),
                state["stage"].clone(),
                state["id"].clone(),
            )
        };
        assert_eq!(of(&before), of(&after), "{before:#}\n{after:#}");
        seen.push(after);
    }
    pilot
        .trial
        .scene
        .wait_for("modelmirror_canary_share", &[("service", "digits")], 1.0);
    let got = traffic.stop();
    let failed: Vec<_> = got.iter().filter(|got| got.answer.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
