//! Pods and containers that are routed to, or dialled at an address of the node; tunnels; the loopback.

use tests::{Answers, Client, Server, Trial, large};

use super::mirrors_once;

/// As kube-proxy and `docker -p` do it for clients of other hosts.
const PUBLISHED: &str = "
table ip published {
    chain in {
        type nat hook prerouting priority dstnat
        iif eth0 tcp dport 8000 dnat to 10.2.0.8:8000
    }
}
";

/// A quiet trial whose stable is in a pod that the node routes to, at 10.2.0.8:8000.
fn routed_pod() -> Option<Trial> {
    let mut trial = Trial::quiet(|_| {})?;
    let pod = trial.scene.net.pod().unwrap();
    let listen = "0.0.0.0:8000".parse().unwrap();
    trial.scene.production = Server::start(&pod, listen, &Answers::of("v12")).unwrap();
    Some(trial)
}

/// Half of the connections to `dialled` go to a canary on another host.
#[track_caller]
fn steers_away(trial: &mut Trial, dialled: &str) {
    let far = trial.scene.net.shadow.clone();
    trial.place_canary(&far, "0.0.0.0:8001", "10.1.0.9:8001");
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    trial.set("0.5");
    let sent = trial.scene.client_of(dialled).load(60, 3, large).unwrap();
    trial.split(&sent).assert_share(0.5);
}

#[test]
fn a_routed_pod_steers_to_another_host() {
    for interfaces in [&["eth0"][..], &["eth0", "pod0"]] {
        let Some(mut trial) = routed_pod() else {
            return;
        };
        trial.scene.set_addresses(&["10.2.0.8:8000"]);
        trial.scene.set_interfaces(interfaces);
        steers_away(&mut trial, "10.2.0.8:8000");
    }
}

/// Either at the NIC with the published address, or at the pod's cable with its own.
#[test]
fn a_published_pod_is_mirrored() {
    for (interface, address) in [("eth0", "10.0.0.5:8000"), ("pod0", "10.2.0.8:8000")] {
        let Some(mut trial) = routed_pod() else {
            return;
        };
        trial.scene.net.node.nft(PUBLISHED).unwrap();
        trial.service().remove("canary");
        let scene = &mut trial.scene;
        scene.set_addresses(&[address]);
        scene.set_interfaces(&[interface]);
        scene.start();
        mirrors_once(scene, "10.0.0.5:8000");
    }
}

/// What is steered to another host is translated before netfilter sees it.
#[test]
fn a_published_pod_steers_to_another_host() {
    let Some(mut trial) = routed_pod() else {
        return;
    };
    trial.scene.net.node.nft(PUBLISHED).unwrap();
    trial.scene.set_addresses(&["10.0.0.5:8000"]);
    steers_away(&mut trial, "10.0.0.5:8000");
}

/// What comes in by a tunnel is seen on the tunnel's own interface.
#[test]
fn a_tunnel_is_tapped_where_it_ends() {
    for interfaces in [&["vx0"][..], &["eth0", "vx0"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        let net = &trial.scene.net;
        for (host, own, other) in [(&net.node, 5, 2), (&net.client, 2, 5)] {
            let ends = format!("local 10.0.0.{own} remote 10.0.0.{other} dev eth0");
            let kind = format!("type vxlan id 42 dstport 4789 {ends}");
            host.ip(&format!("link add vx0 mtu 1400 {kind}")).unwrap();
            host.ip("link set vx0 up").unwrap();
            host.address("vx0", &format!("10.6.0.{own}/24")).unwrap();
        }
        trial.scene.set_interfaces(interfaces);
        trial.start_daemon();
        trial.set("0.5");
        let client = trial.scene.client_of("10.6.0.5:8000");
        let sent = client.load(60, 3, large).unwrap();
        let split = trial.split(&sent);
        split.assert_share(0.5);
        assert_eq!(trial.connections(), split.connections);
    }
}

/// Clients on the node itself, as behind a sidecar.
#[test]
fn the_loopback_steers_on_this_host() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.scene.set_interfaces(&["lo"]);
    trial.start_daemon();
    trial.set("0.5");
    for server in ["127.0.0.1:8000", "10.0.0.5:8000"] {
        let server = server.parse().unwrap();
        let client = Client::new(
            &trial.scene.net.node,
            server,
            trial.scene.production.answers(),
        );
        let sent = client.load(60, 3, large).unwrap();
        trial.split(&sent).assert_share(0.5);
    }
    trial.assert_calm();
}
