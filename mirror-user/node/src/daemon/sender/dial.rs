//! Reaches an agent, and again whenever the connection is lost: name, connection, TLS, greeting.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ConstantBuilder, ExponentialBuilder};
use mirror_api::Transport;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;

use super::pipe::Pipe;
use super::work::{Link, Order};
use super::{Door, Event, Orders, Target, What};
use mirror_base::transport::frame::{
    self, HEADER_LENGTH, Header, Hello, Kind, PREFACE, Position, Refused, Welcome,
};
use mirror_base::transport::keys::PublicKey;
use mirror_base::transport::tls::{self, Refusal};

/// How long one address may take to answer, and the agent to greet.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long bytes may stay unacknowledged by the agent's host before the connection is given up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// A silent connection is probed after this.
const SILENCE: Duration = Duration::from_secs(5);

/// Lower effort (RFC 8622) in the traffic class field: copies yield.
const TRAFFIC_CLASS: u32 = 1 << 2;

/// TC_PRIO_FILLER: the lowest band of the kernel's default queue.
const LOWEST_PRIORITY: u32 = 1;

/// A connection that held for this long was a good one: the next attempts come soon.
const GOOD: Duration = Duration::from_secs(1);

/// So many attempts come soon: an agent that restarts is back within a second or so.
const SOON: usize = 20;

/// Waits between attempts: 50 to 100 ms, then ever longer.
fn delays() -> impl Iterator<Item = Duration> {
    let soon = ConstantBuilder::new()
        .with_delay(Duration::from_millis(50))
        .with_max_times(SOON)
        .with_jitter();
    let seldom = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(5))
        .without_max_times()
        .with_jitter();
    soon.build().chain(seldom.build())
}

/// Keeps a connection to the agent, until the task is aborted.
pub(super) async fn keep_connected(
    target: Arc<Target>,
    orders: Orders,
    events: mpsc::UnboundedSender<Event>,
) {
    let tell = |what| {
        // Nobody listens when the daemon ends.
        let _ = events.send(Event {
            number: target.number,
            what,
        });
    };
    let mut delays = delays();
    loop {
        let began = Instant::now();
        match reach(&target).await {
            Ok(reached) => {
                let (ended, end) = oneshot::channel();
                tell(What::Connected {
                    peer: reached.peer,
                    name: reached.welcome.name,
                    tap: reached.welcome.tap,
                });
                orders.give(Order::Link(Box::new(Link {
                    number: target.number,
                    pipe: reached.pipe,
                    ring: target.ring.clone(),
                    welcome: reached.welcome.lanes,
                    ended,
                })));
                let why = end
                    .await
                    .unwrap_or_else(|_| "the sender has ended".to_owned());
                tell(What::Lost { why });
                if began.elapsed() > GOOD {
                    delays = self::delays();
                }
            }
            Err(failure) => tell(What::Failed(failure)),
        }
        tokio::time::sleep(delays.next().unwrap_or(PATIENCE)).await;
    }
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::daemon) enum Failure {
    /// This node has no key.
    #[error("{0}")]
    Closed(String),
    /// The name leads nowhere.
    #[error("its name cannot be resolved: {0}")]
    Unresolved(String),
    /// Nobody listens, or nobody is there.
    #[error("{peer} cannot be reached: {why}")]
    Unreachable {
        /// Who was tried last.
        peer: SocketAddr,
        /// What went wrong.
        why: String,
    },
    /// It has another key than the config trusts.
    #[error(
        "{peer} shows the key {shown}, and the config trusts {trusted}: if the agent has a new key, write it as `agent_key`; otherwise somebody else answers there"
    )]
    OtherKey {
        /// Who.
        peer: SocketAddr,
        /// Its key.
        shown: PublicKey,
        /// The config's.
        trusted: PublicKey,
    },
    /// It does not know our key.
    #[error(
        "{peer} does not know this node's key: add [[tap]] name = \"...\", key = \"{own}\" to the agent's config"
    )]
    OurKey {
        /// Who.
        peer: SocketAddr,
        /// Ours.
        own: PublicKey,
    },
    /// It does not take us, or is no agent.
    #[error("{peer} refused the connection: {why}")]
    Refused {
        /// Who.
        peer: SocketAddr,
        /// Its words.
        why: String,
    },
}

struct Reached {
    peer: SocketAddr,
    pipe: Pipe,
    welcome: Welcome,
}

