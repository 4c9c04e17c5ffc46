//! From config and command line to how a service's new connections are shared out. Pure.

use std::net::IpAddr;
use std::time::Duration;

use mirror_common::flow::Endpoint;
use mirror_common::steer::{Steering, flag, share_threshold};

use super::services::Service;
use crate::config::{Affinity, Canary, Protocol, Share};
use crate::state::Overrides;

/// How far the limit on new connections may be overdrawn at once.
const BURST: Duration = Duration::from_secs(1);

/// The share that file and command line want, together.
pub(super) fn share(service: &Service, overrides: &Overrides) -> Share {
    match &service.config.canary {
        Some(_) if overrides.is_off() => Share::NONE,
        Some(canary) => overrides
            .canary_share(&service.config.name)
            .unwrap_or(canary.share),
        None => Share::NONE,
    }
}

/// Why nobody can be steered to a canary, if so.
pub(super) fn obstacle(canary: &Canary, local: &[IpAddr]) -> Option<String> {
    let ip = canary.address.ip();
    let here = ip.is_loopback() || local.contains(&ip);
    (!here).then(|| {
        format!("{ip} is no address of this host, and this version steers to listeners of this host only")
    })
}

/// What the programs should do with a service's new connections. `before` is what they do now.
pub(super) fn steering(
    canary: &Canary,
    protocol: Protocol,
    share: Share,
    salt: [u64; 2],
    before: &Steering,
) -> Steering {
    let threshold = share_threshold(share.parts());
    let mut flags = flag::PRESENT;
    if canary.affinity == Affinity::Client {
        flags |= flag::BY_CLIENT;
    }
    if share == Share::ALL {
        flags |= flag::FOR_GOOD;
    }
    if protocol == Protocol::Http {
        flags |= flag::HTTP;
    }
    let previous = match (before.salt == salt, before.threshold == threshold) {
        (true, true) => before.previous,
        (true, false) => before.threshold,
        (false, _) => 0,
    };
    Steering {
        canary: Endpoint::from(canary.address),
        salt,
        threshold,
        previous,
        stale_ns: nanoseconds(canary.steer_stale),
        connection_cost_ns: 1_000_000_000 / u64::from(canary.max_new_connections_per_second),
        burst_ns: nanoseconds(BURST),
        flags,
        pad: 0,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canary() -> Canary {
        Canary {
            version: "v13".to_owned(),
            address: ([10, 0, 0, 5], 8001).into(),
            share: Share::NONE,
            affinity: Affinity::Connection,
            steer_stale: Duration::from_secs(60),
            max_new_connections_per_second: 1_000,
        }
    }

    fn at(share: f64, salt: u64, before: &Steering) -> Steering {
        let share = Share::try_from(share).unwrap();
        steering(&canary(), Protocol::Tcp, share, [salt, 0], before)
    }

    #[test]
    fn the_share_before_the_last_change_is_remembered() {
        let begun = at(0.05, 1, &Steering::default());
        assert_eq!((begun.threshold, begun.previous), (share_threshold(500), 0));
        assert_eq!(at(0.05, 1, &begun), begun, "nothing has changed");
        let raised = at(0.25, 1, &begun);
        assert_eq!(raised.previous, share_threshold(500));
        assert_eq!(at(0.25, 1, &raised), raised, "nothing has changed since");
        assert_eq!(at(0.25, 2, &raised).previous, 0, "another version's keys");
    }

    #[test]
    fn what_is_configured_is_what_the_programs_get() {
        let begun = at(0.5, 1, &Steering::default());
        assert_eq!(
            (begun.flags, begun.connection_cost_ns),
            (flag::PRESENT, 1_000_000)
        );
        let by_client = Canary {
            affinity: Affinity::Client,
            ..canary()
        };
        let all = steering(&by_client, Protocol::Http, Share::ALL, [0; 2], &begun);
        let flags = flag::PRESENT | flag::BY_CLIENT | flag::FOR_GOOD | flag::HTTP;
        assert_eq!(all.flags, flags);
    }

    #[test]
    fn a_canary_elsewhere_is_not_steered_to() {
        assert_eq!(obstacle(&canary(), &[[10, 0, 0, 5].into()]), None);
        let why = obstacle(&canary(), &[[10, 0, 0, 6].into()]).unwrap();
        assert!(why.contains("10.0.0.5 is no address of this host"), "{why}");
    }
}
