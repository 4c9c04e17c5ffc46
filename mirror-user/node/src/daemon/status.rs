//! How things are, for `status`, the metrics and /readyz.

use std::sync::Arc;
use std::time::Instant;

use mirror_api::{
    Agent, CanaryState, Interface, MirrorState, Mirrored, PacketCount, RingState, RunTimes, Sample,
    Status, XdpHook,
};
use mirror_common::ABI_VERSION;
use mirror_common::tunnel::Direction;
use mirror_common::verdict::Reason;

use super::agents::Connection;
use super::attachments::Attachment;
use super::core::Core;
use super::snapshot::Snapshot;
use super::{arms, concentration};
use crate::config::ServiceAddress;
use crate::control::{Refusal, Reply};
use crate::dataplane;

use super::services::counters;

/// Before anything is known.
pub(super) fn empty() -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        abi: ABI_VERSION,
        uptime_seconds: 0.0,
        off: false,
        warnings: Vec::new(),
        interfaces: Vec::new(),
        agents: Vec::new(),
        services: Vec::new(),
        run_time: RunTimes::default(),
    }
}

impl Core {
    pub(super) fn status(&mut self, service: Option<String>) -> Result<Reply, Refusal> {
        self.publish();
        let now = Arc::clone(&self.published.borrow());
        let mut status = now.status.clone();
        let services = status.services.iter_mut().zip(&now.rows);
        for ((service, &row), tally) in services.zip(&now.looks) {
            let of = (row, tally.as_deref());
            if let Some(canary) = &mut service.canary
                && let Err(error) = arms::fill(&now, of, &service.name, &service.version, canary)
            {
                status.warnings.push(error.to_string());
            }
        }
        if let Some(name) = service {
            let known: Vec<String> = status
                .services
                .iter()
                .map(|service| service.name.clone())
                .collect();
            if !known.contains(&name) {
                return Err(Refusal::UnknownService { name, known });
            }
            status.services.retain(|service| service.name == name);
        }
        Ok(Reply::Status(Box::new(status)))
    }

