//! Canaries on another host: connections are translated both ways.

use std::net::SocketAddr;

use anyhow::ensure;
use mirror_common::packet::{RST, SYN};
use nix::sys::signal::Signal;
use tests::{Trial, eventually, inject, large, request_frames};

use super::control::finish_or_reset;
use super::{ask, connect, version, who};

/// Where the canary is, beyond the node's other cable.
const CANARY: &str = "10.1.0.9:8001";

/// A trial with the canary there, before the daemon starts.
fn quiet(known_as: &str) -> Option<Trial> {
    let mut trial = Trial::quiet(|_| {})?;
    let far = trial.scene.net.shadow.clone();
    trial.place_canary(&far, "[::]:8001", known_as);
    Some(trial)
}

/// The same, once the daemon knows that the canary answers.
fn started() -> Option<Trial> {
    let mut trial = quiet(CANARY)?;
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    Some(trial)
}

/// Bodies of many packets, both ways, which the client holds byte for byte against what it expects;
/// what the daemon counts of each version is what its server saw.
#[track_caller]
fn check(known_as: &str, dialled: &str, change: impl FnOnce(&mut Trial)) {
    let Some(mut trial) = quiet(known_as) else {
        return;
    };
    change(&mut trial);
    let takes_early = trial.service()["canary"].get("xdp").is_some();
    if takes_early {
        let look = toml::toml! { canary = 0.0 };
        trial.service().insert("look".into(), look.into());
    }
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    trial.set("0.3");
    let client = trial.scene.client_of(dialled);
    let sent = client.load(60, 5, large).unwrap();
    let split = trial.split(&sent);
    split.assert_share(0.3);
    assert_eq!(trial.connections(), split.connections);
    // What is read is copied at TC: of a canary at XDP nothing, or the test would not be of XDP.
    let read = match takes_early {
        true => [split.requests[0], 0],
        false => split.requests,
    };
    trial.wait_for_responses(read);
    let timed = trial.metrics("modelmirror_first_body_byte_seconds_count", &[]);
    assert_eq!(timed, read);
    assert_eq!(trial.resets(), 0);
    let early = xdp_packets(&trial);
    let canary = trial.metric("modelmirror_arm_packets_total", "canary", &[]);
    assert_eq!(early, if takes_early { canary } else { 0 });
    // A packet that passes this host counts once, where it came in.
    let metrics = trial.scene.node_metrics();
    let of = |name| metrics.sum(name, &[("service", "digits")]);
    assert_eq!(
        of("modelmirror_packets_total"),
        of("modelmirror_arm_packets_total")
    );
    for host in [&trial.scene.net.client, &trial.scene.net.shadow] {
        assert_eq!(
            host.counter("Tcp", "InCsumErrors").unwrap(),
            0,
            "{}",
            host.name()
        );
    }
}

/// How many packets were taken at XDP.
fn xdp_packets(trial: &Trial) -> u64 {
    let name = "modelmirror_xdp_packets_total";
    let metrics = trial.scene.node_metrics();
    metrics.sum(name, &[("service", "digits")]) as u64
}

#[test]
fn a_share_goes_to_another_host_over_ipv4() {
    check(CANARY, "10.0.0.5:8000", |_| {});
}

#[test]
fn a_share_goes_to_another_host_over_ipv6() {
    check("[fd00:1::9]:8001", "[fd00::5]:8000", |trial| {
        trial.scene.set_addresses(&["[fd00::5]:8000"]);
    });
}

/// `*:8000` means this host's addresses: another host's canary may listen at that port.
#[test]
fn a_canary_on_another_host_may_listen_at_the_service_s_port() {
    const SAME: &str = "10.1.0.9:8000";
    check(SAME, "10.0.0.5:8000", |trial| {
        let far = trial.scene.net.shadow.clone();
        trial.place_canary(&far, "[::]:8000", SAME);
    });
}

/// Packets one by one, with the checksums that the sender wrote.
#[test]
fn a_share_goes_to_another_host_without_offloads() {
    check(CANARY, "10.0.0.5:8000", |trial| {
        trial.scene.net.lone_segments().unwrap();
        for host in [&trial.scene.net.client, &trial.scene.net.shadow] {
            host.ethtool("-K eth0 tx off").unwrap();
        }
    });
}

