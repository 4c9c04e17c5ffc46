//! What a share has come to since it holds. Pure.
//!
//! The kernel counts from when a service was met first. What both versions had done when the share
//! changed is remembered here, for as long as the daemon lives: after a restart the figures are of
//! what came since.

use std::collections::HashMap;
use std::time::Instant;

use mirror_common::steer::Steering;

use mirror_api::{Achieved, Arm};

/// By the services' rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Milestones(HashMap<u32, Milestone>);

#[derive(Clone, Debug)]
struct Milestone {
    /// Share and key, as the programs have them.
    rule: (u64, [u64; 2]),
    at: Instant,
    /// Both versions then.
    arms: Vec<Arm>,
}

impl Milestones {
    /// Whether another share holds, or another key, than when both versions were last remembered.
    pub(super) fn has_passed(&self, row: u32, steering: &Steering) -> bool {
        self.0
            .get(&row)
            .is_none_or(|last| last.rule != rule(steering))
    }

    /// Remembers what both versions have done when a share begins to hold.
    pub(super) fn set(&mut self, row: u32, steering: &Steering, arms: Vec<Arm>, now: Instant) {
        let milestone = Milestone {
            rule: rule(steering),
            at: now,
            arms,
        };
        self.0.insert(row, milestone);
    }

    /// Forgets services for which `keep` says no.
    pub(super) fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        self.0.retain(|&row, _| keep(row));
    }

    /// The second arm's part of what both did since, at `now`.
    pub(super) fn achieved(&self, row: u32, arms: &[Arm], now: Instant) -> Achieved {
        let Some(last) = self.0.get(&row) else {
            return Achieved::default();
        };
        let part = |of: &dyn Fn(&Arm) -> u64| {
            let both = arms.iter().zip(&last.arms);
            let since = both.map(|(arm, then)| of(arm).saturating_sub(of(then)));
            let since: Vec<u64> = since.collect();
            let all: u64 = since.iter().sum();
            let canary = since.last().copied().unwrap_or(0);
            (all > 0).then(|| canary as f64 / all as f64)
        };
        Achieved {
            seconds: Some(now.duration_since(last.at).as_secs_f64()),
            connections: part(&|arm| arm.connections),
            requests: part(&|arm| arm.requests),
            bytes: part(&|arm| arm.bytes.iter().sum()),
        }
    }
}

fn rule(steering: &Steering) -> (u64, [u64; 2]) {
    (steering.threshold, steering.salt)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn arm(connections: u64, requests: u64, bytes: [u64; 2]) -> Arm {
        Arm {
            connections,
            bytes,
            requests,
            ..Arm::default()
        }
    }

    fn at(threshold: u64, salt: u64) -> Steering {
        Steering {
            threshold,
            salt: [salt, 0],
            ..Steering::default()
        }
    }

    #[test]
    fn the_canary_s_part_is_of_what_both_did_since_the_share_changed() {
        let (mut milestones, start) = (Milestones::default(), Instant::now());
        let nothing = [arm(0, 0, [0, 0]), arm(0, 0, [0, 0])];
        assert_eq!(milestones.achieved(7, &nothing, start), Achieved::default());
        milestones.set(7, &at(1, 1), nothing.to_vec(), start);
        let later = start + Duration::from_secs(10);
        let none = Achieved {
            seconds: Some(10.0),
            ..Achieved::default()
        };
        assert_eq!(milestones.achieved(7, &nothing, later), none);
        let first = [arm(3, 7, [60, 40]), arm(1, 7, [800, 100])];
        let expected = Achieved {
            connections: Some(0.25),
            requests: Some(0.5),
            bytes: Some(0.9),
            ..none
        };
        assert_eq!(milestones.achieved(7, &first, later), expected);

        milestones.set(7, &at(2, 1), first.to_vec(), later);
        let second = [arm(4, 8, [60, 40]), arm(4, 10, [800, 101])];
        let expected = Achieved {
            seconds: Some(0.0),
            connections: Some(0.75),
            requests: Some(0.75),
            bytes: Some(1.0),
        };
        assert_eq!(milestones.achieved(7, &second, later), expected);
        assert_eq!(milestones.achieved(8, &second, later), Achieved::default());
    }

    #[test]
    fn a_milestone_is_passed_with_the_share_or_the_version() {
        let mut milestones = Milestones::default();
        assert!(milestones.has_passed(7, &at(1, 1)));
        milestones.set(7, &at(1, 1), Vec::new(), Instant::now());
        assert!(!milestones.has_passed(7, &at(1, 1)));
        assert!(milestones.has_passed(7, &at(2, 1)));
        assert!(milestones.has_passed(7, &at(1, 2)));
        milestones.retain(|row| row != 7);
        assert!(milestones.has_passed(7, &at(1, 1)));
    }
}
