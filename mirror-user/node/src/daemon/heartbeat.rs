//! The heartbeat, which the programs must have heard within 5 s to copy anything. It says that the
//! daemon is alive, and that the rules in the maps are its own.
//!
//! The loop can be held up for seconds: attaching waits for the kernel's network lock, keeping a
//! state file for a disk. That is no reason to end the mirror, so a thread writes the heartbeat that
//! waits for nothing else. But it would go on when the loop is dead for good; so it writes only
//! while the loop has passed by within [`LIMIT`], and the loop passes by only when it has written
//! its rules.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often it is written. The programs bear 5 s of silence.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long the loop may be held up: what it knows of the agents and the budget is so old by then.
/// With the programs' own 5 s, copying ends at most 15 s after the loop.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// The thread that writes the heartbeat. Dropped, it stops, and nothing is written any more.
#[derive(Debug)]
pub(super) struct Heartbeat {
    passes: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Calls `beat` at every pass, and once a second between, from the first pass on.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(beat: impl FnMut() + Send + 'static) -> io::Result<Self> {
        // One place: a thread that has not come yet need not be told twice.
        let (passes, passed) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("heartbeat".to_owned())
            .spawn(move || keep_beating(&passed, beat))?;
        Ok(Self {
            passes: Some(passes),
            thread: Some(thread),
        })
    }

    /// The loop has passed by, and its rules are in the maps.
    pub(super) fn passed(&self) {
        if let Some(passes) = &self.passes {
            let _ = passes.try_send(());
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.passes = None;
        // It waits for nothing but the channel that has just been closed.
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep_beating(passed: &Receiver<()>, mut beat: impl FnMut()) {
    let mut life = Life::default();
    loop {
        match passed.recv_timeout(INTERVAL) {
            Ok(()) => life.pass(Instant::now()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        match life.at(Instant::now()) {
            State::Alive => beat(),
            State::Ended => tracing::error!(
                "the daemon's loop has been held up for {} s: no heartbeat any more, copying ends in 5 s",
                LIMIT.as_secs()
            ),
            State::Silent => {}
        }
    }
}

/// What the passes say of the loop. Pure.
#[derive(Debug, Default)]
struct Life {
    last: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Alive,
    /// It has just been given up.
    Ended,
    /// It has not begun, or was given up before.
    Silent,
}

impl Life {
    fn pass(&mut self, now: Instant) {
        self.last = Some(now);
    }

    fn at(&mut self, now: Instant) -> State {
        match self.last {
            None => State::Silent,
            Some(last) if now.duration_since(last) <= LIMIT => State::Alive,
            Some(_) => {
                self.last = None;
                State::Ended
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_loop_that_is_held_up_for_a_while_is_alive_and_one_that_is_dead_is_not() {
        use State::{Alive, Ended, Silent};
        let mut life = Life::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(life.at(at(0)), Silent, "no rules are written yet");
        life.pass(at(1));
        let states = [1, 6, 11, 12, 13].map(|seconds| life.at(at(seconds)));
        assert_eq!(states, [Alive, Alive, Alive, Ended, Silent]);
        life.pass(at(20));
        assert_eq!(life.at(at(21)), Alive, "it has come back");
    }

    #[test]
    fn nothing_is_written_before_the_first_pass_nor_after_the_end() {
        let beats = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&beats);
        let (beaten, wait) = sync_channel(1);
        let heartbeat = Heartbeat::start(move || {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = beaten.try_send(());
        })
        .unwrap();
        assert_eq!(beats.load(Ordering::Relaxed), 0);
        heartbeat.passed();
        // The first at once, the second without another pass.
        wait.recv().unwrap();
        wait.recv().unwrap();
        drop(heartbeat);
        let at_the_end = beats.load(Ordering::Relaxed);
        assert!(wait.try_iter().count() <= 1 && wait.recv().is_err());
        assert_eq!(beats.load(Ordering::Relaxed), at_the_end);
    }
}
