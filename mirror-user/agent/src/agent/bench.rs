//! What the agent costs per request: receiving, rebuilding, replaying, comparing and recording.
//!
//! `cargo test --release -p mirror-user --lib -- --ignored --nocapture flood` (or `stream`, `paced`, `steady`)
//!
//! A tap floods the agent over loopback with requests of 2 KB, as fast as it compares them, or at
//! a steady rate; the shadow answers at once. Only the agent's own threads are charged, with what the kernel does in
//! their system calls: sending over loopback includes the shadow's side of the receiving.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Agent;
use crate::capture::streams::fixtures::{self as stream_fixtures, Rings};
use crate::conversation::{Connection, KEY, Tap};
use crate::fixtures;
use crate::{config, metrics};
use mirror_base::transport::frame::{HEADER_LENGTH, Header, Kind};

const ID: u32 = 101;
const CONNECTIONS: u16 = 64;
/// Requests under way at once: less than the receive buffer and the queue hold.
const WINDOW: u64 = 512;
const WARM_UP: u64 = 20_000;
const REQUESTS: u64 = 200_000;
/// Requests in a second, where they come at a steady rate.
const RATES: [u64; 3] = [1_000, 4_000, 10_000];
/// How long copies come together: not at all, as by default, and longer.
const GATHERS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_micros(500),
    Duration::from_millis(2),
];
/// How long memory is looked at.
const STEADY: Duration = Duration::from_secs(200);

/// As many requests as the agent can take.
#[test]
#[ignore = "a benchmark, for release builds"]
fn flood() {
    measure(GATHERS[1], |flood| {
        flood.run(WARM_UP);
        let before = Figures::now(flood);
        flood.run(REQUESTS);
        flood.show(&before);
    });
}

/// As many requests as the agent can take, from a tap that connects.
#[test]
#[ignore = "a benchmark, for release builds"]
fn stream() {
    measure(GATHERS[1], |flood| {
        flood.connect();
        flood.run(WARM_UP);
        let before = Figures::now(flood);
        flood.run(REQUESTS);
        flood.show(&before);
        let before = Figures::now(flood);
        flood.pace(RATES[2], Duration::from_secs(5));
        flood.show(&before);
    });
}

/// What a request costs when the agent has time to sleep.
#[test]
#[ignore = "a benchmark, for release builds"]
fn paced() {
    for gather in GATHERS {
        measure(gather, |flood| {
            flood.run(WARM_UP);
            for rate in RATES {
                let before = Figures::now(flood);
                flood.pace(rate, Duration::from_secs(5));
                println!("gathered for      {gather:>10.1?}");
                flood.show(&before);
            }
        });
    }
}

/// Whether memory grows with time.
#[test]
#[ignore = "a benchmark, for release builds"]
fn steady() {
    measure(GATHERS[1], |flood| {
        let before = Figures::now(flood);
        for _ in 0..10 {
            flood.pace(RATES[1], STEADY / 10);
            println!("resident KiB      {:>10}", resident_kib());
        }
        flood.show(&before);
    });
}

fn measure(gather: Duration, load: impl FnOnce(&mut Flood)) {
    let shadow = start_shadow();
    let folder = tempfile::tempdir().unwrap();
    let config = config::Shadow {
        record_dir: folder.path().join("records"),
        memory: 1 << 30,
        batch_interval: gather,
        services: vec![config::ShadowService {
            queue: 4096,
            compare: config::Compare {
                prediction: Some("/outputs/0/data".into()),
                ..fixtures::service(ID, shadow).compare
            },
            ..fixtures::service(ID, shadow)
        }],
        ..fixtures::shadow()
    };
    let (ready, started) = mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let agent = thread::Builder::new().name("agent".into()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let agent = Agent::open(config).unwrap();
            ready
                .send((agent.tunnel_address().unwrap(), agent.metrics()))
                .unwrap();
            let shutdown = async {
                let _ = stopped.await;
            };
            agent.run(shutdown).await.unwrap();
        });
    });
    let (tunnel, metrics) = started.recv().unwrap();
    load(&mut Flood::new(tunnel, metrics));
    stop.send(()).unwrap();
    agent.unwrap().join().unwrap();
}

/// A shadow that answers every request with the same, on one thread: what it costs is not
/// measured, but it shares the machine.
fn start_shadow() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = ok(&output(0.250_001));
    thread::Builder::new()
        .name("shadow".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(async {
                listener.set_nonblocking(true).unwrap();
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve(stream, answer.clone()));
                }
            });
        })
        .unwrap();
    address
}

