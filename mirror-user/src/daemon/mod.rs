//! The daemon on the inference node: keeps the programs attached, the rules true, the agents
//! watched, and answers for it all.

mod agents;
mod budget;
mod rules;
mod services;
mod status;
mod way;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tokio::sync::mpsc;

use self::agents::{Agent, Echo};
use self::services::Service;
pub(crate) use self::services::UNKNOWN_SPEED_BUDGET;
use crate::config::Node;
use crate::control::{self, Command, Done, Refusal, Reply};
use crate::dataplane::{self, DataPlane, Interface, Mechanism, Role};
use crate::metrics;
use crate::netlink::Netlink;
use crate::state::{Change, State};
use crate::{admin, config};

/// How often the heartbeat is written and everything looked after. The programs bear 5 s of
/// silence, an agent's death is to be noticed within 3 s.
const TICK: Duration = Duration::from_millis(500);

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
/// When the programs cannot be loaded, or a socket cannot be opened. What an earlier daemon
/// attached stays as it was then.
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
    let mut plane = DataPlane::load(&config.pin_dir, options.mechanism)?;
    let mut log = plane
        .log()
        .inspect_err(|error| tracing::warn!("no log of the programs: {error}"))
        .ok();
    let (netlink, mut changes) = Netlink::watch().context("cannot open netlink")?;
    let (requests, mut commands) = mpsc::channel(16);

    let mut daemon = Daemon::new(config, options, plane, netlink)?;
    daemon.look_after().await;
    let registry = prometheus::Registry::new();
    registry.register(Box::new(metrics::Node::new(daemon.shared())))?;
    let control = tokio::spawn(control::serve(listener, requests));
    let ready = daemon.shared();
    let admin = tokio::spawn(admin::serve(admin_listener, registry, move || {
        status::readiness(&ready)
    }));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "running");

    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            _ = tick.tick() => {
                if let Some(log) = &mut log {
                    log.flush();
                }
                daemon.look_after().await;
            }
            Some(()) = changes.recv() => daemon.network_changed().await,
            Some(echo) = daemon.echoed.recv() => daemon.echoed(&echo),
            Some(request) = commands.recv() => daemon.obey(request).await,
            Some(()) = reload.recv() => daemon.reload().await,
        }
    }
    control.abort();
    admin.abort();
    daemon.stop()
}

/// What the loop and the metrics look at together. Held only for a few system calls.
#[derive(Debug)]
pub struct Shared {
    /// The programs and maps.
    pub plane: DataPlane,
    /// How things are.
    pub status: control::Status,
    /// Rows and numbers in the maps of what `status` names, in its order.
    pub rows: Vec<u32>,
    /// Numbers of the agents in the maps, in the order of `status`.
    pub numbers: Vec<u32>,
}

struct Daemon {
    config: Node,
    options: Options,
    state: State,
    netlink: Netlink,
    shared: Arc<Mutex<Shared>>,
    mechanism: Mechanism,
    started: Instant,
    /// What the maps say of themselves: their life and their hash key.
    tap: mirror_common::policy::Tap,
    services: Vec<Service>,
    agents: BTreeMap<SocketAddr, Agent>,
    /// What the agents' sockets pass on.
    echoes: mpsc::Sender<Echo>,
    echoed: mpsc::Receiver<Echo>,
    attachments: BTreeMap<String, Attachment>,
    addresses: Vec<IpAddr>,
    reports: u64,
    ticks: u64,
    warning: Option<String>,
}

/// What is attached to an interface of this name.
#[derive(Clone, Debug, Default)]
struct Attachment {
    to: Option<(Interface, Role)>,
    error: Option<String>,
}

impl Daemon {
    fn new(
        config: Node,
        options: Options,
        mut plane: DataPlane,
        netlink: Netlink,
    ) -> anyhow::Result<Self> {
        let state = State::open(&config.state_dir);
        let mut tap = plane.tap()?;
        if tap.boot == 0 {
            let [a, b] =
                [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|uuid| uuid.as_u64_pair());
            tap.boot = a.0 | 1;
            tap.key = [a.1 ^ b.0.rotate_left(32), b.1];
        }
        let mechanism = plane.mechanism();
        let (echoes, echoed) = mpsc::channel(64);
        let shared = Shared {
            plane,
            status: status::empty(),
            rows: Vec::new(),
            numbers: Vec::new(),
        };
        let mut daemon = Self {
            state,
            netlink,
            shared: Arc::new(Mutex::new(shared)),
            mechanism,
            started: Instant::now(),
            tap,
            services: Vec::new(),
            agents: BTreeMap::new(),
            echoes,
            echoed,
            attachments: BTreeMap::new(),
            addresses: Vec::new(),
            reports: 0,
            ticks: 0,
            warning: None,
            config,
            options,
        };
        daemon.take_over()?;
        Ok(daemon)
    }

