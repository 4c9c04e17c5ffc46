//! One packet each of thousands of connections, with a system call before each: little is found in
//! the processor's caches, and it costs about the most that it can.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use mirror_common::policy::chosen;
use mirror_common::tunnel::Arm;

use super::scene::{self, Scene, client, flow, server, steering};
use super::{PAYLOAD, STABLE};
use crate::frames::{CLIENT, Segment, node, tcp};
use crate::raw_clone::RawClone;
use crate::single::nanoseconds;
use crate::statistics::Spread;

/// Connections in one measurement.
const CONNECTIONS: usize = 8192;

/// The first of the [`client`]s that have no connection yet.
const NEW: u32 = 1 << 21;

/// What the packets are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Scattered {
    /// Of no service, from the same clients.
    Miss,
    /// Of the table's connections that a version serves.
    Established(Arm),
    /// The first packet of a connection that the hash gives to a version.
    New(Arm),
}

pub(super) const KINDS: [(&str, Scattered); 5] = [
    ("another service's", Scattered::Miss),
    (STABLE, Scattered::Established(Arm::Stable)),
    ("the canary's", Scattered::Established(Arm::Canary)),
    ("a SYN, for stable", Scattered::New(Arm::Stable)),
    ("a SYN, for the canary", Scattered::New(Arm::Canary)),
];

/// The program's own median time, over other connections in each round. Sees that the packets were
/// counted where they belong.
pub(super) fn own(
    scene: &mut Scene,
    empty: &RawClone,
    kind: Scattered,
    round: usize,
) -> Result<f64> {
    let segment = match kind {
        Scattered::New(_) => Segment::Syn,
        Scattered::Miss | Scattered::Established(_) => Segment::Data(PAYLOAD),
    };
    let mut frame = tcp(CLIENT, node(80), segment)?;
    let served = |scene: &Scene| match kind {
        Scattered::Miss => Ok(0),
        Scattered::Established(arm) | Scattered::New(arm) => scene.served(arm),
    };
    let before = served(scene)?;
    let (mut costs, mut nothing) = (Vec::new(), Vec::new());
    for (client, server) in connections(scene, kind, round) {
        address(&mut frame, client, server);
        nothing.push(empty.test_run(&frame, 1)?);
        let (_, time) = scene.plane.test_run("ingress", &frame, None, 1)?;
        costs.push(nanoseconds(time));
    }
    ensure!(costs.len() == CONNECTIONS, "{} connections", costs.len());
    let counted = served(scene)? - before;
    // A few may have fallen out of the table.
    ensure!(
        kind == Scattered::Miss || counted as usize >= CONNECTIONS / 100 * 99,
        "{counted} of {CONNECTIONS} were counted"
    );
    Ok(Spread::of(costs).median - Spread::of(nothing).median)
}

/// Client and server of each connection.
fn connections(scene: &Scene, kind: Scattered, round: usize) -> Vec<(SocketAddrV4, SocketAddrV4)> {
    let services = scene.size.services;
    let known = known(scene.connections, round);
    let of = |number| (client(number), server(number % services));
    match kind {
        Scattered::Miss => {
            let miss = known.map(|number| (client(number), node(80)));
            miss.take(CONNECTIONS).collect()
        }
        Scattered::Established(arm) => {
            let served = known.filter(|number| scene::arm(*number) == arm);
            served.map(of).take(CONNECTIONS).collect()
        }
        Scattered::New(arm) => {
            let steering = steering();
            let wanted = |number: &u32| {
                let hash = steering.hash(&flow(client(*number), number % services));
                chosen(hash, steering.threshold) == (arm == Arm::Canary)
            };
            let new = NEW + (round * 4 * CONNECTIONS) as u32..;
            new.filter(wanted).map(of).take(CONNECTIONS).collect()
        }
    }
}

/// All numbers up to `total`, those that follow one another far apart.
fn known(total: u32, round: usize) -> impl Iterator<Item = u32> {
    let first = (round * 4 * CONNECTIONS) as u64;
    // A prime that divides no size that a table has.
    (first..first + u64::from(total)).map(move |number| (number * 7919 % u64::from(total)) as u32)
}

/// Writes other ends into an IPv4 frame. No program of ours looks at checksums.
fn address(frame: &mut [u8], from: SocketAddrV4, to: SocketAddrV4) {
    frame[26..30].copy_from_slice(&from.ip().octets());
    frame[30..34].copy_from_slice(&to.ip().octets());
    frame[34..36].copy_from_slice(&from.port().to_be_bytes());
    frame[36..38].copy_from_slice(&to.port().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_connection_comes_once() {
        let mut numbers: Vec<u32> = known(61_440, 3).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..61_440));
    }

    #[test]
    fn ends_are_written_where_they_belong() {
        let mut frame = tcp(CLIENT, node(80), Segment::Syn).unwrap();
        address(&mut frame, client(300), server(7));
        let headers = etherparse::PacketHeaders::from_ethernet_slice(&frame).unwrap();
        let expected = tcp(client(300), server(7), Segment::Syn).unwrap();
        let expected = etherparse::PacketHeaders::from_ethernet_slice(&expected).unwrap();
        let ends = |headers: &etherparse::PacketHeaders<'_>| {
            let (ip, tcp) = (
                headers.net.clone().unwrap(),
                headers.transport.clone().unwrap(),
            );
            let (ip, tcp) = (ip.ipv4_ref().unwrap().0.clone(), tcp.tcp().unwrap());
            (
                ip.source,
                ip.destination,
                tcp.source_port,
                tcp.destination_port,
            )
        };
        assert_eq!(ends(&headers), ends(&expected));
    }
}