    /// Writes down how things are.
    pub(super) fn publish(&mut self) {
        let now = self.now.at;
        let mut status = empty();
        status.uptime_seconds = now.duration_since(self.started).as_secs_f64();
        status.off = self.settings.holds().is_off();
        status
            .warnings
            .extend(self.settings.trouble().map(ToString::to_string));
        status.warnings.extend(self.settings.unkept());
        let troubles = [&self.refused_config, &self.blind, &self.unwritten];
        status.warnings.extend(self.local_reader.trouble().cloned());
        status
            .warnings
            .extend(troubles.into_iter().flatten().cloned());
        status.warnings.extend(self.lro.warnings());
        status.warnings.extend(self.rollouts.warnings());
        for stranger in self.settings.holds().strangers(&self.config) {
            status.warnings.push(format!(
                "something is set for {stranger}, which the config does not know"
            ));
        }
        status.interfaces = self
            .config
            .interfaces
            .iter()
            .map(|name| self.interface(name))
            .collect();
        status.agents = self
            .agents
            .values()
            .map(|agent| describe(agent, now))
            .collect();
        let spreads = self.census.found();
        let translations = self.janitor.figures();
        let (mut rows, mut looks) = (Vec::new(), Vec::new());
        for service in &self.services {
            match self.describe_service(service) {
                Ok(mut described) => {
                    if let Some(canary) = &mut described.canary
                        && canary.by.is_none()
                        && canary.error.is_none()
                    {
                        let withdrawn = self.arrivals.withdrawn(&described.name).cloned();
                        let obstacle = || self.obstacle_here(&described.name).ok().flatten();
                        canary.error = withdrawn.or_else(obstacle);
                    }
                    if let Some(canary) = &mut described.canary
                        && let Some(spread) = spreads.get(&service.row)
                    {
                        canary.concentration = Some(*spread);
                        let share = canary.share.effective;
                        let said = concentration::warning(spread, canary.affinity, share);
                        let said = said.map(|said| format!("{}: {said}", described.name));
                        status.warnings.extend(said);
                    }
                    if let Some(canary) = &mut described.canary
                        && canary.by.is_some()
                    {
                        let found = translations.by_canary.get(&canary.address);
                        let found = found.copied().unwrap_or_else(|| mirror_api::Translations {
                            limit: super::canary::room(&self.config).limit(),
                            ..mirror_api::Translations::default()
                        });
                        let said = found.warning(&described.name);
                        canary.translations = Some(found);
                        status.warnings.extend(said);
                    }
                    let missing = service.directions.warning(&described.name);
                    status.warnings.extend(missing);
                    status.services.push(described);
                    rows.push(service.row);
                    looks.push(self.local_reader.tally(service.config.id));
                }
                Err(error) => status.warnings.push(error.to_string()),
            }
        }
        if let Ok(mut run_time) = self.kernel.counts().run_time(dataplane::Hook::Ingress) {
            if let Ok(egress) = self.kernel.counts().run_time(dataplane::Hook::Egress) {
                run_time += &egress;
            }
            status.run_time = RunTimes::from(&run_time);
        }
        let mut agents = self.agents.values();
        let unknown = agents.find(|agent| agent.is_geneve() && !agent.is_known(now));
        let agents = self.agents.values();
        let snapshot = Snapshot {
            counts: Arc::clone(self.kernel.counts()),
            status,
            rows,
            numbers: agents.clone().map(|agent| agent.number).collect(),
            milestones: self.milestones.clone(),
            servers: Arc::clone(&self.servers),
            sender: Arc::clone(&self.sender),
            rings: agents.map(|agent| agent.ring.clone()).collect(),
            unknown: unknown.map(|agent| agent.access.address.to_string()),
            looks,
            look_ring: self.local_reader.ring(),
            local_reader: self.local_reader.figures(),
        };
        self.published.send_replace(Arc::new(snapshot));
    }

    fn interface(&self, name: &str) -> Interface {
        let mut attachment = self.attachments.get(name).cloned().unwrap_or_default();
        let excluded = self.attachments.why_excluded(name);
        if let Some(why) = excluded {
            // Whatever else is attached there: no client's packet is seen.
            (attachment.to, attachment.error) = (None, Some(why.clone()));
        }
        let attached = attachment.to.is_some();
        Interface {
            name: name.to_owned(),
            xdp: attachment.xdp(),
            ifindex: attachment.to.map(|(interface, _)| interface.index),
            xdp_error: attachment.xdp_error,
            hook: attached.then_some(self.mechanism),
            attached,
            error: attachment.error,
            left_out: excluded.is_some(),
            before: attachment.before,
        }
    }

    /// Where packets of a service's canary are taken at XDP, and why not, if they should be.
    fn xdp(
        &self,
        service: &super::services::Service,
        canary: &CanaryState,
    ) -> (Option<XdpHook>, Option<String>) {
        let (Some(by), Some(wanted)) = (&canary.by, service.config.canary.as_ref()) else {
            return (None, None);
        };
        if wanted.xdp.is_some() && service.config.mirrors_canary() {
            let why = "its connections are copied, and copies are made at tc";
            return (None, Some(why.to_owned()));
        }
        if wanted.xdp.is_none() {
            return (None, None);
        }
        let why = self.attachments.why_not_early();
        let there = self.attachments.get(by).and_then(Attachment::xdp);
        (there.filter(|_| why.is_none()), why)
    }

