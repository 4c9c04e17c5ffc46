//! Connections that are handed to a canary on the same host.

use tests::{Client, Connection, Exchange, Request, Response, large};

mod away;
mod control;
mod flood;
mod forgotten;
mod handshakes;
mod hostile;
mod led_on;
mod listeners;
mod mirrored;
mod places;
mod ports;
mod shares;

fn connect(client: &Client, count: usize) -> Vec<Connection> {
    (0..count).map(|_| client.connect().unwrap()).collect()
}

/// One request over each connection.
#[track_caller]
fn ask(connections: &mut [Connection]) -> Vec<Exchange> {
    let asked = connections.iter_mut().enumerate();
    asked
        .map(|(number, connection)| connection.exchange(&large(number, 0)).unwrap())
        .collect()
}

/// A request whose answer says who gave it.
fn who() -> Request {
    Request::get("/label")
}

/// Who gave the answer to [`who`].
#[track_caller]
fn version(response: &Response) -> String {
    let body: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    body["model_version"].as_str().unwrap().to_owned()
}
