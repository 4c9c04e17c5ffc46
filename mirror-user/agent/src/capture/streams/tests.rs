use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use mirror_api::tap_report::{LaneSent, TapReport};
use mirror_common::packet::ACK;
use mirror_common::tunnel::{Arm, Direction};
use mirror_wire::memory::Memory;
use mirror_wire::message::{Segment, TapId};

use super::fixtures::{Kept, Rings};
use super::*;
use crate::capture::{Capture, Tap};
use crate::config;
use crate::ledger::Outcome;
use crate::resume::TapResume;
use mirror_base::transport::frame::{PREFACE, Position, Positions, Welcome};
use mirror_base::transport::keys::PrivateKey;
use mirror_base::transport::tls;

const WAIT: Duration = Duration::from_secs(20);
const SERVICE: u32 = 7;

/// A capture on its thread, which taps can connect to.
struct Scene {
    address: SocketAddr,
    streams: Option<Streams>,
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<Capture>>,
    memory: Memory,
    refusals: Arc<Refusals>,
}

#[derive(Default)]
struct Shared {
    segments: Mutex<Vec<Segment>>,
    stop: AtomicBool,
    overloaded: AtomicBool,
    pause: AtomicBool,
}

impl Scene {
    fn new() -> Self {
        Self::with(|_| {}, None)
    }

    fn with(change: impl FnOnce(&mut config::Shadow), api: Option<Api>) -> Self {
        let open = |config: &config::Shadow| -> Arc<dyn Accept> {
            Arc::new(OpenDoor::new(config.allow.clone()))
        };
        Self::through(open, change, api, Vec::new())
    }

    /// The agent after one that has left this.
    fn after(left: Vec<TapResume>) -> Self {
        let open = |config: &config::Shadow| -> Arc<dyn Accept> {
            Arc::new(OpenDoor::new(config.allow.clone()))
        };
        Self::through(open, |_| {}, None, left)
    }

    fn through(
        door: impl FnOnce(&config::Shadow) -> Arc<dyn Accept>,
        change: impl FnOnce(&mut config::Shadow),
        api: Option<Api>,
        left: Vec<TapResume>,
    ) -> Self {
        let target = "127.0.0.1:1".parse().unwrap();
        let mut config = config::Shadow {
            services: vec![crate::fixtures::service(SERVICE, target)],
            ..crate::fixtures::shadow()
        };
        change(&mut config);
        let memory = Memory::new(256 << 20);
        let mut capture = Capture::open(&config, Vec::new()).unwrap();
        capture.resume(left);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let streams = capture
            .listen(listener, door(&config), &memory, api)
            .unwrap();
        let refusals = Arc::clone(&capture.refusals);
        let shared = Arc::<Shared>::default();
        let ours = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            let wait = Duration::from_millis(10);
            while !ours.stop.load(Ordering::Relaxed) {
                if ours.pause.swap(false, Ordering::Relaxed) {
                    capture.pause();
                }
                let overloaded = ours.overloaded.load(Ordering::Relaxed);
                let sink = &mut |segment| ours.segments.lock().unwrap().push(segment);
                capture.receive(wait, overloaded, sink).unwrap();
            }
            capture
        });
        Self {
            address,
            streams: Some(streams),
            shared,
            thread: Some(thread),
            memory,
            refusals,
        }
    }

    fn count(&self) -> usize {
        self.shared.segments.lock().unwrap().len()
    }

    fn until(&self, count: usize) {
        eventually(
            || self.count() >= count,
            || format!("{} of {count}", self.count()),
        );
    }

    /// Stops everything: the segments, and the capture, its ledgers closed.
    fn finish(self) -> (Vec<Segment>, Capture) {
        let (segments, capture, _) = self.hand_over();
        (segments, capture)
    }

    /// The same, and what is left to the next agent.
    fn hand_over(mut self) -> (Vec<Segment>, Capture, Vec<TapResume>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let got = runtime.block_on(self.streams.take().unwrap().stop());
        let left = got.into_iter().map(|got| TapResume {
            name: got.name,
            boot: got.boot,
            positions: got.positions,
            moment: None,
            connections: Vec::new(),
        });
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut capture = self.thread.take().unwrap().join().unwrap();
        capture.close();
        assert_eq!(self.memory.used(), 0, "memory was not given back");
        let segments = std::mem::take(&mut *self.shared.segments.lock().unwrap());
        (segments, capture, left.collect())
    }
}

