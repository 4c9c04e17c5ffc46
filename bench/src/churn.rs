//! New connections, many a second, through one translation address, after everybody was given to a canary on
//! another host: whether ports come back fast enough.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};
use tests::{Namespace, Trial};

use crate::page::verdict;

/// New connections a second.
const RATE: u64 = 2_000;

/// Clients, each with an address of its own: of one alone the ports would not do for what it closes itself.
const CLIENTS: u64 = 16;

/// Threads of the canary's server.
const WORKERS: usize = 16;

/// Where the canary listens, and what clients dial.
const CANARY: &str = "10.1.0.9:8001";
const SERVICE: &str = "10.0.0.5:8000";

/// For an answer; a SYN that nobody answers comes again after one second.
const PATIENCE: Duration = Duration::from_secs(5);
const SLOW: Duration = Duration::from_millis(900);

const REQUEST: &[u8] = b"GET /label HTTP/1.1\r\nHost: digits\r\nContent-Length: 0\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ncanary";

/// Who closes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum First {
    Canary,
    /// The same, where clients know no TCP timestamps.
    CanaryUntimed,
    Client,
}

impl First {
    const fn label(self) -> &'static str {
        match self {
            Self::Canary => "the canary's host",
            Self::CanaryUntimed => "the canary's host, clients without timestamps",
            Self::Client => "the client",
        }
    }
}

/// What became of connections.
#[derive(Debug, Default)]
struct Counts {
    canary: AtomicU64,
    other: AtomicU64,
    failed: AtomicU64,
    slow: AtomicU64,
    late: AtomicU64,
}

/// One load.
#[derive(Debug)]
struct Row {
    first: First,
    seconds: f64,
    canary: u64,
    other: u64,
    failed: u64,
    slow: u64,
    late: u64,
    no_port: u64,
    no_room: u64,
}

/// All that was measured.
pub(crate) struct Churn(Vec<Row>);

/// Has both ends close first, each for so long.
pub(crate) fn measure(seconds: u64) -> Result<Churn> {
    let mut rows = Vec::new();
    for first in [First::Canary, First::CanaryUntimed, First::Client] {
        println!(
            "bench: {RATE} new connections a second, which {} closes, {seconds} s",
            first.label()
        );
        rows.push(once(first, Duration::from_secs(seconds))?);
    }
    Ok(Churn(rows))
}

fn once(first: First, time: Duration) -> Result<Row> {
    let mut trial = Trial::quiet(|canary| {
        canary.insert("max_new_connections_per_second".into(), 1_000_000.into());
    })
    .context("needs root")?;
    let (far, near) = (
        trial.scene.net.shadow.clone(),
        trial.scene.net.client.clone(),
    );
    trial.place_canary(&far, "[::]:8001", CANARY);
    trial.stop_canary();
    let canary = Canary::start(&far, first)?;
    for client in 0..CLIENTS {
        near.ip(&format!("address add {}/24 dev eth0", address(client)))?;
    }
    if first == First::CanaryUntimed {
        near.output("sysctl", &["-w", "net.ipv4.tcp_timestamps=0"])?;
    }
    trial.start_daemon();
    trial.wait_for_canary(1.0);
    trial.set("1");
    let counts = Counts::default();
    let begun = Instant::now();
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (near, counts) = (&near, &counts);
            scope.spawn(move || near.run(|| dial(client, first, begun, time, counts)));
        }
    });
    let row = Row {
        first,
        seconds: begun.elapsed().as_secs_f64(),
        canary: counts.canary.into_inner(),
        other: counts.other.into_inner(),
        failed: counts.failed.into_inner(),
        slow: counts.slow.into_inner(),
        late: counts.late.into_inner(),
        no_port: trial.steered("stable", "no_port"),
        no_room: trial.steered("stable", "no_room"),
    };
    drop(canary);
    ensure!(row.canary > 0, "nobody was served by the canary: {row:?}");
    Ok(row)
}

fn address(client: u64) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 100 + client as u8)
}

