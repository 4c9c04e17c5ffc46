//! Where a canary may listen on this host.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Socket, Type};
use tests::{Answers, Server, Trial, large};

use super::{ask, connect};

/// A canary that listens at `listen`, and is configured so: which version serves clients that dial
/// these addresses, at a share of 1.
#[track_caller]
fn check(listen: &str, address: &str, expected: &[(&str, &str)]) {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.service()["addresses"] = vec!["10.0.0.5:8000", "[fd00::5]:8000"].into();
    trial.scene.net.node.address("eth0", "10.0.0.6/24").unwrap();
    trial.stop_stable();
    let stable = ["10.0.0.5:8000", "[fd00::5]:8000"].map(|listen| {
        let (node, answers) = (&trial.scene.net.node, Answers::of("v12"));
        Server::start(node, listen.parse().unwrap(), &answers).unwrap()
    });
    let node = trial.scene.net.node.clone();
    trial.place_canary(&node, listen, address);
    trial.start_daemon();
    trial.set("1");
    let mut refused = 0;
    for &(dialled, arm) in expected {
        let asked = trial.canary_asked().len();
        let client = trial.scene.client_of(dialled);
        client.load(10, 3, large).unwrap();
        let asked = trial.canary_asked().len() - asked;
        let canary = arm == "canary";
        assert_eq!(asked, if canary { 30 } else { 0 }, "{dialled} at {listen}");
        refused += if canary { 0 } else { 10 };
    }
    assert_eq!(trial.steered("stable", "no_listener"), refused, "{listen}");
    trial.assert_calm();
    drop(stable);
}

#[test]
fn a_canary_listens_at_any_address_of_this_host() {
    const IPV4: &str = "10.0.0.5:8000";
    const IPV6: &str = "[fd00::5]:8000";
    // At both families, at one of them; nobody is sent where nobody listens.
    check(
        "[::]:8001",
        "10.0.0.5:8001",
        &[(IPV4, "canary"), (IPV6, "canary")],
    );
    check(
        "0.0.0.0:8001",
        "10.0.0.5:8001",
        &[(IPV4, "canary"), (IPV6, "stable")],
    );
    check(
        "[fd00::5]:8001",
        "[fd00::5]:8001",
        &[(IPV4, "stable"), (IPV6, "canary")],
    );
    // At another address and the same port.
    check("10.0.0.6:8000", "10.0.0.6:8000", &[(IPV4, "canary")]);
    // At the loopback's alone, which no packet from outside could reach by itself.
    check(
        "127.0.0.1:8001",
        "127.0.0.1:8001",
        &[(IPV4, "canary"), (IPV6, "stable")],
    );
    check(
        "[::1]:8001",
        "[::1]:8001",
        &[(IPV4, "stable"), (IPV6, "canary")],
    );
}

/// One more server of the canary's, at port 8001 by a socket that is prepared so.
#[track_caller]
fn canary_with(trial: &mut Trial, prepare: impl FnOnce(&Socket) -> io::Result<()> + Send) {
    let listen: SocketAddr = "[::]:8001".parse().unwrap();
    let bind = || {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        prepare(&socket)?;
        socket.bind(&listen.into())?;
        socket.listen(128)?;
        io::Result::Ok(socket.into())
    };
    let node = &trial.scene.net.node;
    let canary = Server::on(node, node.run(bind).unwrap(), &Answers::of("v13"));
    trial.canary.push(canary.unwrap());
}

/// Several sockets at one port (SO_REUSEPORT), as servers have that run a process for each CPU.
#[test]
fn a_canary_may_be_several_processes() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    trial.stop_canary();
    for _ in 0..2 {
        canary_with(&mut trial, |socket| {
            socket.set_reuse_address(true)?;
            socket.set_reuse_port(true)
        });
    }
    for cookies in ["1", "2"] {
        let node = &trial.scene.net.node;
        node.sysctl("net/ipv4/tcp_syncookies", cookies).unwrap();
        trial.set("0.5");
        for server in ["10.0.0.5:8000", "[fd00::5]:8000"] {
            let sent = trial.scene.client_of(server).load(60, 3, large).unwrap();
            trial.split(&sent).assert_share(0.5);
        }
    }
    let accepted = trial.canary.iter().map(Server::connections);
    let accepted: Vec<_> = accepted.collect();
    assert!(accepted.iter().all(|&count| count > 20), "{accepted:?}");
    trial.assert_calm();
}

/// The canary's connections keep the service's port. Where its server does not set SO_REUSEADDR, stable
/// cannot come back to that port while one is open.
#[test]
fn stable_comes_back_beside_the_canary_s_connections() {
    for reuse in [true, false] {
        let Some(mut trial) = Trial::new() else {
            return;
        };
        trial.stop_canary();
        canary_with(&mut trial, |socket| socket.set_reuse_address(reuse));
        trial.set("1");
        let mut connections = connect(&trial.scene.client, 3);
        ask(&mut connections);
        trial.stop_stable();
        ask(&mut connections);
        let listen = "[::]:8000".parse().unwrap();
        let stable = Server::start(&trial.scene.net.node, listen, &Answers::of("v12"));
        assert_eq!(stable.is_ok(), reuse, "{stable:?}");
    }
}
