//! Datagrams that the tap has not written, from an address that it may have.

use std::net::UdpSocket;

use mirror_common::tunnel::{Arm, Direction, HEADER_LENGTH, Header, Meta};
use tests::{Scene, eventually};

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
