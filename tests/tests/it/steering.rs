//! Connections that are handed to a canary on the same host.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read as _;
use std::net::SocketAddr;

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{
    Answers, Client, Connection, Exchange, Request, Scene, Server, eventually, inject, pattern,
    request_frames,
};
use toml::Table;

const CANARY: &str = "[::]:8001";

/// Stable and canary on one node, and the daemon.
struct Trial {
    scene: Scene,
    canary: Option<Server>,
}

impl Trial {
    /// Every connection by itself, the share 0, nothing mirrored.
    fn new() -> Option<Self> {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Table)) -> Option<Self> {
        let mut trial = Self::quiet(change)?;
        trial.service().remove("mirror");
        trial.scene.start_daemon(&[]);
        Some(trial)
    }

    fn quiet(change: impl FnOnce(&mut Table)) -> Option<Self> {
        let scene = Scene::new()?;
        let mut trial = Self {
            scene,
            canary: None,
        };
        trial.start_canary();
        let mut canary = toml::toml! {
            version = "v13"
            address = "10.0.0.5:8001"
            affinity = "connection"
        };
        change(&mut canary);
        trial.service().insert("canary".into(), canary.into());
        Some(trial)
    }

    fn service(&mut self) -> &mut Table {
        self.scene.node_config["service"][0].as_table_mut().unwrap()
    }

    fn start_canary(&mut self) {
        let listen = CANARY.parse().unwrap();
        let canary = Server::start(&self.scene.net.node, listen, &Answers::of("v13"));
        self.canary = Some(canary.unwrap());
    }

    /// Takes stable away: nobody listens at the service's port any more.
    fn stop_stable(&mut self) {
        let listen = "127.0.0.1:0".parse().unwrap();
        let nobody = Server::start(&self.scene.net.node, listen, &Answers::of("v12"));
        self.scene.production = nobody.unwrap();
    }

    #[track_caller]
    fn set(&self, share: &str) {
        self.command(&["set", share]);
    }

    #[track_caller]
    fn command(&self, arguments: &[&str]) -> String {
        let mut line = vec!["canary"];
        line.extend(arguments);
        line.extend(["--service", "digits"]);
        self.scene.modelmirror(&line)
    }

    /// What a version's metric says.
    fn metric(&self, name: &str, arm: &str, more: &[(&str, &str)]) -> u64 {
        let mut labels = vec![("service", "digits"), ("arm", arm)];
        labels.extend(more);
        self.scene.node_metrics().sum(name, &labels) as u64
    }

    /// The ids of the requests that the canary was asked.
    fn canary_asked(&self) -> BTreeSet<String> {
        let received = self.canary.iter().flat_map(Server::received);
        received.map(|request| request.id().to_owned()).collect()
    }

    /// Holds what both servers were asked against what was sent: every request was answered by one
    /// of them, once, and every connection by one alone. Returns the connections of each.
    #[track_caller]
    fn split(&self, sent: &[Exchange]) -> Split {
        let stable = self.scene.production.received();
        let mut served: HashMap<String, &str> = HashMap::new();
        for (arm, received) in [("stable", stable), ("canary", self.canary_received())] {
            for request in received {
                let twice = served.insert(request.id().to_owned(), arm);
                assert_eq!(twice, None, "{request:?} was asked twice");
            }
        }
        let mut versions: BTreeMap<SocketAddr, BTreeSet<&str>> = BTreeMap::new();
        let mut requests = [0, 0];
        for exchange in sent {
            let arm = served.get(&exchange.id);
            let arm = *arm.unwrap_or_else(|| panic!("nobody was asked {exchange:?}"));
            requests[usize::from(arm == "canary")] += 1;
            versions.entry(exchange.local).or_default().insert(arm);
        }
        let mut connections = [0, 0];
        for (local, arms) in versions {
            assert_eq!(arms.len(), 1, "{local} was answered by both versions");
            connections[usize::from(arms.contains("canary"))] += 1;
        }
        Split {
            connections,
            requests,
        }
    }

    fn canary_received(&self) -> Vec<tests::Received> {
        self.canary
            .as_ref()
            .map(Server::received)
            .unwrap_or_default()
    }
}

/// What went to stable, and what to the canary.
#[derive(Debug)]
struct Split {
    connections: [u64; 2],
    requests: [u64; 2],
}

