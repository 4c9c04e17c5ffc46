//! The daemon without an agent: production must not notice it.

use anyhow::ensure;
use tests::{Request, Scene, eventually};

#[test]
fn production_is_served_without_an_agent() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.start_daemon(&[]);
    let sent = scene.load(4, 25, |_, _| Request::post("/echo", &[7; 3000]));
    scene.serves(&sent);
    eventually("its packets are counted", || {
        let metrics = scene.node_metrics();
        let packets = metrics.sum("modelmirror_packets_total", &[("service", "digits")]);
        ensure!(packets >= 400.0, "{packets} packets\n{metrics}");
        Ok(())
    });
}
