//! The gates of the stages with clients.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::resources::Resources;
use super::{Crowds, Dialling, Events, Gate, Role, Unit};
use crate::figures::percent;
use crate::plan::{Baseline, Canary, Plan};
use crate::statistics::{Counts, Latencies, QuantileRatio, Rate, ShortBodies, Sort, Verdict};
use crate::window::{Arm, Window};

/// What the canary has shown before clients so far.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Clients {
    limits: Canary,
    ends: Vec<End>,
    connections: Events,
    dialling: Dialling,
    compared: bool,
    hard: Rate,
    hard_crowds: Crowds,
    waits: Vec<Wait>,
    slow: Option<Rate>,
    resources: Resources,
    short: ShortBodies,
    /// Requests of the canary whose end was seen, ...
    requests: u64,
    /// ... and those whose was not, by why.
    unseen: BTreeMap<String, u64>,
}

/// One way in which a request can end badly: not more often than with stable.
#[derive(Clone, Debug, PartialEq)]
struct End {
    kind: Kind,
    limit: f64,
    test: Events,
    crowds: Crowds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Failed,
    ClientError,
    Redirect,
    Short,
    Aborted,
}

impl Kind {
    /// The name of its gate.
    const fn name(self) -> &'static str {
        match self {
            Self::Failed => "errors",
            Self::ClientError => "client errors",
            Self::Redirect => "redirects",
            Self::Short => "short responses",
            Self::Aborted => "aborted requests",
        }
    }

    const fn sort(self) -> Sort {
        match self {
            Self::Failed => Sort::Failed,
            Self::ClientError => Sort::ClientErrors,
            Self::Redirect => Sort::Redirects,
            Self::Short => Sort::Short,
            Self::Aborted => Sort::Aborted,
        }
    }
}

/// The ends that are limited, and by how much. Without stable beside it a version's own 4xx say nothing:
/// clients may ask for what is not there.
fn ends(limits: &Canary, compared: bool) -> Vec<(Kind, f64)> {
    let others = [
        (Kind::ClientError, limits.max_client_error_delta),
        (Kind::Redirect, limits.max_redirect_delta),
        (Kind::Short, limits.max_short_delta),
        (Kind::Aborted, limits.max_aborted_delta),
    ];
    let others = others
        .into_iter()
        .filter(|(_, limit)| compared && *limit < 1.0);
    let failed = (Kind::Failed, limits.max_error_delta);
    std::iter::once(failed).chain(others).collect()
}

/// A quantile of what clients wait for: not longer than with stable.
#[derive(Clone, Debug, PartialEq)]
struct Wait {
    name: &'static str,
    until: Until,
    test: QuantileRatio,
    crowds: Crowds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// The first byte of the response's body.
    Body,
    /// Its last byte.
    End,
}

const WAITS: [(&str, f64, Until, Sort); 4] = [
    ("p50", 0.5, Until::Body, Sort::BodyP50),
    ("p99", 0.99, Until::Body, Sort::BodyP99),
    ("complete p50", 0.5, Until::End, Sort::EndP50),
    ("complete p99", 0.99, Until::End, Sort::EndP99),
];

/// The quantiles that are limited.
fn waits(
    limits: &Canary,
    compared: bool,
) -> impl Iterator<Item = (&'static str, f64, Until, Sort)> {
    let asked = compared && limits.compares_latency();
    WAITS.into_iter().filter(move |_| asked)
}

/// How many gates can be wrong by chance.
pub(super) fn tests(limits: &Canary, compared: bool) -> usize {
    let optional = [
        limits.max_latency.is_some(),
        limits.max_cpu_ratio.is_some(),
        limits.max_memory_ratio.is_some(),
    ];
    // And connections, and hard errors.
    ends(limits, compared).len()
        + 2
        + waits(limits, compared).count()
        + optional.into_iter().filter(|is_asked| *is_asked).count()
}

impl Clients {
    pub(super) fn new(plan: &Plan, alpha: f64) -> Self {
        let limits = plan.canary.clone();
        let compared = plan.baseline == Baseline::Stable;
        let end = |(kind, limit)| End {
            kind,
            limit,
            test: Events::new(compared, limit, alpha),
            crowds: Crowds::of(kind.sort()),
        };
        let wait = |(name, quantile, until, sort)| Wait {
            name,
            until,
            test: QuantileRatio::new(quantile, limits.max_latency_ratio, alpha),
            crowds: Crowds::of(sort),
        };
        Self {
            ends: ends(&limits, compared).into_iter().map(end).collect(),
            connections: Events::new(compared, limits.hard_reset_delta, alpha),
            dialling: Dialling::new(),
            compared,
            hard: Rate::at_most(limits.hard_error_rate, alpha),
            hard_crowds: Crowds::of(Sort::Failed),
            waits: waits(&limits, compared).map(wait).collect(),
            slow: limits.max_latency.map(|_| Rate::at_most(0.01, alpha)),
            resources: Resources::new(limits.max_cpu_ratio, limits.max_memory_ratio, alpha),
            short: ShortBodies::default(),
            requests: 0,
            unseen: BTreeMap::new(),
            limits,
        }
    }

    pub(super) fn see_severe(&mut self, window: &Window, stable_fails: bool) {
        let (stable, canary) = (&window.stable, &window.canary);
        self.dialling.see(window, self.compared);
        self.connections
            .observe(stable.failed_connections(), canary.failed_connections());
        let [stable_failed, canary_failed] = [stable, canary].map(Arm::failed);
        let limit = self.limits.hard_error_rate;
        let fails_now = stable_failed.events as f64 > stable_failed.trials as f64 * limit;
        if !stable_fails && !fails_now {
            self.hard.observe(canary_failed);
            self.hard_crowds.see_alone(canary);
        }
    }

