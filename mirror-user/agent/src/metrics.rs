//! The shadow agent's metrics: name, help, labels. No other file of this crate names one.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use mirror_api::summary::{ControlSummary, LabelSummary, Latency, SliceSummary, TrafficSummary};
use mirror_base::metrics::{LATENCY_BUCKETS, advance, gauge, metrics};
use mirror_base::servers::Usage;
use mirror_common::tunnel::Arm;
use mirror_rollout::noise::Twin;
use mirror_wire::exchange::Forgotten;
use mirror_wire::message::DropReason;
use prometheus::core::Metric as _;
use prometheus::{
    CounterVec, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec,
};

use crate::capture::GaveWay;
use crate::capture::{Refusals, Stray, Tap};
use crate::compare::Verdict;
use crate::ledger::Outcome;
use crate::report::Excess;

metrics! {
    /// The shadow agent's metrics.
    pub struct Agent {
        /// Requests that were seen, by what became of them: compared, or why not.
        requests: IntCounterVec = "modelmirror_shadow_requests_total" ["service", "outcome"],
        /// Requests that were seen and have no outcome yet.
        in_flight: IntGaugeVec = "modelmirror_shadow_requests_in_flight" ["service"],
        /// Comparisons by who answered in production and by verdict; error = the shadow failed to answer.
        comparisons: IntCounterVec = "modelmirror_shadow_comparisons_total" ["service", "arm", "verdict"],
        /// Comparisons of stable's responses by the request's slice and by verdict.
        slice_comparisons: IntCounterVec = "modelmirror_shadow_slice_comparisons_total" ["service", "slice", "verdict"],
        /// Labels by what became of them: joined to both versions' predictions, or why not.
        labels: IntCounterVec = "modelmirror_shadow_labels_total" ["service", "outcome"],
        /// Requests that were to be answered twice, by whom (control: a copy of the old version; repeat: the shadow) and what became of it: compared, or why there is no second response.
        second_answers: IntCounterVec = "modelmirror_shadow_second_answers_total" ["service", "twin", "outcome"],
        /// Requests that were answered twice, by who disagreed: the twice asked version with itself, the versions with each other, both, neither.
        noise_pairs: IntCounterVec = "modelmirror_shadow_noise_pairs_total" ["service", "twin", "disagree"],
        /// How often a version disagrees with itself, 0 to 1: by the control, by the shadow that is asked twice (repeat), by production where traffic repeats requests (traffic).
        noise: GaugeVec = "modelmirror_shadow_noise_ratio" ["service", "by"],
        /// How much more often the versions disagree than the twice asked one with itself, -1 to 1; low and high are the ends of the 95 % interval.
        excess: GaugeVec = "modelmirror_shadow_excess_ratio" ["service", "twin", "end"],
        /// Requests that traffic repeated, by whether production answered them as the time before.
        repeated: IntCounterVec = "modelmirror_shadow_repeated_requests_total" ["service", "answer"],
        /// Responses that the shadow failed to give, by what happened.
        errors: IntCounterVec = "modelmirror_shadow_errors_total" ["service", "error"],
        /// Compared (of requests mirrored alone: replayed) requests as a part of those with an outcome.
        fidelity: GaugeVec = "modelmirror_shadow_fidelity_ratio" ["service"],
        /// From the last byte of a request to the first byte of its response, in seconds.
        latency: HistogramVec = "modelmirror_shadow_latency_seconds" ["service", "leg"],
        /// Requests that wait for the shadow.
        queue: IntGaugeVec = "modelmirror_shadow_queue_length" ["service"],
        /// Exchanges with the shadow going on.
        active: IntGaugeVec = "modelmirror_shadow_exchanges_active" ["service"],
        /// CPU time of the processes that serve the shadow on this host, since they were found first.
        server_cpu: CounterVec = "modelmirror_shadow_server_cpu_seconds_total" ["service", "version"],
        /// Memory in RAM of the processes that serve the shadow on this host.
        server_resident: IntGaugeVec = "modelmirror_shadow_server_resident_bytes" ["service", "version"],
        /// How many processes serve the shadow on this host.
        server_processes: IntGaugeVec = "modelmirror_shadow_server_processes" ["service", "version"],
        /// Requests sent a second time because the kept connection had been closed.
        retries: IntCounterVec = "modelmirror_shadow_retries_total" ["service"],
        /// Connections of production's that are not followed any more for want of room, by what they were.
        forgotten_connections: IntCounterVec = "modelmirror_shadow_forgotten_connections_total" ["service", "reason"],
        /// Taps that are not remembered any more, by why.
        forgotten_taps: IntCounterVec = "modelmirror_shadow_forgotten_taps_total" ["reason"],
        /// Connections that the agent refused or closed, by why.
        refused_connections: IntCounterVec = "modelmirror_shadow_refused_connections_total" ["reason"],
        /// Copies of a tap by what became of them, and other datagrams by what they were.
        tunnel_packets: IntCounterVec = "modelmirror_shadow_tunnel_packets_total" ["tap", "outcome"],
        /// Payload bytes of a tap's copies by what became of them.
        tunnel_bytes: IntCounterVec = "modelmirror_shadow_tunnel_bytes_total" ["tap", "outcome"],
        /// Copies a tap had sent before this agent's ledger began: of no other count here.
        tunnel_earlier_packets: IntCounterVec = "modelmirror_shadow_tunnel_earlier_packets_total" ["tap"],
        /// Payload bytes a tap had sent before this agent's ledger began: of no other count here.
        tunnel_earlier_bytes: IntCounterVec = "modelmirror_shadow_tunnel_earlier_bytes_total" ["tap"],
        /// Copies a tap says it sent, as far as the ledger is settled.
        tunnel_sent_packets: IntCounterVec = "modelmirror_shadow_tunnel_sent_packets_total" ["tap"],
        /// Payload bytes a tap says it sent, as far as the ledger is settled.
        tunnel_sent_bytes: IntCounterVec = "modelmirror_shadow_tunnel_sent_bytes_total" ["tap"],
        /// Datagrams of peers that are not in `allow`.
        not_allowed: IntCounter = "modelmirror_shadow_not_allowed_total",
        /// Datagrams the kernel dropped because the receive buffer was full; they show as lost.
        socket_drops: IntCounter = "modelmirror_shadow_socket_drops_total",
        /// Receive buffer that the kernel granted, in bytes.
        receive_buffer: IntGauge = "modelmirror_shadow_receive_buffer_bytes",
        /// Memory in use for everything that is buffered, in bytes.
        memory_used: IntGauge = "modelmirror_shadow_memory_used_bytes",
        /// Limit of that memory, in bytes.
        memory_limit: IntGauge = "modelmirror_shadow_memory_limit_bytes",
        /// Records by what became of them.
        records: IntCounterVec = "modelmirror_shadow_records_total" ["outcome"],
        /// 1 = recording is stopped because the disk refuses.
        recording_stopped: IntGauge = "modelmirror_shadow_recording_stopped",
    }
}

