//! The capture thread: from the socket to events.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use mirror_common::flow::Flow;
use mirror_common::tunnel::Arm;
use mirror_wire::exchange::{self, Event, Exchanges, HandedOver, Limits};
use mirror_wire::mark::Mark;
use mirror_wire::memory::Memory;
use mirror_wire::message::TapId;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::judge::{Judge, OfTap};
use crate::capture::{Capture, StreamNews};
use crate::config;
use crate::resume::{Left, TapResume, unix_ns};

/// The longest sleep: gaps are declared by the clock, not by datagrams.
const TICK: Duration = Duration::from_millis(50);

/// How long streams are read for the rest of what has begun when the agent stops. Meanwhile their rings
/// are not emptied.
const REST: Duration = Duration::from_millis(500);

/// How often it is looked whether that has come.
const LOOK: Duration = Duration::from_millis(5);

/// With fewer datagrams at once than this, the thread lets some more come together before it looks
/// again: each look costs more than a datagram, and nothing here is measured by the agent's clock.
const FEW: usize = 128;

/// How often taps' ledgers move on.
const SETTLE: Duration = Duration::from_secs(1);

/// Events that may wait for the dispatcher. Requests and responses among them are paid for by the
/// memory account; this bounds the others.
const BACKLOG: usize = 1 << 16;

/// The running capture thread.
pub(super) struct Intake {
    stop: Arc<AtomicBool>,
    backlog: Arc<AtomicUsize>,
    end: Option<oneshot::Receiver<std::io::Result<Rest>>>,
    alive: Arc<AtomicBool>,
    rest: Rest,
}

/// What is left to the next agent.
#[derive(Debug, Default)]
pub(super) struct Rest {
    /// Of each tap that streams, by its name.
    pub(super) taps: HashMap<String, TapRest>,
    /// What the agent before this one has left, and this one has not gone on with.
    pub(super) untouched: Vec<TapResume>,
}

/// What is left of one tap.
#[derive(Debug, Default)]
pub(super) struct TapRest {
    /// A moment by its clock, and in nanoseconds since 1970.
    pub(super) moment: Option<(u64, u64)>,
    pub(super) connections: Vec<Left>,
}

impl Intake {
    /// Starts the thread; its events come in batches.
    pub(super) fn start(
        capture: Capture,
        config: &config::Shadow,
        memory: Memory,
        judge: &Arc<Judge>,
        mark: Mark,
    ) -> anyhow::Result<(Self, UnboundedReceiver<Vec<Event>>)> {
        let limits = config.services.iter().map(|service| {
            let limits = Limits {
                incomplete: service.incomplete_after,
                ..Limits::new(service.max_body)
            };
            limits.with_answers_within(service.timeout).with_mark(mark)
        });
        let (events, receiver) = unbounded_channel();
        let (ended, end) = oneshot::channel();
        let intake = Self {
            stop: Arc::default(),
            backlog: Arc::default(),
            end: Some(end),
            alive: Arc::new(AtomicBool::new(true)),
            rest: Rest::default(),
        };
        let work = Work {
            exchanges: Exchanges::new(limits.collect(), memory)
                .with_max_connections(max_connections(config.memory)),
            capture,
            events,
            batch: Vec::new(),
            counted: 0,
            seen: HashMap::new(),
            judge: Arc::clone(judge),
            ids: config.services.iter().map(|service| service.id).collect(),
            batch_interval: config.batch_interval,
            start: Instant::now(),
            began_ns: unix_ns(),
            stop: Arc::clone(&intake.stop),
            backlog: Arc::clone(&intake.backlog),
        };
        let alive = Arc::clone(&intake.alive);
        thread::Builder::new()
            .name("capture".into())
            .spawn(move || {
                let result = work.run();
                alive.store(false, Ordering::Relaxed);
                // Nobody listens when the agent is gone.
                let _ = ended.send(result);
            })
            .context("cannot start the capture thread")?;
        Ok((intake, receiver))
    }

    /// Events that wait; whoever takes a batch subtracts it.
    pub(super) fn backlog(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.backlog)
    }

    /// Says at any time whether the thread runs.
    pub(super) fn alive(&self) -> impl Fn() -> bool + Send + Sync + use<> {
        let alive = Arc::clone(&self.alive);
        move || alive.load(Ordering::Relaxed)
    }

    /// Waits until the thread ends; nothing but a failure ends it before it is told to.
    pub(super) async fn ended(&mut self) -> anyhow::Result<()> {
        let Some(end) = &mut self.end else {
            return Ok(());
        };
        let result = end.await;
        self.end = None;
        match result {
            Ok(Ok(rest)) => {
                self.rest = rest;
                Ok(())
            }
            Ok(Err(error)) => Err(error).context("the tunnel cannot be received any more"),
            Err(_) => Err(anyhow!("the capture thread panicked")),
        }
    }

    /// Ends the thread, once what streams have begun is over, or after 500 ms; its last events are then
    /// sent. Returns what is left to the next agent.
    pub(super) async fn stop(&mut self) -> anyhow::Result<Rest> {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await?;
        Ok(std::mem::take(&mut self.rest))
    }
}

