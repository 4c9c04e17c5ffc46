//! Why a connection is not, or no longer, listened to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use mirror_api::shadow::LastRefusal;
use mirror_common::record::DecodeError;

use mirror_base::transport::frame::{self, Kind};

/// Why bytes are not a tap's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// No frame.
    #[error(transparent)]
    Frame(#[from] frame::Broken),
    /// A frame that only an agent sends.
    #[error("a tap does not send {0:?}")]
    NotATaps(Kind),
    /// A message longer than any.
    #[error("a message of {0} bytes is too long")]
    LongMessage(u32),
    /// No record.
    #[error("not a record: {0:?}")]
    Record(DecodeError),
    /// A record of another lane than its ring's.
    #[error("a record of lane {of} in the ring of lane {ring}")]
    OtherLane { ring: u16, of: u16 },
    /// A position that no ring reaches.
    #[error("position {0} is beyond any ring")]
    Position(u64),
    /// More lanes than any host has.
    #[error("more than {0} lanes")]
    TooManyLanes(usize),
}

impl Broken {
    /// What it counts as.
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::Frame(_) | Self::NotATaps(_) | Self::LongMessage(_) => Refusal::BadFrame,
            Self::Record(_)
            | Self::OtherLane { .. }
            | Self::Position(_)
            | Self::TooManyLanes(_) => Refusal::BadRecord,
        }
    }
}

/// Why a connection was closed by the agent. Label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// Its key is none that is trusted.
    UnknownKey,
    /// TLS did not come to an end.
    BadTls,
    /// It speaks in clear text, and the config asks for keys.
    ClearText,
    /// Its address is not in `allow`.
    NotAllowed,
    /// Too many connections that have not said who they are, of this address or in all.
    TooManyHandshakes,
    /// It did not say who it is in time.
    HandshakeTimeout,
    /// Neither a tap nor a caller of the api.
    BadPreface,
    /// It did not say hello, or not as this version does.
    BadHello,
    /// Too many taps.
    TooManyTaps,
    /// What came is no frame of a tap.
    BadFrame,
    /// What came is no record.
    BadRecord,
    /// A report that is none.
    BadReport,
    /// The agent has no memory for it.
    Memory,
    /// It does not read what it is told.
    NotReading,
}

impl Refusal {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 14] = [
        Self::UnknownKey,
        Self::BadTls,
        Self::ClearText,
        Self::NotAllowed,
        Self::TooManyHandshakes,
        Self::HandshakeTimeout,
        Self::BadPreface,
        Self::BadHello,
        Self::TooManyTaps,
        Self::BadFrame,
        Self::BadRecord,
        Self::BadReport,
        Self::Memory,
        Self::NotReading,
    ];

    /// The value of the `reason` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown_key",
            Self::BadTls => "bad_tls",
            Self::ClearText => "clear_text",
            Self::NotAllowed => "not_allowed",
            Self::TooManyHandshakes => "too_many_handshakes",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::BadPreface => "bad_preface",
            Self::BadHello => "bad_hello",
            Self::TooManyTaps => "too_many_taps",
            Self::BadFrame => "bad_frame",
            Self::BadRecord => "bad_record",
            Self::BadReport => "bad_report",
            Self::Memory => "memory",
            Self::NotReading => "not_reading",
        }
    }
}

impl Refusal {
    /// With what a person needs to know.
    pub fn because(self, why: impl ToString) -> Refused {
        Refused {
            refusal: self,
            why: why.to_string(),
        }
    }
}

/// A refusal and its cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", .refusal.label())]
pub struct Refused {
    pub refusal: Refusal,
    pub why: String,
}

impl From<Broken> for Refused {
    fn from(broken: Broken) -> Self {
        broken.refusal().because(broken)
    }
}

/// Peers and reasons that are said, at most.
const MAX_SAID: usize = 256;

/// Keys of one peer's that are named, at most: whoever likes can make new ones.
const MAX_KEYS: usize = 16;

/// What was said of each peer for each reason.
type Said = BTreeMap<(String, Refusal), BTreeSet<String>>;

/// How many connections were refused, or closed, and why.
#[derive(Debug)]
pub struct Refusals {
    counts: [AtomicU64; Refusal::ALL.len()],
    said: Mutex<Said>,
    last: Mutex<Option<LastRefusal>>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            said: Mutex::default(),
            last: Mutex::default(),
        }
    }
}

impl Refusals {
    /// How many there were of each.
    pub fn counts(&self) -> impl Iterator<Item = (Refusal, u64)> {
        let count = |refusal| self.counts[refusal as usize].load(Ordering::Relaxed);
        Refusal::ALL.into_iter().map(move |r| (r, count(r)))
    }

    /// The last one.
    pub fn last(&self) -> Option<LastRefusal> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    /// Counts one, and says so, once for each peer and reason, and each key.
    pub fn count(&self, peer: &str, refused: &Refused) {
        let Refused { refusal, why } = refused;
        self.counts[*refusal as usize].fetch_add(1, Ordering::Relaxed);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(LastRefusal {
            peer: peer.to_owned(),
            reason: refusal.label().to_owned(),
            why: why.clone(),
            time: jiff::Timestamp::now(),
        });
        if self.is_news(peer, refused) {
            tracing::warn!(peer, reason = refusal.label(), "connection refused: {why}");
        }
    }

    fn is_news(&self, peer: &str, refused: &Refused) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let (key, is_full) = ((peer.to_owned(), refused.refusal), said.len() >= MAX_SAID);
        // Several nodes may come from one address, each with a key that somebody has to write down.
        let (what, most) = match refused.refusal {
            Refusal::UnknownKey => (refused.why.as_str(), MAX_KEYS),
            _ => ("", 1),
        };
        match said.get_mut(&key) {
            Some(known) => known.len() < most && known.insert(what.to_owned()),
            None => !is_full && said.insert(key, [what.to_owned()].into()).is_none(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_are_those_of_the_enum() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index);
        }
        let refusals = Refusals::default();
        refusals.count("a", &Refusal::Memory.because("none"));
        refusals.count("a", &Refusal::Memory.because("none"));
        let counts: Vec<_> = refusals.counts().filter(|&(_, count)| count > 0).collect();
        assert_eq!(counts, [(Refusal::Memory, 2)]);
        assert_eq!(
            refusals.last().map(|last| last.why).as_deref(),
            Some("none")
        );
    }

    #[test]
    fn each_peer_reason_and_key_is_said_once_and_not_without_end() {
        let refusals = Refusals::default();
        let is_news =
            |peer: &str, refusal: Refusal, why: &str| refusals.is_news(peer, &refusal.because(why));
        assert!(is_news("a", Refusal::BadTls, "one"));
        assert!(!is_news("a", Refusal::BadTls, "another"));
        assert!(is_news("b", Refusal::BadTls, "one"));
        let key = |number: usize| format!("the key {number}");
        for number in 0..100 {
            let expected = number < MAX_KEYS;
            assert_eq!(is_news("a", Refusal::UnknownKey, &key(number)), expected);
            assert!(!is_news("a", Refusal::UnknownKey, &key(number)));
        }
        let news = (0..1_000).filter(|peer| is_news(&peer.to_string(), Refusal::Memory, "none"));
        assert_eq!(news.count(), MAX_SAID - 3);
        assert!(!is_news("a", Refusal::UnknownKey, &key(1)));
    }
}
