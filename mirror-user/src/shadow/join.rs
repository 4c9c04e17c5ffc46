//! Brings together what belongs to one exchange: the request, production's answer and the
//! shadow's, in whatever order they come. Pure.
//!
//! ```text
//!   seen ──request──> replaying ──shadow's answer──> answered ──production's──> a pair
//!     │                   └──────production's answer, then the shadow's───────> a pair
//!     └── dropped by the exchange table, or discarded here: one outcome each, never two
//! ```
//!
//! Where a tap copies requests alone, the shadow's answer ends the exchange.

use std::collections::HashMap;
use std::net::SocketAddr;

use mirror_common::tunnel::Arm;

use super::message::{DropReason, ExchangeId, Response, TapId};
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
}

/// What the shadow's answer makes of an exchange.
#[derive(Debug)]
pub enum Joined {
    /// Production's answer was there.
    Pair(Pair),
    /// There will be none.
    Alone(Origin, Answered),
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
    /// It has its outcome; production's answer, or its absence, will end it.
    Discarded,
}

#[derive(Debug)]
struct Entry {
    service: usize,
    phase: Phase,
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
        let phase = Phase::Seen;
        self.entries.insert(id, Entry { service, phase });
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
                Joined::Pair(Pair {
                    origin,
                    shadow,
                    production,
                })
            }
            Phase::ReplayingAlone(origin) => Joined::Alone(*origin, shadow),
            Phase::Seen | Phase::Answered { .. } | Phase::Discarded => return None,
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
        match self.entries.remove(&id)?.phase {
            Phase::Answered { origin, shadow } => Some(Pair {
                origin,
                shadow,
                production: response,
            }),
            Phase::Seen | Phase::Replaying { .. } | Phase::ReplayingAlone(_) | Phase::Discarded => {
                None
            }
        }
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
    use crate::shadow::fixtures;

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

    fn pair(joined: Option<Joined>) -> Option<Pair> {
        match joined? {
            Joined::Pair(pair) => Some(pair),
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
        assert!(pending.response(ID, fixtures::response(200)).is_none());
        check_pair(pair(pending.answered(answered())));
        assert!(pending.is_empty());

        let mut pending = replaying();
        assert!(pending.answered(answered()).is_none());
        check_pair(pending.response(ID, fixtures::response(200)));
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
        assert!(pending.response(ID, fixtures::response(200)).is_none());
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
}