    fn shared(&self) -> Arc<Mutex<Shared>> {
        Arc::clone(&self.shared)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        // What is inside is read from the kernel anew all the time: a panic elsewhere spoils nothing.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds the services' rows and the agents' numbers of an earlier life, so that nothing is
    /// counted twice or lost.
    fn take_over(&mut self) -> Result<(), dataplane::Error> {
        let mut shared = self.lock();
        let known = shared.plane.services()?;
        let known_agents = shared.plane.agents()?;
        let (rows, fresh) = rules::assign_rows(
            self.config.services.iter().map(|service| service.id),
            &known,
        );
        for row in fresh {
            shared.plane.clear_rows(row)?;
        }
        let wanted: BTreeSet<SocketAddr> = self
            .config
            .services
            .iter()
            .filter_map(|service| Some(service.mirror.as_ref()?.agent))
            .collect();
        let mut numbers: HashMap<SocketAddr, u32> = known_agents
            .iter()
            .map(|(number, agent)| {
                (
                    SocketAddr::new(agent.remote.into(), agent.port as u16),
                    *number,
                )
            })
            .filter(|(address, _)| wanted.contains(address))
            .collect();
        numbers.extend(
            self.agents
                .values()
                .map(|agent| (agent.address, agent.number)),
        );
        let mut agents = BTreeMap::new();
        for &address in &wanted {
            let number = match numbers.get(&address) {
                Some(&number) => number,
                None => {
                    let taken: BTreeSet<u32> = numbers.values().copied().collect();
                    let Some(number) =
                        (0..dataplane::AGENTS).find(|number| !taken.contains(number))
                    else {
                        tracing::error!(agent = %address, "more agents than {} at once: not mirrored", dataplane::AGENTS);
                        continue;
                    };
                    shared.plane.clear_sent(number)?;
                    shared.plane.forgive(number)?;
                    numbers.insert(address, number);
                    number
                }
            };
            let old = self.agents.contains_key(&address);
            if !old {
                agents.insert(address, Agent::new(address, number));
            }
        }
        drop(shared);
        self.agents.retain(|address, _| wanted.contains(address));
        self.agents.append(&mut agents);
        let mut old = std::mem::take(&mut self.services);
        for config in &self.config.services {
            let Some(&row) = rows.get(&config.id) else {
                tracing::error!(
                    service = config.name,
                    "more services than fit: not mirrored"
                );
                continue;
            };
            let before = old
                .iter()
                .position(|service| service.config.id == config.id);
            self.services.push(match before {
                Some(at) => old.swap_remove(at).with(config.clone()),
                None => Service::new(config.clone(), row),
            });
        }
        Ok(())
    }

    /// One turn: heartbeat first, whatever else may take its time.
    async fn look_after(&mut self) {
        self.beat();
        self.ticks += 1;
        let asks = self.ticks % 2 == 1;
        if asks {
            self.measure().await;
            self.look_at_network().await;
        }
        self.hear();
        if asks {
            self.ask().await;
        }
        self.apply();
        self.publish();
    }

    async fn network_changed(&mut self) {
        self.look_at_network().await;
        self.hear();
        self.apply();
        self.publish();
    }

    fn beat(&mut self) {
        self.tap.heartbeat_ns = now_ns();
        let tap = self.tap;
        let result = self.lock().plane.set_tap(tap);
        if let Err(error) = result {
            tracing::error!("heartbeat: {error}");
        }
    }

    /// Takes all echoes that have come in. Netlink waits for whoever configures the network, for
    /// seconds at times: what came meanwhile counts before anybody is called silent.
    fn hear(&mut self) {
        while let Ok(echo) = self.echoed.try_recv() {
            self.echoed(&echo);
        }
    }

    fn echoed(&mut self, echo: &Echo) {
        let now = Instant::now();
        let Some(agent) = self.agents.get_mut(&echo.agent) else {
            return;
        };
        let was_alive = agent.alive(now);
        agent.answered(echo, now, now_ns());
        if !was_alive {
            tracing::info!(agent = %echo.agent, "answers");
            self.apply();
        }
    }

    /// Asks the kernel for links, addresses and ways, and attaches what has changed.
    async fn look_at_network(&mut self) {
        self.addresses = self
            .netlink
            .addresses()
            .await
            .into_iter()
            .map(|address| address.ip)
            .collect();
        for agent in self.agents.values_mut() {
            let way = way::find(&self.netlink, agent.address).await;
            if way.as_ref().err() != agent.way.as_ref().err()
                && let Err(error) = &way
            {
                tracing::warn!(agent = %agent.address, "{error}");
            }
            if way.is_err() {
                agent.forget_drops();
            }
            agent.way = way;
        }
        let mut roles = BTreeMap::<String, Role>::new();
        for name in &self.config.interfaces {
            roles.entry(name.clone()).or_default().tapped = true;
        }
        for way in self
            .agents
            .values()
            .filter_map(|agent| agent.way.as_ref().ok())
        {
            roles.entry(way.link.name.clone()).or_default().uplink = true;
        }
        if self.state.overrides().is_off() {
            roles.clear();
        }
        let mut present = BTreeMap::new();
        for (name, role) in roles {
            let link = self.netlink.link(&name).await;
            present.insert(name, link.map(|link| (way::interface(&link), role)));
        }
        self.attach(present);
    }

    /// Makes the attachments what they should be.
    fn attach(&mut self, wanted: BTreeMap<String, Option<(Interface, Role)>>) {
        let mut attachments = std::mem::take(&mut self.attachments);
        let mut shared = self.lock();
        attachments.retain(|name, attachment| {
            if !wanted.contains_key(name)
                && let Some((interface, _)) = &attachment.to
            {
                tracing::info!(interface = name, "detached");
                let _ = shared.plane.detach(interface);
            }
            wanted.contains_key(name)
        });
        let mut keep = Vec::new();
        for (name, wanted) in wanted {
            let attachment = attachments.entry(name.clone()).or_default();
            let Some((interface, role)) = wanted else {
                if attachment.to.take().is_some() {
                    tracing::warn!(interface = name, "is gone");
                }
                attachment.error = Some("there is no such interface".to_owned());
                continue;
            };
            keep.push(interface.clone());
            if attachment.to.as_ref() == Some(&(interface.clone(), role)) {
                continue;
            }
            match shared.plane.attach(&interface, role) {
                Ok(()) => {
                    tracing::info!(
                        interface = name,
                        index = interface.index,
                        tapped = role.tapped,
                        uplink = role.uplink,
                        "attached"
                    );
                    *attachment = Attachment {
                        to: Some((interface, role)),
                        error: None,
                    };
                }
                Err(error) => {
                    let error = error.to_string();
                    if attachment.error.as_ref() != Some(&error) {
                        tracing::error!("{error}");
                    }
                    *attachment = Attachment {
                        to: None,
                        error: Some(error),
                    };
                }
            }
        }
        if let Err(error) = shared.plane.retain(&keep) {
            tracing::warn!("{error}");
        }
        drop(shared);
        self.attachments = attachments;
        for agent in self.agents.values_mut() {
            let uplink = agent.way.as_ref().ok().map(|way| way::interface(&way.link));
            agent.attached = uplink.is_some_and(|uplink| {
                let attachment = self
                    .attachments
                    .get(&uplink.name)
                    .and_then(|attachment| attachment.to.as_ref());
                attachment.is_some_and(|(interface, role)| *interface == uplink && role.uplink)
            });
        }
    }

    /// Looks at what the last second has brought: load, drops, clones that went astray.
    async fn measure(&mut self) {
        let now = Instant::now();
        for agent in self.agents.values_mut() {
            if let Ok(way) = &agent.way {
                let index = way.link.index;
                let dropped = way.link.dropped + self.netlink.queue_drops(index).await;
                agent.watch_drops(index, dropped, now);
            }
        }
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        for service in &mut self.services {
            let wanted = service.wanted(self.state.overrides());
            let budget = service.budget(&self.agents);
            if let Err(error) = service.measure(&shared.plane, now, wanted.sample, budget) {
                tracing::warn!(service = service.config.name, "{error}");
            }
        }
        for agent in self.agents.values_mut() {
            let escaped = shared.plane.escaped(agent.number).unwrap_or(0);
            if escaped == 0 {
                continue;
            }
            // Something in the egress chain ends it before our program, or has taken its place.
            tracing::error!(agent = %agent.address, escaped, "copies left without their tunnel headers: attaching anew");
            let uplink = agent.way.as_ref().ok().map(|way| way.link.name.clone());
            let attachment = uplink.and_then(|name| self.attachments.get(&name)?.to.clone());
            let result = match attachment {
                Some((interface, role)) => shared.plane.reattach(&interface, role),
                None => Ok(()),
            };
            match result.and_then(|()| shared.plane.forgive(agent.number)) {
                Ok(()) => {}
                Err(error) => agent.error = Some(error.to_string()),
            }
        }
    }

    /// Sends every agent its control packet.
    async fn ask(&mut self) {
        self.reports += 1;
        let mut reports = Vec::new();
        {
            let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
            for agent in self.agents.values() {
                let services = self
                    .services
                    .iter()
                    .filter(|service| service.agent() == Some(agent.address));
                reports.push(services::report(
                    &shared.plane,
                    &self.tap,
                    self.reports,
                    agent.number,
                    services,
                ));
            }
        }
        for (agent, report) in self.agents.values_mut().zip(reports) {
            match report {
                Ok(report) => agent.ask(&report, &self.echoes).await,
                Err(error) => agent.error = Some(error.to_string()),
            }
        }
    }

    /// Writes rules and ways into the maps.
    fn apply(&mut self) {
        let now = Instant::now();
        let numbers: HashMap<SocketAddr, u32> = self
            .agents
            .values()
            .map(|agent| (agent.address, agent.number))
            .collect();
        let rules: Vec<rules::Rule<'_>> = self
            .services
            .iter()
            .map(|service| {
                service.rule(
                    self.state.overrides(),
                    &numbers,
                    service.budget(&self.agents),
                )
            })
            .collect();
        let endpoints = rules::by_endpoint(
            &rules,
            numbers.keys().copied(),
            &self.addresses,
            self.tap.key,
        );
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let mut result = Ok(());
        for agent in self.agents.values() {
            // Without a way the old one stays, but is not alive.
            let policy = agent.policy(now).or_else(|| {
                let mut old = *shared.plane.agents().ok()?.get(&agent.number)?;
                old.state = 0;
                Some(old)
            });
            if let Some(policy) = policy {
                result = result.and(shared.plane.set_agent(agent.number, &policy));
            }
        }
        result = result
            .and(
                shared
                    .plane
                    .retain_agents(|number| numbers.values().any(|&known| known == number)),
            )
            .and_then(|()| shared.plane.set_services(&endpoints));
        if let Err(error) = result {
            tracing::error!("writing the rules: {error}");
        }
    }

    async fn obey(&mut self, request: control::Request) {
        let control::Request { command, reply } = request;
        let answer = match command {
            Command::Status { service } => self.status(service),
            Command::Mirror { service, change } => self.change(&service, change).await,
            Command::Off => self.off().await,
        };
        let _ = reply.send(answer);
    }

    async fn change(&mut self, service: &str, change: Change) -> Result<Reply, Refusal> {
        let known: Vec<String> = self
            .config
            .services
            .iter()
            .map(|service| service.name.clone())
            .collect();
        let Some(config) = self
            .config
            .services
            .iter()
            .find(|known| known.name == service)
        else {
            return Err(Refusal::UnknownService {
                name: service.to_owned(),
                known,
            });
        };
        if config.mirror.is_none() {
            return Err(Refusal::Invalid(format!(
                "{service} has no [service.mirror] in {}",
                self.options.config.display()
            )));
        }
        let written = self
            .state
            .update(|set| set.change(service, change, known.iter().map(String::as_str)));
        self.network_changed().await;
        let done = vec![status::sentence(service, change, self.state.overrides())];
        Ok(Reply::Done(Done {
            done,
            warnings: written
                .err()
                .map(|error| format!("{error:#}"))
                .into_iter()
                .collect(),
        }))
    }

    async fn off(&mut self) -> Result<Reply, Refusal> {
        let written = self.state.update(|set| set.switch_off());
        let before: Vec<String> = self.attachments.keys().cloned().collect();
        self.network_changed().await;
        let mut done: Vec<String> = before
            .into_iter()
            .map(|name| format!("detached from {name}"))
            .collect();
        done.push(
            "off, also after a restart; `modelmirror mirror on --service NAME` lifts it".to_owned(),
        );
        let warnings = written
            .err()
            .map(|error| format!("{error:#}"))
            .into_iter()
            .collect();
        Ok(Reply::Done(Done { done, warnings }))
    }

    /// Reads the config again. A bad one changes nothing and says why.
    async fn reload(&mut self) {
        let path = self.options.config.display().to_string();
        let new = match config::read_node(&self.options.config) {
            Ok(new) => new,
            Err(error) => return self.refuse_reload(format!("{path} was not taken: {error}")),
        };
        let changes = match config::changes(&self.config, &new) {
            Ok(changes) => changes,
            Err(error) => return self.refuse_reload(format!("{path} was not taken: {error}")),
        };
        tracing::info!("{path} read again: {changes}");
        self.config = new;
        self.warning = None;
        if let Err(error) = self.take_over() {
            tracing::error!("{error}");
        }
        self.network_changed().await;
    }

    fn refuse_reload(&mut self, why: String) {
        tracing::error!("{why}");
        self.warning = Some(why);
        self.publish();
    }

    fn stop(self) -> anyhow::Result<()> {
        let _ = std::fs::remove_file(&self.config.control_socket);
        if !self.options.detach_on_exit {
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

/// The monotonic clock that the programs read, in nanoseconds.
fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| Duration::from(now).as_nanos() as u64)
}
