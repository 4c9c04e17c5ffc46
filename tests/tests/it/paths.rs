//! Every way by which clients' packets may come and copies may leave.

use tests::{Client, Exchange, Request, Scene, Server, Transport, Weather, tun};

use crate::traffic::{both_ways, copied_once, mixed, send_mixed};

/// One listener for both families, tapped at any address of the host.
#[test]
fn a_dual_stack_listener_is_mirrored() {
    let Some(scene) = Scene::started() else {
        return;
    };
    scene.prove(&send_mixed(&scene, &["10.0.0.5:8000", "[fd00:0::5]:8000"]));
}

/// What clients dial is written out; what is at the same port of another address is not a service.
#[test]
fn only_the_addresses_of_the_service_are_mirrored() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.net.node.address("eth0", "10.0.0.6/24").unwrap();
    scene.set_addresses(&["10.0.0.5:8000", "[fd00:0::5]:8000"]);
    scene.start();
    let sent = send_mixed(&scene, &["10.0.0.5:8000", "[fd00:0::5]:8000"]);
    let elsewhere = scene.send("10.0.0.6:8000", &mixed());
    scene.complete(&sent, &[]);
    scene.account(&[sent, elsewhere].concat());
}

#[test]
fn loopback_is_mirrored() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_interfaces(&["lo"]);
    scene.start();
    let mut sent = Vec::new();
    for server in ["127.0.0.1:8000", "[::1]:8000", "10.0.0.5:8000"] {
        let address = server.parse().unwrap();
        let client = Client::new(&scene.net.node, address, scene.production.answers());
        let requests = mixed();
        let load = client.load(1, requests.len(), |_, index| requests[index].clone());
        sent.extend(load.unwrap());
    }
    scene.prove(&sent);
    copied_once(&scene, &sent);
}

/// A pod's server, tapped at the host's end of its cable.
#[test]
fn a_pod_is_mirrored() {
    pod(&["pod0"]);
}

/// Both the clients' interface and the pod's see every packet: it counts, and is copied, once.
#[test]
fn a_pod_that_is_tapped_twice_is_mirrored_once() {
    pod(&["eth0", "pod0"]);
}

#[track_caller]
fn pod(interfaces: &[&str]) {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let pod = scene.net.pod().unwrap();
    let answers = scene.production.answers().clone();
    scene.production = Server::start(&pod, "[::]:8000".parse().unwrap(), &answers).unwrap();
    scene.set_addresses(&["10.2.0.8:8000", "[fd00:2::8]:8000"]);
    scene.set_interfaces(interfaces);
    scene.start();
    let sent = send_mixed(&scene, &["10.2.0.8:8000", "[fd00:2::8]:8000"]);
    scene.prove(&sent);
    copied_once(&scene, &sent);
}

#[test]
fn ipv6_carries_the_tunnel() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_mirror("agent", "[fd00:1::9]:6181");
    scene.start();
    let mut sent = send_mixed(&scene, &["10.0.0.5:8000", "[fd00:0::5]:8000"]);
    scene.net.lone_segments().unwrap();
    sent.extend(send_mixed(&scene, &["10.0.0.5:8000", "[fd00:0::5]:8000"]));
    scene.prove(&sent);
}

/// Switches of the uplink, each a line of `ethtool -K eth1`, one after another: what a NIC can do
/// decides who cuts super-packets, and where.
const UPLINKS: [&str; 6] = [
    "tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off",
    "tso off",
    "gso off",
    "tx off",
    "tx on",
    "gso on tso on tx-udp_tnl-segmentation on tx-udp_tnl-csum-segmentation on",
];

#[test]
fn offloads_of_the_uplink_do_not_matter() {
    let Some(scene) = Scene::started() else {
        return;
    };
    let mut sent = Vec::new();
    for switches in UPLINKS {
        let line = format!("-K eth1 {switches}");
        scene.net.node.ethtool(&line).unwrap();
        sent.extend(send_mixed(&scene, &["10.0.0.5:8000", "[fd00:0::5]:8000"]));
    }
    scene.prove(&sent);
}

/// Segments that the node itself puts together, to super-packets of more parts than one packet can
/// have: they leave as they are where the uplink has room for their segments, to the byte, and else
/// in smaller ones.
#[test]
fn received_super_packets_are_mirrored() {
    let Some(scene) = Scene::started() else {
        return;
    };
    scene.net.client.ethtool("-K eth0 tso off gso off").unwrap();
    scene.net.node.ethtool("-K eth0 gro on").unwrap();
    let requests = both_ways(5 << 20);
    let mut sent = Vec::new();
    for mtu in [1500, 1563, 1564, 9000] {
        let line = format!("mtu {mtu}");
        scene.net.node.ip(&format!("link set eth1 {line}")).unwrap();
        scene
            .net
            .shadow
            .ip(&format!("link set eth0 {line}"))
            .unwrap();
        // Until the daemon has seen it.
        sent.extend(send_mixed(&scene, &["10.0.0.5:8000"]));
        sent.extend(scene.send("10.0.0.5:8000", &requests));
        for switches in [UPLINKS[0], UPLINKS[2], UPLINKS[5]] {
            let line = format!("-K eth1 {switches}");
            scene.net.node.ethtool(&line).unwrap();
            sent.extend(send_mixed(&scene, &["10.0.0.5:8000", "[fd00:0::5]:8000"]));
        }
        sent.extend(scene.send("[fd00:0::5]:8000", &requests));
    }
    scene.prove(&sent);
}

