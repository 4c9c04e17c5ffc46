//! Keeps what the command line set: a thread writes it, so that a disk that hangs holds up nothing but
//! what waits for it.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::state::{Overrides, State};

/// How long until what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    /// Which.
    pub(super) number: u64,
    /// Why it is not on the disk yet.
    pub(super) failure: Option<String>,
}

/// Hands what is to be kept to the thread.
#[derive(Debug)]
pub(super) struct Keeper {
    wanted: Option<Sender<(u64, Overrides)>>,
    ended: Receiver<bool>,
}

impl Keeper {
    /// Starts the thread. What becomes of writes is sent to `said`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(state: State, said: mpsc::UnboundedSender<Kept>) -> io::Result<Self> {
        let (wanted, orders) = channel();
        let (over, ended) = channel();
        std::thread::Builder::new()
            .name("state".to_owned())
            .spawn(move || {
                let _ = over.send(keep_all(state, &orders, &said));
            })?;
        let wanted = Some(wanted);
        Ok(Self { wanted, ended })
    }

    /// Has this written in place of all that was before.
    pub(super) fn keep(&self, number: u64, overrides: Overrides) {
        if let Some(wanted) = &self.wanted {
            let _ = wanted.send((number, overrides));
        }
    }

    /// Waits for the last write, but no longer than this. Says whether all is on the disk.
    pub(super) fn finish(&mut self, patience: Duration) -> bool {
        self.wanted = None;
        self.ended.recv_timeout(patience) == Ok(true)
    }
}

/// Says whether all was written when nobody wanted more.
fn keep_all(
    mut state: State,
    orders: &Receiver<(u64, Overrides)>,
    said: &mpsc::UnboundedSender<Kept>,
) -> bool {
    let mut kept = 0;
    while let Ok(mut order) = orders.recv() {
        loop {
            // Only the newest counts, which need not have come last.
            order = orders.try_iter().fold(order, newer);
            let (number, overrides) = &order;
            if *number <= kept {
                break;
            }
            let written = state.update(|kept| kept.clone_from(overrides));
            let failure = written.err().map(|error| format!("{error:#}"));
            let is_kept = failure.is_none();
            let number = *number;
            let _ = said.send(Kept { number, failure });
            if is_kept {
                kept = number;
                break;
            }
            order = match orders.recv_timeout(RETRY) {
                Ok(other) => newer(order, other),
                Err(RecvTimeoutError::Timeout) => order,
                Err(RecvTimeoutError::Disconnected) => return false,
            };
        }
    }
    true
}

fn newer(one: (u64, Overrides), other: (u64, Overrides)) -> (u64, Overrides) {
    if other.0 > one.0 { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_written_is_written_later_and_only_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        // Somebody's file is where the folder should be.
        std::fs::write(&state_dir, "").unwrap();
        let (sender, mut said) = mpsc::unbounded_channel();
        let mut keeper = Keeper::start(State::open(&state_dir), sender).unwrap();
        let mut set = Overrides::default();
        keeper.keep(1, set.clone());
        let kept = said.recv().await.unwrap();
        assert!(kept.failure.is_some() && kept.number == 1, "{kept:?}");
        set.switch_off();
        keeper.keep(2, set.clone());
        std::fs::remove_file(&state_dir).unwrap();
        let last = loop {
            let kept = said.recv().await.unwrap();
            if kept.failure.is_none() {
                break kept.number;
            }
        };
        assert_eq!((last, State::open(&state_dir).overrides()), (2, &set));
        // An older one that comes late.
        keeper.keep(1, Overrides::default());
        assert!(keeper.finish(Duration::from_secs(10)));
        assert_eq!(State::open(&state_dir).overrides(), &set);
    }
}
