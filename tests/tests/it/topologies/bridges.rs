//! Bridges with the clients' NIC, or with pods, as ports.

use anyhow::ensure;
use tests::{Request, Server, Trial, eventually, large};

use crate::traffic::{copied_once, send_mixed};

use super::{
    POD, bridge_the_nic, bridged_pod, call_netfilter, canary_elsewhere, check_refuses,
    mirrors_and_steers_away, mirrors_once, pod_behind_a_bridge, set_is_refused,
};

#[test]
fn a_pod_behind_a_bridge_is_mirrored() {
    for interfaces in [&["eth0"][..], &["pod0"], &["cni0"], &["eth0", "cni0"]] {
        let Some(mut scene) = bridged_pod(interfaces) else {
            return;
        };
        scene.start();
        mirrors_once(&scene, POD);
    }
}

/// Responses come in by the pod's cable and leave by the NIC, and the bridge between them hides that.
#[test]
fn a_nic_and_a_bridged_pod_are_not_tapped_together() {
    for interfaces in [["eth0", "pod0"], ["pod0", "cni0"]] {
        let Some(mut scene) = bridged_pod(&interfaces) else {
            return;
        };
        scene.start();
        mirrors_once(&scene, POD);
        let status = scene.modelmirror(&["status"]);
        let said = format!("shows the same packets as {}", interfaces[0]);
        assert!(status.contains(&said), "{status}");
        check_refuses(&scene, &said);
    }
}

#[test]
fn a_bridge_with_the_nic_is_mirrored() {
    for interfaces in [&["eth0"][..], &["br0"], &["eth0", "br0"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        bridge_the_nic(&trial.scene);
        let scene = &mut trial.scene;
        scene.set_interfaces(interfaces);
        scene.start();
        // The bridge talks to the client's host by itself, so not all that arrives there is proved.
        let sent = send_mixed(scene, &["10.0.0.5:8000"]);
        scene.complete(&sent, &[]);
        copied_once(scene, &sent);
        trial.set("0.5");
        let sent = trial.scene.client.load(60, 3, large).unwrap();
        trial.split(&sent).assert_share(0.5);
        trial.assert_calm();
    }
}

#[test]
fn a_bridge_with_the_nic_steers_to_another_host() {
    for calls in [false, true] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        bridge_the_nic(&trial.scene);
        call_netfilter(&trial.scene, calls);
        trial.scene.set_interfaces(&["br0"]);
        mirrors_and_steers_away(&mut trial, "10.0.0.5:8000");
    }
}

/// Answers to clients would leave by the port, where no neighbour ever answers.
#[test]
fn a_bridge_s_port_steers_nobody_away() {
    for interfaces in [&["eth0"][..], &["eth0", "br0"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        bridge_the_nic(&trial.scene);
        trial.scene.set_interfaces(interfaces);
        canary_elsewhere(&mut trial);
        trial.start_daemon();
        trial.wait_for_canary(1.0);
        set_is_refused(&trial, "name br0 itself");
        check_refuses(&trial.scene, "eth0 is a port of the bridge br0");
        let sent = trial.scene.client.load(20, 1, large).unwrap();
        assert_eq!(trial.scene.production.received().len(), sent.len());
    }
}

/// Netfilter takes what comes in by a port, and forgets whom it was given to; by then the bridge itself
/// still has it before it.
#[test]
fn a_bridge_that_calls_netfilter_is_tapped_itself() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    bridge_the_nic(&trial.scene);
    call_netfilter(&trial.scene, true);
    trial.start_daemon();
    set_is_refused(&trial, "name br0 itself");
    check_refuses(&trial.scene, "bridge-nf-call-iptables");
    trial.scene.end_daemon(nix::sys::signal::Signal::SIGTERM);
    trial.scene.set_interfaces(&["br0"]);
    trial.start_daemon();
    trial.set("0.5");
    let sent = trial.scene.client.load(60, 3, large).unwrap();
    trial.split(&sent).assert_share(0.5);
    trial.assert_calm();
}

/// Where only what leaves for the pod is seen, nobody can be given to a canary of another host.
#[test]
fn a_pod_s_own_interface_steers_nobody() {
    for interface in ["pod0", "cni0"] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        let pod = pod_behind_a_bridge(&trial.scene);
        let listen = "0.0.0.0:8000".parse().unwrap();
        let answers = trial.scene.production.answers().clone();
        let stable = Server::start(&pod, listen, &answers).unwrap();
        trial.scene.set_addresses(&[POD]);
        trial.scene.set_interfaces(&[interface]);
        let far = trial.scene.net.shadow.clone();
        trial.place_canary(&far, "0.0.0.0:8001", "10.1.0.9:8001");
        trial.service()["canary"]
            .as_table_mut()
            .unwrap()
            .insert("share".into(), 0.5.into());
        trial.start_daemon();
        trial.wait_for_canary(1.0);
        set_is_refused(&trial, "only as they leave for the servers");
        check_refuses(&trial.scene, "only as they leave for the servers");
        let status = trial.scene.modelmirror(&["status"]);
        assert!(status.contains("only as they leave"), "{status}");
        let client = trial.scene.client_of(POD);
        let sent = client.load(20, 1, |_, _| Request::get("/label")).unwrap();
        assert_eq!(stable.received().len(), sent.len());
    }
}

/// The NIC in front of the pod sees clients come in.
#[test]
fn the_nic_in_front_of_a_pod_steers_to_another_host() {
    for interfaces in [&["eth0"][..], &["eth0", "cni0"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        let pod = pod_behind_a_bridge(&trial.scene);
        let listen = "0.0.0.0:8000".parse().unwrap();
        let answers = trial.scene.production.answers().clone();
        trial.scene.production = Server::start(&pod, listen, &answers).unwrap();
        trial.scene.set_addresses(&[POD]);
        trial.scene.set_interfaces(interfaces);
        let far = trial.scene.net.shadow.clone();
        trial.place_canary(&far, "0.0.0.0:8001", "10.1.0.9:8001");
        trial.start_daemon();
        trial.wait_for_canary(1.0);
        trial.set("0.5");
        let sent = trial.scene.client_of(POD).load(60, 3, large).unwrap();
        let split = trial.split(&sent);
        split.assert_share(0.5);
        eventually("all are counted", || {
            let counted = trial.connections();
            ensure!(counted == split.connections, "{counted:?}");
            Ok(())
        });
        trial.assert_calm();
    }
}
