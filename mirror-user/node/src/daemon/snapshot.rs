//! What scrapes look at: how things were when the loop came round last, and the counters as they are now.

use std::sync::Arc;

use mirror_api::Status;

use super::local_reader::{self, Tally};
use super::milestones::Milestones;
use super::sender::Figures;
use super::servers::Versioned;
use crate::dataplane::{Counts, Ring};
use mirror_base::admin::Readiness;
use mirror_base::servers::Watch;

/// A scrape may take its time: the loop does not wait for it.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// What the programs count.
    pub(crate) counts: Arc<dyn Counts>,
    /// How things are.
    pub(crate) status: Status,
    /// Rows in the maps of the services in `status`, in its order.
    pub(crate) rows: Vec<u32>,
    /// Numbers in the maps of the agents in `status`, in its order.
    pub(crate) numbers: Vec<u32>,
    /// What had been counted when the shares that hold began to.
    pub(super) milestones: Milestones,
    /// What the servers of services with a canary use.
    pub(super) servers: Arc<Watch<Versioned>>,
    /// What the sender has done.
    pub(crate) sender: Arc<Figures>,
    /// The agents' rings, in the order of `status`.
    pub(crate) rings: Vec<Option<Arc<Ring>>>,
    /// An agent of which it is not known yet whether it answers.
    pub(super) unknown: Option<String>,
    /// What the local reader has counted, in the order of `status`.
    pub(crate) looks: Vec<Option<Arc<Tally>>>,
    /// The local reader's ring, while it reads any service.
    pub(crate) look_ring: Option<Arc<Ring>>,
    /// What the local reader's thread has done.
    pub(crate) local_reader: Arc<local_reader::Figures>,
}

impl Snapshot {
    /// Ready = attached wherever the config says, and known whether agents answer to which the kernel sends by
    /// itself; or switched off on purpose. From then on the first request is copied: rings take it in any case.
    pub(super) fn readiness(&self) -> Readiness {
        if self.status.off {
            return Readiness::Ready;
        }
        let mut interfaces = self.status.interfaces.iter();
        if let Some(interface) =
            interfaces.find(|interface| !interface.attached && !interface.left_out)
        {
            return Readiness::NotReady(format!(
                "not attached to {}: {}",
                interface.name,
                interface.error.as_deref().unwrap_or("not tried yet")
            ));
        }
        self.unknown.as_ref().map_or(Readiness::Ready, |agent| {
            Readiness::NotReady(format!("not known yet whether the agent {agent} answers"))
        })
    }
}