/// Which response a latency is of. Label `leg`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// Production's.
    Production,
    /// The shadow's.
    Shadow,
}

impl Leg {
    /// The value of the `leg` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Production => "production",
            Self::Shadow => "shadow",
        }
    }
}

/// The label of requests that were compared, beside [`DropReason::label`].
const COMPARED: &str = "compared";

/// What counts for one service, ready to be counted.
#[derive(Clone, Debug)]
pub struct ServiceMetrics {
    compared: IntCounter,
    drops: Vec<IntCounter>,
    verdicts: [Vec<IntCounter>; 2],
    in_flight: IntGauge,
    fidelity: Gauge,
    latency: Arc<[LazyHistogram; 2]>,
    queue: IntGauge,
    active: IntGauge,
    retries: IntCounter,
    errors: IntCounterVec,
    name: String,
}

/// One of a set, which is there from its first value on: a thousand services that do nothing would fill pages.
#[derive(Debug)]
struct LazyHistogram {
    set: HistogramVec,
    labels: [String; 2],
    made: OnceLock<Histogram>,
}

impl LazyHistogram {
    fn observe(&self, seconds: f64) {
        let labels = self.labels.each_ref().map(String::as_str);
        let make = || self.set.with_label_values(&labels);
        self.made.get_or_init(make).observe(seconds);
    }
}

