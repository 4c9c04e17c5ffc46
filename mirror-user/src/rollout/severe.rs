//! What needs no proof: an answer that fails nearly always, or none at all.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use super::gates::elapsed;
use super::record::Window;
use super::statistics::Counts;

/// Of the last so many answers ...
const LAST: u64 = 20;

/// ... this part failed: ten of twenty.
const PART: f64 = 0.5;

/// The shortest silence that says something.
const SILENCE: Duration = Duration::from_secs(10);

/// A canary may take this many times as long as stable's slowest answers, before it is silent.
const PATIENCE: u32 = 5;

/// What stable answered so long ago says nothing of now.
const STALE: Duration = Duration::from_secs(60);

/// Who cannot be reached for so long has gone; a dial that is refused once has not.
const OUTAGE: Duration = Duration::from_secs(2);

/// Who comes and goes so often ...
const OUTAGES: usize = 3;

/// ... within this is no server either.
const FLAPPING: Duration = Duration::from_secs(60);

/// Requests have to come in at least so many windows of a silence.
const ASKED: u32 = 3;

/// As few windows as have the last twenty.
#[derive(Clone, Debug, Default, PartialEq)]
struct Last(VecDeque<Counts>);

impl Last {
    fn add(&mut self, counts: Counts) {
        if counts.trials > 0 {
            self.0.push_back(counts);
        }
        let of_first = |last: &Self| last.0.front().map_or(0, |first| first.trials);
        while !self.0.is_empty() && self.sum().trials - of_first(self) >= LAST {
            self.0.pop_front();
        }
    }

    fn sum(&self) -> Counts {
        let mut sum = Counts::default();
        for counts in &self.0 {
            sum.add(*counts);
        }
        sum
    }

    /// So many of the last twenty at least, if this part of them failed.
    fn failing(&self, part: f64) -> Option<Counts> {
        let sum = self.sum();
        let fails = sum.events as f64 >= sum.trials as f64 * part;
        (sum.trials >= LAST && fails).then_some(sum)
    }
}

/// The last answers and connections of both versions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Recent {
    answers: [Last; 2],
    connections: [Last; 2],
    /// The canary's connections, and those of them that somebody else has got.
    strayed: Last,
    /// When stable answered last.
    stable_answered: Option<Timestamp>,
    /// The canary was asked first, since it answered last.
    asked_since: Option<Timestamp>,
    asked: u32,
    stable_answers: bool,
    stable_asked: bool,
    slowest: Duration,
    /// When the canary could not be reached first, since it took a connection, and last.
    outage: Option<[Timestamp; 2]>,
    /// When its outages of late began.
    outages: VecDeque<Timestamp>,
}

impl Recent {
    /// Takes in a window.
    pub(super) fn see(&mut self, window: &Window, now: Timestamp) {
        for (arm, seen) in [&window.stable, &window.canary].into_iter().enumerate() {
            self.answers[arm].add(seen.failed());
            self.connections[arm].add(seen.failed_connections());
        }
        let (stable, canary) = (&window.stable, &window.canary);
        self.strayed.add(Counts {
            events: canary.strayed,
            trials: canary.strayed + canary.delivered,
        });
        if stable.requests > 0 {
            self.stable_answered = Some(now);
        }
        // Whatever it sends is an answer, also where nobody can read it.
        if canary.response_bytes > 0 {
            (self.asked_since, self.asked) = (None, 0);
            (self.stable_answers, self.stable_asked) = (false, false);
        } else if canary.request_bytes > 0 || canary.unanswered_connections > 0 {
            self.asked_since.get_or_insert(now);
            self.asked += 1;
        }
        self.stable_answers |= stable.response_bytes > 0;
        self.stable_asked |= stable.request_bytes > 0;
        if let Some(longest) = stable.first_body.longest() {
            self.slowest = self.slowest.max(longest);
        }
        self.see_outage(window, now);
    }

    fn see_outage(&mut self, window: &Window, now: Timestamp) {
        let is_recent = |[_, last]: &[Timestamp; 2]| elapsed(*last, now) < SILENCE;
        if window.unreachable.is_none() {
            // Without connections nobody knows.
            self.outage = self.outage.filter(|_| window.canary.connections == 0);
            return;
        }
        let since = match self.outage.filter(is_recent) {
            Some([since, _]) => since,
            None => {
                self.outages.push_back(now);
                now
            }
        };
        self.outage = Some([since, now]);
        self.outages.retain(|began| elapsed(*began, now) < FLAPPING);
    }

    /// Whether it is known that the canary cannot be reached.
    pub(super) fn is_out(&self) -> bool {
        self.outage.is_some()
    }

    /// Whether the canary, which cannot be reached now, has gone.
    pub(super) fn is_gone(&self) -> bool {
        let lasts = self
            .outage
            .is_some_and(|[since, now]| elapsed(since, now) >= OUTAGE);
        lasts || self.outages.len() >= OUTAGES
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
        self.answers[arm].failing(limit.min(PART)).is_some()
    }

    /// Why the canary has to go at once, if it has to.
    pub(super) fn severe(&self, now: Timestamp) -> Option<String> {
        if let Some(Counts { events, trials }) = self.answers[1].failing(PART) {
            return Some(format!(
                "{events} of the canary's last {trials} requests failed"
            ));
        }
        // A server that ends its connections so does it in both versions.
        if let (None, Some(Counts { events, trials })) = (
            self.connections[0].failing(PART),
            self.connections[1].failing(PART),
        ) {
            return Some(format!(
                "{events} of the canary's last {trials} connections were reset by its server or not answered"
            ));
        }
        if let Some(Counts { events, trials }) = self.strayed.failing(PART) {
            return Some(format!(
                "{events} of the canary's last {trials} connections were answered by somebody else: netfilter (DNAT, REDIRECT), a bridge or a VRF takes them on their way, so their figures are not the canary's"
            ));
        }
        let silent = elapsed(self.asked_since?, now);
        let stable_is_well = self.stable_answers || !self.stable_asked;
        let patience = SILENCE.max(self.slowest * PATIENCE);
        (self.asked >= ASKED && silent >= patience && stable_is_well).then(|| {
            format!(
                "the canary has sent nothing for {} s, though it is asked",
                silent.as_secs()
            )
        })
    }
}
