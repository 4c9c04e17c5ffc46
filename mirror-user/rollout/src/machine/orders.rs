//! What people want of a rollout.

use jiff::Timestamp;

use super::Rollout;
use crate::record::{Decision, Order, Want};
use crate::state::{State, Step};

/// Why a person's order cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

impl Rollout {
    pub(super) fn obey(&mut self, order: &Order, now: Timestamp, decisions: &mut Vec<Decision>) {
        let reason = order.by.to_string();
        let step = self.step();
        match (order.want, step) {
            (Want::Pause, Some(at)) if !matches!(self.state, State::Paused { .. }) => {
                let clock = self.clock;
                let by = order.by.clone();
                self.go(State::Paused { at, by }, reason, now, decisions);
                // How long the step has lasted is kept in its clock.
                self.clock = clock;
            }
            (Want::Resume, Some(at)) => self.resume(at, reason, now, decisions),
            (Want::Promote, Some(at)) => {
                let (next, _) = match at {
                    Step::Shadowing => self.next(Step::ShadowPassed),
                    Step::Stage(stage) => self.next(Step::StagePassed(stage)),
                    at => self.next(at),
                };
                self.go(next, reason, now, decisions);
            }
            (Want::PromoteAll, Some(at)) => {
                let next = match at {
                    Step::Settling => State::Promoted,
                    _ => State::Going(Step::Settling),
                };
                self.go(next, reason, now, decisions);
            }
            (Want::Abort, _) if self.is_on() => {
                let by = order.by.clone();
                self.go(State::Aborted { by }, reason, now, decisions);
            }
            (Want::Finish, None) if self.is_for_good() => {
                self.go(State::Finished, reason, now, decisions);
            }
            _ => {}
        }
    }

    fn resume(&mut self, at: Step, reason: String, now: Timestamp, decisions: &mut Vec<Decision>) {
        let lasted = match &self.state {
            State::Paused { .. } => self.entered.duration_since(self.clock),
            // The time of a hold is over: it begins anew.
            State::Held { .. } => jiff::SignedDuration::ZERO,
            _ => return,
        };
        let requests = self.requests;
        let asked = self.asked.clone();
        self.go(State::Going(at), reason, now, decisions);
        (self.requests, self.asked) = (requests, asked);
        self.clock = now.checked_sub(lasted).unwrap_or(now);
    }

    /// Whether an order can be followed, and in which words; `Err` says why not. An order that
    /// changes nothing is no mistake.
    ///
    /// # Errors
    /// When the rollout is where the order makes no sense.
    pub fn can(&self, want: Want) -> Result<(), Refused> {
        let refuse = |why: &str| Err(Refused(format!("the rollout {}: {why}", self.state)));
        match (want, &self.state) {
            (Want::Abort, state) if !self.is_on() => match state {
                State::Aborted { .. } | State::RolledBack { .. } => Ok(()),
                _ => refuse("there is nothing to take back"),
            },
            (Want::Abort, _) => Ok(()),
            (Want::Finish, State::Promoted | State::RetireDue | State::Finished) => Ok(()),
            (Want::Finish, _) => refuse("only a promoted version can be finished"),
            (Want::Promote | Want::PromoteAll, State::Promoted | State::RetireDue) => Ok(()),
            (_, _) if self.step().is_some() => Ok(()),
            _ => refuse("it has ended"),
        }
    }
}
