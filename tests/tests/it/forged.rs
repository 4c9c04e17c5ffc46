//! Datagrams that the tap has not written, from an address that it may have; segments that no client has sent,
//! from an address that one has.

use std::net::{SocketAddr, SocketAddrV4, UdpSocket};

use mirror_common::packet::{ACK, RST, SYN};
use mirror_common::tunnel::{Arm, Direction, HEADER_LENGTH, Header, Meta};
use tests::{Scene, Segment, eventually, forge};

use crate::traffic::small;

/// What looks like a copy of a packet between no hosts.
fn copy() -> Vec<u8> {
    let header = Header {
        vni: 101,
        ipv6: false,
        meta: Meta {
            direction: Direction::Request,
            arm: Arm::Stable,
            piece: false,
            last_piece: false,
            cpu: 0,
            length: 7,
            sequence: 1 << 30,
            time_ns: 1 << 20,
            tap: 0,
            mac: 0,
        },
    };
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4([10, 0, 0, 66], [10, 0, 0, 5], 64)
        .tcp(666, 8000, 1, 1)
        .write(&mut packet, b"forged\n")
        .unwrap();
    [&header.encode()[..], &packet].concat()
}

/// Neither a copy without our option nor one of an older format is believed; both are counted, and
/// neither production nor the mirror suffers.
#[test]
fn other_formats_are_dropped_and_counted() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    let genuine = copy();
    let packet = &genuine[HEADER_LENGTH..];
    let nameless = [&[0, 0, 8, 0, 0, 0, 101, 0], packet].concat();
    let mut old = genuine.clone();
    // Type 1, and four bytes shorter.
    (old[0], old[10], old[11]) = (6, 1, 5);
    old.drain(32..HEADER_LENGTH);
    let forger = scene
        .net
        .node
        .run(|| UdpSocket::bind("10.1.0.5:0"))
        .unwrap();
    let sent = scene.load_while(4, small, |_| {
        for _ in 0..500 {
            for datagram in [&nameless, &old] {
                forger.send_to(datagram, "10.1.0.9:6181").unwrap();
            }
        }
    });
    eventually("all are counted", || {
        let metrics = scene.shadow_metrics();
        let outcome = [("outcome", "unknown_option")];
        let counted = metrics.sum("modelmirror_shadow_tunnel_packets_total", &outcome);
        anyhow::ensure!(counted == 1_000.0, "{metrics}");
        Ok(())
    });
    scene.prove(&sent);
}

/// Segments as a forger sends them who knows the ends of a connection and not its numbers. The server's TCP ignores
/// them all.
fn blind(client: SocketAddr, server: SocketAddrV4) -> Vec<Segment> {
    let SocketAddr::V4(client) = client else {
        panic!("{client} is IPv6");
    };
    let segment = |quarter: u32, flags, payload: &[u8]| Segment {
        source: client,
        destination: server,
        sequence: (quarter << 30) + 12_345,
        acknowledgement: (quarter << 30) + 54_321,
        flags,
        payload: payload.to_vec(),
    };
    let request = b"POST /never HTTP/1.1\r\nContent-Length: 5\r\n\r\nnever";
    let of_quarter = |quarter| {
        [
            segment(quarter, RST, b""),
            segment(quarter, RST | ACK, b""),
            segment(quarter, SYN, b""),
            segment(quarter, ACK, request),
        ]
    };
    (0..4).flat_map(of_quarter).collect()
}

/// Every request is accounted for, and nothing else is: neither resets nor handshakes nor data that TCP does not
/// accept move a connection.
#[test]
fn what_the_server_does_not_accept_moves_nothing() {
    let Some(scene) = Scene::started() else {
        return;
    };
    let server = "10.0.0.5:8000".parse().unwrap();
    let connect = |_| scene.client.connect().unwrap();
    let mut connections: Vec<_> = (0..8).map(connect).collect();
    let mut sent = Vec::new();
    for round in 0..6 {
        for (number, connection) in connections.iter_mut().enumerate() {
            sent.push(connection.exchange(&small(number, round)).unwrap());
            let segments = blind(connection.local(), server);
            forge(&scene.net.client, &segments).unwrap();
        }
    }
    drop(connections);
    scene.prove(&sent);
    assert_eq!(scene.settle().seen(), sent.len() as u64);
}
