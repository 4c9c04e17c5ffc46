use std::collections::HashMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Mutex;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use mirror_common::tunnel::Arm;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::*;
use crate::capture::streams::fixtures::{self as stream_fixtures, Rings};
use crate::conversation::{CANARY, Connection, KEY, Tap};
use crate::fixtures;
use crate::record::LedgerFile;
use mirror_base::transport::frame::{HEADER_LENGTH, Header, Kind, Welcome};

const WAIT: Duration = Duration::from_secs(20);
const ID: u32 = 101;
const SERVICE: &str = "service-101";
/// What the tap's connection takes of the agent's memory.
const CONNECTION: f64 = 131_072.0;

/// A running agent, and the tap that feeds it.
struct Scene {
    metrics: metrics::Agent,
    tap: Tap,
    /// Where its datagrams leave.
    socket: UdpSocket,
    /// Its connection, unless it was refused.
    stream: Option<TcpStream>,
    folder: tempfile::TempDir,
    stop: oneshot::Sender<()>,
    agent: JoinHandle<anyhow::Result<()>>,
}

impl Scene {
    async fn new(target: SocketAddr, change: impl FnOnce(&mut config::Shadow)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config::Shadow {
            record_dir: folder.path().join("records"),
            services: vec![fixtures::service(ID, target)],
            ..fixtures::shadow()
        };
        change(&mut config);
        let agent = Agent::open(config).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(agent.tunnel_address().unwrap()).unwrap();
        let address = agent.tunnel_address().unwrap();
        let metrics = agent.metrics();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let agent = tokio::spawn(agent.run(shutdown));
        let mut stream = TcpStream::connect(address).await.unwrap();
        let hello = stream_fixtures::hello_of_datagrams(1, KEY);
        stream.write_all(&hello).await.unwrap();
        let welcome = frame(&mut stream, Kind::Welcome).await;
        let mut scene = Self {
            metrics,
            tap: Tap::new(1),
            socket,
            stream: None,
            folder,
            stop,
            agent,
        };
        if let Some((_, body)) = welcome {
            let welcome: Welcome = serde_json::from_slice(&body).unwrap();
            scene.tap.number = welcome.tap as u16;
            scene.stream = Some(stream);
            // The key is known when this is answered.
            scene.report().await;
        }
        scene
    }

    fn send(&self, datagrams: Vec<Vec<u8>>) {
        for datagram in datagrams {
            self.socket.send(&datagram).unwrap();
        }
    }

    /// Sends the tap's report and waits for its echo. What was sent before is received in the same
    /// breath as the report is.
    async fn report(&mut self) {
        let report = self.tap.report(&[(ID, "v12")]);
        let stream = self.stream.as_mut().unwrap();
        let said = stream_fixtures::report(&report, report.sent_at_ns);
        stream.write_all(&said).await.unwrap();
        let echo = frame(stream, Kind::Echo).await;
        assert_eq!(echo.expect("an echo").0.position, report.number);
    }

    fn open(&mut self, port: u16) -> Connection {
        let mut connection = Connection::new(ID, port);
        let datagrams = connection.open(&mut self.tap);
        self.send(datagrams);
        connection
    }

    fn request(&mut self, connection: &mut Connection, bytes: &[u8]) {
        let datagrams = connection.request(&mut self.tap, bytes);
        self.send(datagrams);
    }

    fn response(&mut self, connection: &mut Connection, bytes: &[u8]) {
        let datagrams = connection.response(&mut self.tap, bytes);
        self.send(datagrams);
    }

    fn exchange(&mut self, connection: &mut Connection, request: &[u8], response: &[u8]) {
        self.request(connection, request);
        self.response(connection, response);
    }

