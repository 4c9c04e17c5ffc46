//! From config and command line to how a service's new connections are shared out. Pure.

use std::net::IpAddr;
use std::time::Duration;

use mirror_api::Affinity;
use mirror_common::flow::{Address, Endpoint};
use mirror_common::steer::{Steering, flag, share_threshold};
use mirror_common::translate::{MAX_LOCAL, Way};
use mirror_rollout::Share;

use super::place::Place;
use super::services::Service;
use crate::config::{self, Canary};
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

/// How a service's new connections should be shared out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    /// The canary's part.
    pub(super) share: Share,
    /// What they are chosen by.
    pub(super) salt: [u64; 2],
    /// Whether that holds without a daemon, for good.
    pub(super) for_good: bool,
    /// Whether a rollout has taken the canary back, and no record has that yet.
    pub(super) taken_back: bool,
    /// Whether XDP was taken by every interface on the way.
    pub(super) early: bool,
    /// Since when the canary has been on trial, on the monotonic clock, in nanoseconds; 0 = always.
    pub(super) trial_ns: u64,
}

/// What the programs should do with a service's new connections. `before` is what they do now.
///
/// While a canary's place is not known nobody is steered there anew, but for one whose place was
/// known: a neighbour that has not answered for a moment is the health check's affair.
pub(super) fn steering(
    config: &config::Service,
    canary: &Canary,
    wanted: Wanted,
    place: Option<Place<'_>>,
    before: &Steering,
    addresses: &[IpAddr],
) -> Steering {
    let canary_end = Endpoint::from(canary.address);
    let known = before.is_away() && before.canary == canary_end;
    let Wanted { share, salt, .. } = wanted;
    let share = match place {
        None if !known => Share::NONE,
        _ => share,
    };
    let threshold = share_threshold(share.parts());
    let mut flags = flag::PRESENT;
    if canary.affinity == Affinity::Client {
        flags |= flag::BY_CLIENT;
    }
    if wanted.for_good && share == Share::ALL {
        flags |= flag::FOR_GOOD;
    }
    if wanted.taken_back {
        flags |= flag::TAKEN_BACK;
    }
    let way = match place {
        Some(Place::Here) => Way::default(),
        Some(Place::Away(way)) => translated(way, addresses),
        None => before.way,
    };
    // Connections of a canary that has moved here go on.
    flags |= before.flags & flag::TRANSLATED;
    if way != Way::default() {
        flags |= flag::AWAY | flag::TRANSLATED;
        if config.xdp().is_some() && wanted.early {
            flags |= flag::XDP;
        }
    }
    let previous = match (before.salt == salt, before.threshold == threshold) {
        (true, true) => before.previous,
        (true, false) => before.threshold,
        (false, _) => 0,
    };
    Steering {
        trial_ns: wanted.trial_ns.max(before.trial_ns),
        canary: canary_end,
        salt,
        threshold,
        previous,
        stale_ns: nanoseconds(canary.steer_stale),
        connection_cost_ns: 1_000_000_000 / u64::from(canary.max_new_connections_per_second),
        burst_ns: nanoseconds(BURST),
        flags,
        pad: 0,
        way,
    }
}

/// A way as the programs take packets along it. `addresses` are those of this host that the canary may see;
/// where none is of its family, it sees the one that the route has.
fn translated(way: &super::way::Way, addresses: &[IpAddr]) -> Way {
    let mut local = [Address::default(); MAX_LOCAL];
    let of_family = addresses
        .iter()
        .filter(|ip| ip.is_ipv4() == way.local.is_ipv4())
        .take(MAX_LOCAL);
    let mut locals = 0;
    for (place, &ip) in local.iter_mut().zip(of_family) {
        *place = ip.into();
        locals += 1;
    }
    if locals == 0 {
        (local[0], locals) = (way.local.into(), 1);
    }
    Way {
        local,
        locals,
        pad: 0,
        next_hop: way.next_hop.into(),
        ifindex: way.link.index,
        mtu: way.mtu,
        macs: way.macs(),
        veth: (way.link.kind.as_deref() == Some("veth")).into(),
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{canary, service, way};
    use super::*;

    fn wanted(share: Share, salt: u64) -> Wanted {
        Wanted {
            share,
            salt: [salt, 0],
            for_good: true,
            taken_back: false,
            early: true,
            trial_ns: 0,
        }
    }

    fn at(share: f64, salt: u64, before: &Steering) -> Steering {
        let wanted = wanted(Share::try_from(share).unwrap(), salt);
        steering(
            &service(),
            &canary(),
            wanted,
            Some(Place::Here),
            before,
            &[],
        )
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
        let place = Some(Place::Here);
        let all = steering(
            &service(),
            &by_client,
            wanted(Share::ALL, 0),
            place,
            &begun,
            &[],
        );
        let flags = flag::PRESENT | flag::BY_CLIENT | flag::FOR_GOOD;
        assert_eq!(all.flags, flags);
    }

    #[test]
    fn a_canary_elsewhere_is_steered_to_once_the_way_is_known() {
        let share = Share::try_from(0.5).unwrap();
        let (service, canary, way) = (service(), canary(), way());
        let addresses = ["fd00::5", "10.1.0.6", "10.1.0.7"].map(|ip| ip.parse().unwrap());
        let at = |place, before: &Steering| {
            steering(
                &service,
                &canary,
                wanted(share, 1),
                place,
                before,
                &addresses,
            )
        };
        let unknown = at(None, &Steering::default());
        assert_eq!((unknown.threshold, unknown.is_away()), (0, false));
        let known = at(Some(Place::Away(&way)), &unknown);
        assert!(known.is_on() && known.is_away());
        assert_eq!(
            (known.way.ifindex, known.way.mtu),
            (way.link.index, way.mtu)
        );
        assert_eq!(
            at(None, &known).way,
            known.way,
            "the neighbour is silent for a moment"
        );
        assert!(at(None, &known).is_on());
        let Way { local, locals, .. } = known.way;
        assert_eq!(
            local[..locals as usize],
            [addresses[1], addresses[2]].map(Address::from)
        );
        let moved = at(Some(Place::Here), &known);
        assert!(!moved.is_away() && moved.flags & flag::TRANSLATED != 0);
    }
}
