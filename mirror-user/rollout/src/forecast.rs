//! Whether the traffic there is can decide a plan in time.

use std::time::Duration;

use super::gates::{FEW, alpha};
use super::plan::{Baseline, Plan};
use super::statistics::{
    Counts, Latencies, PairedQuantileRatio, QuantileRatio, Rate, RateDifference,
};

/// Of fewer requests nothing is foretold.
const FEWEST: u64 = 50;

/// What stable does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// For how long it was looked at.
    pub time: Duration,
    /// Its answers, and those of them that failed.
    pub answers: Counts,
    /// How long they took.
    pub latencies: Latencies,
    /// The part of connections that is mirrored.
    pub mirrored: f64,
}

/// What somebody should know who starts this plan; nothing where there is time enough, or nothing is
/// known of the traffic.
pub fn warnings(plan: &Plan, traffic: &Traffic) -> Vec<String> {
    if traffic.answers.trials < FEWEST {
        let seconds = traffic.time.as_secs();
        if seconds == 0 {
            return Vec::new();
        }
        return vec![format!(
            "stable has answered {} requests in {seconds} s: how long the rollout takes cannot be said, and without traffic it holds",
            traffic.answers.trials
        )];
    }
    let per_second = traffic.answers.trials as f64 / traffic.time.as_secs_f64();
    let mut warnings = Vec::new();
    if let Some(shadow) = &plan.shadow {
        let (name, needed) = of_shadow(plan, traffic);
        let time = needed.map(|needed| needed as f64 / (per_second * traffic.mirrored.max(1e-9)));
        let at = format!("shadow: {name}");
        warnings.extend(warning(&at, needed, time, shadow.max_duration));
    }
    // Evidence is carried from stage to stage.
    let mut earlier = 0.0;
    for (stage, share) in (1..).zip(plan.shares()) {
        let share = f64::from(share);
        let of_canary = per_second * share;
        let (name, needed) = of_stage(plan, traffic, share, earlier as u64);
        let time = needed.map(|needed| needed as f64 / of_canary);
        let at = format!("stage {stage} ({} %): {name}", share * 100.0);
        let limit = plan.canary.max_duration;
        warnings.extend(warning(&at, needed, time, limit));
        let lasts = time.unwrap_or_default();
        earlier += of_canary * lasts.max(plan.canary.min_duration.as_secs_f64());
    }
    warnings
}

/// The same of clients that keep their version, of which there are so many, each counted by its part of the requests.
pub fn few_clients(plan: &Plan, clients: f64) -> Option<String> {
    let first = plan.shares().next().map(f64::from)?;
    let least = (FEW / clients.max(FEW) * 100.0).ceil();
    let served = clients * first;
    (served < FEW).then(|| {
        format!(
            "stage 1 ({} %): about {served:.1} of {clients:.1} clients (counted by their parts of the requests) would meet the canary, and fewer than {FEW} hold the rollout: set affinity = \"connection\" in [service.canary], or begin with {least} %",
            first * 100.0
        )
    })
}

fn warning(at: &str, needed: Option<u64>, seconds: Option<f64>, limit: Duration) -> Option<String> {
    let cure = "widen that limit, raise max_duration, or wait for more traffic";
    let (Some(needed), Some(seconds)) = (needed, seconds) else {
        return Some(format!(
            "{at} cannot be proven of a version that does as well as stable does now: {cure}"
        ));
    };
    (seconds > limit.as_secs_f64()).then(|| {
        let time = Duration::from_secs(seconds.min(1e9) as u64);
        let [time, limit] = [time, limit].map(humantime::format_duration);
        format!("{at} needs about {needed} requests, which take {time} with the traffic there is, and max_duration is {limit}: {cure}")
    })
}

