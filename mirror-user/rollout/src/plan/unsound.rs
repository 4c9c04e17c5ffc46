//! What keeps a plan from being carried out, whoever wrote it: a config, a plan file, or a caller of
//! the control API.

use std::fmt::{self, Display};
use std::time::Duration;

use super::{Baseline, Canary, Hook, HookPoint, MetricGate, Plan, Shadow, query};
use crate::Share;
use crate::figures::{percent, points};

/// A value that cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsound {
    /// The value's place in the section, as it is typed there: `canary.min_requests`, `gate.0.min`.
    pub at: String,
    /// What is wrong with it.
    pub what: String,
    /// What to write instead.
    pub cure: String,
}

impl Display for Unsound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.at, self.what, self.cure)
    }
}

/// Latencies are counted in buckets that are 3 to 6 % wide.
const FINEST_RATIO: f64 = 1.05;

impl Plan {
    /// Everything in it that cannot be carried out.
    pub fn unsound(&self) -> Vec<Unsound> {
        let mut found = Found::default();
        found.stages(&self.stages);
        let tick = Duration::from_millis(250)..=Duration::from_secs(60);
        found.unless(
            tick.contains(&self.tick),
            "tick",
            format!("{} is not from 250 ms to a minute", span(self.tick)),
            "write \"1s\"",
        );
        if let Some(shadow) = &self.shadow {
            found.unless(
                self.baseline != Baseline::None,
                "shadow",
                "with baseline = \"none\" there are no answers to compare the shadow's with",
                "take this section out, or write baseline = \"stable\"",
            );
            found.shadow(shadow);
        }
        found.canary(&self.canary);
        found.unless(
            self.gates.is_empty() || self.prometheus.is_some(),
            "gate",
            "nothing says where Prometheus is asked",
            "add `prometheus = \"http://127.0.0.1:9090\"` above the first header of the rollout",
        );
        for (index, gate) in self.gates.iter().enumerate() {
            let twin = self.gates[..index].iter().any(|g| g.name == gate.name);
            found.gate(&format!("gate.{index}"), gate, twin, &self.canary);
        }
        for (index, hook) in self.hooks.iter().enumerate() {
            found.hook(&format!("hook.{index}"), hook);
        }
        found.0
    }
}

#[derive(Default)]
struct Found(Vec<Unsound>);

impl Found {
    fn unless(&mut self, sound: bool, at: &str, what: impl Into<String>, cure: impl Into<String>) {
        if !sound {
            self.0.push(Unsound {
                at: at.to_owned(),
                what: what.into(),
                cure: cure.into(),
            });
        }
    }

    fn stages(&mut self, stages: &[Share]) {
        let example = "write rising shares that end with 1.0, such as [0.01, 0.05, 0.25, 0.5, 1.0]";
        for (index, stage) in stages.iter().enumerate() {
            let at = format!("stages.{index}");
            let rises = index == 0 || stages[index - 1] < *stage;
            let what = format!("{stage} does not lie above the stage before it");
            self.unless(rises, &at, what, example);
            self.unless(*stage > Share::NONE, &at, "0 is no share", example);
        }
        match stages.last() {
            None => self.unless(false, "stages", "there is no stage", example),
            Some(last) => {
                let what = format!("the last stage is {last}, which promotes nobody");
                let at = format!("stages.{}", stages.len() - 1);
                self.unless(*last == Share::ALL, &at, what, "end the list with 1.0");
            }
        }
    }

    fn shadow(&mut self, plan: &Shadow) {
        self.at_least_one("shadow.min_compared", plan.min_compared);
        let at = "shadow.agreement";
        let cure = "write a share below 1, such as 0.99";
        let what = format!("an agreement of {} can never be proven", plan.agreement);
        self.unless(plan.agreement < 1.0, at, what, cure);
        let asked = plan.compares_answers() && plan.agreement < 1.0;
        if let Some(excess) = plan.max_excess.filter(|_| asked) {
            self.delta("shadow.max_excess", excess);
        }
        self.latency_ratio("shadow.max_latency_ratio", plan.max_latency_ratio);
        self.delta("shadow.max_error_delta", plan.max_error_delta);
        if let Some(drop) = plan.max_accuracy_drop {
            self.delta("shadow.max_accuracy_drop", drop);
        }
        self.cost("shadow.max_cpu_ratio", plan.max_cpu_ratio);
        self.cost("shadow.max_memory_ratio", plan.max_memory_ratio);
        self.some_time("shadow.max_duration", plan.max_duration);
    }

    fn canary(&mut self, plan: &Canary) {
        self.some_time("canary.max_duration", plan.max_duration);
        let longest = span(plan.max_duration);
        let what = format!("a stage would end after {longest}, before it may");
        let cure = format!(
            "write a `max_duration` of more than {} (`min_duration`)",
            span(plan.min_duration)
        );
        let enough = plan.max_duration >= plan.min_duration;
        self.unless(enough, "canary.max_duration", what, cure);
        self.at_least_one("canary.min_requests", plan.min_requests);
        self.delta("canary.max_error_delta", plan.max_error_delta);
        self.latency_ratio("canary.max_latency_ratio", plan.max_latency_ratio);
        if let Some(longest) = plan.max_latency {
            self.some_time("canary.max_latency", longest);
        }
        let what = format!("{} is more than half", plan.holdback);
        let cure = "write what stable keeps until the canary has proven itself, such as 0.05, or 0";
        let little = plan.holdback <= Share::of_parts(5_000);
        self.unless(little, "canary.holdback", what, cure);
        self.severe("canary.hard_error_rate", plan.hard_error_rate);
        let what = format!(
            "failing {} of the time is severe, and {} more than stable is allowed",
            percent(plan.hard_error_rate),
            points(plan.max_error_delta)
        );
        let cure = "write a `hard_error_rate` above `max_error_delta`, such as 0.5";
        let apart = plan.hard_error_rate > plan.max_error_delta || plan.hard_error_rate <= 0.0;
        self.unless(apart, "canary.hard_error_rate", what, cure);
        self.severe("canary.hard_reset_delta", plan.hard_reset_delta);
        let share = (0.0..=1.0).contains(&plan.proven_from);
        let what = format!("{} is not a share", plan.proven_from);
        self.unless(share, "canary.proven_from", what, "write 0.25");
        let what = format!("{} is not from 0.5 to 0.99999", plan.confidence);
        let cure = "write 0.99: an equal version is then taken back in less than 1 of 100 rollouts";
        let confidence = (0.5..=0.999_99).contains(&plan.confidence);
        self.unless(confidence, "canary.confidence", what, cure);
        self.cost("canary.max_cpu_ratio", plan.max_cpu_ratio);
        self.cost("canary.max_memory_ratio", plan.max_memory_ratio);
    }

