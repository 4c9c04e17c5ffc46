//! An agent that says more than it can have seen decides nothing.

use anyhow::ensure;
use serde_json::Value;
use tests::{Liar, Transport, Trial, eventually_within};

use super::{LONG, Pilot, plan};

#[test]
fn an_agent_that_has_seen_more_than_it_was_sent_is_not_believed() {
    // Datagrams would pass the liar by.
    if Transport::of_this_run() != Transport::Stream {
        return;
    }
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    let mut plan = plan();
    let shadow = toml::toml! {
        min_compared = 200_000
        agreement = 0.9
        max_duration = "10m"
    };
    plan.insert("shadow".into(), shadow.into());
    trial.service().insert("rollout".into(), plan.into());
    let mirror = trial.service()["mirror"].as_table_mut().unwrap();
    mirror.remove("agent_key");
    mirror.insert("insecure".into(), true.into());
    let scene = &mut trial.scene;
    let (listen, agent) = ("10.1.0.9:6181", "10.1.0.9:6182");
    scene.shadow_config.remove("tap");
    scene.set_shadow("listen", agent);
    scene.set_shadow("insecure", true);
    scene.set_shadow("allow", vec!["10.1.0.0/16"]);
    let (listen, agent) = (listen.parse().unwrap(), agent.parse().unwrap());
    let liar = Liar::start(&scene.net.shadow, listen, agent).unwrap();
    scene.start();
    let pilot = Pilot { trial };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    eventually_within(LONG, "what it truly says counts", || {
        let state = pilot.state()?;
        let gates = state["gates"].as_array().cloned().unwrap_or_default();
        let counted = |gate: &Value| gate["finding"]["trials"][1].as_u64() > Some(0);
        ensure!(gates.iter().any(counted), "{state:#}");
        Ok(())
    });
    liar.lies();
    let why = pilot.wait_until_held_by("agent");
    assert!(why.contains("what it says is not used"), "{why}");
    let state = pilot.state().unwrap();
    let stays = (state["step"].as_str(), pilot.share());
    assert_eq!(stays, (Some("shadow"), 0.0), "{state:#}");
    assert!(pilot.trial.canary[0].received().is_empty());
    assert!(traffic.stop().iter().all(|got| got.is_of("v12")));
}
