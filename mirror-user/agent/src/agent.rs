//! The agent put together.
//!
//! ```text
//!   streams thread:  connections -> records ──┐
//!   capture thread:  datagrams -> segments -> exchanges ──events──┐
//!   runtime:         dispatcher <─────────────────────────────────┘
//!                        └─> replay, a task per connection ──> join ──> compare, record
//!   workers:         the same for large exchanges <─────────────┘
//! ```
//!
//! The capture never waits for the rest: what the rest cannot take of datagrams is received, counted
//! and dropped; streams wait, at the tap in the end. The memory account bounds what is under way, the backlog bounds the events.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use mirror_rollout::noise::Twin;
use mirror_wire::mark::Mark;
use mirror_wire::memory::Memory;
use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use self::dispatch::{Dispatcher, Replays, Seconds};
pub use self::doors::Doors;
use self::intake::{Intake, Rest};
use self::judge::{Judge, SecondSink};
use self::labels::Follower;
use super::capture::Capture;
use super::capture::streams::{Accept, Api, Got, KeyedDoor, OpenDoor};
use super::replay::{Load, Replay, Sockets};
use super::resume::{Resume, TapResume};
use super::{record, summary};
use crate::{config, control, metrics};
use mirror_base::admin::{self, Readiness};
use mirror_base::config::ServiceAddress;
use mirror_base::serve;
use mirror_base::servers::{Usage, Watch};
use mirror_base::transport::keys::PrivateKey;

mod dispatch;
mod doors;
mod intake;
mod judge;
mod labels;
pub(crate) mod limits;
mod workers;

/// How long the agent goes on with what it has begun when it is asked to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// How often figures are shown and ledgers written.
const SHOW: Duration = Duration::from_secs(1);

/// Runs the agent until `shutdown`.
///
/// # Errors
/// When an address cannot be bound or the records' folder cannot be made, and when the tunnel's
/// socket fails later on.
pub async fn run(config: config::Shadow, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
    Agent::open(config)?.run(shutdown).await
}

/// An agent that listens, but does not work yet.
pub struct Agent {
    capture: Capture,
    streams: std::net::TcpListener,
    door: Arc<dyn Accept>,
    admin: TcpListener,
    control: Option<UnixListener>,
    doors: Arc<Doors>,
    metrics: metrics::Agent,
    memory: Memory,
    config: config::Shadow,
}

impl Agent {
    /// Binds everything. To be called in a runtime.
    ///
    /// # Errors
    /// When an address cannot be bound, or the records' folder cannot be made or written to.
    pub fn open(config: config::Shadow) -> anyhow::Result<Self> {
        Self::open_after(config, &Doors::default())
    }

    /// The same, for an agent that will follow the one that has these doors, and still works.
    ///
    /// # Errors
    /// As [`Agent::open`]; nothing has changed for the other one then.
    pub fn open_after(config: config::Shadow, before: &Doors) -> anyhow::Result<Self> {
        serve::raise_file_limit();
        let mut doors = Doors::open(&config, before)?;
        let capture = Capture::open(&config, doors.udp()?)?;
        let streams = doors.streams()?;
        let door = door(&config)?;
        let admin = doors.tcp(config.admin)?;
        record::prepare(&config)?;
        // Last: whoever is asked there from now on is this agent.
        let control = doors.control(&config.control_socket, before);
        Ok(Self {
            capture,
            streams,
            door,
            admin,
            control,
            doors: Arc::new(doors),
            metrics: metrics::Agent::new(),
            memory: Memory::new(config.memory),
            config,
        })
    }

