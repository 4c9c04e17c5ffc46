//! What the agent's own host does not have: descriptors, ports and memory. That is no fault of the shadow's.

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{Mood, Request, Scene, eventually, pattern};

/// Clients at once, more than the agent's host has descriptors or ports for.
const CLIENTS: usize = 400;

const REQUESTS: usize = 3;

/// All of production's clients stay connected, and each of their requests is asked of the shadow and answered there.
#[track_caller]
fn all_are_compared(scene: &mut Scene) {
    scene.start();
    let sent = scene.load(CLIENTS, REQUESTS, |connection, index| {
        Request::post("/echo", &pattern(500, (connection * 100 + index) as u64))
    });
    let outcome = scene.account(&sent);
    let metrics = &outcome.metrics;
    let all = (CLIENTS * REQUESTS) as u64;
    assert_eq!(
        (outcome.seen(), outcome.verdicts("match")),
        (all, all),
        "{metrics}"
    );
    // What the shadow itself has counted.
    let received = scene.shadowed();
    assert_eq!(received.len() as u64, all);
}

/// How many connections the shadow has had.
fn connections(scene: &Scene) -> u64 {
    let received = scene.shadowed();
    let connections = received.iter().map(|received| received.connection);
    connections.max().expect("there were some") + 1
}

/// Leaves the agent with 256 descriptors.
#[track_caller]
fn with_few_descriptors(concurrency: usize) -> Option<Scene> {
    let mut scene = Scene::new()?;
    scene.set_shadow_service("concurrency", concurrency as i64);
    scene.start_agent();
    let agent = scene.agent().process.id().to_string();
    let limit = ["--nofile=256:256", "--pid", &agent];
    let limited = scene.net.shadow.output("prlimit", &limit);
    limited.unwrap_or_else(|error| panic!("{error:#}"));
    Some(scene)
}

#[test]
fn a_host_with_few_descriptors() {
    let Some(mut scene) = with_few_descriptors(64) else {
        return;
    };
    all_are_compared(&mut scene);
    let connections = connections(&scene);
    assert!(connections <= 300, "{connections} for 64 at once");
}

/// Fewer than `concurrency`: the agent knows how many there are, and leaves some to others than the shadow.
#[test]
fn few_descriptors_are_shared_out() {
    let Some(mut scene) = with_few_descriptors(CLIENTS) else {
        return;
    };
    scene.agent().process.signal(Signal::SIGHUP).unwrap();
    eventually("it is said", || {
        let output = scene.agent().process.output();
        ensure!(output.contains("fewer files than concurrency"), "{output}");
        Ok(())
    });
    all_are_compared(&mut scene);
}

#[test]
fn a_host_with_few_ports() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let ports = ("net/ipv4/ip_local_port_range", "40000 40299");
    scene.net.shadow.sysctl(ports.0, ports.1).unwrap();
    all_are_compared(&mut scene);
    let connections = connections(&scene);
    assert!(connections <= 300, "{connections} for 64 at once");
}

/// More at once than there are ports: the rest waits for those that have one, and is not counted as the shadow's error.
#[test]
fn fewer_ports_than_requests_at_once() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let ports = ("net/ipv4/ip_local_port_range", "40000 40019");
    scene.net.shadow.sysctl(ports.0, ports.1).unwrap();
    all_are_compared(&mut scene);
}

/// The most memory that the agent has had, in bytes.
fn peak(scene: &Scene) -> u64 {
    let status = format!("/proc/{}/status", scene.agent().process.id());
    let status = std::fs::read_to_string(status).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = peak.unwrap().trim().trim_end_matches(" kB");
    kilobytes.parse::<u64>().unwrap() << 10
}

/// Clients that keep their connections and rarely ask, four times as many as are followed at once: what each asks is
/// compared, and the agent takes what its page says.
#[test]
fn many_clients_that_rest() {
    const MEMORY: u64 = 16 << 20;
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_shadow("memory", MEMORY as i64);
    scene.set_shadow_service("max_body", "1MiB");
    scene.start();
    let mut connections = Vec::new();
    let mut sent = Vec::new();
    for round in 0..2_u64 {
        for number in 0..1_500 {
            if round == 0 {
                connections.push(scene.client.connect().unwrap());
            }
            let body = pattern(200, 2 * number as u64 + round);
            let exchange = connections[number].exchange(&Request::post("/echo", &body));
            sent.push(exchange.unwrap());
        }
    }
    let outcome = scene.account(&sent);
    let matching = outcome.verdicts("match");
    assert_eq!(matching, sent.len() as u64, "{}", outcome.metrics);
    let forgotten = "modelmirror_shadow_forgotten_connections_total";
    assert_eq!(outcome.metrics.sum(forgotten, &[]), 0.0);
    let peak = peak(&scene);
    assert!(peak <= MEMORY * 13 / 10 + (64 << 20), "{} MiB", peak >> 20);
}

/// JSON that becomes fifty times as much when it is read: lists of one number each.
fn lists(bytes: usize) -> Vec<u8> {
    format!("{{\"lists\":[{}0]}}", "[0],".repeat(bytes / 4)).into_bytes()
}

/// What comparing takes is a part of `memory`: what fits is compared, and what does not is dropped by name.
#[test]
fn bodies_that_become_large_when_they_are_read() {
    const MEMORY: u64 = 64 << 20;
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_shadow("memory", MEMORY as i64);
    scene.set_shadow_service("max_body", "8MiB");
    scene.start();
    // Both answers are read: no two of the shadow's are like production's.
    scene.model().set_mood(Mood::Noisy(1));
    for round in 1..=10 {
        // Four at once, each on a connection of its own; what a busy host cannot ship in time is not the subject.
        let bytes = if round % 2 == 0 { 3_500_000 } else { 100_000 };
        let sent = scene.load(4, 1, |_, _| Request::post("/echo", &lists(bytes)));
        assert_eq!(sent.len(), 4);
        eventually("each has an outcome", || {
            let metrics = scene.shadow_metrics();
            let of =
                |outcome| metrics.sum("modelmirror_shadow_requests_total", &[("outcome", outcome)]);
            ensure!(
                of("memory") + of("compared") == f64::from(4 * round),
                "{metrics}"
            );
            Ok(())
        });
    }
    let metrics = scene.shadow_metrics();
    let of = |outcome| metrics.sum("modelmirror_shadow_requests_total", &[("outcome", outcome)]);
    let (memory, compared) = (of("memory"), of("compared"));
    assert!(memory >= 15.0 && compared > 0.0, "{memory} {compared}");
    let peak = peak(&scene);
    println!("{} MiB of {}", peak >> 20, MEMORY >> 20);
    assert!(peak <= MEMORY * 13 / 10 + (64 << 20), "{} MiB", peak >> 20);
}