/// A moment's figures of one service.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServiceFigures {
    /// Requests without an outcome.
    pub in_flight: u64,
    /// Faithful / those with an outcome; nothing before the first one.
    pub fidelity: Option<f64>,
    /// Requests that wait for the shadow.
    pub waiting: usize,
    /// Exchanges with the shadow going on.
    pub active: usize,
    /// Requests sent twice.
    pub retries: u64,
}

impl Agent {
    /// The metrics of one service, every series there from the start but histograms.
    pub fn service(&self, name: &str) -> ServiceMetrics {
        let outcome = |label| self.requests.with_label_values(&[name, label]);
        let verdicts = |arm: Arm| {
            let verdict = |verdict: &Verdict| {
                let labels = [name, arm.label(), verdict.label()];
                self.comparisons.with_label_values(&labels)
            };
            Verdict::ALL.iter().map(verdict).collect()
        };
        let latency = |leg: Leg| LazyHistogram {
            set: self.latency.clone(),
            labels: [name.to_owned(), leg.label().to_owned()],
            made: OnceLock::new(),
        };
        ServiceMetrics {
            compared: outcome(COMPARED),
            drops: DropReason::ALL
                .iter()
                .map(|reason| outcome(reason.label()))
                .collect(),
            verdicts: [Arm::Stable, Arm::Canary].map(verdicts),
            in_flight: self.in_flight.with_label_values(&[name]),
            fidelity: self.fidelity.with_label_values(&[name]),
            latency: Arc::new([Leg::Production, Leg::Shadow].map(latency)),
            queue: self.queue.with_label_values(&[name]),
            active: self.active.with_label_values(&[name]),
            retries: self.retries.with_label_values(&[name]),
            errors: self.errors.clone(),
            name: name.to_owned(),
        }
    }

    /// Shows what is known of a tap.
    pub fn tap(&self, tap: &Tap) {
        let name = &*tap.name;
        let packets = |outcome| self.tunnel_packets.with_label_values(&[name, outcome]);
        let totals = tap.totals();
        for outcome in Outcome::ALL {
            let volume = totals.of(outcome);
            advance(&packets(outcome.label()), volume.copies);
            let bytes = self
                .tunnel_bytes
                .with_label_values(&[name, outcome.label()]);
            advance(&bytes, volume.bytes);
        }
        advance(&packets("late"), totals.late);
        advance(&packets("duplicate"), totals.duplicates);
        for (counters, figure) in [
            (&self.tunnel_earlier_packets, totals.earlier.copies),
            (&self.tunnel_earlier_bytes, totals.earlier.bytes),
            (&self.tunnel_sent_packets, totals.sent.copies),
            (&self.tunnel_sent_bytes, totals.sent.bytes),
        ] {
            advance(&counters.with_label_values(&[name]), figure);
        }
    }

    /// A tap is not remembered any more.
    pub fn forget_tap(&self, name: &str) {
        let late = ["late", "duplicate"];
        let outcomes = Outcome::ALL.iter().map(|outcome| outcome.label());
        // Some may never have been shown.
        for outcome in outcomes.chain(late) {
            let _ = self.tunnel_packets.remove_label_values(&[name, outcome]);
            let _ = self.tunnel_bytes.remove_label_values(&[name, outcome]);
        }
        for counters in [
            &self.tunnel_earlier_packets,
            &self.tunnel_earlier_bytes,
            &self.tunnel_sent_packets,
            &self.tunnel_sent_bytes,
        ] {
            let _ = counters.remove_label_values(&[name]);
        }
    }

