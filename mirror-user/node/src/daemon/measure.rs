//! What the last second has brought: load, dropped packets, clones that went astray; and what the
//! agents are told of it.

use std::collections::BTreeMap;

use mirror_common::tunnel::Arm;

use super::core::{Core, Effect};
use super::{arms, services};

impl Core {
    /// Looks at the counters, and sets the services' samples.
    pub(super) fn measure(&mut self) {
        let now = self.now.at;
        self.local_reader.measure(now);
        for service in &mut self.services {
            let wanted = service.wanted(self.settings.holds());
            let budget = service.budget(&self.agents);
            if let Err(error) = service.measure(&**self.kernel.counts(), now, wanted.sample, budget)
            {
                tracing::warn!(service = service.config.name, "{error}");
            }
        }
    }

    /// Has it looked at who sends the traffic of services with a canary.
    pub(super) fn ask_census(&self) {
        let with_canary = self
            .services
            .iter()
            .filter(|service| service.config.canary.is_some());
        let answered = with_canary.filter_map(|service| {
            let tally = self.local_reader.tally(service.config.id)?;
            let arms = [Arm::Stable, Arm::Canary];
            Some((
                service.row,
                arms.map(|arm| tally.responses(arm)).iter().sum(),
            ))
        });
        let answered: BTreeMap<u32, u64> = answered.collect();
        if !answered.is_empty() {
            self.census.ask(answered);
        }
    }

    /// Remembers what both versions have done where another share has begun to hold.
    pub(super) fn pass_milestones(&mut self) {
        let now = self.now.at;
        let mut rows = Vec::new();
        for service in &self.services {
            let Some(canary) = &service.config.canary else {
                continue;
            };
            rows.push(service.row);
            let tally = self.local_reader.tally(service.config.id);
            let versions = [service.config.stable_version.as_str(), &canary.version];
            if let Ok(steering) = self.kernel.steering(service.row)
                && self.milestones.has_passed(service.row, &steering)
                && let Ok(arms) = arms::both(
                    &**self.kernel.counts(),
                    service.row,
                    tally.as_deref(),
                    versions,
                )
            {
                self.milestones.set(service.row, &steering, arms, now);
            }
        }
        self.milestones.retain(|row| rows.contains(&row));
    }

    /// Attaches anew where clones have left without their headers: something in the egress chain
    /// ends it before our program, or has taken its place.
    pub(super) fn bring_back_escaped(&mut self) {
        for agent in self.agents.values_mut() {
            let escaped = self.kernel.escaped(agent.number).unwrap_or(0);
            if escaped == 0 {
                continue;
            }
            tracing::error!(agent = %agent.access.address, escaped, "copies left without their tunnel headers; attaching anew");
            let renewed = match &agent.way {
                Ok(way) => self.attachments.renew(&mut *self.kernel, way),
                Err(_) => Ok(()),
            };
            let forgiven = renewed.and_then(|()| self.kernel.forgive(agent.number));
            if let Err(error) = forgiven {
                agent.error = Some(error.to_string());
            }
        }
    }

    /// Looks who runs before our programs.
    pub(super) fn look_at_chains(&mut self) {
        self.attachments.look_at_chains(&mut *self.kernel);
    }

    /// Reports to every agent what was sent to it.
    pub(super) fn report(&mut self) {
        self.reports += 1;
        for agent in self.agents.values_mut() {
            let services = self.services.iter();
            let its = services.filter(|service| service.agent() == Some(&agent.access.address));
            let (at, counts) = ((self.reports, self.now.ns), self.kernel.counts());
            match services::report(&**counts, &self.tap, at, agent, its) {
                Ok(report) if agent.should_hear(&report, self.now.at) => {
                    self.effects.push(Effect::Report(agent.number, report));
                }
                Ok(_) => {}
                Err(error) => agent.error = Some(error.to_string()),
            }
        }
    }
}
