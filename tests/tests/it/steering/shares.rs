//! How many connections go to the canary, and whose.

use anyhow::ensure;
use tests::{Answers, Client, Trial, eventually, large};

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
    let responses = trial.metrics("modelmirror_responses_total", &[("class", "2xx")]);
    assert_eq!(responses, split.requests);
    let timed = trial.metrics("modelmirror_first_byte_seconds_count", &[]);
    assert_eq!(timed, split.requests);
    assert_eq!(trial.resets(), 0);
    let way = [("direction", "response")];
    let counted = trial.metrics("modelmirror_arm_bytes_total", &way);
    let counted = counted.iter().sum::<u64>();
    assert!(counted > bytes, "{counted} bytes for bodies of {bytes}");
}

#[test]
fn no_connection_notices_that_the_share_changes() {
    let Some(trial) = Trial::new() else {
        return;
    };
    let client = trial.scene.client.clone();
    let shares = [
        "0.5", "0", "1", "0.05", "0.9", "0.3", "1", "0", "0.5", "0.7",
    ];
    let sent = client.load_while(50, 10, large, || {
        for share in shares.iter().cycle().take(30) {
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
        split.connections.iter().all(|&count| count > 50),
        "{split:?}"
    );
    assert_eq!(trial.resets(), 0);
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
