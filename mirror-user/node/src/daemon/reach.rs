//! What becomes of the connections to the agents, and what the programs are told of them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use mirror_api::{AgentAddress, Transport};
use mirror_common::record::ring_size;

use super::agents::Agent;
use super::core::Core;
use super::kernel::Kernel;
use super::sender::{Event, What};
use crate::config::Node;
use crate::dataplane;

impl Core {
    /// Something has happened to the connection to an agent.
    pub(super) fn on_event(&mut self, event: Event) {
        let was_alive = self.is_alive(event.number);
        let is_echo = matches!(event.what, What::Echo { .. });
        let number = event.number;
        self.take_event(event);
        if !is_echo {
            self.say_interest();
        }
        if !is_echo || was_alive != self.is_alive(number) {
            self.settle();
        }
    }

    fn is_alive(&self, number: u32) -> bool {
        let mut agents = self.agents.values();
        let agent = agents.find(|agent| agent.number == number);
        agent.is_some_and(|agent| agent.alive(self.now.at))
    }

    fn take_event(&mut self, Event { number, what }: Event) {
        let connected = matches!(what, What::Connected { .. });
        let mut agents = self.agents.values_mut();
        if let Some(agent) = agents.find(|agent| agent.number == number) {
            agent.on_event(what, self.now.at, self.now.ns);
        }
        if connected {
            // Nothing is shipped before.
            self.report();
        }
    }

    /// The log says when an agent stops answering, and when it does again.
    pub(super) fn log_agents(&mut self) {
        let now = self.now.at;
        for agent in self.agents.values_mut() {
            let name = agent.access.address.to_string();
            match (agent.news(now), agent.is_geneve()) {
                (Some(true), true) => {
                    tracing::info!(agent = %name, "agent reachable; mirroring resumed")
                }
                (Some(true), false) => tracing::info!(agent = %name, "agent reachable"),
                (Some(false), is_geneve) => {
                    let why = agent.trouble();
                    let why = why.as_deref().unwrap_or("no answer");
                    match is_geneve {
                        true => tracing::warn!(
                            agent = %name,
                            why,
                            "agent unreachable; mirroring suspended"
                        ),
                        false => tracing::warn!(
                            agent = %name,
                            why,
                            "agent unreachable; copies wait in the ring"
                        ),
                    }
                }
                (None, _) => {}
            }
        }
    }
}

/// Writes the ways to the agents. Where there is none right now the old one stays, but is not alive.
pub(super) fn write_ways(
    kernel: &mut dyn Kernel,
    agents: &BTreeMap<AgentAddress, Agent>,
    now: Instant,
) -> Result<(), dataplane::Error> {
    let old = kernel.agents()?;
    for agent in agents.values() {
        let policy = agent.policy(now).or_else(|| {
            let mut policy = *old.get(&agent.number)?;
            policy.state = 0;
            Some(policy)
        });
        if let Some(policy) = policy {
            kernel.set_agent(agent.number, &policy)?;
        }
    }
    Ok(())
}

/// Takes away the ways to agents that no rule names any more.
pub(super) fn forget_ways(
    kernel: &mut dyn Kernel,
    agents: &BTreeMap<AgentAddress, Agent>,
) -> Result<(), dataplane::Error> {
    kernel.retain_agents(&|number| agents.values().any(|agent| agent.number == number))
}

/// How large each ring is, of each CPU: `ring` is what all rings may take together. Where there is none yet,
/// one may come: the size stays.
pub(crate) fn ring_size_of(config: &Node) -> u32 {
    let rings = rings_of(config).max(1) as u64;
    ring_size(config.ring, rings * u64::from(dataplane::possible_cpus()))
}

/// How many rings each CPU has: one for each agent that gets its copies so, and one for the local reader.
pub(crate) fn rings_of(config: &Node) -> usize {
    let mirrors = config
        .services
        .iter()
        .filter_map(|service| service.mirror.as_ref());
    let streams = mirrors.filter(|mirror| mirror.transport == Transport::Stream);
    let agents: BTreeSet<_> = streams.map(|mirror| &mirror.agent).collect();
    let has_look = config
        .services
        .iter()
        .any(|service| service.looks().is_some());
    agents.len() + usize::from(has_look)
}
