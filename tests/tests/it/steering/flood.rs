//! More connections than the limit allows.

use tests::{Trial, large};

#[test]
fn a_flood_goes_to_stable() {
    let Some(trial) = Trial::with(|canary| {
        canary.insert("max_new_connections_per_second".into(), 2.into());
    }) else {
        return;
    };
    trial.set("1");
    let sent = trial.scene.client.load(100, 1, large).unwrap();
    let split = trial.split(&sent);
    let limited = trial.steered("stable", "limit");
    assert!(
        split.connections[1] > 0 && limited > 50,
        "{split:?}, {limited}"
    );
    assert_eq!(limited, split.connections[0]);
}
