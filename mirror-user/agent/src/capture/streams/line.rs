//! From the connections' thread to the capture thread: a bounded queue for each tap, and a wake-up.
//!
//! A tap whose queue is full waits, and with it its ring; the capture thread takes one item of each
//! tap in turn.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc as threads};

use mirror_api::tap_report::TapReport;
use mirror_wire::message::TapId;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{Notify, mpsc};

use super::order::Copied;
use mirror_base::transport::frame::Hello;

/// Items of one tap that wait.
const WAITING: usize = 8;

/// Times that every tap gets its turn before datagrams get theirs.
const TURNS: usize = 8;

/// What a tap's connection tells the capture.
#[derive(Debug)]
pub(crate) enum Item {
    /// Who the tap is: at the beginning of each of its connections.
    Hello(Hello),
    /// Copies, the oldest first.
    Copies(Vec<Copied>),
    /// A report.
    Report(TapReport),
    /// The connection is over.
    Gone,
}

/// How many of a tap's items the capture has taken in.
#[derive(Debug)]
pub(crate) struct Progress {
    done: AtomicU64,
    /// As many of them count; what came later will come once more, to the next agent.
    last: AtomicU64,
    pub(crate) moved: Notify,
}

impl Progress {
    fn new() -> Self {
        Self {
            done: AtomicU64::new(0),
            last: AtomicU64::new(u64::MAX),
            moved: Notify::new(),
        }
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    /// How many of the items count. Asked after [`Progress::done`], it holds for all of those.
    pub(crate) fn last(&self) -> u64 {
        self.last.load(Ordering::Acquire)
    }

    /// None of the items that are taken in from here on counts.
    fn pause(&self) {
        let done = self.done.load(Ordering::Relaxed);
        self.last.store(done, Ordering::Release);
    }
}

/// A tap's queue, for the capture.
#[derive(Debug)]
struct Line {
    tap: TapId,
    name: String,
    items: mpsc::Receiver<Item>,
    progress: Arc<Progress>,
    /// Nobody fills it any more.
    is_over: bool,
}

/// Wakes the capture thread, once for all that has come until it looks.
#[derive(Debug)]
struct Waker {
    event: EventFd,
    woken: AtomicBool,
}

/// The connections' end.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    lines: threads::Sender<Line>,
    waker: Arc<Waker>,
}

/// The capture's end.
#[derive(Debug)]
pub(crate) struct Inlet {
    new: threads::Receiver<Line>,
    lines: Vec<Line>,
    waker: Arc<Waker>,
    /// Something may be left.
    left: bool,
    paused: bool,
}

/// Both ends.
pub(crate) fn pair() -> io::Result<(Outlet, Inlet)> {
    let event = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let waker = Arc::new(Waker {
        event,
        woken: AtomicBool::new(false),
    });
    let (lines, new) = threads::channel();
    let outlet = Outlet {
        lines,
        waker: Arc::clone(&waker),
    };
    let inlet = Inlet {
        new,
        lines: Vec::new(),
        waker,
        left: false,
        paused: false,
    };
    Ok((outlet, inlet))
}

impl Outlet {
    /// A queue for this tap, of which there is one only.
    pub(crate) fn line(&self, tap: TapId, name: &str) -> (mpsc::Sender<Item>, Arc<Progress>) {
        let (sender, items) = mpsc::channel(WAITING);
        let progress = Arc::new(Progress::new());
        let line = Line {
            tap,
            name: name.to_owned(),
            items,
            progress: Arc::clone(&progress),
            is_over: false,
        };
        // Nobody listens when the agent is gone.
        let _ = self.lines.send(line);
        (sender, progress)
    }

    /// Something was put into a queue.
    pub(crate) fn wake(&self) {
        if !self.waker.woken.swap(true, Ordering::AcqRel) {
            // It cannot overflow: it is read before it is written again.
            let _ = self.waker.event.write(1);
        }
    }
}

impl Inlet {
    /// Becomes readable when there is something.
    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.waker.event.as_fd()
    }

    /// Whether something may be there without a wake-up.
    pub(crate) fn is_left(&self) -> bool {
        self.left
    }

    /// What is handed on from here on is not acknowledged.
    pub(crate) fn pause(&mut self) {
        self.paused = true;
        for line in &self.lines {
            line.progress.pause();
        }
    }

    /// Hands on what is there, an item of each tap in turn, but not all if that is a lot. `take`
    /// says how many copies an item had, and whether to go on; returns their sum.
    pub(crate) fn receive(
        &mut self,
        mut take: impl FnMut(TapId, &str, Item) -> (usize, bool),
    ) -> usize {
        let _ = self.waker.event.read();
        // Before looking: whoever puts something in from now on wakes again.
        self.waker.woken.swap(false, Ordering::AcqRel);
        let known = self.lines.len();
        self.lines.extend(self.new.try_iter());
        if self.paused {
            let new = self.lines.iter().skip(known);
            new.for_each(|line| line.progress.pause());
        }
        let mut count = 0;
        for _ in 0..TURNS {
            self.left = false;
            for line in &mut self.lines {
                let item = match line.items.try_recv() {
                    Ok(item) => item,
                    Err(error) => {
                        line.is_over = error == mpsc::error::TryRecvError::Disconnected;
                        continue;
                    }
                };
                self.left = true;
                let (copies, go_on) = take(line.tap, &line.name, item);
                count += copies;
                line.progress.done.fetch_add(1, Ordering::Release);
                line.progress.moved.notify_one();
                if !go_on {
                    return count;
                }
            }
            if !self.left {
                break;
            }
        }
        self.lines.retain(|line| !line.is_over);
        count
    }
}
