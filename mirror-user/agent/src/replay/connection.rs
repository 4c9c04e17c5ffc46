//! One connection to the shadow, one exchange at a time.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use mirror_wire::http::{Decoder, Fault, Step, Unfit};
use mirror_wire::message::{Response, ShadowError};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, Interest, ReadBuf};

use super::Target;
use super::sockets::{Refused, Socket};
use super::wire::Encoded;

/// What is read at once, and copied out of the buffer that all connections share: most responses
/// are smaller, and need no more memory than they fill.
const READ: usize = 16 << 10;

/// What is read at once of a response that has filled [`READ`].
const READ_MORE: usize = 64 << 10;

/// Responses that fill less than this part of what was read into are copied out of it.
const LOOSE: usize = READ_MORE / 2;

/// Bytes that one exchange moves before others get their turn: large bodies hold nobody up.
const TURN: usize = 128 << 10;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; READ]);
}

#[derive(Debug)]
pub(super) struct Connection {
    socket: Socket,
}

/// The shadow's answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response,
    /// When the request's last byte was written.
    pub(super) written_ns: u64,
    /// Whether the connection can carry another exchange.
    pub(super) persistent: bool,
}

/// No answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: ShadowError,
    pub(super) written_ns: u64,
    /// The connection ended before a byte of the answer.
    pub(super) unanswered: bool,
}

impl Failure {
    pub(super) fn new(error: ShadowError, written_ns: u64) -> Self {
        Self {
            error,
            written_ns,
            unanswered: false,
        }
    }

    /// There is no connection.
    pub(super) fn refused(refused: Refused, now_ns: u64) -> Self {
        let error = match refused {
            Refused::Silent => ShadowError::Timeout,
            // Somebody was there, and hung up before we looked.
            Refused::Shadow(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                ShadowError::Closed
            }
            Refused::Shadow(_) | Refused::Ours(_) => ShadowError::Connect,
        };
        Self::new(error, now_ns)
    }

    fn closed(decoder: &Decoder, written_ns: u64) -> Self {
        Self {
            error: ShadowError::Closed,
            written_ns,
            unanswered: !decoder.has_begun(),
        }
    }
}

impl Connection {
    pub(super) fn new(socket: Socket) -> Self {
        // Without this the last part of a request waits for the acknowledgement of the one before.
        // It fails on a connection that was reset meanwhile, as will the request.
        let _ = socket.stream.set_nodelay(true);
        Self { socket }
    }

    /// Closes it so that nothing of it is remembered here: its port can be had at once.
    pub(super) fn reset(self) {
        // It fails on a connection that was reset meanwhile.
        let _ = self.socket.stream.set_zero_linger();
    }