    fn describe_service(
        &self,
        service: &super::services::Service,
    ) -> Result<mirror_api::Service, dataplane::Error> {
        let wanted = service.wanted(self.settings.holds());
        let mut described = mirror_api::Service {
            name: service.config.name.clone(),
            id: service.config.id,
            addresses: service.config.addresses.iter().map(address).collect(),
            version: service.config.stable_version.clone(),
            mirror: service.config.mirror.as_ref().map(|mirror| MirrorState {
                on: wanted.on,
                from: wanted.from,
                agent: mirror.agent.clone(),
                insecure: mirror.insecure,
                sample: Sample {
                    configured: mirror.sample,
                    set: wanted.sample_set,
                    effective: service.sample.min(wanted.sample),
                },
                budget_bytes_per_second: service.budget(&self.agents),
                bytes_per_second: service.bytes_per_second,
            }),
            rollout: self.rollouts.state(&service.config.name),
            look: self.describe_look(&service.config),
            canary: service.config.canary.as_ref().and_then(|canary| {
                let addresses = &service.config.addresses;
                let view = self.view.as_deref();
                let place = view.map(|view| self.place(canary, addresses, view));
                let answers = self.health.of(canary.address);
                let by_rollout = self.rollouts.share(&service.config.name).is_some();
                let share = (self.share(service), by_rollout);
                let overrides = self.settings.holds();
                let mut described = arms::describe(service, overrides, share, place, answers)?;
                (described.xdp, described.xdp_error) = self.xdp(service, &described);
                Some(described)
            }),
            missing: service
                .directions
                .missing()
                .map(|(direction, _)| direction.label().to_owned()),
            connections: 0,
            over_budget_connections: 0,
            packets: Vec::new(),
            mirrored: Vec::new(),
        };
        for direction in [Direction::Request, Direction::Response] {
            let counters = counters(&**self.kernel.counts(), service.row, direction)?;
            described.connections += counters.connections;
            described.over_budget_connections += counters.over_budget_connections;
            for (reason, packets) in Reason::ALL.iter().zip(counters.packets) {
                if packets > 0 {
                    described.packets.push(PacketCount {
                        direction: direction.label().to_owned(),
                        reason: reason.label().to_owned(),
                        packets,
                    });
                }
            }
            described.mirrored.push(Mirrored {
                direction: direction.label().to_owned(),
                packets: counters.packets[Reason::Mirrored as usize],
                bytes: counters.mirrored_bytes,
            });
        }
        Ok(described)
    }
}

fn describe(agent: &super::agents::Agent, now: Instant) -> Agent {
    let way = agent.way.as_ref();
    let is_geneve = agent.is_geneve();
    let (attached, name) = (
        agent.attached || !is_geneve,
        match &agent.connection {
            Connection::Up { name, .. } => Some(name.clone()),
            Connection::Down { .. } => None,
        },
    );
    let no_way = way.err().filter(|_| is_geneve);
    Agent {
        address: agent.access.address.clone(),
        peer: agent.peer,
        transport: agent.access.transport,
        insecure: agent.access.key.is_none(),
        known_as: name,
        alive: agent.alive(now) && attached,
        connections: agent.connections,
        other_keys: agent.other_keys,
        ring: agent.ring.as_ref().map(|ring| RingState {
            size_bytes: ring.capacity(),
            held_bytes: ring.held(),
            fullness: ring.fullness(),
        }),
        last_echo_seconds: agent.silence(now).map(|silence| silence.as_secs_f64()),
        round_trip_seconds: agent.round_trip.map(|round_trip| round_trip.as_secs_f64()),
        uplink: way.ok().map(|way| way.link.name.clone()),
        mtu: way.ok().map(|way| way.mtu).filter(|_| is_geneve),
        paused: agent
            .paused(now)
            .then(|| "the uplink dropped packets".to_owned()),
        error: agent
            .trouble()
            .or_else(|| no_way.map(ToString::to_string))
            .or_else(|| (!attached).then(|| "nothing is attached to its uplink".to_owned())),
    }
}

fn address(address: &ServiceAddress) -> String {
    match address.ip {
        Some(ip) => std::net::SocketAddr::new(ip, address.port).to_string(),
        None => format!("*:{}", address.port),
    }
}
