//! One connection of a tap, from its hello on.
//!
//! It reads while there is room for what it reads: in the capture's queue, and in memory. Whatever a
//! tap sends or leaves unread, its task holds no more than that, and waits.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::door::Stream;
use super::error::{Refusal, Refused};
use super::frames::Frames;
use super::keep::Keep;
use super::tap;

/// What is read at once, in bytes.
const READ: usize = 64 << 10;

/// The longest time that a tap is not told how far it has got.
const TELL: Duration = Duration::from_millis(3);

/// How long records are held back when nothing comes. No tap leaves them to that, but a network may be
/// away in the middle of a round, and a node that is busy gives its sender no CPU; what is released
/// meanwhile is out of order, and looks as if others were lost.
const HOLD: Duration = Duration::from_secs(30);

/// An idle tap says nothing, and is left alone: whether its host is still there is TCP's matter.
const IDLE: Duration = Duration::from_secs(3_600);

/// How long a tap may leave unread what it is told.
const UNREAD: Duration = Duration::from_secs(10);

/// How long the tap may take to be told how far it has got when the agent stops.
const STOP: Duration = Duration::from_secs(1);

/// When to leave.
pub(super) struct Quit {
    /// The number of the tap's newest connection, and of this one.
    pub(super) newest: watch::Receiver<u64>,
    pub(super) mine: u64,
    pub(super) stop: watch::Receiver<bool>,
}

impl Quit {
    /// A newer connection of the same tap is there.
    pub(super) async fn replaced(&mut self) {
        replaced(&mut self.newest, self.mine).await;
    }

    /// Waits for whatever comes first; when it stops already, for a newer connection.
    async fn called(&mut self, stops_already: bool) -> Call {
        tokio::select! {
            () = replaced(&mut self.newest, self.mine) => Call::Replaced,
            _ = self.stop.wait_for(|&stop| stop), if !stops_already => Call::Stop,
        }
    }
}

enum Call {
    Replaced,
    Stop,
}

async fn replaced(newest: &mut watch::Receiver<u64>, mine: u64) {
    let _ = newest.wait_for(|&newest| newest != mine).await;
}

enum Written {
    Bytes(usize),
    /// Nothing is left in buffers, TLS's for example.
    All,
}

/// Writes a part of `out`; when there is none, what was written before and still waits.
async fn write(writer: &mut (impl AsyncWrite + Unpin), out: &[u8]) -> io::Result<Written> {
    if out.is_empty() {
        writer.flush().await?;
        return Ok(Written::All);
    }
    Ok(Written::Bytes(writer.write(out).await?))
}

/// Why a connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The tap, or the network.
    Closed,
    /// The same tap has connected anew.
    Replaced,
    /// The agent stops.
    Stopped,
}

pub(super) struct Connection<'a> {
    keep: &'a mut Keep,
    reader: ReadHalf<&'a mut Box<dyn Stream>>,
    writer: WriteHalf<&'a mut Box<dyn Stream>>,
    frames: Frames,
    buffer: BytesMut,
    /// What the tap is yet to be told: these bytes from `written` on.
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    /// When something was read, or did not have to be; when the tap was told; since when it leaves
    /// it unread; when the agent began to stop.
    read: Instant,
    told: Instant,
    unread: Instant,
    stopping: Option<Instant>,
}

impl<'a> Connection<'a> {
    /// Begins with the welcome, or whatever is `out`.
    pub(super) fn new(keep: &'a mut Keep, stream: &'a mut Box<dyn Stream>, out: Vec<u8>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let now = Instant::now();
        Self {
            keep,
            reader,
            writer,
            frames: Frames::default(),
            buffer: BytesMut::new(),
            out,
            written: 0,
            unflushed: false,
            read: now,
            told: now,
            unread: now,
            stopping: None,
        }
    }

