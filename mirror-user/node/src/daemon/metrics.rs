//! The inference node's metrics. They are read from the maps at every scrape, so that they are as
//! true as the kernel's own counters.

mod canary;
mod look;
mod rollout;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mirror_common::counters::Counters;
use mirror_common::histogram::RunTime;
use mirror_common::tunnel::{Arm, Direction};
use mirror_common::verdict::Reason;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

use tokio::sync::watch;

use crate::daemon::{Figures, Snapshot};
use crate::dataplane::Hook;

/// Declares each family once: its name, type and help.
macro_rules! families {
    ($($(#[doc = $doc:literal])+ $family:ident = $kind:ident $name:literal,)+) => {
        $(const $family: Family = Family { name: $name, help: concat!($($doc),+), kind: MetricType::$kind };)+
        const ALL: &[Family] = &[$($family,)+];
    };
}

/// Name, help and type of a metric.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
}

families! {
    /// Packets seen, by what became of them; service "none" for packets of no service.
    PACKETS = COUNTER "modelmirror_packets_total",
    /// Packets copied to the shadow agent.
    MIRRORED_PACKETS = COUNTER "modelmirror_mirrored_packets_total",
    /// TCP payload bytes of the copied packets.
    MIRRORED_BYTES = COUNTER "modelmirror_mirrored_bytes_total",
    /// Connections opened by clients (SYN packets).
    CONNECTIONS = COUNTER "modelmirror_connections_total",
    /// New connections of services with a canary, by why they came to a version.
    STEERED = COUNTER "modelmirror_steered_connections_total",
    /// Connections of services with a canary that have not ended.
    OPEN = GAUGE "modelmirror_connections_open",
    /// Connections whose first SYN a version did not answer.
    UNANSWERED = COUNTER "modelmirror_connections_unanswered_total",
    /// Connections of the canary's that were answered by somebody else.
    STRAYED = COUNTER "modelmirror_strayed_connections_total",
    /// Packets of each version's connections.
    ARM_PACKETS = COUNTER "modelmirror_arm_packets_total",
    /// TCP payload bytes of each version's connections.
    ARM_BYTES = COUNTER "modelmirror_arm_bytes_total",
    /// Packets that brought bytes once more.
    RETRANSMISSIONS = COUNTER "modelmirror_retransmissions_total",
    /// Connections that a reset ended, by the side that sent it.
    RESETS = COUNTER "modelmirror_resets_total",
    /// Whole responses by the class of their HTTP/1 status, of the sample of connections that is read.
    RESPONSES = COUNTER "modelmirror_responses_total",
    /// From the last byte of a request to the first of its response's header, of the sample.
    FIRST_BYTE = HISTOGRAM "modelmirror_first_byte_seconds",
    /// From the last byte of a request to the first of its response's body, of the sample.
    FIRST_BODY = HISTOGRAM "modelmirror_first_body_byte_seconds",
    /// From the last byte of a request to the last of its response, of the sample.
    COMPLETE = HISTOGRAM "modelmirror_response_complete_seconds",
    /// From a SYN to its acknowledgement, seen in the kernel.
    HANDSHAKE = HISTOGRAM "modelmirror_handshake_seconds",
    /// Share of new connections that the canary gets.
    CANARY_SHARE = GAUGE "modelmirror_canary_share",
    /// Whether a canary on another host answers (1) when it is dialled.
    CANARY_UP = GAUGE "modelmirror_canary_up",
    /// Packets to or from a canary on another host that could not be translated, and went nowhere.
    UNTRANSLATED = COUNTER "modelmirror_untranslated_packets_total",
    /// Packets to or from a canary on another host that were taken at XDP.
    XDP_PACKETS = COUNTER "modelmirror_xdp_packets_total",
    /// Connections that are translated, by how far they have come.
    TRANSLATIONS = GAUGE "modelmirror_translations",
    /// How many connections of a canary on another host there can be.
    TRANSLATIONS_LIMIT = GAUGE "modelmirror_translations_limit",
    /// How much of the room for them is taken.
    TRANSLATIONS_USED = GAUGE "modelmirror_translations_used_ratio",
    /// Translated connections that nobody had ended, and that were forgotten after hours of silence.
    TRANSLATIONS_EVICTED = COUNTER "modelmirror_translations_evicted_total",
    /// Resets of connections that nobody remembers, of no version, by the side that sent them.
    STRAY_RESETS = COUNTER "modelmirror_stray_resets_total",
    /// The canary's part of what both versions did since the share last changed or the daemon began.
    ACHIEVED = GAUGE "modelmirror_canary_achieved_ratio",
    /// The busiest client address's part of the bytes of requests, of late.
    CONCENTRATION = GAUGE "modelmirror_client_concentration_ratio",
    /// Affinity keys that there are to share out, weighted by how busy they are, of late.
    AFFINITY_KEYS = GAUGE "modelmirror_affinity_keys",
    /// 1 = the service's last rollout is there.
    ROLLOUT_STATE = GAUGE "modelmirror_rollout_state",
    /// Since when the rollout is where it is, in seconds.
    ROLLOUT_SECONDS = GAUGE "modelmirror_rollout_state_seconds",
    /// The stage with clients that the rollout is at, from 1.
    ROLLOUT_STAGE = GAUGE "modelmirror_rollout_stage",
    /// 1 = the rollout does not go on for this reason.
    ROLLOUT_WAITING = GAUGE "modelmirror_rollout_waiting",
    /// What a gate says: 1 = within its limit, -1 = beyond it, 0 = not yet known.
    ROLLOUT_GATE = GAUGE "modelmirror_rollout_gate_verdict",
    /// How much of the evidence for a verdict is there, on a logarithmic scale: 1 = it is proven.
    ROLLOUT_EVIDENCE = GAUGE "modelmirror_rollout_gate_evidence_ratio",
    /// CPU time of the processes that serve a version on this host, since they were found first.
    SERVER_CPU = COUNTER "modelmirror_server_cpu_seconds_total",
    /// Memory in RAM of the processes that serve a version on this host.
    SERVER_RESIDENT = GAUGE "modelmirror_server_resident_bytes",
    /// How many processes serve a version on this host.
    SERVER_PROCESSES = GAUGE "modelmirror_server_processes",
    /// Connections that hit the mirror budget and are not copied until they close.
    OVER_BUDGET = COUNTER "modelmirror_over_budget_connections_total",
    /// Whether the service is being mirrored (1) or switched off (0).
    ENABLED = GAUGE "modelmirror_mirror_enabled",
    /// Share of connections that is copied: as configured, and after what the budget took away.
    SAMPLE = GAUGE "modelmirror_mirror_sample_ratio",
    /// Mirror budget in bytes per second, headers included.
    BUDGET = GAUGE "modelmirror_mirror_budget_bytes",
    /// Requests that ended, of the sample of connections that is read, by what their client got.
    LOOKED = COUNTER "modelmirror_requests_total",
    /// Requests of the sample of which the first byte was seen.
    LOOKED_BEGUN = COUNTER "modelmirror_requests_begun_total",
    /// Share of connections whose requests are read as evidence, after what the budget took away.
    LOOK_SAMPLE = GAUGE "modelmirror_evidence_sample_ratio",
    /// Copies of evidence that found its ring full, and were not read.
    LOOK_REFUSED = COUNTER "modelmirror_evidence_refused_copies_total",
    /// CPU time of the thread that reads evidence.
    LOOK_CPU = COUNTER "modelmirror_evidence_cpu_seconds_total",
    /// Times that the thread that reads evidence woke.
    LOOK_WAKEUPS = COUNTER "modelmirror_evidence_wakeups_total",
    /// Copies handed to the uplink, or put into the ring, for an agent, by CPU.
    SENT_PACKETS = COUNTER "modelmirror_tunnel_sent_packets_total",
    /// TCP payload bytes of these copies, by CPU.
    SENT_BYTES = COUNTER "modelmirror_tunnel_sent_bytes_total",
    /// Bytes of the rings that all CPUs together have for an agent.
    RING_SIZE = GAUGE "modelmirror_ring_size_bytes",
    /// Bytes in the rings that the agent has not acknowledged.
    RING_HELD = GAUGE "modelmirror_ring_held_bytes",
    /// How full the fullest CPU's ring is.
    RING_FULLNESS = GAUGE "modelmirror_ring_fullness_ratio",
    /// Bytes of the rings that were sent to the agent, those that were sent again included.
    SHIPPED = COUNTER "modelmirror_sender_shipped_bytes_total",
    /// CPU time of the thread that ships copies.
    SENDER_CPU = COUNTER "modelmirror_sender_cpu_seconds_total",
    /// Times that the thread that ships copies woke.
    SENDER_WAKEUPS = COUNTER "modelmirror_sender_wakeups_total",
    /// Connections to the agent that it welcomed.
    AGENT_CONNECTIONS = COUNTER "modelmirror_agent_connections_total",
    /// Attempts at which the agent showed another key than the config trusts; nothing was sent.
    AGENT_OTHER_KEYS = COUNTER "modelmirror_agent_other_keys_total",
    /// Whether the agent is connected and answers reports (1).
    AGENT_UP = GAUGE "modelmirror_agent_up",
    /// Time from a report to its echo.
    ROUND_TRIP = GAUGE "modelmirror_agent_round_trip_seconds",
    /// Whether copying yields because the uplink drops packets (1).
    PAUSED = GAUGE "modelmirror_mirror_paused",
    /// Whether our programs are attached to the interface (1).
    ATTACHED = GAUGE "modelmirror_interface_attached",
    /// Programs of others that run before ours on an interface: what they keep for themselves is not seen.
    BEFORE = GAUGE "modelmirror_foreign_programs_before",
    /// 1 while no packet of this direction is seen of a service, though the other one is.
    MISSING = GAUGE "modelmirror_direction_missing",
    /// Time that our programs add to a packet; one run in 1,024 is timed.
    RUN_SECONDS = HISTOGRAM "modelmirror_program_run_seconds",
    /// Always 1; its labels tell the version.
    BUILD = GAUGE "modelmirror_build_info",
}

/// Collects them.
pub(crate) struct Node {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    descriptions: Vec<Desc>,
}

impl Node {
    /// Over what the daemon's loop keeps up to date.
    pub(crate) fn new(snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        let describe = |family: &Family| {
            Desc::new(
                family.name.to_owned(),
                family.help.trim().to_owned(),
                Vec::new(),
                HashMap::new(),
            )
            .ok()
        };
        Self {
            snapshots,
            descriptions: ALL.iter().filter_map(describe).collect(),
        }
    }
}

impl Collector for Node {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let now = Arc::clone(&self.snapshots.borrow());
        let mut scrape = Scrape::default();
        scrape.foreign(&now);
        scrape.services(&now);
        scrape.agents(&now);
        scrape.sender(&now.sender);
        scrape.look(&now);
        for interface in &now.status.interfaces {
            scrape.gauge(
                &ATTACHED,
                &[("interface", &interface.name)],
                f64::from(interface.attached),
            );
            scrape.gauge(
                &BEFORE,
                &[("interface", &interface.name)],
                interface.before.len() as f64,
            );
        }
        for hook in [Hook::Ingress, Hook::Egress] {
            if let Ok(run_time) = now.counts.run_time(hook) {
                scrape.run_time(hook, &run_time);
            }
        }
        scrape.gauge(&BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        scrape.families()
    }
}

/// What one scrape has brought together.
#[derive(Default)]
struct Scrape(HashMap<&'static str, Vec<Metric>>);

impl Scrape {
    fn add(&mut self, family: &Family, labels: &[(&str, &str)], fill: impl FnOnce(&mut Metric)) {
        let mut metric = Metric::default();
        let pairs = labels.iter().map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        metric.set_label(pairs.collect());
        fill(&mut metric);
        self.0.entry(family.name).or_default().push(metric);
    }

    fn counter(&mut self, family: &Family, labels: &[(&str, &str)], value: u64) {
        self.seconds(family, labels, value as f64);
    }

    /// A counter of seconds.
    fn seconds(&mut self, family: &Family, labels: &[(&str, &str)], value: f64) {
        let mut counter = Counter::default();
        counter.set_value(value);
        self.add(family, labels, |metric| metric.set_counter(counter));
    }

    fn gauge(&mut self, family: &Family, labels: &[(&str, &str)], value: f64) {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        self.add(family, labels, |metric| metric.set_gauge(gauge));
    }

    fn packets(&mut self, service: &str, direction: &str, counters: &Counters) {
        for (reason, &packets) in Reason::ALL.iter().zip(&counters.packets) {
            if packets > 0 {
                let labels = [
                    ("service", service),
                    ("direction", direction),
                    ("reason", reason.label()),
                ];
                self.counter(&PACKETS, &labels, packets);
            }
        }
    }

    fn foreign(&mut self, now: &Snapshot) {
        if let Ok(counters) = now.counts.packets(0) {
            self.packets("none", "none", &counters);
        }
    }

    fn services(&mut self, now: &Snapshot) {
        let services = now.status.services.iter().zip(&now.rows);
        for ((service, &row), tally) in services.zip(&now.looks) {
            let name = service.name.as_str();
            let mut connections = 0;
            let mut over_budget = 0;
            for direction in [Direction::Request, Direction::Response] {
                let Ok(counters) = now.counts.packets(row * 2 + direction as u32) else {
                    continue;
                };
                self.packets(name, direction.label(), &counters);
                let labels = [("service", name), ("direction", direction.label())];
                let is_missing = service.missing.as_deref() == Some(direction.label());
                self.gauge(&MISSING, &labels, f64::from(is_missing));
                self.counter(
                    &MIRRORED_PACKETS,
                    &labels,
                    counters.packets[Reason::Mirrored as usize],
                );
                self.counter(&MIRRORED_BYTES, &labels, counters.mirrored_bytes);
                connections += counters.connections;
                over_budget += counters.over_budget_connections;
                if service.canary.is_some() {
                    let by = ["client", "server"][direction as usize];
                    let labels = [("service", name), ("by", by)];
                    self.counter(&STRAY_RESETS, &labels, counters.stray_resets);
                }
            }
            if let Some(canary) = &service.canary {
                let of = (row, tally.as_deref());
                self.canary(now, name, &service.version, of, canary);
            } else {
                let labels = [
                    ("service", name),
                    ("arm", Arm::Stable.label()),
                    ("version", &service.version),
                ];
                self.counter(&CONNECTIONS, &labels, connections);
            }
            if let Some(rollout) = &service.rollout {
                self.rollout(name, rollout);
            }
            self.counter(&OVER_BUDGET, &[("service", name)], over_budget);
            let Some(mirror) = &service.mirror else {
                continue;
            };
            self.gauge(&ENABLED, &[("service", name)], f64::from(mirror.on));
            let wanted = mirror.sample.set.unwrap_or(mirror.sample.configured);
            self.gauge(&SAMPLE, &[("service", name), ("of", "wanted")], wanted);
            self.gauge(
                &SAMPLE,
                &[("service", name), ("of", "effective")],
                mirror.sample.effective,
            );
            if let Some(budget) = mirror.budget_bytes_per_second {
                self.gauge(&BUDGET, &[("service", name)], budget as f64);
            }
        }
    }

    fn agents(&mut self, now: &Snapshot) {
        let agents = now.status.agents.iter().zip(&now.numbers);
        for ((agent, &number), ring) in agents.zip(&now.rings) {
            let address = agent.address.to_string();
            let labels = [("agent", address.as_str())];
            self.gauge(&AGENT_UP, &labels, f64::from(agent.alive));
            self.gauge(&PAUSED, &labels, f64::from(agent.paused.is_some()));
            if let Some(seconds) = agent.round_trip_seconds {
                self.gauge(&ROUND_TRIP, &labels, seconds);
            }
            self.counter(&AGENT_CONNECTIONS, &labels, agent.connections);
            self.counter(&AGENT_OTHER_KEYS, &labels, agent.other_keys);
            if let Some(ring) = &agent.ring {
                self.gauge(&RING_SIZE, &labels, ring.size_bytes as f64);
                self.gauge(&RING_HELD, &labels, ring.held_bytes as f64);
                self.gauge(&RING_FULLNESS, &labels, ring.fullness);
            }
            if let Some(shipped) = now.sender.shipped.get(number as usize) {
                self.counter(&SHIPPED, &labels, shipped.load(Ordering::Relaxed));
            }
            let cpus = match ring {
                Some(ring) => ring.sent_by_cpu(),
                None => now.counts.sent(number).unwrap_or_default(),
            };
            for (cpu, sent) in cpus.iter().enumerate() {
                let cpu = cpu.to_string();
                let labels = [("agent", address.as_str()), ("cpu", cpu.as_str())];
                self.counter(&SENT_PACKETS, &labels, sent.copies);
                self.counter(&SENT_BYTES, &labels, sent.bytes);
            }
        }
    }

    fn sender(&mut self, figures: &Figures) {
        let cpu_seconds = figures.cpu_ns.load(Ordering::Relaxed) as f64 / 1e9;
        self.seconds(&SENDER_CPU, &[], cpu_seconds);
        self.counter(
            &SENDER_WAKEUPS,
            &[],
            figures.wakeups.load(Ordering::Relaxed),
        );
    }

    fn run_time(&mut self, hook: Hook, run_time: &RunTime) {
        // The kernel's buckets are four to the octave: one to the octave is enough here.
        let bounds = (3..run_time.buckets.len() - 1).step_by(4);
        let labels = [("hook", hook.label())];
        let bounds = bounds.map(|index| (index, RunTime::upper_bound_ns(index)));
        self.histogram(
            &RUN_SECONDS,
            &labels,
            &run_time.buckets,
            run_time.sum_ns,
            bounds,
        );
    }

    /// `bounds` names the kernel's buckets after which one of ours ends, and where, in nanoseconds.
    fn histogram(
        &mut self,
        family: &Family,
        labels: &[(&str, &str)],
        counts: &[u64],
        sum_ns: u64,
        bounds: impl Iterator<Item = (usize, u64)>,
    ) {
        let mut histogram = Histogram::default();
        let (mut below, mut from) = (0, 0);
        let buckets = bounds.map(|(index, bound_ns)| {
            below += counts[from..=index].iter().sum::<u64>();
            from = index + 1;
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound_ns as f64 / 1e9);
            bucket.set_cumulative_count(below);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        histogram.set_sample_sum(sum_ns as f64 / 1e9);
        self.add(family, labels, |metric| metric.set_histogram(histogram));
    }

    /// In the order of their declaration; families without values are left out.
    fn families(mut self) -> Vec<MetricFamily> {
        let mut families = Vec::new();
        for declared in ALL {
            let Some(metrics) = self.0.remove(declared.name) else {
                continue;
            };
            let mut family = MetricFamily::default();
            family.set_name(declared.name.to_owned());
            family.set_help(declared.help.trim().to_owned());
            family.set_field_type(declared.kind);
            family.set_metric(metrics);
            families.push(family);
        }
        families
    }
}

#[cfg(test)]
mod tests {
    use mirror_base::metrics::fixture;
    use mirror_common::steer::Choice;

    use super::*;

    #[test]
    fn every_metric_and_every_label_value_is_documented() {
        let page = include_str!("../../../../docs/reference/metrics.md");
        let source = include_str!("metrics.rs");
        let reasons = Reason::ALL.iter().map(|reason| reason.label());
        let choices = Choice::ALL.iter().map(|choice| choice.label());
        fixture::documented(page, source, reasons.chain(choices));
        assert!(fixture::help_texts(page, source) > 50);
    }
}
