//! Maps of services that have a canary.

use aya::maps::{MapError, PerCpuHashMap, PerCpuValues};
use mirror_common::histogram::Latency;
use mirror_common::measure::{ArmCounters, ByClient, handshake_key};
use mirror_common::steer::{Arrivals, Health, Steering};
use mirror_common::translate::Ports;
use mirror_common::tunnel::Arm;

use super::counts::{ARMS, CLIENTS, HANDSHAKES};
use super::maps::map_error;
use super::{DataPlane, Error};

impl DataPlane {
    /// Sets how a service's new connections are shared out: holds from the next SYN on.
    pub fn set_steering(&mut self, row: u32, steering: Steering) -> Result<(), Error> {
        // What it is measured with must be there first.
        if steering != Steering::default() {
            self.make_histograms(row)?;
        }
        self.array::<Steering>("STEERING")?
            .set(row, steering, 0)
            .map_err(|source| map_error("STEERING", source))
    }

    /// How a service's new connections are shared out.
    pub fn steering(&mut self, row: u32) -> Result<Steering, Error> {
        self.array::<Steering>("STEERING")?
            .get(&row, 0)
            .map_err(|source| map_error("STEERING", source))
    }

    /// Sets the ports that connections of canaries on other hosts come from.
    pub fn set_translated_ports(&mut self, ports: Ports) -> Result<(), Error> {
        self.array::<Ports>("TRANSLATED_PORTS")?
            .set(0, ports, 0)
            .map_err(|source| map_error("TRANSLATED_PORTS", source))
    }

    /// Says whether a service's canary answers.
    pub fn set_health(&mut self, row: u32, health: Health) -> Result<(), Error> {
        self.array::<Health>("HEALTH")?
            .set(row, health, 0)
            .map_err(|source| map_error("HEALTH", source))
    }

    /// Whether a service's canary answers, as the programs see it.
    pub fn health(&mut self, row: u32) -> Result<Health, Error> {
        self.array::<Health>("HEALTH")?
            .get(&row, 0)
            .map_err(|source| map_error("HEALTH", source))
    }

    /// Forgets what became of a canary's first connections.
    pub fn clear_arrivals(&mut self, row: u32) -> Result<(), Error> {
        self.array::<Arrivals>("ARRIVALS")?
            .set(row, Arrivals::default(), 0)
            .map_err(|source| map_error("ARRIVALS", source))
    }

    /// What became of the first connections that a service's canary was given.
    pub fn arrivals(&mut self, row: u32) -> Result<Arrivals, Error> {
        self.array::<Arrivals>("ARRIVALS")?
            .get(&row, 0)
            .map_err(|source| map_error("ARRIVALS", source))
    }

    /// Sets a service's rows of what its versions do to nothing.
    pub(super) fn clear_arms(&mut self, row: u32) -> Result<(), Error> {
        for arm in [Arm::Stable, Arm::Canary] {
            self.clear_per_cpu::<ArmCounters>(ARMS, row * 2 + arm as u32)?;
            self.clear_per_cpu::<ByClient>(CLIENTS, row * 2 + arm as u32)?;
            let _ = self.histograms()?.remove(&handshake_key(row, arm));
        }
        Ok(())
    }

    fn make_histograms(&mut self, row: u32) -> Result<(), Error> {
        let cpus = super::pins::possible_cpus() as usize;
        for arm in [Arm::Stable, Arm::Canary] {
            let key = handshake_key(row, arm);
            let mut map = self.histograms()?;
            if map.get(&key, 0).is_ok() {
                continue;
            }
            let zero = PerCpuValues::try_from(vec![Latency::default(); cpus])
                .map_err(|source| map_error(HANDSHAKES, MapError::IoError(source)))?;
            map.insert(key, zero, 0)
                .map_err(|source| map_error(HANDSHAKES, source))?;
        }
        Ok(())
    }

    fn histograms(
        &mut self,
    ) -> Result<PerCpuHashMap<&mut aya::maps::MapData, u32, Latency>, Error> {
        let map = self
            .ebpf
            .map_mut(HANDSHAKES)
            .ok_or_else(|| Error::Missing(format!("map {HANDSHAKES}")))?;
        PerCpuHashMap::try_from(map).map_err(|source| map_error(HANDSHAKES, source))
    }
}
