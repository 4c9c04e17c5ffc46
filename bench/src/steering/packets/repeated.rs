//! The same packet many times over, which finds everything in the processor's caches: the least
//! that it can cost.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Result, ensure};
use mirror_common::tunnel::Arm;

use super::scene::{CANARY_CLIENT, FIRST_PORT, PLAIN_PORT, Scene, UNCHANGED, server};
use super::{NOT_STEERED, PAYLOAD, STABLE};
use crate::frames::{CLIENT, Segment, arp, node, tcp};
use crate::raw_clone::RawClone;
use crate::single::nanoseconds;

/// The packets that the target for XDP is about.
pub(super) const TO_CANARY: &str = "to a canary elsewhere, XDP";
pub(super) const FROM_CANARY: &str = "from a canary elsewhere, XDP";

/// Runs in one measurement.
const RUNS: u32 = 100_000;

/// A packet, and who has to count it.
pub(super) struct Case {
    pub(super) what: &'static str,
    program: &'static str,
    frame: Vec<u8>,
    /// The version that serves it; none for packets of no service, of one without a canary, or that
    /// TC will see.
    served: Option<Arm>,
}

/// All of them. The first service's connections from [`CLIENT`] and [`CANARY_CLIENT`] are in every
/// table.
pub(super) fn cases() -> Result<Vec<Case>> {
    let case = |what, program, from, to, served| {
        let frame = tcp(from, to, Segment::Data(PAYLOAD))?;
        Ok(Case {
            what,
            program,
            frame,
            served,
        })
    };
    let elsewhere = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 6), FIRST_PORT);
    let (stable, canary) = (Some(Arm::Stable), Some(Arm::Canary));
    [
        case("another service's", "ingress", CLIENT, node(80), None),
        case(
            "another host's, at a service's port",
            "ingress",
            CLIENT,
            elsewhere,
            None,
        ),
        case(NOT_STEERED, "ingress", CLIENT, node(PLAIN_PORT), None),
        case(STABLE, "ingress", CLIENT, server(0), stable),
        case("the canary's", "ingress", CANARY_CLIENT, server(0), canary),
        case("stable's, going out", "egress", server(0), CLIENT, stable),
        case(
            "to a canary elsewhere",
            "ingress",
            UNCHANGED.0,
            UNCHANGED.1,
            canary,
        ),
        case(
            "from a canary elsewhere",
            "ingress",
            UNCHANGED.1,
            UNCHANGED.0,
            canary,
        ),
        case(TO_CANARY, "early", UNCHANGED.0, UNCHANGED.1, canary),
        case(FROM_CANARY, "early", UNCHANGED.1, UNCHANGED.0, canary),
        case("another service's, XDP", "early", CLIENT, node(80), None),
        case("stable's, XDP", "early", CLIENT, server(0), None),
    ]
    .into_iter()
    .collect()
}

/// What reading the clock takes once.
pub(super) fn reading(clock: &RawClone, empty: &RawClone) -> Result<f64> {
    Ok(clock.test_run(&arp(), RUNS)? - empty.test_run(&arp(), RUNS)?)
}

/// The program's own mean time. Sees that the packets were counted where they belong.
pub(super) fn own(scene: &mut Scene, empty: &RawClone, case: &Case) -> Result<f64> {
    let nothing = empty.test_run(&case.frame, RUNS)?;
    let served = |scene: &Scene| -> Result<[u64; 2]> {
        Ok([scene.served(Arm::Stable)?, scene.served(Arm::Canary)?])
    };
    let mut expected = served(scene)?;
    if let Some(arm) = case.served {
        expected[arm as usize] += u64::from(RUNS);
    }
    let run = scene.plane.test_run(case.program, &case.frame, None, RUNS);
    let (_, mean) = run?;
    let counted = served(scene)?;
    ensure!(
        counted == expected,
        "{}: counted {counted:?}, not {expected:?}",
        case.what
    );
    Ok(nanoseconds(mean) - nothing)
}
