//! Agents that are stopped in good order, and go on.

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Request, Scene, Transport, eventually};

use crate::traffic::small;

/// How often.
const RESTARTS: usize = 5;

/// How long an agent may take to end.
const LIMIT: Duration = Duration::from_secs(20);

/// Ends the agent as a service manager does. What its ledger says then.
#[track_caller]
fn stop(scene: &mut Scene) -> (u64, BTreeMap<String, u64>) {
    let mut agent = scene.agent.take().expect("an agent runs");
    agent.process.signal(Signal::SIGTERM).unwrap();
    let status = agent.process.wait(LIMIT).unwrap();
    assert!(status.success(), "{}", agent.process.output());
    let ledger = scene.home.record_dir().join("digits/ledger.json");
    let ledger: Value = serde_json::from_slice(&std::fs::read(ledger).unwrap()).unwrap();
    let drops: BTreeMap<String, u64> = serde_json::from_value(ledger["drops"].clone()).unwrap();
    let compared = ledger["compared"].as_u64().unwrap();
    assert_eq!(ledger["seen"], compared + drops.values().sum::<u64>());
    (compared, drops)
}

/// Long-lived connections, some requests of which take their time, and an agent that is restarted again and
/// again: every request is replayed and compared, once, by one of the agents.
#[test]
fn restarts_of_the_agent_lose_nothing() {
    if Transport::of_this_run() != Transport::Stream {
        return;
    }
    let Some(mut scene) = Scene::started() else {
        return;
    };
    let make = |connection: usize, index: usize| match index % 4 {
        0 => Request::post("/delay/40", format!("{connection} {index}").as_bytes()),
        _ => small(connection, index),
    };
    let client = scene.client.clone();
    let mut before = 0;
    let sent = client.load_while(6, 100, make, || {
        for _ in 0..RESTARTS {
            scene.wait_for_packets("mirrored");
            let (compared, drops) = stop(&mut scene);
            assert!(compared > 0, "it has compared nothing");
            assert_eq!(drops, BTreeMap::new());
            before += compared;
            scene.start_agent();
            scene.wait_for_agent();
        }
        scene.wait_for_packets("mirrored");
    });
    let sent = sent.unwrap_or_else(|error| panic!("production failed: {error:#}"));
    scene.prove_after(&sent, before);
}

/// What takes longer than the agent waits is dropped, and costs its connection nothing else.
#[test]
fn a_slow_answer_is_all_that_a_restart_costs() {
    if Transport::of_this_run() != Transport::Stream {
        return;
    }
    let Some(mut scene) = Scene::started() else {
        return;
    };
    let mut connection = scene.client.connect().unwrap();
    let mut sent = vec![connection.exchange(&small(0, 0)).unwrap()];
    let slow = Request::post("/delay/2000", b"slow");
    std::thread::scope(|scope| {
        let answered = scope.spawn(|| {
            let slow = connection.exchange(&slow).unwrap();
            [slow, connection.exchange(&small(0, 1)).unwrap()]
        });
        eventually("it is under way", || {
            let asked = scene.shadowed().len();
            anyhow::ensure!(asked == 2, "{asked} of 2");
            Ok(())
        });
        let shutdown = BTreeMap::from([("shutdown".to_owned(), 1)]);
        assert_eq!(stop(&mut scene), (1, shutdown));
        scene.start_agent();
        scene.wait_for_agent();
        sent.extend(answered.join().unwrap());
    });
    scene.serves(&sent);
    let outcome = scene.settle();
    let compared = BTreeMap::from([("compared".to_owned(), 1)]);
    assert_eq!(outcome.all_requests(), compared, "{}", outcome.metrics);
}
