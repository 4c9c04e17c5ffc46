//! What a service's two versions do, side by side.

use mirror_common::measure::{ArmCounters, Phase};
use mirror_common::steer::Choice;
use mirror_common::tunnel;

use super::place::{Obstacle, Place};
use super::services::Service;
use super::steering::share;
use crate::control::{Achieved, Arm, CanaryState, ChoiceCount, Quantiles, ShareState};
use crate::dataplane::{self, DataPlane};
use crate::state::Overrides;

/// The canary of a service, without what both versions did: that is read when somebody asks, see
/// [`fill`]. Pure.
pub(super) fn describe(
    service: &Service,
    overrides: &Overrides,
    place: Option<Result<Place<'_>, Obstacle>>,
    answers: Option<Result<(), &str>>,
) -> Option<CanaryState> {
    let config = &service.config;
    let canary = config.canary.as_ref()?;
    Some(CanaryState {
        version: canary.version.clone(),
        address: canary.address,
        affinity: canary.affinity,
        share: ShareState {
            configured: canary.share,
            set: overrides.canary_share(&config.name),
            effective: share(service, overrides),
            achieved: Achieved::default(),
        },
        arms: Vec::new(),
        by: match &place {
            Some(Ok(Place::Away(way))) => Some(way.link.name.clone()),
            _ => None,
        },
        up: answers.map(|answers| answers.is_ok()),
        silent: answers.and_then(Result::err).map(str::to_owned),
        error: place.and_then(Result::err).map(|why| why.to_string()),
    })
}

/// Reads what both versions of a service did.
pub(super) fn fill(
    plane: &DataPlane,
    row: u32,
    stable: &str,
    canary: &mut CanaryState,
) -> Result<(), dataplane::Error> {
    canary.arms = both(plane, row, [stable, &canary.version])?;
    canary.share.achieved = achieved(&canary.arms);
    Ok(())
}

/// Stable and the canary, in these versions, as the kernel counts them now.
pub(crate) fn both(
    plane: &DataPlane,
    row: u32,
    [stable, canary]: [&str; 2],
) -> Result<Vec<Arm>, dataplane::Error> {
    Ok(vec![
        describe_arm(plane, row, tunnel::Arm::Stable, stable)?,
        describe_arm(plane, row, tunnel::Arm::Canary, canary)?,
    ])
}

fn describe_arm(
    plane: &DataPlane,
    row: u32,
    arm: tunnel::Arm,
    version: &str,
) -> Result<Arm, dataplane::Error> {
    let counters = plane.arm_counters(row, arm)?;
    let quantiles = |phase| -> Result<Quantiles, dataplane::Error> {
        Ok(Quantiles::from(&plane.latencies(row, arm, phase)?))
    };
    let [other_responses, responses @ ..] = counters.classes;
    Ok(Arm {
        arm: arm.label().to_owned(),
        version: version.to_owned(),
        choices: choices(&counters),
        connections: counters.choices.iter().sum(),
        open: counters.open(),
        unanswered: counters.unanswered,
        packets: counters.packets,
        bytes: counters.bytes,
        resets: counters.resets,
        retransmissions: counters.retransmissions,
        untranslated: counters.untranslated,
        responses,
        other_responses,
        first_byte: quantiles(Phase::FirstByte)?,
        handshake: quantiles(Phase::Handshake)?,
    })
}

fn choices(counters: &ArmCounters) -> Vec<ChoiceCount> {
    let counted = Choice::ALL.iter().zip(counters.choices);
    counted
        .filter(|(_, connections)| *connections > 0)
        .map(|(choice, connections)| ChoiceCount {
            reason: choice.label().to_owned(),
            connections,
        })
        .collect()
}

/// The second arm's part of both.
pub(crate) fn achieved(arms: &[Arm]) -> Achieved {
    let part = |of: &dyn Fn(&Arm) -> u64| {
        let all: u64 = arms.iter().map(of).sum();
        let canary = arms.last().map_or(0, of);
        (all > 0).then(|| canary as f64 / all as f64)
    };
    Achieved {
        connections: part(&|arm| arm.connections),
        requests: part(&|arm| arm.first_byte.count),
        bytes: part(&|arm| arm.bytes.iter().sum()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_canary_s_part_is_of_what_both_did() {
        let arm = |connections, requests, bytes| Arm {
            connections,
            bytes,
            first_byte: Quantiles {
                count: requests,
                ..Quantiles::default()
            },
            ..Arm::default()
        };
        assert_eq!(
            achieved(&[arm(0, 0, [0, 0]), arm(0, 0, [0, 0])]),
            Achieved::default()
        );
        let expected = Achieved {
            connections: Some(0.25),
            requests: Some(0.5),
            bytes: Some(0.9),
        };
        assert_eq!(
            achieved(&[arm(3, 7, [60, 40]), arm(1, 7, [800, 100])]),
            expected
        );
    }
}
