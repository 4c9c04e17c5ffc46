//! Takes the exchange table's events and starts what follows from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mirror_common::tunnel::Arm;
use mirror_rollout::noise::Twin;
use mirror_wire::exchange::{ConnectionId, Event};
use mirror_wire::memory::Memory;
use mirror_wire::message::{DropReason, ExchangeId};
use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use super::judge::{Judge, SecondSink};
use crate::config;
use crate::join::{Origin, Pair, Pending};
use crate::noise::{NoData, Second, is_asked};
use crate::replay::{Job, QueueFull, Replay};
use crate::selection::Selection;

/// Who replays, by the services' places in the config.
pub(super) struct Replays {
    pub(super) shadows: Vec<Replay<Judge>>,
    /// Those that ask for second answers, where there is a control.
    pub(super) seconds: Vec<Option<Seconds>>,
}

/// Second answers of one service.
pub(super) struct Seconds {
    pub(super) control: config::Control,
    /// By [`Twin`].
    pub(super) replays: [Replay<SecondSink>; 2],
}

pub(super) struct Dispatcher {
    /// By the services' places in the config, as `replays`.
    selections: Vec<Selection>,
    replays: Replays,
    judge: Arc<Judge>,
    memory: Memory,
    backlog: Arc<AtomicUsize>,
}

impl Dispatcher {
    pub(super) fn new(
        services: &[config::ShadowService],
        replays: Replays,
        judge: Arc<Judge>,
        memory: Memory,
        backlog: Arc<AtomicUsize>,
    ) -> Self {
        let selections = services.iter().map(|service| &service.requests);
        Self {
            selections: selections.map(Selection::new).collect(),
            replays,
            judge,
            memory,
            backlog,
        }
    }

    /// Dispatches until there are no more events; gives the replays back to be drained.
    pub(super) async fn run(mut self, mut events: UnboundedReceiver<Vec<Event>>) -> Replays {
        while let Some(batch) = events.recv().await {
            self.backlog.fetch_sub(batch.len(), Ordering::Relaxed);
            self.dispatch(batch);
        }
        self.replays
    }

    fn dispatch(&mut self, batch: Vec<Event>) {
        let judge = Arc::clone(&self.judge);
        let time = jiff::Timestamp::now();
        let mut pairs = Vec::new();
        let mut pending = judge.pending();
        for event in batch {
            pairs.extend(self.event(&mut pending, time, event));
        }
        drop(pending);
        for pair in pairs {
            judge.complete(pair);
        }
    }

    fn event(
        &mut self,
        pending: &mut Pending,
        time: jiff::Timestamp,
        event: Event,
    ) -> Option<Pair> {
        match event {
            Event::Seen { id, service, .. } => {
                self.judge.seen(service);
                pending.seen(id, service);
            }
            Event::Request {
                id,
                connection,
                service,
                tap,
                client,
                arm,
                answered,
                request,
            } => {
                let origin = Origin {
                    service,
                    tap,
                    client,
                    arm,
                    time,
                };
                let job = Job {
                    exchange: id,
                    id: Uuid::now_v7(),
                    request,
                };
                pending.request(id, origin, answered);
                let is_compared = answered && arm == Arm::Stable;
                self.replay(pending, service, connection, job, is_compared);
            }
            Event::Response { id, response } => return pending.response(id, response),
            Event::Dropped {
                id,
                reason,
                unreadable,
                ..
            } => {
                if let Some(dropped) = pending.dropped(id, reason) {
                    if let Some(unreadable) = unreadable {
                        self.judge.unreadable(dropped.service, unreadable);
                    }
                    self.judge.dropped(dropped);
                }
            }
            // Its requests go to the shadow over whichever connection is free.
            Event::Closed { .. } => {}
        }
        None
    }

    fn replay(
        &mut self,
        pending: &mut Pending,
        service: usize,
        connection: ConnectionId,
        job: Job,
        is_compared: bool,
    ) {
        let id = job.exchange;
        let selection = self.selections.get(service);
        if selection.is_some_and(|s| !s.takes(&job.request.method, &job.request.target)) {
            self.judge.discard(pending, id, DropReason::Excluded);
            return;
        }
        let Some(replay) = self.replays.shadows.get_mut(service) else {
            return;
        };
        let seconds = self.replays.seconds.get_mut(service);
        let mut seconds = seconds.and_then(Option::as_mut).filter(|_| is_compared);
        let again = seconds
            .as_deref_mut()
            .map(|seconds| seconds.again(&job, &self.memory));
        if let Err(QueueFull) = replay.push(connection, job) {
            self.judge.discard(pending, id, DropReason::QueueFull);
            return;
        }
        // At the same time as the shadow: both have like loads.
        if let (Some(seconds), Some(again)) = (seconds, again) {
            seconds.ask(pending, connection, id, again);
        }
    }
}

impl Seconds {
    /// What is asked for the second time, by [`Twin`]: the request, unless memory is short.
    fn again(&self, job: &Job, memory: &Memory) -> [Option<Result<Job, NoData>>; 2] {
        Twin::ALL.map(|twin| {
            if !is_asked(twin, &self.control, job.id) {
                return None;
            }
            let again = || {
                let request = job.request.again()?;
                let id = match twin {
                    Twin::Control => job.id,
                    // To the shadow it is another request: one that remembers ids would give the same answer.
                    Twin::Repeat => Uuid::now_v7(),
                };
                let exchange = job.exchange;
                Some(Job {
                    exchange,
                    id,
                    request,
                })
            };
            let has_room = memory.has_plenty_for(job.request.lease.bytes());
            let again = has_room.then(again).flatten();
            Some(again.ok_or(NoData::Memory))
        })
    }

    fn ask(
        &mut self,
        pending: &mut Pending,
        connection: ConnectionId,
        id: ExchangeId,
        again: [Option<Result<Job, NoData>>; 2],
    ) {
        for ((twin, replay), job) in Twin::ALL.into_iter().zip(&mut self.replays).zip(again) {
            let Some(job) = job else { continue };
            pending.ask(id, twin);
            let pushed = job.and_then(|job| {
                let pushed = replay.push(connection, job);
                pushed.map_err(|QueueFull| NoData::QueueFull)
            });
            if let Err(why) = pushed {
                // Neither answer can be there: this ends nothing.
                let _ = pending.second(id, twin, Second::Missing(why));
            }
        }
    }
}
