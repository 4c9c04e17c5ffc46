//! Everything that goes wrong, end to end: production never notices, and every loss is counted.

mod agents;
mod disk;
mod interfaces;
mod loops;
mod loss;
mod marks;
mod models;
mod uplink;

use anyhow::{Result, ensure};
use tests::{Exchange, Request, Site, pattern};

/// A small request that no other one equals.
fn small(connection: usize, index: usize) -> Request {
    Request::post("/echo", &pattern(700, (connection * 1000 + index) as u64))
}

/// Forty requests, one after another over each of four connections, which must all be compared.
fn mirrors(site: &Site, sent: &mut Vec<Exchange>) -> Result<()> {
    let before = site.settle().requests("compared");
    sent.extend(site.client.load(4, 10, small)?);
    let outcome = site.account(sent)?;
    let compared = outcome.requests("compared") - before;
    ensure!(
        compared == 40,
        "{compared} of 40 were compared\n{}",
        outcome.metrics
    );
    Ok(())
}