/// The canary is on the clients' own network: everything passes one device, twice.
#[test]
fn a_share_goes_back_by_where_it_came_in() {
    for hook in [None, Some("generic"), Some("native")] {
        let canary = "10.0.0.2:8001";
        check(canary, "10.0.0.5:8000", |trial| {
            let near = trial.scene.net.client.clone();
            trial.place_canary(&near, "[::]:8001", canary);
            if let Some(hook) = hook {
                early(trial, hook);
            }
        });
    }
}

/// A pod on the node, with a network namespace of its own.
#[test]
fn a_share_goes_to_a_pod() {
    let canary = "10.2.0.8:8001";
    check(canary, "10.0.0.5:8000", |trial| {
        let pod = trial.scene.net.pod().unwrap();
        trial.place_canary(&pod, "[::]:8001", canary);
    });
}

/// Copies are made at TC, so what is copied is not taken before.
#[test]
fn what_is_mirrored_is_not_taken_early() {
    let Some(mut trial) = quiet(CANARY) else {
        return;
    };
    early(&mut trial, "native");
    trial.scene.set_mirror("arms", vec!["stable", "canary"]);
    let canary = trial.service()["canary"].as_table_mut().unwrap();
    canary.insert("share".into(), 0.5.into());
    trial.scene.start();
    trial.wait_for_canary(1.0);
    let status = trial.scene.modelmirror(&["status"]);
    assert!(
        status.contains("NOT AT XDP: its connections are copied"),
        "{status}"
    );
    let sent = trial.scene.client.load(40, 3, large).unwrap();
    let split = trial.split(&sent);
    split.assert_share(0.5);
    assert_eq!(xdp_packets(&trial), 0);
    let outcome = trial.scene.settle();
    assert_eq!(
        outcome.requests("compared"),
        split.requests.iter().sum::<u64>()
    );
}

/// Ten ports: who finds none gets stable; those of ended connections serve others.
#[test]
fn ports_run_out_and_come_back() {
    let Some(mut trial) = quiet(CANARY) else {
        return;
    };
    let ports = "61000-61009";
    let config = &mut trial.scene.node_config;
    config.insert("translation_ports".into(), ports.into());
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    trial.set("1");
    for _ in 0..2 {
        let mut connections = connect(&trial.scene.client, 40);
        let sent = ask(&mut connections);
        let split = trial.split(&sent);
        let [stable, canary] = split.connections;
        assert!(
            (3..=10).contains(&canary) && stable + canary == 40,
            "{split:?}"
        );
        let canary = trial.canary_asked();
        for (connection, exchange) in connections.iter_mut().zip(&sent) {
            let again = connection.exchange(&large(0, 1)).unwrap();
            if canary.contains(&exchange.id) {
                assert!(trial.canary_asked().contains(&again.id), "{again:?}");
            }
        }
        // A reset leaves nothing to be waited out.
        for connection in &mut connections {
            socket2::SockRef::from(&*connection.stream())
                .set_linger(Some(std::time::Duration::ZERO))
                .unwrap();
        }
        drop(connections);
        eventually("all connections have ended", || {
            let open = trial.metrics("modelmirror_connections_open", &[]);
            ensure!(open == [0, 0], "{open:?}");
            Ok(())
        });
    }
    assert!(trial.steered("stable", "no_port") >= 60);
}

/// The next daemon takes over what is open, and the programs and tables with it.
#[test]
fn a_daemon_may_die() {
    for hook in [None, Some("native")] {
        let Some(mut trial) = quiet(CANARY) else {
            return;
        };
        if let Some(hook) = hook {
            early(&mut trial, hook);
        }
        trial.start_daemon();
        trial.wait_for_canary(1.0);
        trial.set("0.5");
        let mut connections = connect(&trial.scene.client, 40);
        let mut sent = ask(&mut connections);
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            trial.scene.end_daemon(signal);
            sent.extend(ask(&mut connections));
            sent.extend(trial.scene.client.load(20, 1, large).unwrap());
            trial.scene.start_daemon(&[]);
            sent.extend(ask(&mut connections));
            sent.extend(trial.scene.client.load(20, 1, large).unwrap());
        }
        let split = trial.split(&sent);
        split.assert_share(0.5);
        assert_eq!(trial.connections(), split.connections);
        assert_eq!(trial.resets(), 0);
    }
}

