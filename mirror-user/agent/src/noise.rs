//! How much answers differ that no version is to blame for: with sampling, dropout, or batches that fall
//! otherwise, a model disagrees with itself. Pure.
//!
//! A share of the requests is answered twice. What a copy of the version in production answers (the
//! control) is held against production's answer, and what the shadow answers a second time (the repeat)
//! against its first. Both tell how often a version disagrees with itself, on the very requests on which
//! the two versions are held against each other. What goes wrong with a second answer is no data: it is
//! nobody's failure.

mod traffic;

use mirror_rollout::noise::Twin;
use mirror_wire::body::Room;
use mirror_wire::message::{Response, ShadowError};
use uuid::Uuid;

pub use self::traffic::Traffic;
use super::compare::{Comparer, NOT_SERVED, Verdict};
use crate::config;

/// Whether the request with this id gets this second answer. The id is random, so the choice knows
/// nothing of the request, nor of any answer, nor of the other twin.
pub fn is_asked(twin: Twin, control: &config::Control, id: Uuid) -> bool {
    let (salt, share) = match twin {
        Twin::Control => (0x9e37_79b9_7f4a_7c15, control.sample),
        Twin::Repeat => (0xc2b2_ae3d_27d4_eb4f, control.repeat),
    };
    let (high, low) = id.as_u64_pair();
    (mix(low ^ mix(high ^ salt)) as f64) < share * 2_f64.powi(64)
}

/// SplitMix64's finalizer (Steele, Lea and Flood 2014): every bit depends on every bit.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// Why a second answer tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoData {
    /// Nobody listens there.
    Connect,
    /// No whole answer within the service's timeout.
    Timeout,
    /// The connection ended before the answer was whole.
    Closed,
    /// The answer is not HTTP/1.
    Malformed,
    /// The answer is larger than the limit.
    TooLarge,
    /// A status of 400 or more, where the first answer serves.
    NotServed,
    /// As many requests waited for a second answer as may.
    QueueFull,
    /// This host had no socket for it.
    AgentLimit,
    /// Less than half of the agent's memory was free, or too little to hold it against the first.
    Memory,
    /// There is no first answer to hold it against, or it was not kept.
    NoFirst,
    /// The agent stopped.
    Shutdown,
}

impl NoData {
    /// Every reason.
    pub const ALL: [Self; 11] = [
        Self::Connect,
        Self::Timeout,
        Self::Closed,
        Self::Malformed,
        Self::TooLarge,
        Self::NotServed,
        Self::QueueFull,
        Self::AgentLimit,
        Self::Memory,
        Self::NoFirst,
        Self::Shutdown,
    ];

    /// The value of the `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::NotServed => "not_served",
            Self::QueueFull => "queue_full",
            Self::AgentLimit => "agent_limit",
            Self::Memory => "memory",
            Self::NoFirst => "no_first",
            Self::Shutdown => "shutdown",
        }
    }
}

impl From<ShadowError> for NoData {
    fn from(error: ShadowError) -> Self {
        match error {
            ShadowError::Connect => Self::Connect,
            ShadowError::Timeout => Self::Timeout,
            ShadowError::Closed => Self::Closed,
            ShadowError::Malformed => Self::Malformed,
            ShadowError::TooLarge => Self::TooLarge,
        }
    }
}

/// One second answer.
#[derive(Debug, Default)]
pub enum Second {
    /// It was not asked for.
    #[default]
    NotAsked,
    /// It is to come.
    Waiting,
    /// Here it is.
    Is(Response),
    /// It will not come.
    Missing(NoData),
}

/// The second answers to one request.
#[derive(Debug, Default)]
pub struct Seconds([Second; 2]);

impl Seconds {
    /// One of them.
    pub fn of(&self, twin: Twin) -> &Second {
        &self.0[twin as usize]
    }

    /// Changes one of them.
    pub fn set(&mut self, twin: Twin, second: Second) {
        self.0[twin as usize] = second;
    }

    /// Whether one is still to come.
    pub fn is_waiting(&self) -> bool {
        let mut seconds = self.0.iter();
        seconds.any(|second| matches!(second, Second::Waiting))
    }

    /// Those that are there.
    pub fn responses(&self) -> impl Iterator<Item = &Response> {
        self.0.iter().filter_map(|second| match second {
            Second::Is(response) => Some(response),
            _ => None,
        })
    }

    /// Nothing more is waited for.
    pub fn give_up(&mut self) {
        for second in &mut self.0 {
            if matches!(second, Second::Waiting) {
                *second = Second::Missing(NoData::Shutdown);
            }
        }
    }
}

