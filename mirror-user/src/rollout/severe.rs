//! What needs no proof: an answer that fails nearly always, or none at all.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use super::gates::elapsed;
use super::record::Window;
use super::statistics::Counts;

/// Of the last so many answers ...
const LAST: u64 = 20;

/// ... so many failed.
const FAILED: u64 = 10;

/// The shortest silence that says something.
const SILENCE: Duration = Duration::from_secs(10);

/// A canary may take this many times as long as stable's slowest answers, before it is silent.
const PATIENCE: u32 = 5;

/// What stable answered so long ago says nothing of now.
const STALE: Duration = Duration::from_secs(60);

/// Requests have to come in at least so many windows of a silence.
const ASKED: u32 = 3;

/// The last answers of both versions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Recent {
    last: [VecDeque<Counts>; 2],
    /// When stable answered last.
    stable_answered: Option<Timestamp>,
    /// The canary was asked first, since it answered last.
    asked_since: Option<Timestamp>,
    asked: u32,
    stable_answers: bool,
    stable_asked: bool,
    slowest: Duration,
}

impl Recent {
    /// Takes in a window.
    pub(super) fn see(&mut self, window: &Window, now: Timestamp) {
        for (last, arm) in self.last.iter_mut().zip([&window.stable, &window.canary]) {
            let counts = arm.failed();
            if counts.trials > 0 {
                last.push_back(counts);
            }
            // As few windows as have the last answers.
            let all =
                |last: &VecDeque<Counts>| last.iter().map(|counts| counts.trials).sum::<u64>();
            while last
                .front()
                .is_some_and(|first| all(last) - first.trials >= LAST)
            {
                last.pop_front();
            }
        }
        let (stable, canary) = (&window.stable, &window.canary);
        if stable.responses > 0 {
            self.stable_answered = Some(now);
        }
        if canary.responses > 0 {
            (self.asked_since, self.asked) = (None, 0);
            (self.stable_answers, self.stable_asked) = (false, false);
        } else if canary.request_bytes > 0 {
            self.asked_since.get_or_insert(now);
            self.asked += 1;
        }
        self.stable_answers |= stable.responses > 0;
        self.stable_asked |= stable.request_bytes > 0;
        if let Some(longest) = stable.first_byte.longest() {
            self.slowest = self.slowest.max(longest);
        }
    }

    fn failing(&self, arm: usize) -> Option<Counts> {
        let mut sum = Counts::default();
        for counts in &self.last[arm] {
            sum.events += counts.events;
            sum.trials += counts.trials;
        }
        (sum.trials >= LAST).then_some(sum)
    }

    /// Whether stable fails as well: then it is not the canary.
    pub(super) fn stable_fails(&self, limit: f64, now: Timestamp) -> bool {
        let stale = |answered| elapsed(answered, now) > STALE;
        !self.stable_answered.is_none_or(stale) && self.fails(0, limit)
    }

    /// Whether both do.
    pub(super) fn both_fail(&self, limit: f64, now: Timestamp) -> bool {
        self.stable_fails(limit, now) && self.fails(1, limit)
    }

    fn fails(&self, arm: usize, limit: f64) -> bool {
        let part = limit.min(FAILED as f64 / LAST as f64);
        self.failing(arm)
            .is_some_and(|counts| counts.events as f64 >= counts.trials as f64 * part)
    }

    /// Why the canary has to go at once, if it has to.
    pub(super) fn severe(&self, now: Timestamp) -> Option<String> {
        if let Some(counts) = self.failing(1)
            && counts.events * LAST >= counts.trials * FAILED
        {
            let Counts { events, trials } = counts;
            return Some(format!(
                "{events} of the canary's last {trials} answers failed"
            ));
        }
        let silent = elapsed(self.asked_since?, now);
        let stable_is_well = self.stable_answers || !self.stable_asked;
        let patience = SILENCE.max(self.slowest * PATIENCE);
        (self.asked >= ASKED && silent >= patience && stable_is_well).then(|| {
            format!(
                "the canary has answered nobody for {} s, though it is asked",
                silent.as_secs()
            )
        })
    }
}
