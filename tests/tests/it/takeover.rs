//! Daemons that end, and those that come after them.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use aya::maps::{Map, MapData, PerCpuArray, PerCpuValues};
use mirror_common::ABI_VERSION;
use mirror_common::counters::Counters;
use mirror_common::verdict::Reason;
use nix::sys::signal::Signal;
use tests::{Daemon, Exchange, Metrics, Scene, Transport, eventually};

use crate::traffic::{is_not_mirrored, mirrors, small};

/// Every counter that was there, and is not smaller.
#[track_caller]
fn assert_grown(before: &Metrics, after: &Metrics) {
    for name in [
        "modelmirror_packets_total",
        "modelmirror_mirrored_packets_total",
        "modelmirror_mirrored_bytes_total",
        "modelmirror_connections_total",
        "modelmirror_tunnel_sent_packets_total",
        "modelmirror_tunnel_sent_bytes_total",
    ] {
        let reasons = before.by(name, "reason");
        let labels = reasons
            .iter()
            .map(|(reason, _)| vec![("reason", &**reason)]);
        for labels in labels.chain([vec![]]) {
            let (then, now) = (before.sum(name, &labels), after.sum(name, &labels));
            assert!(then <= now, "{name} {labels:?}: {now} after {then}");
        }
    }
}

#[test]
fn a_killed_daemon_s_successor_goes_on_counting() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    let mut sent = scene.load_while(4, small, |scene| {
        scene.wait_for_packets("mirrored");
        let before = scene.node_metrics();
        scene.end_daemon(Signal::SIGKILL);
        scene.start_daemon(&[]);
        assert_grown(&before, &scene.node_metrics());
        scene.wait_for_agent();
        scene.wait_for_packets("mirrored");
    });
    scene.account(&sent);
    let opened = scene
        .node_metrics()
        .sum("modelmirror_connections_total", &[]);
    let known: HashSet<_> = sent.iter().map(|exchange| exchange.local).collect();
    assert_eq!(opened as usize, known.len(), "connections");
    mirrors(&scene, &mut sent);
}

/// What an orphaned tap does, and that a daemon can be stopped without anybody noticing.
#[test]
fn without_a_daemon_copying_ends_after_five_seconds() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    scene.count_copies();
    let mut sent = Vec::new();
    mirrors(&scene, &mut sent);
    let stopped = Instant::now();
    scene.end_daemon(Signal::SIGTERM);
    let links = scene.home.pins().join(format!("v{ABI_VERSION}/links"));
    assert!(links.read_dir().unwrap().count() > 0, "no link is left");
    if Transport::of_this_run() == Transport::Stream {
        into_rings(&scene, &mut sent);
    } else {
        to_the_agent(&scene, &mut sent);
    }
    // Its last heartbeat was a little before, and the last request a little after.
    let after = stopped.elapsed();
    let about_five = Duration::from_secs(3)..Duration::from_secs(10);
    assert!(about_five.contains(&after), "copying ended after {after:?}");
    is_not_mirrored(&scene, &mut sent);
    scene.start();
    assert!(scene.packets("stale") > 20, "{}", scene.node_metrics());
    mirrors(&scene, &mut sent);
}

/// A request every now and then, until none is copied any more.
#[track_caller]
fn to_the_agent(scene: &Scene, sent: &mut Vec<Exchange>) {
    let before = scene.copies();
    sent.extend(scene.load(1, 5, small));
    assert!(
        scene.copies() > before,
        "an ended daemon took its programs away"
    );
    eventually("copying has ended", || {
        let before = scene.copies();
        sent.extend(scene.load(1, 1, small));
        let copies = scene.copies() - before;
        ensure!(copies == 0, "{copies} copies");
        Ok(())
    });
}

/// Nobody ships what is copied now, nor says how much that is: the programs' own counters do, until they
/// have given up.
#[track_caller]
fn into_rings(scene: &Scene, sent: &mut Vec<Exchange>) {
    let before = counted(scene, Reason::Mirrored);
    sent.extend(scene.load(1, 5, small));
    let after = counted(scene, Reason::Mirrored);
    assert!(after > before, "an ended daemon took its programs away");
    eventually("copying has ended", || {
        sent.extend(scene.load(1, 1, small));
        let stale = counted(scene, Reason::Stale);
        ensure!(stale > 20, "{stale} packets");
        Ok(())
    });
}

/// How many packets the programs have counted for this reason, whether there is a daemon or not.
fn counted(scene: &Scene, reason: Reason) -> u64 {
    let maps = scene.home.pins().join(format!("v{ABI_VERSION}/maps"));
    let map = MapData::from_pin(maps.join("COUNTERS")).unwrap();
    let counters: PerCpuArray<_, Counters> = PerCpuArray::try_from(Map::PerCpuArray(map)).unwrap();
    let rows = counters.iter().map(|row| row.unwrap());
    let of_row = |row: PerCpuValues<Counters>| -> u64 {
        let packets = row.iter().map(|cpu| cpu.packets[reason as usize]);
        packets.sum()
    };
    rows.map(of_row).sum()
}

