//! The local reader's thread: sleeps until there is something to read, and reads at most once in an
//! interval.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::time::{ClockId, clock_gettime};

use super::drain::drain;
use super::reading::{Reading, Rule};
use crate::daemon::priority::be_nice;
use crate::dataplane::{Bell, Ring};

/// The least time from one look at the ring to the next.
const INTERVAL: Duration = Duration::from_millis(10);

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Where to read from now on.
    Ring(Option<Arc<Ring>>),
    /// Which connections of the service with this id count from now on.
    Rule(u32, Rule),
    Stop,
}

/// What the thread has done so far.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Times that it woke.
    pub(crate) wakeups: AtomicU64,
    /// Time on a CPU, in nanoseconds.
    pub(crate) cpu_ns: AtomicU64,
}

/// The thread.
pub(super) struct Work {
    pub(super) orders: Receiver<Order>,
    pub(super) wanted: Arc<EventFd>,
    pub(super) bell: Bell,
    pub(super) figures: Arc<Figures>,
    pub(super) ring: Option<Arc<Ring>>,
    pub(super) reading: Reading,
    /// Copies may have found no room: up to where the next look reads.
    pub(super) lost: bool,
    pub(super) started: Instant,
}

impl Work {
    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        // Decisions wait for what is read here, and the budget bounds it: it has to make progress.
        be_nice();
        while self.take_orders() {
            self.figures.wakeups.fetch_add(1, Ordering::Relaxed);
            let has_read = self.turn();
            if let Ok(spent) = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID) {
                let spent = Duration::from(spent).as_nanos() as u64;
                self.figures.cpu_ns.store(spent, Ordering::Relaxed);
            }
            if has_read {
                std::thread::sleep(INTERVAL);
            } else {
                self.sleep();
            }
        }
    }

    /// Whether to go on.
    fn take_orders(&mut self) -> bool {
        let _ = self.wanted.read();
        loop {
            match self.orders.try_recv() {
                Ok(Order::Ring(ring)) => {
                    // What an earlier daemon left there may end where nobody copied any more.
                    self.lost = true;
                    self.ring = ring;
                }
                Ok(Order::Rule(id, rule)) => self.reading.set(id, rule),
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// Reads what there is. Whether there was anything: then more is to be expected soon.
    fn turn(&mut self) -> bool {
        let now = self.started.elapsed();
        let mut records = 0;
        if let Some(ring) = &self.ring {
            let reading = &mut self.reading;
            let drained = drain(ring, |record, packet| reading.record(record, packet, now));
            if drained.broken {
                tracing::error!("what lies in the ring of the local look is no record; skipped");
            }
            records = drained.records;
            let lost = drained.lost || drained.broken;
            // What was refused lies behind what was read now.
            if std::mem::replace(&mut self.lost, lost) || lost {
                self.reading.lose();
            }
        }
        self.reading.tick(now);
        records > 0
    }

    /// Waits until something happens.
    fn sleep(&mut self) {
        let ring = self.ring.clone();
        if let Some(ring) = &ring {
            ring.sleep();
        }
        // What came before the tap knew has not rung.
        if ring.as_ref().is_none_or(|ring| ring.is_empty()) {
            let mut polled = [
                PollFd::new(self.wanted.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.bell.fd(), PollFlags::POLLIN),
            ];
            let _ = poll(&mut polled, self.patience());
        }
        if let Some(ring) = &ring {
            ring.wake();
        }
        self.bell.quiet();
    }

    /// How long nothing has to be done unless something happens.
    fn patience(&self) -> PollTimeout {
        let Some(deadline) = self.reading.deadline() else {
            return PollTimeout::NONE;
        };
        let left = deadline.saturating_sub(self.started.elapsed());
        // A millisecond more: the timeout is rounded down.
        let left = left.max(INTERVAL) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }
}