/// Each request ends with the same bytes, and comes alone.
async fn serve(mut stream: tokio::net::TcpStream, answer: Vec<u8>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut buffer = vec![0; 1 << 16];
    let mut tail = Vec::new();
    loop {
        let count = stream.read(&mut buffer).await.unwrap_or(0);
        if count == 0 {
            return;
        }
        tail.extend_from_slice(&buffer[count.saturating_sub(4)..count]);
        if tail.ends_with(b"]}]}") {
            tail.clear();
            stream.write_all(&answer).await.unwrap();
        }
    }
}

fn post() -> Vec<u8> {
    let data: Vec<String> = (0..220)
        .map(|n| format!("{:.5}", f64::from(n) / 7.0))
        .collect();
    let body = format!(
        r#"{{"inputs":[{{"name":"x","shape":[1,220],"datatype":"FP32","data":[{}]}}]}}"#,
        data.join(",")
    );
    let length = body.len();
    format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nHost: model.example\r\nUser-Agent: bench\r\n\
         Accept: */*\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn output(first: f64) -> String {
    format!(
        r#"{{"model_name":"m","outputs":[{{"name":"p","shape":[1,10],"datatype":"FP32","data":[{first},0.1,0.05,0.2,0.1,0.1,0.05,0.05,0.05,0.05]}}]}}"#
    )
}

fn ok(body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A tap's connection, with one ring.
struct Stream {
    tcp: TcpStream,
    rings: Rings,
    position: usize,
}

impl Stream {
    fn connect(tunnel: SocketAddr) -> Self {
        let tcp = connect(tunnel, &stream_fixtures::hello(1, Vec::new()));
        let mut told = tcp.try_clone().unwrap();
        let sink = move || std::io::copy(&mut told, &mut std::io::sink());
        thread::Builder::new()
            .name("told".into())
            .spawn(sink)
            .unwrap();
        Self {
            tcp,
            rings: Rings::default(),
            position: 0,
        }
    }

    fn send(&mut self, datagrams: &[Vec<u8>]) {
        for datagram in datagrams {
            self.rings.write_datagram(datagram);
        }
        let bytes = self.rings.take(0);
        let mut wire = stream_fixtures::records(0, self.position, false, &bytes);
        self.position += bytes.len();
        wire.extend(stream_fixtures::round(self.rings.time_ns + 1));
        self.tcp.write_all(&wire).unwrap();
    }
}

/// A connection to the agent, on which the tap said hello and was welcomed.
fn connect(tunnel: SocketAddr, hello: &[u8]) -> TcpStream {
    let mut tcp = TcpStream::connect(tunnel).unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.write_all(hello).unwrap();
    let mut header = [0; HEADER_LENGTH];
    tcp.read_exact(&mut header).unwrap();
    let welcome = Header::decode(&header).unwrap();
    assert_eq!(welcome.kind, Kind::Welcome);
    tcp.read_exact(&mut vec![0; welcome.length as usize])
        .unwrap();
    tcp
}

struct Flood {
    /// Keeps the key of the datagrams known.
    _tap: TcpStream,
    socket: UdpSocket,
    stream: Option<Stream>,
    tap: Tap,
    connections: Vec<Connection>,
    metrics: metrics::Agent,
    sent: u64,
    request: Vec<u8>,
    response: Vec<u8>,
}

impl Flood {
    fn new(tunnel: SocketAddr, metrics: metrics::Agent) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(tunnel).unwrap();
        let mut tap = Tap::new(1);
        let mut stream = connect(tunnel, &stream_fixtures::hello_of_datagrams(1, KEY));
        let report = tap.report(&[(ID, "v12")]);
        let said = stream_fixtures::report(&report, report.sent_at_ns);
        stream.write_all(&said).unwrap();
        // Its echo: the key is known.
        stream.read_exact(&mut [0; HEADER_LENGTH]).unwrap();
        let mut connections: Vec<_> = (0..CONNECTIONS)
            .map(|n| Connection::new(ID, 10_000 + n))
            .collect();
        for connection in &mut connections {
            for datagram in connection.open(&mut tap) {
                socket.send(&datagram).unwrap();
            }
        }
        Self {
            _tap: stream,
            socket,
            stream: None,
            tap,
            connections,
            metrics,
            sent: 0,
            request: post(),
            response: ok(&output(0.25)),
        }
    }

    fn send(&mut self, datagrams: &[Vec<u8>]) {
        match &mut self.stream {
            Some(stream) => stream.send(datagrams),
            None => {
                for datagram in datagrams {
                    self.socket.send(datagram).unwrap();
                }
            }
        }
    }

    /// Sends over a connection from now on.
    fn connect(&mut self) {
        let tunnel = self.socket.peer_addr().unwrap();
        self.stream = Some(Stream::connect(tunnel));
    }

    fn run(&mut self, count: u64) {
        let until = self.sent + count;
        let deadline = Instant::now() + Duration::from_secs(120);
        while self.sent < until {
            let done = self.settled();
            assert!(
                Instant::now() < deadline,
                "{done} of {} have an outcome",
                self.sent
            );
            for _ in 0..(done + WINDOW)
                .saturating_sub(self.sent)
                .min(until - self.sent)
            {
                self.exchange();
            }
            thread::sleep(Duration::from_micros(200));
        }
        self.settle(deadline);
    }

    /// Sends at a steady rate for so long.
    fn pace(&mut self, rate: u64, time: Duration) {
        let (start, first) = (Instant::now(), self.sent);
        while start.elapsed() < time {
            let due = first + (start.elapsed().as_secs_f64() * rate as f64) as u64;
            while self.sent < due {
                self.exchange();
            }
            thread::sleep(Duration::from_micros(100));
        }
        self.settle(Instant::now() + Duration::from_secs(10));
    }

    /// Waits until everything sent has an outcome.
    fn settle(&self, deadline: Instant) {
        while self.settled() < self.sent {
            assert!(
                Instant::now() < deadline,
                "{} of {}",
                self.settled(),
                self.sent
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn exchange(&mut self) {
        let index = (self.sent % u64::from(CONNECTIONS)) as usize;
        let connection = &mut self.connections[index];
        let mut datagrams = connection.request(&mut self.tap, &self.request);
        datagrams.extend(connection.response(&mut self.tap, &self.response));
        self.send(&datagrams);
        self.sent += 1;
    }

    fn counter(&self, outcome: Option<&str>) -> u64 {
        let families = self.metrics.registry().gather();
        let requests = families
            .iter()
            .find(|family| family.name() == "modelmirror_shadow_requests_total");
        // Before the first outcome there is no family.
        let requests = requests.map(|family| family.get_metric());
        let chosen = requests.unwrap_or_default().iter().filter(|metric| {
            let mut labels = metric.get_label().iter();
            outcome.is_none_or(|outcome| labels.any(|label| label.value() == outcome))
        });
        chosen
            .map(|metric| metric.get_counter().get_value() as u64)
            .sum()
    }

    fn settled(&self) -> u64 {
        self.counter(None)
    }

    /// What it cost since `before`.
    fn show(&self, before: &Figures) {
        let after = Figures::now(self);
        let requests = (after.sent - before.sent) as f64;
        let rate = requests / (after.time - before.time).as_secs_f64();
        let bytes = (self.request.len() + self.response.len()) as f64;
        println!("requests/s        {rate:>10.0}");
        println!("payload MB/s      {:>10.1}", rate * bytes / 1e6);
        println!("request bytes     {:>10}", self.request.len());
        let mut total = 0.0;
        for name in ["capture", "streams", "agent", "records"] {
            let spent = after.of(name) - before.of(name);
            let each = spent as f64 / 1e3 / requests;
            total += each;
            println!("us/request {name:<8} {each:>8.2}");
        }
        println!("us/request in all {total:>10.2}");
        println!(
            "compared          {:>10} of {}",
            self.counter(Some("compared")),
            self.sent
        );
        println!("queue_full        {:>10}", self.counter(Some("queue_full")));
        println!("resident KiB      {:>10}", resident_kib());
    }
}

/// What has been spent so far.
struct Figures {
    time: Instant,
    sent: u64,
    cpu: Cpu,
}

impl Figures {
    fn now(flood: &Flood) -> Self {
        Self {
            time: Instant::now(),
            sent: flood.sent,
            cpu: cpu(),
        }
    }

    /// Nanoseconds of the threads of this name.
    fn of(&self, name: &str) -> u64 {
        self.cpu.get(name).copied().unwrap_or_default()
    }
}

/// Nanoseconds on a CPU, by the threads' names.
type Cpu = BTreeMap<String, u64>;

fn cpu() -> Cpu {
    let mut cpu = Cpu::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        let read = |file| std::fs::read_to_string(task.join(file)).unwrap_or_default();
        let spent = read("schedstat")
            .split(' ')
            .next()
            .and_then(|ns| ns.parse().ok());
        *cpu.entry(read("comm").trim().to_owned()).or_default() += spent.unwrap_or(0_u64);
    }
    cpu
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
