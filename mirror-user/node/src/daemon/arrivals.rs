//! Whether connections arrive where they are given: the kernel's choice is not delivery. A canary of this
//! host that gets none, or whose connections somebody else answers, loses its share.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mirror_api::CanaryChange;
use mirror_common::measure::ArmCounters;
use mirror_common::steer;
use mirror_common::tunnel::Arm;
use mirror_rollout::Share;

use super::core::Core;
use super::place::is_here;
use super::settings::{NOBODY, Order, Update};

/// How long the first connections may take to arrive: in a flood of forged SYNs none does.
const GRACE: Duration = Duration::from_secs(3);

/// Fewer say nothing.
const FEWEST: u64 = 3;

/// Of the last so many connections ...
const LAST: u64 = 20;

/// What is remembered of a version: twice as many, then half of each.
const REMEMBERED: u64 = 2 * LAST;

/// Connections of late: those that a socket of this host got, and those that somebody else did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Recent {
    delivered: u64,
    strayed: u64,
}

impl Recent {
    fn add(&mut self, delivered: u64, strayed: u64) {
        self.delivered += delivered;
        self.strayed += strayed;
        while self.sum() > REMEMBERED {
            self.delivered /= 2;
            self.strayed /= 2;
        }
    }

    const fn sum(self) -> u64 {
        self.delivered + self.strayed
    }
}

/// What the kernel says of a service: what became of the first connections that its canary was given, and
/// of stable's and the canary's since.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    first: steer::Arrivals,
    delivered: [u64; 2],
    strayed: [u64; 2],
    /// Of the canary: SYNs that came again, connections that somebody else has or that were reset.
    lost: u64,
}

impl Seen {
    fn new(first: steer::Arrivals, arms: [ArmCounters; 2]) -> Self {
        let [_, canary] = &arms;
        Self {
            first,
            lost: canary.unanswered + canary.strayed + canary.resets[1],
            delivered: arms.map(|arm| arm.delivered),
            strayed: arms.map(|arm| arm.strayed),
        }
    }
}

/// What is to be done about a canary.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing.
    Well,
    /// It may be given a few more: who sent the first ones does not tell.
    More,
    /// It must not have its share.
    Lost(String),
}

/// One service.
#[derive(Debug, Default)]
struct Watched {
    last: Option<Seen>,
    recent: [Recent; 2],
    /// Connections that were lost before the first arrived.
    lost: u64,
    /// Since when the canary has got no more, as none has arrived.
    waiting: Option<Instant>,
}

impl Watched {
    /// Takes in what the kernel says.
    fn see(&mut self, seen: Seen, now: Instant) -> Verdict {
        let last = self.last.replace(seen).unwrap_or(seen);
        for (arm, recent) in self.recent.iter_mut().enumerate() {
            let since = |now: [u64; 2], then: [u64; 2]| now[arm].saturating_sub(then[arm]);
            recent.add(
                since(seen.delivered, last.delivered),
                since(seen.strayed, last.strayed),
            );
        }
        let steer::Arrivals { given, arrived } = seen.first;
        if arrived != 0 || given == 0 {
            (self.lost, self.waiting) = (0, None);
            return self.strays();
        }
        self.lost += seen.lost.saturating_sub(last.lost);
        if self.lost >= FEWEST {
            return Verdict::Lost(format!(
                "none of the first connections that it was given has arrived, and {} are lost: this host leads them on to somebody else, or drops them (netfilter, a bridge, a VRF)",
                self.lost
            ));
        }
        if seen.first.may_be_given() {
            self.waiting = None;
        } else if now.duration_since(*self.waiting.get_or_insert(now)) >= GRACE {
            self.waiting = None;
            return Verdict::More;
        }
        Verdict::Well
    }

    fn strays(&self) -> Verdict {
        let canary = self.recent[1];
        if canary.sum() < LAST || canary.strayed * 2 < canary.sum() {
            return Verdict::Well;
        }
        Verdict::Lost(format!(
            "of its last {} connections {} were answered by somebody else: this host leads them on (netfilter, a bridge, a VRF)",
            canary.sum(),
            canary.strayed
        ))
    }

    /// Why no connection would arrive, by what became of stable's.
    fn obstacle(&self) -> Option<String> {
        let stable = self.recent[0];
        (stable.strayed >= FEWEST && stable.strayed * 5 >= stable.sum()).then(|| {
            format!(
                "of stable's last {} connections {} were answered by somebody else than a socket of this host, though it has the service's address: netfilter (docker -p, NodePort, REDIRECT) or a VRF leads them on, and would lead on the canary's; name the server's own address and interface, such as a pod's veth",
                stable.sum(),
                stable.strayed
            )
        })
    }
}

/// Every service with a canary, by its row, and those whose canary has lost its share, by name.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    services: BTreeMap<u32, Watched>,
    withdrawn: BTreeMap<String, String>,
}

impl Arrivals {
    /// Why no connection would arrive at a canary of this host.
    pub(super) fn obstacle(&self, row: u32) -> Option<String> {
        self.services.get(&row)?.obstacle()
    }

