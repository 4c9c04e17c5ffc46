//! Taps' connections, on a thread of their own: nothing that the shadow does delays them.
//!
//! ```text
//!   TCP ─door─> name ─hello─> bytes ─frames─> rings' bytes ─order─> records ─line─> capture thread
//!    <──────────────────────────────── acknowledgements, echoes <──────────────────────┘
//! ```
//!
//! What a tap was told is processed may be overwritten in its ring: a record is in the exchange table
//! then, or was dropped by name.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub(crate) use self::door::{Accept, OpenDoor};
use self::door::{Caller, Protocol, Stream};
use self::error::Refused;
pub use self::error::{Refusal, Refusals};
pub use self::frames::Frames;
pub(crate) use self::keep::Got;
pub(crate) use self::keyed::KeyedDoor;
pub(super) use self::line::{Inlet, Item, Outlet, pair};
pub use self::order::{Copied, Order};
pub use self::tap::{Said, take};
pub(crate) use self::taps::Taps;
use mirror_base::transport::frame::{self, HEADER_LENGTH, Header, Hello, Kind, VERSION};

mod connection;
mod door;
mod error;
mod frames;
mod keep;
mod keyed;
mod line;
mod order;
mod tap;
mod taps;

/// How long it may take to say who one is, and then hello.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Connections at once that have not said who they are: in all, and of one address.
const HANDSHAKES: usize = 256;
const HANDSHAKES_OF_ONE: usize = 32;

/// The longest hello, in bytes.
const LONGEST_HELLO: u32 = 256 << 10;

/// How long one who is refused may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// A silent host is asked after so long whether it is still there, and then again.
const SILENCE: Duration = Duration::from_secs(15);
const PROBE: Duration = Duration::from_secs(5);

/// How long connections take to end what they have begun.
const STOP: Duration = Duration::from_secs(3);

/// Serves the api on a connection of somebody with this name.
pub(crate) type Api = Arc<dyn Fn(Box<dyn Stream>, String) + Send + Sync>;

/// The thread that listens to taps.
pub(crate) struct Streams {
    stop: watch::Sender<bool>,
    ended: oneshot::Receiver<Vec<Got>>,
}

impl Streams {
    pub(super) fn start(
        listener: TcpListener,
        door: Arc<dyn Accept>,
        taps: Taps,
        api: Option<Api>,
    ) -> io::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let hall = Arc::new(Hall {
            door,
            taps,
            api,
            waiting: Waiting::default(),
            farewells: Semaphore::new(HANDSHAKES),
            stop: stopped,
        });
        let taps = hall.taps.clone();
        thread::Builder::new()
            .name("streams".into())
            .spawn(move || {
                if let Err(error) = runtime.block_on(hall.run(listener)) {
                    tracing::error!(%error, "no tap can connect any more");
                }
                // Tasks that others run go on without it.
                runtime.shutdown_background();
                let _ = end.send(taps.got());
            })?;
        Ok(Self { stop, ended })
    }

    /// Reads nothing more, and ends when the taps know how far the capture thread, which has ended, has
    /// got. Returns that.
    pub(crate) async fn stop(self) -> Vec<Got> {
        let _ = self.stop.send(true);
        self.ended.await.unwrap_or_default()
    }
}

/// Where connections arrive.
struct Hall {
    door: Arc<dyn Accept>,
    taps: Taps,
    api: Option<Api>,
    waiting: Waiting,
    farewells: Semaphore,
    stop: watch::Receiver<bool>,
}

impl Hall {
    async fn run(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let mut stop = self.stop.clone();
        let mut tasks = JoinSet::new();
        loop {
            tokio::select! {
                _ = stop.wait_for(|&stop| stop) => break,
                Some(_) = tasks.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => self.on_connection(stream, peer, &mut tasks),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        // No more files, say: they may come back.
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
            }
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        let _ = timeout(STOP, all).await;
        Ok(())
    }

    fn on_connection(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        tasks: &mut JoinSet<()>,
    ) {
        let address = peer.ip().to_canonical();
        let Some(waits) = self.waiting.enter(address) else {
            let refused = Refusal::TooManyHandshakes.because("too many connections at once");
            self.taps.refusals().count(&address.to_string(), &refused);
            return;
        };
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection that is over already");
        }
        let hall = Arc::clone(self);
        tasks.spawn(async move { hall.serve(stream, peer, waits).await });
    }