/// One client's part of the rate, at even times; what cannot be begun in time is begun late, and counted.
fn dial(client: u64, first: First, begun: Instant, time: Duration, counts: &Counts) {
    let pause = Duration::from_nanos(1_000_000_000 * CLIENTS / RATE);
    let mut due = begun + pause * client as u32 / CLIENTS as u32;
    while due < begun + time {
        let now = Instant::now();
        if now < due {
            thread::sleep(due - now);
        } else if now - due > Duration::from_secs(1) {
            counts.late.fetch_add(1, Relaxed);
        }
        due += pause;
        let start = Instant::now();
        let counted = match exchange(client, first) {
            Ok(true) => &counts.canary,
            Ok(false) => &counts.other,
            Err(_) => &counts.failed,
        };
        counted.fetch_add(1, Relaxed);
        if start.elapsed() > SLOW {
            counts.slow.fetch_add(1, Relaxed);
        }
    }
}

/// One connection with one request. Says whether the canary answered.
fn exchange(client: u64, first: First) -> io::Result<bool> {
    let server: SocketAddr = SERVICE.parse().map_err(io::Error::other)?;
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(IpAddr::V4(address(client)), 0).into())?;
    socket.connect_timeout(&server.into(), PATIENCE)?;
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST)?;
    let mut answer = [0; ANSWER.len()];
    stream.read_exact(&mut answer)?;
    if answer != *ANSWER {
        return Ok(false);
    }
    if first != First::Client {
        // The end comes before ours.
        let rest = stream.read(&mut answer)?;
        return Ok(rest == 0);
    }
    Ok(true)
}

/// A server on the canary's host, which ends when dropped.
struct Canary {
    host: Namespace,
    over: &'static AtomicBool,
    workers: Vec<thread::JoinHandle<()>>,
}

impl Canary {
    fn start(host: &Namespace, first: First) -> Result<Self> {
        let listener = host.run(|| -> io::Result<TcpListener> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            let any: SocketAddr = ([0, 0, 0, 0], 8001).into();
            socket.bind(&any.into())?;
            socket.listen(4_096)?;
            Ok(socket.into())
        })?;
        let over: &'static AtomicBool = Box::leak(Box::default());
        let mut workers = Vec::new();
        for _ in 0..WORKERS {
            let listener = listener.try_clone()?;
            workers.push(thread::spawn(move || {
                while !over.load(Relaxed) {
                    if let Ok((stream, _)) = listener.accept() {
                        let _ = answer(stream, first);
                    }
                }
            }));
        }
        Ok(Self {
            host: host.clone(),
            over,
            workers,
        })
    }
}

fn answer(mut stream: TcpStream, first: First) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = [0; REQUEST.len()];
    stream.read_exact(&mut request)?;
    stream.write_all(ANSWER)?;
    if first != First::Client {
        stream.shutdown(Shutdown::Write)?;
    }
    stream.read(&mut request).map(drop)
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.over.store(true, Relaxed);
        let at: SocketAddr = ([127, 0, 0, 1], 8001).into();
        for _ in &self.workers {
            // Whoever waits for a connection gets one.
            let _ = self.host.run(|| TcpStream::connect_timeout(&at, PATIENCE));
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl fmt::Display for Churn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## New connections through one translation address\n\n\
             {RATE} new connections a second of {CLIENTS} clients, each with one request, after all were given to a canary on \
             another host; one address of 4,536 ports. Served by stable, or failed: refused by the translation, or by the \
             canary's host. Slow: over {} ms, so that a SYN came twice. Late: begun over 1 s late, since the machine was busy.\n\n\
             | closes first | s | connections/s | by the canary | by stable (no port, no room) | failed | slow | late |\n\
             |---|---|---|---|---|---|---|---|",
            SLOW.as_millis(),
        )?;
        for row in &self.0 {
            let all = row.canary + row.other + row.failed;
            writeln!(
                f,
                "| {} | {:.0} | {:.0} | {} | {} ({}, {}) | {} | {} | {} |",
                row.first.label(),
                row.seconds,
                all as f64 / row.seconds,
                row.canary,
                row.other,
                row.no_port,
                row.no_room,
                row.failed,
                row.slow,
                row.late,
            )?;
        }
        let refused = |row: &Row| row.other + row.failed + row.no_port + row.no_room;
        let refused: u64 = self.0.iter().map(refused).sum();
        writeln!(
            f,
            "\nTarget: none refused ({refused}): {}.",
            verdict(refused == 0)
        )
    }
}
