//! The local look: reads a sample of the services' connections on the node itself, by the agent's own
//! reassembly and framing, and counts what becomes of their exchanges.
//!
//! ```text
//!   tap ──> ring ──drain──> reading ──counts──> tally <── metrics, status
//!                              ^                  │
//!                 which connections               └──> shares ──> the tap's rules
//! ```
//!
//! It has a ring of its own, so that it can neither delay nor crowd out the sender, and a thread at low
//! priority. What finds the ring full is not looked at, and nothing else happens.

mod drain;
mod marks;
mod reading;
mod share;
mod tally;
mod work;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender as Channel};
use std::time::{Duration, Instant};

use mirror_api::{LookState, LookedArm, LookedExchanges};
use mirror_common::policy::{self, LOOK_RING, threshold};
use mirror_common::tunnel::Arm;
use mirror_wire::body::pointer::Pointers;
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::reading::Rule;
use self::share::Shares;
use self::work::{Order, Source, Work};
use super::core::Core;
use super::kernel::Kernel;
use crate::config;
use crate::dataplane::{Bell, Ring};

pub(crate) use self::tally::{Looked, Outcome, Tally, Wait};
pub(crate) use self::work::Figures;

/// One service that is looked at, or was.
#[derive(Debug)]
struct Reviewed {
    shares: Shares,
    tally: Arc<Tally>,
    unanswered_after: Duration,
    fail_if: Option<String>,
    /// The version on trial, and where.
    trial: Option<(String, SocketAddr)>,
    /// The rollout that it is on trial by.
    rollout: Option<String>,
    /// Since when, by the tap's clock: see [`Rule`].
    trial_ns: u64,
    /// What the thread was told last.
    told: Option<Told>,
}

/// What the thread knows of a service, see [`Rule`].
#[derive(Debug, PartialEq)]
struct Told {
    thresholds: [u64; 2],
    trial_ns: u64,
    unanswered_after: Duration,
    fail_if: Option<String>,
}

impl Reviewed {
    fn new(trial: Option<(String, SocketAddr)>) -> Self {
        Self {
            shares: Shares::new(),
            tally: Arc::default(),
            unanswered_after: Duration::ZERO,
            fail_if: None,
            trial,
            rollout: None,
            trial_ns: 0,
            told: None,
        }
    }

    /// What is on trial now, by which rollout, and since when. A version that was there when the daemon
    /// began has been on trial for as long as anybody knows.
    fn try_on(
        &mut self,
        trial: Option<(String, SocketAddr)>,
        rollout: Option<String>,
        since: Duration,
        now_ns: u64,
    ) {
        let is_another = trial.is_some() && self.trial != trial;
        let is_anew = rollout.is_some() && self.rollout != rollout;
        if is_another || is_anew {
            self.trial_ns = now_ns.saturating_sub(since.as_nanos() as u64);
        }
        self.trial = trial.or(self.trial.take());
        self.rollout = rollout.or(self.rollout.take());
    }

    /// The shares of connections that are read, by what the thread was told.
    fn shares_told(&self) -> [f64; 2] {
        let thresholds = self.told.as_ref().map_or([0; 2], |told| told.thresholds);
        thresholds.map(|threshold| threshold as f64 / policy::WHOLE as f64)
    }
}

/// The local reader.
#[derive(Debug)]
pub(super) struct LocalReader {
    orders: Channel<Order>,
    wanted: Arc<EventFd>,
    figures: Arc<Figures>,
    /// By the services' ids.
    services: BTreeMap<u32, Reviewed>,
    ring: Option<Arc<Ring>>,
    /// Why there is none, though there should be.
    trouble: Option<String>,
    key: [u64; 2],
}

impl LocalReader {
    /// Reads nothing yet. `key` is that of the connection hash. The work is for a thread, see [`start`].
    ///
    /// # Errors
    /// When there is no room for another file.
    pub(super) fn new(key: [u64; 2]) -> io::Result<(Self, Orders)> {
        let wanted = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let wanted = Arc::new(wanted);
        let (sender, orders) = std::sync::mpsc::channel();
        let figures = Arc::new(Figures::default());
        let work = Orders {
            orders,
            wanted: Arc::clone(&wanted),
            figures: Arc::clone(&figures),
        };
        let reader = Self {
            orders: sender,
            wanted,
            figures,
            services: BTreeMap::new(),
            ring: None,
            trouble: None,
            key,
        };
        Ok((reader, work))
    }

