//! Every map: key, value, who writes, who reads, why this size. All are pinned by name, so that
//! programs of an old and a new daemon work on the same ones.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use mirror_common::connection::Connection;
use mirror_common::counters::{Counters, Sent};
use mirror_common::flow::{Endpoint, Flow};
use mirror_common::histogram::{Latency, RunTime};
use mirror_common::measure::{ArmCounters, ByClient};
use mirror_common::policy::{
    Agent, Budget, MAX_AGENTS, MAX_ENDPOINTS, MAX_RINGS, MAX_SERVICES, Service, Tap,
};
use mirror_common::steer::{Arrivals, Health, Steering};
use mirror_common::translate::{Ports, Translation};

use crate::map_of_maps::Rings;
use crate::slot::{Scratch, Slot};

/// Endpoint -> rules. Written by the daemon, which replaces whole values; a tunnel's end has
/// `index` 0.
#[map]
pub(crate) static SERVICES: HashMap<Endpoint, Service> = HashMap::pinned(MAX_ENDPOINTS, 0);

/// Port / 64 -> bit of each port that [`SERVICES`] has: spares foreign packets the hash look-up.
#[map]
pub(crate) static PORTS: Array<u64> = Array::pinned(1024, 0);

/// Number of an agent -> the way to it. Written by the daemon.
#[map]
pub(crate) static AGENTS: HashMap<u32, Agent> = HashMap::pinned(MAX_AGENTS, 0);

/// Number of an agent -> clones that left without their tunnel headers. While it is not 0 nothing
/// is copied to it. Written by the tap, cleared by the daemon once it has looked after the hook.
#[map]
pub(crate) static ESCAPED: Array<u64> = Array::pinned(MAX_AGENTS, 0);

/// Interfaces that are tapped: a packet that came in through one was counted there. Written by
/// the daemon.
#[map]
pub(crate) static TAPPED: HashMap<u32, u32> = HashMap::pinned(256, 0);

/// The daemon's heartbeat.
#[map]
pub(crate) static TAP: Array<Tap> = Array::pinned(1, 0);

/// Service index * 2 + direction -> counters, row 0 for packets of no service. Written by the tap.
#[map]
pub(crate) static COUNTERS: PerCpuArray<Counters> = PerCpuArray::pinned(MAX_SERVICES * 2, 0);

/// Number of an agent -> what this CPU has sent to it in datagrams. Written by the uplink's program; a
/// ring counts for itself.
#[map]
pub(crate) static SENT: PerCpuArray<Sent> = PerCpuArray::pinned(MAX_AGENTS, 0);

/// Number of an agent -> its ring, of a value for each CPU. Made and emptied by the daemon, filled by
/// the tap. [`mirror_common::policy::LOOK_RING`] is the local reader's.
#[unsafe(link_section = "maps")]
#[unsafe(export_name = "RINGS")]
pub(crate) static RINGS: Rings = Rings::pinned(MAX_RINGS);

/// Rung by the tap when it has filled a ring whose sender sleeps.
#[map]
pub(crate) static SENDER_BELL: RingBuf = RingBuf::pinned(4096, 0);

/// The same for the local reader.
#[map]
pub(crate) static LOOK_BELL: RingBuf = RingBuf::pinned(4096, 0);

/// Service index -> state of its budget. Written by the tap.
#[map]
pub(crate) static BUDGETS: Array<Budget> = Array::pinned(MAX_SERVICES, 0);

/// Hash of a connection that hit its service's budget. Written by the tap; old ones fall out.
#[map]
pub(crate) static OVER_BUDGET: LruHashMap<u64, u32> = LruHashMap::pinned(65536, 0);

/// Service index -> how its new connections are shared out. Written by the daemon.
#[map]
pub(crate) static STEERING: Array<Steering> = Array::pinned(MAX_SERVICES, 0);

/// Connection -> who serves it, and how far it has come; of services with a canary only, and of those alone
/// that are not translated. Written by the tap; old ones fall out.
#[map]
pub(crate) static CONNECTIONS: LruHashMap<Flow, Connection> = LruHashMap::pinned(65536, 0);

/// Connection of a canary on another host -> how far it has come. Nothing falls out: it is deleted once it is
/// over, by the tap that needs its port or by the daemon, with its entry in [`TRANSLATIONS`]. As large as
/// [`CONNECTIONS`]; takes memory as it is filled.
#[map]
pub(crate) static TRANSLATED: HashMap<Flow, Connection> = HashMap::pinned(65536, BPF_F_NO_PREALLOC);

/// The same connection as the canary sees it -> whose its answers are.
#[map]
pub(crate) static TRANSLATIONS: HashMap<Flow, Translation> =
    HashMap::pinned(65536, BPF_F_NO_PREALLOC);

/// The ports that such connections come from. Written by the daemon.
#[map]
pub(crate) static TRANSLATED_PORTS: Array<Ports> = Array::pinned(1, 0);

/// Service index -> whether its canary answers. Written by the tap, and by the daemon that tries.
#[map]
pub(crate) static HEALTH: Array<Health> = Array::pinned(MAX_SERVICES, 0);

/// Service index -> whether connections that its canary on this host is given arrive. Written by the tap,
/// and by the daemon when a share begins.
#[map]
pub(crate) static ARRIVALS: Array<Arrivals> = Array::pinned(MAX_SERVICES, 0);

/// Service index -> when the new connections so far will have been earned, see
/// `Steering::connection_cost_ns`. Written by the tap.
#[map]
pub(crate) static OPENING: Array<u64> = Array::pinned(MAX_SERVICES, 0);

/// Service index * 2 + arm -> what that version does. Written by the tap.
#[map]
pub(crate) static ARMS: PerCpuArray<ArmCounters> = PerCpuArray::pinned(MAX_SERVICES * 2, 0);

/// The same -> whose its connections are, and whose fail. Written by the tap.
#[map]
pub(crate) static CLIENTS: PerCpuArray<ByClient> = PerCpuArray::pinned(MAX_SERVICES * 2, 0);

/// `measure::handshake_key` -> how long a version's handshakes take. The daemon makes the entries, of
/// services with a canary only, since they are large.
#[map]
pub(crate) static HANDSHAKES: PerCpuHashMap<u32, Latency> =
    PerCpuHashMap::pinned(MAX_SERVICES * 2, BPF_F_NO_PREALLOC);

/// What the tap tells the uplink's program on the same CPU of the clone that it is sending, and
/// hears back.
#[map]
pub(crate) static SLOT: PerCpuArray<Slot> = PerCpuArray::pinned(1, 0);

/// CPU -> payload that is being cut into pieces. The daemon sets the size to the number of CPUs;
/// a per-CPU map cannot hold values this large.
#[map]
pub(crate) static SCRATCH: Array<Scratch> = Array::pinned(1, 0);

/// Hook (0 ingress, 1 egress) -> durations of our runs.
#[map]
pub(crate) static RUN_TIME: PerCpuArray<RunTime> = PerCpuArray::pinned(2, 0);
