//! Pods and containers that are routed to, or dialled at an address of the node; tunnels; the loopback.

use tests::{Answers, Client, Scene, Server, Trial, eventually, large};

use super::{canary_elsewhere, mirrors_all, mirrors_and_steers_away, mirrors_once, steers_half};

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
pub(super) fn routed_pod() -> Option<Trial> {
    let mut trial = Trial::quiet(|_| {})?;
    let pod = trial.scene.net.pod().unwrap();
    let listen = "0.0.0.0:8000".parse().unwrap();
    trial.scene.production = Server::start(&pod, listen, &Answers::of("v12")).unwrap();
    Some(trial)
}

/// Half of the connections to `dialled` go to a canary on another host.
#[track_caller]
fn steers_away(trial: &mut Trial, dialled: &str) {
    canary_elsewhere(trial);
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    steers_half(trial, dialled);
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

/// A vxlan between the client's host and the node, which is 10.6.0.5 in it.
fn tunnel(scene: &Scene) {
    let net = &scene.net;
    for (host, own, other) in [(&net.node, 5, 2), (&net.client, 2, 5)] {
        let ends = format!("local 10.0.0.{own} remote 10.0.0.{other} dev eth0");
        let kind = format!("type vxlan id 42 dstport 4789 {ends}");
        host.ip(&format!("link add vx0 mtu 1400 {kind}")).unwrap();
        host.ip("link set vx0 up").unwrap();
        host.address("vx0", &format!("10.6.0.{own}/24")).unwrap();
    }
}

#[test]
fn a_tunnel_steers_to_another_host() {
    for interfaces in [&["vx0"][..], &["eth0", "vx0"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        tunnel(&trial.scene);
        trial.scene.set_interfaces(interfaces);
        mirrors_and_steers_away(&mut trial, "10.6.0.5:8000");
    }
}

/// What comes in by a tunnel is seen on the tunnel's own interface.
#[test]
fn a_tunnel_is_tapped_where_it_ends() {
    for interfaces in [&["vx0"][..], &["eth0", "vx0"]] {
        let Some(mut trial) = Trial::quiet(|_| {}) else {
            return;
        };
        tunnel(&trial.scene);
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

/// docker-proxy without rules of netfilter (`"iptables": false`) is who listens, and the container has
/// connections of its own with it.
#[test]
#[ignore = "needs docker-proxy: cargo xtask test --kernel 6.12"]
fn docker_proxy_alone_is_a_server_on_the_node() {
    for away in [false, true] {
        let Some(mut trial) = routed_pod() else {
            return;
        };
        let node = trial.scene.net.node.clone();
        let mut command = node.command("sh");
        // It says that it is ready to whoever is at the other end of descriptor 3.
        let ends = "-host-ip 10.0.0.5 -host-port 8000 -container-ip 10.2.0.8 -container-port 8000";
        let line = format!("exec 3>/dev/null; exec docker-proxy -proto tcp {ends}");
        command.args(["-c", &line]);
        let _proxy = node.spawn("docker-proxy", command).unwrap();
        eventually("docker-proxy listens", || {
            node.run(|| std::net::TcpStream::connect("10.0.0.5:8000"))
        });
        if away {
            mirrors_and_steers_away(&mut trial, "10.0.0.5:8000");
        } else {
            trial.start_mirrored();
            mirrors_all(&trial.scene, "10.0.0.5:8000");
            steers_half(&trial, "10.0.0.5:8000");
        }
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
