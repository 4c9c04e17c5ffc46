//! An agent that says that it has seen more than there was: a real one, behind somebody who changes its summary.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::relay::{TURN, pass_on};

/// Stands in front of an agent without keys.
#[derive(Debug)]
pub struct Liar {
    lies: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    /// Starts one inside a namespace, at `listen`, in front of the agent at `agent`. It tells the truth until it
    /// [`lies`](Self::lies).
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(namespace: &Namespace, listen: SocketAddr, agent: SocketAddr) -> Result<Self> {
        let callers = namespace
            .run(|| TcpListener::bind(listen))
            .with_context(|| format!("the liar cannot listen on {listen}"))?;
        callers.set_nonblocking(true)?;
        let (lies, stop) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let thread = {
            let (lies, stop, namespace) = (Arc::clone(&lies), Arc::clone(&stop), namespace.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match callers.accept() {
                        // One that breaks off is its caller's business.
                        Ok((caller, _)) => drop(serve(&namespace, caller, agent, &lies)),
                        Err(_) => std::thread::sleep(TURN),
                    }
                }
            })
        };
        Ok(Self {
            lies,
            stop,
            thread: Some(thread),
        })
    }

    /// From now on each service has seen a million times as many requests of the node's.
    pub fn lies(&self) {
        self.lies.store(true, Ordering::Relaxed);
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    namespace: &Namespace,
    caller: TcpStream,
    agent: SocketAddr,
    lies: &AtomicBool,
) -> io::Result<()> {
    caller.set_nonblocking(false)?;
    let mut first = [0; 4];
    while caller.peek(&mut first)? < first.len() {
        std::thread::yield_now();
    }
    if first != *b"GET " {
        return pass_on(namespace, caller, agent);
    }
    let agent = namespace.run(|| TcpStream::connect(agent))?;
    answer(&caller, &agent, lies.load(Ordering::Relaxed))
}

/// Asks the agent what the caller asks, and hands the answer on.
fn answer(mut caller: &TcpStream, mut agent: &TcpStream, lies: bool) -> io::Result<()> {
    let (question, _) = head(&mut BufReader::new(caller))?;
    agent.write_all(&question)?;
    let mut answer = BufReader::new(agent);
    let (_, length) = head(&mut answer)?;
    let mut body = vec![0; length];
    answer.read_exact(&mut body)?;
    if lies {
        body = inflated(&body).map_err(io::Error::other)?;
    }
    let length = body.len();
    write!(
        caller,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    )?;
    caller.write_all(&body)
}

/// A message's head, and how long its body is.
fn head(from: &mut impl io::BufRead) -> io::Result<(Vec<u8>, usize)> {
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        from.read_until(b'\n', &mut line)?;
        let text = String::from_utf8_lossy(&line).to_ascii_lowercase();
        if let Some(value) = text.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
        head.extend_from_slice(&line);
        if matches!(&*line, b"\r\n" | b"") {
            return Ok((head, length));
        }
    }
}

fn inflated(summary: &[u8]) -> serde_json::Result<Vec<u8>> {
    let mut summary: Value = serde_json::from_slice(summary)?;
    for service in summary["services"].as_array_mut().into_iter().flatten() {
        let seen = &mut service["of_this_node"]["seen"];
        *seen = (seen.as_u64().unwrap_or_default() + 1)
            .saturating_mul(1_000_000)
            .into();
    }
    serde_json::to_vec(&summary)
}