fn eventually(condition: impl Fn() -> bool, state: impl Fn() -> String) {
    let deadline = Instant::now() + WAIT;
    while !condition() {
        assert!(Instant::now() < deadline, "still not so: {}", state());
        thread::sleep(Duration::from_millis(2));
    }
}

fn refused(capture: &Capture, refusal: Refusal) -> u64 {
    let mut counts = capture.refusals().counts();
    counts.find(|&(which, _)| which == refusal).unwrap().1
}

fn tap_named<'a>(capture: &'a Capture, name: &str) -> (TapId, &'a Tap) {
    capture.taps().find(|(_, tap)| tap.name == name).unwrap()
}

/// A tap's life: its rings, and at times a connection.
struct FakeTap {
    address: SocketAddr,
    from: Ipv4Addr,
    boot: u64,
    rings: Rings,
    sent: u32,
    bytes: BTreeMap<u16, u64>,
    acked: BTreeMap<u16, u64>,
    reports: u64,
    stream: Option<TcpStream>,
}

impl FakeTap {
    fn new(address: SocketAddr, last: u8) -> Self {
        Self {
            address,
            from: Ipv4Addr::new(127, 0, 0, last),
            boot: 1,
            rings: Rings::default(),
            sent: 0,
            bytes: BTreeMap::new(),
            acked: BTreeMap::new(),
            reports: 0,
            stream: None,
        }
    }

    fn dial(&self) -> TcpStream {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from((self.from, 0)).into())
            .unwrap();
        socket.connect(&self.address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }

    fn hello(&self) -> Vec<u8> {
        fixtures::hello(self.boot, self.rings.heads())
    }

    fn connect(&mut self) -> Welcome {
        let mut stream = self.dial();
        stream.write_all(&self.hello()).unwrap();
        self.stream = Some(stream);
        let (header, body) = self.frame();
        assert_eq!(header.kind, Kind::Welcome);
        let welcome: Welcome = serde_json::from_slice(&body).unwrap();
        self.rings.go_on(&welcome.lanes);
        welcome
    }

