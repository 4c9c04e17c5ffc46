//! What a service's two versions do, side by side.

use std::time::Instant;

use mirror_api::{Achieved, Arm, CanaryState, ChoiceCount, Quantiles, ShareState};
use mirror_common::measure::ArmCounters;
use mirror_common::steer::Choice;
use mirror_common::tunnel;
use mirror_rollout::Share;

use super::health::Failure;
use super::local_reader::{Looked, Outcome, Tally, Wait};
use super::place::{Obstacle, Place};
use super::servers::{Versioned, shown};
use super::services::Service;
use super::snapshot::Snapshot;
use crate::dataplane::{self, Counts};
use crate::state::Overrides;

/// The canary of a service, without what both versions did: that is read when somebody asks, see
/// [`fill`]. Pure.
pub(super) fn describe(
    service: &Service,
    overrides: &Overrides,
    (effective, by_rollout): (Share, bool),
    place: Option<Result<Place<'_>, Obstacle>>,
    answers: Option<Result<(), &Failure>>,
) -> Option<CanaryState> {
    let config = &service.config;
    let canary = config.canary.as_ref()?;
    Some(CanaryState {
        version: canary.version.clone(),
        address: canary.address,
        affinity: canary.affinity,
        share: ShareState {
            configured: canary.share,
            set: overrides.canary_share(&config.name).filter(|_| !by_rollout),
            by_rollout,
            effective,
            achieved: Achieved::default(),
        },
        arms: Vec::new(),
        concentration: None,
        by: match &place {
            Some(Ok(Place::Away(way))) => Some(way.link.name.clone()),
            _ => None,
        },
        xdp: None,
        xdp_error: None,
        up: match answers {
            Some(Err(Failure::Ours(_))) | None => None,
            Some(answers) => Some(answers.is_ok()),
        },
        silent: answers.and_then(Result::err).map(ToString::to_string),
        error: place.and_then(Result::err).map(|why| why.to_string()),
        translations: None,
    })
}

/// Reads what both versions of a service did, and what their servers use.
pub(crate) fn fill(
    now: &Snapshot,
    (row, tally): (u32, Option<&Tally>),
    service: &str,
    stable: &str,
    canary: &mut CanaryState,
) -> Result<(), dataplane::Error> {
    canary.arms = both(&*now.counts, row, tally, [stable, &canary.version])?;
    canary.share.achieved = now.milestones.achieved(row, &canary.arms, Instant::now());
    let usage = now.servers.usage();
    for (arm, of) in [tunnel::Arm::Stable, tunnel::Arm::Canary]
        .into_iter()
        .zip(&mut canary.arms)
    {
        let server = Versioned {
            service: service.to_owned(),
            arm,
            version: of.version.clone(),
        };
        of.server = usage.get(&server).map(shown);
    }
    Ok(())
}

/// Stable and the canary, in these versions, as kernel and local reader count them now.
pub(super) fn both(
    counts: &dyn Counts,
    row: u32,
    tally: Option<&Tally>,
    [stable, canary]: [&str; 2],
) -> Result<Vec<Arm>, dataplane::Error> {
    Ok(vec![
        describe_arm(counts, row, tally, tunnel::Arm::Stable, stable)?,
        describe_arm(counts, row, tally, tunnel::Arm::Canary, canary)?,
    ])
}

fn describe_arm(
    counts: &dyn Counts,
    row: u32,
    tally: Option<&Tally>,
    arm: tunnel::Arm,
    version: &str,
) -> Result<Arm, dataplane::Error> {
    let counters = counts.arm(row, arm)?;
    let looked = tally.map_or_else(Looked::default, |tally| tally.read(arm));
    let class = |class| looked.outcome(Outcome::Whole(class));
    Ok(Arm {
        arm: arm.label().to_owned(),
        version: version.to_owned(),
        choices: choices(&counters),
        connections: counters.choices.iter().sum(),
        open: counters.open(),
        unanswered: counters.unanswered,
        strayed: counters.strayed,
        packets: counters.packets,
        bytes: counters.bytes,
        resets: counters.resets,
        retransmissions: counters.retransmissions,
        untranslated: counters.untranslated,
        early: counters.early,
        requests: looked.requests(),
        responses: [1, 2, 3, 4, 5].map(class),
        other_responses: class(6),
        incomplete: looked.outcome(Outcome::Incomplete),
        unanswered_requests: looked.outcome(Outcome::Unanswered),
        unreadable: looked.outcome(Outcome::Unreadable),
        says_error: looked.outcome(Outcome::SaysError),
        aborted: looked.outcome(Outcome::AbortedByClient),
        first_byte: Quantiles::from(looked.wait(Wait::Header)),
        first_body: Quantiles::from(looked.wait(Wait::Body)),
        complete: Quantiles::from(looked.wait(Wait::End)),
        handshake: Quantiles::from(&counts.handshakes(row, arm)?),
        server: None,
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