    /// Whether the shadow has neither closed it nor sent what nobody asked for, as far as is
    /// known here.
    pub(super) fn is_open(&self) -> bool {
        let read = self.socket.stream.try_read(&mut [0]);
        read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends `request` and reads the answer. A shadow may begin to answer, or refuse and close,
    /// before it has read all: so both go on at once where the request does not fit the socket.
    /// `begun` is set by the first byte of the answer.
    pub(super) async fn exchange(
        &mut self,
        target: &Target,
        method: &str,
        request: &Encoded,
        begun: Option<&AtomicBool>,
    ) -> Result<Answer, Failure> {
        let mut decoder = Decoder::response(method, &target.memory, target.max_body);
        let mut unsent = Some(request.clone());
        let mut written_ns = None;
        let mut clean = true;
        let (mut moved, mut more) = (0, false);
        loop {
            if moved >= TURN {
                moved = 0;
                tokio::task::yield_now().await;
            }
            if let Some(rest) = &mut unsent {
                let before = rest.len();
                let sent = self.send(rest);
                moved += before - rest.len();
                if !matches!(sent, Ok(false)) {
                    written_ns = Some(target.now_ns());
                    unsent = None;
                }
                // What the shadow said before it stopped listening can still be read.
                clean &= sent.is_ok();
            }
            let written_ns = written_ns.unwrap_or_else(|| target.now_ns());
            let read = match unsent {
                None if more => self.read_more().await,
                None => self.read().await,
                Some(_) => self.read_if_there().await,
            };
            let mut input = match read {
                Ok(None) => continue,
                Ok(Some(input)) if !input.is_empty() => input,
                Ok(Some(_)) if decoder.end().is_ok() => return answer(decoder, written_ns, false),
                Ok(Some(_)) | Err(_) => return Err(Failure::closed(&decoder, written_ns)),
            };
            if let Some(begun) = begun {
                begun.store(true, Ordering::Relaxed);
            }
            moved += input.len();
            more = input.len() >= READ;
            match decoder.feed(&mut input, target.now_ns()) {
                Ok(Step::Complete) => {
                    let clean = clean && unsent.is_none() && input.is_empty();
                    return answer(decoder, written_ns, clean);
                }
                Ok(Step::More) => {}
                Err(fault) => return Err(Failure::new(error_of_fault(fault), written_ns)),
            }
            // Nobody needs the rest of an answer that cannot be kept.
            if let Some(unfit) = decoder.unfit() {
                return Err(Failure::new(error_of(unfit), written_ns));
            }
        }
    }

    /// Writes as much as fits, at most [`TURN`]; says whether that was all.
    fn send(&self, unsent: &mut Encoded) -> io::Result<bool> {
        let mut left = TURN;
        while !unsent.is_empty() && left > 0 {
            match self.socket.stream.try_write_vectored(&unsent.slices(left)) {
                Ok(count) => {
                    unsent.advance(count);
                    left -= count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(unsent.is_empty())
    }

    /// The next bytes; none at the end of the stream.
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        poll_fn(|context| {
            BUFFER.with_borrow_mut(|buffer| {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(&mut self.socket.stream).poll_read(context, &mut buffer))?;
                Poll::Ready(Ok(Some(Bytes::copy_from_slice(buffer.filled()))))
            })
        })
        .await
    }

    /// The same of a response that is large.
    async fn read_more(&mut self) -> io::Result<Option<Bytes>> {
        let mut buffer = BytesMut::with_capacity(READ_MORE);
        self.socket.stream.read_buf(&mut buffer).await?;
        Ok(Some(exact(buffer)))
    }

    /// Waits until something can be read or written; what can be read is read.
    async fn read_if_there(&mut self) -> io::Result<Option<Bytes>> {
        self.socket
            .stream
            .ready(Interest::READABLE | Interest::WRITABLE)
            .await?;
        BUFFER.with_borrow_mut(|buffer| match self.socket.stream.try_read(buffer) {
            Ok(count) => Ok(Some(Bytes::copy_from_slice(&buffer[..count]))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        })
    }
}

fn answer(decoder: Decoder, written_ns: u64, clean: bool) -> Result<Answer, Failure> {
    let persistent = clean && decoder.is_persistent();
    match decoder.into_response() {
        Ok(response) => Ok(Answer {
            response,
            written_ns,
            persistent,
        }),
        Err(unfit) => Err(Failure::new(error_of(unfit), written_ns)),
    }
}

impl Encoded {
    /// Its first `most` bytes.
    fn slices(&self, most: usize) -> [IoSlice<'_>; 3] {
        let mut left = most;
        [&self.head, &self.body, &self.tail].map(|part| {
            let part = &part[..part.len().min(left)];
            left -= part.len();
            IoSlice::new(part)
        })
    }

    fn len(&self) -> usize {
        self.head.len() + self.body.len() + self.tail.len()
    }

    fn advance(&mut self, count: usize) {
        let mut count = count;
        for part in [&mut self.head, &mut self.body, &mut self.tail] {
            let taken = count.min(part.len());
            part.advance(taken);
            count -= taken;
        }
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What was read, not holding on to much more memory than it fills.
fn exact(buffer: BytesMut) -> Bytes {
    if buffer.len() < LOOSE {
        Bytes::copy_from_slice(&buffer)
    } else {
        buffer.freeze()
    }
}

fn error_of(unfit: Unfit) -> ShadowError {
    match unfit {
        Unfit::TooLarge | Unfit::Memory => ShadowError::TooLarge,
        Unfit::Coding => ShadowError::Malformed,
        Unfit::Gap | Unfit::Incomplete => ShadowError::Closed,
    }
}

fn error_of_fault(fault: Fault) -> ShadowError {
    match fault {
        Fault::HeadTooLarge | Fault::Memory => ShadowError::TooLarge,
        Fault::Incomplete => ShadowError::Closed,
        Fault::Malformed(_) | Fault::Tls | Fault::Http2 => ShadowError::Malformed,
    }
}
