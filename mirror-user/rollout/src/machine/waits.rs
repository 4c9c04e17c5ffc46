//! Why a rollout does not go on yet: no data means hold, with the reason named.

use std::time::Duration;

use jiff::Timestamp;

use super::Rollout;
use crate::Share;
use crate::gates::{Role, elapsed, in_words};
use crate::held::{Held, Kind};
use crate::state::Step;
use crate::statistics::Verdict;

/// A version that has not answered for so long has no traffic.
const QUIET: Duration = Duration::from_secs(30);

/// ln of the capital against a version from which on it gets no more clients, though nothing is proven.
const DOUBT: f64 = 1.0;

/// A larger part of requests may not remain unseen.
const MOST_UNSEEN: f64 = 0.1;

impl Rollout {
    /// Why a step is not done; none = it is.
    pub(super) fn waits_at(&self, step: Step, now: Timestamp) -> Vec<Held> {
        let mut waits: Vec<Held> = self.troubles_of(&[Kind::Record]).collect();
        match step {
            Step::Before | Step::ShadowPassed | Step::StagePassed(_) => {
                self.wait_for_hooks(&mut waits)
            }
            Step::Shadowing => {
                waits.extend(self.troubles_of(&[Kind::Agent, Kind::Control]));
                self.wait_for_comparisons(now, &mut waits);
                self.wait_for_gates(step, &mut waits);
            }
            Step::Stage(_) | Step::Baking | Step::Settling => {
                waits.extend(self.troubles_of(&[
                    Kind::OneClient,
                    Kind::ShareNotReached,
                    Kind::NotSteered,
                    Kind::Counters,
                    Kind::NotSeen,
                    Kind::StableGone,
                ]));
                self.wait_for_time(step, now, &mut waits);
                self.wait_for_requests(step, now, &mut waits);
                self.wait_for_gates(step, &mut waits);
            }
        }
        waits
    }

    fn troubles_of<'a>(&'a self, kinds: &'a [Kind]) -> impl Iterator<Item = Held> + 'a {
        let matters = |held: &&Held| kinds.contains(&held.kind);
        self.troubles.iter().filter(matters).cloned()
    }

    fn wait_for_time(&self, step: Step, now: Timestamp, waits: &mut Vec<Held>) {
        let least = match step {
            Step::Baking => self.plan().canary.bake,
            _ => self.plan().canary.min_duration,
        };
        if let Some(rest) = self.warms_up(step, now) {
            let warmup = humantime::format_duration(self.warmup());
            waits.push(Held {
                kind: Kind::MinDuration,
                why: format!("warm-up: {} of {warmup} remaining", whole_seconds(rest)),
            });
        }
        let lasted = elapsed(self.clock.max(self.warm()), now);
        if lasted < least {
            let [lasted, least] = [lasted, least].map(whole_seconds);
            waits.push(Held {
                kind: Kind::MinDuration,
                why: format!("minimum stage time: {lasted} of {least} elapsed"),
            });
        }
    }

    fn wait_for_comparisons(&self, now: Timestamp, waits: &mut Vec<Held>) {
        let Some(plan) = &self.plan().shadow else {
            return;
        };
        if self.compared < plan.min_compared {
            let why = format!(
                "{} of {} requests were compared",
                self.compared, plan.min_compared
            );
            let kind = Kind::TooFew;
            waits.push(Held { kind, why });
        }
        if let Some(quiet) = quiet(self.last_compared, self.clock, now) {
            let why = format!("nothing was compared for {quiet}");
            let kind = Kind::NoTraffic;
            waits.push(Held { kind, why });
        }
    }

