//! A node whose CPUs are never idle: production comes first.

use anyhow::ensure;
use tests::{Request, Scene, Spinners, Transport, eventually, pattern};

use crate::traffic::mirrors;

/// What may become of a packet here. A daemon that gets no turn for 5 s, which takes more than one thread for
/// each CPU, stops copying by itself: that is `stale`.
const REASONS: [&str; 4] = ["mirrored", "pure_ack", "ring_full", "stale"];

fn large(connection: usize, index: usize) -> Request {
    Request::post(
        "/echo",
        &pattern(60_000, (connection * 1000 + index) as u64),
    )
}

/// The sender gets what nobody else wants, which is next to nothing: the ring is full, production never
/// fails, and once there is time again the mirror goes on. Of streams alone, which have a sender.
#[test]
fn every_cpu_is_busy() {
    if Transport::of_this_run() != Transport::Stream {
        return;
    }
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.node_config.insert("ring".into(), "1MiB".into());
    scene.start();
    let spinners = Spinners::start().unwrap();
    let mut sent = scene.load_while(4, large, |scene| {
        scene.wait_for_packets("ring_full");
    });
    drop(spinners);
    eventually("the ring is empty", || {
        let metrics = scene.daemon().metrics()?;
        let held = metrics.sum("modelmirror_ring_held_bytes", &[]);
        ensure!(held == 0.0, "{metrics}");
        Ok(())
    });
    mirrors(&scene, &mut sent);
    let outcome = scene.account(&sent);
    assert_eq!(outcome.copies("lost"), 0, "{}", outcome.metrics);
    let metrics = scene.node_metrics();
    let of = |labels: &[_]| {
        metrics.sum(
            "modelmirror_packets_total",
            &[&[("service", "digits")], labels].concat(),
        )
    };
    let expected: f64 = REASONS.map(|reason| of(&[("reason", reason)])).iter().sum();
    assert_eq!(of(&[]), expected, "packets for other reasons\n{metrics}");
}