    /// Shows how many taps are not remembered any more.
    pub fn forgotten_taps(&self, counts: &[u64; GaveWay::ALL.len()]) {
        for why in GaveWay::ALL {
            let counter = self.forgotten_taps.with_label_values(&[why.label()]);
            advance(&counter, counts[why as usize]);
        }
    }

    /// Shows datagrams that are no copy of any tap.
    pub fn strays(&self, strays: &[u64; Stray::ALL.len()]) {
        for stray in Stray::ALL {
            let labels = ["none", stray.label()];
            advance(
                &self.tunnel_packets.with_label_values(&labels),
                strays[stray as usize],
            );
        }
    }

    /// Shows how many of a service's connections were given up for want of room.
    pub fn forgotten(&self, service: &str, counts: &[u64; Forgotten::ALL.len()]) {
        for why in Forgotten::ALL {
            let counter = &self.forgotten_connections;
            let counter = counter.with_label_values(&[service, why.label()]);
            advance(&counter, counts[why as usize]);
        }
    }

    /// Shows why connections were refused.
    pub fn refusals(&self, refusals: &Refusals) {
        for (refusal, count) in refusals.counts() {
            let counter = self
                .refused_connections
                .with_label_values(&[refusal.label()]);
            advance(&counter, count);
        }
    }

    /// Shows what the sockets say.
    pub fn sockets(&self, receive_buffer: usize, drops: u64, not_allowed: u64) {
        self.receive_buffer.set(gauge(receive_buffer));
        advance(&self.socket_drops, drops);
        advance(&self.not_allowed, not_allowed);
    }

    /// Shows what a service's shadow uses.
    pub(crate) fn server(&self, service: &str, version: &str, usage: &Usage) {
        let labels = [service, version];
        let cpu = self.server_cpu.with_label_values(&labels);
        cpu.inc_by((usage.cpu.as_secs_f64() - cpu.get()).max(0.0));
        let processes = self.server_processes.with_label_values(&labels);
        processes.set(gauge(usage.processes));
        if usage.processes > 0 {
            let resident = self.server_resident.with_label_values(&labels);
            resident.set(gauge(usage.resident_bytes));
        } else {
            // There may be none.
            let _ = self.server_resident.remove_label_values(&labels);
        }
    }

    /// Shows what the comparisons of a slice came to.
    pub fn slice(&self, service: &str, slice: &SliceSummary) {
        for (verdict, &count) in &slice.verdicts {
            let labels = [service, &slice.slice, verdict];
            advance(&self.slice_comparisons.with_label_values(&labels), count);
        }
    }

    /// A slice is not told apart any more.
    pub fn forget_slice(&self, service: &str, slice: &str) {
        for verdict in Verdict::ALL {
            // It may never have been shown.
            let labels = [service, slice, verdict.label()];
            let _ = self.slice_comparisons.remove_label_values(&labels);
        }
    }

    /// Shows what became of labels.
    pub fn labels(&self, service: &str, summary: &LabelSummary) {
        let labels = |outcome: &str| self.labels.with_label_values(&[service, outcome]);
        advance(&labels("joined"), summary.labelled);
        for (why, &count) in &summary.unused {
            advance(&labels(why), count);
        }
    }

