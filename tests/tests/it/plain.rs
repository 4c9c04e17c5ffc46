//! The harness by itself, without modelmirror: what fails here would fail everywhere else.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::{
    Answers, Client, Home, Mood, Request, Server, Topology, binary, eventually, pattern,
    privileged, sha256,
};

/// Everything that the other tests ask of HTTP, over IPv4 and IPv6.
#[test]
fn requests_pass_the_wire() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let net = Topology::new()?;
    let answers = Answers::of("v12");
    let server = Server::start(&net.node, "[::]:8000".parse()?, &answers)?;
    for address in ["10.0.0.5:8000", "[fd00:0::5]:8000"] {
        let client = Client::new(&net.client, address.parse()?, &answers);
        let body = pattern(100_000, 7);
        let requests = [
            Request::post("/echo", b""),
            Request::post("/echo", &body).chunked(1447),
            Request::get("/bytes/1048576"),
            Request::get("/chunked/65536"),
            Request::head_of("/bytes/1000"),
            Request::post("/echo", &body).expecting_continue(),
            Request::get("/status/204"),
            Request::get("/status/304"),
            Request::post("/label", &body),
        ];
        let mut connection = client.connect()?;
        for request in &requests {
            connection.exchange(request)?;
        }
        connection.pipeline(&requests[..5])?;
        let exchange = client
            .connect()?
            .exchange(&Request::get("/bytes/70000").old())?;
        assert_eq!(exchange.body_sha256, sha256(&pattern(70_000, 1)));
        assert!(
            exchange
                .headers
                .iter()
                .all(|(name, _)| name != "transfer-encoding")
        );
    }
    assert_eq!(server.received().len(), 30);
    Ok(())
}

#[test]
fn a_load_is_received_as_it_was_sent() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let net = Topology::new()?;
    let answers = Answers::of("v12");
    let server = Server::start(&net.node, "0.0.0.0:8000".parse()?, &answers)?;
    let client = Client::new(&net.client, "10.0.0.5:8000".parse()?, &answers);
    let sent = client.load(20, 10, |connection, index| {
        Request::post("/echo", &pattern(connection * 100 + index, index as u64))
    })?;
    let received = server.received();
    assert_eq!(
        (sent.len(), received.len(), server.connections()),
        (200, 200, 20)
    );
    for exchange in &sent {
        let arrived = received
            .iter()
            .find(|received| received.id() == exchange.id)
            .unwrap();
        assert_eq!(arrived.body_sha256, exchange.request_sha256);
        assert_eq!(arrived.peer, exchange.local);
        assert_eq!(&arrived.body[..], exchange.request.body);
    }
    Ok(())
}

#[test]
fn a_server_has_moods() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let net = Topology::new()?;
    let answers = Answers::of("v12");
    let server = Server::start(&net.node, "0.0.0.0:8000".parse()?, &answers)?;
    let client = Client::new(&net.client, "10.0.0.5:8000".parse()?, &answers);
    server.set_mood(Mood::Late(Duration::from_millis(50)));
    let exchange = client.connect()?.exchange(&Request::get("/echo"))?;
    assert!(
        exchange.latency >= Duration::from_millis(50),
        "{:?}",
        exchange.latency
    );
    let mut open = client.connect()?;
    open.exchange(&Request::get("/echo"))?;
    server.set_mood(Mood::Reset);
    let error = open.exchange(&Request::get("/echo")).unwrap_err();
    assert!(format!("{error:#}").contains("reset"), "{error:#}");
    Ok(())
}

#[test]
fn processes_live_inside_and_die_with_their_value() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let net = Topology::new()?;
    let mut command = net.shadow.command("sh");
    command.args(["-c", "ip -o address show dev eth0; exec sleep 60"]);
    let process = net.shadow.spawn("sleep", command)?;
    let id = process.id();
    let output = eventually("its addresses are shown", || {
        let output = process.output();
        if output.contains("fd00:1::9/64") {
            Ok(output)
        } else {
            Err(output)
        }
    });
    assert!(output.contains("10.1.0.9/24"), "{output}");
    drop(process);
    assert!(!std::path::Path::new(&format!("/proc/{id}")).exists());
    Ok(())
}

/// The client's host and the shadow's cannot talk: what reaches the shadow was mirrored.
#[test]
fn the_node_does_not_route() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let net = Topology::new()?;
    net.client.ip("route add default via 10.0.0.5")?;
    net.shadow.ip("route add default via 10.1.0.5")?;
    let _server = Server::start(&net.shadow, "0.0.0.0:8000".parse()?, &Answers::of("v13"))?;
    let address = "10.1.0.9:8000".parse()?;
    let limit = Duration::from_millis(200);
    let direct = net
        .client
        .run(|| TcpStream::connect_timeout(&address, limit));
    assert_eq!(direct.unwrap_err().kind(), ErrorKind::TimedOut);
    net.node.sysctl("net/ipv4/ip_forward", "1")?;
    let client = Client::new(&net.client, address, &Answers::of("v13"));
    client.connect()?.exchange(&Request::get("/bytes/10"))?;
    Ok(())
}

/// What the harness starts modelmirror with is what a user could write.
#[test]
fn the_configs_are_accepted() -> Result<()> {
    let home = Home::new()?;
    for (name, config) in [
        ("node", home.node_config()),
        ("shadow", home.shadow_config()),
    ] {
        let path = home.path().join(name);
        std::fs::write(&path, config.to_string())?;
        let check = ["config", "check", "--for", name, "--config"];
        let output = Command::new(binary("modelmirror")?)
            .args(check)
            .arg(&path)
            .output()?;
        assert!(
            output.status.success(),
            "{config}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
