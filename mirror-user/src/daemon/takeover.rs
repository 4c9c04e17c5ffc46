//! From a config to services and agents with their places in the maps, at the start and at every
//! reload. What an earlier life left in the maps is taken over, so that nothing is counted twice or
//! lost.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use mirror_common::steer::Steering;

use super::Daemon;
use super::agents::Agent;
use super::numbers::{self, assign};
use super::services::Service;
use crate::dataplane::Error;

impl Daemon {
    /// Makes services and agents those of the config.
    pub(super) fn take_over(&mut self) -> Result<(), Error> {
        self.take_over_agents()?;
        self.take_over_services()
    }

    fn take_over_agents(&mut self) -> Result<(), Error> {
        let configs = &self.config.services;
        // Names are resolved by the sender.
        let wanted: BTreeSet<SocketAddr> = configs
            .iter()
            .filter_map(|service| service.mirror.as_ref()?.agent.socket())
            .collect();
        let mut shared = self.lock();
        let mut known = numbers::numbers_in(&shared.plane.agents()?);
        known.extend(self.agents.iter().map(|(at, agent)| (*at, agent.number)));
        let numbers = assign(wanted, &known, numbers::AGENTS);
        for &number in &numbers.fresh {
            shared.plane.clear_sent(number)?;
            shared.plane.forgive(number)?;
        }
        drop(shared);
        for agent in numbers.without {
            tracing::error!(%agent, "more agents than fit: not mirrored");
        }
        let mut old = std::mem::take(&mut self.agents);
        let agents = numbers.of.into_iter().map(|(address, number)| {
            let agent = old.remove(&address);
            (
                address,
                agent.unwrap_or_else(|| Agent::new(address, number)),
            )
        });
        self.agents = agents.collect();
        Ok(())
    }

    fn take_over_services(&mut self) -> Result<(), Error> {
        let configs = &self.config.services;
        let mut shared = self.lock();
        let mut known = numbers::rows_in(&shared.plane.services()?);
        known.extend(self.services.iter().map(|old| (old.config.id, old.row)));
        let ids = configs.iter().map(|service| service.id);
        let rows = assign(ids, &known, numbers::ROWS);
        for &row in &rows.fresh {
            shared.plane.set_steering(row, Steering::default())?;
            shared.plane.clear_rows(row)?;
        }
        drop(shared);
        let mut old = std::mem::take(&mut self.services);
        for config in &self.config.services {
            let Some(&row) = rows.of.get(&config.id) else {
                let service = &config.name;
                tracing::error!(service, "more services than fit: not mirrored");
                continue;
            };
            let before = old.iter().position(|old| old.config.id == config.id);
            self.services.push(match before {
                Some(at) => old.swap_remove(at).with(config.clone()),
                None => Service::new(config.clone(), row),
            });
        }
        Ok(())
    }
}
