//! Responses that leave by another way than requests come in by.

use tests::{Scene, Trial, veth};

use super::{mirrors_and_steers_away, mirrors_once, steers_half};

/// A second cable between the client's host and the node, by which all responses leave:
///
/// ```text
/// client eth0 ──── requests ───> eth0 node
///        eth1 <─── responses ─── eth2
/// 10.7.0.2                10.7.0.5
/// ```
fn two_ways(scene: &Scene) {
    let (client, node) = (&scene.net.client, &scene.net.node);
    veth((client, "eth1"), (node, "eth2")).unwrap();
    client.address("eth1", "10.7.0.2/24").unwrap();
    node.address("eth2", "10.7.0.5/24").unwrap();
    for (host, device) in [(client, "eth1"), (node, "eth0")] {
        for device in ["all", device] {
            host.sysctl(&format!("net/ipv4/conf/{device}/rp_filter"), "0")
                .unwrap();
        }
    }
    node.ip("route add 10.0.0.2/32 via 10.7.0.2 dev eth2 src 10.0.0.5")
        .unwrap();
}

#[test]
fn asymmetric_routing_is_mirrored_where_both_ways_are_named() {
    for interfaces in [["eth0", "eth2"], ["eth2", "eth0"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        two_ways(&trial.scene);
        trial.scene.set_interfaces(&interfaces);
        trial.start_mirrored();
        mirrors_once(&trial.scene, "10.0.0.5:8000");
        steers_half(&trial, "10.0.0.5:8000");
    }
}

/// Its answers go back by the way that requests come in by.
#[test]
fn asymmetric_routing_steers_to_another_host() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    two_ways(&trial.scene);
    trial.scene.set_interfaces(&["eth0", "eth2"]);
    mirrors_and_steers_away(&mut trial, "10.0.0.5:8000");
}
