//! Where a canary is: on this host, or elsewhere, and how to get there. Pure.

use std::net::IpAddr;

use super::network::View;
use super::way::Way;
use crate::config::{Canary, ServiceAddress};

/// Where a canary is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Place<'a> {
    /// On this host: connections are given to its listener.
    Here,
    /// On another host: addresses are translated.
    Away(&'a Way),
}

/// Why nobody can be taken to a canary.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Obstacle {
    /// The config would have to change, or this host's network.
    #[error("{0}")]
    Lasting(String),
    /// It may have gone in a moment.
    #[error("{0}")]
    Passing(String),
}

/// Where a canary of a service with these addresses is, or why nobody can be taken there.
pub(super) fn find<'a>(
    canary: &Canary,
    service: &[ServiceAddress],
    view: &'a View,
) -> Result<Place<'a>, Obstacle> {
    let lasting = |why: String| Err(Obstacle::Lasting(why));
    let ip = canary.address.ip();
    if is_here(ip, &view.addresses) {
        return Ok(Place::Here);
    }
    let same_family =
        |address: &ServiceAddress| address.ip.is_none_or(|own| own.is_ipv4() == ip.is_ipv4());
    if !service.iter().any(same_family) {
        return lasting(format!(
            "{ip} is on another host, and none of the service's addresses is of its family"
        ));
    }
    match view.ways.get(&canary.address) {
        Some(Ok(way)) if way.link.loopback => lasting(format!("the route to {ip} leads back here")),
        Some(Ok(way)) => Ok(Place::Away(way)),
        Some(Err(why)) => lasting(why.to_string()),
        None => Err(Obstacle::Passing(format!(
            "the way to {ip} is not known yet"
        ))),
    }
}

/// Whether an address is one of this host's.
pub(super) fn is_here(ip: IpAddr, local: &[IpAddr]) -> bool {
    ip.is_loopback() || local.contains(&ip)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{canary, way};
    use super::super::way::NoWay;
    use super::*;

    fn view() -> View {
        let mut view = View {
            addresses: vec![[10, 0, 0, 5].into()],
            ..View::default()
        };
        let there = ([10, 1, 0, 7], 8001).into();
        view.ways.insert(there, Ok(way()));
        let gone = ([10, 9, 0, 7], 8001).into();
        view.ways
            .insert(gone, Err(NoWay::NoRoute([10, 9, 0, 7].into())));
        view
    }

    #[track_caller]
    fn check(canary_ip: [u8; 4], service: &str, expected: Result<bool, Obstacle>) {
        let canary = Canary {
            address: (canary_ip, 8001).into(),
            ..canary()
        };
        let ip = (service != "*").then(|| service.parse().unwrap());
        let service = [ServiceAddress { ip, port: 8000 }];
        let view = view();
        let found = find(&canary, &service, &view);
        assert_eq!(found.map(|place| place != Place::Here), expected);
    }

    #[test]
    fn a_canary_is_here_or_there_or_out_of_reach() {
        check([10, 0, 0, 5], "10.0.0.5", Ok(false));
        check([127, 0, 0, 1], "10.0.0.5", Ok(false));
        check([10, 1, 0, 7], "10.0.0.5", Ok(true));
        check([10, 1, 0, 7], "*", Ok(true));
        let lasting = |why: &str| Err(Obstacle::Lasting(why.to_owned()));
        let passing = |why: &str| Err(Obstacle::Passing(why.to_owned()));
        let why =
            "10.1.0.7 is on another host, and none of the service's addresses is of its family";
        check([10, 1, 0, 7], "fd00::5", lasting(why));
        check([10, 9, 0, 7], "10.0.0.5", lasting("no route to 10.9.0.7"));
        let why = "the way to 10.8.0.7 is not known yet";
        check([10, 8, 0, 7], "10.0.0.5", passing(why));
    }
}