/// Whether the canary's connections are a share of all, as a fair coin would have it: outside these
/// bounds, of five standard deviations, once in two million times.
#[track_caller]
fn assert_share(split: &Split, share: f64) {
    let all = split.connections.iter().sum::<u64>() as f64;
    let canary = split.connections[1] as f64;
    let deviation = (all * share * (1.0 - share)).sqrt();
    assert!(
        (canary - all * share).abs() <= 5.0 * deviation,
        "{split:?} at {share}"
    );
}

/// Bodies of several packets, both ways; both versions answer them alike.
fn large(connection: usize, index: usize) -> Request {
    let seed = (connection * 100 + index) as u64;
    Request::post("/echo", &pattern(20_000 + index, seed))
}

fn connect(client: &Client, count: usize) -> Vec<Connection> {
    (0..count).map(|_| client.connect().unwrap()).collect()
}

#[track_caller]
fn ask(connections: &mut [Connection]) -> Vec<Exchange> {
    let asked = connections.iter_mut().enumerate();
    asked
        .map(|(number, connection)| connection.exchange(&large(number, 0)).unwrap())
        .collect()
}

/// On every way that a connection can come to this host; what the daemon counts of each version is
/// what its server saw.
#[test]
fn a_share_of_the_connections_goes_to_the_canary_whole() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.service().remove("mirror");
    trial.scene.set_interfaces(&["eth0", "lo"]);
    trial.scene.start_daemon(&[]);
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
        assert_share(&split, 0.3);
        sent.extend(exchanges);
    }
    let split = trial.split(&sent);
    let bytes: u64 = sent.iter().map(|exchange| exchange.body_bytes as u64).sum();
    let mut counted = 0;
    for (index, arm) in ["stable", "canary"].into_iter().enumerate() {
        let connections = trial.metric("modelmirror_connections_total", arm, &[]);
        assert_eq!(connections, split.connections[index], "{arm}");
        let answers = [("class", "2xx")];
        let responses = trial.metric("modelmirror_responses_total", arm, &answers);
        assert_eq!(responses, split.requests[index], "{arm}");
        let timed = trial.metric("modelmirror_first_byte_seconds_count", arm, &[]);
        assert_eq!(timed, split.requests[index], "{arm}");
        let way = [("direction", "response")];
        counted += trial.metric("modelmirror_arm_bytes_total", arm, &way);
        let resets = trial.metric("modelmirror_resets_total", arm, &[]);
        assert_eq!(resets, 0, "{arm}");
    }
    assert!(counted > bytes, "{counted} bytes for bodies of {bytes}");
}

