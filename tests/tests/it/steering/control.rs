//! Steering is taken back, and goes on without a daemon.

use std::io::{ErrorKind, Read as _};
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{Trial, eventually, large};

use super::{ask, connect};

#[test]
fn connections_may_finish_or_are_reset() {
    if let Some(trial) = Trial::new() {
        finish_or_reset(&trial);
    }
}

/// Open connections go on after `off`; those of the canary end when that is asked for, and no others.
pub(super) fn finish_or_reset(trial: &Trial) {
    for arguments in [&["off", "--reset"][..], &["off", "--drain", "1ms"]] {
        trial.set("0.5");
        let mut connections = connect(&trial.scene.client, 40);
        let sent = ask(&mut connections);
        let canary = trial.canary_asked();
        trial.command(&["off"]);
        let again = ask(&mut connections);
        let split = trial.split(&[sent.clone(), again].concat());
        assert_eq!(split.connections.iter().sum::<u64>(), 40);
        trial.command(arguments);
        for (connection, exchange) in connections.iter_mut().zip(&sent) {
            if canary.contains(&exchange.id) {
                let ended = connection.stream().read(&mut [0]).unwrap_err();
                assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
            } else {
                connection.exchange(&large(0, 1)).unwrap();
            }
        }
        let sent = trial.scene.client.load(20, 1, large).unwrap();
        let split = trial.split(&sent);
        assert_eq!(split.connections, [20, 0], "after {arguments:?}");
    }
}

/// A large table is gone through by a thread of its own: the daemon answers meanwhile.
#[test]
fn the_daemon_answers_while_connections_are_reset() {
    const FLOOD: u32 = 200_000;
    let quiet = Trial::quiet(|canary| {
        canary.insert("max_new_connections_per_second".into(), 1_000_000.into());
    });
    let Some(mut trial) = quiet else {
        return;
    };
    let config = &mut trial.scene.node_config;
    config.insert("connections".into(), i64::from(2 * FLOOD).into());
    trial.start_daemon();
    trial.set("0.9999");
    trial.set("1");
    let mut connections = connect(&trial.scene.client, 20);
    ask(&mut connections);
    trial.flood(FLOOD);
    eventually("the table is full of them", || {
        let [_, canary] = trial.connections();
        ensure!(canary > u64::from(FLOOD) / 2, "{canary}");
        Ok(())
    });
    let (answers, said) = std::thread::scope(|scope| {
        let reset = scope.spawn(|| trial.command(&["off", "--reset"]));
        let mut answers = 0;
        while !reset.is_finished() {
            trial.scene.node_metrics();
            trial.scene.modelmirror(&["status"]);
            answers += 1;
        }
        (answers, reset.join().unwrap())
    });
    assert!(answers > 3, "{answers} while it said {said}");
    assert!(said.contains("of its connections were reset"), "{said}");
    for connection in &mut connections {
        let ended = connection.stream().read(&mut [0]).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::ConnectionReset);
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
    trial.split(&sent).assert_share(0.5);
    trial.scene.start_daemon(&[]);
    sent.extend(ask(&mut connections));
    sent.extend(trial.scene.client.load(40, 1, large).unwrap());
    let split = trial.split(&sent);
    split.assert_share(0.5);
    assert_eq!(trial.connections(), split.connections);
}

/// `modelmirror off` where no daemon runs: the kernel has the sockets of the canary's connections, and
/// whoever comes after it is stable's.
#[test]
fn steering_is_switched_off_without_a_daemon() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    trial.set("1");
    let mut connections = connect(&trial.scene.client, 40);
    let mut sent = ask(&mut connections);
    trial.scene.end_daemon(Signal::SIGKILL);
    sent.extend(ask(&mut connections));
    let config = trial.scene.home.path().join("node.toml");
    let config = config.to_string_lossy();
    trial.scene.modelmirror(&["off", "--config", &config]);

    let first = trial.scene.client.load(1, 1, large).unwrap();
    assert_eq!(trial.split(&first).connections, [1, 0]);
    let others = trial.scene.client.load(40, 2, large).unwrap();
    assert_eq!(trial.split(&others).connections, [40, 0]);
    sent.extend(ask(&mut connections));
    assert_eq!(trial.split(&sent).connections, [0, 40]);
    for host in [&trial.scene.net.client, &trial.scene.net.node] {
        let resets = host.counter("Tcp", "EstabResets").unwrap();
        assert_eq!(resets, 0, "{}", host.name());
    }
}

/// Nobody watches over a share without a daemon, so that it ends in time.
#[test]
fn steering_ends_without_a_daemon() {
    check_without_a_daemon("0.9", [20, 0]);
}

/// Once everything is the canary's there is nothing to go back to.
#[test]
fn steering_goes_on_without_a_daemon_when_all_is_the_canary_s() {
    check_without_a_daemon("1", [0, 20]);
}

/// How twenty connections are shared out when the daemon has been dead for longer than `steer_stale`;
/// older ones stay where they are, and the next daemon goes on with the share.
#[track_caller]
fn check_without_a_daemon(share: &str, expected: [u64; 2]) {
    // Several heartbeats, so that one that comes late where much else runs ends nothing.
    const STALE: Duration = Duration::from_secs(3);
    let Some(mut trial) = Trial::with(|canary| {
        canary.insert("steer_stale".into(), "3s".into());
    }) else {
        return;
    };
    trial.set(share);
    let mut connections = connect(&trial.scene.client, 20);
    let mut sent = ask(&mut connections);
    trial.scene.end_daemon(Signal::SIGKILL);
    let dead = Instant::now();
    sent.extend(ask(&mut connections));
    eventually("the heartbeat is too old", || {
        let since = dead.elapsed();
        ensure!(since > STALE, "{since:?}");
        Ok(())
    });
    let came = trial.scene.client.load(20, 1, large).unwrap();
    assert_eq!(trial.split(&came).connections, expected);
    sent.extend(ask(&mut connections));
    trial.scene.start_daemon(&[]);
    assert_eq!(trial.steered("stable", "stale") > 0, expected == [20, 0]);
    sent.extend(ask(&mut connections));
    sent.extend(trial.scene.client.load(40, 1, large).unwrap());
    trial.split(&sent).assert_share(share.parse().unwrap());
}
