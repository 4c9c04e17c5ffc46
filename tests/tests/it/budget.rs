//! The mirror budget, felt.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tests::{Request, Site, eventually_within, on, pattern, privileged};

/// Bytes per second.
const BUDGET: f64 = 300_000.0;

/// What a copy has besides its payload, at most: TCP/IP headers with options, ours, Ethernet's.
const HEADERS: f64 = 200.0;

fn large(connection: usize, index: usize) -> Request {
    Request::post("/echo", &pattern(8000, (connection * 1000 + index) as u64))
}

fn effective(metrics: &tests::Metrics) -> f64 {
    metrics.sum("modelmirror_mirror_sample_ratio", &[("of", "effective")])
}

#[test]
fn copies_stay_within_it_and_production_is_untouched() {
    if !privileged() {
        return;
    }
    let poor = |node: &mut toml::Table| {
        node["service"][0]["mirror"]["max_bytes_per_second"] = (BUDGET as i64).into();
    };
    on(Site::with(poor, |_| {}), |site| {
        let start = Instant::now();
        let sent = site.client.load_while(6, 30, large, || {
            site.wait_for("the sample is lowered", |metrics| effective(metrics) < 0.7);
            Ok(())
        })?;
        let seconds = start.elapsed().as_secs_f64();
        let metrics = site.node_metrics()?;
        let copied = metrics.sum("modelmirror_tunnel_sent_bytes_total", &[])
            + metrics.sum("modelmirror_tunnel_sent_packets_total", &[]) * HEADERS;
        // A second's worth may be spent at once, and each CPU may be a packet ahead.
        let most = BUDGET * (seconds + 1.0) + 200_000.0;
        ensure!(copied < most, "{copied} bytes in {seconds} s");
        let shut_out = metrics.sum("modelmirror_over_budget_connections_total", &[]);
        let packets = site.packets("over_budget")? as f64;
        ensure!(
            shut_out > 0.0 && packets > shut_out,
            "{shut_out}, {packets}"
        );
        let outcome = site.account(&sent)?;
        ensure!(outcome.requests("compared") > 0, "{}", outcome.metrics);
        ensure!(
            outcome.requests("compared") < sent.len() as u64,
            "{}",
            outcome.metrics
        );
        stays_out(site, &sent)?;

        eventually_within(Duration::from_secs(20), "the sample is whole again", || {
            let metrics = site.node_metrics()?;
            ensure!(effective(&metrics) == 1.0, "{}", effective(&metrics));
            anyhow::Ok(())
        });
        let before = outcome.requests("compared");
        let mut sent = sent;
        sent.extend(site.client.load(1, 10, |_, index| large(0, 1000 + index))?);
        let compared = site.account(&sent)?.requests("compared") - before;
        ensure!(compared == 10, "{compared} of 10");
        Ok(())
    });
}

/// A connection that was shut out is not let in again: what is compared of it is its beginning.
fn stays_out(site: &Site, sent: &[tests::Exchange]) -> Result<()> {
    let mut out = HashMap::new();
    let shadowed = site.shadowed();
    let replayed: std::collections::HashSet<_> = shadowed.iter().map(|asked| asked.id()).collect();
    for exchange in sent {
        let is_out = out.entry(exchange.local).or_insert(false);
        let copied = replayed.contains(&*exchange.id);
        ensure!(!(*is_out && copied), "{} came in again", exchange.local);
        *is_out |= !copied;
    }
    ensure!(out.values().any(|&out| out), "no connection was shut out");
    Ok(())
}
