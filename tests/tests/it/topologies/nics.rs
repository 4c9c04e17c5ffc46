//! The clients' NIC, and what stands on it.

use tests::{Namespace, Scene, Trial, large};

use super::{check_refuses, mirrors_and_steers_away, mirrors_once};

/// The node's addresses are on a macvlan of the clients' NIC.
pub(super) fn macvlan(scene: &Scene) {
    let node: &Namespace = &scene.net.node;
    // Else the NIC answers for the macvlan's address too, and who is asked last wins.
    node.sysctl("net/ipv4/conf/all/arp_ignore", "1").unwrap();
    for line in [
        "link add mv0 link eth0 type macvlan mode bridge",
        "address flush dev eth0",
        "link set mv0 up",
    ] {
        node.ip(line).unwrap();
    }
    node.address("mv0", "10.0.0.5/24").unwrap();
    // Who knows the NIC's own hardware address would go on sending there.
    scene.net.client.ip("neighbour flush dev eth0").unwrap();
}

#[test]
fn a_macvlan_or_its_nic_is_tapped_and_not_both() {
    for interfaces in [&["eth0"][..], &["mv0"], &["eth0", "mv0"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        macvlan(&trial.scene);
        let scene = &mut trial.scene;
        scene.set_interfaces(interfaces);
        scene.start();
        mirrors_once(scene, "10.0.0.5:8000");
        if interfaces.len() == 2 {
            let said = "mv0 is a macvlan on eth0: a packet passes both";
            let status = scene.modelmirror(&["status"]);
            assert!(status.contains(said), "{status}");
            check_refuses(scene, said);
        }
        trial.set("0.5");
        let sent = trial.scene.client.load(60, 3, large).unwrap();
        trial.split(&sent).assert_share(0.5);
        trial.assert_calm();
    }
}

#[test]
fn a_macvlan_or_its_nic_steers_to_another_host() {
    for interface in ["eth0", "mv0"] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        macvlan(&trial.scene);
        trial.scene.set_interfaces(&[interface]);
        mirrors_and_steers_away(&mut trial, "10.0.0.5:8000");
    }
}
