//! What one packet costs that is not copied: `BPF_PROG_TEST_RUN`, a million times over.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use mirror_common::flow::Endpoint;
use mirror_common::policy::{Service, Tap, mirror};
use mirror_user::dataplane::DataPlane;
use tests::Home;

use crate::statistics::Spread;

/// Runs in one measurement.
const RUNS: u32 = 1_000_000;

/// A kind of packet, and what it costs.
pub(crate) struct Single {
    pub(crate) what: &'static str,
    /// Nanoseconds.
    pub(crate) cost: Spread,
    pub(crate) target: Option<f64>,
}

/// Measures each kind so many times, taking turns.
pub(crate) fn measure(times: usize) -> Result<Vec<Single>> {
    let home = Home::new()?;
    let mut plane = DataPlane::load(home.pins(), None)?;
    let service = Service {
        index: 1,
        id: 101,
        mirror: mirror::BOTH,
        // No connection is chosen.
        threshold: 0,
        key: [7, 11],
        ..Service::default()
    };
    let endpoint = Endpoint::from(SocketAddr::from(([10, 0, 0, 5], 8000)));
    plane.set_services(&HashMap::from([(endpoint, service)]))?;
    plane.set_tap(Tap::default())?;
    let kinds = [
        ("another service's TCP", tcp(9000, 1000)?, Some(40.0)),
        ("another service's UDP", udp(9000)?, Some(40.0)),
        ("ARP", arp(), Some(40.0)),
        ("the service's, a pure ACK", tcp(8000, 0)?, None),
        (
            "the service's, connection not sampled",
            tcp(8000, 1000)?,
            None,
        ),
    ];
    let mut costs = vec![Vec::new(); kinds.len()];
    for _ in 0..times {
        for ((_, frame, _), costs) in kinds.iter().zip(&mut costs) {
            let (_, mean) = plane.test_run("ingress", frame, None, RUNS)?;
            costs.push(nanoseconds(mean));
        }
    }
    let singles = kinds.iter().zip(costs);
    Ok(singles
        .map(|(&(what, _, target), costs)| Single {
            what,
            cost: Spread::of(costs),
            target,
        })
        .collect())
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_nanos() as f64
}

fn tcp(port: u16, payload: usize) -> Result<Vec<u8>> {
    let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 2], [10, 0, 0, 5], 64)
        .tcp(40_000, port, 1, 65_000)
        .ack(1);
    let mut frame = Vec::new();
    step.write(&mut frame, &vec![0; payload])
        .context("cannot build a frame")?;
    Ok(frame)
}

fn udp(port: u16) -> Result<Vec<u8>> {
    let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 0, 0, 2], [10, 0, 0, 5], 64)
        .udp(40_000, port);
    let mut frame = Vec::new();
    step.write(&mut frame, &[0; 1000])
        .context("cannot build a frame")?;
    Ok(frame)
}

/// A frame that is no IP packet.
fn arp() -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    frame
}
