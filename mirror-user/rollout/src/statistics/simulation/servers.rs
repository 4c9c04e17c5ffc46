//! Two servers, second by second, in the worlds that servers live in: none of them is made of independent requests.

use mirror_common::histogram::Latency;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::super::latencies::BUCKETS;
use super::super::{CLUSTERS, Counts, Latencies, Sort};
use super::lognormal;
use super::whole::arm;
use crate::window;
use crate::window::Arm;

/// Requests of both versions a second.
const REQUESTS: f64 = 200.0;

/// Errors that come in bursts come in so many.
const BURST: f64 = 20.0;

/// How much of a server's slowness is left after a second.
const LASTS: f64 = 0.95;

/// What happens to the servers, and what the canary is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nature {
    /// Requests that fail, at first.
    pub(super) errors: f64,
    /// A server stands still for up to a second, in so many seconds.
    pub(super) pauses: f64,
    /// How much the logarithm of a server's latency wanders.
    pub(super) wander: f64,
    /// The part of errors that comes in bursts.
    pub(super) bursts: f64,
    /// A request that failed is repeated, and fails again with this chance.
    pub(super) fails_again: f64,
    /// Both fail so much more often, for so many seconds, once the canary has this share.
    pub(super) incident: Option<(f64, u32, f64)>,
    /// The load rises and falls by so much in two hours.
    pub(super) tide: f64,
    /// The canary is so many times slower, for so many seconds from its first request on, ...
    pub(super) slower: (f64, u32),
    /// ... or from when it has this share.
    pub(super) slower_from: f64,
    /// The canary fails so much more often.
    pub(super) worse: f64,
    /// So many clients ask, each of which has one version, and fails and is slow in its own way; 0 = each request is of
    /// another.
    pub(super) clients: u32,
    /// Each asks less often than the one before it: the exponent of Zipf's law.
    pub(super) uneven: f64,
}

pub(super) const CALM: Nature = Nature {
    errors: 0.01,
    pauses: 0.0,
    wander: 0.0,
    bursts: 0.0,
    fails_again: 0.0,
    incident: None,
    tide: 0.0,
    slower: (1.0, 0),
    slower_from: 0.0,
    worse: 0.0,
    clients: 0,
    uneven: 0.0,
};

/// Two servers, second by second.
pub(super) struct Servers {
    nature: Nature,
    rng: SmallRng,
    /// Equally likely latencies in nanoseconds.
    latencies: Vec<f64>,
    second: u32,
    /// The logarithm of how slow each is.
    slow: [f64; 2],
    incident_since: Option<u32>,
    canary_since: Option<u32>,
    clients: Vec<Client>,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
struct Client {
    /// With what chance a request is of this one, or of one before.
    until: f64,
    /// It meets the canary from this share on.
    share: f64,
    /// How often its requests fail.
    errors: f64,
    /// How many times the usual it waits.
    slow: f64,
    cluster: u8,
}

impl Servers {
    pub(super) fn new(nature: Nature, seed: u64) -> Self {
        let buckets = lognormal(1.0);
        let mut servers = Self {
            nature,
            rng: SmallRng::seed_from_u64(seed),
            latencies: buckets
                .into_iter()
                .map(|bucket| Latency::upper_bound_ns(usize::from(bucket)) as f64 * 0.97)
                .collect(),
            second: 0,
            slow: [0.0; 2],
            incident_since: None,
            canary_since: None,
            clients: Vec::new(),
        };
        servers.slow = [0, 1].map(|_| servers.normal() * nature.wander);
        servers.meet();
        servers
    }

    fn meet(&mut self) {
        let Nature {
            clients, uneven, ..
        } = self.nature;
        let parts = (1..=clients).map(|rank| f64::from(rank).powf(-uneven));
        let all: f64 = parts.clone().sum();
        let mut until = 0.0;
        for part in parts {
            until += part / all;
            let client = Client {
                until,
                share: self.uniform(),
                errors: -self.uniform().max(1e-12).ln() * self.nature.errors,
                slow: (0.1 * self.normal()).exp(),
                cluster: (self.rng.next_u64() % CLUSTERS as u64) as u8,
            };
            self.clients.push(client);
        }
    }