    fn give(&self, order: Order) {
        // Nobody listens when the thread has ended, and then nothing is left to do.
        let _ = self.orders.send(order);
        let _ = self.wanted.write(1);
    }

    /// What the thread has done so far.
    pub(super) fn figures(&self) -> Arc<Figures> {
        Arc::clone(&self.figures)
    }

    /// What somebody should know.
    pub(super) fn trouble(&self) -> Option<&String> {
        self.trouble.as_ref()
    }

    /// Makes the services that are looked at those of the config, and the ring one that is there while
    /// there are any.
    ///
    /// `rollout` names the last rollout of a service, and says how long ago it began.
    pub(super) fn take_over(
        &mut self,
        configs: &[config::Service],
        rollout: impl Fn(&str) -> Option<(String, Duration)>,
        kernel: &mut dyn Kernel,
        now_ns: u64,
    ) {
        for config in configs {
            let Some(look) = config.looks() else {
                continue;
            };
            let canary = config.canary.as_ref();
            let trial = canary.map(|canary| (canary.version.clone(), canary.address));
            let looked = self
                .services
                .entry(config.id)
                .or_insert_with(|| Reviewed::new(trial.clone()));
            looked.shares.want(&look, canary.is_some());
            looked.unanswered_after = look.unanswered_after;
            looked.fail_if = look.fail_if;
            let rollout = rollout(&config.name);
            let since = rollout.as_ref().map_or(Duration::ZERO, |(_, since)| *since);
            looked.try_on(trial, rollout.map(|(id, _)| id), since, now_ns);
        }
        // Before the ring: what lies there is read at once, and is of services that the thread knows.
        let ids: Vec<u32> = self.services.keys().copied().collect();
        for &id in &ids {
            self.shares(id, false);
        }
        let is_wanted = |id: u32| configs.iter().any(|c| c.id == id && c.looks().is_some());
        for id in ids.into_iter().filter(|id| !is_wanted(*id)) {
            self.tell(id, [0.0; 2]);
            self.services.remove(&id);
        }
        self.provide_ring(kernel);
    }

    fn provide_ring(&mut self, kernel: &mut dyn Kernel) {
        let wanted = !self.services.is_empty();
        let is_left_over = !wanted && kernel.ring_numbers().contains(&LOOK_RING);
        if wanted && self.ring.is_none() {
            let is_inherited = kernel.ring_numbers().contains(&LOOK_RING);
            match kernel.ring(LOOK_RING) {
                Ok(ring) => {
                    let ring = Arc::new(ring);
                    self.give(Order::Ring(Arc::clone(&ring), is_inherited));
                    (self.ring, self.trouble) = (Some(ring), None);
                }
                Err(error) => {
                    let why = format!("the local look has no ring, and sees nothing: {error}");
                    tracing::error!("{why}");
                    self.trouble = Some(why);
                }
            }
        } else if self.ring.is_some() && !wanted || is_left_over {
            self.give(Order::NoRing);
            self.ring = None;
            if let Err(error) = kernel.remove_ring(LOOK_RING) {
                tracing::warn!("the local look's ring stays: {error}");
            }
        }
    }

    /// The shares of stable's and of the canary's connections of a service that are looked at now. The
    /// thread is told before the tap is: what the tap copies too much, or no longer, is then left out.
    pub(super) fn shares(&mut self, id: u32, is_off: bool) -> [f64; 2] {
        let Some(looked) = self.services.get(&id) else {
            return [0.0; 2];
        };
        let shares = match is_off {
            true => [0.0; 2],
            false => looked.shares.effective(),
        };
        self.tell(id, shares);
        match self.ring.is_some() {
            true => shares,
            false => [0.0; 2],
        }
    }

