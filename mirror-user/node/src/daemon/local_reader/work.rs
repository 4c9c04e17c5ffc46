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
    /// Where to read from now on, and whether an earlier daemon has left it.
    Ring(Arc<Ring>, bool),
    /// There is nothing to read any more.
    NoRing,
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
    pub(super) source: Source,
    pub(super) started: Instant,
}

/// Where it reads, and what it has read.
#[derive(Debug)]
pub(super) struct Source {
    ring: Option<Arc<Ring>>,
    reading: Reading,
    /// Copies may have found no room: up to where the next look reads.
    lost: bool,
}

impl Work {
    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        // Decisions wait for what is read here, and the budget bounds it: it has to make progress.
        be_nice();
        while self.take_orders() {
            self.figures.wakeups.fetch_add(1, Ordering::Relaxed);
            let has_read = self.source.turn(self.started.elapsed());
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
                Ok(Order::Ring(ring, is_inherited)) => self.source.begin(ring, is_inherited),
                Ok(Order::NoRing) => self.source.ring = None,
                Ok(Order::Rule(id, rule)) => self.source.reading.set(id, rule),
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// Waits until something happens.
    fn sleep(&mut self) {
        let ring = self.source.ring.clone();
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
        let Some(deadline) = self.source.reading.deadline() else {
            return PollTimeout::NONE;
        };
        let left = deadline.saturating_sub(self.started.elapsed());
        // A millisecond more: the timeout is rounded down.
        let left = left.max(INTERVAL) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }
}

impl Source {
    /// Nothing to read yet.
    pub(super) fn new() -> Self {
        Self {
            ring: None,
            reading: Reading::new(),
            lost: false,
        }
    }

    /// Reads from here on. What an earlier daemon has left there may end where nobody copied any more.
    fn begin(&mut self, ring: Arc<Ring>, is_inherited: bool) {
        self.lost = is_inherited;
        self.ring = Some(ring);
    }

    /// Reads what there is. Whether there was anything: then more is to be expected soon.
    fn turn(&mut self, now: Duration) -> bool {
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
}

#[cfg(test)]
mod tests {
    use mirror_common::packet::{ACK, SYN};
    use mirror_common::tunnel::{Arm, Direction};

    use super::super::reading::tests::{Bench, Client, with_status};
    use super::*;

    /// What came before the thread did is read. Of a ring that was there before, nobody knows what is missing.
    #[test]
    fn only_what_another_has_left_may_have_gaps() {
        for (is_inherited, expected) in [(false, "1: 2xx 1"), (true, "1: response_gap 1")] {
            let (mut bench, ring) = (Bench::new(), Arc::new(Ring::of_memory(1)));
            let mut source = Source::new();
            source.reading = std::mem::replace(&mut bench.reading, Reading::new());
            let mut client = Client::new(Arm::Stable, 4_000);
            let mut send = |direction, flags, payload: &[u8]| {
                let (record, packet) = client.copy(&mut bench, direction, flags, payload);
                assert!(ring.write(&record, &packet));
            };
            send(Direction::Request, SYN, b"");
            send(Direction::Response, SYN | ACK, b"");
            send(
                Direction::Request,
                ACK,
                b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
            );
            source.begin(Arc::clone(&ring), is_inherited);
            assert!(source.turn(Duration::from_millis(1)));
            send(Direction::Response, ACK, with_status(200).as_bytes());
            assert!(source.turn(Duration::from_millis(2)));
            assert_eq!(bench.counts(Arm::Stable), expected, "{is_inherited}");
        }
    }
}