    /// The sum of a metric's series that have these label values.
    fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let families = self.metrics.registry().gather();
        let family = families.iter().find(|family| family.name() == name);
        // Without series there is no family: no tap has been heard, say.
        let series = family.map(|family| family.get_metric()).unwrap_or_default();
        let chosen = series.iter().filter(|metric| {
            let values: Vec<_> = metric
                .get_label()
                .iter()
                .map(|label| label.value())
                .collect();
            labels.iter().all(|label| values.contains(label))
        });
        let value = |metric: &prometheus::proto::Metric| {
            metric.get_counter().get_value() + metric.get_gauge().get_value()
        };
        chosen.map(value).sum()
    }

    fn outcome(&self, outcome: &str) -> u64 {
        self.metric("modelmirror_shadow_requests_total", &[SERVICE, outcome]) as u64
    }

    /// Waits until so many requests have this outcome.
    async fn until(&self, outcome: &str, count: u64) {
        eventually(|| self.outcome(outcome) == count, || self.text()).await;
    }

    fn text(&self) -> String {
        let families = self.metrics.registry().gather();
        prometheus::TextEncoder::new()
            .encode_to_string(&families)
            .unwrap()
    }

    /// Stops the agent, sees both ledgers close and nothing left, and returns the records.
    async fn finish(self) -> Vec<Value> {
        self.finish_with_ledger().await.0
    }

    async fn finish_with_ledger(self) -> (Vec<Value>, LedgerFile) {
        let metrics = self.metrics.clone();
        self.stop.send(()).unwrap();
        tokio::time::timeout(WAIT, self.agent)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        let folder = self.folder.path().join("records").join(SERVICE);
        let ledger = std::fs::read(folder.join("ledger.json")).unwrap();
        let ledger: LedgerFile = serde_json::from_slice(&ledger).unwrap();
        let drops: u64 = ledger.drops.values().sum();
        assert_eq!(ledger.seen, ledger.compared + drops, "{ledger:?}");
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path
                .extension()
                .is_some_and(|extension| extension == "jsonl")
            {
                let text = std::fs::read_to_string(path).unwrap();
                records.extend(text.lines().map(|line| serde_json::from_str(line).unwrap()));
            }
        }
        assert_eq!(records.len() as u64, ledger.compared);
        drop(metrics);
        (records, ledger)
    }
}

/// The next frame of this kind; nothing when there will be none.
async fn frame(stream: &mut TcpStream, kind: Kind) -> Option<(Header, Vec<u8>)> {
    let read = async {
        loop {
            let mut header = [0; HEADER_LENGTH];
            stream.read_exact(&mut header).await.ok()?;
            let header = Header::decode(&header).unwrap();
            let mut body = vec![0; header.length as usize];
            stream.read_exact(&mut body).await.ok()?;
            if header.kind == kind {
                return Some((header, body));
            }
        }
    };
    tokio::time::timeout(WAIT, read).await.unwrap()
}

/// Waits for a condition, by asking again and again.
async fn eventually(condition: impl Fn() -> bool, state: impl Fn() -> String) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "still not so after {WAIT:?}:\n{}",
            state()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What a shadow model was asked.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: HeaderMap,
    body: Bytes,
}

/// A shadow model that writes down what it is asked, and gives the bodies of `answers` by path.
#[derive(Clone, Default)]
struct Model {
    asked: Arc<Mutex<Vec<Asked>>>,
    answers: HashMap<&'static str, Vec<u8>>,
}

