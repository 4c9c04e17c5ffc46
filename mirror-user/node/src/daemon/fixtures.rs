//! What the tests of the daemon's pure parts start from.

use std::time::Duration;

use mirror_api::Affinity;
use mirror_rollout::Share;

use super::way::Way;
use crate::config::{Canary, Protocol, Service, ServiceAddress};
use crate::netlink::Link;

/// A service at 10.0.0.5:8000 without mirror and canary.
pub(crate) fn service() -> Service {
    let at = ServiceAddress {
        ip: Some([10, 0, 0, 5].into()),
        port: 8000,
    };
    Service {
        name: "digits".to_owned(),
        id: 101,
        addresses: vec![at],
        protocol: Protocol::Tcp,
        stable_version: "v12".to_owned(),
        mirror: None,
        look: None,
        canary: None,
        rollout: None,
    }
}

/// A canary at 10.0.0.5:8001.
pub(crate) fn canary() -> Canary {
    Canary {
        version: "v13".to_owned(),
        address: ([10, 0, 0, 5], 8001).into(),
        share: Share::NONE,
        affinity: Affinity::Connection,
        steer_stale: Duration::from_secs(60),
        max_new_connections_per_second: 1_000,
        xdp: None,
    }
}

/// A way by eth1.
pub(super) fn way() -> Way {
    Way {
        link: link("eth1", 3),
        local: [10, 1, 0, 5].into(),
        mtu: 1500,
        next_hop: [10, 1, 0, 9].into(),
        mac: Some([1, 2, 3, 4, 5, 6]),
        speed: None,
        dropped: 0,
    }
}

/// An Ethernet device.
pub(crate) fn link(name: &str, index: u32) -> Link {
    Link {
        name: name.to_owned(),
        index,
        ethernet: true,
        ..Link::default()
    }
}
