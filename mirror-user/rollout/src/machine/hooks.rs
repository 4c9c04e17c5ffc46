//! Which hooks are called when, and what their answers change.

use std::time::Duration;

use jiff::Timestamp;

use super::Rollout;
use crate::gates::elapsed;
use crate::held::{Held, Kind};
use crate::plan::HookPoint;
use crate::record::{Answer, Called};
use crate::state::{State, Step};

/// How long until a hook that did not approve is asked again.
const AGAIN: Duration = Duration::from_secs(10);

/// How often a hook is called that nobody waits for, until it answers.
const CALLS: u32 = 3;

/// A call that is to be made now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// The hook's place in the plan.
    pub hook: usize,
    /// What for.
    pub point: HookPoint,
}

/// What became of a hook at the present point.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Asked {
    calls: u32,
    approved: bool,
    last: Option<(Timestamp, Answer)>,
}

impl Rollout {
    /// The hooks that are to be called now.
    pub fn calls(&self, now: Timestamp) -> Vec<Call> {
        let Some(point) = self.point() else {
            return Vec::new();
        };
        let due = |asked: &Asked, approve: bool| match &asked.last {
            None => true,
            Some(_) if asked.approved => false,
            Some((at, answer)) => {
                let failed = matches!(answer, Answer::Failed(_));
                let again = approve || failed && asked.calls < CALLS;
                again && elapsed(*at, now) >= AGAIN
            }
        };
        let hooks = self.plan().hooks.iter().zip(&self.asked).enumerate();
        hooks
            .filter(|(_, (hook, asked))| hook.on == point && due(asked, hook.approve))
            .map(|(hook, _)| Call { hook, point })
            .collect()
    }

    /// Which hooks are called here.
    fn point(&self) -> Option<HookPoint> {
        match &self.state {
            State::Going(Step::Before) => Some(HookPoint::Before),
            State::Going(Step::ShadowPassed | Step::StagePassed(_)) => Some(HookPoint::Stage),
            State::RolledBack { .. } | State::Aborted { .. } => Some(HookPoint::Rollback),
            State::Promoted => Some(HookPoint::Promotion),
            _ => None,
        }
    }

    pub(super) fn called(&mut self, called: &Called, now: Timestamp) {
        if self.point() != Some(called.point) {
            return;
        }
        if let Some(asked) = self.asked.get_mut(called.hook) {
            asked.calls += 1;
            asked.approved = called.answer == Answer::Approved;
            asked.last = Some((now, called.answer.clone()));
        }
    }

    /// Hooks that have to answer first.
    pub(crate) fn wait_for_hooks(&self, waits: &mut Vec<Held>) {
        let Some(point) = self.point() else { return };
        for (hook, asked) in self.plan().hooks.iter().zip(&self.asked) {
            if hook.on != point {
                continue;
            }
            let settled = asked.approved
                || !hook.approve
                    && match &asked.last {
                        None => false,
                        Some((_, Answer::Failed(_))) => asked.calls >= CALLS,
                        Some(_) => true,
                    };
            if settled {
                continue;
            }
            let said = match &asked.last {
                None => "has not answered yet".to_owned(),
                Some((_, Answer::Refused(said))) => format!("does not approve: {said}"),
                Some((_, Answer::Failed(why))) => format!("cannot be asked: {why}"),
                Some((_, Answer::Approved)) => continue,
            };
            waits.push(Held {
                kind: Kind::Hook,
                why: format!("the hook at {} {said}", hook.url),
            });
        }
    }
}
