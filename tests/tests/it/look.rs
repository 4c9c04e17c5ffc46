//! The daemon's own look at exchanges, held against what clients counted themselves.

mod timed;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use socket2::SockRef;
use tests::{
    Client, Exchange, Metrics, Mood, Request, Scene, Trial, eventually, eventually_within, pattern,
    steady,
};
use toml::Table;

use crate::traffic::small;

const LOOKED: &str = "modelmirror_requests_total";
const RATIO: &str = "modelmirror_evidence_sample_ratio";

/// More exchanges a second than any test sends.
const NO_BUDGET: i64 = 1_000_000;

fn look(config: &mut Table, exchanges_per_second: i64) {
    let mut look = Table::new();
    look.insert("exchanges_per_second".into(), exchanges_per_second.into());
    let service = config["service"][0].as_table_mut();
    service.unwrap().insert("look".into(), look.into());
}

/// Requests whose answers have every class that clients see, in every framing. Few bytes: what 40
/// connections send with them in one second fits what a look may copy.
fn mixed(connection: usize, index: usize) -> Request {
    let seed = (connection * 1000 + index) as u64;
    match index % 10 {
        0 => Request::get("/status/404"),
        1 => Request::get("/status/500"),
        2 => Request::get("/status/302"),
        3 => Request::get("/status/204"),
        4 => Request::head_of("/bytes/1000"),
        5 => Request::get("/chunked/70000"),
        6 => Request::get("/bytes/200000"),
        7 => Request::post("/echo", &pattern(100_000, seed)).chunked(1447),
        _ => Request::post("/echo", &pattern(500, seed)),
    }
}

/// Counts by outcome.
type Counts = BTreeMap<String, u64>;

fn class(status: u16) -> String {
    format!("{}xx", status / 100)
}

fn by_class<'a>(sent: impl Iterator<Item = &'a Exchange>) -> Counts {
    let mut counts = Counts::new();
    for exchange in sent {
        *counts.entry(class(exchange.status)).or_default() += 1;
    }
    counts
}

/// What the look has counted of a version, if nothing is open.
fn looked(metrics: &Metrics, arm: &str) -> anyhow::Result<Counts> {
    let labels = [("service", "digits"), ("arm", arm)];
    let outcomes = metrics.by(LOOKED, "outcome").into_iter();
    let counts: Counts = outcomes
        .map(|(outcome, _)| {
            let labels = [labels[0], labels[1], ("outcome", outcome.as_str())];
            let count = metrics.sum(LOOKED, &labels) as u64;
            (outcome, count)
        })
        .filter(|(_, count)| *count > 0)
        .collect();
    let begun = metrics.sum("modelmirror_requests_begun_total", &labels) as u64;
    let ended: u64 = counts.values().sum();
    ensure!(begun == ended, "{begun} begun, {ended} ended");
    Ok(counts)
}

#[track_caller]
fn looked_is(scene: &Scene, arm: &str, expected: &Counts) {
    eventually(&format!("{arm} was seen so"), || {
        let metrics = scene.daemon().metrics()?;
        let counts = looked(&metrics, arm)?;
        ensure!(counts == *expected, "{counts:?}, not {expected:?}");
        Ok(())
    });
}

/// Waits until the tap has the rules: before, nothing is copied.
#[track_caller]
fn wait_for_look(scene: &Scene, arms: f64) {
    scene.wait_for(RATIO, &[("service", "digits")], arms);
}

/// Without any mirror: both versions, by class, and what ends without a whole answer.
#[test]
fn both_versions_are_counted_as_their_clients_do() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    look(&mut trial.scene.node_config, NO_BUDGET);
    trial.start_daemon();
    wait_for_look(&trial.scene, 2.0);
    trial.set("0.5");
    let sent = trial.scene.load(40, 10, mixed);
    let canary_s = trial.canary_asked();
    let of = |canary: bool| {
        let sent = sent.iter();
        sent.filter(move |exchange| canary_s.contains(&exchange.id) == canary)
    };
    let stable = by_class(of.clone()(false));
    let mut canary = by_class(of(true));
    assert!(
        stable.len() == 4 && canary.len() == 4,
        "{stable:?} {canary:?}"
    );
    looked_is(&trial.scene, "stable", &stable);
    looked_is(&trial.scene, "canary", &canary);

    trial.set("1");
    let mut add = |outcome: &str, count| *canary.entry(outcome.into()).or_default() += count;
    // The server resets them before it answers.
    let mut connections: Vec<_> = (0..5)
        .map(|_| trial.scene.client.connect().unwrap())
        .collect();
    for connection in &mut connections {
        connection.exchange(&small(0, 1)).unwrap();
    }
    trial.canary[0].set_mood(Mood::Reset);
    for connection in &mut connections {
        assert!(connection.ask(&small(0, 2)).is_err());
    }
    add("2xx", 5);
    add("unanswered", 5);
    // The client gives up.
    trial.canary[0].set_mood(Mood::Silent);
    let asked = trial.canary[0].received().len();
    let request = small(0, 3);
    let waiting: Vec<_> = (0..7)
        .map(|_| {
            let mut connection = trial.scene.client.connect().unwrap();
            connection.begin(&request, request.body.len()).unwrap();
            connection
        })
        .collect();
    eventually("the canary has them", || {
        let now = trial.canary[0].received().len();
        ensure!(now == asked + 7, "{now} after {asked}");
        Ok(())
    });
    for mut connection in waiting {
        let socket = SockRef::from(&*connection.stream());
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    }
    add("aborted_by_client", 7);
    looked_is(&trial.scene, "canary", &canary);
    looked_is(&trial.scene, "stable", &stable);
    let metrics = trial.scene.node_metrics();
    assert_eq!(
        metrics.sum("modelmirror_evidence_refused_copies_total", &[]),
        0.0
    );
    let status = trial.scene.modelmirror(&["status"]);
    let line = "look         1.000 of stable, ";
    assert!(status.contains(line), "{status}");
}

