//! `directions = "requests"`: the shadow gets the load, and nothing is compared.

use anyhow::ensure;
use tests::{Scene, eventually};

use crate::traffic::{both_ways, small};

#[test]
fn requests_are_replayed_and_answers_stay_away() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_mirror("directions", "requests");
    scene.start();
    let mut sent = scene.load(4, 10, small);
    sent.extend(scene.send("10.0.0.5:8000", &both_ways(100_000)));
    // The shadow is asked everything, byte for byte, and its answer ends each at once.
    eventually("each has its outcome", || {
        let replayed = scene.agent().requests("not_compared")?;
        ensure!(
            replayed == sent.len() as u64,
            "{replayed} of {}",
            sent.len()
        );
        Ok(())
    });
    scene.account(&sent);
    scene.complete_without_answers(&sent);

    // At the tap, answers are switched off, and no byte of one has left.
    let metrics = scene.node_metrics();
    let copied = |direction| {
        let labels = [("direction", direction)];
        metrics.sum("modelmirror_mirrored_bytes_total", &labels) as usize
    };
    let bodies: usize = sent.iter().map(|one| one.request.body.len()).sum();
    assert!(copied("request") > bodies, "{metrics}");
    assert_eq!(copied("response"), 0, "{metrics}");
    let packets = |reason| {
        let labels = [("direction", "response"), ("reason", reason)];
        metrics.sum("modelmirror_packets_total", &labels) as usize
    };
    assert_eq!(packets("mirrored"), 0, "{metrics}");
    assert!(packets("off") >= sent.len(), "{metrics}");
}
