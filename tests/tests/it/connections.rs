//! Which connections are copied, and from where on.

use std::collections::BTreeSet;

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{Connection, Exchange, Request, Scene, eventually, inject, pattern, request_frames};

use crate::traffic::copied_once;

/// One request over each connection, its body telling which it is.
fn one_each(connections: &mut [Connection], round: usize) -> Vec<Exchange> {
    let requests = connections
        .iter_mut()
        .enumerate()
        .map(|(number, connection)| {
            let body = pattern(1 + number * 100, (number * 1_000 + round) as u64);
            let exchange = connection.exchange(&Request::post("/label", &body));
            exchange.unwrap_or_else(|error| panic!("production failed: {error:#}"))
        });
    requests.collect()
}

/// Those of `sent` that have reached the shadow.
fn copied(scene: &Scene, sent: &[Exchange]) -> Vec<Exchange> {
    let received = scene.shadowed();
    let received: BTreeSet<_> = received.iter().map(|received| received.id()).collect();
    let copied = sent
        .iter()
        .filter(|exchange| received.contains(&*exchange.id));
    copied.cloned().collect()
}

/// The client's ends of these exchanges' connections.
fn ends(exchanges: &[Exchange]) -> BTreeSet<u16> {
    let ends = exchanges.iter().map(|exchange| exchange.local.port());
    ends.collect()
}

/// Half of the connections are copied, each wholly or not at all, and the next daemon copies the
/// same ones.
#[test]
fn a_sample_is_of_connections_and_outlives_the_daemon() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_mirror("sample", 0.5);
    scene.start();
    let mut connections: Vec<_> = (0..64).map(|_| scene.client.connect().unwrap()).collect();
    let mut sent = one_each(&mut connections, 0);
    sent.extend(one_each(&mut connections, 1));
    scene.settle();
    let first = ends(&copied(&scene, &sent));
    // 64 fair coins: outside these limits once in 500,000 times.
    assert!((14..=50).contains(&first.len()), "{} of 64", first.len());

    scene.end_daemon(Signal::SIGKILL);
    scene.start();
    sent.extend(one_each(&mut connections, 2));
    sent.extend(one_each(&mut connections, 3));
    scene.account(&sent);
    let mut expected = sent;
    expected.retain(|exchange| first.contains(&exchange.local.port()));
    scene.complete(&expected, &[]);
}

/// Connections that were open before the tap was: each is taken up at the next certain boundary,
/// the request that was half sent is not replayed, and nothing corrupt is.
#[test]
fn open_connections_are_joined_at_a_boundary() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let mut connections: Vec<_> = (0..20).map(|_| scene.client.connect().unwrap()).collect();
    let mut before = one_each(&mut connections, 0);
    // Every other one is in the middle of a request when the tap opens.
    let half = Request::post("/echo", &pattern(50_000, 3));
    let others = connections.iter_mut().step_by(2);
    let begun: Vec<_> = others
        .map(|connection| connection.begin(&half, 20_000).unwrap())
        .collect();
    scene.start();
    for (connection, begun) in connections.iter_mut().step_by(2).zip(begun) {
        before.push(connection.finish(begun).unwrap());
    }
    let mut sent = Vec::new();
    for round in 1..5 {
        sent.extend(one_each(&mut connections, round));
    }
    drop(connections);
    let missed = scene.settle().requests("mid_stream");
    let copied = copied(&scene, &sent);
    assert_eq!(ends(&copied).len(), 20, "connections that were joined");
    let count = copied.len();
    assert!(count >= 3 * 20, "{count} of 80 requests copied");
    scene.complete(&copied, &[("mid_stream", missed)]);
    scene.account(&[before, sent].concat());
}

/// How many programs are attached by clsact on the node's clients' interface, at both hooks.
fn filters(scene: &Scene) -> [usize; 2] {
    ["ingress", "egress"].map(|hook| {
        let show = ["filter", "show", "dev", "eth0", hook];
        let shown = scene.net.node.output("tc", &show).unwrap();
        shown.matches("handle 0x4d4d").count()
    })
}

/// clsact instead of TCX, a takeover, and changes between both: each packet is copied once
/// throughout.
#[test]
fn clsact_mirrors_and_is_taken_over() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.start_with(&["--attach", "clsact"]);
    assert_eq!(filters(&scene), [1, 1]);
    let mut connections: Vec<_> = (0..8).map(|_| scene.client.connect().unwrap()).collect();
    let mut sent = one_each(&mut connections, 0);
    for (round, attach, expected) in [(1, "clsact", 1), (2, "tcx", 0), (3, "clsact", 1)] {
        scene.end_daemon(Signal::SIGKILL);
        scene.start_with(&["--attach", attach]);
        assert_eq!(filters(&scene), [expected; 2], "filters after {attach}");
        sent.extend(one_each(&mut connections, round));
    }
    scene.prove(&sent);
    copied_once(&scene, &sent);
}

/// Frames with VLAN tags: the copies have none, and the agent can read them. No server has a part in these, so
/// they are only read where answers are not copied.
#[test]
fn tagged_frames_are_copied_without_their_tags() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_mirror("directions", "requests");
    scene.start();
    let tags: [&[(u16, u16)]; 3] = [&[], &[(0x8100, 5)], &[(0x88a8, 7), (0x8100, 5)]];
    for (number, tags) in tags.into_iter().enumerate() {
        let client = format!("10.0.0.77:{}", 40_000 + number).parse().unwrap();
        let payload = format!(
            "POST /echo HTTP/1.1\r\nhost: model\r\nx-request-id: tagged-{number}\r\n\
             content-length: 4\r\n\r\nbody"
        );
        let server = "10.0.0.5:8000".parse().unwrap();
        for frame in request_frames(client, server, tags, payload.as_bytes()) {
            inject(&scene.net.client, "eth0", &frame).unwrap();
        }
    }
    let received = eventually("the shadow has all requests", || {
        let received = scene.shadowed();
        let metrics = scene.agent().metrics()?;
        ensure!(received.len() == 3, "{received:?}\n{metrics}");
        Ok(received)
    });
    for received in received {
        assert_eq!(&received.body[..], b"body", "{}", received.id());
        assert_eq!((&*received.method, &*received.path), ("POST", "/echo"));
    }
    scene.wait_for_copies();
}
