//! From what the kernel and the agent have counted so far to what happened since the last look.
//! Pure.

use std::collections::BTreeMap;

use mirror_api::ServerUse;
use mirror_api::summary::{
    ControlSummary, ErrorPairs, LabelSummary, NoisePairs, RightPairs, ServiceSummary,
    TrafficSummary,
};
use mirror_common::measure::{ArmCounters, ByClient};
use mirror_common::steer::Choice;
use mirror_common::tunnel;
use mirror_rollout::plan::Baseline;
use mirror_rollout::statistics::{CLUSTERS, Clusters, Counts, Latencies, Pairs, Sort};
use mirror_rollout::window::{Arm, Control, Shadow, Slice};

use crate::daemon::local_reader::{Looked, Outcome, Wait};

/// What one version has done so far.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    pub(super) counters: ArmCounters,
    pub(super) by_client: ByClient,
    pub(super) looked: Looked,
    /// The share of its connections that is read now.
    pub(super) sample: f64,
    pub(super) server: Option<ServerUse>,
}

/// What it did since.
pub(super) fn arm(now: &Counted, then: &Counted) -> Arm {
    let since =
        |of: &dyn Fn(&ArmCounters) -> u64| of(&now.counters).saturating_sub(of(&then.counters));
    let looked = |of: &dyn Fn(&Looked) -> u64| of(&now.looked).saturating_sub(of(&then.looked));
    let outcome = |outcome| looked(&|looked| looked.outcome(outcome));
    let waited = |wait| {
        let all = Latencies::between(then.looked.wait(wait), now.looked.wait(wait));
        let given_up = Latencies::between(then.looked.given_up(wait), now.looked.given_up(wait));
        all.given_up(&given_up, looked(&|looked| looked.never(wait)))
    };
    let clusters =
        |by: usize| Clusters::between(&then.looked.clusters[by], &now.looked.clusters[by]);
    let unseen = Outcome::all().filter(|outcome| matches!(outcome, Outcome::Unseen(_)));
    let unseen = unseen.map(|reason| (reason.label().to_owned(), outcome(reason)));
    Arm {
        connections: since(&|counters| counters.choices.iter().sum()),
        turned_away: turned_away(&now.counters, &then.counters),
        unanswered_connections: since(&|counters| counters.unanswered),
        delivered: since(&|counters| counters.delivered),
        strayed: since(&|counters| counters.strayed),
        resets: since(&|counters| counters.resets[1]),
        request_bytes: since(&|counters| counters.bytes[0]),
        response_bytes: since(&|counters| counters.bytes[1]),
        sample: f64::midpoint(now.sample, then.sample),
        requests: looked(&Looked::requests),
        responses: looked(&Looked::responses),
        redirects: outcome(Outcome::Whole(3)),
        client_errors: outcome(Outcome::Whole(4)),
        errors: outcome(Outcome::Whole(5)),
        incomplete: outcome(Outcome::Incomplete),
        unanswered: outcome(Outcome::Unanswered),
        unreadable: outcome(Outcome::Unreadable),
        says_error: outcome(Outcome::SaysError),
        aborted: outcome(Outcome::AbortedByClient),
        unseen: unseen.filter(|(_, count)| *count > 0).collect(),
        sizes: Latencies::between(&then.looked.sizes, &now.looked.sizes),
        first_body: waited(Wait::Body),
        complete: waited(Wait::End),
        clients: clusters(0),
        by_connection: clusters(1),
        connections_by_client: connections(&then.by_client, &now.by_client),
        cpu_seconds: now
            .server
            .zip(then.server)
            .map(|(now, then)| (now.cpu_seconds - then.cpu_seconds).max(0.0)),
        resident_bytes: now.server.map(|server| server.resident_bytes),
    }
}

/// Connections, and those that failed, by their clients.
fn connections(then: &ByClient, now: &ByClient) -> Clusters {
    let since =
        |of: fn(&ByClient) -> &[u64; CLUSTERS], at: usize| of(now)[at].saturating_sub(of(then)[at]);
    let row = |at: usize| {
        let failed = since(|counted| &counted.failed, at);
        let mut row = [0; Sort::COUNT];
        row[Sort::Failed as usize] = failed;
        // One that fails may have been opened in an earlier window.
        row[Sort::Requests as usize] = since(|counted| &counted.connections, at).max(failed);
        (at as u8, row)
    };
    (0..CLUSTERS).map(row).collect()
}

