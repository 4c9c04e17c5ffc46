//! Brings together what belongs to one exchange: the request, production's answer and the
//! shadow's, in whatever order they come. Pure.
//!
//! ```text
//!   seen ──request──> replaying ──shadow's answer──> answered ──production's──> a pair
//!     │                   └──────production's answer, then the shadow's───────> a pair
//!     └── dropped by the exchange table, or discarded here: one outcome each, never two
//! ```
//!
//! Where a second answer was asked for, the pair waits for it.
//! Where a tap copies requests alone, the shadow's answer ends the exchange.

use std::collections::HashMap;
use std::net::SocketAddr;

use mirror_common::tunnel::Arm;
use mirror_rollout::noise::Twin;
use mirror_wire::message::{DropReason, ExchangeId, Response, TapId};

use super::noise::{Second, Seconds};
use super::replay::Answered;

/// What is known of an exchange besides its messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Index of the service.
    pub service: usize,
    /// The tap that copied it.
    pub tap: TapId,
    /// The client's end.
    pub client: SocketAddr,
    /// Which version answers it in production.
    pub arm: Arm,
    /// When the agent saw the request, wall clock.
    pub time: jiff::Timestamp,
}

/// An exchange that can be compared.
#[derive(Debug)]
pub struct Pair {
    /// Where it comes from.
    pub origin: Origin,
    /// The request with the shadow's answer.
    pub shadow: Answered,
    /// Production's answer.
    pub production: Response,
    /// Second answers, as far as they were asked for.
    pub seconds: Seconds,
}

/// What the shadow's answer makes of an exchange.
#[derive(Debug)]
pub enum Joined {
    /// Production's answer was there.
    Pair(Box<Pair>),
    /// There will be none.
    Alone(Origin, Box<Answered>),
}

/// An exchange that was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Index of the service.
    pub service: usize,
    /// Why.
    pub reason: DropReason,
}

#[derive(Debug)]
enum Phase {
    /// Its request is not whole.
    Seen,
    /// Its request is with the replay.
    Replaying {
        origin: Origin,
        production: Option<Response>,
    },
    /// The same, and production's answer is not copied.
    ReplayingAlone(Origin),
    /// The shadow has answered, production has not.
    Answered { origin: Origin, shadow: Answered },
    /// Both have, and a second answer is still to come.
    Paired(Box<Pair>),
    /// It has its outcome; production's answer, or its absence, will end it.
    Discarded,
}

#[derive(Debug)]
struct Entry {
    service: usize,
    phase: Phase,
    seconds: Seconds,
}

impl Entry {
    /// What there is once production and the shadow have answered; nothing while a second answer is to come.
    fn pair(&mut self, origin: Origin, shadow: Answered, production: Response) -> Option<Pair> {
        let pair = Pair {
            origin,
            shadow,
            production,
            seconds: std::mem::take(&mut self.seconds),
        };
        if !pair.seconds.is_waiting() {
            return Some(pair);
        }
        self.phase = Phase::Paired(Box::new(pair));
        None
    }
}

/// All exchanges that have no outcome yet, and those that production has not ended.
///
/// Every exchange that was [`Pending::seen`] leaves as exactly one [`Pair`], [`Joined::Alone`] or
/// [`Dropped`].
#[derive(Debug, Default)]
pub struct Pending {
    entries: HashMap<ExchangeId, Entry>,
}

impl Pending {
    /// The first byte of an exchange.
    pub fn seen(&mut self, id: ExchangeId, service: usize) {
        let entry = Entry {
            service,
            phase: Phase::Seen,
            seconds: Seconds::default(),
        };
        self.entries.insert(id, entry);
    }

