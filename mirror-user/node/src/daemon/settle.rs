//! Where decisions become hooks and maps.

use std::collections::BTreeSet;

use super::core::{Core, Effect};
use super::reach::{forget_ways, write_ways};
use super::services::Service;
use super::{attachments, heartbeat, rules};

impl Core {
    /// Makes hooks and maps what they should be, by all that is known now.
    pub(super) fn settle(&mut self) {
        self.log_agents();
        self.watch_canaries();
        self.attach();
        self.see_to_lro();
        self.write_rules();
        self.pass_milestones();
        self.publish();
    }

    /// Canaries on other hosts are dialled, and the way to them is asked for: which are on other hosts
    /// depends on this host's addresses.
    pub(super) fn watch_canaries(&mut self) {
        if self.view.is_some() {
            let canaries = self.canaries_away();
            if self.health.watch(&canaries) {
                self.effect(Effect::Dial(canaries));
            }
            self.say_interest();
        }
    }

    /// Makes the attachments what they should be.
    pub(super) fn attach(&mut self) {
        let geneve = self.agents.values().filter(|agent| agent.is_geneve());
        let ways = geneve.filter_map(|agent| agent.way.as_ref().ok());
        let wanted = match &self.view {
            _ if self.settings.holds().is_off() => attachments::Wanted::new(),
            Some(view) => {
                let away = self.ways_away(view);
                let excluded = view.excluded(&self.config.interfaces);
                let mut tapped = self.config.interfaces.clone();
                tapped.retain(|name| !excluded.contains_key(name));
                self.attachments.exclude(excluded);
                attachments::wanted(&tapped, &view.links, ways, &away)
            }
            // What an earlier daemon attached stays until it is known what should be.
            None => return,
        };
        self.attachments.make(&mut *self.kernel, wanted);
        for agent in self.agents.values_mut() {
            let way = agent.way.as_ref();
            agent.attached = way.is_ok_and(|way| self.attachments.carries(way));
        }
    }

    /// Writes rules and ways into the maps. Without a look at the network there are none to write.
    pub(super) fn write_rules(&mut self) {
        let steered = self.write_steering();
        let Some(view) = &self.view else { return };
        let is_off = self.settings.holds().is_off();
        let local_reader = &mut self.local_reader;
        let looks = self.services.iter();
        let looks: Vec<[f64; 2]> = looks
            .map(|service| local_reader.shares(service.config.id, is_off))
            .collect();
        let rule = |(service, look)| {
            let budget = Service::budget(service, &self.agents);
            let held = self.held(&service.config.name);
            service.rule(self.settings.holds(), &self.agents, budget, look, held)
        };
        let rules: Vec<rules::Rule<'_>> = self.services.iter().zip(looks).map(rule).collect();
        let agents = self.agents.values().filter_map(|agent| agent.peer);
        let mut endpoints = rules::by_endpoint(&rules, agents, &view.addresses, self.tap.key);
        let services = self.services.iter();
        let with_canary: BTreeSet<u32> = services
            .filter(|service| service.config.canary.is_some())
            .map(|service| service.row)
            .collect();
        let listeners = || self.kernel.listeners();
        self.listening.mark(
            &mut endpoints,
            |rule| with_canary.contains(&rule.index),
            listeners,
        );
        let written = steered
            .and_then(|()| write_ways(&mut *self.kernel, &self.agents, self.now.at))
            .and_then(|()| self.kernel.set_services(&endpoints))
            .and_then(|()| forget_ways(&mut *self.kernel, &self.agents));
        match written {
            Ok(()) => {
                self.unwritten = None;
                self.effect(Effect::Beat);
            }
            Err(error) => {
                let limit = heartbeat::LIMIT.as_secs();
                let why = format!(
                    "the rules cannot be written, and after {limit} s nothing is copied any more: {error}"
                );
                if self.unwritten.replace(why.clone()).as_ref() != Some(&why) {
                    tracing::error!("{why}");
                }
            }
        }
    }
}