/// A SYN out of the blue, as a forger would send it: the canary's host judges it, and the connection goes
/// on. A client that has begun anew has its connection all the same.
#[test]
fn a_syn_for_an_established_connection_begins_no_other() {
    for hook in [None, Some("native")] {
        let Some(mut trial) = quiet(CANARY) else {
            return;
        };
        if let Some(hook) = hook {
            early(&mut trial, hook);
        }
        trial.start_daemon();
        trial.wait_for_canary(1.0);
        trial.set("0.5");
        let mut connections = connect(&trial.scene.client, 20);
        let mut sent = ask(&mut connections);
        for connection in &connections {
            let SocketAddr::V4(client) = connection.local() else {
                panic!("{:?} is IPv6", connection.local());
            };
            let server = "10.0.0.5:8000".parse().unwrap();
            let frames = request_frames(client, server, &[], b"never sent");
            inject(&trial.scene.net.client, "eth0", &frames[0]).unwrap();
        }
        sent.extend(ask(&mut connections));
        let split = trial.split(&sent);
        split.assert_share(0.5);
        assert_eq!(trial.connections(), split.connections);
        assert_eq!(trial.resets(), 0);

        trial.set("1");
        let mut client = trial.handmade(40_000);
        client.open(1_000).unwrap();
        assert_eq!(version(&client.ask(&who()).unwrap()), "v13");
        client.syn(77_000).unwrap();
        let challenge = client.hear().unwrap();
        assert_eq!(challenge.flags & (SYN | RST), 0, "{challenge:?}");
        client.refuse(&challenge).unwrap();
        client.open(77_000).unwrap();
        assert_eq!(version(&client.ask(&who()).unwrap()), "v13");
    }
}

/// Before there is an skb, where the driver hands over what the sender has summed up.
#[test]
fn a_share_goes_to_another_host_at_xdp() {
    for hook in ["generic", "native"] {
        check(CANARY, "10.0.0.5:8000", |trial| early(trial, hook));
        check("[fd00:1::9]:8001", "[fd00::5]:8000", |trial| {
            trial.scene.set_addresses(&["[fd00::5]:8000"]);
            early(trial, hook);
        });
    }
}

/// Clients come by a bridge, which has no native XDP, and answers by a cable, which has: all of it is done at
/// TC, and `check` says so before.
#[test]
fn a_bridge_among_the_interfaces_leaves_all_to_tc() {
    let Some(mut trial) = quiet(CANARY) else {
        return;
    };
    early(&mut trial, "native");
    let node = &trial.scene.net.node;
    for line in [
        "link add br0 type bridge",
        "link set br0 up",
        "addr del 10.0.0.5/24 dev eth0",
        "link set eth0 master br0",
        "addr add 10.0.0.5/24 dev br0",
    ] {
        node.ip(line).unwrap();
    }
    trial.scene.set_interfaces(&["br0"]);
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    trial.set("1");
    let sent = trial.scene.client.load(16, 4, large).unwrap();
    assert_eq!(trial.split(&sent).connections, [0, 16]);
    assert_eq!((trial.resets(), xdp_packets(&trial)), (0, 0));
    let status = trial.scene.modelmirror(&["status"]);
    assert!(status.contains("NOT AT XDP"), "{status}");
}

/// Sets where packets are taken, and makes the cables fit for it: a sender's checksums are not left
/// to a device that there is not, and a veth takes frames whose other end has NAPI.
fn early(trial: &mut Trial, hook: &str) {
    let canary = trial.service()["canary"].as_table_mut().unwrap();
    canary.insert("xdp".into(), hook.into());
    for host in [&trial.scene.net.client, &trial.scene.net.shadow] {
        host.ethtool("-K eth0 tx off gro on").unwrap();
    }
}

/// Both sides learn what the way to the canary carries, though neither is on a narrow link.
#[test]
fn segments_fit_the_way() {
    check(CANARY, "10.0.0.5:8000", |trial| {
        trial.scene.net.lone_segments().unwrap();
        trial
            .scene
            .net
            .node
            .ip("route replace 10.1.0.0/24 dev eth1 mtu 1000")
            .unwrap();
        trial.scene.net.shadow.nft(NARROW).unwrap();
    });
}

/// What would not have fitted is dropped.
const NARROW: &str = "
table netdev narrow {
    chain door {
        type filter hook ingress device eth0 priority 0
        ip length > 1000 drop
    }
}
";