    async fn serve(&self, stream: TcpStream, peer: SocketAddr, waits: Waits) {
        let address = peer.ip().to_canonical().to_string();
        let accepted = timeout(HANDSHAKE, self.door.accept(stream, peer)).await;
        let caller = match accepted.unwrap_or_else(|_| Err(too_slow())) {
            Ok(caller) => caller,
            Err(refused) => return self.taps.refusals().count(&address, &refused),
        };
        let Caller {
            mut stream,
            name,
            protocol,
        } = caller;
        let result = match (protocol, &self.api) {
            (Protocol::Api, Some(api)) => {
                drop(waits);
                return api(stream, name);
            }
            (Protocol::Api, None) => {
                Err(Refusal::BadPreface.because("it does not begin as a tap does"))
            }
            (Protocol::Tap, _) => {
                let hello = timeout(HANDSHAKE, hello(&mut stream)).await;
                drop(waits);
                match hello.unwrap_or_else(|_| Err(too_slow())) {
                    Ok(hello) => {
                        let stop = self.stop.clone();
                        self.taps.serve(&name, &mut stream, hello, stop).await
                    }
                    Err(refused) => Err(refused),
                }
            }
        };
        if let Err(refused) = result
            && let Ok(_permit) = self.farewells.try_acquire()
        {
            refuse(&mut stream, &refused, self.taps.refusals(), &name).await;
        }
    }
}

/// Acknowledgements are short, and free the tap's ring; a host that is gone is noticed.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(SILENCE)
        .with_interval(PROBE)
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

fn too_slow() -> Refused {
    Refusal::HandshakeTimeout.because("no handshake within 5 s")
}

/// A tap's hello.
async fn hello(stream: &mut Box<dyn Stream>) -> Result<Hello, Refused> {
    let gone = |error: io::Error| Refusal::BadHello.because(error);
    let mut header = [0; HEADER_LENGTH];
    stream.read_exact(&mut header).await.map_err(gone)?;
    let header = Header::decode(&header).map_err(|error| Refusal::BadHello.because(error))?;
    if header.kind != Kind::Hello || header.length > LONGEST_HELLO {
        let what = format!(
            "{:?} of {} bytes before any hello",
            header.kind, header.length
        );
        return Err(Refusal::BadHello.because(what));
    }
    let mut body = vec![0; header.length as usize];
    stream.read_exact(&mut body).await.map_err(gone)?;
    let hello: Hello =
        serde_json::from_slice(&body).map_err(|error| Refusal::BadHello.because(error))?;
    if hello.version != VERSION {
        let what = format!(
            "protocol version {}, and the agent has {VERSION}",
            hello.version
        );
        return Err(Refusal::BadHello.because(what));
    }
    Ok(hello)
}

/// Counts a refusal and tells the peer why.
async fn refuse(stream: &mut Box<dyn Stream>, refused: &Refused, refusals: &Refusals, peer: &str) {
    refusals.count(peer, refused);
    let reason = refused.to_string();
    let said = frame::message(Kind::Refused, &frame::Refused { reason });
    if let Ok(Ok(())) = timeout(FAREWELL, stream.write_all(&said)).await {
        farewell(stream).await;
    }
}

/// Closes when the peer has read what it was told, or does not care to.
async fn farewell(stream: &mut Box<dyn Stream>) {
    let farewell = async {
        stream.shutdown().await?;
        // Closing with something unread would take back what was said.
        let mut rest = [0; 4096];
        for _ in 0..256 {
            if stream.read(&mut rest).await? == 0 {
                break;
            }
        }
        io::Result::Ok(())
    };
    let _ = timeout(FAREWELL, farewell).await;
}

/// Who has not said yet who he is, by address.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<HashMap<IpAddr, usize>>>);

struct Waits {
    waiting: Waiting,
    address: IpAddr,
}

impl Waiting {
    fn enter(&self, address: IpAddr) -> Option<Waits> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = waiting.get(&address).copied().unwrap_or_default();
        let all: usize = waiting.values().sum();
        if mine >= HANDSHAKES_OF_ONE || all >= HANDSHAKES {
            return None;
        }
        waiting.insert(address, mine + 1);
        Some(Waits {
            waiting: self.clone(),
            address,
        })
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut waiting = self
            .waiting
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