    /// Its request is whole and will be replayed. Unless it is `answered`, nothing but the shadow's
    /// answer will be heard of it.
    pub fn request(&mut self, id: ExchangeId, origin: Origin, answered: bool) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.phase = if answered {
                Phase::Replaying {
                    origin,
                    production: None,
                }
            } else {
                Phase::ReplayingAlone(origin)
            };
        }
    }

    /// Whether the shadow's answer would be of use.
    pub fn wants_answer(&self, id: ExchangeId) -> bool {
        self.entries.get(&id).is_some_and(|entry| {
            matches!(
                entry.phase,
                Phase::Replaying { .. } | Phase::ReplayingAlone(_)
            )
        })
    }

    /// Which service an exchange without an outcome is of.
    pub fn service(&self, id: ExchangeId) -> Option<usize> {
        Some(self.entries.get(&id)?.service)
    }

    /// The shadow's answer.
    pub fn answered(&mut self, shadow: Answered) -> Option<Joined> {
        let id = shadow.job.exchange;
        let entry = self.entries.get_mut(&id)?;
        let joined = match &mut entry.phase {
            Phase::Replaying { origin, production } => {
                let origin = *origin;
                let Some(production) = production.take() else {
                    entry.phase = Phase::Answered { origin, shadow };
                    return None;
                };
                Joined::Pair(Box::new(entry.pair(origin, shadow, production)?))
            }
            Phase::ReplayingAlone(origin) => Joined::Alone(*origin, Box::new(shadow)),
            Phase::Seen | Phase::Answered { .. } | Phase::Paired(_) | Phase::Discarded => {
                return None;
            }
        };
        self.entries.remove(&id);
        Some(joined)
    }

    /// Production's answer, whole.
    pub fn response(&mut self, id: ExchangeId, response: Response) -> Option<Pair> {
        let entry = self.entries.get_mut(&id)?;
        if let Phase::Replaying { production, .. } = &mut entry.phase {
            *production = Some(response);
            return None;
        }
        if let Phase::Answered { .. } = entry.phase
            && let Phase::Answered { origin, shadow } =
                std::mem::replace(&mut entry.phase, Phase::Seen)
        {
            let pair = entry.pair(origin, shadow, response)?;
            self.entries.remove(&id);
            return Some(pair);
        }
        self.entries.remove(&id);
        None
    }

    /// A second answer is asked for, to a request that is with the replay.
    pub fn ask(&mut self, id: ExchangeId, twin: Twin) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.seconds.set(twin, Second::Waiting);
        }
    }

    /// Whether a second answer would be of use.
    pub fn wants_second(&self, id: ExchangeId, twin: Twin) -> bool {
        self.entries.get(&id).is_some_and(|entry| {
            let seconds = match &entry.phase {
                Phase::Paired(pair) => &pair.seconds,
                Phase::Discarded => return false,
                _ => &entry.seconds,
            };
            matches!(seconds.of(twin), Second::Waiting)
        })
    }

    /// Whether a second answer is asked for: production's is then of use whatever the shadow says.
    pub fn has_seconds(&self, id: ExchangeId) -> bool {
        let mut twins = Twin::ALL.into_iter();
        twins.any(|twin| self.wants_second(id, twin))
    }

    /// A second answer, or why there is none.
    pub fn second(&mut self, id: ExchangeId, twin: Twin, second: Second) -> Option<Pair> {
        if !self.wants_second(id, twin) {
            return None;
        }
        let entry = self.entries.get_mut(&id)?;
        let Phase::Paired(pair) = &mut entry.phase else {
            entry.seconds.set(twin, second);
            return None;
        };
        pair.seconds.set(twin, second);
        if pair.seconds.is_waiting() {
            return None;
        }
        match self.entries.remove(&id)?.phase {
            Phase::Paired(pair) => Some(*pair),
            _ => None,
        }
    }

    /// Pairs whose second answers are no longer waited for: the agent stops.
    pub fn release(&mut self) -> Vec<Pair> {
        let paired = self
            .entries
            .extract_if(|_, entry| matches!(entry.phase, Phase::Paired(_)));
        let pairs = paired.filter_map(|(_, entry)| match entry.phase {
            Phase::Paired(mut pair) => {
                pair.seconds.give_up();
                Some(*pair)
            }
            _ => None,
        });
        pairs.collect()
    }

    /// The exchange is over without production's answer. Nothing when it has its outcome already.
    pub fn dropped(&mut self, id: ExchangeId, reason: DropReason) -> Option<Dropped> {
        let entry = self.entries.remove(&id)?;
        let service = entry.service;
        match entry.phase {
            Phase::Discarded => None,
            _ => Some(Dropped { service, reason }),
        }
    }

    /// The agent itself gives an exchange up, whose production answer is still to come.
    pub fn discard(&mut self, id: ExchangeId, reason: DropReason) -> Option<Dropped> {
        let entry = self.entries.get_mut(&id)?;
        let service = entry.service;
        match std::mem::replace(&mut entry.phase, Phase::Discarded) {
            Phase::Discarded => return None,
            // Nothing is to come.
            Phase::ReplayingAlone(_) => {
                self.entries.remove(&id);
            }
            _ => {}
        }
        Some(Dropped { service, reason })
    }

    /// Gives up everything: the agent stops.
    pub fn finish(&mut self) -> Vec<Dropped> {
        let reason = DropReason::Shutdown;
        let entries = std::mem::take(&mut self.entries).into_values();
        entries
            .filter(|entry| !matches!(entry.phase, Phase::Discarded))
            .map(|entry| Dropped {
                service: entry.service,
                reason,
            })
            .collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::noise::NoData;

    const ID: ExchangeId = ExchangeId(7);

    fn origin() -> Origin {
        Origin {
            service: 2,
            tap: TapId(5),
            client: "10.0.0.7:4000".parse().unwrap(),
            arm: Arm::Stable,
            time: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn answered() -> Answered {
        fixtures::answered(ID, 201)
    }

    #[track_caller]
    fn check_pair(pair: Option<Pair>) {
        let pair = pair.expect("both answers are there");
        assert_eq!(pair.origin, origin());
        assert_eq!(pair.production.status, 200);
        assert_eq!(pair.shadow.shadow.unwrap().status, 201);
    }

    fn replaying() -> Pending {
        let mut pending = Pending::default();
        pending.seen(ID, 2);
        assert!(!pending.wants_answer(ID));
        pending.request(ID, origin(), true);
        assert!(pending.wants_answer(ID));
        pending
    }

    fn pair_of(joined: Option<Joined>) -> Option<Pair> {
        match joined? {
            Joined::Pair(pair) => Some(*pair),
            Joined::Alone(..) => None,
        }
    }

    #[test]
    fn without_production_s_answer_the_shadow_s_is_the_end() {
        let replaying = || {
            let mut pending = replaying();
            pending.request(ID, origin(), false);
            pending
        };
        let mut pending = replaying();
        assert!(pending.wants_answer(ID));
        match pending.answered(answered()) {
            Some(Joined::Alone(whose, shadow)) => {
                assert_eq!((whose, shadow.job.exchange), (origin(), ID));
            }
            other => panic!("{other:?}"),
        }
        assert!(pending.is_empty());

        let mut pending = replaying();
        let reason = DropReason::QueueFull;
        let dropped = Some(Dropped { service: 2, reason });
        assert_eq!(pending.discard(ID, reason), dropped);
        assert!(pending.is_empty());
    }

    #[test]
    fn answers_are_joined_in_either_order() {
        let mut pending = replaying();
        assert!(
            pending
                .response(ID, mirror_wire::fixtures::empty_response(200))
                .is_none()
        );
        check_pair(pair_of(pending.answered(answered())));
        assert!(pending.is_empty());

        let mut pending = replaying();
        assert!(pending.answered(answered()).is_none());
        check_pair(pending.response(ID, mirror_wire::fixtures::empty_response(200)));
        assert!(pending.is_empty());
    }

    #[test]
    fn a_drop_has_one_outcome() {
        let dropped = |reason| Some(Dropped { service: 2, reason });
        let mut pending = replaying();
        assert_eq!(
            pending.discard(ID, DropReason::QueueFull),
            dropped(DropReason::QueueFull)
        );
        assert_eq!(pending.dropped(ID, DropReason::ResponseGap), None);
        assert!(pending.is_empty());

        let mut pending = replaying();
        assert!(pending.discard(ID, DropReason::QueueFull).is_some());
        assert!(
            pending
                .response(ID, mirror_wire::fixtures::empty_response(200))
                .is_none()
        );
        assert!(pending.is_empty());

        let mut pending = replaying();
        assert_eq!(
            pending.dropped(ID, DropReason::ResponseGap),
            dropped(DropReason::ResponseGap)
        );
        assert!(!pending.wants_answer(ID));
        assert!(pending.answered(answered()).is_none());
        assert!(pending.is_empty());
    }

    #[test]
    fn what_is_left_is_dropped_at_the_end() {
        let mut pending = replaying();
        pending.seen(ExchangeId(8), 0);
        pending.seen(ExchangeId(9), 1);
        pending.discard(ExchangeId(9), DropReason::Loop);
        let mut services: Vec<_> = pending
            .finish()
            .iter()
            .map(|dropped| dropped.service)
            .collect();
        services.sort_unstable();
        assert_eq!(services, [0, 2]);
    }

    #[test]
    fn a_pair_waits_for_the_second_answers_that_were_asked_for() {
        let second = || Second::Is(mirror_wire::fixtures::empty_response(202));
        let asked = || {
            let mut pending = replaying();
            Twin::ALL.into_iter().for_each(|twin| pending.ask(ID, twin));
            pending
        };
        let mut pending = asked();
        assert!(pending.second(ID, Twin::Control, second()).is_none());
        assert!(!pending.wants_second(ID, Twin::Control));
        assert!(pending.answered(answered()).is_none());
        assert!(
            pending
                .response(ID, mirror_wire::fixtures::empty_response(200))
                .is_none()
        );
        assert!(pending.wants_second(ID, Twin::Repeat) && !pending.wants_answer(ID));
        let missing = Second::Missing(NoData::Timeout);
        let pair = pending.second(ID, Twin::Repeat, missing).unwrap();
        assert!(
            matches!(pair.seconds.of(Twin::Control), Second::Is(answer) if answer.status == 202)
        );
        assert!(matches!(
            pair.seconds.of(Twin::Repeat),
            Second::Missing(NoData::Timeout)
        ));
        check_pair(Some(pair));
        assert!(pending.is_empty());

        // Those that come first hold nothing up.
        let mut pending = asked();
        for twin in Twin::ALL {
            assert!(pending.second(ID, twin, second()).is_none());
        }
        assert!(!pending.has_seconds(ID));
        assert!(
            pending
                .response(ID, mirror_wire::fixtures::empty_response(200))
                .is_none()
        );
        check_pair(pair_of(pending.answered(answered())));
        assert!(pending.is_empty());
    }

    #[test]
    fn a_second_answer_saves_no_exchange_and_costs_none() {
        let mut pending = replaying();
        pending.ask(ID, Twin::Control);
        pending.discard(ID, DropReason::QueueFull);
        assert!(!pending.wants_second(ID, Twin::Control));
        let second = Second::Is(mirror_wire::fixtures::empty_response(202));
        assert!(pending.second(ID, Twin::Control, second).is_none());

        let mut pending = replaying();
        pending.ask(ID, Twin::Control);
        assert!(pending.answered(answered()).is_none());
        assert!(
            pending
                .response(ID, mirror_wire::fixtures::empty_response(200))
                .is_none()
        );
        let mut pairs = pending.release();
        assert!(matches!(
            pairs[0].seconds.of(Twin::Control),
            Second::Missing(NoData::Shutdown)
        ));
        check_pair(pairs.pop());
        assert!(pending.is_empty());
    }
}
