//! A server that breaks HTTP's promises, or its clients' hopes, and writes down whom it did that to.

use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::namespace::Namespace;

/// Names a request; see [`Misbehaving::asked`].
pub const NUMBER: &str = "x-number";

/// What a good answer's body is.
const BODY: &[u8] = &[b'a'; 300];

/// How a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Well,
    /// With this status, and a body.
    Status(u16),
    /// 200, and nothing.
    Empty,
    /// Two chunks, and the end of the connection.
    CutChunks,
    /// One byte of a hundred, and the end of the connection.
    CutLength,
    /// One request in so many gets the end of the connection.
    Closes(u64),
    /// One request in so many gets nothing.
    Silent(u64),
    /// The head, and nothing more.
    HeadOnly,
    /// The head at once, the body so much later.
    LateBody(Duration),
    /// Five chunks, each so much after the one before.
    SlowChunks(Duration),
    /// 200, and a body that says that it is none.
    SaysError,
    /// Bytes that are no HTTP.
    Garbage,
    /// HTTP/2, as far as anybody can see who does not read it.
    Http2,
}

#[derive(Debug)]
struct State {
    manner: Mutex<Manner>,
    asked: Mutex<BTreeSet<u64>>,
    count: AtomicU64,
    over: AtomicBool,
}

/// The server; it ends when it is dropped, and its connections when their clients go.
#[derive(Debug)]
pub struct Misbehaving {
    address: SocketAddr,
    namespace: Namespace,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Misbehaving {
    /// Starts one inside a namespace.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(namespace: &Namespace, listen: SocketAddr, manner: Manner) -> Result<Self> {
        let listener = namespace
            .run(|| TcpListener::bind(listen))
            .with_context(|| format!("cannot listen on {listen}"))?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            manner: Mutex::new(manner),
            asked: Mutex::default(),
            count: AtomicU64::new(0),
            over: AtomicBool::new(false),
        });
        let serving = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if serving.over.load(Ordering::Relaxed) {
                    return;
                }
                let state = Arc::clone(&serving);
                // An error is the end of the connection, on purpose or by the client.
                std::thread::spawn(move || serve(stream, &state));
            }
        });
        Ok(Self {
            address,
            namespace: namespace.clone(),
            state,
            thread: Some(thread),
        })
    }

    /// Changes how it answers from the next request on.
    pub fn set(&self, manner: Manner) {
        *lock(&self.state.manner) = manner;
    }

    /// The numbers of the requests that it was asked.
    pub fn asked(&self) -> BTreeSet<u64> {
        lock(&self.state.asked).clone()
    }
}

impl Drop for Misbehaving {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::Relaxed);
        // Whoever comes last opens the door to leave by.
        let port = self.address.port();
        let opened = self
            .namespace
            .run(|| TcpStream::connect((std::net::Ipv4Addr::LOCALHOST, port)));
        if let (Ok(_), Some(thread)) = (opened, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(stream: TcpStream, state: &State) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let Some(number) = read_request(&mut reader)? else {
            return Ok(());
        };
        lock(&state.asked).insert(number);
        let manner = *lock(&state.manner);
        let count = state.count.fetch_add(1, Ordering::Relaxed);
        if !answer(&stream, manner, count)? {
            stream.shutdown(Shutdown::Write)?;
            // What the client still sends has to be read, or the end would be a reset.
            return reader.read_to_end(&mut Vec::new()).map(drop);
        }
    }
}

/// The number of the next request; nothing where there is none.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<u64>> {
    let (mut number, mut length) = (0, 0);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ") {
            let value = value.parse().unwrap_or(0);
            if name.eq_ignore_ascii_case(NUMBER) {
                number = value;
            } else if name.eq_ignore_ascii_case("content-length") {
                length = value;
            }
        }
    }
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(Some(number))
}

/// Whether the connection goes on.
fn answer(mut stream: &TcpStream, manner: Manner, count: u64) -> io::Result<bool> {
    let with_length =
        |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
    let mut say = |bytes: &[u8]| stream.write_all(bytes);
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunk = [b"3c\r\n", &[b'a'; 60][..], b"\r\n"].concat();
    let well = [with_length(BODY.len()).as_bytes(), BODY].concat();
    match manner {
        Manner::Closes(one_in) if count.is_multiple_of(one_in) => return Ok(false),
        Manner::Silent(one_in) if count.is_multiple_of(one_in) => {}
        Manner::Well | Manner::Closes(_) | Manner::Silent(_) => say(&well)?,
        Manner::Status(status) => {
            let length = BODY.len();
            let head =
                format!("HTTP/1.1 {status} x\r\nlocation: /x\r\ncontent-length: {length}\r\n\r\n");
            say(&[head.as_bytes(), BODY].concat())?;
        }
        Manner::Empty => say(with_length(0).as_bytes())?,
        Manner::CutChunks => {
            say(chunked)?;
            say(&chunk.repeat(2))?;
            return Ok(false);
        }
        Manner::CutLength => {
            say(with_length(100).as_bytes())?;
            say(b"a")?;
            return Ok(false);
        }
        Manner::HeadOnly => say(with_length(100).as_bytes())?,
        Manner::LateBody(late) => {
            say(with_length(BODY.len()).as_bytes())?;
            std::thread::sleep(late);
            say(BODY)?;
        }
        Manner::SlowChunks(pause) => {
            say(chunked)?;
            for number in 0..5 {
                if number > 0 {
                    std::thread::sleep(pause);
                }
                say(&chunk)?;
            }
            say(b"0\r\n\r\n")?;
        }
        Manner::SaysError => {
            let body = r#"{"error": "CUDA out of memory"}"#;
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            say(head.as_bytes())?;
        }
        Manner::Garbage => say(b"CUDA out of memory\r\n\r\n")?,
        // A SETTINGS frame, and what may be anything (RFC 9113, section 6.5).
        Manner::Http2 => say(&[&[0, 0, 0, 4, 0, 0, 0, 0, 0][..], BODY].concat())?,
    }
    Ok(true)
}
