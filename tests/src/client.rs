//! A client that knows what it must be answered, and checks every byte of it.

use std::io::{self, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Socket, Type};

use crate::answers::{Answers, sha256};
use crate::namespace::Namespace;

mod counted;
mod request;
mod response;

use counted::Counted;
pub use request::{Framing, Request};
pub use response::Response;
pub(crate) use response::read_response;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a connection of [`Client::load_while`] rests after an answer.
const PAUSE: Duration = Duration::from_millis(5);

/// A request and its answer, both as the client knows them.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The request's `x-request-id`, unique in the process.
    pub id: String,
    /// Counts the load's connections from 0.
    pub connection: usize,
    /// The client's end of the connection.
    pub local: SocketAddr,
    /// The request.
    pub request: Request,
    /// The request body's hash, in hexadecimal.
    pub request_sha256: String,
    /// Where the request stands among the bytes that the client sent over the connection.
    pub request_span: Range<u64>,
    /// Where the answer, an interim one included, stands among the bytes that came back.
    pub answer_span: Range<u64>,
    /// The answer's status.
    pub status: u16,
    /// The answer's headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// How long the answer's body was.
    pub body_bytes: usize,
    /// The answer body's hash, in hexadecimal.
    pub body_sha256: String,
    /// From the first byte sent to the last one received.
    pub latency: Duration,
}

/// Where to send, and what must come back.
#[derive(Clone, Debug)]
pub struct Client {
    namespace: Namespace,
    server: SocketAddr,
    answers: Option<Answers>,
    source: Option<IpAddr>,
}

impl Client {
    /// A client inside a namespace, of a server that answers so.
    pub fn new(namespace: &Namespace, server: SocketAddr, answers: &Answers) -> Self {
        Self {
            namespace: namespace.clone(),
            server,
            answers: Some(answers.clone()),
            source: None,
        }
    }

    /// The same client at another of its host's addresses.
    pub fn from(&self, source: IpAddr) -> Self {
        Self {
            source: Some(source),
            ..self.clone()
        }
    }

    /// A client of any server: its answers are not checked.
    pub fn of_any(namespace: &Namespace, server: SocketAddr) -> Self {
        Self {
            namespace: namespace.clone(),
            server,
            answers: None,
            source: None,
        }
    }

