//! A lossy way to the agent that remembers what it lost.

use std::collections::HashMap;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use mirror_common::packet::{self, Link, SYN};
use mirror_common::tunnel::{self, Datagram, Direction};
use nix::sys::socket::{setsockopt, sockopt};

use crate::client::Exchange;
use crate::namespace::Namespace;

/// How often a thread looks whether it should stop.
pub(crate) const TURN: Duration = Duration::from_millis(50);

/// What passed, or did not, of one direction of a connection.
#[derive(Clone, Debug, Default)]
struct Stream {
    /// Sequence number of the first payload byte.
    origin: Option<u32>,
    /// Payload that was passed on, by sequence number and length.
    passed: Vec<(u32, u32)>,
    /// Payload that was lost.
    lost: Vec<(u32, u32)>,
}

/// What a relay has lost.
#[derive(Clone, Debug, Default)]
pub struct Loss {
    /// Copies that arrived at the relay.
    pub copies: u64,
    /// Copies among them that it lost.
    pub lost: u64,
    streams: HashMap<(SocketAddr, Direction), Stream>,
}

impl Loss {
    /// Whether a byte of the request, or of its answer, was lost for good.
    pub fn touches(&self, exchange: &Exchange) -> bool {
        self.touches_request(exchange) || self.touches_answer(exchange)
    }

    /// Whether a byte of the request was.
    pub fn touches_request(&self, exchange: &Exchange) -> bool {
        self.misses(exchange, Direction::Request, &exchange.request_span)
    }

    /// Whether a byte of the answer was.
    pub fn touches_answer(&self, exchange: &Exchange) -> bool {
        self.misses(exchange, Direction::Response, &exchange.answer_span)
    }

    /// Whether not one byte of it has reached the agent.
    pub fn hides(&self, exchange: &Exchange) -> bool {
        let stream = self.streams.get(&(exchange.local, Direction::Request));
        let hidden = stream.is_none_or(|stream| stream.hides(&exchange.request_span));
        hidden && self.hides_answer(exchange)
    }

    /// Whether not one byte of the answer has.
    pub fn hides_answer(&self, exchange: &Exchange) -> bool {
        let stream = self.streams.get(&(exchange.local, Direction::Response));
        stream.is_none_or(|stream| stream.hides(&exchange.answer_span))
    }

    fn misses(&self, exchange: &Exchange, direction: Direction, span: &Range<u64>) -> bool {
        let stream = self.streams.get(&(exchange.local, direction));
        stream.is_some_and(|stream| stream.misses(span))
    }

    /// What was lost of the exchange's connection, for messages: in each direction, where.
    pub fn of_connection(&self, exchange: &Exchange) -> String {
        let mut text = String::new();
        for direction in [Direction::Request, Direction::Response] {
            let stream = self.streams.get(&(exchange.local, direction));
            let stream = stream.cloned().unwrap_or_default();
            let lost: Vec<_> = stream.lost.iter().map(|place| stream.span(place)).collect();
            text += &format!("{}: lost {lost:?}\n", direction.label());
        }
        text
    }
}

impl Stream {
    /// Where a piece stands among the connection's bytes.
    fn span(&self, &(sequence, length): &(u32, u32)) -> Range<u64> {
        let start = u64::from(sequence.wrapping_sub(self.origin.unwrap_or_default()));
        start..start + u64::from(length)
    }

    fn hides(&self, span: &Range<u64>) -> bool {
        let mut passed = self.passed.iter().map(|place| self.span(place));
        passed.all(|passed| passed.end <= span.start || span.end <= passed.start)
    }

    fn misses(&self, span: &Range<u64>) -> bool {
        let mut passed: Vec<_> = self.passed.iter().map(|place| self.span(place)).collect();
        passed.sort_by_key(|range| range.start);
        self.lost.iter().map(|place| self.span(place)).any(|lost| {
            let (mut from, to) = (lost.start.max(span.start), lost.end.min(span.end));
            // What was sent again is not missing.
            for range in &passed {
                if range.start <= from && from < range.end {
                    from = range.end;
                }
            }
            from < to
        })
    }
}