    /// Where the tunnel ends.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn tunnel_address(&self) -> std::io::Result<SocketAddr> {
        self.capture.local_address()
    }

    /// Where /metrics is.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// The agent's metrics.
    pub fn metrics(&self) -> metrics::Agent {
        self.metrics.clone()
    }

    /// What it listens on, for the one that comes after it.
    pub fn doors(&self) -> Arc<Doors> {
        Arc::clone(&self.doors)
    }

    /// Works until `shutdown`, then finishes what it has begun, within 5 s.
    ///
    /// # Errors
    /// When the tunnel's socket fails, or records cannot be listed.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let Self {
            mut capture,
            streams,
            door,
            admin,
            control,
            doors: _doors,
            metrics,
            memory,
            config,
        } = self;
        say_rules(&config);
        let judge = Arc::new(Judge::new(&config, metrics)?);
        let clock = Instant::now();
        let mark = Mark::new();
        let replays = replays(&config, &judge, mark, &memory, clock);
        let figures = Arc::new(Figures {
            memory: memory.clone(),
            loads: replays.shadows.iter().map(Replay::load).collect(),
            servers: servers(&config),
        });
        capture.resume(Resume::take(&config.record_dir));
        let streams = capture
            .listen(
                streams,
                door,
                &memory,
                Some(api(&judge, Arc::clone(&figures))),
            )
            .context("cannot start the streams thread")?;
        let (mut intake, events) = Intake::start(capture, &config, memory.clone(), &judge, mark)?;
        let dispatcher = Dispatcher::new(
            &config.services,
            replays,
            Arc::clone(&judge),
            memory.clone(),
            intake.backlog(),
        );
        let dispatched = tokio::spawn(dispatcher.run(events));
        let mut served = JoinSet::new();
        served.spawn(serve_admin(admin, &judge, Arc::clone(&figures), &intake));
        if let Some(control) = control {
            served.spawn(serve_control(control, &judge, Arc::clone(&figures)));
        }
        let shown = tokio::spawn(show(Arc::clone(&judge), Arc::clone(&figures)));
        for (index, service) in config.services.iter().enumerate() {
            let Some(labels) = &service.labels else {
                continue;
            };
            let follower = Follower::new(&config, service, labels, judge.since(), &memory);
            let judge = Arc::downgrade(&judge);
            let tell = move |summary| {
                if let Some(judge) = judge.upgrade() {
                    judge.labelled(index, summary);
                }
            };
            let interval = labels.interval;
            served.spawn(async move {
                labels::follow(follower, interval, tell).await;
            });
        }

        let ended = tokio::select! {
            () = shutdown => Ok(()),
            ended = intake.ended() => ended,
        };
        // Streams go on until what they have begun is over.
        let stopped = intake.stop().await;
        let got = streams.stop().await;
        let stopped = stopped.map(|rest| leave(&config, got, rest));
        served.shutdown().await;
        let replays = dispatched.await.context("the dispatcher panicked")?;
        drain(replays, &judge).await;
        shown.abort();
        // It holds the judge too: whoever drops that last writes the records.
        let _ = shown.await;
        finish(judge).await;
        ended.and(stopped)
    }
}

/// Who asks the shadows, and who asks for second answers. Nothing is opened before the first request.
fn replays(
    config: &config::Shadow,
    judge: &Arc<Judge>,
    mark: Mark,
    memory: &Memory,
    clock: Instant,
) -> Replays {
    // What is asked twice draws from sockets of its own: it takes none from the first answers.
    let [firsts, seconds] = limits::sockets(config).map(Sockets::new);
    let first = |service: &config::ShadowService| {
        let judge = Arc::clone(judge);
        Replay::new(service, mark, &firsts, memory.clone(), clock, judge)
    };
    let second = |service: &config::ShadowService, control: config::Control, twin: Twin| {
        let judge = SecondSink::new(Arc::clone(judge), twin);
        let service = limits::second(service, control, twin);
        Replay::new(&service, mark, &seconds, memory.clone(), clock, judge)
    };
    Replays {
        shadows: config.services.iter().map(first).collect(),
        seconds: config
            .services
            .iter()
            .map(|service| {
                let control = service.control?;
                Some(Seconds {
                    control,
                    replays: Twin::ALL.map(|twin| second(service, control, twin)),
                })
            })
            .collect(),
    }
}

/// Leaves to the next agent what it can go on with.
fn leave(config: &config::Shadow, got: Vec<Got>, mut rest: Rest) {
    let taps = got.into_iter().map(|got| {
        let left = rest.taps.remove(&got.name).unwrap_or_default();
        TapResume {
            name: got.name,
            boot: got.boot,
            positions: got.positions,
            moment: left.moment,
            connections: left.connections,
        }
    });
    let untouched = std::mem::take(&mut rest.untouched);
    let is_touched = |tap: &TapResume| untouched.iter().all(|left| left.name != tap.name);
    let mut taps: Vec<_> = taps.filter(is_touched).collect();
    taps.extend(untouched.iter().cloned());
    if taps.is_empty() {
        return;
    }
    if let Err(error) = Resume::write(&config.record_dir, taps) {
        tracing::warn!(%error, "the next agent will join every connection in its middle");
    }
}

/// Where figures come from that nobody reports.
struct Figures {
    memory: Memory,
    /// By the services' places in the config, as the servers are.
    loads: Vec<Arc<Load>>,
    servers: Option<Watch<usize>>,
}

impl Figures {
    /// What the shadows use, those that were found.
    fn usage(&self) -> BTreeMap<usize, Usage> {
        self.servers.as_ref().map(Watch::usage).unwrap_or_default()
    }
}

/// Looks after the shadows that are on this host.
fn servers(config: &config::Shadow) -> Option<Watch<usize>> {
    let target =
        |service: &config::ShadowService| vec![ServiceAddress::of_listener(service.target)];
    let targets = config.services.iter().map(target);
    let watch = Watch::start(targets.enumerate().collect());
    watch
        .inspect_err(|error| tracing::warn!("no CPU and memory of the shadows: {error}"))
        .ok()
}

