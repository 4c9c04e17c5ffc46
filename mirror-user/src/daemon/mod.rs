//! The daemon on the inference node: keeps the programs attached, the rules true, the agents
//! watched, and answers for it all.
//!
//! One loop owns everything and waits for nobody. What waits is a task, and reports to the loop:
//! [`network`] for the kernel's view of the network, [`sender`] for agents, `control` for commands.
//! What is decided is decided by pure functions ([`rules`], [`budget`], [`numbers`],
//! [`attachments::wanted`], [`core`] for orders); [`Daemon::settle`] is where decisions become hooks and maps.

mod agents;
pub(crate) mod arms;
mod arrivals;
mod attachments;
mod budget;
mod canary;
mod commands;
mod concentration;
mod core;
mod directions;
mod ending;
#[cfg(test)]
pub(crate) mod fixtures;
mod health;
mod heartbeat;
mod keeper;
mod keys;
mod listening;
pub(crate) mod local_reader;
mod measure;
mod milestones;
mod network;
mod numbers;
mod place;
mod priority;
mod reach;
mod rollout;
mod rules;
mod sender;
mod servers;
mod services;
mod settle;
mod snapshot;
mod status;
mod steering;
mod takeover;
mod way;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mirror_common::record::value_size;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{mpsc, oneshot, watch};

use self::agents::Agent;
use self::arrivals::Arrivals;
use self::attachments::Attachments;
use self::canary::Drain;
use self::concentration::census::Census;
use self::core::{Core, Input, Ticket};
use self::ending::{Ended, Ender};
use self::health::{Attempt, Health};
use self::heartbeat::Heartbeat;
use self::keeper::{Keeper, Kept};
use self::keys::Keys;
use self::listening::Listening;
use self::local_reader::LocalReader;
use self::milestones::Milestones;
pub(crate) use self::network::Against;
use self::network::{Interest, Look, View};
pub(crate) use self::reach::{ring_size_of, rings_of};
use self::rollout::Rollouts;
pub(crate) use self::sender::Figures;
use self::sender::{Event, Pace, Sender};
use self::servers::Versioned;
use self::services::Service;
pub(crate) use self::services::UNKNOWN_SPEED_BUDGET;
pub(crate) use self::snapshot::Snapshot;
use self::way::Way;
use crate::admin;
use crate::config::{AgentAddress, Node};
use crate::control::{self, Refusal, Reply};
use crate::dataplane::{self, DataPlane, Mechanism, Sizes};
use crate::metrics;
use crate::state::State;

/// How often everything is looked after.
const TICK: Duration = Duration::from_secs(1);

/// The same where the kernel itself sends to an agent, whose death is to be noticed within 3 s.
const SOON: Duration = Duration::from_millis(500);

/// How long the last write may take when the daemon stops.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// How often it is looked at who sends the services' traffic, and who runs before us.
const CENSUS: Duration = Duration::from_secs(5);

/// How the daemon was started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the config was read, for SIGHUP.
    pub config: PathBuf,
    /// Take everything away at the end.
    pub detach_on_exit: bool,
    /// How to attach; nothing = TCX where the kernel has it.
    pub mechanism: Option<Mechanism>,
}