async fn reach(target: &Target) -> Result<Reached, Failure> {
    if let Door::Closed(why) = &target.door {
        return Err(Failure::Closed(why.clone()));
    }
    let agent = &target.agent;
    let found = tokio::net::lookup_host((agent.host.as_str(), agent.port)).await;
    let found = found.map_err(|error| Failure::Unresolved(error.to_string()))?;
    let mut failure = Failure::Unresolved("it has no address".to_owned());
    for peer in found {
        match tokio::time::timeout(PATIENCE, greet(target, peer)).await {
            Ok(Ok((pipe, welcome))) => {
                return Ok(Reached {
                    peer,
                    pipe,
                    welcome,
                });
            }
            Ok(Err(why)) => failure = why,
            Err(_) => {
                let why = format!("no answer within {} s", PATIENCE.as_secs());
                failure = Failure::Unreachable { peer, why };
            }
        }
    }
    Err(failure)
}

async fn greet(target: &Target, peer: SocketAddr) -> Result<(Pipe, Welcome), Failure> {
    let unreachable = |error: io::Error| Failure::Unreachable {
        peer,
        why: error.to_string(),
    };
    let mut socket = TcpStream::connect(peer).await.map_err(unreachable)?;
    yield_to_everybody(&socket, peer).map_err(unreachable)?;
    let refused = |error: io::Error| Failure::Refused {
        peer,
        why: error.to_string(),
    };
    let Door::Keys { config, own } = &target.door else {
        let welcome = say_hello(&mut socket, target).await.map_err(refused)?;
        let socket = socket.into_std().map_err(unreachable)?;
        return Ok((Pipe::Clear(socket), welcome));
    };
    let refused = |error: io::Error| match Refusal::of(&error) {
        Some(Refusal::OtherAgent { shown, trusted }) => Failure::OtherKey {
            peer,
            shown,
            trusted,
        },
        // TLS 1.3: a server refuses a client's key after the client's own handshake is done.
        Some(Refusal::Unknown) => Failure::OurKey { peer, own: *own },
        _ => refused(error),
    };
    let connector = TlsConnector::from(Arc::clone(config));
    let connected = connector.connect(tls::server_name(), socket).await;
    let mut stream = connected.map_err(refused)?;
    let welcome = say_hello(&mut stream, target).await.map_err(refused)?;
    let (socket, connection) = stream.into_inner();
    let socket = socket.into_std().map_err(unreachable)?;
    Ok((Pipe::tls(socket, connection), welcome))
}

/// Copies yield to production's traffic, and a dead path is noticed.
fn yield_to_everybody(socket: &TcpStream, peer: SocketAddr) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    let keepalive = TcpKeepalive::new()
        .with_time(SILENCE)
        .with_interval(Duration::from_secs(1))
        .with_retries(5);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_priority(LOWEST_PRIORITY)?;
    if peer.is_ipv4() {
        socket.set_tos_v4(TRAFFIC_CLASS)
    } else {
        socket.set_tclass_v6(TRAFFIC_CLASS)
    }
}

async fn say_hello(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    target: &Target,
) -> io::Result<Welcome> {
    let lanes = target.ring.iter().flat_map(|ring| {
        let known = (0..ring.lanes()).filter(|lane| ring.head(*lane) > 0);
        known.map(|lane| Position {
            lane,
            position: ring.tail(lane),
        })
    });
    let hello = Hello {
        version: frame::VERSION,
        program: env!("CARGO_PKG_VERSION").to_owned(),
        boot: target.boot,
        transport: target.transport,
        lanes: lanes.collect(),
        mac_key: (target.transport == Transport::Geneve).then_some(target.mac_key),
    };
    let mut bytes = PREFACE.to_vec();
    bytes.extend(frame::message(Kind::Hello, &hello));
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    let mut header = [0; HEADER_LENGTH];
    stream.read_exact(&mut header).await?;
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let header = Header::decode(&header)
        .map_err(|error| invalid(format!("this is not a modelmirror agent: {error}")))?;
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).await?;
    match header.kind {
        Kind::Welcome => serde_json::from_slice(&body).map_err(|error| invalid(error.to_string())),
        Kind::Refused => {
            let refused: Result<Refused, _> = serde_json::from_slice(&body);
            let reason =
                refused.map_or_else(|_| "no reason given".to_owned(), |refused| refused.reason);
            Err(io::Error::new(io::ErrorKind::ConnectionRefused, reason))
        }
        kind => Err(invalid(format!(
            "its first frame is {kind:?}, not a welcome"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_restarts_is_tried_soon_and_one_that_is_away_seldom() {
        let all: Vec<_> = delays().take(40).collect();
        let ms = Duration::from_millis;
        assert!(
            all.iter()
                .take(SOON)
                .all(|&delay| ms(50) <= delay && delay <= ms(100)),
            "{all:?}"
        );
        // Jitter adds up to as much again.
        assert!(
            all.iter()
                .skip(SOON + 6)
                .all(|&delay| ms(5_000) <= delay && delay <= ms(10_000)),
            "{all:?}"
        );
    }
}