    /// Copies a segment of its one connection on this lane.
    fn copy(&mut self, lane: u16, payload: &[u8]) {
        let client = format!("10.0.0.7:{}", 4000 + lane).parse().unwrap();
        let server = "10.0.0.5:8000".parse().unwrap();
        let packet = mirror_wire::fixtures::ipv4(client, server, self.sent, 1, ACK, payload);
        self.sent += payload.len() as u32;
        *self.bytes.entry(lane).or_default() += payload.len() as u64;
        let kept = Kept {
            service: SERVICE,
            direction: Direction::Request,
            arm: Arm::Stable,
        };
        self.rings.write_of(kept, lane, 10, &packet);
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn flush(&mut self, stretch: usize) {
        let wire = self.rings.rounds(stretch);
        self.send(&wire);
    }

    fn report(&mut self) {
        self.reports += 1;
        let lanes = self.rings.copies().map(|(lane, copies)| LaneSent {
            lane,
            copies,
            bytes: self.bytes[&lane],
        });
        let report = TapReport {
            boot: self.boot,
            number: self.reports,
            lanes: lanes.collect(),
            ..TapReport::default()
        };
        let wire = fixtures::report(&report, 1_000 + self.reports);
        self.send(&wire);
    }

    fn frame(&mut self) -> (Header, Vec<u8>) {
        let stream = self.stream.as_mut().unwrap();
        let mut header = [0; HEADER_LENGTH];
        stream.read_exact(&mut header).unwrap();
        let header = Header::decode(&header).unwrap();
        let mut body = vec![0; header.length as usize];
        stream.read_exact(&mut body).unwrap();
        (header, body)
    }

    /// Reads until everything is acknowledged, and this report echoed.
    fn settle(&mut self) {
        let mut echoed = self.reports == 0;
        while !echoed || !self.is_acked() {
            let (header, body) = self.frame();
            match header.kind {
                Kind::Ack => self.on_ack(&body),
                Kind::Echo => {
                    echoed = header.position == self.reports;
                    assert_eq!(header.until_ns, 1_000 + header.position);
                }
                kind => panic!("{kind:?}: {}", String::from_utf8_lossy(&body)),
            }
        }
    }

    fn on_ack(&mut self, body: &[u8]) {
        for Position { lane, position } in Positions::decode(body) {
            let before = self.acked.insert(lane, position).unwrap_or_default();
            assert!(before <= position, "acknowledged less than before");
        }
    }

    fn is_acked(&self) -> bool {
        let acked = |head: &Position| self.acked.get(&head.lane) == Some(&head.position);
        self.rings.heads().iter().all(acked)
    }

    /// Why the agent closes.
    fn refused(&mut self) -> String {
        loop {
            let (header, body) = self.frame();
            if header.kind == Kind::Refused {
                return String::from_utf8(body).unwrap();
            }
        }
    }
}

/// The payload of every copy of this tap's, in order.
fn payload(segments: &[Segment], tap: TapId) -> Vec<u8> {
    let ours = segments.iter().filter(|segment| segment.tap == tap);
    ours.flat_map(|segment| segment.payload.clone()).collect()
}

#[test]
fn copies_arrive_in_order_and_are_acknowledged() {
    let scene = Scene::new();
    let mut tap = FakeTap::new(scene.address, 1);
    let welcome = tap.connect();
    assert_eq!((&*welcome.name, &welcome.lanes[..]), ("127.0.0.1", &[][..]));
    tap.report();
    let mut body = Vec::new();
    for n in 0..2_000_u32 {
        let part = vec![n as u8; (n * 7 % 1_500) as usize];
        tap.copy((n % 3) as u16, &part);
        body.extend(part);
        if n % 50 == 0 {
            tap.flush(10_000);
        }
    }
    tap.flush(100_000);
    tap.report();
    tap.settle();
    let (segments, capture) = scene.finish();
    let (id, known) = tap_named(&capture, "127.0.0.1");
    assert_eq!(welcome.tap, id.0);
    assert!(payload(&segments, id) == body, "not what was sent");
    let times: Vec<_> = segments.iter().map(|segment| segment.time_ns).collect();
    assert!(times.is_sorted());
    let totals = known.totals();
    assert_eq!(totals.of(Outcome::Received).copies, 2_000);
    assert_eq!(totals.of(Outcome::Received).bytes, body.len() as u64);
    assert_eq!((totals.sent.copies, totals.earlier.copies), (2_000, 0));
    assert!(totals.closes());
}

#[test]
fn a_broken_connection_goes_on_where_it_broke() {
    let scene = Scene::new();
    let mut tap = FakeTap::new(scene.address, 1);
    for n in 0..300_u32 {
        tap.copy((n % 2) as u16, &[n as u8; 900]);
    }
    let mut known = 0;
    for cut in [5_000, 100_000, 1_000] {
        tap.connect();
        let wire = tap.rings.rounds(3_000);
        tap.send(&wire[..cut.min(wire.len())]);
        // Half a frame, then nothing.
        tap.stream = None;
        eventually(|| scene.count() > known, || "nothing arrives".into());
        known = scene.count();
    }
    let welcome = tap.connect();
    assert_eq!(welcome.lanes.len(), 2);
    tap.report();
    tap.flush(50_000);
    tap.settle();
    scene.until(300);
    let (mut segments, capture) = scene.finish();
    segments.sort_by_key(|segment| segment.time_ns);
    let (id, known) = tap_named(&capture, "127.0.0.1");
    assert_eq!(segments.len(), 300);
    let expected: Vec<_> = (0..300_u32).flat_map(|n| [n as u8; 900]).collect();
    assert!(payload(&segments, id) == expected);
    let totals = known.totals();
    assert_eq!(totals.of(Outcome::Received).copies, 300);
    assert!(totals.closes() && totals.late == 0);
    assert_eq!(capture.taps().count(), 1);
}

#[test]
fn a_tap_s_newer_connection_replaces_the_older() {
    let scene = Scene::new();
    let mut tap = FakeTap::new(scene.address, 1);
    tap.connect();
    tap.copy(0, b"before");
    tap.flush(1_000);
    tap.settle();
    let mut older = tap.stream.take().unwrap();
    let welcome = tap.connect();
    assert_eq!(welcome.lanes, tap.rings.heads());
    assert_eq!(older.read(&mut [0; 10]).unwrap(), 0, "is still open");
    tap.copy(0, b"after");
    tap.flush(1_000);
    tap.settle();
    let (segments, capture) = scene.finish();
    let (id, _) = tap_named(&capture, "127.0.0.1");
    assert_eq!(payload(&segments, id), b"beforeafter");
}

#[test]
fn another_life_of_a_tap_starts_anew() {
    let scene = Scene::new();
    let mut tap = FakeTap::new(scene.address, 1);
    for boot in 1..=2 {
        tap = FakeTap {
            boot,
            ..FakeTap::new(scene.address, 1)
        };
        let welcome = tap.connect();
        assert_eq!(welcome.lanes, []);
        tap.copy(0, b"life");
        tap.report();
        tap.flush(1_000);
        tap.settle();
    }
    drop(tap);
    let (segments, capture) = scene.finish();
    let (id, known) = tap_named(&capture, "127.0.0.1");
    assert_eq!(payload(&segments, id), b"lifelife");
    assert_eq!(known.totals().of(Outcome::Received).copies, 2);
    assert!(known.totals().closes());
}

#[test]
fn what_was_processed_is_acknowledged_when_the_agent_stops() {
    let scene = Scene::new();
    let mut tap = FakeTap::new(scene.address, 1);
    tap.connect();
    for n in 0..200_u32 {
        tap.copy((n % 2) as u16, &[n as u8; 1_000]);
    }
    tap.flush(300_000);
    for n in 0..300_u32 {
        tap.copy((n % 2) as u16, &[n as u8; 1_000]);
    }
    // No end of the round: all of it is held back.
    let wire = tap.rings.round(300_000);
    tap.send(&wire[..wire.len() - HEADER_LENGTH]);
    scene.until(200);
    let (segments, _, left) = scene.hand_over();
    let mut stream = tap.stream.take().unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let mut rest = &rest[..];
    while let Some((header, body, length)) = frame::split(rest).unwrap() {
        assert_eq!(header.kind, Kind::Ack);
        tap.on_ack(body);
        rest = &rest[length..];
    }
    let acked: u64 = tap.acked.values().sum();
    let record = u64::from(mirror_common::record::record_length(1_040));
    assert_eq!((acked, segments.len()), (200 * record, 200));
    let left: u64 = left[0].positions.iter().map(|got| got.position).sum();
    assert_eq!(left, acked);
}

/// What the first agent reads on for the rest of what has begun, the second one gets once more.
#[test]
fn the_next_agent_goes_on_where_the_last_one_has_acknowledged() {
    let mut tap = FakeTap::new(([127, 0, 0, 1], 0).into(), 1);
    let mut left = Vec::new();
    let mut all = Vec::new();
    let mut received = 0;
    for agent in 0..4_u8 {
        let scene = Scene::after(left);
        tap.address = scene.address;
        if agent == 2 {
            // The tap has not been here, so it is where it was.
            left = capture_left(scene);
            continue;
        }
        let known = tap.connect();
        assert_eq!(known.lanes.len(), if agent == 0 { 0 } else { 3 });
        let before = all.len();
        for n in 0..300_u16 {
            let part = [agent; 500];
            tap.copy(n % 3, &part);
            all.extend(part);
        }
        tap.report();
        tap.flush(10_000);
        let anew = if agent == 0 { 0 } else { 150 };
        scene.until(300 + anew);
        scene.shared.pause.store(true, Ordering::Relaxed);
        eventually(
            || !scene.shared.pause.load(Ordering::Relaxed),
            || "it does not pause".to_owned(),
        );
        for n in 0..150_u16 {
            let part = [agent; 500];
            tap.copy(n % 3, &part);
            all.extend(part);
        }
        tap.flush(10_000);
        scene.until(450 + anew);
        // It may connect anew meanwhile, and is told the same.
        let known = tap.connect();
        tap.flush(10_000);
        let (segments, capture, next) = scene.hand_over();
        assert_eq!(next[0].positions, known.lanes);
        let (id, known) = tap_named(&capture, "127.0.0.1");
        assert!(payload(&segments, id) == all[before - anew * 500..]);
        let totals = known.totals();
        assert_eq!(totals.of(Outcome::Received).copies, 300 + anew as u64);
        assert_eq!((totals.of(Outcome::Lost).copies, totals.late), (0, 0));
        received += totals.of(Outcome::Received).copies;
        assert_eq!(
            totals.earlier.copies + totals.of(Outcome::Received).copies,
            received
        );
        assert!(totals.closes());
        left = next;
    }
}

/// What an agent leaves that no tap has connected to.
fn capture_left(scene: Scene) -> Vec<TapResume> {
    let (_, mut capture, got) = scene.hand_over();
    assert_eq!(got, []);
    capture.take_left()
}

#[test]
fn streams_wait_while_the_agent_is_overloaded() {
    let scene = Scene::new();
    scene.shared.overloaded.store(true, Ordering::Relaxed);
    let mut tap = FakeTap::new(scene.address, 1);
    tap.connect();
    for n in 0..8_000_u32 {
        tap.copy(0, &[n as u8; 1_000]);
    }
    let wire = tap.rings.rounds(100_000);
    let mut stream = tap.stream.as_ref().unwrap().try_clone().unwrap();
    let writer = thread::spawn(move || stream.write_all(&wire).unwrap());
    thread::sleep(Duration::from_millis(300));
    assert_eq!(scene.count(), 0);
    assert!(scene.memory.used() < 4 << 20, "{}", scene.memory.used());
    scene.shared.overloaded.store(false, Ordering::Relaxed);
    scene.until(8_000);
    writer.join().unwrap();
    tap.settle();
    scene.finish();
}

#[test]
fn those_who_are_no_taps_are_refused_by_name() {
    let scene = Scene::with(
        |config| config.allow = vec!["127.0.0.0/28".parse().unwrap()],
        None,
    );
    let stranger = FakeTap::new(scene.address, 99);
    let mut stream = stranger.dial();
    let _ = stream.write_all(&stranger.hello());
    let _ = stream.read_to_end(&mut Vec::new());
    let check = |last, bytes: &[u8], expected: &str| {
        let mut tap = FakeTap::new(scene.address, last);
        let mut stream = tap.dial();
        stream.write_all(bytes).unwrap();
        tap.stream = Some(stream);
        let reason = tap.refused();
        assert!(reason.contains(expected), "{reason}");
    };
    check(2, b"GET / HTTP/1.1\r\n\r\n", "bad_preface");
    let garbage = [&PREFACE[..], &[0xff; 100]].concat();
    check(3, &garbage, "bad_hello");
    let hello = FakeTap::new(scene.address, 4).hello();
    let mut other = hello.clone();
    let version = b"\"version\":";
    let at = hello.windows(version.len()).position(|w| w == version);
    other[at.unwrap() + version.len()] = b'9';
    check(4, &other, "bad_hello: protocol version 9");
    check(5, &[&hello[..], &[0xff; 24]].concat(), "bad_frame");
    let records = fixtures::records(0, 0, false, &[0xff; 64]);
    check(6, &[&hello[..], &records].concat(), "bad_record");
    let (_, capture) = scene.finish();
    for (refusal, count) in [
        (Refusal::NotAllowed, 1),
        (Refusal::BadPreface, 1),
        (Refusal::BadHello, 2),
        (Refusal::BadFrame, 1),
        (Refusal::BadRecord, 1),
    ] {
        assert_eq!(refused(&capture, refusal), count, "{refusal:?}");
    }
}

#[test]
fn callers_of_the_api_are_handed_over_from_their_first_byte() {
    let api: Api = Arc::new(|mut stream, _| {
        tokio::spawn(async move {
            let mut request = [0; 18];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(&request).await.unwrap();
        });
    });
    let scene = Scene::with(|_| {}, Some(api));
    let mut stream = TcpStream::connect(scene.address).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut said = Vec::new();
    stream.read_to_end(&mut said).unwrap();
    assert_eq!(said, b"GET / HTTP/1.1\r\n\r\n");
    scene.finish();
}

#[test]
fn keys_say_who_a_tap_is() {
    let (agent, known, unknown) = (
        PrivateKey::of_test(),
        PrivateKey::of_test(),
        PrivateKey::of_test(),
    );
    let taps = [config::Tap {
        name: "node-7".into(),
        key: known.public(),
    }];
    let door = KeyedDoor::new(&agent, &taps, None).unwrap();
    let api: Api = Arc::new(|mut stream, _| {
        tokio::spawn(async move {
            let mut request = [0; 4];
            stream.read_exact(&mut request).await.unwrap();
            stream.write_all(&request).await.unwrap();
            stream.shutdown().await.unwrap();
        });
    });
    let scene = Scene::through(|_| Arc::new(door), |_| {}, Some(api), Vec::new());
    let dial = |key: &PrivateKey, alpn| {
        let config = tls::client_config(key, agent.public(), alpn).unwrap();
        let tls = rustls::ClientConnection::new(config, tls::server_name()).unwrap();
        let stream = TcpStream::connect(scene.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        rustls::StreamOwned::new(tls, stream)
    };
    let mut rings = Rings::default();
    rings.write(0, 1, b"no packet");
    let mut tap = dial(&known, frame::ALPN_TAP);
    tap.write_all(&fixtures::hello(1, rings.heads())).unwrap();
    tap.write_all(&rings.rounds(1_000)).unwrap();
    let mut said = Vec::new();
    while frame::split(&said)
        .unwrap()
        .is_none_or(|(_, _, end)| frame::split(&said[end..]).unwrap().is_none())
    {
        let mut more = [0; 1_000];
        let count = tap.read(&mut more).unwrap();
        assert!(count > 0, "closed");
        said.extend_from_slice(&more[..count]);
    }
    let (_, welcome, end) = frame::split(&said).unwrap().unwrap();
    let welcome: Welcome = serde_json::from_slice(welcome).unwrap();
    assert_eq!(welcome.name, "node-7");
    let (header, positions, _) = frame::split(&said[end..]).unwrap().unwrap();
    assert_eq!(header.kind, Kind::Ack);
    assert!(Positions::decode(positions).eq(rings.heads()));

    let mut caller = dial(&known, frame::ALPN_API);
    caller.write_all(b"GET ").unwrap();
    let mut answer = Vec::new();
    caller.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"GET ");

    let mut stranger = dial(&unknown, frame::ALPN_TAP);
    let error = stranger
        .write_all(b"x")
        .and_then(|()| stranger.read(&mut [0]));
    let refusal = tls::Refusal::of(&error.unwrap_err());
    assert_eq!(refusal, Some(tls::Refusal::Unknown));
    let mut clear = TcpStream::connect(scene.address).unwrap();
    let _ = clear.write_all(&fixtures::hello(1, Vec::new()));
    let _ = clear.read_to_end(&mut Vec::new());
    drop((tap, clear));
    let (_, capture) = scene.finish();
    assert_eq!(refused(&capture, Refusal::UnknownKey), 1);
    assert_eq!(refused(&capture, Refusal::ClearText), 1);
    let names: Vec<_> = capture.taps().map(|(_, tap)| &*tap.name).collect();
    assert_eq!(names, ["node-7"]);
}

/// What a tap can do to others.
#[derive(Clone, Copy, Debug)]
enum Harm {
    /// Frames of nothing, for ever.
    Garbage,
    /// The longest frames, of records that are held back.
    Hold,
    /// Tiny records, for ever.
    Tiny,
    /// Rounds, for ever.
    Rounds,
    /// Half a frame, and silence.
    Half,
    /// Reports whose echoes it does not read.
    Unread,
    /// Connects again and again.
    Anew,
}

const HARMS: [Harm; 7] = [
    Harm::Garbage,
    Harm::Hold,
    Harm::Tiny,
    Harm::Rounds,
    Harm::Half,
    Harm::Unread,
    Harm::Anew,
];

fn harm(address: SocketAddr, last: u8, how: Harm, stop: &AtomicBool) {
    let mut tap = FakeTap::new(address, last);
    let mut big = Rings::default();
    for _ in 0..14 {
        big.write(1, 1, &[9; 65_000]);
    }
    let mut tiny = Rings::default();
    for _ in 0..20_000 {
        tiny.write(2, 0, &[]);
    }
    let report = fixtures::report(&TapReport::default(), 1);
    let (mut big_at, mut tiny_at) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let mut stream = tap.dial();
        let _ = stream.set_write_timeout(Some(Duration::from_millis(200)));
        if stream.write_all(&tap.hello()).is_err() {
            continue;
        }
        for _ in 0..1_000 {
            let bytes = match how {
                Harm::Garbage => vec![0xab; 4_096],
                Harm::Hold => {
                    let bytes = big.bytes(1);
                    let frame = fixtures::records(1, big_at, true, bytes);
                    big_at += bytes.len();
                    frame
                }
                Harm::Tiny => {
                    let bytes = tiny.bytes(2);
                    let frame = fixtures::records(2, tiny_at, false, bytes);
                    tiny_at += bytes.len();
                    [frame, fixtures::round(u64::MAX)].concat()
                }
                Harm::Rounds => fixtures::round(1).repeat(1_000),
                Harm::Half => fixtures::records(0, 0, false, &[0; 100])[..60].to_vec(),
                Harm::Unread => report.repeat(100),
                Harm::Anew => Vec::new(),
            };
            if stop.load(Ordering::Relaxed) || stream.write_all(&bytes).is_err() {
                break;
            }
            match how {
                Harm::Half => thread::sleep(Duration::from_millis(100)),
                Harm::Anew => break,
                _ => {}
            }
        }
        tap.boot += 1;
        (big_at, tiny_at) = (0, 0);
    }
}