/// Full packets of 1,500 bytes, each by itself, do not fit the tunnel on a path of 1,500.
#[test]
fn lone_full_segments_are_split() {
    let Some(scene) = Scene::started() else {
        return;
    };
    scene.net.lone_segments().unwrap();
    let mut sent = Vec::new();
    for switches in ["gro off", "gro on"] {
        let line = format!("-K eth0 {switches}");
        scene.net.node.ethtool(&line).unwrap();
        sent.extend(send_mixed(&scene, &["10.0.0.5:8000", "[fd00:0::5]:8000"]));
    }
    scene.prove(&sent);
}

/// An uplink without link-layer headers, as WireGuard's.
#[test]
fn a_tun_carries_the_tunnel() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let (node, shadow) = (&scene.net.node, &scene.net.shadow);
    let _cable = tun((node, "tun0"), (shadow, "tun0"), Weather::default()).unwrap();
    node.address("tun0", "10.9.0.5/24").unwrap();
    shadow.address("tun0", "10.9.0.9/24").unwrap();
    scene.set_mirror("agent", "10.9.0.9:6181");
    scene.start();
    let mut sent = send_mixed(&scene, &["10.0.0.5:8000"]);
    scene.net.lone_segments().unwrap();
    sent.extend(scene.send("[fd00:0::5]:8000", &[Request::get("/bytes/70000")]));
    scene.prove(&sent);
}

/// Which agents are behind a router that passes on no more than 1,280 bytes.
const BEHIND_A_ROUTER: [&str; 2] = ["10.5.0.9:6181", "[fd00:5::9]:6181"];

/// A router on the way has a smaller MTU than both ends: it says so to whoever sends too much, and passes
/// on nothing of that. Returns what was sent, and how often it said so.
#[track_caller]
fn narrow(scene: &mut Scene, agent: &str, known: bool) -> (Vec<Exchange>, u64) {
    let router = scene.net.router(1280).unwrap();
    if known {
        for route in [
            "10.5.0.0/24 via 10.4.0.1",
            "fd00:5::/64 via fd00:4::1 metric 10",
        ] {
            let line = format!("route replace {route} mtu 1280");
            scene.net.node.ip(&line).unwrap();
        }
    }
    scene.set_mirror("agent", agent);
    scene.start();
    let sent = send_mixed(scene, &["10.0.0.5:8000", "[fd00:0::5]:8000"]);
    scene.account(&sent);
    let too_large = ["Ip", "Ip6"].map(|group| router.counter(group, "FragFails").unwrap());
    (sent, too_large.iter().sum())
}

/// A connection finds out by itself. Datagrams of the kernel's are lost, and counted.
#[test]
fn a_narrow_router_that_nobody_knows_of_loses_datagrams_alone() {
    for agent in BEHIND_A_ROUTER {
        let Some(mut scene) = Scene::new() else {
            return;
        };
        let (sent, too_large) = narrow(&mut scene, agent, false);
        assert!(too_large > 0, "{agent}: the path was wide enough");
        match Transport::of_this_run() {
            Transport::Stream => scene.complete(&sent, &[]),
            Transport::Geneve => {
                let outcome = scene.settle();
                let lost = outcome.copies("lost") + outcome.copies("partial");
                assert!(lost > 0, "{agent}\n{}", outcome.metrics);
            }
        }
    }
}

/// Told by the route, the kernel makes datagrams small enough.
#[test]
fn a_narrow_router_that_the_route_knows_of_loses_nothing() {
    for agent in BEHIND_A_ROUTER {
        let Some(mut scene) = Scene::new() else {
            return;
        };
        let (sent, too_large) = narrow(&mut scene, agent, true);
        assert_eq!(too_large, 0, "{agent}: something was too large");
        // What the shadow host has no room for when it comes is lost too, and no fault of the way.
        let refused = ["Udp", "Udp6"].map(|group| {
            let shadow = &scene.net.shadow;
            shadow.counter(group, "RcvbufErrors").unwrap()
        });
        if refused == [0, 0] {
            scene.complete(&sent, &[]);
        } else {
            let outcome = scene.settle();
            let lost = outcome.copies("lost") + outcome.copies("partial");
            assert!(lost > 0, "{agent}\n{}", outcome.metrics);
        }
    }
}
