//! What a copy adds to a packet, by each way of making it.

use std::fmt;
use std::os::fd::AsFd;

use anyhow::{Result, ensure};
use aya::maps::{Map, MapData, RingBuf};
use mirror_common::record::{HOT_RING, is_deep};
use mirror_node::dataplane::{DataPlane, Ring, possible_cpus};

use super::nanoseconds;
use crate::frames::{CLIENT, Segment, node, tcp};
use crate::raw_clone::{RawClone, ring_buffer};
use crate::statistics::Spread;

/// Ports of services that are copied by each transport; their agents' numbers are the services'.
pub(super) const STREAM: u16 = 8004;
pub(super) const GENEVE: u16 = 8005;
pub(super) const SIGNED: u16 = 8006;

/// Number of [`STREAM`]'s agent.
const STREAM_AGENT: u32 = 4;

/// The service of which no connection is chosen.
const NOT_COPIED: u16 = 8001;

/// Runs at a time: what they copy has room in the ring.
const RUNS: u32 = 150;

/// How often they are repeated for one figure.
const TIMES: usize = 200;

const DEPTH: &str = "A deep lane costs more than a hot one, since the tap comes back to a place when the caches have forgotten it: the time of the third row over the second is that \
    of fetching it from memory. It is what a ring pays for holding the traffic of seconds, and pays only while the sender is behind by more than the hot lane holds.";

const KERNEL_RING: &str = "The kernel's ring buffer (`BPF_MAP_TYPE_RINGBUF`) is measured at its best: a record of a length that the program knows, one clock, one copy, nobody else on \
    its lock; our figure has the agent's ring looked up, its counters and the service's budget in it, too. Under traffic, 2 KB records of a length reserved for all took 447 ns for a whole run with 500 B bodies where a ring \
    of our own took 244. It has one head for all CPUs or a map for each, reserves at most a length that is fixed when the program is loaded (or takes a dynptr, \
    Linux 5.19), and is consumed record by record, each marked done by itself; ours holds the records as they go out, so that the sender writes \
    whole stretches without looking at any.";

/// Bytes of each CPU's ring where the config says nothing.
pub(super) fn deep_ring() -> u32 {
    (256 << 20) / possible_cpus().next_power_of_two()
}

/// Ways of copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Raw,
    HotLane,
    DeepLane,
    KernelRing,
    Geneve,
    Signed,
}

impl Way {
    const ALL: [Self; 6] = [
        Self::Raw,
        Self::HotLane,
        Self::DeepLane,
        Self::KernelRing,
        Self::Geneve,
        Self::Signed,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Raw => "`bpf_clone_redirect` by five instructions, dropped by the device",
            Self::HotLane => {
                "**into our ring** (`stream`): its hot lane, which stays in the processor's caches"
            }
            Self::DeepLane => {
                "into our ring while its hot lane is full: its deep one, which does not"
            }
            Self::KernelRing => "into the kernel's ring buffer, by 22 instructions and no wake-up",
            Self::Geneve => "`geneve` without a MAC, dropped by the device",
            Self::Signed => "`geneve`, dropped by the device",
        }
    }
}

/// What copies of packets of one size cost, in nanoseconds, and in times of a raw clone's.
struct Copies {
    /// Bytes of TCP payload.
    payload: usize,
    ways: Vec<(Way, Spread, Spread)>,
}

/// All sizes.
pub(crate) struct AllCopies(Vec<Copies>);

impl fmt::Display for AllCopies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "What a copy adds, by the same means: the run with it less the same run without it, of packets with so many bytes of payload, in nanoseconds and in raw \
             clones. Runs come {RUNS} at a time, for which there is room in the hot lane of {} KiB; the deep one has {} MiB, the default here.\n",
            HOT_RING >> 10,
            deep_ring() >> 20,
        )?;
        write!(f, "| the copy is made by |")?;
        for Copies { payload, .. } in &self.0 {
            write!(f, " {payload} B, ns | in raw clones |")?;
        }
        writeln!(f, "\n|---|{}", "---|---|".repeat(self.0.len()))?;
        for (at, way) in Way::ALL.into_iter().enumerate() {
            write!(f, "| {} |", way.label())?;
            for Copies { ways, .. } in &self.0 {
                let (_, cost, ratio) = &ways[at];
                write!(f, " {cost:.0} | {ratio:.2} |")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "\n{DEPTH}\n\n{KERNEL_RING}")
    }
}