#[test]
fn detach_on_exit_takes_everything_away() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.count_copies();
    scene.start_with(&["--detach-on-exit"]);
    let mut sent = Vec::new();
    mirrors(&scene, &mut sent);
    scene.end_daemon(Signal::SIGTERM);
    assert!(!scene.home.pins().exists(), "pins are left");
    is_not_mirrored(&scene, &mut sent);
}

#[test]
fn off_survives_a_restart_and_on_lifts_it() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    scene.count_copies();
    let mut sent = Vec::new();
    mirrors(&scene, &mut sent);
    let said = scene.modelmirror(&["off"]);
    assert!(said.contains("mirror on"), "{said}");
    is_not_mirrored(&scene, &mut sent);
    scene.end_daemon(Signal::SIGKILL);
    scene.start_daemon(&[]);
    is_not_mirrored(&scene, &mut sent);
    scene.modelmirror(&["mirror", "on", "--service", "digits"]);
    scene.wait_for_agent();
    mirrors(&scene, &mut sent);
    scene.modelmirror(&["mirror", "off", "--service", "digits"]);
    is_not_mirrored(&scene, &mut sent);
    assert!(scene.packets("off") > 0, "{}", scene.node_metrics());
    scene.modelmirror(&["mirror", "on", "--service", "digits"]);
    mirrors(&scene, &mut sent);
}

/// A qdisc that we have made goes with us, one of somebody else's stays; and once the daemon ends that was
/// switched off, no pin is left.
#[test]
fn off_leaves_what_was_there_before() {
    for foreign in [false, true] {
        let Some(mut scene) = Scene::new() else {
            return;
        };
        let node = scene.net.node.clone();
        let tc = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            node.output("tc", &words).unwrap()
        };
        if foreign {
            tc("qdisc add dev eth0 clsact");
        }
        scene.start_daemon(&["--attach", "clsact"]);
        assert!(tc("qdisc show dev eth0").contains("clsact"));
        scene.modelmirror(&["off"]);
        let left = tc("qdisc show dev eth0");
        assert_eq!(left.contains("clsact"), foreign, "{left}");
        scene.end_daemon(Signal::SIGTERM);
        assert!(!scene.home.pins().exists(), "pins are left");
    }
}

/// Who names no config has what is attached found, wherever it is pinned; the state is kept in a folder of
/// the test's own.
#[test]
fn off_finds_what_is_attached() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    scene.count_copies();
    let mut sent = Vec::new();
    mirrors(&scene, &mut sent);
    scene.end_daemon(Signal::SIGKILL);
    let program = tests::binary("modelmirror").unwrap();
    let line = format!(
        "mount -t tmpfs tmpfs /var/lib && exec {} off",
        program.display()
    );
    let said = scene
        .net
        .node
        .output("unshare", &["-m", "sh", "-c", &line])
        .unwrap();
    assert!(said.contains("removed links/eth0"), "{said}");
    assert!(
        said.trim_end().ends_with("(kept in /var/lib/modelmirror)"),
        "{said}"
    );
    assert!(!scene.home.pins().exists(), "pins are left");
    is_not_mirrored(&scene, &mut sent);
    // There is nothing more to find, and no config that would say where it could be.
    let again = |line: &str| {
        let output = scene.net.node.output("unshare", &["-m", "sh", "-c", line]);
        output.map_err(|error| format!("{error:#}"))
    };
    let said = again(&line).unwrap_err();
    assert!(
        said.contains("nothing is attached to this host, no daemon answers"),
        "{said}"
    );
    let said = again(&format!("{line} --if-present")).unwrap();
    assert!(said.contains("nothing was attached"), "{said}");
    // A config that stands where it is looked for says it; one that cannot be used does not hold `off` up.
    let config = scene.home.path().join("node.toml");
    let found = format!(
        "mount -t tmpfs tmpfs /etc && mkdir /etc/modelmirror && cp {} /etc/modelmirror && {line}",
        config.display()
    );
    let said = again(&found).unwrap();
    let state = scene.home.path().join("state");
    assert!(
        said.contains(&format!("(kept in {})", state.display())),
        "{said}"
    );
    let broken = found.replace(
        " && exec",
        " && echo broken >/etc/modelmirror/node.toml && exec",
    );
    let said = again(&broken).unwrap_err();
    assert!(
        said.contains("node.toml cannot be used, so the defaults hold")
            && said.contains("nothing is attached"),
        "{said}"
    );
}

