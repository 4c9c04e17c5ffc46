//! From copied packets to what became of their exchanges: the agent's own reassembly and framing, with
//! no body kept. Pure.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mirror_common::flow::Endpoint;
use mirror_common::measure::cluster;
use mirror_common::policy;
use mirror_common::record::Record;
use mirror_common::siphash::siphash;
use mirror_common::tunnel::{Arm, Direction};
use mirror_rollout::statistics::{CLUSTERS, Sort};
use mirror_wire::body::failure::says;
use mirror_wire::body::pointer::Pointers;
use mirror_wire::exchange::{Event, Exchanges, Limits};
use mirror_wire::memory::Memory;
use mirror_wire::message::{DropReason, Ending, ExchangeId, Partial, TapId};
use mirror_wire::segment::segment_of;

use super::marks::Marks;
use super::tally::{Outcome, Tally, Wait};

/// What waits for bytes before it, of all connections.
const MEMORY: usize = 32 << 20;

/// What waits of one direction of a connection.
const BUFFER: usize = 1 << 20;

/// The largest body that is looked into.
const MAX_BODY: usize = 1 << 20;

/// The most connections that are remembered.
const MAX_CONNECTIONS: usize = 16_384;

/// There is one tap here.
const TAP: TapId = TapId(0);

/// Which connections of a service are looked at.
#[derive(Debug)]
pub(super) struct Rule {
    /// Of this the key and the shares count.
    pub(super) policy: policy::Service,
    pub(super) tally: Arc<Tally>,
    /// Of the canary only connections count that were opened after this moment of the tap's clock, in
    /// nanoseconds: older ones may be served by the version before. 0 = all.
    pub(super) trial_ns: u64,
    /// A request that waits for so long without a byte is unanswered, or incomplete.
    pub(super) unanswered_after: Duration,
    /// Where a response's JSON says that it is a failure.
    pub(super) fail_if: Option<Pointers>,
}

impl Rule {
    fn counts(&self, arm: Arm, opened_ns: Option<u64>) -> bool {
        let is_older = opened_ns.is_none_or(|opened_ns| opened_ns < self.trial_ns);
        !(arm == Arm::Canary && self.trial_ns > 0 && is_older)
    }
}

/// An exchange whose end is not known.
#[derive(Clone, Copy, Debug)]
struct Begun {
    /// Index of its service.
    service: usize,
    arm: Arm,
    /// Where its client, and its connection, are counted.
    clusters: [usize; 2],
    /// When the last byte of its request passed.
    request_ns: Option<u64>,
    /// Whether its response may have a body, by the request.
    may_have_body: bool,
}

/// All exchanges that are looked at.
#[derive(Debug)]
pub(super) struct Reading {
    exchanges: Exchanges,
    /// By the index that [`Exchanges`] knows them by; services that are gone stay.
    services: Vec<Rule>,
    by_id: HashMap<u32, usize>,
    /// What is slow, and short, of each.
    marks: Vec<Marks>,
    /// Whose the exchanges are whose end is not known.
    open: HashMap<ExchangeId, Begun>,
    events: Vec<Event>,
    /// The tap's time and ours, when the last copy was read.
    last: (u64, Duration),
}

impl Reading {
    pub(super) fn new() -> Self {
        let exchanges = Exchanges::new(Vec::new(), Memory::new(MEMORY));
        Self {
            exchanges: exchanges.with_max_connections(MAX_CONNECTIONS),
            services: Vec::new(),
            by_id: HashMap::new(),
            marks: Vec::new(),
            open: HashMap::new(),
            events: Vec::new(),
            last: (0, Duration::ZERO),
        }
    }

    /// Sets which connections of a service count from now on. What is open of others is dropped as
    /// [`DropReason::Shutdown`]: it is not known how that will end.
    pub(super) fn set(&mut self, id: u32, rule: Rule) {
        let mut limits = Limits::new(MAX_BODY).without_bodies();
        limits.skips_responses = rule.fail_if.is_none();
        limits.buffer = BUFFER;
        limits.incomplete = rule.unanswered_after;
        limits.idle = limits.idle.max(limits.incomplete);
        match self.by_id.get(&id) {
            Some(&index) => {
                self.exchanges.set_limits(index, limits);
                let trial_ns = self.services[index].trial_ns;
                if trial_ns != rule.trial_ns {
                    self.leave_canary(index);
                }
                self.services[index] = rule;
            }
            None => {
                self.by_id.insert(id, self.exchanges.add_service(limits));
                self.services.push(rule);
                self.marks.push(Marks::default());
            }
        }
        let services = &self.services;
        let keep = |index: usize, arm, flow: &mirror_common::flow::Flow| {
            let rule = services.get(index);
            rule.is_some_and(|rule| rule.policy.is_looked_at(arm, flow.hash(rule.policy.key)))
        };
        self.exchanges
            .retain(keep, DropReason::Shutdown, &mut self.events);
        self.count_events(self.last.0);
    }