    /// Opens a connection.
    ///
    /// # Errors
    /// When the server does not take it.
    pub fn connect(&self) -> Result<Connection> {
        let stream = self
            .namespace
            .run(|| self.open())
            .with_context(|| format!("cannot connect to {}", self.server))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Connection {
            number: 0,
            local: stream.local_addr()?,
            server: self.server,
            answers: self.answers.clone(),
            reader: Counted::new(BufReader::new(stream.try_clone()?)),
            stream,
            sent: 0,
        })
    }

    fn open(&self) -> io::Result<TcpStream> {
        let Some(source) = self.source else {
            return TcpStream::connect_timeout(&self.server, PATIENCE);
        };
        let socket = Socket::new(Domain::for_address(self.server), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(source, 0).into())?;
        socket.connect_timeout(&self.server.into(), PATIENCE)?;
        Ok(socket.into())
    }

    /// Sends `requests` requests one after another over each of `connections` connections at once.
    /// `make` is asked for each, by the numbers of its connection and of the request in it. Returns
    /// all exchanges, in the order of connections and then of requests.
    ///
    /// # Errors
    /// When any request fails, or any answer is not what it must be, to the byte.
    pub fn load(
        &self,
        connections: usize,
        requests: usize,
        make: impl Fn(usize, usize) -> Request + Sync,
    ) -> Result<Vec<Exchange>> {
        self.load_in_turn(connections, connections, requests, make)
    }

    /// [`Client::load`], with only `width` of the connections open at once: each thread opens the
    /// next one when it has closed its last.
    ///
    /// # Errors
    /// As [`Client::load`].
    pub fn load_in_turn(
        &self,
        width: usize,
        connections: usize,
        requests: usize,
        make: impl Fn(usize, usize) -> Request + Sync,
    ) -> Result<Vec<Exchange>> {
        let (next, make) = (&AtomicUsize::new(0), &make);
        let one = |number: usize| -> Result<Vec<Exchange>> {
            let mut connection = self.connect()?;
            connection.number = number;
            (0..requests)
                .map(|index| {
                    let exchange = connection.exchange(&make(number, index));
                    exchange.with_context(|| format!("connection {number}, request {index}"))
                })
                .collect()
        };
        let in_turn = |_| -> Result<Vec<Exchange>> {
            let numbers = std::iter::repeat_with(|| next.fetch_add(1, Ordering::Relaxed));
            let numbers = numbers.take_while(|&number| number < connections);
            Ok(numbers.map(one).collect::<Result<Vec<_>>>()?.concat())
        };
        let mut exchanges = self.at_once(width, in_turn)?;
        exchanges.sort_by_key(|exchange| exchange.connection);
        Ok(exchanges)
    }

    /// Runs `during` while requests go over `connections` connections at once, which are closed and
    /// opened anew after every `lifetime` requests. `make` is asked for each request, by the
    /// numbers of its connection and of the request in it. Returns all exchanges.
    ///
    /// # Errors
    /// As [`Client::load`].
    pub fn load_while(
        &self,
        connections: usize,
        lifetime: usize,
        make: impl Fn(usize, usize) -> Request + Sync,
        during: impl FnOnce(),
    ) -> Result<Vec<Exchange>> {
        let over = AtomicBool::new(false);
        let next = AtomicUsize::new(0);
        let (over, next, make) = (&over, &next, &make);
        let one = |_| -> Result<Vec<Exchange>> {
            let mut exchanges = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let mut connection = self.connect()?;
                connection.number = number;
                for index in 0..lifetime {
                    let exchange = connection.exchange(&make(number, index));
                    exchanges.push(exchange.with_context(|| format!("connection {number}"))?);
                    // A load that two cores bear beside everything else.
                    std::thread::sleep(PAUSE);
                }
            }
            Ok(exchanges)
        };
        std::thread::scope(|scope| {
            let load = scope.spawn(move || self.at_once(connections, one));
            // Also when it panics, the load has to end.
            let stop = Stop(over);
            during();
            drop(stop);
            load.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn at_once(
        &self,
        connections: usize,
        one: impl Fn(usize) -> Result<Vec<Exchange>> + Sync,
    ) -> Result<Vec<Exchange>> {
        let one = &one;
        let all: Result<Vec<Vec<Exchange>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..connections)
                .map(|number| scope.spawn(move || one(number)))
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                })
                .collect()
        });
        Ok(all?.concat())
    }
}

/// Ends a load.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One connection; requests go over it one after another, or piled up.
#[derive(Debug)]
pub struct Connection {
    number: usize,
    local: SocketAddr,
    server: SocketAddr,
    answers: Option<Answers>,
    stream: TcpStream,
    reader: Counted<BufReader<TcpStream>>,
    /// Bytes sent so far.
    sent: u64,
}

/// A request that is half sent.
#[derive(Debug)]
pub struct Begun {
    request: Request,
    pending: Pending,
    rest: Vec<u8>,
}

/// A request on its way.
#[derive(Debug)]
struct Pending {
    id: String,
    start: Instant,
    span: Range<u64>,
    /// Where its answer begins.
    answered_from: u64,
}

impl Connection {
    /// The client's end.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// How many bytes came back so far.
    pub fn received(&self) -> u64 {
        self.reader.count()
    }

    /// The socket, for what a test does to it below HTTP.
    pub fn stream(&mut self) -> &mut TcpStream {
        &mut self.stream
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// When it fails, or the answer is not what it must be.
    pub fn exchange(&mut self, request: &Request) -> Result<Exchange> {
        let pending = self.send(request)?;
        self.receive(request, pending)
    }

    /// Sends a request and returns its answer, whatever that is.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&mut self, request: &Request) -> Result<Response> {
        self.send(request)?;
        read_response(&mut self.reader, request.method == "HEAD")
    }

    /// Sends all requests before it reads the first answer (pipelining). They must fit the
    /// sockets' buffers.
    ///
    /// # Errors
    /// When one fails, or an answer is not what it must be.
    pub fn pipeline(&mut self, requests: &[Request]) -> Result<Vec<Exchange>> {
        let (start, mut bytes, mut waiting) = (Instant::now(), Vec::new(), Vec::new());
        for request in requests {
            let (id, from) = (next_id(), bytes.len() as u64);
            bytes.extend(request.head(self.server, &id));
            bytes.extend(request.framed_body());
            waiting.push(Pending {
                id,
                start,
                span: self.sent + from..self.sent + bytes.len() as u64,
                answered_from: 0,
            });
        }
        self.write(&bytes)?;
        let pairs = requests.iter().zip(waiting);
        pairs
            .map(|(request, mut pending)| {
                pending.answered_from = self.reader.count();
                self.receive(request, pending)
            })
            .collect()
    }