/// One that lives, and does not answer, keeps nothing attached, and attaches nothing when it goes on.
#[test]
fn off_does_not_need_the_daemon_s_consent() {
    let Some(scene) = Scene::started() else {
        return;
    };
    scene.count_copies();
    let mut sent = Vec::new();
    mirrors(&scene, &mut sent);
    let daemon = &scene.daemon().process;
    daemon.signal(Signal::SIGSTOP).unwrap();
    let config = scene.home.path().join("node.toml");
    let off = [
        "off",
        "--config",
        &config.to_string_lossy(),
        "--output",
        "json",
    ];
    let said: serde_json::Value = serde_json::from_str(&scene.modelmirror(&off)).unwrap();
    let warnings = said["warnings"].to_string();
    assert!(
        warnings.contains("could not do it") && warnings.contains("does not answer still has"),
        "{said:#}"
    );
    assert!(
        said["done"].to_string().contains("removed links/eth0"),
        "{said:#}"
    );
    daemon.signal(Signal::SIGCONT).unwrap();
    // It comes round, and finds its place taken.
    eventually("the daemon to come round", || {
        ensure!(
            scene.modelmirror(&["status"]).contains("eth0"),
            "it says nothing"
        );
        Ok(())
    });
    is_not_mirrored(&scene, &mut sent);
}

/// `modelmirror off`, where no daemon runs.
#[track_caller]
fn off(scene: &Scene) -> String {
    let config = scene.home.path().join("node.toml");
    scene.modelmirror(&["off", "--config", &config.to_string_lossy()])
}

#[test]
fn off_works_without_a_daemon() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    scene.count_copies();
    let mut sent = Vec::new();
    mirrors(&scene, &mut sent);
    scene.end_daemon(Signal::SIGKILL);
    let said = off(&scene);
    assert!(said.contains("removed links/eth0"), "{said}");
    assert!(!scene.home.pins().exists(), "pins are left");
    is_not_mirrored(&scene, &mut sent);
    scene.start_daemon(&[]);
    is_not_mirrored(&scene, &mut sent);
    scene.modelmirror(&["mirror", "on", "--service", "digits"]);
    scene.wait_for_agent();
    // The counters are new ones, too.
    sent.extend(scene.load(4, 10, small));
    eventually("all are compared", || {
        let records = scene.agent().records()?.len();
        ensure!(records == 80, "{records} of 80");
        Ok(())
    });
    scene.serves(&sent);
}

/// A daemon that does not start, and what it says.
#[track_caller]
fn refusal(scene: &Scene) -> String {
    let daemon = Daemon::start(&scene.net.node, &scene.home, &scene.node_config);
    format!("{:#}", daemon.expect_err("it is refused"))
}

#[test]
fn pins_of_another_layout_are_refused() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.start_agent();
    let pins = scene.home.pins().to_owned();
    fs::create_dir_all(pins.join("v999/maps")).unwrap();
    let said = refusal(&scene);
    assert!(
        said.contains("v999") && said.contains("modelmirror off"),
        "{said}"
    );
    off(&scene);
    assert!(!pins.exists(), "`off` has left {}", pins.display());

    // A map that is not what its name says. One that is off leaves no maps.
    scene.start_daemon(&[]);
    scene.modelmirror(&["mirror", "on", "--service", "digits"]);
    scene.end_daemon(Signal::SIGTERM);
    let maps = pins.join(format!("v{ABI_VERSION}/maps"));
    fs::remove_file(maps.join("TAP")).unwrap();
    fs::rename(maps.join("AGENTS"), maps.join("TAP")).unwrap();
    let said = refusal(&scene);
    assert!(
        said.contains("TAP: pinned map is") && said.contains("modelmirror off"),
        "{said}"
    );
    off(&scene);
    scene.start_daemon(&[]);
    scene.modelmirror(&["mirror", "on", "--service", "digits"]);
    scene.end_daemon(Signal::SIGTERM);
    scene.start();
    mirrors(&scene, &mut Vec::new());
}

/// A file or folder that nobody but its owner can use.
#[track_caller]
fn assert_mode(path: &Path, mode: u32) {
    let found = fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(found, mode, "{found:o}, not {mode:o}: {}", path.display());
}

#[test]
fn files_are_for_their_owner_alone() {
    let Some(scene) = Scene::started() else {
        return;
    };
    mirrors(&scene, &mut Vec::new());
    assert_mode(&scene.home.control(), 0o600);
    assert_mode(scene.home.pins(), 0o700);
    let mut folders = vec![scene.home.record_dir()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        assert_mode(&folder, 0o700);
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                assert_mode(&path, 0o600);
                files += 1;
            }
        }
    }
    assert!(files > 0, "there are no records");
}
