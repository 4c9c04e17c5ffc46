//! From a config to services and agents with their places in the maps, at the start and at every
//! reload. What an earlier life left in the maps is taken over, so that nothing is counted twice or
//! lost.

use std::collections::BTreeMap;
use std::sync::Arc;

use mirror_api::Transport;
use mirror_common::policy::{MAX_AGENTS, WHOLE, mirror};
use mirror_common::steer::{Steering, flag, threshold_share};
use mirror_rollout::Share;

use super::agents::{Access, Agent};
use super::core::{Core, Effect};
use super::numbers::{self, assign};
use super::services::{self, Service};
use crate::dataplane::Error;

impl Core {
    /// Makes services and agents those of the config.
    pub(super) fn take_over(&mut self) -> Result<(), Error> {
        self.take_over_agents()?;
        self.take_over_services()?;
        self.tell_settings();
        let (services, rollouts) = (&self.config.services, &self.rollouts);
        let trial = |service: &str| rollouts.trial(service);
        self.local_reader
            .take_over(services, trial, &mut *self.kernel, self.now.ns);
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
        let ways = self.kernel.agents()?;
        let mut known = numbers::numbers_in(&ways);
        known.extend(
            self.agents
                .values()
                .chain(&self.leaving)
                .map(|agent| (agent.access.id(), agent.number)),
        );
        let numbers = assign(wanted.keys().copied(), &known, numbers::AGENTS);
        for &number in &numbers.fresh {
            // Of whoever had the number before: nobody else may get it.
            self.kernel.remove_ring(number)?;
            self.kernel.clear_sent(number)?;
            self.kernel.forgive(number)?;
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
                        Transport::Stream => Some(Arc::new(self.kernel.ring(number)?)),
                        Transport::Geneve => None,
                    };
                    let tenure = match ways.get(&number) {
                        Some(way) if !numbers.fresh.contains(&number) => way.tenure,
                        _ => uuid::Uuid::new_v4().as_fields().0,
                    };
                    let agent = Agent::new(access.clone(), (number, tenure), ring, self.now.at);
                    let target = self.keys.target(&agent, self.tap.boot);
                    self.effects.push(Effect::Connect(target));
                    agent
                }
            };
            self.agents.insert(access.address.clone(), agent);
        }
        let stays = |number: u32| self.agents.values().any(|agent| agent.number == number);
        self.leaving.extend(old.into_values());
        self.leaving.retain(|agent| !stays(agent.number));
        let leaves = |number| self.leaving.iter().any(|agent| agent.number == number);
        for number in self.kernel.ring_numbers() {
            if number < MAX_AGENTS && !stays(number) && !leaves(number) {
                self.kernel.remove_ring(number)?;
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
            let (counts, number) = (self.kernel.counts(), self.reports);
            let at = (number, self.now.ns);
            let last = services::report(&**counts, &self.tap, at, &agent, std::iter::empty());
            self.effects.push(match last {
                Ok(report) => Effect::Leave(agent.number, report),
                Err(_) => Effect::Disconnect(agent.number),
            });
            // The sender has it mapped, and goes on until it is empty.
            if let Err(error) = self.kernel.remove_ring(agent.number) {
                tracing::error!("{error}");
            }
        }
    }

    fn take_over_services(&mut self) -> Result<(), Error> {
        let configs = &self.config.services;
        let mut known = numbers::rows_in(&self.kernel.services()?);
        known.extend(self.services.iter().map(|old| (old.config.id, old.row)));
        let ids = configs.iter().map(|service| service.id);
        let rows = assign(ids, &known, numbers::ROWS);
        for &row in &rows.fresh {
            self.kernel.set_steering(row, Steering::default())?;
            self.kernel.clear_rows(row)?;
        }
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

    /// What an earlier daemon has left in the maps that says that the disk may have more than it wanted.
    pub(super) fn left_in_maps(&mut self) -> Result<Left, Error> {
        let mut left = Left::default();
        for rule in self.kernel.services()?.into_values() {
            left.is_off |= rule.mirror & mirror::OFF != 0;
            if rule.mirror & mirror::HELD != 0 {
                let is_on = rule.mirror & mirror::BOTH != 0;
                let sample = rule.threshold as f64 / WHOLE as f64;
                left.samples
                    .insert(rule.index, if is_on { sample } else { 0.0 });
            }
            if rule.index != 0 {
                let steering = self.kernel.steering(rule.index)?;
                if steering.flags & flag::TAKEN_BACK != 0 {
                    let share = Share::of_parts(threshold_share(steering.threshold));
                    left.shares.insert(rule.index, share);
                }
            }
        }
        Ok(left)
    }

    /// Where the kernel has less than the disk, since the disk had failed, that is what holds.
    pub(super) fn recover(&mut self, left: &Left) {
        let (mut actions, now) = (Vec::new(), self.now.at);
        if left.is_off && !self.settings.holds().is_off() {
            actions.extend(self.settings.recover_off(now));
        }
        for service in &self.services {
            let (name, row) = (&service.config.name, service.row);
            let share = left.shares.get(&row).copied();
            let share = share.filter(|_| self.rollouts.share(name).is_none());
            let sample = left.samples.get(&row).copied();
            if share.is_some() || sample.is_some() {
                tracing::warn!(
                    service = name,
                    "what was lowered before the daemon ended is not on the disk; it holds"
                );
                actions.extend(self.settings.recover(name, share, sample, now));
            }
        }
        self.carry_out(actions);
    }

    /// The bits that tell the next daemon that the disk may have more of a service than what holds.
    pub(super) fn held(&self, service: &str) -> u32 {
        let held = [
            (self.settings.owes_mirror(service), mirror::HELD),
            (self.settings.owes_off(), mirror::OFF),
        ];
        let bits = held.into_iter().filter(|(owes, _)| *owes);
        bits.fold(0, |bits, (_, bit)| bits | bit)
    }
}

/// What an earlier daemon has left in the maps because the disk did not have it, by the services' rows.
#[derive(Debug, Default)]
pub(super) struct Left {
    is_off: bool,
    samples: BTreeMap<u32, f64>,
    shares: BTreeMap<u32, Share>,
}
