//! Orders whose answers wait: for the disk, a rollout's record, the end of connections.

use std::time::{Duration, Instant};

use mirror_api::Done;

use super::{Action, Ticket};
use crate::control::Refusal;

/// How long an answer waits for a disk.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// How long it waits for connections to be ended: of a million that takes seconds.
const ENDING: Duration = Duration::from_secs(8);

/// What an answer waits for.
#[derive(Clone, Debug, Default)]
pub(super) struct Needs {
    /// The write of what is set with this number.
    pub(super) kept: Option<u64>,
    /// Whether nothing has changed before that.
    pub(super) raises: bool,
    /// The entry of a rollout's record.
    pub(super) record: Option<(String, u64)>,
    /// The end of connections, no longer than this.
    pub(super) ended: Option<Instant>,
}

/// An order that is not answered yet.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) ticket: Ticket,
    done: Done,
    needs: Needs,
    until: Instant,
    refusal: Option<Refusal>,
}

impl Waiting {
    pub(super) fn new(ticket: Ticket, done: Done, needs: Needs, now: Instant) -> Self {
        Self {
            ticket,
            done,
            needs,
            until: now + PATIENCE,
            refusal: None,
        }
    }

    /// It also waits for connections to be ended.
    pub(super) fn also_until_ended(&mut self, now: Instant) {
        self.needs.ended = Some(now + ENDING);
    }

    pub(super) fn on_kept(&mut self, number: u64) {
        if self.needs.kept.is_some_and(|needed| needed <= number) {
            self.needs.kept = None;
        }
    }

    /// That write, or a later one, has failed: it is tried again, but not waited for.
    pub(super) fn on_unkept(&mut self, number: u64, now: Instant) {
        if self.needs.kept.is_some_and(|needed| needed <= number) {
            self.until = now;
        }
    }

    pub(super) fn on_recorded(&mut self, service: &str, number: u64) {
        let is_it = |(of, needed): &mut (String, u64)| of == service && *needed <= number;
        self.needs.record.take_if(|record| is_it(record));
    }

    pub(super) fn on_ended(&mut self, ended: Result<u64, String>) {
        self.needs.ended = None;
        match ended {
            Ok(ended) => {
                let said = format!("{ended} of its connections were reset");
                self.done.done.push(said);
            }
            Err(error) => self.refusal = Some(Refusal::Failed(error)),
        }
    }

    /// When its patience is over, with one of the things that it waits for.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let disk = self.needs.kept.is_some() || self.needs.record.is_some();
        disk.then_some(self.until)
            .into_iter()
            .chain(self.needs.ended)
            .min()
    }

    /// Gives up what has taken too long; `why` the disk does not have it, as far as is known.
    pub(super) fn pass(&mut self, now: Instant, why: Option<&str>) {
        let why = why.unwrap_or("the disk does not answer");
        if now >= self.until && self.needs.kept.take().is_some() {
            if self.needs.raises {
                self.refusal.get_or_insert(Refusal::Failed(format!(
                    "not yet: what raises a share or a sample holds once the disk has it ({why}); it \
                     comes into force then, unless it is lowered again"
                )));
            } else {
                self.done.warnings.push(format!(
                    "it holds, but is not on the disk yet, and is tried again every second: {why}"
                ));
            }
        }
        if now >= self.until && self.needs.record.take().is_some() {
            self.done.warnings.push(
                "the rollout's record is not on the disk yet: a step back holds, a step forward waits for it"
                    .to_owned(),
            );
        }
        if self.needs.ended.take_if(|until| now >= *until).is_some() {
            let said = "its connections are still being reset; the log says when they have been";
            self.done.done.push(said.to_owned());
        }
    }

    /// Whether it waits for nothing any more.
    pub(super) fn is_over(&self) -> bool {
        let Needs {
            kept,
            record,
            ended,
            ..
        } = &self.needs;
        self.refusal.is_some() || kept.is_none() && record.is_none() && ended.is_none()
    }

    pub(super) fn answer(self) -> Action {
        let answer = self.refusal.map_or(Ok(self.done), Err);
        Action::Answer(self.ticket, answer)
    }
}
