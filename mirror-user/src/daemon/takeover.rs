//! From a config to services and agents with their places in the maps, at the start and at every
//! reload. What an earlier life left in the maps is taken over, so that nothing is counted twice or
//! lost.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use mirror_common::policy::MAX_AGENTS;
use mirror_common::steer::Steering;

use super::Daemon;
use super::agents::{Access, Agent};
use super::numbers::{self, assign};
use super::services::{self, Service};
use crate::dataplane::Error;
use crate::transport::frame::Transport;

impl Daemon {
    /// Makes services and agents those of the config.
    pub(super) fn take_over(&mut self) -> Result<(), Error> {
        self.take_over_agents()?;
        self.take_over_services()?;
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (services, rollouts) = (&self.config.services, &self.rollouts);
        let trial = |service: &str| rollouts.trial(service);
        self.local_reader
            .take_over(services, trial, &mut shared.plane);
        Ok(())
    }

    fn take_over_agents(&mut self) -> Result<(), Error> {
        let mirrors = self
            .config
            .services
            .iter()
            .filter_map(|service| service.mirror.as_ref());
        let wanted: BTreeMap<u64, Access> = mirrors
            .map(Access::of)
            .map(|access| (access.id(), access))
            .collect();
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = numbers::numbers_in(&shared.plane.agents()?);
        known.extend(
            self.agents
                .values()
                .chain(&self.leaving)
                .map(|agent| (agent.access.id(), agent.number)),
        );
        let numbers = assign(wanted.keys().copied(), &known, numbers::AGENTS);
        for &number in &numbers.fresh {
            // Of whoever had the number before: nobody else may get it.
            shared.plane.remove_ring(number)?;
            shared.plane.clear_sent(number)?;
            shared.plane.forgive(number)?;
        }
        for id in numbers.without {
            let agent = &wanted[&id].address;
            tracing::error!(%agent, "too many agents; nothing is copied to this one");
        }
        let mut old = std::mem::take(&mut self.agents);
        for (id, number) in numbers.of {
            let access = &wanted[&id];
            let mut before = old.extract_if(.., |_, agent| agent.number == number);
            let agent = match before.next() {
                Some((_, agent)) if agent.access == *access => agent,
                _ => {
                    let ring = match access.transport {
                        Transport::Stream => Some(Arc::new(shared.plane.ring(number)?)),
                        Transport::Geneve => None,
                    };
                    let agent = Agent::new(access.clone(), number, ring);
                    self.sender.connect(self.keys.target(&agent, self.tap.boot));
                    agent
                }
            };
            self.agents.insert(access.address.clone(), agent);
        }
        let stays = |number: u32| self.agents.values().any(|agent| agent.number == number);
        self.leaving.extend(old.into_values());
        self.leaving.retain(|agent| !stays(agent.number));
        let leaves = |number| self.leaving.iter().any(|agent| agent.number == number);
        for number in shared.plane.ring_numbers() {
            if number < MAX_AGENTS && !stays(number) && !leaves(number) {
                shared.plane.remove_ring(number)?;
            }
        }
        Ok(())
    }

    /// Leaves the agents that the config no longer names, once the programs copy nothing more to them:
    /// what their rings hold is sent, and their ledgers close.
    pub(super) fn leave_agents(&mut self) {
        if self.view.is_none() || self.unwritten.is_some() {
            return;
        }
        for agent in std::mem::take(&mut self.leaving) {
            self.reports += 1;
            let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            let (plane, number) = (&shared.plane, self.reports);
            match services::report(plane, &self.tap, number, &agent, std::iter::empty()) {
                Ok(report) => self.sender.leave(agent.number, report),
                Err(_) => self.sender.disconnect(agent.number),
            }
            // The sender has it mapped, and goes on until it is empty.
            if let Err(error) = shared.plane.remove_ring(agent.number) {
                tracing::error!("{error}");
            }
        }
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
                tracing::error!(service, "too many services; this one is not mirrored");
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