/// Measures each way so many times, taking turns.
pub(super) fn measure(
    plane: &mut DataPlane,
    deep: &mut DataPlane,
    uplink: u32,
    times: usize,
) -> Result<AllCopies> {
    let (ring, deep_ring) = (plane.ring(STREAM_AGENT)?, deep.ring(STREAM_AGENT)?);
    let sizes = [500, 2048].into_iter();
    let all =
        sizes.map(|payload| of_size((plane, &ring), (deep, &deep_ring), uplink, payload, times));
    Ok(AllCopies(all.collect::<Result<_>>()?))
}

fn of_size(
    (plane, ring): (&mut DataPlane, &Ring),
    (deep, deep_ring): (&mut DataPlane, &Ring),
    uplink: u32,
    payload: usize,
    times: usize,
) -> Result<Copies> {
    let frame = |port| tcp(CLIENT, node(port), Segment::Data(payload));
    let [none, stream, geneve, signed] = [NOT_COPIED, STREAM, GENEVE, SIGNED].map(frame);
    let (none, stream, geneve, signed) = (none?, stream?, geneve?, signed?);
    let (empty, raw) = (RawClone::load_empty()?, RawClone::load(uplink)?);
    let buffer = ring_buffer(HOT_RING)?;
    let packet = stream.len() as u32 - 14;
    let kernel_ring = RawClone::load_ring_buffer(buffer.as_fd(), packet)?;
    let mut buffer = RingBuf::try_from(Map::RingBuf(MapData::from_fd(buffer)?))?;
    let mut costs = vec![(Vec::new(), Vec::new()); Way::ALL.len()];
    for _ in 0..times {
        let of_empty = mean(|| empty.test_run(&stream, RUNS))?;
        let of_raw = mean(|| raw.test_run(&stream, RUNS))? - of_empty;
        let ours = |plane: &mut DataPlane, frame: &[u8]| -> Result<f64> {
            mean(|| {
                let (_, mean) = plane.test_run("ingress", frame, None, RUNS)?;
                Ok(nanoseconds(mean))
            })
        };
        let classified = ours(plane, &none)?;
        for (way, (costs, ratios)) in Way::ALL.into_iter().zip(&mut costs) {
            let cost = match way {
                Way::Raw => of_raw,
                Way::HotLane => mean(|| into_ring(plane, ring, &stream, |_| true))? - classified,
                Way::DeepLane => {
                    // A few of them fill the hot lane, and it stays so.
                    mean(|| into_ring(deep, deep_ring, &stream, is_deep))? - classified
                }
                Way::KernelRing => {
                    mean(|| into_buffer(&kernel_ring, &mut buffer, &stream))? - of_empty
                }
                Way::Geneve => ours(plane, &geneve)? - classified,
                Way::Signed => ours(plane, &signed)? - classified,
            };
            costs.push(cost);
            ratios.push(cost / of_raw);
        }
    }
    let ways = Way::ALL.into_iter().zip(costs);
    let ways = ways.map(|(way, (costs, ratios))| (way, Spread::of(costs), Spread::of(ratios)));
    Ok(Copies {
        payload,
        ways: ways.collect(),
    })
}

fn mean(mut measure: impl FnMut() -> Result<f64>) -> Result<f64> {
    let all: Result<Vec<f64>> = (0..TIMES).map(|_| measure()).collect();
    // What was interrupted is not of the program's.
    Ok(Spread::of(all?).median)
}

/// Only such lanes are emptied afterwards.
fn into_ring(
    plane: &mut DataPlane,
    ring: &Ring,
    frame: &[u8],
    emptied: impl Fn(u16) -> bool,
) -> Result<f64> {
    let heads = || ring.heads().iter().sum::<u64>();
    let before = heads();
    let (_, mean) = plane.test_run("ingress", frame, None, RUNS)?;
    let bytes = heads() - before;
    ensure!(
        bytes >= u64::from(RUNS) * frame.len() as u64,
        "{bytes} bytes are in the ring"
    );
    for lane in (0..ring.lanes()).filter(|lane| emptied(*lane)) {
        ring.release(lane, ring.head(lane));
    }
    Ok(nanoseconds(mean))
}

fn into_buffer(program: &RawClone, buffer: &mut RingBuf<MapData>, frame: &[u8]) -> Result<f64> {
    let mean = program.test_run(frame, RUNS)?;
    let mut records = 0;
    while buffer.next().is_some() {
        records += 1;
    }
    ensure!(records == RUNS, "{records} records are in the ring buffer");
    Ok(mean)
}