impl Model {
    fn answering(answers: &[(&'static str, &[u8])]) -> Self {
        Self {
            answers: answers
                .iter()
                .map(|&(path, body)| (path, body.to_vec()))
                .collect(),
            ..Self::default()
        }
    }

    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        address
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(State(model): State<Model>, request: Request) -> impl IntoResponse {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let answer = model
        .answers
        .get(parts.uri.path())
        .cloned()
        .unwrap_or_default();
    model.asked.lock().unwrap().push(Asked {
        line: format!("{} {}", parts.method, parts.uri),
        headers: parts.headers,
        body,
    });
    ([(header::CONTENT_TYPE, "application/json")], answer)
}

fn post(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: model\r\nX-Tenant: blue\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn ok(body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// Bytes without a pattern that repeats at a segment's length.
fn noise(length: usize) -> Vec<u8> {
    (0..length as u64)
        .map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

#[tokio::test]
async fn a_conversation_is_replayed_compared_and_recorded() {
    let model = Model::answering(&[("/same", br#"{"label":"cat"}"#), ("/else", b"[1, 2.5]")]);
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    scene.report().await;
    let mut connection = scene.open(40_000);
    let body = noise(5_000);
    scene.exchange(
        &mut connection,
        &post("/same?x=1", &body),
        &ok(br#"{"label": "cat"}"#),
    );
    scene.exchange(&mut connection, &post("/else", b""), &ok(b"[1, 2]"));
    scene.until("compared", 2).await;

    let asked = model.asked();
    assert_eq!(asked[0].line, "POST /same?x=1");
    assert_eq!(asked[0].body, body);
    assert_eq!(asked[0].headers["host"], "model");
    assert_eq!(asked[0].headers["x-modelmirror-shadow"], "1");
    assert_eq!(asked[1].line, "POST /else");
    let id = asked[0].headers["x-modelmirror-id"]
        .to_str()
        .unwrap()
        .to_owned();

    let verdicts = |verdict| scene.metric("modelmirror_shadow_comparisons_total", &[verdict]);
    assert_eq!((verdicts("match"), verdicts("different")), (1.0, 1.0));
    eventually(
        || scene.metric("modelmirror_shadow_fidelity_ratio", &[SERVICE]) == 1.0,
        || scene.text(),
    )
    .await;
    let records = scene.finish().await;
    let record = records
        .iter()
        .find(|record| record["id"] == id.as_str())
        .unwrap();
    assert_eq!(record["verdict"], "match");
    assert_eq!(record["client"], "10.0.0.7:40000");
    assert_eq!(record["path"], "/same?x=*");
    assert_eq!(record["production"]["version"], "v12");
    assert_eq!(record["shadow"]["version"], "v13");
    assert_eq!(record["request"]["bytes"], 5_000);
    // By the tap's clock: the answer's first segment is the next copy.
    assert_eq!(record["production"]["first_byte_ms"], 0.01);
}

#[tokio::test]
async fn requests_that_are_copied_alone_end_with_the_shadow_s_answer() {
    let model = Model::default();
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    scene.tap.requests_only = true;
    scene.report().await;
    let mut connection = scene.open(40_000);
    for count in 1..=3 {
        scene.request(&mut connection, &post("/", b"abc"));
        scene.until("not_compared", count).await;
    }
    assert_eq!(model.asked().len(), 3);
    let memory = || scene.metric("modelmirror_shadow_memory_used_bytes", &[]);
    let fidelity = || scene.metric("modelmirror_shadow_fidelity_ratio", &[SERVICE]);
    eventually(
        || fidelity() == 1.0 && memory() == CONNECTION,
        || scene.text(),
    )
    .await;
    let (records, ledger) = scene.finish_with_ledger().await;
    assert!(records.is_empty());
    assert_eq!(ledger.drops["not_compared"], 3);
}

#[tokio::test]
async fn large_bodies_arrive_byte_for_byte() {
    let large = noise(3 << 20);
    let model = Model::answering(&[("/", &large)]);
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    scene.report().await;
    let mut connection = scene.open(1);
    for part in [&post("/", &large)] {
        // In pieces that the receive buffer holds, whatever the kernel grants.
        for piece in part.chunks(64 << 10) {
            scene.request(&mut connection, piece);
            scene.report().await;
        }
    }
    for piece in ok(&large).chunks(64 << 10) {
        scene.response(&mut connection, piece);
        scene.report().await;
    }
    scene.until("compared", 1).await;
    assert_eq!(model.asked()[0].body, large);
    let records = scene.finish().await;
    assert_eq!(records[0]["verdict"], "match");
}

#[tokio::test]
async fn pipelined_requests_keep_their_order() {
    let model = Model::answering(&[("/a", b"A"), ("/b", b"B"), ("/c", b"C")]);
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    scene.report().await;
    let mut connection = scene.open(1);
    let requests = [post("/a", b"1"), post("/b", b"2"), post("/c", b"3")].concat();
    let responses = [ok(b"A"), ok(b"B"), ok(b"X")].concat();
    scene.exchange(&mut connection, &requests, &responses);
    let datagrams = connection.close(&mut scene.tap);
    scene.send(datagrams);
    scene.until("compared", 3).await;
    let lines: Vec<_> = model.asked().into_iter().map(|asked| asked.line).collect();
    assert_eq!(lines, ["POST /a", "POST /b", "POST /c"]);
    let records = scene.finish().await;
    // They are compared by several threads.
    let verdicts = records.iter().map(|record| record["verdict"].as_str());
    let mut verdicts: Vec<_> = verdicts.flatten().collect();
    verdicts.sort_unstable();
    assert_eq!(verdicts, ["different", "match", "match"]);
}

#[tokio::test]
async fn a_lost_datagram_costs_its_request_alone() {
    let model = Model::answering(&[("/whole", b"W")]);
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    scene.report().await;
    let mut connection = scene.open(1);
    let mut datagrams = connection.request(&mut scene.tap, &post("/torn", &noise(4_000)));
    datagrams.remove(1);
    scene.send(datagrams);
    scene.response(&mut connection, &ok(b"T"));
    scene.exchange(&mut connection, &post("/whole", b"1"), &ok(b"W"));
    scene.until("compared", 1).await;
    scene.until("request_gap", 1).await;
    scene.report().await;
    let lost = || scene.metric("modelmirror_shadow_tunnel_packets_total", &["lost"]);
    eventually(|| lost() == 1.0, || scene.text()).await;
    assert_eq!(model.asked().len(), 1);
    assert_eq!(model.asked()[0].line, "POST /whole");
    assert_eq!(scene.finish().await.len(), 1);
}

/// Production answers; the shadow at `target` does not: verdict `error`, and nothing is kept.
async fn check_failing_shadow(target: SocketAddr, error: &str) {
    let change = |config: &mut config::Shadow| {
        config.services[0].timeout = Duration::from_millis(100);
    };
    let mut scene = Scene::new(target, change).await;
    scene.report().await;
    let mut connection = scene.open(1);
    for _ in 0..3 {
        scene.exchange(&mut connection, &post("/", b"{}"), &ok(b"{}"));
    }
    scene.until("compared", 3).await;
    let errors = scene.metric("modelmirror_shadow_errors_total", &[SERVICE, error]);
    assert_eq!(errors, 3.0, "{}", scene.text());
    eventually(
        || scene.metric("modelmirror_shadow_memory_used_bytes", &[]) == CONNECTION,
        || scene.text(),
    )
    .await;
    for record in scene.finish().await {
        assert_eq!(record["verdict"], "error");
        assert_eq!(record["production"]["status"], 200);
    }
}

#[tokio::test]
async fn a_refusing_shadow_costs_errors() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    check_failing_shadow(closed, "connect").await;
}

#[tokio::test]
async fn a_resetting_shadow_costs_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_zero_linger().unwrap();
        }
    });
    check_failing_shadow(address, "closed").await;
}

#[tokio::test]
async fn a_black_hole_costs_errors() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    check_failing_shadow(listener.local_addr().unwrap(), "timeout").await;
}

#[tokio::test]
async fn a_full_queue_costs_counted_drops() {
    let hole = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let change = |config: &mut config::Shadow| {
        config.services[0].concurrency = 1;
        config.services[0].queue = 2;
    };
    let mut scene = Scene::new(hole.local_addr().unwrap(), change).await;
    scene.report().await;
    for port in 1..=10 {
        let mut connection = scene.open(port);
        scene.exchange(&mut connection, &post("/", b"{}"), &ok(b"{}"));
    }
    // One is with the shadow and two wait; or all came before the first one's turn.
    let drops = || scene.outcome("queue_full");
    eventually(|| drops() >= 7, || scene.text()).await;
    let drops = drops();
    assert!((7..=8).contains(&drops), "{drops}");
    let (_, ledger) = scene.finish_with_ledger().await;
    assert_eq!(ledger.seen, 10);
    assert_eq!(ledger.drops["queue_full"], drops);
}

/// (Tests run in a process each.)
#[tokio::test]
async fn there_may_be_more_connections_than_the_first_limit_of_files() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 64, most).unwrap();
    let model = Model::answering(&[("/same", b"{}")]);
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    scene.report().await;
    for port in 1..=100 {
        let mut connection = scene.open(port);
        scene.exchange(&mut connection, &post("/same", b"{}"), &ok(b"{}"));
    }
    scene.until("compared", 100).await;
    let matches = scene.metric("modelmirror_shadow_comparisons_total", &["match"]);
    assert_eq!(matches, 100.0);
    scene.finish().await;
}

/// Nobody answers at the shadow; production streams without end to many clients.
#[tokio::test]
async fn streams_that_the_shadow_failed_take_no_memory() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let target = closed.local_addr().unwrap();
    drop(closed);
    let mut scene = Scene::new(target, |_| {}).await;
    scene.report().await;
    let mut connections: Vec<_> = (1..=12).map(|port| scene.open(port)).collect();
    for connection in &mut connections {
        scene.request(connection, &post("/stream", b"1"));
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        scene.response(connection, head);
    }
    let chunk = [b"a000\r\n", &[b'x'; 0xa000][..], b"\r\n"].concat();
    for _ in 0..25 {
        for connection in &mut connections {
            scene.response(connection, &chunk);
        }
        scene.report().await;
    }
    // 12 MB have passed.
    let memory = || scene.metric("modelmirror_shadow_memory_used_bytes", &[]);
    eventually(|| memory() < CONNECTION + 200_000.0, || scene.text()).await;
    for connection in &mut connections {
        scene.response(connection, b"0\r\n\r\n");
    }
    scene.until("compared", 12).await;
    let records = scene.finish().await;
    assert!(records.iter().all(|record| record["verdict"] == "error"));
    assert!(
        records
            .iter()
            .all(|record| record["production"]["bytes"] == 25 * 0xa000)
    );
}

/// A client says that its request is a copy: it is asked of the shadow all the same.
#[tokio::test]
async fn a_client_cannot_opt_out() {
    let model = Model::answering(&[("/a", b"A")]);
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    scene.report().await;
    let mut connection = scene.open(1);
    let forged = "x-modelmirror-shadow: 1\r\nx-modelmirror-mark: 1-2\r\nConnection: authorization\r\nauthorization: me\r\n";
    let request = format!("GET /a HTTP/1.1\r\nHost: a\r\n{forged}\r\n");
    scene.exchange(&mut connection, request.as_bytes(), &ok(b"A"));
    scene.until("compared", 1).await;
    let asked = model.asked();
    assert_eq!(asked[0].headers["authorization"], "me");
    // What the agent has sent itself comes back to it.
    let marks = asked[0].headers.get_all("x-modelmirror-mark");
    let mark = marks.iter().next_back().unwrap().to_str().unwrap();
    let request = format!("GET /a HTTP/1.1\r\nHost: a\r\nx-modelmirror-mark: {mark}\r\n\r\n");
    scene.exchange(&mut connection, request.as_bytes(), &ok(b"A"));
    scene.until("loop", 1).await;
    assert_eq!(model.asked().len(), 1);
    scene.finish().await;
}

#[tokio::test]
async fn memory_is_one_figure_and_is_given_back() {
    let model = Model::answering(&[("/small", b"s")]);
    let change = |config: &mut config::Shadow| config.memory = 600_000;
    let mut scene = Scene::new(model.start().await, change).await;
    scene.report().await;
    let mut connection = scene.open(1);
    for piece in post("/large", &noise(500_000)).chunks(64 << 10) {
        scene.request(&mut connection, piece);
        scene.report().await;
    }
    scene.response(&mut connection, &ok(b"l"));
    scene.exchange(&mut connection, &post("/small", b"1"), &ok(b"s"));
    scene.until("compared", 1).await;
    scene.until("memory", 1).await;
    eventually(
        || scene.metric("modelmirror_shadow_memory_used_bytes", &[]) == CONNECTION,
        || scene.text(),
    )
    .await;
    assert_eq!(
        scene.metric("modelmirror_shadow_memory_limit_bytes", &[]),
        600_000.0
    );
    assert_eq!(model.asked().len(), 1);
    scene.finish().await;
}

#[tokio::test]
async fn the_record_names_who_answered() {
    let model = Model::answering(&[("/", b"1")]);
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    scene.report().await;
    let mut stable = scene.open(1);
    scene.exchange(&mut stable, &post("/", b"1"), &ok(b"1"));
    let mut canary = Connection::new(ID, 2);
    canary.arm = Arm::Canary;
    let datagrams = canary.open(&mut scene.tap);
    scene.send(datagrams);
    scene.exchange(&mut canary, &post("/", b"2"), &ok(b"2"));
    scene.until("compared", 2).await;
    for (arm, verdict) in [("stable", "match"), ("canary", "different")] {
        let labels = [SERVICE, arm];
        let of_arm = "modelmirror_shadow_comparisons_total";
        assert_eq!(scene.metric(of_arm, &labels), 1.0, "{}", scene.text());
        assert_eq!(scene.metric(of_arm, &[arm, verdict]), 1.0);
    }
    let mut said: Vec<_> = scene.finish().await;
    said.sort_by_key(|record| record["arm"].to_string());
    let told = said.iter().map(|record| {
        let production = &record["production"];
        [&record["arm"], &production["version"], &record["verdict"]]
    });
    assert_eq!(
        told.collect::<Vec<_>>(),
        [["canary", CANARY, "different"], ["stable", "v12", "match"]]
    );
}

#[tokio::test]
async fn peers_that_are_not_allowed_change_nothing() {
    let model = Model::default();
    let change = |config: &mut config::Shadow| config.allow = vec!["10.0.0.5/32".parse().unwrap()];
    let mut scene = Scene::new(model.start().await, change).await;
    assert!(scene.stream.is_none());
    let mut connection = scene.open(1);
    scene.exchange(&mut connection, &post("/", b"1"), &ok(b"1"));
    let refused = || scene.metric("modelmirror_shadow_refused_connections_total", &[]);
    let strays = "modelmirror_shadow_tunnel_packets_total";
    let unknown = || scene.metric(strays, &["unknown_tap"]);
    eventually(|| (refused(), unknown()) == (1.0, 4.0), || scene.text()).await;
    let (records, ledger) = scene.finish_with_ledger().await;
    assert_eq!((records.len(), ledger.seen), (0, 0));
}

#[tokio::test]
async fn stopping_finishes_what_can_be_finished() {
    let model = Model::answering(&[("/", b"1")]);
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    scene.report().await;
    let mut answered = scene.open(1);
    scene.exchange(&mut answered, &post("/", b"1"), &ok(b"1"));
    let mut open = scene.open(2);
    scene.request(&mut open, &post("/", b"1"));
    // The report's echo says that all before it was received.
    scene.report().await;
    let (records, ledger) = scene.finish_with_ledger().await;
    assert_eq!(records.len(), 1);
    assert_eq!((ledger.seen, ledger.compared), (2, 1));
    assert_eq!(ledger.drops["shutdown"], 1);
}

#[tokio::test]
async fn the_admin_endpoint_shows_it_all() {
    let folder = tempfile::tempdir().unwrap();
    let config = config::Shadow {
        record_dir: folder.path().join("records"),
        ..fixtures::shadow()
    };
    let agent = Agent::open(config).unwrap();
    let address = agent.admin_address().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(agent.run(async {
        let _ = stopped.await;
    }));
    let page = async |path: &str| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    };
    assert!(page("/readyz").await.ends_with("ready\n"));
    assert!(
        page("/metrics")
            .await
            .contains("modelmirror_shadow_receive_buffer_bytes")
    );
    stop.send(()).unwrap();
    running.await.unwrap().unwrap();
}

