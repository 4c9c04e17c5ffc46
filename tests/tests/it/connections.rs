//! Which connections are copied, and from where on.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::ensure;
use tests::{
    Connection, Daemon, Exchange, Request, Scene, Setup, eventually, inject, pattern, privileged,
    proof, request_frames,
};

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
    let received: BTreeSet<String> = scene
        .model
        .received()
        .iter()
        .map(|received| received.id().to_owned())
        .collect();
    sent.iter()
        .filter(|exchange| received.contains(&exchange.id))
        .cloned()
        .collect()
}

/// The client's ends of these exchanges' connections.
fn ends(exchanges: &[Exchange]) -> BTreeSet<u16> {
    exchanges
        .iter()
        .map(|exchange| exchange.local.port())
        .collect()
}

/// Waits until the agent has an outcome for all that it has seen, which is at least `least`.
#[track_caller]
fn settled(scene: &Scene, least: usize) {
    eventually("what was seen has an outcome", || {
        let metrics = scene.agent.metrics()?;
        let settled = metrics.sum("modelmirror_shadow_requests_total", &[]);
        let open = metrics.sum("modelmirror_shadow_requests_in_flight", &[]);
        ensure!(
            settled >= least as f64 && open == 0.0,
            "{settled} of {least}, {open} open"
        );
        let (tap, agent) = (scene.daemon.metrics()?, metrics);
        proof::packets_settled(&tap, &agent)
    });
}

/// Half of the connections are copied, each wholly or not at all, and the next daemon copies the
/// same ones.
#[test]
fn a_sample_is_of_connections_and_outlives_the_daemon() {
    if !privileged() {
        return;
    }
    let mut setup = Setup::default();
    setup.mirror("sample", 0.5);
    let mut scene = setup.start();
    let client = scene.client("10.0.0.5:8000");
    let mut connections: Vec<_> = (0..64).map(|_| client.connect().unwrap()).collect();
    let mut sent = one_each(&mut connections, 0);
    sent.extend(one_each(&mut connections, 1));
    settled(&scene, 1);
    let first = ends(&copied(&scene, &sent));
    // 64 fair coins: outside these limits once in 500,000 times.
    assert!((14..=50).contains(&first.len()), "{} of 64", first.len());

    restart(&mut scene, &[]);
    sent.extend(one_each(&mut connections, 2));
    sent.extend(one_each(&mut connections, 3));
    let expected: Vec<_> = sent
        .iter()
        .filter(|exchange| first.contains(&exchange.local.port()))
        .cloned()
        .collect();
    scene.prove(&expected);
}

/// Kills the daemon and starts another one.
#[track_caller]
fn restart(scene: &mut Scene, arguments: &[&str]) {
    scene
        .daemon
        .process
        .signal(nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    eventually("the daemon has ended", || {
        match scene.daemon.process.running() {
            Ok(()) => Err("it runs"),
            Err(_) => Ok(()),
        }
    });
    let (node, home) = (&scene.net.node, &scene.home);
    scene.daemon = Daemon::start_with(node, home, &scene.node, arguments).unwrap();
    scene.wait_for_agent();
}

/// Connections that were open before the tap was: each is taken up at the next certain boundary,
/// the request that was half sent is not replayed, and nothing corrupt is.
#[test]
fn open_connections_are_joined_at_a_boundary() {
    if !privileged() {
        return;
    }
    let setup = Setup::default();
    let server = "10.0.0.5:8000".parse().unwrap();
    let client = tests::Client::new(&setup.net.client, server, setup.production.answers());
    let mut connections: Vec<_> = (0..20).map(|_| client.connect().unwrap()).collect();
    let before = one_each(&mut connections, 0);
    // Every other one is in the middle of a request when the tap opens.
    let body = pattern(50_000, 3);
    let head =
        "POST /echo HTTP/1.1\r\nhost: model\r\nx-request-id: half\r\ncontent-length: 50000\r\n\r\n";
    for connection in connections.iter_mut().step_by(2) {
        connection.stream().write_all(head.as_bytes()).unwrap();
        connection.stream().write_all(&body[..20_000]).unwrap();
    }
    let scene = setup.start();
    for connection in connections.iter_mut().step_by(2) {
        connection.finish(&body[20_000..], &body).unwrap();
    }
    let mut sent = Vec::new();
    for round in 1..5 {
        sent.extend(one_each(&mut connections, round));
    }
    drop(connections);
    settled(&scene, 4 * 20);
    let copied = copied(&scene, &sent);
    let joined = ends(&copied);
    assert_eq!(joined.len(), 20, "connections that were joined");
    assert!(
        copied.len() >= 3 * 20,
        "{} of 80 requests copied",
        copied.len()
    );
    assert!(
        scene
            .model
            .received()
            .iter()
            .all(|received| received.id() != "half")
    );
    let metrics = scene.agent.metrics().unwrap();
    let missed = metrics.sum(
        "modelmirror_shadow_requests_total",
        &[("outcome", "mid_stream")],
    );
    proof::requests_closed(
        &scene,
        copied.len() as u64,
        &[("mid_stream", missed as u64)],
    );
    proof::replayed(&scene, &copied);
    proof::recorded(&scene, &copied);
    proof::packets_closed(&scene);
    assert_eq!(
        scene.production.received().len(),
        before.len() + 10 + sent.len()
    );
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
    if !privileged() {
        return;
    }
    let setup = Setup {
        daemon_arguments: vec!["--attach", "clsact"],
        ..Setup::default()
    };
    let mut scene = setup.start();
    assert_eq!(filters(&scene), [1, 1]);
    let client = scene.client("10.0.0.5:8000");
    let mut connections: Vec<_> = (0..8).map(|_| client.connect().unwrap()).collect();
    let mut sent = one_each(&mut connections, 0);
    for (round, attach, expected) in [(1, "clsact", 1), (2, "tcx", 0), (3, "clsact", 1)] {
        restart(&mut scene, &["--attach", attach]);
        assert_eq!(filters(&scene), [expected; 2], "filters after {attach}");
        sent.extend(one_each(&mut connections, round));
    }
    scene.prove(&sent);
    copied_once(&scene, &sent);
}

/// Frames with VLAN tags: the copies have none, and the agent can read them.
#[test]
fn tagged_frames_are_copied_without_their_tags() {
    if !privileged() {
        return;
    }
    let scene = Setup::default().start();
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
        let received = scene.model.received();
        let metrics = scene.agent.metrics()?;
        ensure!(received.len() == 3, "{received:?}\n{metrics}");
        Ok(received)
    });
    for received in received {
        assert_eq!(&received.body[..], b"body", "{}", received.id());
        assert_eq!((&*received.method, &*received.path), ("POST", "/echo"));
    }
    proof::packets_closed(&scene);
}