/// Runs until `shutdown`. Each message of `reload` reads the config again.
///
/// # Errors
/// When the programs cannot be loaded, another daemon has them, or a socket cannot be opened. What
/// an earlier daemon attached stays as it was then.
pub async fn run(
    config: Node,
    options: Options,
    shutdown: impl Future<Output = ()>,
    mut reload: mpsc::Receiver<()>,
) -> anyhow::Result<()> {
    let listener = control::bind(&config.control_socket)?;
    let admin_listener = tokio::net::TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("cannot listen at admin = \"{}\"", config.admin))?;
    let sizes = Sizes {
        connections: config.connections,
        ring: ring_size_of(&config),
    };
    let mut plane = DataPlane::load(&config.pin_dir, options.mechanism, sizes)?;
    let mut log = plane
        .log()
        .inspect_err(|error| tracing::warn!("no log of the programs: {error}"))
        .ok();
    let _alone = alone_with(&config.pin_dir)?;
    let mut daemon = Daemon::new(config, options, plane)?;
    let (looks, mut looked) = watch::channel(None);
    let network = tokio::spawn(network::watch(daemon.interest.subscribe(), looks));
    let registry = prometheus::Registry::new();
    registry.register(Box::new(metrics::Node::new(daemon.published.subscribe())))?;
    let (requests, mut commands) = mpsc::channel(16);
    let control = tokio::spawn(control::serve(listener, requests));
    let ready = daemon.published.subscribe();
    let admin = tokio::spawn(admin::serve(
        admin_listener,
        move || registry.gather(),
        move || ready.borrow().readiness(),
    ));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "running");

    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut look = tokio::time::interval(rollout::LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = tick.tick() => {
                if let Some(log) = &mut log {
                    log.flush();
                }
                daemon.look_after();
                tick.reset_after(daemon.rest());
            }
            () = tokio::time::sleep_until(daemon.next_drain()), if daemon.is_draining() => daemon.end_drains(),
            Some(ended) = daemon.ended.recv() => daemon.on_ended(ended),
            Some(kept) = daemon.kept.recv() => daemon.on_kept(kept),
            () = until(daemon.core.deadline()) => daemon.take(Input::Tick),
            changed = looked.changed() => {
                changed.context("the watcher of the network has ended")?;
                let look = looked.borrow_and_update().clone();
                daemon.looked(look);
            }
            Some(event) = daemon.happened.recv() => daemon.on_event(event),
            Some(attempt) = daemon.attempted.recv() => daemon.tried(attempt),
            _ = look.tick(), if daemon.rollouts.are_on() => daemon.watch_rollouts(),
            Some(written) = daemon.rollouts.written.recv() => daemon.landed(written),
            Some(heard) = daemon.rollouts.heard.recv() => daemon.heard(heard),
            Some(request) = commands.recv() => daemon.obey(request),
            Some(()) = reload.recv() => daemon.reload(),
        }
    }
    network.abort();
    control.abort();
    admin.abort();
    daemon.stop()
}

/// Two daemons would write each other's rules: holds the pins until it is dropped, or the process
/// ends.
fn alone_with(pin_dir: &Path) -> anyhow::Result<Flock<File>> {
    let shown = pin_dir.display();
    let opened = File::open(pin_dir).with_context(|| shown.to_string())?;
    Flock::lock(opened, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => anyhow::anyhow!(
            "another daemon has the programs under {shown}: stop it first, or choose another `pin_dir`"
        ),
        errno => anyhow::Error::from(errno).context(shown.to_string()),
    })
}

struct Daemon {
    /// What the file says.
    file: Node,
    /// The same as rollouts change it.
    config: Node,
    rollouts: Rollouts,
    options: Options,
    /// What the command line set, ...
    core: Core,
    /// ... who writes it down, ...
    keeper: Keeper,
    /// ... what became of that, ...
    kept: mpsc::UnboundedReceiver<Kept>,
    /// ... and who waits for an answer.
    replies: BTreeMap<Ticket, oneshot::Sender<Result<Reply, Refusal>>>,
    tickets: Ticket,
    /// The programs and maps.
    plane: DataPlane,
    /// What scrapes look at.
    published: watch::Sender<Arc<Snapshot>>,
    /// What had been counted when the shares that hold began to.
    milestones: Milestones,
    /// What the servers of services with a canary use.
    servers: Arc<crate::servers::Watch<Versioned>>,
    mechanism: Mechanism,
    started: Instant,
    /// What the maps say of themselves: their life and their hash key.
    tap: mirror_common::policy::Tap,
    services: Vec<Service>,
    agents: BTreeMap<AgentAddress, Agent>,
    /// Agents that the config no longer names, and that have not been told yet.
    leaving: Vec<Agent>,
    keys: Keys,
    /// Keeps the connections to the agents, ...
    sender: Sender,
    /// ... and what becomes of them.
    happened: mpsc::UnboundedReceiver<Event>,
    /// Where somebody was seen to listen, ...
    listening: Listening,
    /// ... and whether connections arrive there.
    arrivals: Arrivals,
    /// Reads a sample of the services' connections itself.
    local_reader: LocalReader,
    /// Canaries on other hosts, which are dialled now and then, ...
    health: Health,
    /// ... and what that came to.
    attempted: mpsc::Receiver<Attempt>,
    /// What the network's watcher should look at.
    interest: watch::Sender<Interest>,
    /// The network as it was last seen; nothing before the first look.
    view: Option<Arc<View>>,
    attachments: Attachments,
    /// Canaries whose connections are to end.
    drains: Vec<Drain>,
    /// Ends them, ...
    ender: Ender,
    /// ... and says what came of it.
    ended: mpsc::UnboundedReceiver<Ended>,
    /// Who sends the traffic of services with a canary.
    census: Census,
    heartbeat: Heartbeat,
    reports: u64,
    /// When the services were measured last, ...
    measured: Option<Instant>,
    /// ... and when it was asked who sends their traffic.
    counted: Option<Instant>,
    /// What somebody should know: a config that was rejected, ...
    refused_config: Option<String>,
    /// ... a network that cannot be looked at, ...
    blind: Option<String>,
    /// ... rules that could not be written.
    unwritten: Option<String>,
}

