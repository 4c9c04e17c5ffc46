//! The capture thread: from the socket to events.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use mirror_common::tunnel::Arm;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::judge::Judge;
use crate::config;
use crate::shadow::capture::Capture;
use crate::shadow::exchange::{Event, Exchanges, Limits};
use crate::shadow::memory::Memory;

/// The longest sleep: gaps are declared by the clock, not by datagrams.
const TICK: Duration = Duration::from_millis(50);

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
    end: Option<oneshot::Receiver<std::io::Result<()>>>,
    alive: Arc<AtomicBool>,
}

impl Intake {
    /// Starts the thread; its events come in batches.
    pub(super) fn start(
        capture: Capture,
        config: &config::Shadow,
        memory: Memory,
        judge: &Arc<Judge>,
    ) -> anyhow::Result<(Self, UnboundedReceiver<Vec<Event>>)> {
        let limits = config
            .services
            .iter()
            .map(|service| Limits::new(service.max_body).with_answers_within(service.timeout));
        let (events, receiver) = unbounded_channel();
        let (ended, end) = oneshot::channel();
        let intake = Self {
            stop: Arc::default(),
            backlog: Arc::default(),
            end: Some(end),
            alive: Arc::new(AtomicBool::new(true)),
        };
        let work = Work {
            exchanges: Exchanges::new(limits.collect(), memory),
            capture,
            events,
            batch: Vec::new(),
            judge: Arc::clone(judge),
            ids: config.services.iter().map(|service| service.id).collect(),
            batch_interval: config.batch_interval,
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
            Ok(result) => result.context("the tunnel cannot be received any more"),
            Err(_) => Err(anyhow!("the capture thread panicked")),
        }
    }

    /// Ends the thread; its last events are then sent.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await
    }
}

struct Work {
    capture: Capture,
    exchanges: Exchanges,
    events: UnboundedSender<Vec<Event>>,
    batch: Vec<Event>,
    judge: Arc<Judge>,
    /// Ids of the services, by index.
    ids: Vec<u32>,
    batch_interval: Duration,
    stop: Arc<AtomicBool>,
    backlog: Arc<AtomicUsize>,
}

impl Work {
    fn run(mut self) -> std::io::Result<()> {
        let start = Instant::now();
        let (mut ticked, mut settled) = (start, start);
        let mut result = Ok(());
        while result.is_ok() && !self.stop.load(Ordering::Relaxed) {
            let received = self.receive(start);
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
                Err(error) => result = Err(error),
            }
        }
        self.exchanges.finish(&mut self.batch);
        self.send();
        self.capture.close();
        self.show();
        result
    }

    fn receive(&mut self, start: Instant) -> std::io::Result<usize> {
        let overloaded = self.backlog.load(Ordering::Relaxed) > BACKLOG;
        let (exchanges, batch) = (&mut self.exchanges, &mut self.batch);
        let mut sink = |segment| exchanges.segment(segment, start.elapsed(), batch);
        let count = self.capture.receive(TICK, overloaded, &mut sink)?;
        for (tap, connected) in self.capture.take_streams() {
            self.exchanges.streams(tap, connected, start.elapsed());
        }
        if self.capture.take_changed() {
            self.take_reports();
        }
        Ok(count)
    }

    fn send(&mut self) {
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
        for (_, tap) in self.capture.taps() {
            metrics.tap(tap);
        }
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
