//! The config as rollouts change it: who is the canary, and who is stable. Pure.

use crate::config::{Canary, Node, Service};
use crate::rollout::plan::Target;
use crate::state::Overrides;

/// What the daemon works by: the file, with the versions that rollouts have finished in their new
/// places, and with those that are on trial.
pub(super) fn effective<'a>(
    file: &Node,
    overrides: &Overrides,
    target: impl Fn(&Service) -> Option<&'a Target>,
) -> Node {
    let mut node = file.clone();
    for service in &mut node.services {
        swap(service, overrides);
        if let Some(target) = target(service) {
            service.canary = Some(on_trial(service, target));
        }
    }
    node
}

/// Until the file says so itself, a finished version is called stable.
fn swap(service: &mut Service, overrides: &Overrides) {
    let Some(swap) = overrides.swap(&service.name) else {
        return;
    };
    if service.stable_version != swap.was {
        return;
    }
    service.stable_version.clone_from(&swap.now);
    if let Some(canary) = &mut service.canary
        && canary.version == swap.now
    {
        canary.version.clone_from(&swap.was);
    }
}

/// The canary of a rollout, with what the file says of canaries.
pub(super) fn on_trial(service: &Service, target: &Target) -> Canary {
    let mut canary = service
        .canary
        .clone()
        .unwrap_or_else(|| Canary::at(target.version.clone(), target.address));
    canary.version.clone_from(&target.version);
    canary.address = target.address;
    canary
}