/// Connections that were the canary's and went to stable, by why.
fn turned_away(now: &ArmCounters, then: &ArmCounters) -> BTreeMap<String, u64> {
    let turned =
        |choice: &&Choice| choice.arm() == tunnel::Arm::Stable && **choice != Choice::Stable;
    let since = |choice: &Choice| {
        let [now, then] = [now, then].map(|counters| counters.choices[*choice as usize]);
        (choice.label().to_owned(), now.saturating_sub(then))
    };
    let turned = Choice::ALL.iter().filter(turned).map(since);
    turned.filter(|(_, count)| *count > 0).collect()
}

/// What the agent compared since.
pub(super) fn shadow(now: &ServiceSummary, then: &ServiceSummary, baseline: &Baseline) -> Shadow {
    let since = |now: u64, then: u64| now.saturating_sub(then);
    let [new, old] = [now, then].map(|said| Verdicts::of(&said.verdicts));
    let all = new.since(old);
    let failures = |pairs: &ErrorPairs| {
        [
            pairs.both,
            pairs.production_only,
            pairs.shadow_only,
            pairs.neither,
        ]
    };
    let before: BTreeMap<(u16, u16), u64> = then
        .latency_pairs
        .iter()
        .map(|&(production, shadow, count)| ((production, shadow), count))
        .collect();
    let latencies = now
        .latency_pairs
        .iter()
        .filter_map(|&(production, shadow, count)| {
            let counted = before
                .get(&(production, shadow))
                .copied()
                .unwrap_or_default();
            let count = since(count, counted);
            (count > 0).then_some((production, shadow, count))
        });
    let slices = now.slices.iter().filter_map(|slice| {
        let before = then.slices.iter().find(|then| then.slice == slice.slice);
        let counted = before.map_or_else(Verdicts::default, |then| Verdicts::of(&then.verdicts));
        let new = Verdicts::of(&slice.verdicts).since(counted);
        let slice_since = Slice {
            compared: new.compared,
            matching: new.matching,
            control: difference(
                noise(slice.control),
                before.map_or([0; 4], |then| noise(then.control)),
            ),
        };
        (new.compared > 0).then(|| (slice.slice.clone(), slice_since))
    });
    let labels = now.labels.as_ref().map(|labels| {
        let before = then.labels.as_ref();
        let counted = before.map_or([0; 4], |labels| wrong(labels, baseline));
        difference(wrong(labels, baseline), counted)
    });
    Shadow {
        compared: all.compared,
        matching: all.matching,
        both_failed: all.both_failed,
        failures: difference(failures(&now.pairs), failures(&then.pairs)),
        latencies: latencies.collect(),
        saturated: since(now.saturated, then.saturated),
        control: now.control.as_ref().map(|now| {
            let then = then.control.clone().unwrap_or_default();
            control(now, &then)
        }),
        traffic: traffic(now.traffic, then.traffic),
        slices: slices.collect(),
        wrong: labels.filter(|pairs| *pairs != Pairs::default()),
        cpu_seconds: now
            .server
            .zip(then.server)
            .map(|(now, then)| (now.cpu_seconds - then.cpu_seconds).max(0.0)),
        resident_bytes: now.server.map(|server| server.resident_bytes),
        answered: since(now.answered, then.answered),
    }
}

/// What was answered twice since.
fn control(now: &ControlSummary, then: &ControlSummary) -> Control {
    let missing = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
        let since = now.iter().map(|(why, count)| {
            let counted = then.get(why).copied().unwrap_or_default();
            (why.clone(), count.saturating_sub(counted))
        });
        since.filter(|(_, count)| *count > 0).collect()
    };
    let repeat = || difference(noise(now.repeat), noise(then.repeat));
    Control {
        pairs: difference(noise(now.pairs), noise(then.pairs)),
        missing: missing(&now.missing, &then.missing),
        repeat: now.repeats.then(repeat),
        repeat_missing: missing(&now.repeat_missing, &then.repeat_missing),
    }
}