/// What a version's second answer says beside its first; nothing where it was not asked for.
pub fn itself(
    comparer: &Comparer,
    first: Option<&Response>,
    second: &Second,
    room: &Room,
) -> Option<Result<Verdict, NoData>> {
    let second = match second {
        Second::NotAsked => return None,
        Second::Waiting => return Some(Err(NoData::Shutdown)),
        Second::Missing(why) => return Some(Err(*why)),
        Second::Is(response) => response,
    };
    let Some(first) = first.filter(|first| first.is_kept()) else {
        return Some(Err(NoData::NoFirst));
    };
    if first.status < NOT_SERVED && second.status >= NOT_SERVED {
        return Some(Err(NoData::NotServed));
    }
    let verdict = comparer.agree(first, second, room);
    Some(match room.is_short() {
        true => Err(NoData::Memory),
        false => Ok(verdict),
    })
}

/// Whether a version disagrees with itself, and the versions with each other, on one request; nothing where
/// nothing is known of the versions.
pub fn disagree(itself: Verdict, versions: Verdict) -> Option<[bool; 2]> {
    let versions = match versions {
        Verdict::BothFailed => return None,
        Verdict::Match => false,
        Verdict::Different | Verdict::Error => true,
    };
    // A version that refuses twice agrees with itself.
    let itself = matches!(itself, Verdict::Different | Verdict::Error);
    Some([itself, versions])
}

#[cfg(test)]
mod tests {
    use mirror_wire::fixtures::JSON;
    use mirror_wire::fixtures::response;

    use super::*;
    use crate::compare::fixture::{compare_config, record_config};

    fn control(sample: f64, repeat: f64) -> config::Control {
        config::Control {
            address: "127.0.0.1:1".parse().unwrap(),
            sample,
            repeat,
        }
    }

    #[test]
    fn twins_are_chosen_apart_and_by_their_shares() {
        let control = control(0.1, 0.05);
        let ids: Vec<Uuid> = (0..100_000).map(|_| Uuid::now_v7()).collect();
        let count = |asked: &dyn Fn(&&Uuid) -> bool| ids.iter().filter(asked).count();
        let by = |twin: Twin| move |id: &&Uuid| is_asked(twin, &control, **id);
        let (first, second) = (by(Twin::Control), by(Twin::Repeat));
        // Four standard deviations: 95, 69 and 22.
        assert!(count(&first).abs_diff(10_000) < 380);
        assert!(count(&second).abs_diff(5_000) < 276);
        let both = count(&|id| first(id) && second(id));
        assert!(both.abs_diff(500) < 88, "{both}");
        let never = self::control(0.0, 0.0);
        let always = self::control(1.0, 1.0);
        for twin in Twin::ALL {
            assert_eq!(count(&|id| is_asked(twin, &never, **id)), 0);
            assert_eq!(count(&|id| is_asked(twin, &always, **id)), ids.len());
        }
    }

    #[test]
    fn what_goes_wrong_with_a_second_answer_is_no_data() {
        let comparer = Comparer::new(&compare_config(), &record_config());
        let answer = |status, body: &str| response(status, JSON, body.as_bytes());
        let check = |first: Option<Response>, second, expected| {
            assert_eq!(
                itself(&comparer, first.as_ref(), &second, &Room::unlimited()),
                expected
            );
        };
        let one = || Some(answer(200, "{\"label\":1}"));
        let is = |status, body| Second::Is(answer(status, body));
        check(one(), Second::NotAsked, None);
        check(one(), is(200, "{ \"label\": 1 }"), Some(Ok(Verdict::Match)));
        check(
            one(),
            is(200, "{\"label\":2}"),
            Some(Ok(Verdict::Different)),
        );
        check(one(), is(503, "{}"), Some(Err(NoData::NotServed)));
        check(
            one(),
            Second::Missing(NoData::Timeout),
            Some(Err(NoData::Timeout)),
        );
        check(None, is(200, "{}"), Some(Err(NoData::NoFirst)));
        let refusal = || Some(answer(404, "{}"));
        check(refusal(), is(404, "{}"), Some(Ok(Verdict::BothFailed)));
        check(refusal(), is(200, "{}"), Some(Ok(Verdict::Different)));
        let mut forgone = answer(200, "");
        forgone.body_bytes = 5;
        check(Some(forgone), is(200, "{}"), Some(Err(NoData::NoFirst)));
    }

    #[test]
    fn where_nothing_is_known_of_the_versions_nothing_is_counted() {
        use Verdict::{BothFailed, Different, Error, Match};
        assert_eq!(disagree(Match, Match), Some([false, false]));
        assert_eq!(disagree(Different, Error), Some([true, true]));
        assert_eq!(disagree(BothFailed, Different), Some([false, true]));
        assert_eq!(disagree(Different, BothFailed), None);
    }
}
