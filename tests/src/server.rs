//! An HTTP server that answers as told, and writes down every request.

use std::collections::hash_map::RandomState;
use std::convert::Infallible;
use std::hash::BuildHasher as _;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TRAILER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::answers::{Answer, Answers, sha256};
use crate::namespace::Namespace;

/// How long a body is kept whole; of a longer one only the hash.
const KEPT_BODY: usize = 1 << 20;

/// How many bytes a chunk has.
const CHUNK: usize = 1000;

/// How a server feels about answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It answers.
    Answer,
    /// It answers so much later.
    Late(Duration),
    /// One request in so many gets a 500.
    Fails(u64),
    /// One answer in so many, by chance, is one to another request: it disagrees with itself.
    Noisy(u64),
    /// It takes requests and never answers.
    Silent,
    /// It resets every connection, old ones at their next request.
    Reset,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Counts the server's connections from 0.
    pub connection: u64,
    /// The connection's other end; an IPv4 one as such, also at a dual-stack listener.
    pub peer: SocketAddr,
    /// When its body was complete.
    pub at: Instant,
    /// GET, POST and so on.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// All headers, names in lower case.
    pub headers: HeaderMap,
    /// How long the body was.
    pub body_bytes: usize,
    /// The body's hash, in hexadecimal.
    pub body_sha256: String,
    /// The body, up to 1 MiB; empty when it was longer.
    pub body: Bytes,
    /// What came after a chunked body.
    pub trailers: HeaderMap,
}

impl Received {
    /// A header's value; empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    }

    /// The client's own name for the request, `x-request-id`.
    pub fn id(&self) -> &str {
        self.header("x-request-id")
    }
}

#[derive(Debug)]
struct State {
    answers: Answers,
    mood: Mutex<Mood>,
    received: Mutex<Vec<Received>>,
    connections: AtomicU64,
    failing: AtomicU64,
}

/// A server on a thread of its own, stopped when dropped.
#[derive(Debug)]
pub struct Server {
    namespace: Namespace,
    address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one inside a namespace; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(namespace: &Namespace, listen: SocketAddr, answers: &Answers) -> Result<Self> {
        let listener = namespace
            .run(|| TcpListener::bind(listen))
            .with_context(|| format!("{}: cannot listen on {listen}", namespace.name()))?;
        Self::on(namespace, listener, answers)
    }

    /// Starts one that accepts from `listener`, which a test has made inside the namespace.
    ///
    /// # Errors
    /// When the listener is of no use.
    pub fn on(namespace: &Namespace, listener: TcpListener, answers: &Answers) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let state = State::new(answers);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = serve(listener, Arc::clone(&state));
        // The listener stays in its namespace, and so do the connections that it accepts.
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    result = serving => if let Err(error) = result {
                        eprintln!("test server {address}: {error}");
                    },
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            namespace: namespace.clone(),
            address,
            state,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The host that it is on.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How it answers.
    pub fn answers(&self) -> &Answers {
        &self.state.answers
    }

    /// Every request so far, in the order in which they were complete.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.state.received).clone()
    }

    /// How many connections it has accepted so far.
    pub fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::Relaxed)
    }

    /// Changes its mood from the next request on.
    pub fn set_mood(&self, mood: Mood) {
        *lock(&self.state.mood) = mood;
    }
}

/// Serves at a listener until the process ends.
///
/// # Errors
/// When nobody can be accepted.
pub fn serve_alone(listener: TcpListener, answers: &Answers) -> Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(listener, State::new(answers)))
}

