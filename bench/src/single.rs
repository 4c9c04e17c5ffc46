//! What one packet costs, without a network: `BPF_PROG_TEST_RUN`, many times over.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use mirror_common::flow::Endpoint;
use mirror_common::policy::{Agent, Service, Tap, WHOLE, agent_state, mirror};
use mirror_common::steer::{SHARE_PARTS, Steering, flag, share_threshold};
use mirror_common::tunnel::Arm;
use mirror_user::dataplane::{DataPlane, Interface, Role, Sizes};
use nix::net::if_::if_nametoindex;
use tests::{Home, Namespace};

use crate::frames::{CLIENT, Segment, arp, node, tcp, udp};
use crate::raw_clone::RawClone;
use crate::statistics::Spread;

/// Runs in one measurement.
const RUNS: u32 = 1_000_000;

/// The same where each run copies.
const COPIES: u32 = 100_000;

/// All kinds of packets.
pub(crate) struct Singles {
    /// What the measurement itself takes: an empty program, in nanoseconds.
    pub(crate) empty: Spread,
    pub(crate) kinds: Vec<Single>,
}

/// A kind of packet, and what it costs, the measurement included.
pub(crate) struct Single {
    pub(crate) what: &'static str,
    /// Nanoseconds.
    pub(crate) cost: Spread,
    pub(crate) target: Option<f64>,
}

/// Measures each kind so many times, taking turns.
pub(crate) fn measure(times: usize) -> Result<Singles> {
    let host = Namespace::new("single")?;
    // A device that drops what it is given.
    host.ip("link add up0 type ifb")?;
    host.ip("link set up0 up")?;
    host.run(|| inside(times))
}

fn inside(times: usize) -> Result<Singles> {
    let home = Home::new()?;
    let uplink = if_nametoindex("up0").context("there is no up0")?;
    let (empty, raw) = (RawClone::load_empty()?, RawClone::load(uplink)?);
    let mut plane = plane(&home, uplink)?;
    let to = |port, payload| tcp(CLIENT, node(port), Segment::Data(payload));
    let kinds = [
        ("another service's TCP", to(9000, 1000)?, Some(40.0)),
        (
            "another service's UDP",
            udp(CLIENT, node(9000))?,
            Some(40.0),
        ),
        ("ARP", arp(), Some(40.0)),
        ("the service's, a pure ACK", to(8000, 0)?, None),
        ("the service's, not sampled", to(8001, 1000)?, None),
        (
            "the same, of a service with a canary",
            to(8002, 1000)?,
            None,
        ),
    ];
    let request = to(8000, 600)?;
    let mut costs = vec![Vec::new(); kinds.len()];
    let (mut empties, mut raws, mut copies) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..times {
        for ((_, frame, _), costs) in kinds.iter().zip(&mut costs) {
            let (_, mean) = plane.test_run("ingress", frame, None, RUNS)?;
            costs.push(nanoseconds(mean));
        }
        empties.push(empty.test_run(&request, RUNS)?);
        raws.push(raw.test_run(&request, COPIES)?);
        let (_, mean) = plane.test_run("ingress", &request, None, COPIES)?;
        copies.push(nanoseconds(mean));
    }
    let singles = kinds
        .iter()
        .zip(costs)
        .map(|((what, _, target), costs)| Single {
            what,
            cost: Spread::of(costs),
            target: *target,
        });
    let copied = [
        (
            "cloned by five instructions, and dropped by the device",
            raws,
        ),
        ("the service's, copied, and dropped by the device", copies),
    ];
    let copied = copied.into_iter().map(|(what, costs)| Single {
        what,
        cost: Spread::of(costs),
        target: None,
    });
    Ok(Singles {
        empty: Spread::of(empties),
        kinds: singles.chain(copied).collect(),
    })
}

/// A service on port 8000 that is copied, one on port 8001 of which no connection is chosen, and the
/// same on port 8002 with a canary: its connections are followed.
fn plane(home: &Home, uplink: u32) -> Result<DataPlane> {
    let mut plane = DataPlane::load(home.pins(), None, Sizes::small(65_536))?;
    let service = |index, threshold| Service {
        index,
        id: 100 + index,
        mirror: mirror::BOTH | mirror::arm(Arm::Stable),
        threshold,
        key: [7, 11],
        // A budget that is kept, and never spent.
        byte_cost: 1,
        burst_ns: 1_000_000_000,
        ..Service::default()
    };
    let endpoint = |port: u16| Endpoint::from(SocketAddr::from(([10, 0, 0, 5], port)));
    plane.set_services(&HashMap::from([
        (endpoint(8000), service(1, WHOLE)),
        (endpoint(8001), service(2, 0)),
        (endpoint(8002), service(3, 0)),
    ]))?;
    let steering = Steering {
        canary: endpoint(8003),
        threshold: share_threshold(SHARE_PARTS / 2),
        stale_ns: u64::MAX,
        flags: flag::PRESENT | flag::HTTP,
        ..Steering::default()
    };
    plane.set_steering(3, steering)?;
    plane.set_tap(Tap {
        // Alive for good.
        heartbeat_ns: u64::MAX / 2,
        ..Tap::default()
    })?;
    plane.set_agent(
        0,
        &Agent {
            ifindex: uplink,
            state: agent_state::ALIVE,
            local: IpAddr::from([10, 1, 0, 5]).into(),
            remote: IpAddr::from([10, 1, 0, 9]).into(),
            port: 6181,
            mtu: 1500,
            ethernet: 1,
            ..Agent::default()
        },
    )?;
    let interface = Interface {
        name: "up0".to_owned(),
        index: uplink,
        ethernet: true,
    };
    let role = Role {
        tapped: false,
        uplink: true,
        ..Role::default()
    };
    plane.attach(&interface, role)?;
    Ok(plane)
}

/// A duration in nanoseconds.
pub(crate) fn nanoseconds(time: Duration) -> f64 {
    time.as_nanos() as f64
}
