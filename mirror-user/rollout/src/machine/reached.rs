//! Whether the canary gets its share of the requests, and why not: at L4 a share of connections is not a share
//! of requests; and whether those are of clients enough. Pure.

use std::collections::BTreeMap;

use super::Rollout;
use crate::Share;
use crate::gates::FEW;
use crate::held::{Held, Kind};
use crate::state::Step;
use crate::statistics::Served;
use crate::window::Window;

/// A larger part of the canary's connections may not go elsewhere.
const MOST_TURNED_AWAY: f64 = 0.25;

/// What became of connections.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Connections {
    /// New ones of stable and of the canary.
    new: [u64; 2],
    /// The canary's by its share, that went to stable, by why.
    turned_away: BTreeMap<String, u64>,
    by_client: bool,
}

impl Connections {
    pub(super) fn see(&mut self, window: &Window) {
        let arms = [&window.stable, &window.canary];
        for (sum, arm) in self.new.iter_mut().zip(arms) {
            *sum += arm.connections;
        }
        for (why, count) in &window.stable.turned_away {
            *self.turned_away.entry(why.clone()).or_default() += count;
        }
        self.by_client = window.by_client;
    }

    /// Why the canary does not have its share, and what helps.
    fn cause(&self, wanted: f64) -> String {
        let [stable, canary] = self.new;
        let all = stable + canary;
        let share = canary as f64 / all as f64;
        let turned: u64 = self.turned_away.values().sum();
        if turned as f64 > (turned + canary) as f64 * MOST_TURNED_AWAY {
            let mut reasons: Vec<_> = self.turned_away.iter().collect();
            reasons.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            let reasons = reasons.iter().map(|(why, count)| format!("{count} {why}"));
            let reasons: Vec<String> = reasons.collect();
            return format!(
                "{turned} connections that were its own went to stable: {} (docs/reference/metrics.md#choices says what each means)",
                reasons.join(", ")
            );
        }
        let open_more = "let clients open connections more often (nginx: keepalive_requests; Envoy: max_requests_per_connection)";
        if all > 0 && is_near(share, wanted) {
            return format!(
                "it has {:.2} % of the new connections, but connections keep their version for as long as they live, and some carry many more requests than others: {open_more}",
                share * 100.0
            );
        }
        if self.by_client {
            return format!(
                "all connections of a client's address have one version, and {}: where few addresses send most, set affinity = \"connection\" in [service.canary]",
                of_new(canary, all)
            );
        }
        format!("{}: {open_more}", of_new(canary, all))
    }
}

/// Whom a version serves, each counted by its part of the requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Clients {
    /// Clients of either version.
    all: Served,
    /// Clients of the canary, and connections where they go by the share one by one.
    canary: [Served; 2],
}

impl Clients {
    pub(super) fn see(&mut self, Window { stable, canary, .. }: &Window) {
        self.all.see(&stable.clients);
        self.all.see(&canary.clients);
        self.canary[0].see(&canary.clients);
        self.canary[1].see(&canary.by_connection);
    }

    /// Why they are too few, and what helps.
    fn few(&self) -> Option<String> {
        let [all, clients, connections] =
            [&self.all, &self.canary[0], &self.canary[1]].map(Served::effective);
        // A gateway is no client: behind it are many.
        let by_connection = connections > 0.0 && all < FEW;
        let served = if by_connection { connections } else { clients };
        (all > 0.0 && served < FEW).then(|| match by_connection {
            true => format!(
                "its requests come by {served:.1} connections, counted by their parts, and of fewer than {FEW} one decides too much: let clients open connections more often (nginx: keepalive_requests; Envoy: max_requests_per_connection)"
            ),
            false => format!(
                "it serves {served:.1} of {all:.1} clients, counted by their parts of the requests, and of fewer than {FEW} one decides too much: a larger share (`modelmirror rollout promote`), or affinity = \"connection\" in [service.canary]"
            ),
        })
    }
}

fn of_new(canary: u64, all: u64) -> String {
    format!("it has {canary} of {all} new connections")
}

fn is_near(achieved: f64, wanted: f64) -> bool {
    let (least, most) = (wanted / 2.0, wanted * 2.0 + 0.02);
    (least..=most).contains(&achieved)
}

impl Rollout {
    /// Few clients tell little: their own failures are taken for the version's.
    pub(super) fn few_clients(&self, step: Step) -> Option<Held> {
        let few = self.clients.few()?;
        (self.share_at(step) < Share::ALL).then_some(Held {
            kind: Kind::FewClients,
            why: few,
        })
    }

    /// What was reached counts, where nothing else that holds the rollout explains it.
    pub(super) fn share_not_reached(&self, step: Step) -> Option<Held> {
        const EXPLAIN: [Kind; 3] = [Kind::StableGone, Kind::NotSteered, Kind::OneClient];
        let mut troubles = self.troubles.iter();
        if troubles.any(|held| EXPLAIN.contains(&held.kind)) {
            return None;
        }
        let [stable, canary] = self.all_requests;
        let all = stable + canary;
        let wanted = f64::from(self.share_at(step));
        // Of few requests a small share may well be none.
        if wanted * all < self.plan().canary.min_requests as f64 {
            return None;
        }
        let achieved = canary / all;
        (!is_near(achieved, wanted)).then(|| Held {
            kind: Kind::ShareNotReached,
            why: format!(
                "the canary answers {:.2} % of the requests at a share of {:.2} %: {}",
                achieved * 100.0,
                wanted * 100.0,
                self.connections.cause(wanted)
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::window::Arm;

    #[track_caller]
    fn check(new: [u64; 2], turned_away: &[(&str, u64)], by_client: bool, words: &str) {
        let turned = turned_away.iter();
        let turned = turned.map(|(why, count)| ((*why).to_owned(), *count));
        let window = Window {
            stable: Arm {
                connections: new[0],
                turned_away: turned.collect(),
                ..Arm::default()
            },
            canary: Arm {
                connections: new[1],
                ..Arm::default()
            },
            by_client,
            ..Window::default()
        };
        let mut connections = Connections::default();
        connections.see(&window);
        let cause = connections.cause(0.5);
        assert!(cause.contains(words), "{cause}");
        // No cure that is set already.
        assert!(by_client || !cause.contains("affinity"), "{cause}");
    }

    #[test]
    fn the_cause_is_the_one_that_there_is() {
        let limit = [("limit", 40), ("no_port", 2)];
        let words = "42 connections that were its own went to stable: 40 limit, 2 no_port";
        check([90, 10], &limit, true, words);
        check(
            [60, 40],
            &limit[1..],
            false,
            "it has 40.00 % of the new connections",
        );
        check(
            [50, 50],
            &[],
            true,
            "keep their version for as long as they live",
        );
        check([99, 1], &[], true, "set affinity = \"connection\"");
        check(
            [9, 1],
            &[],
            false,
            "it has 1 of 10 new connections: let clients",
        );
        check([0, 0], &[], false, "it has 0 of 0 new connections");
    }
}