    /// Another version is on trial: how what is open of the one before ends is no evidence.
    fn leave_canary(&mut self, service: usize) {
        let tally = &self.services[service].tally;
        self.open.retain(|_, begun| {
            let is_left = begun.service == service && begun.arm == Arm::Canary;
            if is_left {
                tally.count(Arm::Canary, Outcome::Unseen(DropReason::Shutdown));
            }
            !is_left
        });
    }

    /// Takes a copied packet in. What the tap copied before it knew that its connection does not count
    /// any more is left out.
    pub(super) fn record(&mut self, record: &Record, packet: &[u8], now: Duration) {
        let Some(&index) = self.by_id.get(&record.service) else {
            return;
        };
        let rule = &self.services[index];
        rule.tally
            .count_bytes(record.arm, record.packet_length.into());
        let Some(segment) = segment_of(index, TAP, record, packet) else {
            return;
        };
        self.last = (record.time_ns, now);
        let hash = segment.flow.hash(rule.policy.key);
        if rule.policy.is_looked_at(record.arm, hash) {
            self.exchanges.segment(segment, now, &mut self.events);
            self.count_events(record.time_ns);
        }
    }

    /// Lets time pass.
    pub(super) fn tick(&mut self, now: Duration) {
        self.exchanges.tick(now, &mut self.events);
        let (last_ns, last) = self.last;
        let since = now.saturating_sub(last).as_nanos();
        self.count_events(last_ns.saturating_add(since as u64));
    }

    /// When [`Reading::tick`] has something to do next.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.exchanges.deadline()
    }

    /// Packets are missing, and nobody knows whose: how what is open ends is not known.
    pub(super) fn lose(&mut self) {
        self.exchanges
            .retain(|_, _, _| false, DropReason::ResponseGap, &mut self.events);
        self.count_events(self.last.0);
    }

    /// Counts what has happened, at `now_ns` by the tap's clock.
    fn count_events(&mut self, now_ns: u64) {
        for event in self.events.drain(..) {
            match event {
                Event::Seen {
                    id,
                    service,
                    arm,
                    opened_ns,
                    client,
                    ..
                } => {
                    if self.services[service].counts(arm, opened_ns) {
                        self.services[service].tally.count_seen(arm);
                        let begun = Begun {
                            service,
                            arm,
                            clusters: clusters(client, self.services[service].policy.key),
                            request_ns: None,
                            may_have_body: true,
                        };
                        self.open.insert(id, begun);
                    }
                }
                Event::Request { id, request, .. } => {
                    if let Some(begun) = self.open.get_mut(&id) {
                        begun.request_ns = Some(request.last_byte_ns);
                        begun.may_have_body = request.method != "HEAD";
                    }
                }
                Event::Response { id, response } => {
                    if let Some(begun) = self.open.remove(&id) {
                        let rule = &self.services[begun.service];
                        let says_error = response.status < 400
                            && rule
                                .fail_if
                                .as_ref()
                                .is_some_and(|places| says(&response, places));
                        let tally = &rule.tally;
                        let came = Came {
                            says_error,
                            status: response.status,
                            header_ns: Some(response.first_byte_ns),
                            body_ns: response.body_ns,
                            end_ns: response.last_byte_ns,
                            body_bytes: response.body_bytes,
                        };
                        begun.count_response(tally, &mut self.marks[begun.service], &came);
                    }
                }
                Event::Dropped {
                    id, reason, ending, ..
                } => {
                    if let Some(begun) = self.open.remove(&id) {
                        let tally = &self.services[begun.service].tally;
                        let marks = &mut self.marks[begun.service];
                        begun.count_dropped(tally, marks, reason, &ending, now_ns);
                    }
                }
                Event::Closed { .. } => {}
            }
        }
    }
}

/// A whole response. Times are the tap's, in nanoseconds.
struct Came {
    status: u16,
    /// Its body says that it is a failure.
    says_error: bool,
    header_ns: Option<u64>,
    body_ns: Option<u64>,
    end_ns: u64,
    body_bytes: u64,
}

impl Begun {
    fn count_response(&self, tally: &Tally, marks: &mut Marks, came: &Came) {
        let outcome = match came.says_error {
            true => Outcome::SaysError,
            false => Outcome::of_status(came.status),
        };
        tally.count(self.arm, outcome);
        let may_have_body = self.may_have_body && matches!(came.status, 200..=203 | 206..=299);
        if may_have_body {
            tally.count_size(self.arm, came.body_bytes);
        }
        if let Some(header_ns) = came.header_ns {
            self.count_wait(tally, Wait::Header, header_ns);
        }
        let body_ns = came.body_ns.unwrap_or(came.end_ns);
        self.count_wait(tally, Wait::Body, body_ns);
        self.count_wait(tally, Wait::End, came.end_ns);
        let learns = self.arm == Arm::Stable;
        let [body, end] = [body_ns, came.end_ns].map(|at_ns| self.waited(at_ns));
        let is_slow = marks.slow([body, end], learns);
        let is_short = may_have_body && marks.short(came.body_bytes, learns);
        self.count_clusters(tally, outcome, is_slow, is_short);
    }