    pub(super) fn see(&mut self, stable: &Arm, canary: &Arm, now: Timestamp) {
        let short = self.short.observe(&stable.sizes, &canary.sizes);
        for end in &mut self.ends {
            end.observe(stable, canary, short);
        }
        for wait in &mut self.waits {
            let [of_stable, of_canary] = [stable, canary].map(|arm| arm.waited(wait.until));
            wait.test.observe(of_stable, of_canary);
            wait.crowds.see(stable, canary);
        }
        if let (Some(test), Some(limit)) = (&mut self.slow, self.limits.max_latency) {
            let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
            test.observe(canary.first_body.longer_than(limit));
        }
        let used =
            [stable, canary].map(|arm| (arm.all_requests(), arm.cpu_seconds, arm.resident_bytes));
        self.resources.observe(used, now);
        self.requests += canary.requests;
        for (why, count) in &canary.unseen {
            *self.unseen.entry(why.clone()).or_default() += count;
        }
    }

    /// Learns from what stable did while the canary is not judged.
    pub(super) fn see_stable(&mut self, stable: &Arm) {
        let [short, _] = self.short.observe(&stable.sizes, &Latencies::default());
        for End { kind, test, .. } in &mut self.ends {
            test.observe_stable(stable.ended(*kind, short));
        }
        for Wait { until, test, .. } in &mut self.waits {
            test.observe_stable(stable.waited(*until));
        }
    }

    pub(super) fn severe(&self) -> Option<String> {
        let hard = self.hard.finding_of(self.hard_crowds.crowd());
        if hard.verdict == Verdict::Worse {
            let ([_, events], [_, trials]) = (hard.events, hard.trials);
            let limit = self.limits.hard_error_rate;
            return Some(format!(
                "{events} of {trials} requests of the canary failed, which is proven to be more than hard_error_rate = {limit}"
            ));
        }
        let connections = self.connections.finding(self.dialling.crowd());
        (connections.verdict == Verdict::Worse).then(|| {
            let ([_, events], [_, trials]) = (connections.events, connections.trials);
            let limit = self.limits.hard_reset_delta;
            format!(
                "{events} of {trials} connections of the canary were reset by its server or not answered, which is proven to be beyond hard_reset_delta = {limit}"
            )
        })
    }

    pub(super) fn gates(&self) -> Vec<Gate> {
        let limits = &self.limits;
        let mut gates: Vec<Gate> = self.ends.iter().map(End::gate).collect();
        let ratio = format!("at most {} times stable's", limits.max_latency_ratio);
        let waits = self.waits.iter();
        gates.extend(waits.map(|wait| {
            let finding = wait.test.finding_of(wait.crowds.crowd());
            Gate::of(wait.name, Unit::Ratio, ratio.clone(), finding)
        }));
        if let Some(why) = self.blind() {
            let note = format!("cannot be seen: {why}");
            gates
                .iter_mut()
                .for_each(|gate| gate.note = Some(note.clone()));
        }
        if let (Some(test), Some(limit)) = (&self.slow, limits.max_latency) {
            let limit = humantime::format_duration(limit);
            let limit = format!("at most 1 % of responses slower than {limit}");
            gates.push(Gate::of("latency", Unit::Share, limit, test.finding()));
        }
        let limit = format!("at most {}", percent(limits.hard_error_rate));
        let hard = self.hard.finding_of(self.hard_crowds.crowd());
        let hard = Gate::of("hard errors", Unit::Share, limit, hard);
        gates.push(hard.with(Role::Severe));
        let crowd = self.dialling.crowd();
        let connections = self
            .connections
            .gate("connections", limits.hard_reset_delta, crowd);
        gates.push(connections.with(Role::Severe));
        gates.extend(self.resources.gates(""));
        gates
    }

    /// Why nothing is known of the canary's requests, though there were some.
    fn blind(&self) -> Option<String> {
        (self.requests == 0 && !self.unseen.is_empty()).then(|| in_words(&self.unseen))
    }
}

/// `12 http2, 1 tls`.
pub(crate) fn in_words(unseen: &BTreeMap<String, u64>) -> String {
    let words = unseen.iter().map(|(why, count)| format!("{count} {why}"));
    words.collect::<Vec<_>>().join(", ")
}

impl End {
    fn observe(&mut self, stable: &Arm, canary: &Arm, [stable_short, canary_short]: [Counts; 2]) {
        self.test.observe(
            stable.ended(self.kind, stable_short),
            canary.ended(self.kind, canary_short),
        );
        match &self.test {
            Events::Difference(_) => self.crowds.see(stable, canary),
            Events::Alone(_) => self.crowds.see_alone(canary),
        }
    }

    fn gate(&self) -> Gate {
        let gate = self
            .test
            .gate(self.kind.name(), self.limit, self.crowds.crowd());
        // Clients that ask for what is not there are common, and of common things equality takes long to
        // prove: only failures are waited for.
        match self.kind {
            Kind::Failed => gate,
            _ => gate.with(Role::Watch),
        }
    }
}

impl Arm {
    /// How long clients waited.
    fn waited(&self, until: Until) -> &Latencies {
        match until {
            Until::Body => &self.first_body,
            Until::End => &self.complete,
        }
    }

    /// Requests, and those that ended so. Which bodies are short, only both versions together tell.
    fn ended(&self, kind: Kind, short: Counts) -> Counts {
        let events = match kind {
            Kind::Failed => return self.failed(),
            Kind::Short => return short,
            Kind::ClientError => self.client_errors,
            Kind::Redirect => self.redirects,
            Kind::Aborted => self.aborted,
        };
        Counts {
            events,
            trials: self.requests,
        }
    }
}
