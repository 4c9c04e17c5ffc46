//! The config as rollouts change it: who is the canary, and who is stable. Pure.

use mirror_rollout::plan::Target;

use crate::config::{Canary, Node, Service};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Swap;

    fn file(more: &str) -> Node {
        let text = format!(
            "interfaces = [\"eth0\"]\n[[service]]\nname = \"a\"\nid = 1\naddresses = [\"*:80\"]\n\
             stable.version = \"v1\"\n{more}"
        );
        crate::config::node(&text).unwrap()
    }

    /// Stable, and the canary with its address.
    fn versions(node: &Node) -> (String, Option<String>) {
        let service = &node.services[0];
        let canary = service.canary.as_ref();
        let canary = canary.map(|canary| format!("{} {}", canary.version, canary.address));
        (service.stable_version.clone(), canary)
    }

    #[test]
    fn the_version_on_trial_is_the_canary() {
        let target = Target {
            version: "v3".into(),
            address: "10.0.0.5:83".parse().unwrap(),
        };
        let canary = "canary.version = \"v2\"\ncanary.address = \"10.0.0.5:82\"\ncanary.affinity = \"connection\"";
        for more in ["", canary] {
            let node = effective(&file(more), &Overrides::default(), |_| Some(&target));
            let expected = ("v1".to_owned(), Some("v3 10.0.0.5:83".to_owned()));
            assert_eq!(versions(&node), expected);
        }
        let untouched = file(canary);
        assert_eq!(
            effective(&untouched, &Overrides::default(), |_| None),
            untouched
        );
    }

    #[test]
    fn a_finished_version_is_stable_until_the_file_says_so() {
        let mut overrides = Overrides::default();
        let swap = Swap {
            was: "v1".into(),
            now: "v2".into(),
        };
        overrides.set_swap("a", swap);
        let canary = "canary.version = \"v2\"\ncanary.address = \"10.0.0.5:82\"";
        let swapped = effective(&file(canary), &overrides, |_| None);
        assert_eq!(
            versions(&swapped),
            ("v2".into(), Some("v1 10.0.0.5:82".into()))
        );
        let mut later = file("");
        later.services[0].stable_version = "v2".into();
        assert_eq!(effective(&later, &overrides, |_| None), later);
    }
}
