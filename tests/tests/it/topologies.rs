//! The node's network as it may be, a row of docs/how-to/choose-interface.md each: what is tapped, and whether the
//! mirror, a canary on this host and one on another get what clients send.

use anyhow::ensure;
use tests::{Exchange, Namespace, Scene, Server, Trial, binary, eventually, large, veth};

use crate::traffic::{copied_once, send_mixed};

mod bridges;
mod kube_proxy;
mod modules;
mod netfilter;
mod nics;
mod peers;
mod pods;
mod routes;
mod unseen;

/// The node's addresses are on a bridge that has the clients' NIC as a port.
fn bridge_the_nic(scene: &Scene) {
    let node = &scene.net.node;
    node.ip("link add br0 type bridge").unwrap();
    // With IPv6, the bridge would now and then ask around, in frames that are foreign to clients.
    node.sysctl("net/ipv6/conf/br0/disable_ipv6", "1").unwrap();
    for line in [
        "address flush dev eth0",
        "link set br0 up",
        "link set eth0 master br0",
    ] {
        node.ip(line).unwrap();
    }
    node.address("br0", "10.0.0.5/24").unwrap();
    call_netfilter(scene, false);
}

/// Whether bridges have netfilter take what passes them.
fn call_netfilter(scene: &Scene, calls: bool) {
    for family in ["iptables", "ip6tables"] {
        let name = format!("net/bridge/bridge-nf-call-{family}");
        let value = if calls { "1" } else { "0" };
        scene.net.node.sysctl(&name, value).unwrap();
    }
}

/// A pod at 10.2.0.8 behind a bridge, as CNIs without a network of their own do it:
///
/// ```text
/// node cni0 ── pod0 ───────────── eth0 pod
/// 10.2.0.5                  10.2.0.8
/// ```
fn pod_behind_a_bridge(scene: &Scene) -> Namespace {
    let (net, pod) = (&scene.net, Namespace::new("pod").unwrap());
    let node = &net.node;
    veth((node, "pod0"), (&pod, "eth0")).unwrap();
    for line in [
        "link add cni0 type bridge",
        "link set cni0 up",
        "link set pod0 master cni0",
    ] {
        node.ip(line).unwrap();
    }
    node.address("cni0", "10.2.0.5/24").unwrap();
    pod.address("eth0", "10.2.0.8/24").unwrap();
    node.sysctl("net/ipv4/ip_forward", "1").unwrap();
    net.client.ip("route add default via 10.0.0.5").unwrap();
    pod.ip("route add default via 10.2.0.5").unwrap();
    pod
}

/// What clients dial in a pod.
const POD: &str = "10.2.0.8:8000";

/// A scene whose production is in a pod behind a bridge, tapped at `interfaces`.
fn bridged_pod(interfaces: &[&str]) -> Option<Scene> {
    let mut scene = Scene::new()?;
    let pod = pod_behind_a_bridge(&scene);
    let answers = scene.production.answers().clone();
    scene.production = Server::start(&pod, "0.0.0.0:8000".parse().unwrap(), &answers).unwrap();
    scene.set_addresses(&[POD]);
    scene.set_interfaces(interfaces);
    Some(scene)
}

/// Everything is mirrored, and nothing twice.
#[track_caller]
fn mirrors_once(scene: &Scene, server: &str) -> Vec<Exchange> {
    let sent = send_mixed(scene, &[server]);
    scene.prove(&sent);
    copied_once(scene, &sent);
    sent
}

/// The same where the host itself talks to the client's now and then, as bridges and bonds do.
#[track_caller]
fn mirrors_all(scene: &Scene, server: &str) {
    let sent = send_mixed(scene, &[server]);
    scene.complete(&sent, &[]);
    copied_once(scene, &sent);
}

/// The canary is on the shadow host, by a way of its own.
#[track_caller]
fn canary_elsewhere(trial: &mut Trial) {
    let far = trial.scene.net.shadow.clone();
    trial.place_canary(&far, "0.0.0.0:8001", "10.1.0.9:8001");
}

/// Half of the connections go to the canary, as both servers and the daemon count them, and all are answered.
#[track_caller]
fn steers_half(trial: &Trial, dialled: &str) {
    let before = trial.connections();
    trial.set("0.5");
    let sent = trial.scene.client_of(dialled).load(60, 3, large).unwrap();
    let split = trial.split(&sent);
    split.assert_share(0.5);
    eventually("all are counted", || {
        let now = trial.connections();
        let counted = [now[0] - before[0], now[1] - before[1]];
        ensure!(counted == split.connections, "{counted:?}, not {split:?}");
        Ok(())
    });
    trial.assert_calm();
}

/// The mirror first, and then a canary on another host.
#[track_caller]
fn mirrors_and_steers_away(trial: &mut Trial, dialled: &str) {
    canary_elsewhere(trial);
    trial.start_mirrored();
    mirrors_all(&trial.scene, dialled);
    trial.wait_for_canary(1.0);
    steers_half(trial, dialled);
}

/// `canary set` says at once that nothing can be steered.
#[track_caller]
fn set_is_refused(trial: &Trial, words: &str) {
    let line = ["canary", "set", "0.5", "--service", "digits"];
    let scene = &trial.scene;
    let refused = scene.home.modelmirror(&scene.net.node, &line);
    let said = format!("{:#}", refused.unwrap_err());
    assert!(said.contains(words), "{said}");
}

/// What `check` finds.
#[track_caller]
fn finds(scene: &Scene) -> String {
    let program = binary("modelmirror").unwrap();
    let mut check = scene.net.node.command(program);
    let check = check
        .arg("check")
        .arg("--config")
        .arg(scene.daemon().config());
    String::from_utf8(check.output().unwrap().stdout).unwrap()
}

/// `check` refuses with these words.
#[track_caller]
fn check_refuses(scene: &Scene, words: &str) {
    let said = finds(scene);
    let mut lines = said.lines();
    let found = lines.any(|line| line.starts_with("REFUSE") && line.contains(words));
    assert!(found, "{said}");
}
