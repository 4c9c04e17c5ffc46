//! What stable does of late, to say at the start how long a rollout would take.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mirror_api::Affinity;
use mirror_common::tunnel::Arm;
use mirror_rollout::Share;
use mirror_rollout::forecast::{self, Traffic};
use mirror_rollout::plan::Plan;

use super::counted::{self, Counted};
use crate::daemon::canary::room;
use crate::daemon::core::Core;
use crate::daemon::services::Service;
use crate::daemon::translating;

/// How often a sample is taken, ...
const INTERVAL: Duration = Duration::from_secs(5);

/// ... and how many are kept: a minute's.
const KEPT: usize = 13;

/// What stable had done at some moments.
#[derive(Debug, Default)]
pub(super) struct Samples(VecDeque<(Instant, Counted)>);

impl Samples {
    fn is_due(&self, now: Instant) -> bool {
        let last = self.0.back();
        last.is_none_or(|(at, _)| now.duration_since(*at) >= INTERVAL)
    }

    fn add(&mut self, now: Instant, counted: Counted) {
        self.0.push_back((now, counted));
        while self.0.len() > KEPT {
            self.0.pop_front();
        }
    }

    /// How many connections are open, and how many begin each second.
    fn connections(&self) -> Option<(u64, f64)> {
        let ((from, then), (to, now)) = (self.0.front()?, self.0.back()?);
        let begun = |counted: &Counted| counted.counters.choices.iter().sum::<u64>();
        let time = to.duration_since(*from).as_secs_f64();
        let new = begun(now).saturating_sub(begun(then)) as f64;
        Some((
            now.counters.open(),
            if time > 0.0 { new / time } else { 0.0 },
        ))
    }

    fn traffic(&self, mirrored: f64) -> Traffic {
        let (Some((from, then)), Some((to, now))) = (self.0.front(), self.0.back()) else {
            return Traffic::default();
        };
        let arm = counted::arm(now, then);
        Traffic {
            time: to.duration_since(*from),
            answers: arm.failed(),
            latencies: arm.first_body,
            mirrored,
        }
    }
}

impl Core {
    /// Remembers what stable has done, of services whose versions are measured.
    pub(in crate::daemon) fn sample_traffic(&mut self) {
        let now = self.now.at;
        let measured = self.services.iter().filter(|service| {
            let samples = self.rollouts.traffic.get(&service.config.name);
            service.config.looks().is_some() && samples.is_none_or(|samples| samples.is_due(now))
        });
        let counted = measured.filter_map(|service| {
            let version = service.config.stable_version.clone();
            let counted = self.count_arm(service, Arm::Stable, version);
            Some((service.config.name.clone(), counted.ok()?))
        });
        let counted: Vec<_> = counted.collect();
        for (name, counted) in counted {
            let samples = self.rollouts.traffic.entry(name).or_default();
            samples.add(now, counted);
        }
    }

    /// Why a canary on another host would not find ports for its clients under this plan.
    pub(super) fn ports_lack(&self, service: &str, plan: &Plan) -> Option<String> {
        let traffic = self.rollouts.traffic.get(service);
        let (open, new) = traffic.and_then(Samples::connections)?;
        let most = plan.shares().max().unwrap_or(Share::NONE);
        translating::lacking(room(&self.config), most, open, new)
    }

    /// What somebody should know who starts this plan now.
    pub(super) fn forecast(&self, service: &str, plan: &Plan) -> Vec<String> {
        let Some(samples) = self.rollouts.traffic.get(service) else {
            return Vec::new();
        };
        let config = self
            .services
            .iter()
            .find(|known| known.config.name == service);
        let sample = config.map_or(1.0, |config| config.sample);
        let mut warnings = forecast::warnings(plan, &samples.traffic(sample));
        warnings.extend(config.and_then(|config| self.clients_lack(config, plan)));
        warnings
    }

    /// Why the first stages would be held for want of clients.
    fn clients_lack(&self, service: &Service, plan: &Plan) -> Option<String> {
        let canary = service.config.canary.as_ref()?;
        let spread = self.census.found().get(&service.row).copied()?;
        let clients = Some(spread.client_keys).filter(|_| canary.affinity == Affinity::Client)?;
        forecast::few_clients(plan, clients)
    }
}
