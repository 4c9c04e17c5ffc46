//! Whose requests a gate goes by: of clients, or of connections where few clients share them all.

use crate::statistics::{Clustering, Crowd, Sort};
use crate::window::{Arm, Window};

/// With fewer clients, weighted by their requests, one of them decides too much.
pub(crate) const FEW: f64 = 5.0;

/// Of one sort of requests.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Crowds {
    clients: Clustering,
    connections: Clustering,
}

impl Crowds {
    pub(super) fn of(sort: Sort) -> Self {
        let clustering = Clustering::of(sort);
        Self {
            clients: clustering.clone(),
            connections: clustering,
        }
    }

    pub(super) fn see(&mut self, stable: &Arm, canary: &Arm) {
        self.clients.observe([&stable.clients, &canary.clients]);
        self.connections
            .observe([&stable.by_connection, &canary.by_connection]);
    }

    /// The same, where the canary is not held against stable.
    pub(super) fn see_alone(&mut self, canary: &Arm) {
        self.clients.observe_alone(&canary.clients);
        self.connections.observe_alone(&canary.by_connection);
    }

    pub(super) fn crowd(&self) -> Option<Crowd> {
        let clients = self.clients.crowd()?;
        let connections = self.connections.crowd();
        // A gateway is no client: behind it are many, each on connections of its own.
        let is_gateway = clients.effective < FEW;
        connections.filter(|_| is_gateway).or(Some(clients))
    }
}

/// Whose connections the kernel counts. Every one goes by itself but for what its client does to it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Dialling {
    clients: Clustering,
    by_client: bool,
}

impl Dialling {
    pub(super) fn new() -> Self {
        Self {
            clients: Clustering::of(Sort::Failed),
            by_client: true,
        }
    }

    pub(super) fn see(&mut self, window: &Window, compared: bool) {
        let [stable, canary] =
            [&window.stable, &window.canary].map(|arm| &arm.connections_by_client);
        match compared {
            true => self.clients.observe([stable, canary]),
            false => self.clients.observe_alone(canary),
        }
        self.by_client = window.by_client;
    }

    /// Behind a gateway are many, whose connections go by the share one by one.
    pub(super) fn crowd(&self) -> Option<Crowd> {
        let crowd = self.clients.crowd()?;
        (self.by_client || crowd.effective >= FEW).then_some(crowd)
    }
}
