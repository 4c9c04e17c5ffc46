//! What one packet costs, without a network: `BPF_PROG_TEST_RUN`, many times over.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use mirror_common::flow::Endpoint;
use mirror_common::policy::{Agent, Service, Tap, WHOLE, agent_state, mirror, transport};
use mirror_common::record::SMALLEST_RING;
use mirror_common::steer::{SHARE_PARTS, Steering, flag, share_threshold};
use mirror_common::tunnel::Arm;
use mirror_node::dataplane::{DataPlane, Interface, Role, Sizes};
use nix::net::if_::if_nametoindex;
use tests::{Home, Namespace};

use crate::frames::{CLIENT, Segment, arp, node, tcp, udp};
use crate::page::verdict;
use crate::raw_clone::RawClone;
use crate::statistics::Spread;

mod copies;

use copies::AllCopies;

/// Runs in one measurement.
const RUNS: u32 = 1_000_000;

/// All kinds of packets.
pub(crate) struct Singles {
    /// What the measurement itself takes: an empty program, in nanoseconds.
    pub(crate) empty: Spread,
    pub(crate) kinds: Vec<Single>,
    pub(crate) copies: AllCopies,
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
    let empty = RawClone::load_empty()?;
    let deep_home = Home::new()?;
    let mut deep = plane(&deep_home, uplink, copies::deep_ring())?;
    let mut plane = plane(&home, uplink, SMALLEST_RING)?;
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
    let request = to(8001, 1000)?;
    let mut costs = vec![Vec::new(); kinds.len()];
    let mut empties = Vec::new();
    for _ in 0..times {
        for ((_, frame, _), costs) in kinds.iter().zip(&mut costs) {
            let (_, mean) = plane.test_run("ingress", frame, None, RUNS)?;
            costs.push(nanoseconds(mean));
        }
        empties.push(empty.test_run(&request, RUNS)?);
    }
    let singles = kinds
        .iter()
        .zip(costs)
        .map(|((what, _, target), costs)| Single {
            what,
            cost: Spread::of(costs),
            target: *target,
        });
    Ok(Singles {
        empty: Spread::of(empties),
        kinds: singles.collect(),
        copies: copies::measure(&mut plane, &mut deep, uplink, times)?,
    })
}

impl fmt::Display for Singles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## Single packets\n\n\
             The program at the tapped interface's ingress, a million runs at a time (`BPF_PROG_TEST_RUN`). The measurement itself \
             takes {:.0} ns, what it takes to run an empty program; the program's own time is without it. A service with a canary has each packet \
             looked up in the table of connections, timed and counted for its version.\n\n\
             | packet | measured ns | program's own ns | target |\n|---|---|---|---|",
            self.empty,
        )?;
        for Single { what, cost, target } in &self.kinds {
            let own = cost.median - self.empty.median;
            let target = target.map_or_else(String::new, |target| {
                format!("{target}: {}", verdict(own <= target))
            });
            writeln!(f, "| {what} | {cost:.0} | {own:.0} | {target} |")?;
        }
        writeln!(f, "\n{}", self.copies)
    }
}

/// A service on port 8000 of which pure ACKs are asked, one on port 8001 of which no connection is chosen, the same on port
/// 8002 with a canary: its connections are followed; and the first one on ports 8004 to 8006, copied by
/// other transports.
/// Rings have `ring` bytes for each CPU.
fn plane(home: &Home, uplink: u32, ring: u32) -> Result<DataPlane> {
    let mut plane = DataPlane::load(
        mirror_programs::OBJECT,
        home.pins(),
        None,
        Sizes {
            connections: 65_536,
            ring,
        },
    )?;
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
    // Each has an agent of its own.
    let by = |index| Service {
        agent: index,
        ..service(index, WHOLE)
    };
    let endpoint = |port: u16| Endpoint::from(SocketAddr::from(([10, 0, 0, 5], port)));
    plane.set_services(&HashMap::from([
        (endpoint(8000), service(1, WHOLE)),
        (endpoint(8001), service(2, 0)),
        (endpoint(8002), service(3, 0)),
        (endpoint(copies::STREAM), by(4)),
        (endpoint(copies::GENEVE), by(5)),
        (endpoint(copies::SIGNED), by(6)),
    ]))?;
    let steering = Steering {
        canary: endpoint(8003),
        threshold: share_threshold(SHARE_PARTS / 2),
        stale_ns: u64::MAX,
        flags: flag::PRESENT,
        ..Steering::default()
    };
    plane.set_steering(3, steering)?;
    plane.set_tap(Tap {
        // Alive for good.
        heartbeat_ns: u64::MAX / 2,
        ..Tap::default()
    })?;
    let geneve = Agent {
        ifindex: uplink,
        state: agent_state::ALIVE,
        local: IpAddr::from([10, 1, 0, 5]).into(),
        remote: IpAddr::from([10, 1, 0, 9]).into(),
        port: 6181,
        mtu: 1500,
        ethernet: 1,
        ..Agent::default()
    };
    let stream = Agent {
        state: agent_state::ALIVE,
        transport: transport::STREAM,
        ..Agent::default()
    };
    let signed = Agent {
        mac_key: [3, 5],
        tap: 1,
        ..geneve
    };
    for (number, agent) in [(0, geneve), (4, stream), (5, geneve), (6, signed)] {
        plane.set_agent(number, &agent)?;
    }
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
