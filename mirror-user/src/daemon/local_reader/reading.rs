//! From copied packets to what became of their exchanges: the agent's own reassembly and framing, with
//! no body kept. Pure.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mirror_common::policy;
use mirror_common::record::Record;
use mirror_common::tunnel::Arm;

use super::tally::{Outcome, Tally};
use crate::shadow::capture::segment_of;
use crate::shadow::exchange::{Event, Exchanges, Limits};
use crate::shadow::memory::Memory;
use crate::shadow::message::{DropReason, ExchangeId, TapId};

/// What waits for bytes before it, of all connections.
const MEMORY: usize = 32 << 20;

/// What waits of one direction of a connection.
const BUFFER: usize = 1 << 20;

/// The most connections that are remembered.
const MAX_CONNECTIONS: usize = 16_384;

/// A server may think for so long: models that answer as a whole do.
const THINKS: Duration = Duration::from_secs(270);

/// There is one tap here.
const TAP: TapId = TapId(0);

/// Which connections of a service are looked at.
#[derive(Debug)]
pub(super) struct Rule {
    /// Of this the key and the shares count.
    pub(super) policy: policy::Service,
    pub(super) tally: Arc<Tally>,
}

/// All exchanges that are looked at.
#[derive(Debug)]
pub(super) struct Reading {
    exchanges: Exchanges,
    /// By the index that [`Exchanges`] knows them by; services that are gone stay.
    services: Vec<Rule>,
    by_id: HashMap<u32, usize>,
    /// Whose the exchanges are whose end is not known.
    open: HashMap<ExchangeId, (usize, Arm)>,
    events: Vec<Event>,
}

impl Reading {
    pub(super) fn new() -> Self {
        let exchanges = Exchanges::new(Vec::new(), Memory::new(MEMORY));
        Self {
            exchanges: exchanges.with_max_connections(MAX_CONNECTIONS),
            services: Vec::new(),
            by_id: HashMap::new(),
            open: HashMap::new(),
            events: Vec::new(),
        }
    }

    /// Sets which connections of a service count from now on. What is open of others is dropped as
    /// [`DropReason::Shutdown`]: it is not known how that will end.
    pub(super) fn set(&mut self, id: u32, rule: Rule) {
        match self.by_id.get(&id) {
            Some(&index) => self.services[index] = rule,
            None => {
                let mut limits = Limits::new(0).without_bodies().with_answers_within(THINKS);
                limits.buffer = BUFFER;
                self.by_id.insert(id, self.exchanges.add_service(limits));
                self.services.push(rule);
            }
        }
        let services = &self.services;
        let keep = |index: usize, arm, flow: &mirror_common::flow::Flow| {
            let rule = services.get(index);
            rule.is_some_and(|rule| rule.policy.is_looked_at(arm, flow.hash(rule.policy.key)))
        };
        self.exchanges
            .retain(keep, DropReason::Shutdown, &mut self.events);
        self.count_events();
    }

    /// Takes a copied packet in. What the tap copied before it knew that its connection does not count
    /// any more is left out.
    pub(super) fn record(&mut self, record: &Record, packet: &[u8], now: Duration) {
        let Some(&index) = self.by_id.get(&record.service) else {
            return;
        };
        let rule = &self.services[index];
        rule.tally
            .count_bytes(record.arm, record.packet_length.into());
        let Some(segment) = segment_of(index, TAP, record, packet) else {
            return;
        };
        let hash = segment.flow.hash(rule.policy.key);
        if rule.policy.is_looked_at(record.arm, hash) {
            self.exchanges.segment(segment, now, &mut self.events);
            self.count_events();
        }
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, now: Duration) {
        self.exchanges.tick(now, &mut self.events);
        self.count_events();
    }

    /// When [`Reading::tick`] has something to do next.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.exchanges.deadline()
    }

    /// Packets are missing, and nobody knows whose: how what is open ends is not known.
    pub(super) fn lose(&mut self) {
        self.exchanges
            .retain(|_, _, _| false, DropReason::ResponseGap, &mut self.events);
        self.count_events();
    }

    fn count_events(&mut self) {
        for event in self.events.drain(..) {
            let (id, outcome) = match event {
                Event::Seen {
                    id, service, arm, ..
                } => {
                    self.services[service].tally.count_seen(arm);
                    self.open.insert(id, (service, arm));
                    continue;
                }
                Event::Response { id, response } => (id, Outcome::of_status(response.status)),
                Event::Dropped { id, reason, .. } => (id, Outcome::Dropped(reason)),
                Event::Request { .. } | Event::Closed { .. } => continue,
            };
            if let Some((service, arm)) = self.open.remove(&id) {
                self.services[service].tally.count(arm, outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests;
