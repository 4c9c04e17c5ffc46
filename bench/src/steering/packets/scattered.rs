//! One packet at a time, with a system call before each: of one connection, or of a connection each,
//! when little is found in the processor's caches, and it costs about the most that it can.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use mirror_common::policy::chosen;
use mirror_common::steer::Health;
use mirror_common::tunnel::{Arm, Direction};

use super::repeated::{FROM_CANARY, TO_CANARY};
use super::scene::{
    self, AWAY_PORT, Scene, TRANSLATED, client, flow, server, steering, translated,
};
use super::{PAYLOAD, STABLE};
use crate::frames::{CLIENT, Segment, node, tcp};
use crate::raw_clone::RawClone;
use crate::single::nanoseconds;
use crate::statistics::Spread;

/// Packets in one measurement.
const PACKETS: usize = 4096;

/// The first of the [`client`]s that have no connection yet.
const NEW: u32 = 1 << 21;

/// Whose the packets are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// No service's, but from the same clients.
    Nobodys,
    /// The table's connections', which a version serves.
    Known(Arm),
    /// Connections', by their first packet, which the hash gives to a version.
    New(Arm),
    /// The canary's on another host, in this direction.
    Away(Direction),
}

/// A kind of packets: the program that sees them may change them.
pub(super) struct Case {
    pub(super) what: &'static str,
    program: &'static str,
    pub(super) whose: Whose,
}

pub(super) const CASES: [Case; 10] = {
    const fn case(what: &'static str, program: &'static str, whose: Whose) -> Case {
        Case {
            what,
            program,
            whose,
        }
    }
    [
        case("another service's", "ingress", Whose::Nobodys),
        case(STABLE, "ingress", Whose::Known(Arm::Stable)),
        case("the canary's", "ingress", Whose::Known(Arm::Canary)),
        case(
            "to a canary elsewhere",
            "ingress",
            Whose::Away(Direction::Request),
        ),
        case(
            "from a canary elsewhere",
            "ingress",
            Whose::Away(Direction::Response),
        ),
        case(TO_CANARY, "early", Whose::Away(Direction::Request)),
        case(FROM_CANARY, "early", Whose::Away(Direction::Response)),
        case("another service's, XDP", "early", Whose::Nobodys),
        case("a SYN, for stable", "ingress", Whose::New(Arm::Stable)),
        case("a SYN, for the canary", "ingress", Whose::New(Arm::Canary)),
    ]
};

impl Case {
    /// The version that counts them.
    const fn arm(&self) -> Option<Arm> {
        match self.whose {
            Whose::Nobodys => None,
            Whose::Known(arm) | Whose::New(arm) => Some(arm),
            Whose::Away(_) => Some(Arm::Canary),
        }
    }
}

/// The program's own median time for packets of a connection each, others in each round, or of one
/// connection. Sees that they were counted where they belong.
pub(super) fn own(
    scene: &mut Scene,
    empty: &RawClone,
    case: &Case,
    round: usize,
    one: bool,
) -> Result<f64> {
    let segment = match case.whose {
        Whose::New(_) => Segment::Syn,
        Whose::Nobodys | Whose::Known(_) | Whose::Away(_) => Segment::Data(PAYLOAD),
    };
    let template = tcp(CLIENT, node(80), segment)?;
    let served = |scene: &Scene| case.arm().map_or(Ok(0), |arm| scene.served(arm));
    // Nobody answers SYNs here, which is not to be held against the canary.
    scene.plane.set_health(1, Health::default())?;
    let before = served(scene)?;
    let (mut costs, mut nothing) = (Vec::new(), Vec::new());
    let ends = connections(scene, case.whose, round);
    ensure!(ends.len() == PACKETS, "{} connections", ends.len());
    for (from, to) in &ends {
        let (from, to) = if one { ends[0] } else { (*from, *to) };
        let mut frame = template.clone();
        address(&mut frame, from, to);
        nothing.push(empty.test_run(&frame, 1)?);
        let (_, time) = scene.plane.test_run(case.program, &frame, None, 1)?;
        costs.push(nanoseconds(time));
    }
    let counted = served(scene)? - before;
    // A few may have fallen out of the table.
    ensure!(
        case.arm().is_none() || counted as usize >= PACKETS / 100 * 99,
        "{}: {counted} of {PACKETS} were counted",
        case.what
    );
    Ok(Spread::of(costs).median - Spread::of(nothing).median)
}

/// Both ends of each packet: whom it is from, and to.
fn connections(scene: &Scene, whose: Whose, round: usize) -> Vec<(SocketAddrV4, SocketAddrV4)> {
    let services = scene.size.services;
    let to_service = |number| (client(number), server(number % services));
    let known = || known(scene.connections, round);
    match whose {
        Whose::Nobodys => (0..PACKETS as u32)
            .map(|number| (client(number), node(80)))
            .collect(),
        Whose::Known(arm) => {
            let served = known().filter(|number| scene::arm(*number) == arm);
            served.map(to_service).take(PACKETS).collect()
        }
        Whose::New(arm) => {
            let steering = steering();
            let wanted = |number: &u32| {
                let hash = steering.hash(&flow(client(*number), number % services));
                chosen(hash, steering.threshold) == (arm == Arm::Canary)
            };
            let new = NEW + (round * 4 * PACKETS) as u32..;
            new.filter(wanted).map(to_service).take(PACKETS).collect()
        }
        Whose::Away(direction) => (0..TRANSLATED)
            .map(|number| match direction {
                Direction::Request => (client(number), node(AWAY_PORT)),
                Direction::Response => {
                    let (ours, canarys) = translated(number);
                    (canarys, ours)
                }
            })
            .collect(),
    }
}

/// All numbers up to `total`, those that follow one another far apart.
fn known(total: u32, round: usize) -> impl Iterator<Item = u32> {
    let first = (round * 4 * PACKETS) as u64;
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