/// How many connections are followed at once: what they take besides what is leased is a sixth of `memory` at most.
fn max_connections(memory: usize) -> usize {
    (memory / 6 / exchange::COST).min(exchange::MAX_CONNECTIONS)
}

/// Requests of one service that came from one tap.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// Of which life of the tap's counters.
    life: (u64, u64),
    seen: u64,
}

/// Which life of a tap's counters of a service goes on.
fn life(capture: &Capture, ids: &[u32], tap: TapId, service: usize) -> (u64, u64) {
    let (tap, id) = (capture.tap(tap), ids.get(service));
    tap.zip(id)
        .map(|(tap, id)| tap.life(*id))
        .unwrap_or_default()
}

struct Work {
    capture: Capture,
    exchanges: Exchanges,
    events: UnboundedSender<Vec<Event>>,
    batch: Vec<Event>,
    /// How many of these have been counted by their taps.
    counted: usize,
    /// Requests of each tap's services, since their counters began.
    seen: HashMap<(TapId, usize), Counted>,
    judge: Arc<Judge>,
    /// Ids of the services, by index.
    ids: Vec<u32>,
    batch_interval: Duration,
    start: Instant,
    /// The same in nanoseconds since 1970.
    began_ns: u64,
    stop: Arc<AtomicBool>,
    backlog: Arc<AtomicUsize>,
}

impl Work {
    fn run(mut self) -> std::io::Result<Rest> {
        let start = self.start;
        let (mut ticked, mut settled) = (start, start);
        let mut paused = None;
        while !self.is_over(&mut paused) {
            let received = self.receive(if paused.is_some() { LOOK } else { TICK });
            self.exchanges.forgo(self.judge.take_unneeded());
            let now = Instant::now();
            if now - ticked >= TICK {
                ticked = now;
                self.exchanges.tick(now - start, &mut self.batch);
            }
            // Before the packets are settled: what they held is then seen, or on its way there.
            self.send();
            if now - settled >= SETTLE {
                settled = now;
                self.capture.tick();
                self.show();
            }
            match received {
                Ok(count) if (1..FEW).contains(&count) => thread::sleep(self.batch_interval),
                Ok(_) => {}
                Err(error) => {
                    self.end();
                    return Err(error);
                }
            }
        }
        Ok(self.end())
    }

    /// Whether the agent stops, and what streams have begun is over. `paused`: since when the next agent goes
    /// on with them.
    fn is_over(&mut self, paused: &mut Option<Instant>) -> bool {
        if !self.stop.load(Ordering::Relaxed) {
            return false;
        }
        let since = *paused.get_or_insert_with(|| {
            self.capture.pause();
            self.exchanges.pause(self.start.elapsed(), &mut self.batch);
            Instant::now()
        });
        since.elapsed() >= REST || self.exchanges.is_at_rest()
    }

    fn end(&mut self) -> Rest {
        let taps = self.capture.taps();
        let mut rest: HashMap<_, _> = taps
            .filter_map(|(id, tap)| {
                let (time_ns, since) = self.exchanges.moment(id)?;
                let then_ns = self.began_ns.saturating_add(since.as_nanos() as u64);
                let rest = TapRest {
                    moment: Some((time_ns, then_ns)),
                    connections: Vec::new(),
                };
                Some((id, (tap.name.clone(), rest)))
            })
            .collect();
        for handed_over in self.exchanges.hand_over(&mut self.batch) {
            let service = self.ids.get(handed_over.service);
            if let (Some(&service), Some((_, rest))) = (service, rest.get_mut(&handed_over.tap)) {
                rest.connections.push(Left {
                    service,
                    client: handed_over.flow.client.into(),
                    server: handed_over.flow.server.into(),
                    at: handed_over.anchor,
                });
            }
        }
        let rest = Rest {
            taps: rest.into_values().collect(),
            untouched: self.capture.take_left(),
        };
        self.send();
        self.capture.close();
        self.show();
        rest
    }

