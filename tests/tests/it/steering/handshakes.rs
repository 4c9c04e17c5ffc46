//! Connections that begin in unusual ways.

use std::net::SocketAddr;

use tests::{Trial, inject, large, request_frames};

use super::{ask, connect};

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
    let answers = trial.metrics("modelmirror_responses_total", &[]);
    assert_eq!(answers, split.requests);
}
