//! The daemon on the inference node: keeps the programs attached, the rules true, the agents
//! watched, and answers for it all.
//!
//! ```text
//!   threads, tasks, sockets ──Input──> core ──Effect──> performer ──> threads, tasks, disk
//!                                       │
//!                                       └── asks and tells, at once ── kernel
//! ```
//!
//! One loop owns everything and waits for nobody: [`run`] hands what has happened to the [`core`], which
//! decides without I/O, and has the [`performer`](perform) do what that says. What waits is a task or a thread:
//! [`network`] for the kernel's view of the network, [`sender`] for agents, `control` for commands.

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
mod kernel;
mod keys;
mod listening;
pub(crate) mod local_reader;
mod lro;
mod measure;
mod metrics;
mod milestones;
mod network;
mod now;
mod numbers;
mod perform;
mod place;
mod priority;
mod reach;
mod rollout;
mod rules;
mod sender;
mod servers;
mod services;
mod settings;
mod settle;
mod snapshot;
mod status;
mod steering;
mod takeover;
mod translating;
mod way;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mirror_common::policy::Tap;
use mirror_common::record::value_size;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::{mpsc, watch};

use self::core::{Core, Input};
pub(crate) use self::network::Against;
use self::now::Now;
use self::perform::Performer;
pub(crate) use self::reach::{ring_size_of, rings_of};
pub(crate) use self::sender::Figures;
pub(crate) use self::services::UNKNOWN_SPEED_BUDGET;
pub(crate) use self::snapshot::Snapshot;
use mirror_api::Mechanism;

use crate::config::Node;
use crate::control;
use crate::dataplane::{self, DataPlane, Sizes};
use crate::offload::{Devices, Ethtool, Switched};
use mirror_base::admin;
use mirror_base::guard;
use mirror_base::serve;

/// How long the last write may take when the daemon stops.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// How the daemon was started.
#[derive(Clone, Debug)]
pub struct Options {
    /// The eBPF programs' object file.
    pub object: &'static [u8],
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
    serve::raise_file_limit();
    let listener = mirror_base::control::bind(&config.control_socket)?;
    let admin_listener = tokio::net::TcpListener::bind(config.admin)
        .await
        .with_context(|| format!("cannot listen at admin = \"{}\"", config.admin))?;
    let sizes = Sizes {
        connections: config.connections,
        ring: ring_size_of(&config),
    };
    let mut plane = DataPlane::load(options.object, &config.pin_dir, options.mechanism, sizes)?;
    let mut log = plane
        .log()
        .inspect_err(|error| tracing::warn!("no log of the programs: {error}"))
        .ok();
    let _alone = alone_with(&config.pin_dir)?;
    let tap = begin_life(&mut plane, &config)?;
    let (mut core, mut performer, mut inputs) = perform::start(config, &options, plane, tap)?;
    let (looks, mut looked) = watch::channel(None);
    let network = tokio::spawn(network::watch(core.interest.subscribe(), looks));
    let registry = prometheus::Registry::new();
    registry.register(Box::new(mirror_base::metrics::panics().clone()))?;
    registry.register(Box::new(metrics::Node::new(core.published.subscribe())))?;
    let (requests, mut commands) = mpsc::channel(16);
    let control = tokio::spawn(control::serve(listener, requests));
    let ready = core.published.subscribe();
    let admin = tokio::spawn(admin::serve(
        admin_listener,
        move || registry.gather(),
        move || ready.borrow().readiness(),
    ));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "running");

    let mut tick = tokio::time::interval(core::TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut look = tokio::time::interval(rollout::LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let input = tokio::select! {
            () = &mut shutdown => break,
            _ = tick.tick() => {
                if let Some(log) = &mut log {
                    log.flush();
                }
                tick.reset_after(core.rest());
                Input::Tick
            }
            () = until(core.deadline()) => Input::Due,
            _ = look.tick(), if core.rollouts.are_on() => Input::Look,
            changed = looked.changed() => {
                changed.context("the watcher of the network has ended")?;
                Input::Network(looked.borrow_and_update().clone())
            }
            Some(request) = commands.recv() => performer.expect(request),
            Some(()) = reload.recv() => performer.read_again(&options.config, &core.file),
            input = inputs.next() => input,
        };
        // Whoever was held up has heard nobody: what came meanwhile counts before anybody is called silent.
        while let Some(event) = inputs.heard_of_agents() {
            turn(&mut core, &mut performer, event);
        }
        turn(&mut core, &mut performer, input);
    }
    network.abort();
    control.abort();
    admin.abort();
    stop(core, performer, &options)
}

/// Has the core take something in, and done what follows. Where it fails, what it had decided by then is done,
/// and the next input may do better: nobody else can look after the programs.
fn turn(core: &mut Core, performer: &mut Performer, input: Input) {
    let effects = guard::guarded(|| core.handle(input, Now::read()));
    performer.perform_all(effects.unwrap_or_else(|| core.left_over()));
}

/// The life of the maps begins with the first daemon that has them.
fn begin_life(plane: &mut DataPlane, config: &Node) -> anyhow::Result<Tap> {
    let mut tap = plane.tap()?;
    if tap.boot == 0 {
        let [a, b] = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|uuid| uuid.as_u64_pair());
        tap.boot = a.0 | 1;
        tap.key = [a.1 ^ b.0.rotate_left(32), b.1];
    }
    tap.ring = value_size(plane.ring_size()).into();
    plane.set_tap(tap)?;
    let (ring, wanted) = (plane.ring_size(), ring_size_of(config));
    if ring != wanted {
        tracing::warn!(
            ring,
            wanted,
            "each CPU's ring keeps the size that it was made with, or that this kernel allows; to \
             change it stop the daemon, run `modelmirror off` and start it again"
        );
    }
    Ok(tap)
}

fn stop(core: Core, mut performer: Performer, options: &Options) -> anyhow::Result<()> {
    let _ = std::fs::remove_file(&core.config.control_socket);
    let is_kept = performer.finish(LAST_WRITE);
    if !is_kept {
        tracing::error!("what was set last may not be on the disk");
    }
    // What is off needs no maps, once the disk has it.
    let is_off = is_kept && core.settings.holds().is_off();
    if !options.detach_on_exit && !is_off {
        tracing::info!("stopped; the programs stay attached and stop copying in 5 s");
        return Ok(());
    }
    let pin_dir = core.config.pin_dir.clone();
    let state_dir = core.config.state_dir.clone();
    drop((core, performer));
    let removed = dataplane::detach_all(&pin_dir).with_context(|| pin_dir.display().to_string())?;
    let (done, failures) = Switched::new(&state_dir, Ethtool).keep_off(&Devices::new());
    for done in done {
        tracing::info!("{done}");
    }
    for (interface, why) in failures {
        tracing::error!(interface, "LRO cannot be put back: {why}");
    }
    tracing::info!(pins = removed.len(), "stopped; everything is detached");
    Ok(())
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

/// Waits for a moment; without one, for ever.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}
