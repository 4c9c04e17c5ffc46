//! Connections that end in unusual ways, and ports that are used again.

use anyhow::ensure;
use mirror_common::packet::{RST, SYN};
use tests::{Handmade, Trial, eventually};

use super::{version, who};

/// Asks for an answer that ends the connection, and says which version gave it.
fn last_answer(connection: &mut Handmade) -> String {
    let answer = connection.ask(&who().header("connection", "close"));
    version(&answer.unwrap())
}

/// A connection that the server ends first, whose ports it waits out therefore (TIME_WAIT).
fn served_and_left(connection: &mut Handmade, initial: u32) -> String {
    connection.open(initial).unwrap();
    let version = last_answer(connection);
    connection.server_fin().unwrap();
    connection.ack_fin().unwrap();
    connection.fin().unwrap();
    connection.acknowledged().unwrap();
    version
}

#[track_caller]
fn assert_waits(trial: &Trial, waiting: usize) {
    eventually("the node waits ports out", || {
        let filter = ["-Htn", "state", "time-wait", "sport", "=", ":8000"];
        let sockets = trial.scene.net.node.output("ss", &filter)?;
        ensure!(sockets.lines().count() == waiting, "{sockets}");
        anyhow::Ok(())
    });
}

/// The kernel gives them to the listener that was dialled, whoever had them before.
#[test]
fn ports_that_are_waited_out_are_stable_s() {
    let Some(trial) = Trial::new() else {
        return;
    };
    for (number, (share, before)) in [("0", "v12"), ("1", "v13")].into_iter().enumerate() {
        trial.set(share);
        let mut connection = trial.handmade(40_000 + number as u16);
        assert_eq!(served_and_left(&mut connection, 1_000), before);
        assert_waits(&trial, number + 1);
        trial.set("1");
        assert_eq!(served_and_left(&mut connection, 1_000_000), "v12");
    }
    assert_eq!(trial.steered("stable", "time_wait"), 2);
    assert_eq!(trial.connections(), [3, 1]);
    assert_eq!(trial.metrics("modelmirror_connections_open", &[]), [0, 0]);
    trial.assert_calm();
}

/// Both sides end at the same time: neither has heard of the other's end when it ends itself.
#[test]
fn a_connection_that_both_sides_end_has_ended_once() {
    let Some(trial) = Trial::new() else {
        return;
    };
    for (number, (share, expected)) in [("0", "v12"), ("1", "v13")].into_iter().enumerate() {
        trial.set(share);
        let mut connection = trial.handmade(40_000 + number as u16);
        connection.open(1_000).unwrap();
        assert_eq!(last_answer(&mut connection), expected);
        connection.server_fin().unwrap();
        connection.fin().unwrap();
        connection.acknowledged().unwrap();
        connection.ack_fin().unwrap();
        assert_waits(&trial, number + 1);
    }
    assert_eq!(trial.connections(), [1, 1]);
    assert_eq!(trial.metrics("modelmirror_connections_open", &[]), [0, 0]);
    trial.assert_calm();
}

/// Where stable is gone the kernel has nobody to give them to.
#[test]
fn ports_that_are_waited_out_are_the_canary_s_where_stable_is_gone() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    trial.stop_stable();
    for (number, share) in ["1", "0.0001"].into_iter().enumerate() {
        trial.set(share);
        let mut connection = trial.handmade(40_000 + number as u16);
        assert_eq!(served_and_left(&mut connection, 1_000), "v13");
        assert_waits(&trial, number + 1);
        connection.syn(1_000_000).unwrap();
        // Of the connection that was, and so the client refuses it, which clears the ports.
        let heard = connection.hear().unwrap();
        assert_eq!(heard.flags & (SYN | RST), 0, "{heard:?}");
        connection.refuse(&heard).unwrap();
        assert_waits(&trial, number);
        assert_eq!(served_and_left(&mut connection, 1_000_000), "v13");
    }
    assert_eq!(trial.connections(), [0, 4]);
    assert_eq!(trial.metrics("modelmirror_connections_open", &[]), [0, 0]);
}
