//! What needs no proof: an answer that fails nearly always, or none at all.

use std::collections::VecDeque;
use std::time::Duration;

use jiff::Timestamp;

use super::gates::{FEW, elapsed};
use super::statistics::{Counts, Served, Sort};
use super::window::{Arm, Window};

/// Of the last so many answers ...
const LAST: u64 = 20;

/// ... this part failed, ten of twenty, ...
const PART: f64 = 0.5;

/// ... in so many windows ...
const WINDOWS: usize = 3;

/// ... that lie so far apart: a burst within a second is no end.
const SPAN: Duration = Duration::from_secs(2);

/// So much more of the canary's failed than of stable's in the same windows, ...
const APART: f64 = 0.4;

/// ... by less than one chance in 100 million (Chernoff's bound, in nats): there are thousands of last twenties
/// in a rollout.
const SURE: f64 = 18.4;

/// How long failures of clients are remembered.
const REMEMBERED: Duration = Duration::from_secs(60);

/// What stable answered in five minutes, and in the five before, is of late.
const LATE: Duration = Duration::from_secs(300);

/// Failures of fewer clients than these are those of one that asks for what cannot be had, or asks no more.
const CLIENTS: u32 = 3;

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

/// As few windows as have the last twenty of one version, and what the one beside it did in them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Last(VecDeque<(Timestamp, [Counts; 2])>);

impl Last {
    fn add(&mut self, own: Counts, beside: Counts, now: Timestamp) {
        match self.0.back_mut() {
            _ if own.trials > 0 => self.0.push_back((now, [own, beside])),
            Some((_, [_, before])) => before.add(beside),
            None => {}
        }
        let [own, _] = self.sum();
        let mut rest = own.trials;
        while self.0.len() > WINDOWS
            && rest - self.0[0].1[0].trials >= LAST
            && elapsed(self.0[1].0, now) >= SPAN
        {
            rest -= self.0[0].1[0].trials;
            self.0.pop_front();
        }
    }

    fn sum(&self) -> [Counts; 2] {
        let mut sum = [Counts::default(); 2];
        for (_, window) in &self.0 {
            for (sum, counts) in sum.iter_mut().zip(window) {
                sum.add(*counts);
            }
        }
        sum
    }

    /// So many of the last twenty at least, if this part of them failed, time and again.
    fn failing(&self, part: f64) -> Option<Counts> {
        let [own, _] = self.sum();
        let bad = self.0.iter().filter(|(_, [own, _])| fails(*own, part));
        let (mut bad, count) = (bad.clone(), bad.count());
        let first = bad.next().map(|(first, _)| *first);
        let last = bad.next_back().map(|(last, _)| *last);
        let lasts = first.zip(last).map(|(first, last)| elapsed(first, last));
        let often = count >= WINDOWS && lasts.is_some_and(|lasts| lasts >= SPAN);
        (own.trials >= LAST && fails(own, part) && often).then_some(own)
    }

    /// The same, if it is far worse than the one beside it.
    fn far_worse(&self, part: f64) -> Option<Counts> {
        let [own, beside] = self.sum();
        let apart = beside.trials == 0 || {
            let likely = (beside.events as f64 + 1.0) / (beside.trials as f64 + 2.0);
            rate(own) >= rate(beside) + APART && own.surprise(likely) >= SURE
        };
        self.failing(part).filter(|_| apart)
    }
}

fn fails(counts: Counts, part: f64) -> bool {
    counts.events as f64 >= counts.trials as f64 * part
}

fn rate(counts: Counts) -> f64 {
    counts.events as f64 / counts.trials.max(1) as f64
}

/// The last answers and connections of both versions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Recent {
    answers: [Last; 2],
    connections: [Last; 2],
    /// The canary's connections, and those of them that somebody else has got.
    strayed: Last,
    /// Who was failed of late, a bit for each client, and for each connection.
    failed: VecDeque<(Timestamp, [u64; 2])>,
    /// Who is served by either version.
    served: Served,
    /// The same of whose connections failed, and of who opens some.
    cut: VecDeque<(Timestamp, u64)>,
    dialling: Served,
    by_client: bool,
    /// When stable answered last.
    stable_answered: Option<Timestamp>,
    /// The canary was asked first, since it answered last.
    asked_since: Option<Timestamp>,
    asked: u32,
    stable_answers: bool,
    stable_asked: bool,
    slowest: Duration,
    /// Stable's slowest whole answer in these five minutes, and in those before.
    late: [Duration; 2],
    late_since: Option<Timestamp>,
    /// When the canary could not be reached first, since it took a connection, and last.
    outage: Option<[Timestamp; 2]>,
    /// When its outages of late began.
    outages: VecDeque<Timestamp>,
}