    /// Shows what second answers say.
    pub fn noise(&self, service: &str, control: Option<&ControlSummary>, traffic: TrafficSummary) {
        let noise = |by: &str, part: u64, whole: u64| {
            if whole > 0 {
                let gauge = self.noise.with_label_values(&[service, by]);
                gauge.set(part as f64 / whole as f64);
            }
        };
        let repeated = |answer| self.repeated.with_label_values(&[service, answer]);
        let TrafficSummary {
            repeated: all,
            differing,
        } = traffic;
        if all > 0 {
            advance(&repeated("same"), all.saturating_sub(differing));
            advance(&repeated("different"), differing);
        }
        noise("traffic", differing, all);
        let Some(control) = control else { return };
        let twins = [
            (Twin::Control, &control.pairs, &control.missing),
            (Twin::Repeat, &control.repeat, &control.repeat_missing),
        ];
        for (twin, pairs, missing) in twins {
            let twin = twin.label();
            let outcome = |label| {
                let labels = [service, twin, label];
                self.second_answers.with_label_values(&labels)
            };
            advance(&outcome(COMPARED), pairs.count());
            for (why, count) in missing {
                advance(&outcome(why), *count);
            }
            let disagree = [
                ("both", pairs.both),
                ("itself", pairs.itself),
                ("versions", pairs.versions),
                ("neither", pairs.neither),
            ];
            for (who, count) in disagree {
                let labels = [service, twin, who];
                advance(&self.noise_pairs.with_label_values(&labels), count);
            }
            noise(twin, pairs.both + pairs.itself, pairs.count());
            if let Some(excess) = Excess::of_noise(pairs) {
                let ends = [
                    ("estimate", excess.difference),
                    ("low", excess.low),
                    ("high", excess.high),
                ];
                for (end, value) in ends {
                    let gauge = self.excess.with_label_values(&[service, twin, end]);
                    gauge.set(value);
                }
            }
        }
    }

    /// Shows the memory account.
    pub fn memory(&self, used: usize, limit: usize) {
        self.memory_used.set(gauge(used));
        self.memory_limit.set(gauge(limit));
    }

    /// Shows how recording goes.
    pub fn recording(&self, state: crate::record::State) {
        let records = |outcome| self.records.with_label_values(&[outcome]);
        advance(&records("written"), state.written);
        advance(&records("lost"), state.lost);
        advance(&records("failed"), state.failed);
        self.recording_stopped.set(i64::from(state.stopped));
    }
}

impl ServiceMetrics {
    /// A request that this arm answered has been compared.
    pub fn compared(&self, arm: Arm, verdict: Verdict) {
        self.compared.inc();
        self.verdicts[arm as usize][verdict as usize].inc();
    }

    /// A request has been dropped.
    pub fn dropped(&self, reason: DropReason) {
        self.drops[reason as usize].inc();
    }

    /// The shadow failed to answer.
    pub fn failed(&self, error: mirror_wire::message::ShadowError) {
        self.errors
            .with_label_values(&[self.name.as_str(), error.label()])
            .inc();
    }

    /// An answer took `first_byte`.
    pub fn latency(&self, leg: Leg, first_byte: Duration) {
        self.latency[leg as usize].observe(first_byte.as_secs_f64());
    }

    /// Comparisons of this arm's answers so far, by verdict.
    pub fn verdicts(&self, arm: Arm) -> impl Iterator<Item = (Verdict, u64)> {
        let counters = self.verdicts[arm as usize].iter().map(IntCounter::get);
        Verdict::ALL.iter().copied().zip(counters)
    }

    /// The distribution of the first bytes' latency.
    pub fn distribution(&self, leg: Leg) -> Latency {
        let Some(histogram) = self.latency[leg as usize].made.get() else {
            return Latency {
                count: 0,
                sum_seconds: 0.0,
                buckets: LATENCY_BUCKETS.map(|bound| (bound, 0)).to_vec(),
            };
        };
        let metric = histogram.metric();
        let histogram = metric.get_histogram();
        let buckets = histogram.get_bucket().iter();
        Latency {
            count: histogram.get_sample_count(),
            sum_seconds: histogram.get_sample_sum(),
            buckets: buckets
                .map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()))
                .collect(),
        }
    }

    /// Shows a moment's figures.
    pub fn show(&self, figures: &ServiceFigures) {
        self.in_flight.set(gauge(figures.in_flight));
        if let Some(fidelity) = figures.fidelity {
            self.fidelity.set(fidelity);
        }
        self.queue.set(gauge(figures.waiting));
        self.active.set(gauge(figures.active));
        advance(&self.retries, figures.retries);
    }
}