#[test]
fn no_connection_notices_that_the_share_changes() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    let client = trial.scene.client.clone();
    let shares = [
        "0.5", "0", "1", "0.05", "0.9", "0.3", "1", "0", "0.5", "0.7",
    ];
    let sent = client.load_while(50, 10, large, || {
        for share in shares.iter().cycle().take(30) {
            trial.set(share);
            let asked = || {
                trial.scene.production.connections() + trial.canary.as_ref().unwrap().connections()
            };
            let before = asked();
            eventually("more connections are opened", || {
                let now = asked();
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
    let resets = trial
        .scene
        .node_metrics()
        .sum("modelmirror_resets_total", &[]);
    assert_eq!(resets, 0.0);
    trial.canary = None;
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

#[test]
fn nobody_is_sent_where_nobody_listens() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    trial.set("0.5");
    trial.canary = None;
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    assert_eq!(trial.split(&sent).connections, [40, 0]);
    let labels = [("reason", "no_listener")];
    let fell_back = trial.metric("modelmirror_steered_connections_total", "stable", &labels);
    assert!((5..=35).contains(&fell_back), "{fell_back} of 40");

    trial.start_canary();
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    assert_share(&trial.split(&sent), 0.5);

    trial.stop_stable();
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    assert_eq!(trial.split(&sent).connections, [0, 40]);
    let fell_back = trial.metric("modelmirror_steered_connections_total", "canary", &labels);
    assert!((5..=35).contains(&fell_back), "{fell_back} of 40");
}

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
        assert_share(&trial.split(&sent), 0.5);
    }
    assert_eq!(
        trial
            .scene
            .node_metrics()
            .sum("modelmirror_resets_total", &[]),
        0.0
    );
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
    for (index, arm) in ["stable", "canary"].into_iter().enumerate() {
        let connections = trial.metric("modelmirror_connections_total", arm, &[]);
        assert_eq!(connections, split.connections[index], "{arm}");
        let answers = trial.metric("modelmirror_responses_total", arm, &[]);
        assert_eq!(answers, split.requests[index], "{arm}");
    }
}

#[test]
fn connections_may_finish_or_are_reset() {
    let Some(trial) = Trial::new() else {
        return;
    };
    trial.set("0.5");
    for arguments in [&["off", "--reset"][..], &["off", "--drain", "1ms"]] {
        trial.set("0.5");
        let mut connections = connect(&trial.scene.client, 40);
        let sent = ask(&mut connections);
        let canary = trial.canary_asked();
        trial.command(&["off"]);
        let again = ask(&mut connections);
        assert_eq!(
            trial
                .split(&[sent.clone(), again].concat())
                .connections
                .iter()
                .sum::<u64>(),
            40
        );

        trial.command(arguments);
        for (connection, exchange) in connections.iter_mut().zip(&sent) {
            if canary.contains(&exchange.id) {
                let mut byte = [0];
                let ended = connection.stream().read(&mut byte).unwrap_err();
                assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionReset);
            } else {
                connection.exchange(&large(0, 1)).unwrap();
            }
        }
        let sent = trial.scene.client.load(20, 1, large).unwrap();
        assert_eq!(
            trial.split(&sent).connections,
            [20, 0],
            "after {arguments:?}"
        );
    }
}

/// Established connections go on, new ones are steered as before; the next daemon keeps share, key
/// and counts.
#[test]
fn a_daemon_may_die() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    trial.set("0.5");
    let mut connections = connect(&trial.scene.client, 40);
    let mut sent = ask(&mut connections);
    trial.scene.end_daemon(Signal::SIGKILL);
    sent.extend(ask(&mut connections));
    sent.extend(trial.scene.client.load(40, 1, large).unwrap());
    assert_share(&trial.split(&sent), 0.5);
    trial.scene.start_daemon(&[]);
    sent.extend(ask(&mut connections));
    sent.extend(trial.scene.client.load(40, 1, large).unwrap());
    let split = trial.split(&sent);
    assert_share(&split, 0.5);
    for (index, arm) in ["stable", "canary"].into_iter().enumerate() {
        let connections = trial.metric("modelmirror_connections_total", arm, &[]);
        assert_eq!(connections, split.connections[index], "{arm}");
    }
}

#[test]
fn a_flood_goes_to_stable() {
    let Some(trial) = Trial::with(|canary| {
        canary.insert("max_new_connections_per_second".into(), 2.into());
    }) else {
        return;
    };
    trial.set("1");
    let sent = trial.scene.client.load(100, 1, large).unwrap();
    let split = trial.split(&sent);
    let labels = [("reason", "limit")];
    let limited = trial.metric("modelmirror_steered_connections_total", "stable", &labels);
    assert!(
        split.connections[1] > 0 && limited > 50,
        "{split:?}, {limited}"
    );
    assert_eq!(limited, split.connections[0]);
}

/// What is copied is told apart by who answered.
#[test]
fn versions_are_mirrored_as_configured() {
    for arms in [&["stable"][..], &["stable", "canary"]] {
        let Some(mut trial) = Trial::quiet(|canary| {
            canary.insert("share".into(), 0.5.into());
        }) else {
            return;
        };
        trial.scene.set_mirror("arms", arms.to_vec());
        trial.scene.start();
        let sent = trial.scene.client.load(40, 3, large).unwrap();
        let split = trial.split(&sent);
        assert_share(&split, 0.5);
        let outcome = trial.scene.settle();
        let mirrored = match arms.len() {
            1 => split.requests[0],
            _ => split.requests[0] + split.requests[1],
        };
        assert_eq!(
            outcome.requests("compared"),
            mirrored,
            "{arms:?}: {split:?}\n{}",
            trial.scene.describe()
        );
        let canary = trial.canary_asked();
        let by_arm = |arm: &str| {
            let records = trial.scene.agent().records().unwrap();
            records.iter().filter(|record| record["arm"] == arm).count() as u64
        };
        eventually("all records are written", || {
            let written = by_arm("stable") + by_arm("canary");
            ensure!(written == mirrored, "{written} of {mirrored}");
            Ok(())
        });
        assert_eq!(by_arm("stable"), split.requests[0], "{arms:?}");
        for record in trial.scene.agent().records().unwrap() {
            let id = record["request_id"].as_str().unwrap();
            let arm = if canary.contains(id) {
                "canary"
            } else {
                "stable"
            };
            assert_eq!(record["arm"], arm, "{record}");
            let version = if arm == "canary" { "v13" } else { "v12" };
            assert_eq!(record["production"]["version"], version, "{record}");
        }
    }
}