impl State {
    fn new(answers: &Answers) -> Arc<Self> {
        Arc::new(Self {
            answers: answers.clone(),
            mood: Mutex::new(Mood::Answer),
            received: Mutex::default(),
            connections: AtomicU64::new(0),
            failing: AtomicU64::new(0),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // Fails only when the thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A test's server may have panicked while it held the lock; what it wrote is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, state: Arc<State>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, peer) = listener.accept().await?;
        let connection = state.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(serve_connection(
            stream,
            peer,
            connection,
            Arc::clone(&state),
        ));
    }
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, number: u64, state: Arc<State>) {
    // Closing then sends a reset, which is what `Mood::Reset` is about.
    let reset = |stream: &TcpStream| SockRef::from(stream).set_linger(Some(Duration::ZERO));
    if *lock(&state.mood) == Mood::Reset {
        let _ = reset(&stream);
        return;
    }
    let _ = stream.set_nodelay(true);
    let Ok(duplicate) = SockRef::from(&stream).try_clone() else {
        return;
    };
    let service = service_fn(|request| {
        let state = Arc::clone(&state);
        let duplicate = &duplicate;
        async move {
            let response = respond(request, peer, number, &state).await;
            if response.is_err() {
                let _ = duplicate.set_linger(Some(Duration::ZERO));
            }
            response
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.half_close(true).pipeline_flush(true);
    // An error here is a client that went away, which the client knows best.
    let _ = http.serve_connection(TokioIo::new(stream), service).await;
}

type Body = BoxBody<Bytes, Infallible>;

async fn respond(
    request: Request<Incoming>,
    peer: SocketAddr,
    connection: u64,
    state: &State,
) -> Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned().unwrap_or_default();
    let body = body.to_bytes();
    let path = head
        .uri
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    let resets = path == "/reset";
    let mood = *lock(&state.mood);
    let mut answer = match mood {
        Mood::Noisy(one_in) if by_chance().is_multiple_of(one_in) => {
            let other = [&body[..], &by_chance().to_le_bytes()].concat();
            state.answers.to(&path, &other)
        }
        _ => state.answers.to(&path, &body),
    };
    lock(&state.received).push(Received {
        connection,
        peer: SocketAddr::new(peer.ip().to_canonical(), peer.port()),
        at: Instant::now(),
        method: head.method.to_string(),
        path,
        headers: head.headers,
        body_bytes: body.len(),
        body_sha256: sha256(&body),
        body: if body.len() <= KEPT_BODY {
            body
        } else {
            Bytes::new()
        },
        trailers,
    });
    if resets {
        anyhow::bail!("reset, as asked");
    }
    match mood {
        Mood::Answer | Mood::Noisy(_) => {}
        Mood::Late(delay) => tokio::time::sleep(delay).await,
        Mood::Fails(one_in) => {
            if state
                .failing
                .fetch_add(1, Ordering::Relaxed)
                .is_multiple_of(one_in)
            {
                answer.status = 500;
            }
        }
        Mood::Silent => std::future::pending().await,
        Mood::Reset => anyhow::bail!("reset, as told"),
    }
    tokio::time::sleep(answer.delay).await;
    response(answer)
}

/// Another number each time.
fn by_chance() -> u64 {
    RandomState::new().hash_one(())
}

fn response(answer: Answer) -> Result<Response<Body>> {
    let response = Response::builder().status(StatusCode::from_u16(answer.status)?);
    if answer.status == 204 || answer.status == 304 {
        return Ok(response.body(Full::default().boxed())?);
    }
    let json = answer.body.starts_with(b"{");
    let kind = if json {
        "application/json"
    } else {
        "application/octet-stream"
    };
    let response = response.header(CONTENT_TYPE, kind);
    if !answer.chunked {
        return Ok(response.body(Full::from(answer.body).boxed())?);
    }
    let trailer = HeaderValue::from_str(&sha256(&answer.body))?;
    let chunks: Vec<_> = answer
        .body
        .chunks(CHUNK)
        .map(|chunk| Frame::data(Bytes::copy_from_slice(chunk)))
        .chain([Frame::trailers(HeaderMap::from_iter([(SUM, trailer)]))])
        .map(Ok)
        .collect();
    let body = StreamBody::new(futures_util::stream::iter(chunks));
    Ok(response.header(TRAILER, SUM).body(body.boxed())?)
}

/// The trailer of a chunked answer: its body's hash.
const SUM: hyper::header::HeaderName = hyper::header::HeaderName::from_static("x-sum");