#[cfg(test)]
mod tests {
    use mirror_base::metrics::fixture;

    use super::*;
    use crate::capture::Refusal;
    use crate::labels::Unused;
    use crate::noise::NoData;

    #[test]
    fn histograms_come_with_their_first_value() {
        let agent = Agent::new();
        let services: Vec<_> = (0..1_000)
            .map(|number| agent.service(&format!("service-{number}")))
            .collect();
        let page = |agent: &Agent| {
            let families = agent.registry().gather();
            prometheus::TextEncoder::new()
                .encode_to_string(&families)
                .unwrap()
        };
        let idle = page(&agent);
        assert!(!idle.contains("_bucket"));
        assert!(idle.len() < 3_500_000, "{} bytes", idle.len());
        let empty = services[7].distribution(Leg::Shadow);
        services[7].latency(Leg::Shadow, Duration::from_millis(3));
        let page = page(&agent);
        let bucket = r#"modelmirror_shadow_latency_seconds_bucket{leg="shadow",service="service-7",le="0.005"} 1"#;
        assert!(page.contains(bucket), "{page}");
        let one = services[7].distribution(Leg::Shadow);
        let bounds = |latency: &Latency| latency.buckets.iter().map(|b| b.0).collect::<Vec<_>>();
        assert_eq!(bounds(&one), bounds(&empty));
        assert_eq!((empty.count, one.count), (0, 1));
    }

    #[test]
    fn indices_are_those_of_the_enums() {
        for (index, &reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason as usize, index);
        }
        for (index, &verdict) in Verdict::ALL.iter().enumerate() {
            assert_eq!(verdict as usize, index);
        }
    }

    #[test]
    fn series_are_there_before_anything_happens() {
        let agent = Agent::new();
        let service = agent.service("sentiment");
        service.dropped(DropReason::QueueFull);
        service.compared(Arm::Canary, Verdict::Different);
        service.latency(Leg::Shadow, Duration::from_millis(3));
        let text = prometheus::TextEncoder::new()
            .encode_to_string(&agent.registry().gather())
            .unwrap();
        for line in [
            "# HELP modelmirror_shadow_requests_total Requests that were seen, by what became of them: compared, or why not.",
            "modelmirror_shadow_requests_total{outcome=\"queue_full\",service=\"sentiment\"} 1",
            "modelmirror_shadow_requests_total{outcome=\"tls\",service=\"sentiment\"} 0",
            "modelmirror_shadow_requests_total{outcome=\"compared\",service=\"sentiment\"} 1",
            "modelmirror_shadow_comparisons_total{arm=\"canary\",service=\"sentiment\",verdict=\"different\"} 1",
            "modelmirror_shadow_comparisons_total{arm=\"stable\",service=\"sentiment\",verdict=\"different\"} 0",
            "modelmirror_shadow_latency_seconds_bucket{leg=\"shadow\",service=\"sentiment\",le=\"0.005\"} 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line}\nis not in\n{text}"
            );
        }
    }

    #[test]
    fn every_metric_and_every_label_value_is_documented() {
        let page = include_str!("../../../docs/reference/metrics.md");
        let source = include_str!("metrics.rs");
        let outcomes = DropReason::ALL.iter().map(|reason| reason.label());
        let unused = Unused::ALL.iter().map(|reason| reason.label());
        let refusals = Refusal::ALL.iter().map(|refusal| refusal.label());
        let missing = NoData::ALL.iter().map(|reason| reason.label());
        fixture::documented(
            page,
            source,
            outcomes.chain(unused).chain(refusals).chain(missing),
        );
        assert!(fixture::help_texts(page, source) > 30);
    }
}
