//! Nobody's packets decide over a canary on another host: not those of clients that come in masses, nor those
//! that no client has sent.

use std::net::{SocketAddr, SocketAddrV4};

use anyhow::ensure;
use mirror_common::packet::{ACK, FIN, RST, SYN};
use tests::{Connection, Segment, Trial, eventually, forge, large};

use super::{ask, connect};

/// Where the canary is, beyond the node's other cable.
const CANARY: &str = "10.1.0.9:8001";

const SERVICE: &str = "10.0.0.5:8000";

/// A trial with the canary on another host, and tables of so many connections.
fn trial(connections: i64) -> Option<Trial> {
    let mut trial = Trial::quiet(|canary| {
        canary.insert("max_new_connections_per_second".into(), 1_000_000.into());
    })?;
    let far = trial.scene.net.shadow.clone();
    trial.place_canary(&far, "[::]:8001", CANARY);
    let config = &mut trial.scene.node_config;
    config.insert("connections".into(), connections.into());
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    Some(trial)
}

/// Connections that the canary has.
fn of_canary(trial: &Trial, count: usize) -> Vec<Connection> {
    trial.set("1");
    let mut connections = connect(&trial.scene.client, count);
    let sent = ask(&mut connections);
    assert_eq!(trial.split(&sent).connections, [0, count as u64]);
    connections
}

/// All of them go on, with the canary.
fn assert_go_on(trial: &Trial, connections: &mut [Connection]) {
    let sent = ask(connections);
    let count = connections.len() as u64;
    assert_eq!(trial.split(&sent).connections, [0, count]);
}

/// And neither end of any has heard of trouble.
fn assert_well(trial: &Trial, connections: &mut [Connection]) {
    assert_go_on(trial, connections);
    assert_eq!(trial.resets(), 0);
}

/// Opened, used and closed, one after another.
fn pass_by(trial: &Trial, count: usize) {
    let client = &trial.scene.client;
    let sent = client.load_in_turn(16, count, 1, large);
    assert_eq!(sent.unwrap().len(), count);
}

/// Three times as many as the tables hold, to stable: those of the canary are in tables of their own.
#[test]
fn closed_connections_of_stable_s_end_none_of_the_canary_s() {
    let Some(trial) = trial(1_024) else {
        return;
    };
    let mut idle = of_canary(&trial, 30);
    trial.set("0");
    pass_by(&trial, 3_072);
    assert_well(&trial, &mut idle);
}

/// More than the default tables hold, of which half are for the canary.
#[test]
fn a_flood_of_syns_ends_no_connection_of_the_canary_s() {
    let Some(trial) = trial(65_536) else {
        return;
    };
    let mut idle = of_canary(&trial, 30);
    trial.set("0.5");
    trial.flood(80_000);
    // The canary's host resets a handshake at another one's SYN, and that is nothing against the canary.
    assert_well(&trial, &mut idle);
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(_) => panic!("{address} is IPv6"),
    }
}

/// A SYN from every port that Linux gives, by somebody who knows nothing but the client's address; resets
/// of any number, and all else that an end might take.
#[test]
fn a_sweep_of_forged_packets_ends_no_connection() {
    let Some(trial) = trial(65_536) else {
        return;
    };
    let mut idle = of_canary(&trial, 27);
    let client = *v4(idle[0].local()).ip();
    let server: SocketAddrV4 = SERVICE.parse().unwrap();
    let segment = |port, flags, number: u32| Segment {
        source: SocketAddrV4::new(client, port),
        destination: server,
        sequence: number.wrapping_mul(0x9e37_79b1),
        acknowledgement: number.wrapping_mul(0x85eb_ca6b),
        flags,
        payload: Vec::new(),
    };
    let sweep: Vec<Segment> = (32_768..=60_999)
        .map(|port| segment(port, SYN, port.into()))
        .collect();
    forge(&trial.scene.net.client, &sweep).unwrap();
    assert_well(&trial, &mut idle);
    let mut aimed = Vec::new();
    for (number, connection) in idle.iter().enumerate() {
        let port = v4(connection.local()).port();
        for round in 0..16 {
            let number = (number * 16 + round) as u32;
            aimed.extend(
                [RST, RST | ACK, FIN | ACK, SYN, ACK].map(|flags| segment(port, flags, number)),
            );
        }
    }
    forge(&trial.scene.net.client, &aimed).unwrap();
    assert_well(&trial, &mut idle);
}

/// As after a promotion: stable is gone, and whoever finds no port has nobody.
#[test]
fn ports_come_back_after_a_flood_and_after_masses_of_short_connections() {
    let Some(mut trial) = trial(65_536) else {
        return;
    };
    trial.set("1");
    trial.stop_stable();
    trial.flood(6_000);
    let opened = || {
        let sent = trial.scene.client.load_in_turn(64, 1_000, 1, large)?;
        ensure!(sent.len() == 1_000, "{} of 1,000", sent.len());
        anyhow::Ok(())
    };
    eventually("a thousand find a port", opened);
    // Of the flood, and of those who came when it had just passed.
    let refused = || trial.steered("stable", "no_port");
    let before = refused();
    for _ in 0..3 {
        pass_by(&trial, 1_000);
    }
    let mut last = connect(&trial.scene.client, 1_000);
    assert_eq!(ask(&mut last).len(), 1_000);
    assert_eq!(refused(), before);
}