    /// Why a canary has lost its share.
    pub(super) fn withdrawn(&self, service: &str) -> Option<&String> {
        self.withdrawn.get(service)
    }

    /// A share begins: what became of earlier ones says nothing.
    pub(super) fn begin(&mut self, service: &str, row: u32) {
        self.withdrawn.remove(service);
        if let Some(watched) = self.services.get_mut(&row) {
            (watched.waiting, watched.lost) = (None, 0);
            watched.recent[1] = Recent::default();
        }
    }
}

impl Core {
    /// Takes the share of canaries back whose connections do not arrive.
    pub(super) fn watch_arrivals(&mut self) {
        let now = self.now.at;
        let mut lost = Vec::new();
        let local = self.view.as_ref().map(|view| view.addresses.as_slice());
        let local = local.unwrap_or_default();
        let mut rows = Vec::new();
        for service in &self.services {
            let row = service.row;
            let Some(canary) = &service.config.canary else {
                continue;
            };
            rows.push(row);
            let arms = [Arm::Stable, Arm::Canary].map(|arm| self.kernel.counts().arm(row, arm));
            let ([Ok(of_stable), Ok(of_canary)], Ok(first)) = (arms, self.kernel.arrivals(row))
            else {
                continue;
            };
            let seen = Seen::new(first, [of_stable, of_canary]);
            let watched = self.arrivals.services.entry(row).or_default();
            match watched.see(seen, now) {
                Verdict::Lost(why)
                    if self.share(service) != Share::NONE
                        && is_here(canary.address.ip(), local) =>
                {
                    lost.push((service.config.name.clone(), why));
                }
                Verdict::More => {
                    let _ = self.kernel.clear_arrivals(row);
                }
                Verdict::Lost(_) | Verdict::Well => {}
            }
        }
        self.arrivals.services.retain(|row, _| rows.contains(row));
        for (service, why) in lost {
            self.withdraw(&service, &why);
        }
    }

    fn withdraw(&mut self, service: &str, why: &str) {
        tracing::warn!(service, "canary share withdrawn: {why}");
        let withdrawn = format!("share withdrawn: {why}");
        self.arrivals
            .withdrawn
            .insert(service.to_owned(), withdrawn);
        if self.taken_by_rollout(service).is_some() {
            return self.abort_rollout(service, why);
        }
        let change = CanaryChange::Share(Share::NONE);
        let order = Order::Canary(service.to_owned(), change, None);
        self.take(Update::Order(NOBODY, order));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(given: u64, lost: u64, canary: [u64; 2], stable: [u64; 2]) -> Seen {
        let arrived = u64::from(canary != [0, 0]);
        Seen {
            first: steer::Arrivals { given, arrived },
            delivered: [stable[0], canary[0]],
            strayed: [stable[1], canary[1]],
            lost,
        }
    }

    /// What is seen second by second, and what comes of it at the end.
    #[track_caller]
    fn check(seconds: &[Seen], expected: &str) {
        let (mut watched, start) = (Watched::default(), Instant::now());
        let mut verdict = Verdict::Well;
        for (second, seen) in (0..).zip(seconds) {
            assert_eq!(verdict, Verdict::Well, "before second {second}");
            verdict = watched.see(*seen, start + Duration::from_secs(second));
        }
        let said = format!("{verdict:?}");
        assert!(said.contains(expected), "{said}, not {expected}");
    }

    #[test]
    fn what_never_arrives_is_taken_back() {
        let none = [0, 0];
        let at = |given, lost| seen(given, lost, none, none);
        check(&[at(0, 7), at(2, 9), at(2, 9), at(2, 9), at(2, 9)], "Well");
        check(&[at(0, 7), at(3, 9), at(16, 10)], "and 3 are lost");
        // Of a flood nobody asks again.
        let flood = at(16, 8);
        check(&[at(0, 7), flood, flood, flood, flood], "More");
        let late = seen(16, 9, [1, 0], none);
        check(&[at(0, 7), at(16, 9), late, late], "Well");
    }

    #[test]
    fn what_others_answer_is_taken_back() {
        let at = |delivered, strayed| seen(20, 0, [delivered, strayed], [0, 0]);
        check(&[at(0, 0), at(11, 9)], "Well");
        let lost = "of its last 20 connections 10 were answered by somebody else";
        check(&[at(1, 0), at(11, 10)], lost);
        check(&[at(1_000, 1_000), at(1_010, 1_000)], "Well");
        check(&[at(1, 0), at(1_000, 0), at(1_000, 20)], "Well");
        check(&[at(1, 0), at(1_000, 0), at(1_000, 60)], "Lost");
    }

    #[test]
    fn where_stable_s_connections_are_led_on_so_would_be_the_canary_s() {
        let obstacle = |stable| {
            let mut watched = Watched::default();
            for stable in [[0, 0], stable] {
                watched.see(seen(0, 0, [0, 0], stable), Instant::now());
            }
            watched.obstacle().is_some()
        };
        assert!(!obstacle([0, 2]) && !obstacle([17, 3]) && !obstacle([20, 0]));
        assert!(obstacle([0, 3]) && obstacle([10, 10]));
    }
}