    /// Counts it for its client and its connection.
    fn count_clusters(
        &self,
        tally: &Tally,
        outcome: Outcome,
        is_slow: [[bool; 2]; 2],
        is_short: bool,
    ) {
        let [[body_p50, body_p99], [end_p50, end_p99]] = is_slow;
        tally.count_clusters(self.arm, self.clusters, |sort| match sort {
            Sort::Requests => true,
            Sort::Failed => outcome.is_failure(),
            Sort::ClientErrors => outcome == Outcome::Whole(4),
            Sort::Redirects => outcome == Outcome::Whole(3),
            Sort::Short => is_short,
            Sort::Aborted => outcome == Outcome::AbortedByClient,
            Sort::BodyP50 => body_p50,
            Sort::BodyP99 => body_p99,
            Sort::EndP50 => end_p50,
            Sort::EndP99 => end_p99,
        });
    }

    /// One that was not whole, at `now_ns`.
    fn count_dropped(
        &self,
        tally: &Tally,
        marks: &mut Marks,
        reason: DropReason,
        ending: &Ending,
        now_ns: u64,
    ) {
        if let Some(Partial {
            status: Some(status),
            body_ns,
            last_byte_ns: end_ns,
            body_bytes,
            is_whole: true,
        }) = ending.response
        {
            // Its client has a response, whatever could not be told of the request.
            let came = Came {
                status,
                says_error: false,
                header_ns: None,
                body_ns,
                end_ns,
                body_bytes,
            };
            return self.count_response(tally, marks, &came);
        }
        let outcome = outcome(reason, ending);
        tally.count(self.arm, outcome);
        let body_ns = ending.response.and_then(|response| response.body_ns);
        if let (Some(body_ns), false) = (body_ns, matches!(outcome, Outcome::Unseen(_))) {
            self.count_wait(tally, Wait::Body, body_ns);
        }
        let is_given_up = outcome == Outcome::AbortedByClient || ending.by.is_none();
        if matches!(outcome, Outcome::Unseen(_)) {
            return;
        }
        let body = body_ns.and_then(|body_ns| self.waited(body_ns));
        let is_slow = marks.slow([Some(body.unwrap_or(u64::MAX)), Some(u64::MAX)], false);
        self.count_clusters(tally, outcome, is_slow, false);
        if outcome == Outcome::Unreadable {
            return;
        }
        let Some(request_ns) = self.request_ns else {
            return;
        };
        let given_up_ns = is_given_up.then(|| now_ns.saturating_sub(request_ns));
        if body_ns.is_none() {
            tally.count_never(self.arm, Wait::Body, given_up_ns);
        }
        tally.count_never(self.arm, Wait::End, given_up_ns);
    }

    fn count_wait(&self, tally: &Tally, wait: Wait, at_ns: u64) {
        if let Some(waited_ns) = self.waited(at_ns) {
            tally.count_wait(self.arm, wait, waited_ns);
        }
    }

    fn waited(&self, at_ns: u64) -> Option<u64> {
        self.request_ns
            .map(|request_ns| at_ns.saturating_sub(request_ns))
    }
}

/// The clusters of a client and of its connection: keyed, so that nobody chooses with whom it is counted.
fn clusters(client: SocketAddr, key: [u64; 2]) -> [usize; 2] {
    let endpoint = Endpoint::from(client);
    let [high, low] = endpoint.address.lanes();
    let hash = siphash::<1, 3, 3>(key, &[high, low, endpoint.port().into()]);
    [cluster(&endpoint, key), (hash % CLUSTERS as u64) as usize]
}

/// What the client knows of an exchange without a whole response.
fn outcome(reason: DropReason, ending: &Ending) -> Outcome {
    match (reason, ending.by) {
        (DropReason::Malformed, Some(Direction::Response)) => Outcome::Unreadable,
        (
            DropReason::RequestIncomplete | DropReason::ResponseIncomplete,
            Some(Direction::Request),
        ) => Outcome::AbortedByClient,
        (DropReason::RequestIncomplete, Some(Direction::Response))
        | (DropReason::ResponseIncomplete, _) => match ending.response {
            Some(_) => Outcome::Incomplete,
            None => Outcome::Unanswered,
        },
        _ => Outcome::Unseen(reason),
    }
}

#[cfg(test)]
pub(super) mod tests;
