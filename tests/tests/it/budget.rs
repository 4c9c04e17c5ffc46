//! The mirror budget, felt.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use anyhow::ensure;
use tests::{Exchange, Metrics, Request, Scene, eventually, eventually_within, pattern};

/// Bytes per second.
const BUDGET: f64 = 300_000.0;

/// What a copy has besides its payload, at most: TCP/IP headers with options, ours, Ethernet's.
const HEADERS: f64 = 200.0;

fn large(connection: usize, index: usize) -> Request {
    Request::post("/echo", &pattern(8000, (connection * 1000 + index) as u64))
}

fn effective(metrics: &Metrics) -> f64 {
    metrics.sum("modelmirror_mirror_sample_ratio", &[("of", "effective")])
}

#[test]
fn copies_stay_within_it_and_production_is_untouched() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_mirror("max_bytes_per_second", BUDGET as i64);
    scene.give_up_soon();
    scene.start();
    let start = Instant::now();
    let mut sent = scene.load_while(6, large, |scene| {
        eventually("the sample is lowered", || {
            let effective = effective(&scene.node_metrics());
            ensure!(effective < 0.7, "{effective}");
            Ok(())
        });
    });
    let metrics = scene.node_metrics();
    let seconds = start.elapsed().as_secs_f64();
    let copied = metrics.sum("modelmirror_tunnel_sent_bytes_total", &[])
        + metrics.sum("modelmirror_tunnel_sent_packets_total", &[]) * HEADERS;
    // A second's worth may be spent at once, and each CPU may be a packet ahead.
    let most = BUDGET * (seconds + 1.0) + 200_000.0;
    assert!(copied < most, "{copied} bytes in {seconds} s");
    let shut_out = metrics.sum("modelmirror_over_budget_connections_total", &[]);
    let packets = scene.packets("over_budget") as f64;
    assert!(
        shut_out > 0.0 && packets > shut_out,
        "{shut_out}, {packets}"
    );
    let compared = scene.account(&sent).requests("compared");
    assert!(
        (1..sent.len() as u64).contains(&compared),
        "{compared} of {}",
        sent.len()
    );
    stays_out(&scene, &sent);

    eventually_within(Duration::from_secs(60), "the sample is whole again", || {
        let effective = effective(&scene.node_metrics());
        ensure!(effective == 1.0, "{effective}");
        Ok(())
    });
    sent.extend(scene.load(1, 10, |_, index| large(0, 1000 + index)));
    assert_eq!(scene.account(&sent).requests("compared"), compared + 10);
}

/// A connection that was shut out is not let in again: what is compared of it is its beginning.
#[track_caller]
fn stays_out(scene: &Scene, sent: &[Exchange]) {
    let shadowed = scene.shadowed();
    let replayed: BTreeSet<_> = shadowed.iter().map(|asked| asked.id()).collect();
    let mut out = HashMap::new();
    for exchange in sent {
        let is_out = out.entry(exchange.local).or_insert(false);
        let copied = replayed.contains(&*exchange.id);
        assert!(!(*is_out && copied), "{} came in again", exchange.local);
        *is_out |= !copied;
    }
    assert!(out.values().any(|&out| out), "no connection was shut out");
}
