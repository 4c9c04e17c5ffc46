//! Connections that begin in unusual ways.

use std::net::SocketAddr;

use anyhow::ensure;
use tests::{Request, Trial, eventually, inject, large, request_frames};

use super::{ask, connect, version, who};

/// Loses the last packet of every handshake.
const NO_LAST_ACK: &str = "
table inet held {
    chain door {
        type filter hook output priority 0
        tcp dport 8000 tcp flags & (syn | ack | psh | fin | rst) == ack drop
    }
}
";

/// Loses every SYN from these ports behind the tap.
const NO_SYN: &str = "
table inet lost {
    chain door {
        type filter hook input priority 0
        tcp dport 8000 tcp sport 41000-41999 tcp flags & (syn | ack) == syn drop
    }
}
";

#[test]
fn a_handshake_by_cookie_ends_where_it_began() {
    let Some(trial) = Trial::new() else {
        return;
    };
    trial.set("0.5");
    for cookies in ["0", "1", "2"] {
        let node = &trial.scene.net.node;
        node.sysctl("net/ipv4/tcp_syncookies", cookies).unwrap();
        let sent = trial.scene.client.load(60, 2, large).unwrap();
        trial.split(&sent).assert_share(0.5);
    }
    assert_eq!(trial.resets(), 0);
}

/// A SYN out of the blue, as a forger would send it, or a client that has forgotten.
#[test]
fn a_syn_for_an_established_connection_begins_no_other() {
    let Some(trial) = Trial::new() else {
        return;
    };
    trial.set("0.5");
    let mut connections = connect(&trial.scene.client, 20);
    let mut sent = ask(&mut connections);
    for connection in &connections {
        let SocketAddr::V4(client) = connection.local() else {
            panic!("{:?} is IPv6", connection.local());
        };
        let frames = request_frames(client, "10.0.0.5:8000".parse().unwrap(), &[], b"never sent");
        inject(&trial.scene.net.client, "eth0", &frames[0]).unwrap();
    }
    sent.extend(ask(&mut connections));
    let split = trial.split(&sent);
    assert_eq!(trial.connections(), split.connections);
    trial.wait_for_responses(split.requests);
}

/// The share goes up and down between a SYN and the packet that ends its handshake; where there are
/// cookies the kernel knows nothing of the connection meanwhile.
#[test]
fn a_handshake_ends_where_it_began_whatever_the_share_is_then() {
    let Some(trial) = Trial::new() else {
        return;
    };
    let mut port = 40_000;
    for cookies in ["0", "1", "2"] {
        let node = &trial.scene.net.node;
        node.sysctl("net/ipv4/tcp_syncookies", cookies).unwrap();
        for (shares, expected) in [
            (&["0", "1"][..], "v12"),
            (&["1", "0"], "v13"),
            (&["1", "0.0001"], "v13"),
            (&["0", "0.5", "1"], "v12"),
            (&["1", "0.5", "0"], "v13"),
        ] {
            port += 1;
            let mut connection = trial.handmade(port);
            trial.set(shares[0]);
            connection.syn(1_000).unwrap();
            connection.syn_ack().unwrap();
            for share in &shares[1..] {
                trial.set(share);
            }
            connection.ack().unwrap();
            let answer = connection.ask(&who()).unwrap();
            assert_eq!(version(&answer), expected, "cookies {cookies}, {shares:?}");
        }
    }
    trial.assert_calm();
}

/// The same of many connections of a real client, over both families, where the last packet is lost
/// and the request ends the handshake.
#[test]
fn a_request_ends_a_handshake_by_cookie_where_it_began() {
    let Some(trial) = Trial::new() else {
        return;
    };
    let (node, host) = (&trial.scene.net.node, &trial.scene.net.client);
    node.sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
    for after in ["0", "1"] {
        for server in ["10.0.0.5:8000", "[fd00::5]:8000"] {
            trial.set("0.5");
            host.nft(NO_LAST_ACK).unwrap();
            let mut connections = connect(&trial.scene.client_of(server), 60);
            trial.set(after);
            host.nft("delete table inet held").unwrap();
            let asked = connections.iter_mut();
            let sent: Vec<_> = asked
                .map(|connection| connection.exchange(&Request::post("/echo", b"?")).unwrap())
                .collect();
            trial.split(&sent).assert_share(0.5);
        }
    }
    trial.assert_calm();
}

/// The SYN is lost, or its acknowledgement, and comes again when the share is another.
#[test]
fn a_syn_that_comes_again_keeps_its_version() {
    let Some(trial) = Trial::new() else {
        return;
    };
    let node = &trial.scene.net.node;
    let mut port = 41_000;
    for cookies in ["0", "2"] {
        node.sysctl("net/ipv4/tcp_syncookies", cookies).unwrap();
        for (before, after, expected) in [("0", "1", "v12"), ("1", "0", "v13")] {
            for reaches_the_kernel in [false, true] {
                port += 1;
                let mut connection = trial.handmade(port);
                trial.set(before);
                if reaches_the_kernel {
                    connection.syn(1_000).unwrap();
                    connection.syn_ack().unwrap();
                    trial.set(after);
                } else {
                    node.nft(NO_SYN).unwrap();
                    let count = || trial.connections().iter().sum::<u64>();
                    let known = count();
                    connection.syn(1_000).unwrap();
                    // Half a second without an answer, and the version would lose it.
                    trial.handmade(port + 1_000).open(1_000).unwrap();
                    eventually("the tap has seen it", || {
                        let now = count();
                        ensure!(now == known + 2, "{now} after {known}");
                        Ok(())
                    });
                    trial.set(after);
                    node.nft("delete table inet lost").unwrap();
                }
                connection.open(1_000).unwrap();
                let answer = connection.ask(&who()).unwrap();
                assert_eq!(
                    version(&answer),
                    expected,
                    "cookies {cookies}, {before} to {after}, seen by the kernel: {reaches_the_kernel}"
                );
            }
        }
    }
    let unanswered = trial.metrics("modelmirror_connections_unanswered_total", &[]);
    assert_eq!(unanswered, [2, 2]);
    trial.assert_calm();
}