    fn at_least_one(&mut self, at: &str, least: u64) {
        self.unless(least >= 1, at, "0 decides without any", "write 1 or more");
    }

    fn some_time(&mut self, at: &str, time: Duration) {
        self.unless(!time.is_zero(), at, "0s is no time", "write \"1h\"");
    }

    /// A difference that is allowed: between equals only one above 0 can be proven.
    fn delta(&mut self, at: &str, most: f64) {
        let what = format!("{most} is not between 0 and 1");
        let cure =
            "write a number such as 0.005: that not even a trace is worse can never be proven";
        self.unless(most > 0.0 && most < 1.0, at, what, cure);
    }

    fn severe(&mut self, at: &str, most: f64) {
        let what = format!("{most} is not a share above 0");
        self.unless(
            most > 0.0 && most <= 1.0,
            at,
            what,
            "write a number such as 0.5",
        );
    }

    fn latency_ratio(&mut self, at: &str, most: f64) {
        let what = format!(
            "{most} is less than {FINEST_RATIO}, and latencies are counted in buckets of 3 to 6 %"
        );
        let told_apart = most.is_finite() && (most >= FINEST_RATIO || most == 0.0);
        self.unless(
            told_apart,
            at,
            what,
            "write a ratio such as 1.2 for 20 % more, or 0 to compare no latencies",
        );
    }

    fn cost(&mut self, at: &str, most: Option<f64>) {
        let most = most.unwrap_or(1.0);
        let what = format!("{most} is not a ratio");
        let sound = most.is_finite() && most > 0.0;
        self.unless(
            sound,
            at,
            what,
            "write a ratio such as 1.5 for half as much again",
        );
    }

    fn gate(&mut self, at: &str, gate: &MetricGate, twin: bool, canary: &Canary) {
        let below = |key: &str| format!("{at}.{key}");
        let name = format!("gate {} stands here a second time", gate.name);
        let cure = "give every gate a name of its own";
        self.unless(!twin, &below("name"), name, cure);
        self.gate_limits(at, gate);
        self.unless(
            gate.max_delta.is_none() || query::by_version(&gate.query),
            &below("query"),
            "`max_delta` asks once for each version, and this asks the same both times",
            "select the version's series by `$arm` or `$version`, such as {version=\"$version\"}",
        );
        if let Some(name) = query::foreign(&gate.query) {
            let what = format!("${name} is not filled in");
            let cure = "use `$arm` (stable, canary), `$version` and `$service`, and write ranges out: [5m]";
            self.unless(false, &below("query"), what, cure);
        }
        let what = "no sample is younger than 0s";
        let cure = "write \"2m\"";
        self.unless(!gate.staleness.is_zero(), &below("staleness"), what, cure);
        let longest = span(canary.max_duration);
        let what = format!("no stage is longer than {longest} (`max_duration`)");
        let cure = "write a shorter time";
        self.unless(
            gate.hold_for <= canary.max_duration,
            &below("for"),
            what,
            cure,
        );
    }

    fn gate_limits(&mut self, at: &str, gate: &MetricGate) {
        let below = |key: &str| format!("{at}.{key}");
        let MetricGate {
            min,
            max,
            max_delta,
            ..
        } = gate;
        let limits = [("min", min), ("max", max), ("max_delta", max_delta)];
        for (key, limit) in limits {
            let limit = limit.unwrap_or_default();
            let what = format!("{limit} is no limit");
            self.unless(limit.is_finite(), &below(key), what, "write a number");
        }
        let absolute = min.is_some() || max.is_some();
        self.unless(
            absolute || max_delta.is_some(),
            at,
            format!("gate {} has no limit", gate.name),
            "add `min`, `max` or both, or `max_delta` against stable",
        );
        self.unless(
            !absolute || max_delta.is_none(),
            &below("max_delta"),
            "a gate holds a value against `min` and `max`, or against stable's, not both",
            "write a gate for each",
        );
        if let (Some(min), Some(max)) = (min, max) {
            let what = format!("no value lies between {min} and {max}");
            self.unless(min <= max, &below("min"), what, "write a `min` below `max`");
        }
    }

    fn hook(&mut self, at: &str, hook: &Hook) {
        let below = |key: &str| format!("{at}.{key}");
        let waits = matches!(hook.on, HookPoint::Before | HookPoint::Stage);
        let what = "nothing waits for an approval after it was done";
        let cure = "approve with on = \"before\" or on = \"stage\"";
        self.unless(waits || !hook.approve, &below("approve"), what, cure);
        let time = below("timeout");
        self.unless(
            !hook.timeout.is_zero(),
            &time,
            "0s is no time",
            "write \"5s\"",
        );
    }
}

fn span(time: Duration) -> impl Display {
    humantime::format_duration(time)
}
