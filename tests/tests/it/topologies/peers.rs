//! CNIs that hand packets over past the host's stack, as Cilium does.

use tests::{ForeignProgram, Handing, Scene, Trial};

use super::mirrors_and_steers_away;
use super::pods::routed_pod;
use super::unseen::is_told;

const POD: &str = "10.2.0.8:8000";

/// Requests are put into the pod at once as they come in by the NIC, and responses go from the pod's cable to
/// the NIC's neighbour.
fn hand_over(scene: &Scene) -> [ForeignProgram; 2] {
    let hand_over = |device, address: &str, to, handing| {
        let address = address.parse().unwrap();
        ForeignProgram::hands_over(&scene.net.node, device, address, to, handing).unwrap()
    };
    // Then it is these programs, or nobody.
    scene.net.node.sysctl("net/ipv4/ip_forward", "0").unwrap();
    [
        hand_over("eth0", "10.2.0.8", "pod0", Handing::Peer),
        hand_over("pod0", "10.0.0.2", "eth0", Handing::Neighbour),
    ]
}

/// A trial whose pod is tapped at these, with the programs.
fn handed_over(interfaces: &[&str]) -> Option<(Trial, [ForeignProgram; 2])> {
    let mut trial = routed_pod()?;
    let programs = hand_over(&trial.scene);
    trial.scene.set_addresses(&[POD]);
    trial.scene.set_interfaces(interfaces);
    Some((trial, programs))
}

/// Our programs come first where they are attached last.
#[test]
fn a_pod_that_packets_are_handed_over_to_is_tapped_at_the_nic() {
    let Some((mut trial, _programs)) = handed_over(&["eth0"]) else {
        return;
    };
    mirrors_and_steers_away(&mut trial, POD);
}

#[test]
fn at_the_pod_s_cable_requests_that_are_handed_over_are_missed_and_that_is_told() {
    let Some((mut trial, _programs)) = handed_over(&["pod0"]) else {
        return;
    };
    trial.service().remove("canary");
    let scene = &mut trial.scene;
    scene.client = scene.client_of(POD);
    scene.start();
    is_told(scene, Some("request"));
}