impl Daemon {
    fn new(config: Node, options: Options, mut plane: DataPlane) -> anyhow::Result<Self> {
        let state = State::open(&config.state_dir);
        let mut tap = plane.tap()?;
        if tap.boot == 0 {
            let [a, b] =
                [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|uuid| uuid.as_u64_pair());
            tap.boot = a.0 | 1;
            tap.key = [a.1 ^ b.0.rotate_left(32), b.1];
        }
        tap.ring = value_size(plane.ring_size()).into();
        plane.set_tap(tap)?;
        let mut pulse = plane.pulse()?;
        let heartbeat = Heartbeat::start(move || {
            tap.heartbeat_ns = now_ns();
            if let Err(error) = pulse.set_tap(tap) {
                tracing::error!("heartbeat: {error}");
            }
        })?;
        let (ring, wanted) = (plane.ring_size(), ring_size_of(&config));
        if ring != wanted {
            tracing::warn!(
                ring,
                wanted,
                "each CPU's ring keeps the size that it was made with, or that this kernel allows; to \
                 change it stop the daemon, run `modelmirror off` and start it again"
            );
        }
        let mechanism = plane.mechanism();
        let (say, ended) = mpsc::unbounded_channel();
        let ender = Ender::start(plane.connection_reader()?, say)?;
        let census = Census::start(plane.connection_reader()?)?;
        let keys = Keys::read(&config)?;
        let (sender, happened) = Sender::start(plane.sender_bell()?, Pace::of(&config))?;
        let listening = Listening::of(&plane.services()?);
        let local_reader = LocalReader::start(plane.look_bell()?, tap.key)?;
        let (attempts, attempted) = mpsc::channel(64);
        let file = config;
        let rollouts = Rollouts::open(&file).context("the rollouts' records")?;
        let config = rollouts.effective(&file, state.overrides());
        let core = Core::new(state.overrides().clone(), state.trouble().cloned());
        let (say, kept) = mpsc::unbounded_channel();
        let keeper = Keeper::start(state, say)?;
        let servers = Arc::new(crate::servers::Watch::start(servers::wanted(&config))?);
        let first = Snapshot {
            counts: Arc::clone(plane.counts()),
            status: status::empty(),
            rows: Vec::new(),
            numbers: Vec::new(),
            milestones: Milestones::default(),
            servers: Arc::clone(&servers),
            sender: sender.figures(),
            rings: Vec::new(),
            unknown: None,
            looks: Vec::new(),
            look_ring: None,
            local_reader: local_reader.figures(),
        };
        let mut daemon = Self {
            core,
            keeper,
            kept,
            replies: BTreeMap::new(),
            tickets: 0,
            plane,
            published: watch::Sender::new(Arc::new(first)),
            milestones: Milestones::default(),
            servers,
            sender,
            listening,
            arrivals: Arrivals::default(),
            local_reader,
            mechanism,
            started: Instant::now(),
            tap,
            services: Vec::new(),
            agents: BTreeMap::new(),
            leaving: Vec::new(),
            keys,
            happened,
            health: Health::new(attempts),
            attempted,
            interest: watch::Sender::default(),
            view: None,
            attachments: Attachments::default(),
            drains: Vec::new(),
            ender,
            ended,
            census,
            heartbeat,
            reports: 0,
            measured: None,
            counted: None,
            refused_config: None,
            blind: None,
            unwritten: None,
            rollouts,
            file,
            config,
            options,
        };
        let left = daemon.left_in_maps()?;
        daemon.take_over()?;
        daemon.recover(&left);
        daemon.resume_rollouts();
        daemon.say_interest();
        daemon.publish();
        Ok(daemon)
    }

