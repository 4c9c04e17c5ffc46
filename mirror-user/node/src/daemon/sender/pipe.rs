//! A connection to an agent that never waits: clear text or TLS.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};

use rustls::ClientConnection;

/// Bytes that TLS may hold encrypted, until the socket takes them.
const ENCRYPTED: usize = 256 << 10;

/// An established connection. Its socket does not block.
#[derive(Debug)]
pub(super) enum Pipe {
    /// Nothing is encrypted.
    Clear(TcpStream),
    /// TLS, its handshake done.
    Tls(TcpStream, Box<ClientConnection>),
}

/// What "would block" is to a caller that comes back later: nothing.
fn nothing(error: io::Error) -> io::Result<usize> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => Ok(0),
        _ => Err(error),
    }
}

impl Pipe {
    pub(super) fn tls(socket: TcpStream, mut connection: ClientConnection) -> Self {
        connection.set_buffer_limit(Some(ENCRYPTED));
        Self::Tls(socket, Box::new(connection))
    }

    /// Can be waited for.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Clear(socket) | Self::Tls(socket, _) => socket.as_fd(),
        }
    }

    /// Takes as much of `bytes` as there is room for; 0 = none now.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Clear(socket) => socket.write(bytes).or_else(nothing),
            Self::Tls(_, tls) => {
                let taken = tls.writer().write(bytes)?;
                self.flush()?;
                Ok(taken)
            }
        }
    }

    /// Hands on what TLS holds. Returns whether it holds nothing any more.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        let Self::Tls(socket, tls) = self else {
            return Ok(true);
        };
        while tls.wants_write() {
            match tls.write_tls(socket).or_else(nothing)? {
                0 => return Ok(false),
                _ => continue,
            }
        }
        Ok(true)
    }

    /// Whether TLS holds bytes that the socket has not taken.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Self::Clear(_) => false,
            Self::Tls(_, tls) => tls.wants_write(),
        }
    }

    /// Appends what has come in.
    ///
    /// # Errors
    /// When the connection is broken, or the agent has closed it.
    pub(super) fn read(&mut self, into: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::Clear(socket) => read_some(socket, into),
            Self::Tls(socket, tls) => loop {
                let came = match tls.read_tls(socket) {
                    Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
                    Ok(count) => Ok(count),
                    Err(error) => nothing(error),
                };
                let state = tls.process_new_packets();
                let state = state.map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
                let start = into.len();
                into.resize(start + state.plaintext_bytes_to_read(), 0);
                // There is as much as it said.
                tls.reader().read_exact(&mut into[start..])?;
                if came? == 0 {
                    return Ok(());
                }
            },
        }
    }
}

fn read_some(socket: &mut TcpStream, into: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => into.extend_from_slice(&buffer[..count]),
            Err(error) => return nothing(error).map(drop),
        }
    }
}
