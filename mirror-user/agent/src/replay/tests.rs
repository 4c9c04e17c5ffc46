use std::collections::HashSet;
use std::sync::Mutex;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::*;
use crate::fixtures;

const WAIT: Duration = Duration::from_secs(10);
const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";

/// The same one each time.
fn mark() -> Mark {
    static MARK: std::sync::OnceLock<Mark> = std::sync::OnceLock::new();
    *MARK.get_or_init(Mark::new)
}

/// Hands answers to the test.
struct Answers {
    sender: UnboundedSender<Answered>,
    unwanted: Mutex<HashSet<ExchangeId>>,
}

impl Sink for Answers {
    fn wanted(&self, exchange: ExchangeId) -> bool {
        !self.unwanted.lock().unwrap().contains(&exchange)
    }

    fn answered(self: &Arc<Self>, answered: Answered) {
        self.sender.send(answered).unwrap();
    }

    fn limited(self: &Arc<Self>, exchange: ExchangeId, error: &io::Error) {
        panic!("{exchange:?}: {error}");
    }
}

/// A replay to a server that the test plays itself.
struct Scene {
    listener: TcpListener,
    replay: Replay<Answers>,
    sink: Arc<Answers>,
    answers: UnboundedReceiver<Answered>,
    next: u64,
    memory: Memory,
}

impl Scene {
    async fn new(change: impl FnOnce(&mut config::ShadowService)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut service = fixtures::service(1, listener.local_addr().unwrap());
        change(&mut service);
        let (sender, answers) = unbounded_channel();
        let sink = Arc::new(Answers {
            sender,
            unwanted: Mutex::default(),
        });
        let memory = Memory::new(1 << 20);
        let (sockets, clock) = (Sockets::new(1_000), Instant::now());
        let replay = Replay::new(
            &service,
            mark(),
            &sockets,
            memory.clone(),
            clock,
            Arc::clone(&sink),
        );
        Self {
            listener,
            replay,
            sink,
            answers,
            next: 0,
            memory,
        }
    }

    /// A request that carries its number, on connection 1.
    fn push(&mut self, body: &[u8]) -> Result<(), QueueFull> {
        self.push_request(1, "POST", body)
    }

    fn push_request(
        &mut self,
        connection: u64,
        method: &str,
        body: &[u8],
    ) -> Result<(), QueueFull> {
        let mut request = mirror_wire::fixtures::request(method, &format!("/{}", self.next));
        request.push("Host", "a");
        request.push("Transfer-Encoding", "chunked");
        request.chunked = true;
        request.body = Bytes::copy_from_slice(body);
        let job = Job {
            exchange: ExchangeId(self.next),
            id: Uuid::nil(),
            request,
        };
        self.next += 1;
        self.replay.push(ConnectionId(connection), job)
    }

    async fn accept(&self) -> TcpStream {
        within(self.listener.accept()).await.unwrap().0
    }

    async fn answer(&mut self) -> Answered {
        within(self.answers.recv()).await.unwrap()
    }

    /// The next answer's number, and its status or error.
    async fn outcome(&mut self) -> (u64, Result<u16, ShadowError>) {
        let answered = self.answer().await;
        (
            answered.job.exchange.0,
            answered.shadow.map(|response| response.status),
        )
    }
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT, future)
        .await
        .expect("it happens within 10 s")
}

/// Reads a request whose body is one chunk.
async fn read_request(stream: &mut TcpStream) -> String {
    let mut request = Vec::new();
    while !request.ends_with(b"0\r\n\r\n") {
        let count = within(stream.read_buf(&mut request)).await.unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&request));
    }
    String::from_utf8(request).unwrap()
}

fn expected(number: u64, body: &str) -> String {
    format!(
        "POST /{number} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\
         x-modelmirror-id: {}\r\nx-modelmirror-shadow: 1\r\nx-modelmirror-mark: {}\r\n\r\n\
         {:x}\r\n{body}\r\n0\r\n\r\n",
        Uuid::nil(),
        mark().of(Uuid::nil()),
        body.len()
    )
}

