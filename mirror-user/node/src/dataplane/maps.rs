//! Reading and writing the maps.

use std::collections::{BTreeMap, HashMap};

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError, PerCpuArray, PerCpuValues};
use mirror_common::counters::{Counters, Sent};
use mirror_common::flow::Endpoint;
use mirror_common::policy::{Agent, Service, Tap};

use super::counts::{COUNTERS, SENT};
use super::{DataPlane, Error, pins};

/// Writes the state of the whole tap.
pub struct Pulse(Array<MapData, Tap>);

impl Pulse {
    /// [`DataPlane::set_tap`].
    pub fn set_tap(&mut self, tap: Tap) -> Result<(), Error> {
        let written = self.0.set(0, tap, 0);
        written.map_err(|source| map_error("TAP", source))
    }
}

impl DataPlane {
    /// Makes `services` the rules: adds and replaces first, then removes what is gone.
    pub fn set_services(&mut self, services: &HashMap<Endpoint, Service>) -> Result<(), Error> {
        if self.written.as_ref() == Some(services) {
            return Ok(());
        }
        self.written = None;
        let failed = |source| Error::Map {
            map: "SERVICES",
            source: Box::new(source),
        };
        let mut ports = BTreeMap::<u32, u64>::new();
        for endpoint in services.keys() {
            *ports.entry(u32::from(endpoint.port()) / 64).or_default() |=
                1 << (endpoint.port() % 64);
        }
        let mut map = self.hash_map::<Endpoint, Service>("SERVICES")?;
        let known: HashMap<Endpoint, Service> = map.iter().flatten().collect();
        for (endpoint, service) in services {
            if known.get(endpoint) != Some(service) {
                map.insert(endpoint, service, 0).map_err(failed)?;
            }
        }
        for endpoint in known
            .keys()
            .filter(|endpoint| !services.contains_key(endpoint))
        {
            map.remove(endpoint).map_err(failed)?;
        }
        let mut bits = self.array::<u64>("PORTS")?;
        for word in 0..1024 {
            let value = ports.get(&word).copied().unwrap_or(0);
            if bits.get(&word, 0).ok() != Some(value) {
                bits.set(word, value, 0).map_err(|source| Error::Map {
                    map: "PORTS",
                    source: Box::new(source),
                })?;
            }
        }
        self.written = Some(services.clone());
        Ok(())
    }

    /// Sets the way to an agent.
    pub fn set_agent(&mut self, number: u32, agent: &Agent) -> Result<(), Error> {
        self.hash_map::<u32, Agent>("AGENTS")?
            .insert(number, agent, 0)
            .map_err(|source| Error::Map {
                map: "AGENTS",
                source: Box::new(source),
            })
    }

    /// Forgets the ways to agents for which `keep` says no.
    pub fn retain_agents(&mut self, keep: impl Fn(u32) -> bool) -> Result<(), Error> {
        let mut map = self.hash_map::<u32, Agent>("AGENTS")?;
        let stale: Vec<u32> = map
            .keys()
            .flatten()
            .filter(|&number| !keep(number))
            .collect();
        for number in stale {
            let _ = map.remove(&number);
        }
        Ok(())
    }

    /// State of the whole tap.
    pub fn tap(&mut self) -> Result<Tap, Error> {
        self.array::<Tap>("TAP")?
            .get(&0, 0)
            .map_err(|source| map_error("TAP", source))
    }

    /// Sets the state of the whole tap: with it the programs know that the daemon lives.
    pub fn set_tap(&mut self, tap: Tap) -> Result<(), Error> {
        self.array::<Tap>("TAP")?
            .set(0, tap, 0)
            .map_err(|source| map_error("TAP", source))
    }

    /// A hand on the heartbeat, for a thread of its own.
    pub fn pulse(&self) -> Result<Pulse, Error> {
        let maps = self.links.with_file_name("maps");
        let map = Map::Array(pins::open(&maps, "TAP")?);
        let map = Array::try_from(map).map_err(|source| map_error("TAP", source))?;
        Ok(Pulse(map))
    }

    /// The rules that hold, by endpoint.
    pub fn services(&mut self) -> Result<HashMap<Endpoint, Service>, Error> {
        Ok(self.hash_map("SERVICES")?.iter().flatten().collect())
    }

    /// The ways to agents, by their numbers.
    pub fn agents(&mut self) -> Result<HashMap<u32, Agent>, Error> {
        Ok(self.hash_map("AGENTS")?.iter().flatten().collect())
    }

    /// Sets all that is counted of a service to nothing.
    pub fn clear_rows(&mut self, index: u32) -> Result<(), Error> {
        for row in [index * 2, index * 2 + 1] {
            self.clear_per_cpu::<Counters>(COUNTERS, row)?;
        }
        self.clear_arms(index)
    }

    /// Sets what has been sent to an agent to nothing.
    pub fn clear_sent(&mut self, agent: u32) -> Result<(), Error> {
        self.clear_per_cpu::<Sent>(SENT, agent)
    }

    pub(super) fn clear_per_cpu<T: aya::Pod + Default>(
        &mut self,
        name: &'static str,
        row: u32,
    ) -> Result<(), Error> {
        let cpus = aya::util::nr_cpus().map_err(|(_, source)| Error::PinDir {
            path: "/sys/devices/system/cpu".into(),
            source,
        })?;
        let zero = PerCpuValues::try_from(vec![T::default(); cpus])
            .map_err(|source| map_error(name, MapError::IoError(source)))?;
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| Error::Missing(format!("map {name}")))?;
        let mut map =
            PerCpuArray::<_, T>::try_from(map).map_err(|source| map_error(name, source))?;
        map.set(row, zero, 0)
            .map_err(|source| map_error(name, source))
    }

    /// Clones to an agent that left without their headers, since the last [`DataPlane::forgive`].
    pub fn escaped(&mut self, agent: u32) -> Result<u64, Error> {
        self.array::<u64>("ESCAPED")?
            .get(&agent, 0)
            .map_err(|source| Error::Map {
                map: "ESCAPED",
                source: Box::new(source),
            })
    }

    /// Lets clones go to an agent again, once its uplink's hook has been looked after.
    pub fn forgive(&mut self, agent: u32) -> Result<(), Error> {
        self.array::<u64>("ESCAPED")?
            .set(agent, 0, 0)
            .map_err(|source| Error::Map {
                map: "ESCAPED",
                source: Box::new(source),
            })
    }

    pub(super) fn array<T: aya::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<Array<&mut MapData, T>, Error> {
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| Error::Missing(format!("map {name}")))?;
        Array::try_from(map).map_err(|source| map_error(name, source))
    }

    pub(super) fn hash_map<K: aya::Pod, V: aya::Pod>(
        &mut self,
        name: &'static str,
    ) -> Result<BpfHashMap<&mut MapData, K, V>, Error> {
        let map = self
            .ebpf
            .map_mut(name)
            .ok_or_else(|| Error::Missing(format!("map {name}")))?;
        BpfHashMap::try_from(map).map_err(|source| map_error(name, source))
    }
}

pub(super) fn map_error(map: &'static str, source: MapError) -> Error {
    Error::Map {
        map,
        source: Box::new(source),
    }
}