#[test]
fn a_hundred_taps_some_of_them_hostile_do_not_harm_each_other() {
    const COPIES: u32 = 400;
    let scene = Scene::new();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for (index, &how) in HARMS.iter().enumerate() {
            let (address, stop) = (scene.address, &stop);
            scope.spawn(move || harm(address, 200 + index as u8, how, stop));
        }
        // They are at it.
        let count = || scene.refusals.counts().map(|(_, count)| count).sum::<u64>();
        eventually(|| count() > 0, || "nobody is refused".into());
        let good: Vec<_> = (1..=100_u8)
            .map(|last| {
                let address = scene.address;
                scope.spawn(move || {
                    let mut tap = FakeTap::new(address, last);
                    tap.connect();
                    tap.report();
                    for n in 0..COPIES {
                        tap.copy((n % 2) as u16, &[last; 1_400]);
                        if n % 20 == 0 {
                            tap.flush(4_000);
                        }
                    }
                    tap.flush(100_000);
                    tap.report();
                    tap.settle();
                    tap.stream
                })
            })
            .collect();
        let open: Vec<_> = good.into_iter().map(|tap| tap.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        drop(open);
    });
    let (segments, capture) = scene.finish();
    for last in 1..=100_u8 {
        let (id, tap) = tap_named(&capture, &format!("127.0.0.{last}"));
        let ours = segments.iter().filter(|segment| segment.tap == id);
        let numbers: Vec<_> = ours.map(|segment| segment.sequence).collect();
        assert_eq!(numbers.len(), COPIES as usize, "tap {last}");
        assert!(numbers.is_sorted(), "tap {last}");
        let totals = tap.totals();
        assert_eq!(totals.of(Outcome::Received).copies, u64::from(COPIES));
        assert!(totals.closes() && totals.of(Outcome::Lost).copies == 0);
    }
}