#[tokio::test]
async fn requests_go_in_order_over_one_connection() {
    let mut scene = Scene::new(|_| {}).await;
    scene.push(b"one").unwrap();
    scene.push(b"second").unwrap();
    let mut stream = scene.accept().await;
    assert_eq!(read_request(&mut stream).await, expected(0, "one"));
    // The second one is not sent before the first is answered, in pieces.
    assert_eq!(
        stream.try_read(&mut [0]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
    stream.write_all(&OK[..20]).await.unwrap();
    stream.write_all(&OK[20..]).await.unwrap();
    assert_eq!(read_request(&mut stream).await, expected(1, "second"));
    stream.write_all(OK).await.unwrap();
    for number in [0, 1] {
        let answered = scene.answer().await;
        assert_eq!(answered.job.exchange, ExchangeId(number));
        let response = answered.shadow.unwrap();
        assert_eq!((response.status, &response.body[..]), (200, &b"hi"[..]));
        assert!(answered.written_ns <= response.first_byte_ns);
        assert!(response.first_byte_ns <= response.last_byte_ns);
    }
    assert_eq!(scene.replay.load().retries(), 0);
    // Nobody needs it any longer: a worker of the shadow's may wait for it.
    assert_eq!(within(stream.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test]
async fn a_connection_that_the_shadow_closes_is_opened_again() {
    let mut scene = Scene::new(|_| {}).await;
    for number in 0..3 {
        scene.push(b"x").unwrap();
        let mut stream = scene.accept().await;
        read_request(&mut stream).await;
        let answer = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end";
        stream.write_all(answer).await.unwrap();
        drop(stream);
        let answered = scene.answer().await;
        assert_eq!(answered.job.exchange, ExchangeId(number));
        assert_eq!(answered.shadow.unwrap().body, "until the end");
    }
    assert_eq!(scene.replay.load().retries(), 0);
}

#[tokio::test]
async fn a_kept_connection_that_turns_out_closed_costs_one_retry() {
    let mut scene = Scene::new(|_| {}).await;
    scene.push(b"x").unwrap();
    let mut stream = scene.accept().await;
    read_request(&mut stream).await;
    stream.write_all(OK).await.unwrap();
    assert_eq!(scene.outcome().await, (0, Ok(200)));
    scene.push(b"again").unwrap();
    read_request(&mut stream).await;
    drop(stream);
    let mut stream = scene.accept().await;
    assert_eq!(read_request(&mut stream).await, expected(1, "again"));
    stream.write_all(OK).await.unwrap();
    assert_eq!(scene.outcome().await, (1, Ok(200)));
    assert_eq!(scene.replay.load().retries(), 1);
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_noticed_before_it_is_used() {
    let mut scene = Scene::new(|_| {}).await;
    for number in 0..2 {
        scene.push(b"x").unwrap();
        let mut stream = scene.accept().await;
        read_request(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        assert_eq!(scene.outcome().await, (number, Ok(200)));
        stream.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_fresh_connection_that_ends_is_an_error() {
    let mut scene = Scene::new(|_| {}).await;
    for (number, answer) in [&b""[..], &OK[..OK.len() - 1], b"HTTP/1.1 200"]
        .iter()
        .enumerate()
    {
        scene.push(b"x").unwrap();
        let mut stream = scene.accept().await;
        read_request(&mut stream).await;
        stream.write_all(answer).await.unwrap();
        stream.set_zero_linger().unwrap();
        drop(stream);
        assert_eq!(
            scene.outcome().await,
            (number as u64, Err(ShadowError::Closed))
        );
    }
}

#[tokio::test]
async fn nobody_listening_is_an_error() {
    let mut scene = Scene::new(|_| {}).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    drop(std::mem::replace(&mut scene.listener, closed));
    scene.push(b"x").unwrap();
    assert_eq!(scene.outcome().await, (0, Err(ShadowError::Connect)));
}

#[tokio::test]
async fn nonsense_is_an_error() {
    let mut scene = Scene::new(|service| service.max_body = 100).await;
    let answers: [(&[u8], _); 2] = [
        (b"SSH-2.0-OpenSSH_9.2\r\n", ShadowError::Malformed),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 101\r\n\r\n",
            ShadowError::TooLarge,
        ),
    ];
    for (number, (answer, error)) in answers.into_iter().enumerate() {
        scene.push(b"x").unwrap();
        let mut stream = scene.accept().await;
        read_request(&mut stream).await;
        stream.write_all(answer).await.unwrap();
        assert_eq!(scene.outcome().await, (number as u64, Err(error)));
    }
}

#[tokio::test]
async fn a_black_hole_costs_timeouts_and_a_full_queue() {
    let change = |service: &mut config::ShadowService| {
        service.timeout = Duration::from_millis(20);
        service.queue = 2;
        service.concurrency = 1;
    };
    let mut scene = Scene::new(change).await;
    scene.push(b"a").unwrap();
    scene.push(b"b").unwrap();
    assert!(scene.push(b"c").is_err(), "the queue is full");
    let first = scene.accept().await;
    assert_eq!(scene.outcome().await, (0, Err(ShadowError::Timeout)));
    // What timed out may still be answered: nobody waits for it on that connection.
    let second = scene.accept().await;
    assert_eq!(scene.outcome().await, (1, Err(ShadowError::Timeout)));
    drop((first, second));
    let load = scene.replay.load();
    assert_eq!((load.waiting(), load.active()), (0, 0));
    scene.push(b"d").unwrap();
    let mut third = scene.accept().await;
    read_request(&mut third).await;
    third.write_all(OK).await.unwrap();
    assert_eq!(scene.outcome().await, (3, Ok(200)));
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_is_read() {
    let mut scene = Scene::new(|_| {}).await;
    // More than two sockets hold.
    let large = vec![b'x'; 32 << 20];
    scene.push(&large).unwrap();
    let mut stream = scene.accept().await;
    let answer = b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno";
    stream.write_all(answer).await.unwrap();
    assert_eq!(scene.outcome().await, (0, Ok(413)));
    assert_eq!(scene.memory.used(), 0);
}

#[tokio::test]
async fn a_large_request_may_be_answered_while_it_is_read() {
    let mut scene = Scene::new(|_| {}).await;
    let large = vec![b'x'; 8 << 20];
    scene.push(&large).unwrap();
    let mut stream = scene.accept().await;
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        .await
        .unwrap();
    let request = read_request(&mut stream).await;
    assert!(request.len() > large.len());
    stream.write_all(b"hi").await.unwrap();
    assert_eq!(scene.outcome().await, (0, Ok(200)));
}

#[tokio::test]
async fn answers_without_a_body_end_with_their_head() {
    let mut scene = Scene::new(|_| {}).await;
    let answers: [(&str, &[u8], u16); 3] = [
        (
            "HEAD",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
            200,
        ),
        (
            "POST",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
            204,
        ),
        (
            "POST",
            b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
            304,
        ),
    ];
    for (method, ..) in answers {
        scene.push_request(1, method, b"x").unwrap();
    }
    let mut stream = scene.accept().await;
    for (number, (_, answer, status)) in answers.into_iter().enumerate() {
        read_request(&mut stream).await;
        stream.write_all(answer).await.unwrap();
        assert_eq!(scene.outcome().await, (number as u64, Ok(status)));
    }
}

#[tokio::test]
async fn what_nobody_wants_any_more_is_not_sent() {
    let mut scene = Scene::new(|_| {}).await;
    scene.sink.unwanted.lock().unwrap().insert(ExchangeId(0));
    scene.push(b"lost").unwrap();
    scene.push(b"x").unwrap();
    let mut stream = scene.accept().await;
    assert_eq!(read_request(&mut stream).await, expected(1, "x"));
    stream.write_all(OK).await.unwrap();
    assert_eq!(scene.outcome().await, (1, Ok(200)));
}

#[tokio::test]
async fn draining_sends_what_is_queued() {
    let mut scene = Scene::new(|_| {}).await;
    scene.push(b"x").unwrap();
    scene.push(b"y").unwrap();
    let server = async {
        let mut stream = scene.listener.accept().await.unwrap().0;
        for _ in 0..2 {
            read_request(&mut stream).await;
            stream.write_all(OK).await.unwrap();
        }
    };
    within(async { tokio::join!(scene.replay.drain(WAIT), server) }).await;
    assert_eq!(
        scene.answers.recv().await.unwrap().job.exchange,
        ExchangeId(0)
    );
    assert_eq!(
        scene.answers.recv().await.unwrap().job.exchange,
        ExchangeId(1)
    );
}

#[tokio::test]
async fn large_bodies_move_by_turns() {
    /// What is moved at once, as the connection has it.
    const TURN: usize = 128 << 10;
    const BODY: usize = 4 << 20;
    let scene = Scene::new(|_| {}).await;
    let target = Target {
        memory: Memory::new(2 * BODY),
        ..Arc::into_inner(scene.replay.target).unwrap()
    };
    let (socket, waited) = target
        .sockets
        .open(target.address, target.deadline())
        .await
        .unwrap();
    assert!(!waited);
    let mut connection = Connection::new(socket);
    let mut stream = within(scene.listener.accept()).await.unwrap().0;
    let server = tokio::spawn(async move {
        stream.read_exact(&mut vec![0; BODY]).await.unwrap();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![0; BODY]).await.unwrap();
        stream
    });
    let mut request = mirror_wire::fixtures::request("POST", "/");
    request.body = vec![b'x'; BODY].into();
    let stamp = Stamp {
        id: Uuid::nil(),
        mark: String::new(),
    };
    let request = wire::encode(&request, &stamp, None, &[]);
    let mut polls = 0;
    let mut exchange = std::pin::pin!(connection.exchange(&target, "POST", &request, None));
    let counted = std::future::poll_fn(|context| {
        polls += 1;
        exchange.as_mut().poll(context)
    });
    let answer = within(counted).await.unwrap();
    assert_eq!(answer.response.body.len(), BODY);
    assert!(polls >= 2 * BODY / TURN, "{polls}");
    server.await.unwrap();
}

/// A request that finds every place taken is told from one that is asked at once.
#[tokio::test]
async fn who_waits_for_a_place_is_known() {
    let mut scene = Scene::new(|service| service.concurrency = 1).await;
    scene.push(b"first").unwrap();
    let mut first = scene.accept().await;
    read_request(&mut first).await;
    // On a connection of its own, while the only place is taken.
    scene.push_request(2, "POST", b"other").unwrap();
    let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
    first.write_all(reply).await.unwrap();
    let answered = scene.answer().await;
    assert!(!answered.job.request.saturated);
    // Over the connection that the first one has left.
    read_request(&mut first).await;
    first.write_all(reply).await.unwrap();
    let answered = scene.answer().await;
    assert_eq!(answered.job.exchange, ExchangeId(1));
    assert!(answered.job.request.saturated);
}

/// A server that answers `workers` connections at a time, whole ones, as threaded servers do. Returns how many
/// connections it has had.
fn threaded(listener: TcpListener, workers: usize) -> Arc<AtomicUsize> {
    let (accepted, listener) = (Arc::new(AtomicUsize::new(0)), Arc::new(listener));
    for _ in 0..workers {
        let (accepted, listener) = (Arc::clone(&accepted), Arc::clone(&listener));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                accepted.fetch_add(1, Ordering::Relaxed);
                let mut request = Vec::new();
                while let Ok(1..) = stream.read_buf(&mut request).await {
                    if request.ends_with(b"0\r\n\r\n") {
                        request.clear();
                        let _ = stream.write_all(OK).await;
                    }
                }
            }
        });
    }
    accepted
}

impl Scene {
    /// Each of so many connections sends one request; all are answered.
    async fn ask_from(&mut self, connections: u64) {
        for connection in 0..connections {
            self.push_request(connection, "POST", b"x").unwrap();
        }
        for _ in 0..connections {
            assert_eq!(self.outcome().await.1, Ok(200));
        }
    }

    fn take_listener(&mut self) -> TcpListener {
        let std = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std.set_nonblocking(true).unwrap();
        std::mem::replace(&mut self.listener, TcpListener::from_std(std).unwrap())
    }
}

#[tokio::test]
async fn connections_are_as_many_as_requests_at_once() {
    let mut scene = Scene::new(|service| service.concurrency = 4).await;
    let accepted = threaded(scene.take_listener(), 100);
    for _ in 0..3 {
        scene.ask_from(100).await;
    }
    let accepted = accepted.load(Ordering::Relaxed);
    assert!((1..=4).contains(&accepted), "{accepted}");
    assert_eq!(scene.replay.load().retries(), 0);
}

/// Eight workers, 64 requests at once, two thousand clients: none is left waiting for a connection that rests.
#[tokio::test]
async fn a_server_with_few_workers_is_not_starved() {
    let mut scene = Scene::new(|service| {
        service.timeout = Duration::from_secs(2);
        service.queue = 2_000;
    })
    .await;
    threaded(scene.take_listener(), 8);
    scene.ask_from(2_000).await;
    // And those that rest do not keep another burst from its workers.
    scene.ask_from(64).await;
}

#[tokio::test]
async fn what_rests_gives_way_to_who_has_no_place() {
    let mut scene = Scene::new(|service| service.concurrency = 2).await;
    let target = Arc::get_mut(&mut scene.replay.target).unwrap();
    target.sockets = Sockets::new(1);
    let sockets = target.sockets.clone();
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (socket, _) = sockets
        .open(
            other.local_addr().unwrap(),
            tokio::time::Instant::now() + WAIT,
        )
        .await
        .unwrap();
    scene.push(b"x").unwrap();
    tokio::task::yield_now().await;
    // Another service is done with the only place, and would keep it.
    sockets.put(other.local_addr().unwrap(), Connection::new(socket));
    let mut stream = scene.accept().await;
    read_request(&mut stream).await;
    stream.write_all(OK).await.unwrap();
    assert_eq!(scene.outcome().await, (0, Ok(200)));
}
