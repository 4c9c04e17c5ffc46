//! Whether canaries on other hosts answer: each is dialled a few times a second.
//!
//! The programs notice by themselves when clients get no answer; this tells before any client has to
//! wait, and tells when the canary is back.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// How often each is dialled.
const INTERVAL: Duration = Duration::from_millis(250);

/// How long it may take to answer. With the interval: what is gone is known within a second.
const PATIENCE: Duration = Duration::from_millis(500);

/// What an attempt came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attempt {
    /// Where.
    pub(super) canary: SocketAddr,
    /// Nothing = it answered.
    pub(super) failure: Option<Failure>,
}

/// Why a canary was not reached.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// It refused, or was silent.
    #[error("{0}")]
    Theirs(String),
    /// This host could not ask: that is no evidence of the canary.
    #[error("it cannot be dialled from here: {0}")]
    Ours(String),
}

impl Failure {
    fn of(error: &io::Error) -> Self {
        let said = error.to_string();
        let errno = error.raw_os_error().map(Errno::from_raw);
        match errno {
            Some(
                Errno::EMFILE
                | Errno::ENFILE
                | Errno::ENOBUFS
                | Errno::ENOMEM
                | Errno::EADDRNOTAVAIL
                | Errno::EADDRINUSE
                | Errno::ENETUNREACH
                | Errno::ENETDOWN
                | Errno::ENODEV
                | Errno::EPERM
                | Errno::EACCES,
            ) => Self::Ours(said),
            _ => Self::Theirs(said),
        }
    }
}

/// What is known of the canaries on other hosts: what the last attempt came to; nothing before the first.
#[derive(Debug, Default)]
pub(super) struct Health(BTreeMap<SocketAddr, Option<Attempt>>);

impl Health {
    /// Watches these, and nobody else. Says whether those are others than before.
    pub(super) fn watch(&mut self, canaries: &BTreeSet<SocketAddr>) -> bool {
        if self.0.keys().eq(canaries) {
            return false;
        }
        self.0.retain(|canary, _| canaries.contains(canary));
        for &canary in canaries {
            self.0.entry(canary).or_default();
        }
        true
    }

    /// Takes in what an attempt came to. Says whether that is news.
    pub(super) fn heard(&mut self, attempt: Attempt) -> bool {
        let Some(last) = self.0.get_mut(&attempt.canary) else {
            return false;
        };
        let canary = attempt.canary;
        let failed = attempt.failure.clone();
        let before = last.replace(attempt);
        let before = before.map(|before| before.failure);
        let kind = |failure: &Option<Failure>| failure.as_ref().map(std::mem::discriminant);
        let is_news = before.as_ref().map(kind) != Some(kind(&failed));
        match failed {
            Some(Failure::Theirs(why)) if is_news => {
                tracing::warn!(%canary, why, "the canary does not answer: new connections go to stable")
            }
            Some(Failure::Ours(why)) if is_news => {
                tracing::warn!(%canary, why, "the canary cannot be dialled from here: whether it answers is not known")
            }
            None if before.is_some() && is_news => {
                tracing::info!(%canary, "the canary answers again")
            }
            _ => {}
        }
        is_news
    }

    /// Whether a canary answers, as far as is known; nothing for one that is not watched.
    pub(super) fn of(&self, canary: SocketAddr) -> Option<Result<(), &Failure>> {
        let last = self.0.get(&canary)?.as_ref()?;
        Some(last.failure.as_ref().map_or(Ok(()), Err))
    }
}

/// Dials canaries, each in a task.
#[derive(Debug)]
pub(super) struct Dialler {
    attempts: mpsc::Sender<Attempt>,
    tasks: BTreeMap<SocketAddr, JoinHandle<()>>,
}

impl Dialler {
    /// What attempts come to is sent to `attempts`.
    pub(super) fn new(attempts: mpsc::Sender<Attempt>) -> Self {
        Self {
            attempts,
            tasks: BTreeMap::new(),
        }
    }

    /// Dials these, and nobody else.
    pub(super) fn dial(&mut self, canaries: &BTreeSet<SocketAddr>) {
        for (_, task) in self
            .tasks
            .extract_if(.., |canary, _| !canaries.contains(canary))
        {
            task.abort();
        }
        for &canary in canaries {
            let attempts = &self.attempts;
            self.tasks
                .entry(canary)
                .or_insert_with(|| tokio::spawn(dial_on(canary, attempts.clone())));
        }
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        self.dial(&BTreeSet::new());
    }
}

async fn dial_on(canary: SocketAddr, attempts: mpsc::Sender<Attempt>) {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let failure = match tokio::time::timeout(PATIENCE, TcpStream::connect(canary)).await {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Failure::of(&error)),
            Err(_) => {
                let why = format!("no answer within {} ms", PATIENCE.as_millis());
                Some(Failure::Theirs(why))
            }
        };
        if attempts.send(Attempt { canary, failure }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_host_lacks_is_not_the_canary_s() {
        let of = |errno: Errno| Failure::of(&io::Error::from(errno));
        for errno in [Errno::EMFILE, Errno::ENETUNREACH, Errno::EADDRNOTAVAIL] {
            assert!(matches!(of(errno), Failure::Ours(_)), "{errno}");
        }
        for errno in [Errno::ECONNREFUSED, Errno::EHOSTUNREACH, Errno::ETIMEDOUT] {
            assert!(matches!(of(errno), Failure::Theirs(_)), "{errno}");
        }
    }

    #[tokio::test]
    async fn only_what_changes_is_news() {
        let (sender, mut attempts) = mpsc::channel(1);
        let (mut health, mut dialler) = (Health::default(), Dialler::new(sender));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let canary = listener.local_addr().unwrap();
        let canaries = BTreeSet::from([canary]);
        assert!(health.watch(&canaries) && !health.watch(&canaries));
        dialler.dial(&canaries);
        assert_eq!(health.of(canary), None);
        let answered = attempts.recv().await.unwrap();
        assert_eq!(
            answered,
            Attempt {
                canary,
                failure: None
            }
        );
        assert!(health.heard(answered.clone()), "the first");
        assert!(!health.heard(answered.clone()));
        drop(listener);
        let refused = loop {
            let attempt = attempts.recv().await.unwrap();
            if attempt.failure.is_some() {
                break attempt;
            }
        };
        assert!(health.heard(refused.clone()));
        let why = health.of(canary).unwrap().unwrap_err();
        assert!(
            matches!(why, Failure::Theirs(why) if why.contains("refused")),
            "{why:?}"
        );
        assert!(!health.heard(refused.clone()) && health.heard(answered));
        health.watch(&BTreeSet::new());
        assert!(!health.heard(refused) && health.of(canary).is_none());
    }
}