/// Takes an agent's datagrams, and passes them on to it but for some. SYNs always pass, and so does the
/// tap's connection.
#[derive(Debug)]
pub struct Relay {
    loss: Arc<Mutex<Loss>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Starts one inside a namespace, at `listen`, in front of the agent at `agent`. `loses` is
    /// asked for every copy by its number.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(
        namespace: &Namespace,
        listen: SocketAddr,
        agent: SocketAddr,
        loses: impl Fn(u64) -> bool + Send + 'static,
    ) -> Result<Self> {
        let outside = namespace
            .run(|| UdpSocket::bind(listen))
            .with_context(|| format!("the relay cannot listen on {listen}"))?;
        let inside = namespace.run(|| {
            let inside = UdpSocket::bind((agent.ip(), 0))?;
            inside.connect(agent).map(|()| inside)
        })?;
        for socket in [&outside, &inside] {
            // It loses nothing that it was not told to lose.
            setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &(64 << 20))?;
            socket.set_read_timeout(Some(TURN))?;
        }
        let taps = namespace.run(|| TcpListener::bind(listen))?;
        taps.set_nonblocking(true)?;
        let (loss, stop) = (Arc::<Mutex<Loss>>::default(), Arc::<AtomicBool>::default());
        let there = {
            let (loss, stop) = (Arc::clone(&loss), Arc::clone(&stop));
            std::thread::spawn(move || {
                pump(&stop, &outside, |datagram| {
                    if !note(&loss, datagram, &loses) {
                        // An agent that is not there is none of the relay's business.
                        let _ = inside.send(datagram);
                    }
                });
            })
        };
        let connections = {
            let (stop, namespace) = (Arc::clone(&stop), namespace.clone());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match taps.accept() {
                        // One that the agent does not take ends here as well.
                        Ok((tap, _)) => drop(pass_on(&namespace, tap, agent)),
                        Err(_) => std::thread::sleep(TURN),
                    }
                }
            })
        };
        Ok(Self {
            loss,
            stop,
            threads: vec![there, connections],
        })
    }

    /// What it has lost so far.
    pub fn loss(&self) -> Loss {
        self.loss
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Passes a connection on to the agent, both ways, until it ends.
pub(crate) fn pass_on(namespace: &Namespace, tap: TcpStream, agent: SocketAddr) -> io::Result<()> {
    tap.set_nonblocking(false)?;
    let agent = namespace.run(|| TcpStream::connect(agent))?;
    for (from, to) in [(tap.try_clone()?, agent.try_clone()?), (agent, tap)] {
        std::thread::spawn(move || {
            let _ = io::copy(&mut &from, &mut &to);
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        });
    }
    Ok(())
}

fn pump(stop: &AtomicBool, socket: &UdpSocket, mut pass: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(length) => pass(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // "Connection refused" from an agent that is not there.
            Err(_) => {}
        }
    }
}

/// Writes down a copy, and says whether it is to be lost. What is no copy passes.
fn note(loss: &Mutex<Loss>, datagram: &[u8], loses: &impl Fn(u64) -> bool) -> bool {
    let Ok(Datagram::Geneve { header, payload }) = tunnel::decode(datagram) else {
        return false;
    };
    let Ok(segment) = packet::parse(&payload, payload.len() as u32, Link::Ip) else {
        return false;
    };
    let direction = header.meta.direction;
    let client = match direction {
        Direction::Request => segment.source,
        Direction::Response => segment.destination,
    };
    let mut loss = loss.lock().unwrap_or_else(PoisonError::into_inner);
    loss.copies += 1;
    let opens = segment.flags & SYN != 0;
    let lost = !opens && loses(loss.copies);
    loss.lost += u64::from(lost);
    let stream = loss.streams.entry((client.into(), direction)).or_default();
    if opens {
        stream.origin = Some(segment.sequence.wrapping_add(1));
    }
    let place = (segment.sequence, segment.payload_length);
    if lost {
        stream.lost.push(place);
    } else {
        stream.passed.push(place);
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_misses_what_was_lost_and_not_sent_again() {
        let stream = Stream {
            origin: Some(u32::MAX),
            passed: vec![(u32::MAX, 10), (19, 5), (24, 6)],
            lost: vec![(9, 10), (19, 11)],
        };
        let check =
            |span: Range<u64>, expected| assert_eq!(stream.misses(&span), expected, "{span:?}");
        check(0..10, false);
        check(0..11, true);
        check(19..20, true);
        check(20..31, false);
        assert!(stream.hides(&(10..20)) && !stream.hides(&(10..21)));
    }
}
