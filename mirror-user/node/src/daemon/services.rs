//! One service as the daemon sees it: how much of it is copied, and how much should be.

use std::collections::BTreeMap;
use std::time::Instant;

use mirror_api::AgentAddress;
use mirror_api::tap_report::{LaneSent, Mirrored, ServiceReport, TapReport};
use mirror_common::counters::Counters;
use mirror_common::policy::Tap;
use mirror_common::tunnel::{Direction, OVERHEAD_IPV6};
use mirror_common::verdict::Reason;

use super::agents::Agent;
use super::budget::{Load, next_limit};
use super::directions::BothWays;
use super::rules::Rule;
use crate::config::{self, Directions};
use crate::dataplane::{self, Counts};
use crate::state::{Effective, Overrides};

/// What an uplink whose speed is unknown is taken to carry of copies, in bytes per second.
pub(crate) const UNKNOWN_SPEED_BUDGET: u64 = 100_000_000;

/// One service.
#[derive(Debug)]
pub(super) struct Service {
    /// What the config says.
    pub(super) config: config::Service,
    /// Row of its counters.
    pub(super) row: u32,
    /// The share that is copied.
    pub(super) sample: f64,
    /// The largest share that the budget allows.
    limit: f64,
    /// Bytes copied per second, headers included, of late.
    pub(super) bytes_per_second: f64,
    /// Whether requests and responses are seen.
    pub(super) directions: BothWays,
    last: Option<(Instant, Counters)>,
}

impl Service {
    /// A service that has not been measured.
    pub(super) fn new(config: config::Service, row: u32) -> Self {
        let sample = config.mirror.as_ref().map_or(0.0, |mirror| mirror.sample);
        Self {
            config,
            row,
            sample,
            limit: 1.0,
            bytes_per_second: 0.0,
            directions: BothWays::default(),
            last: None,
        }
    }

    /// The same service with another config.
    pub(super) fn with(mut self, config: config::Service) -> Self {
        self.config = config;
        self
    }

    /// Where its copies go.
    pub(super) fn agent(&self) -> Option<&AgentAddress> {
        self.config.mirror.as_ref().map(|mirror| &mirror.agent)
    }

    /// What file and command line want, together.
    pub(super) fn wanted(&self, overrides: &Overrides) -> Effective {
        let sample = self
            .config
            .mirror
            .as_ref()
            .map_or(0.0, |mirror| mirror.sample);
        overrides.effective(&self.config.name, sample)
    }

    /// Its limit in bytes per second: the config's, or a tenth of the uplink's speed.
    pub(super) fn budget(&self, agents: &BTreeMap<AgentAddress, Agent>) -> Option<u64> {
        let mirror = self.config.mirror.as_ref()?;
        if mirror.max_bytes_per_second.is_some() {
            return mirror.max_bytes_per_second;
        }
        let way = agents.get(&mirror.agent)?.way.as_ref().ok()?;
        Some(way.speed.map_or(UNKNOWN_SPEED_BUDGET, |speed| speed / 10))
    }

    /// Looks at what was copied since the last time, and sets the share for the next second.
    pub(super) fn measure(
        &mut self,
        counts: &dyn Counts,
        now: Instant,
        wanted: f64,
        budget: Option<u64>,
    ) -> Result<(), dataplane::Error> {
        let mut counters = counters(counts, self.row, Direction::Request)?;
        let responses = self::counters(counts, self.row, Direction::Response)?;
        let was_missing = self.directions.missing().is_some();
        self.directions.see([&counters, &responses]);
        if let Some(warning) = self.directions.warning(&self.config.name)
            && !was_missing
        {
            tracing::warn!("{warning}");
        }
        counters += &responses;
        let Some((then, last)) = self.last.replace((now, counters)) else {
            self.sample = wanted;
            return Ok(());
        };
        let seconds = now.duration_since(then).as_secs_f64().max(0.001);
        let bytes = |counters: &Counters| {
            counters.mirrored_bytes
                + counters.packets[Reason::Mirrored as usize] * u64::from(OVERHEAD_IPV6)
        };
        self.bytes_per_second = bytes(&counters).saturating_sub(bytes(&last)) as f64 / seconds;
        let budget = budget.filter(|&budget| budget > 0);
        let load = budget.map(|budget| Load {
            used: self.bytes_per_second / budget as f64,
            shut_out: counters
                .over_budget_connections
                .saturating_sub(last.over_budget_connections),
        });
        let next = next_limit(self.limit, wanted, load);
        if next < self.limit && next < wanted {
            let (service, bytes_per_second) = (&self.config.name, self.bytes_per_second);
            tracing::warn!(
                service,
                bytes_per_second,
                sample = next,
                "over the mirror budget: sampling less"
            );
        }
        self.limit = next;
        self.sample = next.min(wanted);
        Ok(())
    }

    /// What the programs should do with it.
    pub(super) fn rule(
        &self,
        overrides: &Overrides,
        agents: &BTreeMap<AgentAddress, Agent>,
        budget: Option<u64>,
        look: [f64; 2],
        held: u32,
    ) -> Rule<'_> {
        let wanted = self.wanted(overrides);
        let directions = self.config.mirror.as_ref().map(|mirror| mirror.directions);
        let agent = self.agent().and_then(|agent| agents.get(agent));
        let number = agent.map(|agent| agent.number);
        Rule {
            addresses: &self.config.addresses,
            row: self.row,
            id: self.config.id,
            agent: number.unwrap_or(0),
            mirror: directions.filter(|_| wanted.on && number.is_some()),
            arms: self
                .config
                .mirror
                .as_ref()
                .map_or(&[], |mirror| &mirror.arms),
            sample: self.sample.min(wanted.sample),
            budget,
            look,
            held,
        }
    }
}

/// Counters of a service in one direction.
pub(super) fn counters(
    counts: &dyn Counts,
    row: u32,
    direction: Direction,
) -> Result<Counters, dataplane::Error> {
    counts.packets(row * 2 + direction as u32)
}

/// What one agent is told: the report with this number, at this time of the monotonic clock.
pub(super) fn report<'a>(
    counts: &dyn Counts,
    tap: &Tap,
    (number, sent_at_ns): (u64, u64),
    agent: &Agent,
    services: impl Iterator<Item = &'a Service>,
) -> Result<TapReport, dataplane::Error> {
    let sent = agent.sent(counts)?;
    let mirrored = |row, direction| {
        counters(counts, row, direction).map(|counters| Mirrored {
            packets: counters.packets[Reason::Mirrored as usize],
            bytes: counters.mirrored_bytes,
        })
    };
    let mut reports = Vec::new();
    for service in services {
        reports.push(ServiceReport {
            id: service.config.id,
            name: service.config.name.clone(),
            stable_version: service.config.stable_version.clone(),
            canary_version: service
                .config
                .canary
                .as_ref()
                .map(|canary| canary.version.clone()),
            mirror: true,
            requests_only: service
                .config
                .mirror
                .as_ref()
                .is_some_and(|mirror| mirror.directions == Directions::Requests),
            sample: service.sample,
            requests: mirrored(service.row, Direction::Request)?,
            responses: mirrored(service.row, Direction::Response)?,
        });
    }
    Ok(TapReport {
        boot: agent.life(tap.boot),
        number,
        sent_at_ns,
        lanes: LaneSent::of(&sent),
        services: reports,
    })
}