/// What takes longest, and how many comparisons that is.
fn of_shadow(plan: &Plan, traffic: &Traffic) -> (&'static str, Option<u64>) {
    let Some(limits) = &plan.shadow else {
        return ("", Some(0));
    };
    let mut needs = vec![("min_compared", Some(limits.min_compared))];
    if plan.baseline == Baseline::Stable {
        let alpha = alpha(plan);
        if limits.compares_answers() {
            let agreement = Rate::at_least(limits.agreement, alpha);
            needs.push(("agreement", agreement.needed_for_within(1.0)));
        }
        if limits.compares_latency() {
            let p99 = PairedQuantileRatio::new(0.99, limits.max_latency_ratio, alpha);
            needs.push(("p99", p99.needed_for_within(&traffic.latencies)));
        }
    }
    longest(needs)
}

/// The same of a stage, in requests of the canary; so many have been evidence before.
fn of_stage(
    plan: &Plan,
    traffic: &Traffic,
    share: f64,
    earlier: u64,
) -> (&'static str, Option<u64>) {
    let limits = &plan.canary;
    let mut needs = Vec::new();
    if share >= limits.proven_from && share < 1.0 {
        let alpha = alpha(plan);
        let of_stable = (1.0 - share) / share;
        let rate = traffic.answers.events as f64 / traffic.answers.trials as f64;
        if plan.baseline == Baseline::Stable {
            let errors = RateDifference::new(limits.max_error_delta, alpha);
            needs.push(("errors", errors.needed_for_within(rate, of_stable)));
            let latencies = [("p50", 0.5), ("p99", 0.99)];
            for (name, quantile) in latencies.into_iter().filter(|_| limits.compares_latency()) {
                let test = QuantileRatio::new(quantile, limits.max_latency_ratio, alpha);
                needs.push((name, test.needed_for_within(&traffic.latencies, of_stable)));
            }
        } else {
            let errors = Rate::at_most(limits.max_error_delta, alpha);
            needs.push(("errors", errors.needed_for_within(0.0)));
        }
    }
    for (_, needed) in &mut needs {
        *needed = needed.map(|needed| needed.saturating_sub(earlier));
    }
    needs.push(("min_requests", Some(limits.min_requests)));
    longest(needs)
}

/// What can never be proven takes longest.
fn longest(needs: Vec<(&'static str, Option<u64>)>) -> (&'static str, Option<u64>) {
    let rank = |needed: &Option<u64>| needed.unwrap_or(u64::MAX);
    let longest = needs.into_iter().max_by_key(|(_, needed)| rank(needed));
    longest.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(per_second: u64, errors: u64) -> Traffic {
        Traffic {
            time: Duration::from_secs(60),
            answers: Counts {
                events: errors,
                trials: per_second * 60,
            },
            latencies: vec![(160, 80), (165, 15), (170, 5)].into(),
            mirrored: 1.0,
        }
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Plan), traffic: &Traffic, words: &[&str]) {
        let mut plan = Plan::default();
        change(&mut plan);
        let said = warnings(&plan, traffic);
        assert_eq!(said.len(), words.len(), "{said:#?}");
        for (said, words) in said.iter().zip(words) {
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn too_few_clients_for_the_first_stage_are_told() {
        let plan = Plan::default();
        let said = few_clients(&plan, 40.0).unwrap();
        let expected = "stage 1 (1 %): about 0.4 of 40.0 clients";
        assert!(
            said.starts_with(expected) && said.ends_with("begin with 13 %"),
            "{said}"
        );
        assert_eq!(few_clients(&plan, 500.0), None);
    }

    #[test]
    fn who_has_too_little_traffic_is_told() {
        check(|_| {}, &traffic(1_000, 0), &[]);
        check(|_| {}, &Traffic::default(), &[]);
        check(|_| {}, &traffic(0, 0), &["answered 0 requests in 60 s"]);
        let slow = traffic(1, 0);
        let expected = [
            "stage 1 (1 %): min_requests needs about 500 requests, which take 13h",
            "stage 2 (5 %): min_requests needs about 500 requests",
        ];
        check(|plan| plan.stages.truncate(2), &slow, &expected);
        let narrow = |plan: &mut Plan| plan.canary.max_error_delta = 0.0;
        let expected = ["cannot be proven of a version that does as well as stable"; 3];
        check(narrow, &traffic(1_000, 600), &expected);
    }
}