fn serve_admin(
    listener: TcpListener,
    judge: &Arc<Judge>,
    figures: Arc<Figures>,
    intake: &Intake,
) -> impl Future<Output = ()> + Send + use<> {
    let alive = intake.alive();
    let registry = judge.metrics().registry().clone();
    // One for the whole program: a second agent of it finds it there.
    let _ = registry.register(Box::new(mirror_base::metrics::panics().clone()));
    // A scraper's open connection does not keep the judge, and its records, from their end.
    let judge = Arc::downgrade(judge);
    let gather = move || {
        if let Some(judge) = judge.upgrade() {
            judge.show(&figures);
        }
        registry.gather()
    };
    let ready = move || match alive() {
        true => Readiness::Ready,
        false => Readiness::NotReady("the capture thread has stopped".into()),
    };
    admin::serve(listener, gather, ready)
}

/// Answers people on this host.
fn serve_control(
    listener: UnixListener,
    judge: &Arc<Judge>,
    figures: Arc<Figures>,
) -> impl Future<Output = ()> + Send + use<> {
    // As with `api`.
    let judge = Arc::downgrade(judge);
    let router = control::router(move || Some(judge.upgrade()?.status(&figures)));
    serve::serve(listener, router)
}

/// What is in force from now on: at the start, and after each reload.
fn say_rules(config: &config::Shadow) {
    for service in &config.services {
        let (compare, record) = (&service.compare, &service.record);
        tracing::info!(
            service = %service.name,
            version = %service.version,
            target = %service.target,
            concurrency = service.concurrency,
            queue = service.queue,
            timeout = %humantime::format_duration(service.timeout),
            ignore = ?compare.ignore,
            absolute = compare.absolute,
            relative = compare.relative,
            prediction = compare.prediction.as_deref().unwrap_or("none"),
            payloads = ?record.payloads,
            redact_fields = ?record.redact_fields,
            "rules in force"
        );
    }
}

/// What connections are answered with that ask by HTTP. They do not keep the judge, and its records,
/// from their end. To be called in a runtime, which answers.
fn api(judge: &Arc<Judge>, figures: Arc<Figures>) -> Api {
    let judge = Arc::downgrade(judge);
    let runtime = tokio::runtime::Handle::current();
    Arc::new(move |stream, name| {
        let (judge, figures) = (judge.clone(), Arc::clone(&figures));
        let router = summary::router(move || Some(judge.upgrade()?.summary(&figures, &name)));
        let served = summary::serve_connection(stream, router);
        runtime.spawn(async {
            if let Err(error) = served.await {
                tracing::debug!(%error, "a caller of the api breaks off");
            }
        });
    })
}

/// Lets in taps by their keys, and with `insecure` those in `allow` without.
fn door(config: &config::Shadow) -> anyhow::Result<Arc<dyn Accept>> {
    let open = config.insecure.then(|| OpenDoor::new(config.allow.clone()));
    Ok(match open {
        // Nobody would be known by a key: it does not take one.
        Some(open) if config.taps.is_empty() => Arc::new(open),
        open => {
            let key = PrivateKey::read(&config.key_file)?;
            Arc::new(KeyedDoor::new(&key, &config.taps, open)?)
        }
    })
}

/// Shows the figures and writes the ledgers, once a second.
async fn show(judge: Arc<Judge>, figures: Arc<Figures>) {
    let mut interval = tokio::time::interval(SHOW);
    loop {
        interval.tick().await;
        judge.show(&figures);
        judge.look(&figures);
        judge.write_ledgers();
    }
}

/// Sends what is queued, compares what is answered; the rest is dropped as shutdown.
async fn drain(replays: Replays, judge: &Arc<Judge>) {
    let deadline = tokio::time::Instant::now() + DRAIN;
    let left = || deadline.saturating_duration_since(tokio::time::Instant::now());
    for replay in replays.shadows {
        replay.drain(left()).await;
    }
    for replay in replays
        .seconds
        .into_iter()
        .flatten()
        .flat_map(|seconds| seconds.replays)
    {
        // What is compared waits for them no longer than it may.
        replay.drain(left() / 2).await;
    }
    let released = judge.pending().release();
    for pair in released {
        judge.complete(pair);
    }
    // What the workers have not begun by then is dropped as well.
    let _ = tokio::time::timeout_at(deadline, judge.idle()).await;
}

/// Closes the ledgers and writes what waits to be written.
async fn finish(judge: Arc<Judge>) {
    judge.finish();
    // The recorder writes when it is dropped, which may take its time.
    let dropped = tokio::task::spawn_blocking(move || drop(judge));
    let _ = tokio::time::timeout(DRAIN, dropped).await;
}

#[cfg(test)]
mod bench;
#[cfg(test)]
mod tests;
