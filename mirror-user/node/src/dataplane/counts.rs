//! What the programs count. It is read beside the loop that writes everything else, by whoever wants to know.

use std::fmt;
use std::path::Path;

use aya::maps::{Map, MapData, MapError, PerCpuArray, PerCpuHashMap, PerCpuValues};
use mirror_common::counters::{Counters, Sent};
use mirror_common::histogram::{Latency, RunTime};
use mirror_common::measure::{ArmCounters, ByClient, handshake_key};
use mirror_common::tunnel::Arm;

use super::maps::map_error;
use super::{Error, Hook, pins};

pub(super) const COUNTERS: &str = "COUNTERS";
pub(super) const SENT: &str = "SENT";
pub(super) const ARMS: &str = "ARMS";
pub(super) const CLIENTS: &str = "CLIENTS";
pub(super) const HANDSHAKES: &str = "HANDSHAKES";
const RUN_TIME: &str = "RUN_TIME";

/// The counters, for any thread.
pub trait Counts: fmt::Debug + Send + Sync {
    /// Counters of a row (service index * 2 + direction; 0 = no service), all CPUs together.
    fn packets(&self, row: u32) -> Result<Counters, Error>;

    /// Durations of our runs at a hook, all CPUs together.
    fn run_time(&self, hook: Hook) -> Result<RunTime, Error>;

    /// What each CPU has sent to an agent.
    fn sent(&self, agent: u32) -> Result<Vec<Sent>, Error>;

    /// What one version of a service does, all CPUs together.
    fn arm(&self, row: u32, arm: Arm) -> Result<ArmCounters, Error>;

    /// Whose its connections are, and whose fail, all CPUs together.
    fn clients(&self, row: u32, arm: Arm) -> Result<ByClient, Error>;

    /// How long one version's handshakes take, all CPUs together; nothing where they are not measured.
    fn handshakes(&self, row: u32, arm: Arm) -> Result<Latency, Error>;
}

/// The pinned maps.
pub(super) struct Pinned {
    counters: PerCpuArray<MapData, Counters>,
    run_time: PerCpuArray<MapData, RunTime>,
    sent: PerCpuArray<MapData, Sent>,
    arms: PerCpuArray<MapData, ArmCounters>,
    clients: PerCpuArray<MapData, ByClient>,
    handshakes: PerCpuHashMap<MapData, u32, Latency>,
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

impl Pinned {
    /// Opens them.
    pub(super) fn open(maps: &Path) -> Result<Self, Error> {
        Ok(Self {
            counters: per_cpu(maps, COUNTERS)?,
            run_time: per_cpu(maps, RUN_TIME)?,
            sent: per_cpu(maps, SENT)?,
            arms: per_cpu(maps, ARMS)?,
            clients: per_cpu(maps, CLIENTS)?,
            handshakes: PerCpuHashMap::try_from(Map::PerCpuHashMap(pins::open(maps, HANDSHAKES)?))
                .map_err(|source| map_error(HANDSHAKES, source))?,
        })
    }
}

impl Counts for Pinned {
    fn packets(&self, row: u32) -> Result<Counters, Error> {
        let values = self.counters.get(&row, 0);
        sum(values.map_err(|source| map_error(COUNTERS, source))?)
    }

    fn run_time(&self, hook: Hook) -> Result<RunTime, Error> {
        let values = self.run_time.get(&(hook as u32), 0);
        sum(values.map_err(|source| map_error(RUN_TIME, source))?)
    }

    fn sent(&self, agent: u32) -> Result<Vec<Sent>, Error> {
        let values = self.sent.get(&agent, 0);
        let values = values.map_err(|source| map_error(SENT, source))?;
        Ok(values.to_vec())
    }

    fn arm(&self, row: u32, arm: Arm) -> Result<ArmCounters, Error> {
        let values = self.arms.get(&(row * 2 + arm as u32), 0);
        sum(values.map_err(|source| map_error(ARMS, source))?)
    }

    fn clients(&self, row: u32, arm: Arm) -> Result<ByClient, Error> {
        let values = self.clients.get(&(row * 2 + arm as u32), 0);
        sum(values.map_err(|source| map_error(CLIENTS, source))?)
    }

    fn handshakes(&self, row: u32, arm: Arm) -> Result<Latency, Error> {
        match self.handshakes.get(&handshake_key(row, arm), 0) {
            Ok(values) => sum(values),
            Err(MapError::KeyNotFound) => Ok(Latency::default()),
            Err(source) => Err(map_error(HANDSHAKES, source)),
        }
    }
}

fn per_cpu<T: aya::Pod>(maps: &Path, name: &'static str) -> Result<PerCpuArray<MapData, T>, Error> {
    let map = Map::PerCpuArray(pins::open(maps, name)?);
    PerCpuArray::try_from(map).map_err(|source| map_error(name, source))
}

fn sum<T>(values: PerCpuValues<T>) -> Result<T, Error>
where
    T: aya::Pod + Default + for<'a> std::ops::AddAssign<&'a T>,
{
    let mut sum = T::default();
    for value in values.iter() {
        sum += value;
    }
    Ok(sum)
}