fn noise(pairs: NoisePairs) -> [u64; 4] {
    [pairs.both, pairs.itself, pairs.versions, pairs.neither]
}

/// What traffic has repeated since.
pub(super) fn traffic(now: TrafficSummary, then: TrafficSummary) -> Counts {
    Counts {
        events: now.differing.saturating_sub(then.differing),
        trials: now.repeated.saturating_sub(then.repeated),
    }
}

/// What comparisons came to.
#[derive(Clone, Copy, Default)]
struct Verdicts {
    /// One of them served at least.
    compared: u64,
    matching: u64,
    both_failed: u64,
}

impl Verdicts {
    fn of(verdicts: &BTreeMap<String, u64>) -> Self {
        let count = |verdict: &str| verdicts.get(verdict).copied().unwrap_or_default();
        let both_failed = count("both_failed");
        Self {
            compared: verdicts.values().sum::<u64>() - both_failed,
            matching: count("match"),
            both_failed,
        }
    }

    fn since(self, then: Self) -> Self {
        Self {
            compared: self.compared.saturating_sub(then.compared),
            matching: self.matching.saturating_sub(then.matching),
            both_failed: self.both_failed.saturating_sub(then.both_failed),
        }
    }
}

/// Who was wrong: both, the one that is held against, the shadow, neither.
fn wrong(labels: &LabelSummary, baseline: &Baseline) -> [u64; 4] {
    let Baseline::Constant(answer) = baseline else {
        let pairs = &labels.pairs;
        return [
            pairs.neither,
            pairs.shadow_only,
            pairs.production_only,
            pairs.both_right,
        ];
    };
    let mut sums = [0; 4];
    for (label, pairs) in &labels.by_label {
        let RightPairs {
            both_right,
            production_only,
            shadow_only,
            neither,
        } = *pairs;
        let [right, wrong] = [both_right + shadow_only, production_only + neither];
        // The constant answer is right for this label, or for none of its requests.
        let [both, baseline_only, shadow_only, none] = if label.trim() == answer.trim() {
            [0, 0, wrong, right]
        } else {
            [wrong, right, 0, 0]
        };
        let parts = [both, baseline_only, shadow_only, none];
        sums.iter_mut()
            .zip(parts)
            .for_each(|(sum, part)| *sum += part);
    }
    sums
}