/// The same exchange as over the tunnel, from a tap that connects; and once more after its
/// connection broke in the middle.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_replayed_as_datagrams_are() {
    let model = Model::answering(&[("/v1", b"same")]);
    let mut scene = Scene::new(model.start().await, |_| {}).await;
    let tunnel = scene.socket.peer_addr().unwrap();
    let mut connection = Connection::new(ID, 40_000);
    let mut datagrams = connection.open(&mut scene.tap);
    for n in 0..20_000_usize {
        if n % 1_000 == 0 {
            datagrams.extend(connection.request(&mut scene.tap, &post("/v1", &noise(n))));
            datagrams.extend(connection.response(&mut scene.tap, &ok(b"same")));
        }
    }
    let mut rings = Rings::default();
    for datagram in &datagrams {
        rings.write_datagram(datagram);
    }
    for cut in [20_000, usize::MAX] {
        let mut stream = TcpStream::connect(tunnel).await.unwrap();
        let hello = stream_fixtures::hello(1, rings.heads());
        stream.write_all(&hello).await.unwrap();
        let (_, body) = frame(&mut stream, Kind::Welcome).await.unwrap();
        let welcome: Welcome = serde_json::from_slice(&body).unwrap();
        assert_eq!(welcome.name, "127.0.0.1");
        rings.go_on(&welcome.lanes);
        let wire = rings.rounds(10_000);
        let wire = &wire[..cut.min(wire.len())];
        stream.write_all(wire).await.unwrap();
        stream.shutdown().await.unwrap();
        // Until the agent closes as well.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    scene.until("compared", 20).await;
    let received = ["127.0.0.1", "received"];
    let packets = "modelmirror_shadow_tunnel_packets_total";
    let expected = datagrams.len() as f64;
    eventually(
        || scene.metric(packets, &received) == expected,
        || scene.text(),
    )
    .await;
    assert_eq!(scene.finish().await.len(), 20);
}
