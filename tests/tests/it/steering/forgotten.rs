//! Handshakes by cookie whose SYN the table has forgotten before the packet that ends them: the hash
//! under the share and under the one before is all that is left.

use mirror_common::packet::RST;
use tests::{Handmade, Trial, large};

use super::{version, who};

/// More than pushes everything out of the table that was in it.
const MANY: u32 = 150_000;

fn trial() -> Option<Trial> {
    let trial = Trial::with(|canary| {
        canary.insert("max_new_connections_per_second".into(), 1_000_000.into());
    })?;
    let node = &trial.scene.net.node;
    node.sysctl("net/ipv4/tcp_syncookies", "2").unwrap();
    Some(trial)
}

/// A connection that waits for the packet that ends its handshake.
fn begun(trial: &Trial, port: u16) -> Handmade {
    let mut connection = trial.handmade(port);
    connection.syn(1_000).unwrap();
    connection.syn_ack().unwrap();
    connection
}

#[track_caller]
fn answered_by(connection: &mut Handmade) -> String {
    connection.ack().unwrap();
    version(&connection.ask(&who()).unwrap())
}

#[test]
fn the_canary_s_end_there_while_the_share_says_so() {
    let Some(trial) = trial() else {
        return;
    };
    trial.set("1");
    // Before one has arrived, the canary is not given as many.
    trial.scene.client.load(1, 1, large).unwrap();
    let mut connections = [40_000, 40_001].map(|port| begun(&trial, port));
    trial.flood(MANY);
    trial.set("0.9999");
    let [one, other] = &mut connections;
    assert_eq!(answered_by(one), "v13");
    assert_eq!(trial.steered("canary", "cookie"), 1);

    // A wrong guess: stable has sent no cookie, and knows none.
    trial.set("0");
    other.ack().unwrap();
    let heard = other.hear().unwrap();
    assert_eq!(heard.flags & RST, RST, "{heard:?}");
    let by_server = [("by", "server")];
    let resets = trial.metrics("modelmirror_resets_total", &by_server);
    assert_eq!(resets, [0, 0], "anybody can bring one about");
    let labels = [("service", "digits"), ("by", "server")];
    let stray = "modelmirror_stray_resets_total";
    assert_eq!(trial.scene.node_metrics().sum(stray, &labels), 1.0);
}

#[test]
fn stable_s_end_there_although_the_share_rose() {
    let Some(trial) = trial() else {
        return;
    };
    trial.set("0");
    let mut stable = begun(&trial, 40_000);
    trial.set("1");
    let mut canary = begun(&trial, 40_001);
    trial.flood(MANY);
    assert_eq!(answered_by(&mut stable), "v12");

    // Cookies do not say who sent them: stable takes the canary's, now that it has sent one too.
    trial.set("0");
    assert_eq!(answered_by(&mut canary), "v12");
    assert_eq!(trial.steered("canary", "cookie"), 0);
    assert_eq!(trial.resets(), 0);
}