    /// Reads and tells until the end.
    ///
    /// # Errors
    /// When the tap is to be refused.
    pub(super) async fn run(mut self, quit: &mut Quit) -> Result<End, Refused> {
        loop {
            self.keep.settle();
            let now = Instant::now();
            self.tell(now)?;
            let may_read = self.stopping.is_none() && self.keep.may_read();
            if !may_read {
                self.read = now;
            }
            if self.stopping.is_some() && self.is_done() {
                return Ok(End::Stopped);
            }
            let (has_out, unflushed) = (self.has_out(), self.unflushed);
            let due = self.due();
            if self.buffer.capacity() < READ / 8 {
                self.buffer.reserve(READ);
            }
            let out = self.out.get(self.written..).unwrap_or_default();
            let stopping = self.stopping.is_some();
            tokio::select! {
                // In this order: time has passed only when there is nothing to be read.
                biased;
                leave = quit.called(stopping) => match leave {
                    Call::Replaced => return Ok(End::Replaced),
                    Call::Stop => self.stop(),
                },
                () = self.keep.queue_has_room(), if self.keep.is_waiting() => self.keep.forward(),
                () = self.keep.moved() => {}
                written = write(&mut self.writer, out), if has_out || unflushed => match written {
                    Ok(Written::Bytes(written @ 1..)) => self.wrote(written),
                    Ok(Written::All) => self.unflushed = false,
                    Ok(Written::Bytes(0)) | Err(_) => return Ok(End::Closed),
                },
                read = self.reader.read_buf(&mut self.buffer), if may_read => match read {
                    Ok(1..) => self.take()?,
                    Ok(0) | Err(_) => return Ok(End::Closed),
                },
                () = tokio::time::sleep_until(due) => self.on_time(),
            }
            if self.stopping.is_some_and(|since| since.elapsed() >= STOP) {
                return Ok(End::Stopped);
            }
        }
    }

    /// Takes in what was read.
    fn take(&mut self) -> Result<(), Refused> {
        self.read = Instant::now();
        let bytes = self.buffer.split().freeze();
        let (said, result) = tap::take(&mut self.frames, self.keep.order(), bytes);
        self.keep.take(said);
        result?;
        self.keep.account(self.frames.held())
    }

    /// Prepares what the tap is to be told, once it has taken what it was told before.
    fn tell(&mut self, now: Instant) -> Result<(), Refused> {
        if self.has_out() {
            if now - self.unread >= UNREAD || self.keep.has_too_many_echoes() {
                return Err(Refusal::NotReading.because("it does not read the agent's replies"));
            }
            return Ok(());
        }
        self.out.clear();
        self.written = 0;
        let late = now - self.told >= TELL || self.stopping.is_some();
        if self.keep.tell(late, &mut self.out) {
            self.told = now;
        }
        self.unread = now;
        Ok(())
    }

    fn wrote(&mut self, written: usize) {
        self.written += written;
        self.unflushed = true;
        self.unread = Instant::now();
    }

    fn has_out(&self) -> bool {
        self.written < self.out.len()
    }

    /// When something happens by time alone.
    fn due(&self) -> Instant {
        let mut due = Instant::now() + IDLE;
        if self.keep.has_untold() && !self.has_out() {
            due = due.min(self.told + TELL);
        }
        if self.keep.holds_records() {
            due = due.min(self.read + HOLD);
        }
        if self.has_out() {
            due = due.min(self.unread + UNREAD);
        }
        if let Some(since) = self.stopping {
            due = due.min(since + STOP);
        }
        due
    }

    fn on_time(&mut self) {
        if self.read.elapsed() >= HOLD && self.keep.holds_records() {
            self.keep.release_all();
        }
    }

    /// The agent stops: nothing more is read, and the tap is told how far it has got.
    fn stop(&mut self) {
        self.stopping = Some(Instant::now());
    }

    fn is_done(&self) -> bool {
        !self.keep.has_untold() && !self.has_out() && !self.unflushed
    }
}

/// Hands on what a connection has left, until all is or `quit` says that others see to it.
pub(super) async fn leave(keep: &mut Keep, quit: &mut Quit) {
    keep.break_off();
    keep.leave();
    loop {
        keep.settle();
        if keep.is_idle() {
            return;
        }
        tokio::select! {
            () = keep.queue_has_room(), if keep.is_waiting() => keep.forward(),
            () = keep.moved() => {}
            _ = quit.called(false) => return,
        }
    }
}
