//! What steering costs one packet, without a network: `BPF_PROG_TEST_RUN`.

mod page;
mod repeated;
mod scattered;
mod scene;

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Result;
use mirror_common::tunnel::Arm;
use tests::Namespace;

use crate::frames::CLIENT;
use crate::raw_clone::RawClone;
use crate::statistics::Spread;

use scattered::Whose;
use scene::{CANARY_CLIENT, CANARY_PORT, FIRST_PORT, Scene, Size};

/// Services with a canary.
const SERVICES: [u32; 3] = [1, 100, 1000];

/// The packet that the target is about.
const STABLE: &str = "stable's";

/// The packet that pays for everything but steering.
const NOT_STEERED: &str = "a service's without a canary";

/// Times that each kind is measured.
const ROUNDS: usize = 25;

/// Bytes that a packet brings.
const PAYLOAD: usize = 1000;

/// All kinds of packets.
pub(crate) struct Packets {
    /// What reading the clock takes once, in nanoseconds.
    clock: Spread,
    /// Connections in a full table.
    connections: u32,
    /// The same packet again and again.
    repeated: Lines,
    /// One packet of the same connection at a time.
    one: Lines,
    /// One packet of a connection each, in a full table.
    scattered: Lines,
}

/// Kinds of packets, and what they cost the programs themselves: nanoseconds of each round.
#[derive(Default)]
struct Lines(Vec<(&'static str, Size, Vec<f64>)>);

impl Lines {
    fn push(&mut self, what: &'static str, size: Size, own: f64) {
        let mut lines = self.0.iter_mut();
        match lines.find(|(known, of, _)| (*known, *of) == (what, size)) {
            Some((_, _, all)) => all.push(own),
            None => self.0.push((what, size, vec![own])),
        }
    }

    /// The kinds, in the order in which they were first measured.
    fn kinds(&self) -> Vec<&'static str> {
        let mut kinds: Vec<_> = self.0.iter().map(|(what, ..)| *what).collect();
        let mut seen = Vec::new();
        kinds.retain(|what| {
            let new = !seen.contains(what);
            seen.push(*what);
            new
        });
        kinds
    }

    /// What a kind costs with so much in the maps; nothing where that was not measured.
    fn own(&self, what: &str, services: u32, full: bool) -> Option<Spread> {
        let size = Size { services, full };
        let mut lines = self.0.iter();
        let (_, _, all) = lines.find(|(known, of, _)| (*known, *of) == (what, size))?;
        Some(Spread::of(all.iter().copied()))
    }
}

/// Measures each kind several times, taking turns.
pub(crate) fn measure() -> Result<Packets> {
    Namespace::new("packets")?.run(inside)
}

fn inside() -> Result<Packets> {
    // SYNs are for these; who else is asked for never listens.
    let _listeners = [FIRST_PORT, CANARY_PORT]
        .into_iter()
        .map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
        .collect::<Result<Vec<_>, _>>()?;
    let (empty, clock) = (RawClone::load_empty()?, RawClone::load_clock()?);
    let cases = repeated::cases()?;
    let mut scenes = Vec::new();
    for full in [false, true] {
        for services in SERVICES {
            let mut scene = Scene::new(Size { services, full })?;
            scene.remember(CLIENT, 0, Arm::Stable)?;
            scene.remember(CANARY_CLIENT, 0, Arm::Canary)?;
            scenes.push(scene);
        }
    }
    // SYNs push connections out of the table: they have one of their own.
    let mut for_syns = Scene::new(Size {
        services: 1,
        full: true,
    })?;
    let [mut repeated, mut one, mut scattered] = [(); 3].map(|()| Lines::default());
    let mut clocks = Vec::new();
    for round in 0..ROUNDS {
        clocks.push(repeated::reading(&clock, &empty)?);
        for scene in &mut scenes {
            for case in &cases {
                let own = repeated::own(scene, &empty, case)?;
                repeated.push(case.what, scene.size, own);
            }
        }
        for case in &scattered::CASES {
            let new = matches!(case.whose, Whose::New(_));
            let full = scenes.iter_mut().filter(|scene| scene.size.full && !new);
            for scene in full.chain(new.then_some(&mut for_syns)) {
                let own = scattered::own(scene, &empty, case, round, false)?;
                scattered.push(case.what, scene.size, own);
                if scene.size.services == 1 && !new {
                    let own = scattered::own(scene, &empty, case, round, true)?;
                    one.push(case.what, scene.size, own);
                }
            }
        }
    }
    Ok(Packets {
        clock: Spread::of(clocks),
        connections: for_syns.connections,
        repeated,
        one,
        scattered,
    })
}
