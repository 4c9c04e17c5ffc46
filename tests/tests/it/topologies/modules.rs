//! What not every kernel has: VLANs, bonds, VRFs, flow tables. `cargo xtask test --kernel` runs these on
//! kernels of distributions.

use nix::sys::signal::Signal;
use tests::{Namespace, Scene, Trial, veth};

use super::pods::routed_pod;
use super::{
    canary_elsewhere, check_refuses, mirrors_all, mirrors_and_steers_away, mirrors_once,
    set_is_refused, steers_half,
};

const DIALLED: &str = "10.0.0.5:8000";

/// Both ends' addresses are on VLAN 5 of the cable between them.
fn vlan(scene: &Scene) {
    let net = &scene.net;
    for (host, own) in [(&net.node, "10.0.0.5/24"), (&net.client, "10.0.0.2/24")] {
        for line in [
            "address flush dev eth0",
            "link add link eth0 name eth0.5 type vlan id 5",
            "link set eth0.5 up",
        ] {
            host.ip(line).unwrap();
        }
        host.address("eth0.5", own).unwrap();
    }
}

#[test]
#[ignore = "needs a kernel with 802.1q: cargo xtask test --kernel 6.12"]
fn a_vlan_or_its_nic_is_tapped_and_not_both() {
    for interfaces in [&["eth0.5"][..], &["eth0"], &["eth0", "eth0.5"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        vlan(&trial.scene);
        trial.scene.set_interfaces(interfaces);
        trial.start_mirrored();
        mirrors_all(&trial.scene, DIALLED);
        if interfaces.len() == 2 {
            let said = "eth0.5 is a vlan on eth0: a packet passes both";
            let status = trial.scene.modelmirror(&["status"]);
            assert!(status.contains(said), "{status}");
            check_refuses(&trial.scene, said);
        }
        steers_half(&trial, DIALLED);
    }
}

#[test]
#[ignore = "needs a kernel with 802.1q: cargo xtask test --kernel 6.12"]
fn a_vlan_steers_to_another_host() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    vlan(&trial.scene);
    trial.scene.set_interfaces(&["eth0.5"]);
    mirrors_and_steers_away(&mut trial, DIALLED);
}

/// On the NIC itself frames have tags, which a redirected packet would lose.
#[test]
#[ignore = "needs a kernel with 802.1q: cargo xtask test --kernel 6.12"]
fn a_nic_below_a_vlan_steers_nobody_away() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    vlan(&trial.scene);
    canary_elsewhere(&mut trial);
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    set_is_refused(&trial, "name eth0.5 itself");
    check_refuses(&trial.scene, "frames on eth0 have VLAN tags");
}

/// Both ends' addresses are on bonds of two cables.
fn bond(scene: &Scene) {
    let net = &scene.net;
    veth((&net.client, "eth1"), (&net.node, "eth2")).unwrap();
    for (host, second, own) in [
        (&net.node, "eth2", "10.0.0.5/24"),
        (&net.client, "eth1", "10.0.0.2/24"),
    ] {
        host.ip("link add bond0 type bond mode balance-xor xmit_hash_policy layer3+4 miimon 100")
            .unwrap();
        for port in ["eth0", second] {
            host.ip(&format!("address flush dev {port}")).unwrap();
            host.ip(&format!("link set {port} down")).unwrap();
            host.ip(&format!("link set {port} master bond0")).unwrap();
        }
        host.ip("link set bond0 up").unwrap();
        host.address("bond0", own).unwrap();
    }
    let carries = |host: &Namespace| {
        let shown = host.ip("link show dev bond0")?;
        anyhow::ensure!(shown.contains("state UP"), "{shown}");
        Ok(())
    };
    tests::eventually("the bonds carry", || {
        carries(&net.node)?;
        carries(&net.client)
    });
}

#[test]
#[ignore = "needs a kernel with bonds: cargo xtask test --kernel 6.12"]
fn a_bond_or_all_its_ports_are_tapped() {
    for interfaces in [&["bond0"][..], &["eth0", "eth2"], &["bond0", "eth0"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        bond(&trial.scene);
        trial.scene.set_interfaces(interfaces);
        trial.start_mirrored();
        mirrors_all(&trial.scene, DIALLED);
        if interfaces[0] == "bond0" && interfaces.len() == 2 {
            let said = "bond0 is a bond on eth0: a packet passes both";
            let status = trial.scene.modelmirror(&["status"]);
            assert!(status.contains(said), "{status}");
            check_refuses(&trial.scene, said);
        }
        steers_half(&trial, DIALLED);
    }
}

#[test]
#[ignore = "needs a kernel with bonds: cargo xtask test --kernel 6.12"]
fn a_bond_steers_to_another_host() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    bond(&trial.scene);
    trial.scene.set_interfaces(&["bond0"]);
    mirrors_and_steers_away(&mut trial, DIALLED);
}

