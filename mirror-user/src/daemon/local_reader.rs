//! The local look: reads a sample of the services' connections on the node itself, by the agent's own
//! reassembly and framing, and counts what becomes of their exchanges.
//!
//! ```text
//!   tap ──> ring ──drain──> reading ──counts──> tally <── metrics, status
//!                              ^                  │
//!                 which connections               └──> shares ──> the tap's rules
//! ```
//!
//! It has a ring of its own, so that it can neither delay nor crowd out the sender, and a thread at the
//! lowest priority there is. What finds the ring full is not looked at, and nothing else happens.

mod drain;
mod reading;
mod share;
mod tally;
mod work;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Sender as Channel;
use std::time::Instant;

use anyhow::Context as _;
use mirror_common::policy::{self, LOOK_RING, threshold};
use mirror_common::tunnel::Arm;
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::reading::{Reading, Rule};
use self::share::Shares;
use self::work::{Order, Work};
use super::Daemon;
use crate::config;
use crate::control::{LookState, LookedArm, LookedExchanges};
use crate::dataplane::{Bell, DataPlane, Ring};

pub(crate) use self::tally::{Outcome, Tally};
pub(crate) use self::work::Figures;

/// One service that is looked at, or was.
#[derive(Debug)]
struct Looked {
    shares: Shares,
    tally: Arc<Tally>,
    /// What the thread was told last.
    told: [u64; 2],
}

/// The local reader.
#[derive(Debug)]
pub(super) struct LocalReader {
    orders: Channel<Order>,
    wanted: Arc<EventFd>,
    figures: Arc<Figures>,
    /// By the services' ids.
    services: BTreeMap<u32, Looked>,
    ring: Option<Arc<Ring>>,
    /// Why there is none, though there should be.
    trouble: Option<String>,
    key: [u64; 2],
}

impl LocalReader {
    /// Starts the thread, which reads nothing yet. `key` is that of the connection hash.
    ///
    /// # Errors
    /// When there is no room for another thread.
    pub(super) fn start(bell: Bell, key: [u64; 2]) -> anyhow::Result<Self> {
        let wanted = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let wanted = Arc::new(wanted);
        let (sender, orders) = std::sync::mpsc::channel();
        let figures = Arc::new(Figures::default());
        let work = Work {
            orders,
            wanted: Arc::clone(&wanted),
            bell,
            figures: Arc::clone(&figures),
            ring: None,
            reading: Reading::new(),
            lost: false,
            started: Instant::now(),
        };
        std::thread::Builder::new()
            .name("look".into())
            .spawn(move || work.run())
            .context("cannot start the local reader's thread")?;
        Ok(Self {
            orders: sender,
            wanted,
            figures,
            services: BTreeMap::new(),
            ring: None,
            trouble: None,
            key,
        })
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
    pub(super) fn take_over(&mut self, configs: &[config::Service], plane: &mut DataPlane) {
        for config in configs {
            if let Some(look) = &config.look {
                let looked = self.services.entry(config.id).or_insert_with(|| Looked {
                    shares: Shares::new(),
                    tally: Arc::default(),
                    told: [0; 2],
                });
                looked.shares.want(look, config.canary.is_some());
            }
        }
        // Before the ring: what lies there is read at once, and is of services that the thread knows.
        let ids: Vec<u32> = self.services.keys().copied().collect();
        for &id in &ids {
            self.shares(id, false);
        }
        let is_wanted = |id: u32| configs.iter().any(|c| c.id == id && c.look.is_some());
        for id in ids.into_iter().filter(|id| !is_wanted(*id)) {
            self.tell(id, [0.0; 2]);
            self.services.remove(&id);
        }
        self.provide_ring(plane);
    }

    fn provide_ring(&mut self, plane: &mut DataPlane) {
        let wanted = !self.services.is_empty();
        let is_left_over = !wanted && plane.ring_numbers().contains(&LOOK_RING);
        if wanted && self.ring.is_none() {
            match plane.ring(LOOK_RING) {
                Ok(ring) => {
                    let ring = Arc::new(ring);
                    self.give(Order::Ring(Some(Arc::clone(&ring))));
                    (self.ring, self.trouble) = (Some(ring), None);
                }
                Err(error) => {
                    let why = format!("the local look has no ring, and sees nothing: {error}");
                    tracing::error!("{why}");
                    self.trouble = Some(why);
                }
            }
        } else if self.ring.is_some() && !wanted || is_left_over {
            self.give(Order::Ring(None));
            self.ring = None;
            if let Err(error) = plane.remove_ring(LOOK_RING) {
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
        if std::mem::replace(&mut looked.told, thresholds) != thresholds {
            let policy = policy::Service {
                look: thresholds,
                key: self.key,
                ..policy::Service::default()
            };
            let tally = Arc::clone(&looked.tally);
            self.give(Order::Rule(id, Rule { policy, tally }));
        }
    }

    /// Looks at what the last second has brought, and sets the shares for the next one.
    pub(super) fn measure(&mut self) {
        let (refused, now) = (self.refused(), Instant::now());
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

    /// What was counted of a service.
    pub(super) fn tally(&self, id: u32) -> Option<Arc<Tally>> {
        self.services
            .get(&id)
            .map(|looked| Arc::clone(&looked.tally))
    }
}

impl Drop for LocalReader {
    fn drop(&mut self) {
        self.give(Order::Stop);
    }
}

impl Daemon {
    /// How a service is looked at; nothing where it is not.
    pub(super) fn describe_look(&self, config: &config::Service) -> Option<LookState> {
        let looked = self.local_reader.services.get(&config.id)?;
        let look = config.look.as_ref()?;
        let there = f64::from(self.local_reader.ring.is_some());
        let told = looked
            .told
            .map(|told| told as f64 / policy::WHOLE as f64 * there);
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
