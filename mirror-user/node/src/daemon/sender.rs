//! Ships what the tap puts into the rings to the agents, and keeps the connections over which agents are
//! asked how they are.
//!
//! ```text
//!   daemon's loop ──reports, targets──> sender's thread <──rings── tap
//!        ^                                  │     ^
//!        └──echoes, connections── dial, a task per agent
//! ```
//!
//! The thread runs at the lowest priority there is: production comes first. What it cannot send stays in
//! the ring, and a full ring stops the tap.

mod dial;
mod pipe;
mod upstream;
mod work;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender as Channel;

use anyhow::Context as _;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub(super) use self::dial::Failure;
pub(crate) use self::work::Figures;
pub(super) use self::work::Pace;
use mirror_api::AgentAddress;
use mirror_api::Transport;
use mirror_api::tap_report::TapReport;

use self::work::{Order, Work};
use crate::dataplane::{Bell, Ring};
use mirror_base::transport::keys::PublicKey;

/// Whom to keep a connection to.
#[derive(Debug)]
pub(super) struct Target {
    /// The agent's number in the maps.
    pub(super) number: u32,
    /// Where it listens.
    pub(super) agent: AgentAddress,
    /// How it is spoken to.
    pub(super) door: Door,
    /// How copies travel.
    pub(super) transport: Transport,
    /// What is shipped to it; nothing where the kernel sends by itself.
    pub(super) ring: Option<Arc<Ring>>,
    /// What datagrams are signed with, where there are any.
    pub(super) mac_key: [u64; 2],
    /// The life of the rings.
    pub(super) boot: u64,
}

/// How an agent is spoken to.
#[derive(Clone, Debug)]
pub(super) enum Door {
    /// In clear text: the config says so.
    Clear,
    /// By keys.
    Keys {
        /// What TLS needs.
        config: Arc<rustls::ClientConfig>,
        /// This node's key, to be named where it is not known.
        own: PublicKey,
    },
    /// Not at all, and why.
    Closed(String),
}

/// What has happened to a connection.
#[derive(Debug)]
pub(super) struct Event {
    /// The agent's number.
    pub(super) number: u32,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// The agent has said welcome.
    Connected {
        peer: SocketAddr,
        /// What it calls this node.
        name: String,
        /// This tap's number there.
        tap: u32,
    },
    /// There is none.
    Failed(Failure),
    /// It has ended.
    Lost { why: String },
    /// A report has been taken in.
    Echo {
        /// When that was sent, on the monotonic clock, in nanoseconds.
        sent_at_ns: u64,
    },
}

/// Orders for the thread.
#[derive(Clone, Debug)]
struct Orders {
    channel: Channel<Order>,
    wanted: Arc<EventFd>,
}

impl Orders {
    fn give(&self, order: Order) {
        // Nobody listens when the thread has ended, and then nothing is left to do.
        let _ = self.channel.send(order);
        let _ = self.wanted.write(1);
    }
}

/// The sender.
#[derive(Debug)]
pub(super) struct Sender {
    orders: Orders,
    events: mpsc::UnboundedSender<Event>,
    figures: Arc<Figures>,
    tasks: BTreeMap<u32, AbortHandle>,
}

impl Sender {
    /// Starts the thread. Events come by the receiver.
    ///
    /// # Errors
    /// When there is no room for another thread.
    pub(super) fn start(
        bell: Bell,
        pace: Pace,
    ) -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Event>)> {
        let wanted = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let wanted = Arc::new(wanted);
        let (channel, orders) = std::sync::mpsc::channel();
        let (events, happened) = mpsc::unbounded_channel();
        let figures = Arc::new(Figures::default());
        let work = Work {
            orders,
            wanted: Arc::clone(&wanted),
            bell,
            events: events.clone(),
            figures: Arc::clone(&figures),
            pace,
        };
        std::thread::Builder::new()
            .name("sender".into())
            .spawn(move || work.run())
            .context("cannot start the sender's thread")?;
        let sender = Self {
            orders: Orders { channel, wanted },
            events,
            figures,
            tasks: BTreeMap::new(),
        };
        Ok((sender, happened))
    }

    /// What the thread has done so far.
    pub(super) fn figures(&self) -> Arc<Figures> {
        Arc::clone(&self.figures)
    }

    /// Keeps a connection to an agent from now on, in place of one with the same number.
    pub(super) fn connect(&mut self, target: Target) {
        self.disconnect(target.number);
        let number = target.number;
        let (orders, events) = (self.orders.clone(), self.events.clone());
        let task = tokio::spawn(dial::keep_connected(Arc::new(target), orders, events));
        self.tasks.insert(number, task.abort_handle());
    }

    /// Keeps none any more to the agent with this number.
    pub(super) fn disconnect(&mut self, number: u32) {
        if let Some(task) = self.tasks.remove(&number) {
            task.abort();
            self.orders.give(Order::Drop(number));
        }
    }

    /// Leaves the agent with this number, with a last report behind what its ring holds.
    pub(super) fn leave(&mut self, number: u32, report: TapReport) {
        if let Some(task) = self.tasks.remove(&number) {
            task.abort();
            self.orders.give(Order::Leave(number, Box::new(report)));
        }
    }

    /// Sends a report to the agent with this number, if there is a connection.
    pub(super) fn report(&self, number: u32, report: TapReport) {
        self.orders.give(Order::Report(number, Box::new(report)));
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        for task in self.tasks.values() {
            task.abort();
        }
        self.orders.give(Order::Stop);
    }
}