    fn receive(&mut self, wait: Duration) -> std::io::Result<usize> {
        let start = self.start;
        let overloaded = self.backlog.load(Ordering::Relaxed) > BACKLOG;
        let (exchanges, batch) = (&mut self.exchanges, &mut self.batch);
        let mut sink = |segment| exchanges.segment(segment, start.elapsed(), batch);
        let count = self.capture.receive(wait, overloaded, &mut sink)?;
        self.count_by_tap();
        for news in self.capture.take_streams() {
            self.take_stream(news);
        }
        if self.capture.take_changed() {
            self.take_reports();
        }
        Ok(count)
    }

    fn take_stream(&mut self, news: StreamNews) {
        let now = self.start.elapsed();
        match news {
            StreamNews::Begins(tap) => self.exchanges.streams(tap, true, now),
            StreamNews::Ends(tap) => self.exchanges.streams(tap, false, now),
            StreamNews::Resumes(tap, left) => {
                self.resume(tap, &left, now);
                self.exchanges.streams(tap, true, now);
            }
            StreamNews::Forgotten(tap, name) => {
                self.exchanges.forget_tap(tap, &mut self.batch);
                self.seen.retain(|(known, _), _| *known != tap);
                self.judge.forget_tap(tap, &name);
            }
        }
    }

    /// Goes on where the agent before this one has left a tap.
    fn resume(&mut self, tap: TapId, resumed: &TapResume, now: Duration) {
        if let Some((time_ns, then_ns)) = resumed.moment {
            let since = self.began_ns.saturating_sub(then_ns);
            self.exchanges
                .resume_clock(tap, time_ns.saturating_add(since));
        }
        for left in &resumed.connections {
            let service = self.ids.iter().position(|&id| id == left.service);
            let Some(service) = service else {
                continue;
            };
            let flow = Flow {
                client: left.client.into(),
                server: left.server.into(),
            };
            let handed_over = HandedOver {
                service,
                tap,
                flow,
                anchor: left.at.clone(),
            };
            self.exchanges.resume(&handed_over, now);
        }
    }

    /// Counts what is new by the tap that it came from, and then begins anew where the tap's own counters
    /// have: by those the node will judge it.
    fn count_by_tap(&mut self) {
        for event in self.batch.get(self.counted..).unwrap_or_default() {
            if let Event::Seen { tap, service, .. } = event {
                let counted = self.seen.entry((*tap, *service));
                let life = || Counted {
                    life: life(&self.capture, &self.ids, *tap, *service),
                    seen: 0,
                };
                counted.or_insert_with(life).seen += 1;
            }
        }
        self.counted = self.batch.len();
        for ((tap, service), counted) in &mut self.seen {
            let life = life(&self.capture, &self.ids, *tap, *service);
            if life != counted.life {
                *counted = Counted { life, seen: 0 };
            }
        }
    }

    fn send(&mut self) {
        self.count_by_tap();
        self.counted = 0;
        if self.batch.is_empty() {
            return;
        }
        self.backlog.fetch_add(self.batch.len(), Ordering::Relaxed);
        // Nobody listens when the agent is gone.
        let _ = self.events.send(std::mem::take(&mut self.batch));
    }

    fn show(&self) {
        let metrics = self.judge.metrics();
        metrics.sockets(
            self.capture.receive_buffer(),
            self.capture.socket_drops(),
            self.capture.not_allowed(),
        );
        metrics.strays(&self.capture.strays());
        metrics.refusals(self.capture.refusals());
        metrics.forgotten_taps(&self.capture.gave_way());
        self.judge.forgotten(self.exchanges.forgotten());
        let mut taps = Vec::new();
        let mut of_taps = HashMap::new();
        for (id, tap) in self.capture.taps() {
            metrics.tap(tap);
            taps.push(tap.status());
            let seen = (0..self.ids.len()).filter_map(|service| {
                let counted = self.seen.get(&(id, service))?;
                Some((service, counted.seen))
            });
            let (boot, _) = tap.life(0);
            let seen = seen.collect();
            of_taps.insert(tap.name.clone(), OfTap { boot, seen });
        }
        self.judge.came_from(of_taps);
        let refused = self.capture.refusals().last();
        self.judge.show_taps(taps, refused);
    }

    /// What taps say of their services has changed.
    fn take_reports(&mut self) {
        for (id, tap) in self.capture.taps() {
            for (index, service) in self.ids.iter().enumerate() {
                if let Some(service) = tap.services.get(service) {
                    let alone = service.requests_only;
                    self.exchanges.copies_requests_only(id, index, alone);
                    let named = [
                        (Arm::Stable, Some(&service.stable_version)),
                        (Arm::Canary, service.canary_version.as_ref()),
                    ];
                    for (arm, version) in named {
                        if let Some(version) = version {
                            self.judge.version((id, index, arm), version);
                        }
                    }
                }
            }
        }
    }
}
