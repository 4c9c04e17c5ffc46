//! Who comes in: from an accepted connection to a tap with a name, or a caller of the api.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::error::{Refusal, Refused};
use mirror_base::transport::frame::PREFACE;

/// A connection, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// Copies and reports. The stream stands behind the preface.
    Tap,
    /// HTTP. The stream stands at its beginning.
    Api,
}

/// Somebody who was let in.
pub(crate) struct Caller {
    pub(crate) stream: Box<dyn Stream>,
    /// The tap's name: of its key, or its address.
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
}

/// What comes of a connection.
pub(crate) type Accepted<'a> = Pin<Box<dyn Future<Output = Result<Caller, Refused>> + Send + 'a>>;

/// Lets in or refuses. Whoever calls it sees to the time it takes.
pub(crate) trait Accept: Send + Sync + 'static {
    /// Finds out who has connected, and what for.
    fn accept(&self, stream: TcpStream, peer: SocketAddr) -> Accepted<'_>;
}

/// Lets in those in `allow`, in clear text.
#[derive(Clone, Debug)]
pub(crate) struct OpenDoor {
    allow: Vec<ipnet::IpNet>,
}

impl OpenDoor {
    pub(crate) fn new(allow: Vec<ipnet::IpNet>) -> Self {
        Self { allow }
    }
}

impl Accept for OpenDoor {
    fn accept(&self, mut stream: TcpStream, peer: SocketAddr) -> Accepted<'_> {
        Box::pin(async move {
            let address = peer.ip().to_canonical();
            if !self.allow.iter().any(|net| net.contains(&address)) {
                return Err(Refusal::NotAllowed.because("its address is not in `allow`"));
            }
            let first = first_bytes(&mut stream).await?;
            let name = address.to_string();
            Ok(if first == PREFACE {
                Caller {
                    stream: Box::new(stream),
                    name,
                    protocol: Protocol::Tap,
                }
            } else {
                Caller {
                    stream: Box::new(Unread::new(first, stream)),
                    name,
                    protocol: Protocol::Api,
                }
            })
        })
    }
}

/// The first 8 bytes, which tell a tap from others.
pub(crate) async fn first_bytes(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<[u8; PREFACE.len()], Refused> {
    let mut first = [0; PREFACE.len()];
    match stream.read_exact(&mut first).await {
        Ok(_) => Ok(first),
        Err(error) => Err(Refusal::BadPreface.because(error)),
    }
}

/// A stream whose first bytes were read already, and are read once more.
struct Unread<S> {
    first: [u8; PREFACE.len()],
    read: usize,
    stream: S,
}

impl<S> Unread<S> {
    fn new(first: [u8; PREFACE.len()], stream: S) -> Self {
        Self {
            first,
            read: 0,
            stream,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Unread<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let left = &self.first[self.read..];
        if left.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        let length = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..length]);
        self.read += length;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Unread<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
