//! Takes the exchange table's events and starts what follows from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc::UnboundedReceiver;
use uuid::Uuid;

use super::judge::Judge;
use crate::config;
use crate::shadow::exchange::{ConnectionId, Event};
use crate::shadow::join::{Origin, Pair, Pending};
use crate::shadow::message::DropReason;
use crate::shadow::replay::{Job, QueueFull, Replay};
use crate::shadow::selection::Selection;

pub(super) struct Dispatcher {
    /// By the services' places in the config, as `replays`.
    selections: Vec<Selection>,
    replays: Vec<Replay<Judge>>,
    judge: Arc<Judge>,
    backlog: Arc<AtomicUsize>,
}

impl Dispatcher {
    pub(super) fn new(
        services: &[config::ShadowService],
        replays: Vec<Replay<Judge>>,
        judge: Arc<Judge>,
        backlog: Arc<AtomicUsize>,
    ) -> Self {
        let selections = services.iter().map(|service| &service.requests);
        Self {
            selections: selections.map(Selection::new).collect(),
            replays,
            judge,
            backlog,
        }
    }

    /// Dispatches until there are no more events; gives the replays back to be drained.
    pub(super) async fn run(
        mut self,
        mut events: UnboundedReceiver<Vec<Event>>,
    ) -> Vec<Replay<Judge>> {
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
                self.replay(pending, origin.service, connection, job);
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
    ) {
        let id = job.exchange;
        let selection = self.selections.get(service);
        if selection.is_some_and(|s| !s.takes(&job.request.method, &job.request.target)) {
            self.judge.discard(pending, id, DropReason::Excluded);
            return;
        }
        let Some(replay) = self.replays.get_mut(service) else {
            return;
        };
        if let Err(QueueFull) = replay.push(connection, job) {
            self.judge.discard(pending, id, DropReason::QueueFull);
        }
    }
}