#[test]
fn no_connection_notices_that_the_share_changes() {
    let Some(trial) = started() else {
        return;
    };
    let client = trial.scene.client.clone();
    let shares = ["0.5", "0", "1", "0.05", "0.9", "0.3"];
    let sent = client.load_while(50, 10, large, || {
        for share in shares.iter().cycle().take(18) {
            trial.set(share);
            let before = trial.accepted();
            eventually("more connections are opened", || {
                let now = trial.accepted();
                ensure!(now > before + 20, "{now} after {before}");
                Ok(())
            });
        }
    });
    let split = trial.split(&sent.unwrap());
    assert!(
        split.connections.iter().all(|&count| count > 30),
        "{split:?}"
    );
    assert_eq!(trial.resets(), 0);
}

/// A canary that is gone, with its host or without: nobody fails but who was on it.
#[test]
fn who_finds_the_canary_silent_gets_stable() {
    for silent in [false, true] {
        let Some(mut trial) = started() else {
            return;
        };
        trial.set("0.5");
        let far = trial.scene.net.shadow.clone();
        if silent {
            // Not a word: as of a host that is gone.
            far.nft(SILENT).unwrap();
        } else {
            trial.stop_canary();
        }
        let sent = trial.scene.client.load(40, 2, large).unwrap();
        assert_eq!(trial.split(&sent).connections, [40, 0], "silent: {silent}");
        trial.wait_for_canary(0.0);
        let before = trial.steered("stable", "no_answer");
        let sent = trial.scene.client.load(40, 2, large).unwrap();
        assert_eq!(trial.split(&sent).connections, [40, 0], "silent: {silent}");
        let fell_back = trial.steered("stable", "no_answer") - before;
        assert!((5..=35).contains(&fell_back), "{fell_back} of 40");

        if silent {
            far.nft("delete table netdev silent").unwrap();
        } else {
            trial.start_canary();
        }
        trial.wait_for_canary(1.0);
        let sent = trial.scene.client.load(40, 2, large).unwrap();
        trial.split(&sent).assert_share(0.5);
    }
}

const SILENT: &str = "
table netdev silent {
    chain door {
        type filter hook ingress device eth0 priority 0
        tcp dport 8001 drop
    }
}
";

/// Without a daemon to dial it.
#[test]
fn the_programs_notice_by_themselves_that_the_canary_is_silent() {
    let Some(mut trial) = started() else {
        return;
    };
    trial.set("0.5");
    let mut connections = connect(&trial.scene.client, 20);
    let mut sent = ask(&mut connections);
    trial.scene.end_daemon(Signal::SIGKILL);
    // Established connections go on, new ones are steered.
    sent.extend(ask(&mut connections));
    sent.extend(trial.scene.client.load(40, 1, large).unwrap());
    trial.split(&sent).assert_share(0.5);
    trial.scene.net.shadow.nft(SILENT).unwrap();
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    assert_eq!(trial.split(&sent).connections, [40, 0]);
}

#[test]
fn connections_may_finish_or_are_reset() {
    let Some(trial) = started() else {
        return;
    };
    finish_or_reset(&trial);
    // The canary's side is told as well.
    eventually("the canary's host has no connection left", || {
        let far = &trial.scene.net.shadow;
        let open = far.output("ss", &["-Htn", "state", "established", "sport = :8001"])?;
        ensure!(!open.contains("10.1.0.5"), "{open}");
        Ok(())
    });
}

/// Copies bear the addresses that the client knows, whoever answers.
#[test]
fn versions_are_mirrored_as_configured() {
    for arms in [&["stable"][..], &["stable", "canary"]] {
        let Some(mut trial) = quiet(CANARY) else {
            return;
        };
        trial.scene.set_mirror("arms", arms.to_vec());
        let canary = trial.service()["canary"].as_table_mut().unwrap();
        canary.insert("share".into(), 0.5.into());
        trial.scene.start();
        trial.wait_for_canary(1.0);
        let sent = trial.scene.client.load(40, 3, large).unwrap();
        let split = trial.split(&sent);
        split.assert_share(0.5);
        let mirrored = split.requests.iter().take(arms.len()).sum::<u64>();
        let outcome = trial.scene.settle();
        assert_eq!(
            outcome.requests("compared"),
            mirrored,
            "{arms:?}: {split:?}"
        );
    }
}
