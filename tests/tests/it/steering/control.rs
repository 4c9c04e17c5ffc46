//! Steering is taken back, and goes on without a daemon.

use std::io::Read as _;
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{Trial, eventually, large};

use super::{ask, connect};

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

/// Nobody watches over a share without a daemon, so that it ends in time; once everything is the
/// canary's there is nothing to go back to.
#[test]
fn steering_ends_without_a_daemon_unless_all_is_the_canary_s() {
    const STALE: Duration = Duration::from_secs(1);
    for (share, stays, for_good) in [("0.9", 0.9, false), ("1", 1.0, true)] {
        let Some(mut trial) = Trial::with(|canary| {
            canary.insert("steer_stale".into(), "1s".into());
        }) else {
            return;
        };
        trial.set(share);
        let mut connections = connect(&trial.scene.client, 20);
        let mut sent = ask(&mut connections);
        trial.scene.end_daemon(Signal::SIGKILL);
        let dead = Instant::now();
        let expected = if for_good { [0, 20] } else { [20, 0] };
        eventually("the heartbeat is old, and seen to be", || {
            let came = trial.scene.client.load(20, 1, large)?;
            let came = trial.split(&came).connections;
            ensure!(dead.elapsed() > 2 * STALE && came == expected, "{came:?}");
            anyhow::Ok(())
        });
        sent.extend(ask(&mut connections));
        trial.scene.start_daemon(&[]);
        sent.extend(ask(&mut connections));
        sent.extend(trial.scene.client.load(40, 1, large).unwrap());
        trial.split(&sent).assert_share(stays);
        let stale = trial.steered("stable", "stale");
        assert_eq!(stale > 0, !for_good, "{stale} at {share}");
    }
}
