//! What clients wait for, held against their own watches: the daemon cannot see more than a client waits, nor
//! less than the server takes.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::{Manner, Metrics, Misbehaving, Trial, eventually};

use super::wait_for_look;

/// How many clients there are, and how many requests each sends over one connection.
const CLIENTS: usize = 4;
const REQUESTS: usize = 10;

/// What the server waits for.
const PAUSE: Duration = Duration::from_millis(40);

const FIRST_BYTE: &str = "modelmirror_first_byte_seconds";
const FIRST_BODY: &str = "modelmirror_first_body_byte_seconds";
const COMPLETE: &str = "modelmirror_response_complete_seconds";

/// From a request to the first byte of the header, to the first of the body, and to the end.
type Waits = [Duration; 3];

/// One request, and what its client waits for.
fn ask(stream: &mut TcpStream) -> Result<Waits> {
    let begun = Instant::now();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")?;
    let (mut heard, mut first, mut body) = (Vec::new(), None, None);
    loop {
        let mut part = [0; 4096];
        let count = stream.read(&mut part)?;
        ensure!(count > 0, "the server ended the connection");
        heard.extend_from_slice(&part[..count]);
        first.get_or_insert_with(|| begun.elapsed());
        let ends = |pattern: &[u8]| {
            let mut places = heard.windows(pattern.len());
            places.position(|place| place == pattern)
        };
        let Some(head) = ends(b"\r\n\r\n").map(|at| at + 4) else {
            continue;
        };
        if heard.len() > head {
            body.get_or_insert_with(|| begun.elapsed());
        }
        let is_chunked = ends(b"chunked").is_some();
        if is_chunked && heard.ends_with(b"0\r\n\r\n") || !is_chunked && heard.len() == head + 300 {
            let first = first.context("bytes came")?;
            return Ok([first, body.unwrap_or(first), begun.elapsed()]);
        }
    }
}

/// Everything that clients waited for.
fn load(trial: &Trial) -> Vec<Waits> {
    let client = &trial.scene.net.client;
    let one = || -> Result<Vec<Waits>> {
        let mut stream = client.run(|| TcpStream::connect("10.0.0.5:8000"))?;
        (0..REQUESTS).map(|_| ask(&mut stream)).collect()
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(one)).collect();
        let waits = clients.into_iter().map(|client| client.join().unwrap());
        waits.flat_map(Result::unwrap).collect()
    })
}

/// How many there were and their sum, of the canary.
fn told(metrics: &Metrics, name: &str) -> (u64, f64) {
    let labels = [("service", "digits"), ("arm", "canary")];
    let value = |what| metrics.sum(&format!("{name}_{what}"), &labels);
    (value("count") as u64, value("sum"))
}

/// Holds one of the daemon's histograms against the clients' watches. Nobody got it before `least`.
#[track_caller]
fn check(metrics: &Metrics, name: &str, waits: &[Waits], at: usize, least: Duration) {
    let (count, sum) = told(metrics, name);
    assert_eq!(count, waits.len() as u64, "{name}");
    let clients: f64 = waits.iter().map(|waits| waits[at].as_secs_f64()).sum();
    let server = least.as_secs_f64() * waits.len() as f64;
    assert!(
        (server..=clients).contains(&sum),
        "{name}: {sum} s, while clients waited for {clients} s and the server took {server} s"
    );
    let longest = waits.iter().map(|waits| waits[at].as_secs_f64());
    let longest = longest.fold(0.0, f64::max);
    let labels = [("service", "digits"), ("arm", "canary")];
    let buckets = metrics.buckets(name, &labels);
    assert!(!buckets.is_empty(), "{name} has no buckets");
    for (bound, below) in buckets {
        let all = waits.len() as f64;
        assert!(
            bound >= least.as_secs_f64() || below == 0.0,
            "{name}: {below} at {bound}"
        );
        assert!(
            bound < longest || below == all,
            "{name}: {below} of {all} at {bound}"
        );
    }
}

#[track_caller]
fn timed(manner: Manner, least: Waits) {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.stop_canary();
    let node = trial.scene.net.node.clone();
    let _canary = Misbehaving::start(&node, "[::]:8001".parse().unwrap(), manner).unwrap();
    trial.start_daemon();
    wait_for_look(&trial.scene, 2.0);
    trial.set("1");
    let waits = load(&trial);
    let metrics = eventually("all have been timed", || {
        let metrics = trial.scene.daemon().metrics()?;
        let (count, _) = told(&metrics, COMPLETE);
        ensure!(count == waits.len() as u64, "{count} of {}", waits.len());
        Ok(metrics)
    });
    for (at, name) in [FIRST_BYTE, FIRST_BODY, COMPLETE].into_iter().enumerate() {
        check(&metrics, name, &waits, at, least[at]);
    }
}

#[test]
fn a_late_body_is_as_late_as_clients_say() {
    timed(Manner::LateBody(PAUSE), [Duration::ZERO, PAUSE, PAUSE]);
}

#[test]
fn tokens_take_as_long_as_clients_say() {
    let none = Duration::ZERO;
    timed(Manner::SlowChunks(PAUSE), [none, none, 4 * PAUSE]);
}
