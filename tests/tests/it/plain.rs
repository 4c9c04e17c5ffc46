//! The harness by itself, without modelmirror: what fails here would fail everywhere else.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use tests::{
    Answers, Client, Home, Mood, Request, Scene, Server, binary, eventually, pattern, sha256,
};

/// Everything that the other tests ask of HTTP, over IPv4 and IPv6.
#[test]
fn requests_pass_the_wire() -> Result<()> {
    let Some(scene) = Scene::new() else {
        return Ok(());
    };
    for address in ["10.0.0.5:8000", "[fd00:0::5]:8000"] {
        let client = scene.client_of(address);
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
        let mut headers = exchange.headers.iter();
        assert!(headers.all(|(name, _)| name != "transfer-encoding"));
    }
    assert_eq!(scene.production.received().len(), 30);
    Ok(())
}

#[test]
fn a_load_is_received_as_it_was_sent() {
    let Some(scene) = Scene::new() else {
        return;
    };
    let sent = scene.load(20, 10, |connection, index| {
        Request::post("/echo", &pattern(connection * 100 + index, index as u64))
    });
    scene.serves(&sent);
    assert_eq!((sent.len(), scene.production.connections()), (200, 20));
    let received = scene.production.received();
    for exchange in &sent {
        let mut received = received.iter();
        let arrived = received.find(|received| received.id() == exchange.id);
        assert_eq!(arrived.unwrap().body[..], exchange.request.body);
    }
}

/// What is sent in two parts is one request.
#[test]
fn a_request_is_begun_and_finished() -> Result<()> {
    let Some(scene) = Scene::new() else {
        return Ok(());
    };
    let mut connection = scene.client.connect()?;
    let request = Request::post("/echo", &pattern(10_000, 3)).chunked(700);
    let begun = connection.begin(&request, 5_000)?;
    let first = connection.finish(begun)?;
    let second = connection.exchange(&request)?;
    assert_eq!(first.request_span.end, second.request_span.start);
    scene.serves(&[first, second]);
    Ok(())
}

#[test]
fn a_server_has_moods() -> Result<()> {
    let Some(scene) = Scene::new() else {
        return Ok(());
    };
    scene
        .production
        .set_mood(Mood::Late(Duration::from_millis(50)));
    let mut open = scene.client.connect()?;
    let latency = open.exchange(&Request::get("/echo"))?.latency;
    assert!(latency >= Duration::from_millis(50), "{latency:?}");
    scene.production.set_mood(Mood::Reset);
    let error = open.exchange(&Request::get("/echo")).unwrap_err();
    assert!(format!("{error:#}").contains("reset"), "{error:#}");
    Ok(())
}

#[test]
fn processes_live_inside_and_die_with_their_value() -> Result<()> {
    let Some(scene) = Scene::new() else {
        return Ok(());
    };
    let host = &scene.net.shadow;
    let mut command = host.command("sh");
    command.args(["-c", "ip -o address show dev eth0; exec sleep 60"]);
    let process = host.spawn("sleep", command)?;
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
    let Some(scene) = Scene::new() else {
        return Ok(());
    };
    let net = &scene.net;
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