    /// Sends a request, but only the first `length` bytes of its body; [`finish`](Self::finish)
    /// sends the others.
    ///
    /// # Errors
    /// When it fails.
    pub fn begin(&mut self, request: &Request, length: usize) -> Result<Begun> {
        let (from, answered_from) = (self.sent, self.reader.count());
        let (id, start) = (next_id(), Instant::now());
        let mut rest = request.framed_body();
        let mut first = request.head(self.server, &id);
        first.extend(rest.drain(..length));
        self.write(&first)?;
        let span = from..self.sent + rest.len() as u64;
        Ok(Begun {
            request: request.clone(),
            pending: Pending {
                id,
                start,
                span,
                answered_from,
            },
            rest,
        })
    }

    /// Sends the rest of a request, and reads its answer.
    ///
    /// # Errors
    /// When it fails, or the answer is not what it must be.
    pub fn finish(&mut self, begun: Begun) -> Result<Exchange> {
        self.write(&begun.rest)?;
        self.receive(&begun.request, begun.pending)
    }

    /// Sends a request, and stays for its interim answer where it asks for one.
    fn send(&mut self, request: &Request) -> Result<Pending> {
        let (id, start) = (next_id(), Instant::now());
        let (from, answered_from) = (self.sent, self.reader.count());
        let mut bytes = request.head(self.server, &id);
        if request.waits_for_continue() {
            self.write(&bytes)?;
            let interim = read_response(&mut self.reader, false).context("waiting for 100")?;
            ensure!(
                interim.status == 100,
                "{} where 100 Continue is expected",
                interim.status
            );
            bytes.clear();
        }
        bytes.extend(request.framed_body());
        self.write(&bytes)?;
        Ok(Pending {
            id,
            start,
            span: from..self.sent,
            answered_from,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sent += bytes.len() as u64;
        self.stream.write_all(bytes).context("cannot send")
    }

    fn receive(&mut self, request: &Request, pending: Pending) -> Result<Exchange> {
        let id = pending.id;
        let head = request.method == "HEAD";
        let response = read_response(&mut self.reader, head)
            .with_context(|| format!("no answer to {} {} ({id})", request.method, request.path))?;
        let latency = pending.start.elapsed();
        self.verify(request, &response)
            .with_context(|| format!("{} {} ({id})", request.method, request.path))?;
        Ok(Exchange {
            id,
            connection: self.number,
            local: self.local,
            request_sha256: sha256(&request.body),
            request_span: pending.span,
            answer_span: pending.answered_from..self.reader.count(),
            request: request.clone(),
            status: response.status,
            headers: response.headers,
            body_bytes: response.body.len(),
            body_sha256: sha256(&response.body),
            latency,
        })
    }

    fn verify(&self, request: &Request, response: &Response) -> Result<()> {
        let Some(answers) = &self.answers else {
            return Ok(());
        };
        let expected = answers.to(&request.path, &request.body);
        ensure!(
            response.status == expected.status,
            "status {}, not {}",
            response.status,
            expected.status
        );
        let empty = request.method == "HEAD" || matches!(expected.status, 204 | 304);
        let body: &[u8] = if empty { &[] } else { &expected.body };
        ensure!(
            response.body == body,
            "a body of {} bytes that is not the {} expected: they differ from byte {} on",
            response.body.len(),
            body.len(),
            response
                .body
                .iter()
                .zip(body)
                .take_while(|(a, b)| a == b)
                .count()
        );
        Ok(())
    }
}

/// A name that no other request of this process has.
fn next_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// One GET without expectations, inside a namespace: status and body.
pub(crate) fn get(namespace: &Namespace, server: SocketAddr, path: &str) -> Result<(u16, String)> {
    ask(namespace, server, Request::get(path))
}

/// One request without expectations, on a connection of its own: status and body of the answer.
pub(crate) fn ask(
    namespace: &Namespace,
    server: SocketAddr,
    request: Request,
) -> Result<(u16, String)> {
    let mut stream = namespace.run(|| TcpStream::connect_timeout(&server, PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let request = request.header("connection", "close");
    stream.write_all(&request.head(server, "get"))?;
    let response = read_response(&mut BufReader::new(stream), false)?;
    Ok((
        response.status,
        String::from_utf8_lossy(&response.body).into_owned(),
    ))
}
