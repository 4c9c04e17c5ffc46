//! What HTTP/1 allows on a connection, and what is not HTTP/1.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use tests::{Client, Namespace, Request, Scene, pattern};

#[test]
fn every_framing_is_replayed() {
    let Some(scene) = Scene::started() else {
        return;
    };
    let body = pattern(100_000, 7);
    let requests = [
        Request::post("/echo", &body).chunked(1447),
        Request::post("/echo", b"").chunked(1),
        Request::get("/chunked/65536"),
        Request::head_of("/bytes/1000"),
        Request::head_of("/chunked/1000"),
        Request::post("/echo", &body).expecting_continue(),
        Request::get("/status/204"),
        Request::get("/status/304"),
        Request::post("/status/503", b"busy"),
        Request::post("/label", &body).header("x-tenant", "acme"),
        Request::post("/label", b"").header("cookie", "a=b; c=d"),
    ];
    let client = &scene.client;
    let mut connection = client.connect().unwrap();
    let mut sent: Vec<_> = requests
        .iter()
        .map(|request| connection.exchange(request).unwrap())
        .collect();
    // All at once, before the first answer; a body that waits for 100 cannot be.
    let together: Vec<_> = [0, 1, 2, 3, 6, 9]
        .map(|index| requests[index].clone())
        .into();
    sent.extend(connection.pipeline(&together).unwrap());
    // Answers that end with their connection.
    for request in [
        Request::get("/bytes/70000").old(),
        Request::get("/chunked/70000").old(),
        Request::get("/bytes/70000").header("connection", "close"),
    ] {
        sent.push(client.connect().unwrap().exchange(&request).unwrap());
    }
    scene.prove(&sent);
}

#[test]
fn two_hundred_connections_at_once() {
    let Some(scene) = Scene::started() else {
        return;
    };
    let sent = scene.load(200, 3, |connection, index| {
        Request::post("/label", &pattern(connection * 17 + index, index as u64))
    });
    scene.prove(&sent);
}

/// A server of something else than HTTP: answers the first bytes of each connection with `answer`,
/// and what follows with itself.
fn serve(namespace: &Namespace, address: &str, answer: &'static [u8]) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = namespace.run(|| TcpListener::bind(address)).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 4096];
                let mut answer = Some(answer);
                // The client's end of it is what counts.
                while let Ok(length) = stream.read(&mut buffer) {
                    let echo = &buffer[..length];
                    if length == 0 || stream.write_all(answer.take().unwrap_or(echo)).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Sends the first bytes, and then `more` a few times; every answer has to come.
fn talk(client: &Client, first: &[u8], answer: &[u8], more: &[u8]) {
    let mut connection = client.connect().unwrap();
    let stream = connection.stream();
    for (bytes, expected) in [(first, answer), (more, more), (more, more)] {
        stream.write_all(bytes).unwrap();
        let mut read = vec![0; expected.len()];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(read, expected);
    }
}

/// The beginning of a TLS 1.3 ClientHello, and of the answer to one (RFC 8446).
const CLIENT_HELLO: &[u8] = b"\x16\x03\x01\x00\x2f\x01\x00\x00\x2b\x03\x03\
    0123456789abcdef0123456789abcdef\x00\x00\x02\x13\x01\x01\x00\x00\x00";
const SERVER_HELLO: &[u8] = b"\x16\x03\x03\x00\x2c\x02\x00\x00\x28\x03\x03\
    0123456789abcdef0123456789abcdef\x00\x13\x01\x00\x00\x00";
const RECORD: &[u8] = b"\x17\x03\x03\x00\x05hello";

/// The preface of HTTP/2 with prior knowledge, with empty SETTINGS (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pingping";

const UPGRADE: &[u8] = b"GET /chat HTTP/1.1\r\nhost: model\r\nconnection: upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const SWITCHING: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
    upgrade: websocket\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
const FRAME: &[u8] = b"\x81\x05hello";

#[test]
fn what_is_not_http_1_is_named_and_left_alone() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_addresses(&["*:8000", "*:8001", "*:8002", "*:8003"]);
    let node = &scene.net.node;
    serve(node, "0.0.0.0:8001", SERVER_HELLO);
    serve(node, "0.0.0.0:8002", SETTINGS);
    serve(node, "0.0.0.0:8003", SWITCHING);
    scene.start();
    talk(
        &scene.client_of("10.0.0.5:8001"),
        CLIENT_HELLO,
        SERVER_HELLO,
        RECORD,
    );
    talk(&scene.client_of("10.0.0.5:8002"), PREFACE, SETTINGS, PING);
    talk(&scene.client_of("10.0.0.5:8003"), UPGRADE, SWITCHING, FRAME);
    let plain = Request::post("/echo", b"body");
    let shadowed = plain.clone().header("x-modelmirror-shadow", "1");
    let sent = scene.send("10.0.0.5:8000", &[plain, shadowed]);
    scene.complete(&sent, &[("tls", 1), ("http2", 1), ("upgrade", 1)]);
    scene.serves(&sent);
}