/// A bond has an LRO that can be switched; so have NICs, and no other virtual device that is to be had everywhere.
#[test]
#[ignore = "needs a kernel with bonds: cargo xtask test --kernel 6.12"]
fn lro_is_off_while_connections_go_to_another_host() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    bond(&trial.scene);
    let node = trial.scene.net.node.clone();
    let is_on = || {
        let shown = node.ethtool("-k bond0").unwrap();
        shown.contains("large-receive-offload: on")
    };
    let switched = |on: bool| {
        tests::eventually("LRO is switched", || {
            anyhow::ensure!(is_on() == on, "{}", node.ethtool("-k bond0")?);
            Ok(())
        });
    };
    node.ethtool("-K bond0 lro on").unwrap();
    assert!(is_on());
    trial.scene.set_interfaces(&["bond0"]);
    canary_elsewhere(&mut trial);
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    switched(false);
    steers_half(&trial, DIALLED);
    // A daemon that comes back knows what the first had switched off, and `off` needs none.
    trial.scene.modelmirror(&["off"]);
    switched(true);
    trial.set("0.5");
    switched(false);
    trial.scene.end_daemon(Signal::SIGKILL);
    let config = trial.scene.home.path().join("node.toml");
    let config = config.to_string_lossy();
    let said = trial.scene.modelmirror(&["off", "--config", &config]);
    assert!(said.contains("LRO of bond0 switched on again"), "{said}");
    assert!(is_on());
}

/// As with a bridge's.
#[test]
#[ignore = "needs a kernel with bonds: cargo xtask test --kernel 6.12"]
fn a_bond_s_ports_steer_nobody_away() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    bond(&trial.scene);
    trial.scene.set_interfaces(&["eth0", "eth2"]);
    canary_elsewhere(&mut trial);
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    set_is_refused(&trial, "name bond0 itself");
    check_refuses(&trial.scene, "is a port of the bond bond0");
}

/// The clients' NIC belongs to a VRF, and listeners outside of it take what comes in there.
fn vrf(scene: &Scene) {
    let node = &scene.net.node;
    for line in [
        "link add vrf0 type vrf table 10",
        "link set vrf0 up",
        "link set eth0 master vrf0",
    ] {
        node.ip(line).unwrap();
    }
    node.sysctl("net/ipv4/tcp_l3mdev_accept", "1").unwrap();
}

#[test]
#[ignore = "needs a kernel with VRFs: cargo xtask test --kernel 6.12"]
fn a_nic_in_a_vrf_is_mirrored_and_gives_a_canary_here_nobody() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    vrf(&trial.scene);
    trial.start_mirrored();
    mirrors_once(&trial.scene, DIALLED);
    let said = "eth0 belongs to the VRF vrf0";
    set_is_refused(&trial, said);
    check_refuses(&trial.scene, said);
}

#[test]
#[ignore = "needs a kernel with VRFs: cargo xtask test --kernel 6.12"]
fn a_nic_in_a_vrf_steers_to_another_host() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    vrf(&trial.scene);
    mirrors_and_steers_away(&mut trial, DIALLED);
}

/// Packets pass a VRF's own device past every program there.
#[test]
#[ignore = "needs a kernel with VRFs: cargo xtask test --kernel 6.12"]
fn a_vrf_itself_is_refused() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    vrf(&scene);
    scene.set_interfaces(&["vrf0"]);
    scene.start();
    let sent = scene.load(2, 10, crate::traffic::small);
    scene.serves(&sent);
    check_refuses(&scene, "vrf0 is a VRF");
}

/// What is forwarded is handed from one device to the other before the host's stack sees it; packets that
/// it does see are counted.
const FLOW_TABLE: &str = "
table ip fast {
    counter slow { }
    flowtable handed {
        hook ingress priority 0
        devices = { eth0, pod0 }
    }
    chain forward {
        type filter hook forward priority 0
        counter name slow
        meta l4proto tcp flow add @handed
    }
}
";

/// A pod behind a flow table, tapped at these.
fn behind_a_flow_table(interfaces: &[&str]) -> Option<Trial> {
    let mut trial = routed_pod()?;
    trial.scene.net.node.nft(FLOW_TABLE).unwrap();
    trial.scene.set_addresses(&["10.2.0.8:8000"]);
    trial.scene.set_interfaces(interfaces);
    Some(trial)
}

#[test]
#[ignore = "needs a kernel with flow tables: cargo xtask test --kernel 6.12"]
fn a_pod_behind_a_flow_table_is_mirrored() {
    for interfaces in [&["eth0"][..], &["pod0"], &["eth0", "pod0"]] {
        let Some(mut trial) = behind_a_flow_table(interfaces) else {
            return;
        };
        trial.service().remove("canary");
        let scene = &mut trial.scene;
        scene.start();
        mirrors_once(scene, "10.2.0.8:8000");
        let slow = scene.net.node.nft_counter("ip", "fast", "slow").unwrap();
        let all = scene
            .node_metrics()
            .sum("modelmirror_packets_total", &[("service", "digits")]);
        assert!(
            slow > 0 && slow as f64 * 4.0 < all,
            "{slow} of {all} were not handed on"
        );
    }
}

#[test]
#[ignore = "needs a kernel with flow tables: cargo xtask test --kernel 6.12"]
fn a_pod_behind_a_flow_table_steers_to_another_host() {
    for interfaces in [&["eth0"][..], &["eth0", "pod0"]] {
        let Some(mut trial) = behind_a_flow_table(interfaces) else {
            return;
        };
        mirrors_and_steers_away(&mut trial, "10.2.0.8:8000");
    }
}
