//! More connections than the limit allows, or than the table remembers.

use anyhow::ensure;
use tests::{Trial, eventually, large};

use super::{ask, connect, version, who};

fn limited(limit: i64) -> Option<Trial> {
    Trial::with(|canary| {
        canary.insert("max_new_connections_per_second".into(), limit.into());
    })
}

/// Whatever the limit sends to stable stays there, also where the kernel remembers nothing of the
/// handshake.
#[test]
fn a_flood_goes_to_stable() {
    for cookies in ["0", "1", "2"] {
        let Some(trial) = limited(2) else {
            return;
        };
        let node = &trial.scene.net.node;
        node.sysctl("net/ipv4/tcp_syncookies", cookies).unwrap();
        // A handshake by cookie whose SYN nobody remembers would be the canary's.
        trial.set("0.9999");
        trial.set("1");
        let sent = trial.scene.client.load(100, 1, large).unwrap();
        let split = trial.split(&sent);
        let limited = trial.steered("stable", "limit");
        assert!(
            split.connections[1] > 0 && limited > 50,
            "{split:?}, {limited}"
        );
        assert_eq!(limited, split.connections[0], "cookies {cookies}");
        trial.assert_calm();
    }
}

/// Ports that the canary had served before go to stable over the limit, and count as stable's.
#[test]
fn over_the_limit_nothing_is_left_of_an_earlier_connection() {
    let Some(trial) = limited(1) else {
        return;
    };
    trial.set("1");
    let serve = |port: u16, initial: u32| {
        let mut connection = trial.handmade(port);
        connection.open(initial).unwrap();
        let answer = connection.ask(&who()).unwrap();
        connection.fin().unwrap();
        connection.server_fin().unwrap();
        connection.ack_fin().unwrap();
        version(&answer)
    };
    assert_eq!(serve(40_000, 1_000), "v13");
    let last = (40_001..)
        .find(|&port| serve(port, 1_000) == "v12")
        .unwrap();
    // Stable got the last one, and the canary those before it.
    let served = u64::from(last - 40_000);
    trial.wait_for_responses([1, served]);
    assert_eq!(serve(40_000, 1_000_000), "v12");
    trial.wait_for_responses([2, served]);
    trial.assert_calm();
}

/// 100,000 forged SYNs, of which the limit lets a few pass. What is established goes on, and whoever
/// comes meanwhile is served.
#[test]
fn a_flood_over_the_limit_harms_nobody() {
    let Some(trial) = limited(50) else {
        return;
    };
    trial.set("0.9999");
    trial.set("1");
    let mut connections = connect(&trial.scene.client, 20);
    let mut sent = ask(&mut connections);
    assert_eq!(trial.split(&sent).connections, [0, 20]);
    let came = std::thread::scope(|scope| {
        let flood = scope.spawn(|| trial.flood(100_000));
        let mut came = Vec::new();
        while !flood.is_finished() {
            came.extend(trial.scene.client.load(4, 2, large).unwrap());
            sent.extend(ask(&mut connections));
        }
        came
    });
    sent.extend(ask(&mut connections));
    assert_eq!(trial.split(&sent).connections, [0, 20], "established");
    let split = trial.split(&came);
    assert!(split.connections[0] > 0, "{split:?}");
    let limited = trial.steered("stable", "limit");
    assert!(limited > 90_000, "{limited}");
    let status = trial.scene.modelmirror(&["status"]);
    assert!(status.contains("came by limit"), "{status}");
    eventually("the canary is chosen again", || {
        let sent = trial.scene.client.load(1, 1, large)?;
        let split = trial.split(&sent);
        ensure!(split.connections == [0, 1], "{split:?}");
        anyhow::Ok(())
    });
    assert_eq!(trial.resets(), 0);
}

/// Twice as many as the table has entries, all of which the limit lets pass: what is
/// established is found by its socket.
#[test]
fn a_flood_within_the_limit_ends_no_connection() {
    let Some(trial) = limited(1_000_000) else {
        return;
    };
    trial.set("0.5");
    let mut connections = connect(&trial.scene.client, 40);
    let mut sent = ask(&mut connections);
    trial.flood(150_000);
    sent.extend(ask(&mut connections));
    sent.extend(trial.scene.client.load(40, 2, large).unwrap());
    trial.split(&sent).assert_share(0.5);
    assert_eq!(trial.resets(), 0);
}