    fn tell(&mut self, id: u32, shares: [f64; 2]) {
        let Some(looked) = self.services.get_mut(&id) else {
            return;
        };
        let thresholds = shares.map(threshold);
        let told = Told {
            thresholds,
            trial_ns: looked.trial_ns,
            unanswered_after: looked.unanswered_after,
            fail_if: looked.fail_if.clone(),
        };
        if looked.told.as_ref() != Some(&told) {
            let policy = policy::Service {
                look: thresholds,
                key: self.key,
                ..policy::Service::default()
            };
            let tally = Arc::clone(&looked.tally);
            let rule = Rule {
                policy,
                tally,
                trial_ns: told.trial_ns,
                unanswered_after: told.unanswered_after,
                fail_if: told.fail_if.as_ref().map(|place| Pointers::new(&[place])),
            };
            looked.told = Some(told);
            self.give(Order::Rule(id, rule));
        }
    }

    /// Looks at what the last second has brought, and sets the shares for the next one.
    pub(super) fn measure(&mut self, now: Instant) {
        let refused = self.refused();
        for looked in self.services.values_mut() {
            looked.shares.measure(&looked.tally, refused, now);
        }
    }

    /// How many copies for the look have found its ring full.
    fn refused(&self) -> u64 {
        self.ring.as_deref().map_or(0, Ring::refused)
    }

    /// The ring, while any service is looked at.
    pub(super) fn ring(&self) -> Option<Arc<Ring>> {
        self.ring.clone()
    }

    /// The shares of stable's and of the canary's connections of a service that are read.
    pub(super) fn sample(&self, id: u32) -> [f64; 2] {
        match (self.services.get(&id), &self.ring) {
            (Some(looked), Some(_)) => looked.shares_told(),
            _ => [0.0; 2],
        }
    }

    /// Since when a service's canary has been on trial, by the tap's clock; 0 = always.
    pub(super) fn trial_ns(&self, id: u32) -> u64 {
        self.services.get(&id).map_or(0, |looked| looked.trial_ns)
    }

    /// What was counted of a service.
    pub(super) fn tally(&self, id: u32) -> Option<Arc<Tally>> {
        self.services
            .get(&id)
            .map(|looked| Arc::clone(&looked.tally))
    }
}

/// What the thread is told, and where it tells what it has done.
#[derive(Debug)]
pub(super) struct Orders {
    orders: Receiver<Order>,
    wanted: Arc<EventFd>,
    figures: Arc<Figures>,
}

/// Starts the thread.
///
/// # Errors
/// When there is no room for another thread.
pub(super) fn start(orders: Orders, bell: Bell) -> io::Result<()> {
    let Orders {
        orders,
        wanted,
        figures,
    } = orders;
    let work = Work {
        orders,
        wanted,
        bell,
        figures,
        source: Source::new(),
        started: Instant::now(),
    };
    let thread = std::thread::Builder::new().name("look".into());
    thread.spawn(move || work.run()).map(drop)
}

impl Drop for LocalReader {
    fn drop(&mut self) {
        self.give(Order::Stop);
    }
}

impl Core {
    /// How a service is looked at; nothing where it is not.
    pub(super) fn describe_look(&self, config: &config::Service) -> Option<LookState> {
        let looked = self.local_reader.services.get(&config.id)?;
        let look = config.looks()?;
        let told = self.local_reader.sample(config.id);
        let arms = [(Arm::Stable, look.stable), (Arm::Canary, look.canary)];
        let arms = arms
            .into_iter()
            .filter(|(arm, _)| *arm == Arm::Stable || config.canary.is_some());
        Some(LookState {
            budget_exchanges_per_second: look.exchanges_per_second,
            arms: arms
                .map(|(arm, configured)| LookedArm {
                    arm: arm.label().to_owned(),
                    configured,
                    effective: told[arm as usize],
                    exchanges_per_second: looked.shares.rates[arm as usize],
                    seen: looked.tally.seen(arm),
                    exchanges: exchanges(&looked.tally, arm),
                })
                .collect(),
        })
    }
}

/// What became of them; zeros are left out.
fn exchanges(tally: &Tally, arm: Arm) -> Vec<LookedExchanges> {
    let counts = Outcome::all().map(|outcome| (outcome, tally.outcome(arm, outcome)));
    counts
        .filter(|(_, count)| *count > 0)
        .map(|(outcome, count)| LookedExchanges {
            outcome: outcome.label().to_owned(),
            count,
        })
        .collect()
}