fn difference(now: [u64; 4], then: [u64; 4]) -> Pairs {
    let mut since = [0; 4];
    for ((since, now), then) in since.iter_mut().zip(now).zip(then) {
        *since = now.saturating_sub(then);
    }
    let [both, production_only, shadow_only, neither] = since;
    Pairs {
        both,
        production_only,
        shadow_only,
        neither,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(both: u64, production_only: u64, shadow_only: u64, neither: u64) -> Pairs {
        Pairs {
            both,
            production_only,
            shadow_only,
            neither,
        }
    }

    #[test]
    fn an_arm_did_what_was_counted_since() {
        let mut then = Counted {
            counters: ArmCounters::default(),
            by_client: ByClient::default(),
            looked: Looked::default(),
            sample: 1.0,
            server: None,
        };
        for (outcome, count) in Outcome::all().zip(100..) {
            then.looked.set(outcome, count);
        }
        let mut now = then.clone();
        for (outcome, (count, more)) in Outcome::all().zip((100..).zip(1..)) {
            now.looked.set(outcome, count + more);
        }
        now.counters.choices[Choice::Canary as usize] = 6;
        (now.counters.resets, now.counters.bytes) = ([5, 2], [900, 1]);
        (now.counters.unanswered, now.sample) = (3, 0.5);
        (now.by_client.connections[5], now.by_client.failed[5]) = (6, 2);
        now.by_client.failed[63] = 1;
        now.looked.wait_mut(Wait::Body).count_in(1_000_000);
        let arm = arm(&now, &then);
        assert_eq!((arm.connections, arm.unanswered_connections), (6, 3));
        assert_eq!((arm.requests, arm.responses), (66, 21));
        assert_eq!((arm.redirects, arm.client_errors, arm.errors), (3, 4, 5));
        let failed = [arm.incomplete, arm.unanswered, arm.unreadable];
        assert_eq!((failed, arm.says_error, arm.aborted), ([7, 8, 9], 10, 11));
        assert_eq!((arm.unseen["mid_stream"], arm.unseen["tls"]), (12, 22));
        assert_eq!(
            (arm.resets, arm.request_bytes, arm.response_bytes),
            (2, 900, 1)
        );
        assert_eq!((arm.first_body.count(), arm.complete.count()), (1, 0));
        assert_eq!(arm.sample, 0.75);
        let row = |connections, failed| {
            let mut row = [0; Sort::COUNT];
            row[Sort::Requests as usize] = connections;
            row[Sort::Failed as usize] = failed;
            row
        };
        let by_client = [(5, row(6, 2)), (63, row(1, 1))].into_iter().collect();
        assert_eq!(arm.connections_by_client, by_client);
        assert_eq!(super::arm(&then, &then), Arm::default());
        now.counters.choices[Choice::NoCanary as usize] = 2;
        now.counters.choices[Choice::NoAnswer as usize] = 1;
        now.counters.choices[Choice::Stable as usize] = 9;
        let turned = super::arm(&now, &then).turned_away;
        let expected = [("no_listener", 2), ("no_answer", 1)];
        assert_eq!(
            turned,
            expected.map(|(why, count)| (why.to_owned(), count)).into()
        );
    }

    #[test]
    fn a_shadow_was_compared_as_the_agent_said_since() {
        let verdicts = |matching, different| {
            let verdicts = [("match", matching), ("different", different)];
            verdicts
                .map(|(name, count)| (name.to_owned(), count))
                .into()
        };
        let said = |factor: u64| ServiceSummary {
            verdicts: verdicts(10 * factor, factor),
            pairs: ErrorPairs {
                shadow_only: factor,
                neither: 10 * factor,
                ..ErrorPairs::default()
            },
            latency_pairs: vec![(100, 101, 2 * factor)],
            control: Some(ControlSummary {
                pairs: NoisePairs {
                    itself: 3 * factor,
                    versions: 4 * factor,
                    ..NoisePairs::default()
                },
                missing: [("timeout".to_owned(), factor)].into(),
                ..ControlSummary::default()
            }),
            traffic: TrafficSummary {
                repeated: 5 * factor,
                differing: factor,
            },
            ..ServiceSummary::default()
        };
        let seen = shadow(&said(3), &said(1), &Baseline::Stable);
        assert_eq!((seen.compared, seen.matching), (22, 20));
        assert_eq!(seen.failures, pairs(0, 0, 2, 20));
        assert_eq!(seen.latencies, [(100, 101, 4)]);
        let control = seen.control.unwrap();
        assert_eq!(control.pairs, pairs(0, 6, 8, 0));
        assert_eq!(control.missing, [("timeout".to_owned(), 2)].into());
        assert_eq!((control.repeat, seen.traffic.trials), (None, 10));
        assert_eq!(seen.traffic.events, 2);
        let idle = shadow(&said(3), &said(3), &Baseline::Stable);
        assert!(idle.control.as_ref().is_some_and(Control::is_idle));
        let idle = Shadow {
            control: None,
            ..idle
        };
        assert_eq!(idle, Shadow::default());
    }

    /// Who always says 7 is right for sevens alone.
    #[test]
    fn a_constant_answer_is_right_for_its_own_label() {
        let right = |both_right, production_only, shadow_only, neither| RightPairs {
            both_right,
            production_only,
            shadow_only,
            neither,
        };
        let labels = LabelSummary {
            pairs: right(50, 4, 3, 2),
            by_label: [("7", right(5, 1, 1, 1)), ("8", right(45, 3, 2, 1))]
                .map(|(label, pairs)| (label.to_owned(), pairs))
                .into(),
            ..LabelSummary::default()
        };
        let summary = ServiceSummary {
            labels: Some(labels),
            ..ServiceSummary::default()
        };
        let wrong = |baseline| shadow(&summary, &ServiceSummary::default(), &baseline).wrong;
        assert_eq!(wrong(Baseline::Stable), Some(pairs(2, 3, 4, 50)));
        let seven = Baseline::Constant("7\n".to_owned());
        assert_eq!(wrong(seven), Some(pairs(4, 47, 2, 6)));
    }
}