impl Arm {
    /// Connections that were seen to be had, and those of them that somebody else has.
    fn gone_astray(&self) -> Counts {
        Counts {
            events: self.strayed,
            trials: self.strayed + self.delivered,
        }
    }
}

impl Recent {
    /// Takes in a window.
    pub(super) fn see(&mut self, window: &Window, now: Timestamp) {
        let (stable, canary) = (&window.stable, &window.canary);
        let of_both = |of: fn(&Arm) -> Counts| [of(stable), of(canary)];
        let pairs = [
            (&mut self.answers, of_both(Arm::failed)),
            (&mut self.connections, of_both(Arm::failed_connections)),
        ];
        for ([of_stable, of_canary], [stable, canary]) in pairs {
            of_stable.add(stable, Counts::default(), now);
            of_canary.add(canary, stable, now);
        }
        self.by_client = window.by_client;
        self.see_clients(window, now);
        let strayed = canary.gone_astray();
        self.strayed.add(strayed, Counts::default(), now);
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

    fn see_clients(&mut self, Window { stable, canary, .. }: &Window, now: Timestamp) {
        self.served.see(&stable.clients);
        self.served.see(&canary.clients);
        self.failed
            .retain(|(then, _)| elapsed(*then, now) < REMEMBERED);
        let failed = [&canary.clients, &canary.by_connection].map(|by| by.mask(Sort::Failed));
        if failed != [0, 0] {
            self.failed.push_back((now, failed));
        }
        self.cut
            .retain(|(then, _)| elapsed(*then, now) < REMEMBERED);
        self.dialling.see(&stable.connections_by_client);
        self.dialling.see(&canary.connections_by_client);
        let cut = canary.connections_by_client.mask(Sort::Failed);
        if cut != 0 {
            self.cut.push_back((now, cut));
        }
    }

    /// Whether so few are failed that it may be their own doing. A gateway is no client.
    fn fails_few(&self, now: Timestamp) -> bool {
        let of_late = self.failed.iter();
        let of_late = of_late.filter(|(then, _)| elapsed(*then, now) < REMEMBERED);
        let [clients, connections] = of_late.fold([0; 2], |[a, b], (_, [c, d])| [a | c, b | d]);
        let failed = match connections {
            1.. if self.served.effective() < FEW => connections,
            _ => clients,
        };
        (1..CLIENTS).contains(&failed.count_ones())
    }

    /// The same of connections: whether those that failed are so few clients' that it may be their own doing.
    fn cuts_few(&self, now: Timestamp) -> bool {
        let of_late = self.cut.iter();
        let of_late = of_late.filter(|(then, _)| elapsed(*then, now) < REMEMBERED);
        let clients = of_late.fold(0, |mask, (_, more)| mask | more);
        let is_gateway = !self.by_client && self.dialling.effective() < FEW;
        !is_gateway && (1..CLIENTS).contains(&clients.count_ones())
    }

    /// Takes in how long stable's answers take.
    pub(super) fn see_stable(&mut self, stable: &Arm, now: Timestamp) {
        let since = *self.late_since.get_or_insert(now);
        if elapsed(since, now) >= LATE {
            self.late = [Duration::ZERO, self.late[0]];
            self.late_since = Some(now);
        }
        if let Some(longest) = stable.complete.longest() {
            self.late[0] = self.late[0].max(longest);
        }
    }

    /// How long stable's slowest answers of late take, in whole seconds. Failures are fast: so long after a rise of
    /// the share they have come, and what they are to be held against has not.
    pub(super) fn lingers(&self) -> Duration {
        let [now, before] = self.late;
        Duration::from_secs(now.max(before).as_secs())
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

    /// Whether a window shows what may become severe, so that it is to be told by itself, and at once.
    pub(super) fn alarms(&self, window: &Window) -> bool {
        let canary = &window.canary;
        let counted = [
            canary.failed(),
            canary.failed_connections(),
            canary.gone_astray(),
        ];
        let mut counted = counted.into_iter();
        window.unreachable.is_some() && self.outage.is_none()
            || counted.any(|counts| counts.trials > 0 && fails(counts, PART))
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
        if let Some(Counts { events, trials }) = self.answers[1].far_worse(PART)
            && !self.fails_few(now)
        {
            return Some(format!(
                "{events} of the canary's last {trials} requests failed"
            ));
        }
        if let Some(Counts { events, trials }) = self.connections[1].far_worse(PART)
            && !self.cuts_few(now)
        {
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