    /// Tells those who look after the network and the servers what to look at.
    fn say_interest(&self) {
        self.servers.want(servers::wanted(&self.config));
        let interest = Interest {
            interfaces: self.config.interfaces.clone(),
            hosts: self
                .agents
                .values()
                .filter_map(|agent| agent.peer)
                .chain(self.canaries_away())
                .collect(),
            dialled: Interest::dialled(&self.config),
            canaries: Interest::canaries(&self.config),
            drops: self.agents.values().any(Agent::is_geneve),
        };
        self.interest.send_if_modified(|before| {
            let is_news = *before != interest;
            *before = interest;
            is_news
        });
    }

    /// One turn. Once a second the agents are asked, and the last second is looked at.
    fn look_after(&mut self) {
        let now = Instant::now();
        self.leave_agents();
        if is_due(&mut self.measured, TICK, now) {
            self.measure();
            self.watch_arrivals();
            self.bring_back_escaped();
            self.report();
            self.sample_traffic();
            self.call_hooks();
        }
        if is_due(&mut self.counted, CENSUS, now) {
            self.ask_census();
            self.look_at_chains();
        }
        self.settle();
    }

    /// How long until the next turn.
    fn rest(&self) -> Duration {
        if self.agents.values().any(Agent::is_geneve) {
            SOON
        } else {
            TICK
        }
    }

    /// The network has been looked at. Where that failed, what was known stays.
    fn looked(&mut self, look: Option<Look>) {
        match look {
            Some(Ok(view)) => {
                let now = Instant::now();
                for agent in self.agents.values_mut() {
                    let way = agent.peer.and_then(|peer| view.ways.get(&peer));
                    if let Some(way) = way {
                        agent.goes(way.clone().and_then(Way::resolved), now);
                    }
                }
                let is_news = self.view.replace(Arc::clone(&view)) != Some(view);
                if !is_news && self.blind.take().is_none() {
                    return;
                }
                self.blind = None;
            }
            Some(Err(why)) => {
                let why = format!("the network cannot be looked at: {why}");
                if self.blind.replace(why.clone()).is_none() {
                    tracing::warn!("{why}");
                }
            }
            None => return,
        }
        self.settle();
    }

    fn stop(mut self) -> anyhow::Result<()> {
        let _ = std::fs::remove_file(&self.config.control_socket);
        let is_kept = self.keeper.finish(LAST_WRITE);
        if !is_kept {
            tracing::error!("what was set last may not be on the disk");
        }
        // What is off needs no maps, once the disk has it.
        let is_off = is_kept && self.core.holds().is_off();
        if !self.options.detach_on_exit && !is_off {
            tracing::info!("stopped; the programs stay attached and stop copying in 5 s");
            return Ok(());
        }
        let pin_dir = self.config.pin_dir.clone();
        drop(self);
        let removed =
            dataplane::detach_all(&pin_dir).with_context(|| pin_dir.display().to_string())?;
        tracing::info!(pins = removed.len(), "stopped; everything is detached");
        Ok(())
    }
}

/// Waits for a moment; without one, for ever.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Whether what was done at `last` is to be done again, every so often; then it was done `now`. A timer
/// may come a little early.
fn is_due(last: &mut Option<Instant>, every: Duration, now: Instant) -> bool {
    let is_due = last.is_none_or(|last| now.duration_since(last) + SOON / 2 >= every);
    if is_due {
        *last = Some(now);
    }
    is_due
}

/// The monotonic clock that the programs read, in nanoseconds.
fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| Duration::from(now).as_nanos() as u64)
}
