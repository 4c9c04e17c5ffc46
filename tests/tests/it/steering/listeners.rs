//! Servers that come and go.

use tests::{Trial, large};

#[test]
fn nobody_is_sent_where_nobody_listens() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    trial.set("0.5");
    trial.stop_canary();
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    assert_eq!(trial.split(&sent).connections, [40, 0]);
    let fell_back = trial.steered("stable", "no_listener");
    assert!((5..=35).contains(&fell_back), "{fell_back} of 40");

    trial.start_canary();
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    trial.split(&sent).assert_share(0.5);

    trial.stop_stable();
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    assert_eq!(trial.split(&sent).connections, [0, 40]);
    let fell_back = trial.steered("canary", "no_listener");
    assert!((5..=35).contains(&fell_back), "{fell_back} of 40");
}