#[test]
fn what_is_mirrored_too_is_seen_by_both_readers() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    look(&mut scene.node_config, NO_BUDGET);
    scene.start();
    wait_for_look(&scene, 1.0);
    let sent = scene.load(10, 20, mixed);
    looked_is(&scene, "stable", &by_class(sent.iter()));
    scene.prove(&sent);
}

/// A look that is far over its budget takes little, and nothing from the mirror.
#[test]
fn a_budget_bounds_the_look_and_the_mirror_feels_nothing() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    look(&mut scene.node_config, 1);
    scene.start();
    wait_for_look(&scene, 1.0);
    let sent = scene.load_while(8, small, |scene| {
        eventually("the share is lowered", || {
            let ratio = scene.node_metrics().sum(RATIO, &[]);
            ensure!(ratio < 0.05, "{ratio}");
            Ok(())
        });
    });
    scene.prove(&sent);
    never_failed(&scene);
    eventually_within(Duration::from_secs(90), "all is looked at again", || {
        let ratio = scene.node_metrics().sum(RATIO, &[]);
        ensure!(ratio == 1.0, "{ratio}");
        Ok(())
    });
    let before = scene.node_metrics().sum(LOOKED, &[("outcome", "2xx")]);
    let more = scene.load(1, 10, small);
    eventually("they are seen", || {
        let now = scene.node_metrics().sum(LOOKED, &[("outcome", "2xx")]);
        ensure!(now == before + 10.0, "{now} after {before}");
        Ok(())
    });
    scene.prove(&[sent, more].concat());
}

/// Nothing of what was not seen whole counts as cut short: production answered everything.
#[track_caller]
fn never_failed(scene: &Scene) {
    let counts = eventually("nothing is open", || {
        looked(&scene.daemon().metrics()?, "stable")
    });
    for outcome in [
        "incomplete",
        "unanswered",
        "aborted_by_client",
        "unreadable",
    ] {
        assert!(!counts.contains_key(outcome), "{counts:?}");
    }
}

#[test]
fn what_finds_the_ring_full_does_not_count_as_failed() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let service = scene.node_config["service"][0].as_table_mut().unwrap();
    service.remove("mirror");
    look(&mut scene.node_config, NO_BUDGET);
    scene.node_config.insert("ring".into(), "1MiB".into());
    scene.start_daemon(&[]);
    wait_for_look(&scene, 1.0);
    let large = |_, _| Request::get("/bytes/3000000");
    let sent = scene.load_while(6, large, |scene| {
        eventually("copies are refused, and the share is lowered", || {
            let metrics = scene.node_metrics();
            let refused = metrics.sum("modelmirror_evidence_refused_copies_total", &[]);
            ensure!(refused > 0.0 && metrics.sum(RATIO, &[]) < 1.0, "{refused}");
            Ok(())
        });
    });
    scene.serves(&sent);
    never_failed(&scene);
}

fn pinned(folder: &Path, name: &str) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths.any(|path| path.ends_with(name) || path.is_dir() && pinned(&path, name))
}

/// The ring is there while something is looked at; while nothing happens nobody wakes.
#[test]
fn the_look_comes_and_goes_with_the_config() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let service = scene.node_config["service"][0].as_table_mut().unwrap();
    service.remove("mirror");
    scene.start_daemon(&[]);
    let without = scene.node_config.to_string();
    look(&mut scene.node_config, NO_BUDGET);
    let with = scene.node_config.to_string();
    let reload = |config: &str| {
        fs::write(scene.daemon().config(), config).unwrap();
        scene.daemon().process.signal(Signal::SIGHUP).unwrap();
    };
    let has_ring = || pinned(scene.home.pins(), "RING_64");
    let wakeups = || {
        scene
            .node_metrics()
            .sum("modelmirror_evidence_wakeups_total", &[])
    };
    for _ in 0..2 {
        assert!(!has_ring());
        scene.load(2, 10, small);
        let metrics = scene.node_metrics();
        assert!(!metrics.has(RATIO, &[]) && !metrics.has(LOOKED, &[]));
        reload(&with);
        wait_for_look(&scene, 1.0);
        assert!(has_ring());
        let sent = scene.load(2, 10, small);
        looked_is(&scene, "stable", &by_class(sent.iter()));
        // What has been read is forgotten a second later.
        steady(Duration::from_secs(2), "nobody wakes", wakeups);
        reload(&without);
        eventually("the ring is gone", || {
            ensure!(!has_ring(), "it is there");
            Ok(())
        });
    }
}

/// A daemon that is killed and started again goes on with what the ring holds and the tap copies.
#[test]
fn a_restart_loses_only_what_is_open() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    look(&mut scene.node_config, NO_BUDGET);
    scene.start();
    wait_for_look(&scene, 1.0);
    let mut open = scene.client.connect().unwrap();
    let first = open.exchange(&small(0, 0)).unwrap();
    looked_is(&scene, "stable", &by_class([&first].into_iter()));
    scene.end_daemon(Signal::SIGKILL);
    // While nobody reads the tap goes on for a while.
    let client: Client = scene.client.clone();
    let sent = client.load(2, 10, small).unwrap();
    scene.start_daemon(&[]);
    wait_for_look(&scene, 1.0);
    let more = scene.load(2, 10, small);
    let counts = by_class(sent.iter().chain(&more));
    looked_is(&scene, "stable", &counts);
    drop(open);
}