    /// What both do in the next second for clients that keep their version.
    fn window_of_clients(&mut self, share: f64) -> window::Window {
        self.second += 1;
        let mut window = window::Window {
            by_client: true,
            ..window::Window::default()
        };
        let mut rows = [[[0; Sort::COUNT]; CLUSTERS]; 2];
        let mut buckets = [[0; BUCKETS]; 2];
        let mut counts = [Counts::default(); 2];
        for _ in 0..REQUESTS as u32 {
            let drawn = self.uniform();
            let at = self.clients.partition_point(|client| client.until < drawn);
            let client = self.clients[at.min(self.clients.len() - 1)];
            let arm = usize::from(client.share < share);
            let worse = if arm == 1 { self.nature.worse } else { 0.0 };
            let failed = self.happens(client.errors + worse);
            let draw = self.rng.next_u64();
            let latency = self.latencies[(draw & 0xfff) as usize] * client.slow;
            buckets[arm][Latency::bucket(latency as u64)] += 1;
            counts[arm].trials += 1;
            counts[arm].events += u64::from(failed);
            let slow =
                [0.5, 0.99].map(|quantile| latency > self.latencies[(quantile * 4096.0) as usize]);
            let row = &mut rows[arm][usize::from(client.cluster)];
            for (sort, is) in [
                (Sort::Requests, true),
                (Sort::Failed, failed),
                (Sort::BodyP50, slow[0]),
                (Sort::BodyP99, slow[1]),
                (Sort::EndP50, slow[0]),
                (Sort::EndP99, slow[1]),
            ] {
                row[sort as usize] += u64::from(is);
            }
        }
        for (at, of) in [&mut window.stable, &mut window.canary]
            .into_iter()
            .enumerate()
        {
            let latencies = (0..).zip(buckets[at]).collect();
            *of = arm(&mut self.rng, counts[at], &latencies);
            of.clients = (0..).zip(rows[at]).collect();
        }
        window
    }

    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Twelve uniform numbers are normal enough.
    fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.uniform()).sum::<f64>() - 6.0
    }

    fn happens(&mut self, chance: f64) -> bool {
        chance > 0.0 && self.uniform() < chance
    }

    /// What both do in the next second.
    pub(super) fn window(&mut self, share: f64) -> window::Window {
        if !self.clients.is_empty() {
            return self.window_of_clients(share);
        }
        self.second += 1;
        let turn = std::f64::consts::TAU * f64::from(self.second) / 7_200.0;
        let load = REQUESTS * (1.0 + self.nature.tide * turn.sin());
        let requests = load as u64 + u64::from(self.happens(load.fract()));
        let of_canary = (0..requests).filter(|_| self.happens(share)).count() as u64;
        let extra = self.incident(share);
        if of_canary > 0 && share >= self.nature.slower_from {
            self.canary_since.get_or_insert(self.second);
        }
        let stable = self.arm(0, requests - of_canary, extra, share);
        let canary = self.arm(1, of_canary, extra, share);
        window::Window {
            stable,
            canary,
            ..window::Window::default()
        }
    }

    /// How much more often both fail now: two minutes after the canary has got its share.
    fn incident(&mut self, share: f64) -> f64 {
        let Some((at, lasts, extra)) = self.nature.incident else {
            return 0.0;
        };
        if share >= at {
            self.incident_since.get_or_insert(self.second + 120);
        }
        let is_now = self
            .incident_since
            .is_some_and(|since| (since..since + lasts).contains(&self.second));
        if is_now { extra } else { 0.0 }
    }

    fn arm(&mut self, at: usize, requests: u64, extra: f64, share: f64) -> Arm {
        let nature = self.nature;
        let own = if at == 1 { nature.worse } else { 0.0 };
        let rate = nature.errors + extra + own;
        let (events, repeated) = self.failures(requests, rate, [1.0 - share, share][at]);
        let trials = requests + repeated;
        let latencies = self.latencies_of(at, trials);
        arm(&mut self.rng, Counts { events, trials }, &latencies)
    }

    /// Of so many requests: those that fail, and those that repeat others.
    fn failures(&mut self, requests: u64, rate: f64, share: f64) -> (u64, u64) {
        let nature = self.nature;
        let single = rate * (1.0 - nature.bursts);
        let mut failed = (0..requests).filter(|_| self.happens(single)).count() as u64;
        // A burst is one client's, and meets one version.
        let bursts = REQUESTS * nature.errors * nature.bursts / BURST;
        let mut more = 0;
        if self.happens(bursts * share) {
            let burst = (BURST * (0.5 + self.uniform())) as u64;
            (failed, more) = (failed + burst, burst);
        }
        let repeated = if nature.fails_again > 0.0 { failed } else { 0 };
        for _ in 0..repeated {
            more += 1;
            while self.happens(nature.fails_again) {
                (failed, more) = (failed + 1, more + 1);
            }
        }
        (failed, more)
    }

    fn latencies_of(&mut self, at: usize, requests: u64) -> Latencies {
        let nature = self.nature;
        let fresh = (1.0 - LASTS * LASTS).sqrt() * nature.wander * self.normal();
        self.slow[at] = self.slow[at] * LASTS + fresh;
        let mut factor = self.slow[at].exp();
        let (slower, lasts) = nature.slower;
        let is_new = self
            .canary_since
            .is_some_and(|since| self.second < since.saturating_add(lasts));
        if at == 1 && is_new {
            factor *= slower;
        }
        let paused = if self.happens(nature.pauses) {
            self.uniform()
        } else {
            0.0
        };
        let mut buckets = [0; BUCKETS];
        for _ in 0..requests {
            let draw = self.rng.next_u64();
            let mut latency = self.latencies[(draw & 0xfff) as usize] * factor;
            // It came while the server stood still, and waited for the rest of that.
            let came = (draw >> 12) as f64 / (1u64 << 52) as f64;
            latency += (paused - came).max(0.0) * 1e9;
            buckets[Latency::bucket(latency as u64)] += 1;
        }
        (0..).zip(buckets).collect()
    }
}
