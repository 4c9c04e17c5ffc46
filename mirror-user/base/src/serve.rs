//! HTTP for a few callers at a time: no more connections than it can bear, none that is held open by saying
//! nothing, and a place for the control socket also when this process has no descriptor left.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

/// How long a caller may take for the head of a request, and say nothing between two.
const SILENCE: Duration = Duration::from_secs(30);

/// How long a connection may last: who reads its answer slowly ties up the answer's memory.
const LIFE: Duration = Duration::from_secs(120);

/// How many connections there may be, ...
const CONNECTIONS: usize = 64;

/// ... of one address, so that one caller leaves room for the others.
const OF_ONE_ADDRESS: usize = 16;

/// Descriptors that are kept for callers when there is no other left.
const RESERVED: usize = 4;

/// How long until it is tried again where a connection could not be taken in.
const REST: Duration = Duration::from_millis(100);

/// Where callers come from.
pub trait Listen: Send + Sync + 'static {
    /// What a connection is.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one, and whose it is.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Caller)>> + Send;
}

/// Who calls: from where, or, at a socket of this host, as whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// Its address.
    pub ip: Option<IpAddr>,
    /// The user, by number, and the process.
    pub user: Option<(u32, i32)>,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.user, self.ip) {
            (Some((user, process)), _) => write!(f, "user {user}, process {process}"),
            (None, Some(ip)) => write!(f, "{ip}"),
            (None, None) => f.write_str("somebody on this host"),
        }
    }
}

impl Listen for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<(Self::Stream, Caller)> {
        let (stream, peer) = Self::accept(self).await?;
        let caller = Caller {
            ip: Some(peer.ip()),
            user: None,
        };
        Ok((stream, caller))
    }
}

impl Listen for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<(Self::Stream, Caller)> {
        let (stream, _) = Self::accept(self).await?;
        let user = stream.peer_cred().ok();
        let user = user.map(|user| (user.uid(), user.pid().unwrap_or_default()));
        Ok((stream, Caller { ip: None, user }))
    }
}

/// Serves until it is dropped.
pub async fn serve(listener: impl Listen, router: Router) {
    let (mut reserve, callers) = (Reserve::default(), Callers::default());
    let mut is_said = false;
    loop {
        reserve.fill();
        match listener.accept().await {
            Ok((stream, caller)) => {
                is_said = false;
                // Who finds no room is sent away, and may come again.
                if let Some(place) = callers.place(caller.ip) {
                    let router = router.clone().layer(Extension(caller));
                    tokio::spawn(serve_one(stream, router, place));
                }
            }
            Err(error) => {
                if !is_said {
                    tracing::warn!("a caller cannot be taken in: {error}");
                    is_said = true;
                }
                if !(is_out_of_descriptors(&error) && reserve.give()) {
                    tokio::time::sleep(REST).await;
                }
            }
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE))
}

async fn serve_one<S>(stream: S, router: Router, _place: Place)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(SILENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // Whatever went wrong, the caller knows.
    let _ = tokio::time::timeout(LIFE, connection).await;
}

/// Who is served now.
#[derive(Clone, Debug, Default)]
struct Callers(Arc<Mutex<HashMap<Option<IpAddr>, usize>>>);

impl Callers {
    fn place(&self, peer: Option<IpAddr>) -> Option<Place> {
        let mut callers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let most = match peer {
            Some(_) => OF_ONE_ADDRESS,
            None => CONNECTIONS,
        };
        if callers.values().sum::<usize>() >= CONNECTIONS
            || callers.get(&peer).is_some_and(|its| *its >= most)
        {
            return None;
        }
        *callers.entry(peer).or_default() += 1;
        Some(Place {
            callers: self.clone(),
            peer,
        })
    }
}

/// One connection's, until it is dropped.
#[derive(Debug)]
struct Place {
    callers: Callers,
    peer: Option<IpAddr>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let callers = &self.callers.0;
        let mut callers = callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(its) = callers.get_mut(&self.peer) {
            *its -= 1;
        }
        callers.retain(|_, its| *its > 0);
    }
}

/// Descriptors that are given up for callers.
#[derive(Debug, Default)]
struct Reserve(Vec<File>);

impl Reserve {
    fn fill(&mut self) {
        while self.0.len() < RESERVED {
            match File::open("/dev/null") {
                Ok(file) => self.0.push(file),
                Err(_) => return,
            }
        }
    }

    /// Says whether there was one left.
    fn give(&mut self) -> bool {
        self.0.pop().is_some()
    }
}

/// Lets the process open as many files as it may: of the 1,024 that most systems begin with there are soon
/// none left.
pub fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!("the number of open files stays limited: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    async fn start() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let router = Router::new().route("/", get(|| async { "here" }));
        tokio::spawn(serve(listener, router));
        at
    }

    async fn ask(at: SocketAddr) -> io::Result<String> {
        let mut stream = TcpStream::connect(at).await?;
        let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    async fn is_served(at: SocketAddr) -> bool {
        ask(at).await.is_ok_and(|answer| answer.ends_with("here"))
    }

    #[tokio::test]
    async fn one_address_has_so_many_places_and_gets_them_back() {
        let at = start().await;
        let mut open = Vec::new();
        for _ in 0..OF_ONE_ADDRESS {
            let mut stream = TcpStream::connect(at).await.unwrap();
            // Until it is taken in.
            stream
                .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
            stream.read_u8().await.unwrap();
            open.push(stream);
        }
        assert!(!is_served(at).await);
        open.pop();
        while !is_served(at).await {
            tokio::task::yield_now().await;
        }
    }

    #[test]
    fn places_are_counted() {
        let callers = Callers::default();
        let ip = |last| Some(IpAddr::from([10, 0, 0, last]));
        let of_one: Vec<_> = (0..).map_while(|_| callers.place(ip(1))).collect();
        assert_eq!(of_one.len(), OF_ONE_ADDRESS);
        let all: Vec<_> = (2..=255)
            .filter_map(|last| callers.place(ip(last)))
            .collect();
        assert_eq!(of_one.len() + all.len(), CONNECTIONS);
        drop(of_one);
        assert!(callers.place(ip(1)).is_some());
        drop(all);
        assert!(callers.0.lock().unwrap().is_empty());
        let local: Vec<_> = (0..).map_while(|_| callers.place(None)).collect();
        assert_eq!(local.len(), CONNECTIONS);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_sent_away() {
        let (mut caller, served) = tokio::io::duplex(1024);
        let place = Callers::default().place(None).unwrap();
        let task = tokio::spawn(serve_one(served, Router::new(), place));
        caller.write_all(b"GET / HT").await.unwrap();
        // Time goes by itself while all wait.
        task.await.unwrap();
    }
}
