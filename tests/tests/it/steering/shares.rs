//! How many connections go to the canary, and whose.

use std::time::Duration;

use anyhow::ensure;
use tests::{Answers, Client, Request, Trial, eventually_within, large, pattern};

/// On every way that a connection can come to this host; what the daemon counts of each version is
/// what its server saw.
#[test]
fn a_share_of_the_connections_goes_to_the_canary_whole() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.scene.set_interfaces(&["eth0", "lo"]);
    trial.start_daemon();
    trial.set("0.3");
    let node = &trial.scene.net.node;
    let loopback = Client::new(node, "127.0.0.1:8000".parse().unwrap(), &Answers::of("v12"));
    let clients = [
        trial.scene.client_of("10.0.0.5:8000"),
        trial.scene.client_of("[fd00::5]:8000"),
        loopback,
    ];
    let mut sent = Vec::new();
    for client in clients {
        let exchanges = client.load(100, 3, large).unwrap();
        let split = trial.split(&exchanges);
        split.assert_share(0.3);
        sent.extend(exchanges);
    }
    let split = trial.split(&sent);
    let bytes: u64 = sent.iter().map(|exchange| exchange.body_bytes as u64).sum();
    assert_eq!(trial.connections(), split.connections);
    trial.wait_for_responses(split.requests);
    let timed = trial.metrics("modelmirror_first_byte_seconds_count", &[]);
    assert_eq!(timed, split.requests);
    assert_eq!(trial.resets(), 0);
    let way = [("direction", "response")];
    let counted = trial.metrics("modelmirror_arm_bytes_total", &way);
    let counted = counted.iter().sum::<u64>();
    assert!(counted > bytes, "{counted} bytes for bodies of {bytes}");
}

/// 10,000 requests on 500 connections, over both families.
#[test]
fn no_connection_notices_that_the_share_changes() {
    const SHARES: [&str; 8] = ["0.5", "0", "1", "0.05", "0.9", "0.3", "1", "0.7"];
    let Some(trial) = Trial::new() else {
        return;
    };
    let clients = ["10.0.0.5:8000", "[fd00::5]:8000"].map(|server| trial.scene.client_of(server));
    let (sent, changes) = std::thread::scope(|scope| {
        let loads = clients.map(|client| {
            scope.spawn(move || client.load_in_turn(16, 250, 20, some_are_large).unwrap())
        });
        let mut changes = 0;
        for share in SHARES.iter().cycle() {
            trial.set(share);
            changes += 1;
            let before = trial.accepted();
            let is_over = eventually_within(LONG, "some more connections are there", || {
                let is_over = loads.iter().all(|load| load.is_finished());
                let more = trial.accepted() - before;
                ensure!(is_over || more >= CHANGED_EVERY, "{more}");
                Ok::<_, anyhow::Error>(is_over)
            });
            if is_over {
                break;
            }
        }
        let sent = loads.map(|load| load.join().unwrap());
        (sent.concat(), changes)
    });
    let split = trial.split(&sent);
    assert_eq!(split.connections.iter().sum::<u64>(), 500);
    assert_eq!(split.requests.iter().sum::<u64>(), 10_000);
    assert!(
        changes >= 10 && split.connections.iter().all(|&count| count > 50),
        "{split:?} in {changes} changes"
    );
    assert_eq!(trial.connections(), split.connections);
    trial.assert_calm();
}

/// After so many connections the share changes in [`no_connection_notices_that_the_share_changes`].
const CHANGED_EVERY: u64 = 10;

/// How long so many may take on a machine that is busy.
const LONG: Duration = Duration::from_secs(60);

fn some_are_large(connection: usize, index: usize) -> Request {
    let length = if index.is_multiple_of(5) {
        50_000
    } else {
        1_000
    };
    Request::post("/echo", &pattern(length + index, connection as u64))
}

/// All connections of one address stay together, and come back when the share does.
#[test]
fn a_client_keeps_its_version() {
    let Some(trial) = Trial::with(|canary| {
        canary.insert("affinity".into(), "client".into());
    }) else {
        return;
    };
    let client_host = &trial.scene.net.client;
    let hosts: Vec<String> = (0..40)
        .map(|number| format!("10.0.0.{}", 100 + number))
        .collect();
    for host in &hosts {
        client_host.address("eth0", &format!("{host}/24")).unwrap();
    }
    let ask = |host: &str| {
        let output = client_host
            .output(
                "curl",
                &[
                    "--silent",
                    "--fail",
                    "--interface",
                    host,
                    "http://10.0.0.5:8000/label",
                ],
            )
            .unwrap();
        output.contains("v13")
    };
    let ask_all = || -> Vec<bool> { hosts.iter().map(|host| ask(host)).collect() };
    trial.set("0.3");
    let few = ask_all();
    assert_eq!(ask_all(), few, "the same share");
    trial.set("0.7");
    let more = ask_all();
    for (number, (before, after)) in few.iter().zip(&more).enumerate() {
        assert!(before <= after, "{} has moved back", hosts[number]);
    }
    trial.set("0.3");
    assert_eq!(ask_all(), few, "the share of before");
    let counts = [&few, &more].map(|hosts| hosts.iter().filter(|canary| **canary).count());
    assert!(
        0 < counts[0] && counts[0] < counts[1] && counts[1] < 40,
        "{counts:?}"
    );
}