    fn wait_for_requests(&self, step: Step, now: Timestamp, waits: &mut Vec<Held>) {
        let least = self.plan().canary.min_requests;
        let stable_serves = self.share_at(step) != Share::ALL;
        let names = [self.started.stable.as_str(), &self.started.canary.version];
        for (arm, name) in names.into_iter().enumerate() {
            if arm == 0 && !stable_serves {
                continue;
            }
            let (requests, answered) = (self.requests[arm], self.answered[arm]);
            if requests < least {
                let why =
                    format!("{requests} of {least} requests of {name} were seen at this stage");
                let kind = Kind::TooFew;
                waits.push(Held { kind, why });
            }
            waits.extend(self.not_seen(arm, name));
            if let Some(quiet) = quiet(answered, self.clock, now) {
                let why = format!("{name} has answered nobody for {quiet}");
                let kind = Kind::NoTraffic;
                waits.push(Held { kind, why });
            }
        }
        if self
            .recent
            .both_fail(self.plan().canary.hard_error_rate, now)
        {
            waits.push(Held {
                kind: Kind::BothFail,
                why: "both versions fail alike: taking the canary back would not help".to_owned(),
            });
        }
        waits.extend(self.share_not_reached(step));
        waits.extend(self.few_clients(step));
        if !stable_serves && let Some(why) = self.alone.incident(self.plan(), now) {
            let kind = Kind::Incident;
            waits.push(Held { kind, why });
        }
    }

    /// Requests whose end nobody saw are no evidence, and of many of them nobody knows what they hide.
    fn not_seen(&self, arm: usize, name: &str) -> Option<Held> {
        let unseen = &self.unseen[arm];
        // Connections that were there before have a first request of which nothing is known.
        let count: u64 = unseen
            .iter()
            .filter(|(why, _)| !matches!(why.as_str(), "mid_stream" | "shutdown" | "loop"))
            .map(|(_, count)| count)
            .sum();
        let most = (self.requests[arm] + count) as f64 * MOST_UNSEEN;
        (count > 0 && count as f64 > most).then(|| Held {
            kind: Kind::NotSeen,
            why: format!(
                "{count} requests or connections of {name} cannot be read ({}), so its errors and latency are not known: only HTTP/1 in clear text can be judged",
                in_words(unseen)
            ),
        })
    }

    fn wait_for_gates(&self, step: Step, waits: &mut Vec<Held>) {
        let proof = self.is_proof_needed(step);
        for gate in self.gates.iter().filter(|gate| gate.role == Role::Proof) {
            let is_metric = gate.finding.is_none();
            if gate.verdict == Verdict::Within || !proof && !is_metric {
                continue;
            }
            waits.push(Held {
                kind: if is_metric {
                    Kind::Metric
                } else {
                    Kind::NotProven
                },
                why: gate.to_string(),
            });
        }
        // Few seconds prove nothing against a version; more clients need not find it out.
        let doubted = self.gates.iter().filter(|gate| {
            let finding = gate.finding.as_ref();
            let against = finding.is_some_and(|finding| finding.worse >= DOUBT);
            let is_asked = match gate.role {
                Role::Proof => !proof,
                Role::Watch => true,
                Role::Severe | Role::Info => false,
            };
            is_asked && gate.verdict == Verdict::Unknown && against
        });
        if self.share_at(step) < Share::ALL {
            waits.extend(doubted.map(|gate| Held {
                kind: Kind::NotProven,
                why: format!("{gate}, and it looks worse"),
            }));
        }
        if self.gates.is_empty() {
            waits.push(Held {
                kind: Kind::NotProven,
                why: "nothing was looked at yet".to_owned(),
            });
        }
    }
}

/// For how long nothing came, where that is too long.
fn quiet(last: Option<Timestamp>, since: Timestamp, now: Timestamp) -> Option<String> {
    let quiet = elapsed(last.map_or(since, |last| last.max(since)), now);
    (quiet >= QUIET).then(|| whole_seconds(quiet))
}

fn whole_seconds(duration: Duration) -> String {
    let whole = Duration::from_secs(duration.as_secs());
    humantime::format_duration(whole).to_string()
}
