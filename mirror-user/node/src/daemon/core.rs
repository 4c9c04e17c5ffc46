//! What the daemon knows and decides. What happens comes in, what is to be done comes out; between the two
//! only the [`Kernel`] is asked and told, at once. Nothing here waits, opens a file or starts a thread.
//!
//! So whatever takes new connections from a canary, or stops a copy, has reached the kernel before anything
//! else is even begun: disk, hooks, agents and answers are [`Effect`]s, performed afterwards and in their
//! order. What gives more waits for the input that says that the disk has it.

#[cfg(test)]
mod tests;
#[cfg(test)]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::mem;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror_api::tap_report::TapReport;
use mirror_api::{AgentAddress, Mechanism};
use mirror_common::policy::Tap;
use tokio::sync::watch;

use super::agents::Agent;
use super::arrivals::Arrivals;
use super::attachments::Attachments;
use super::canary::Drain;
use super::concentration::census::Census;
use super::ending::{Ended, Job};
use super::health::{Attempt, Health};
use super::keeper::Kept;
use super::kernel::Kernel;
use super::keys::Keys;
use super::listening::Listening;
use super::local_reader::LocalReader;
use super::lro;
use super::milestones::Milestones;
use super::network::{Interest, Look, View};
use super::now::Now;
use super::rollout::{Heard, Lines, LookedBack, Past, Query, Question, Rollouts, Written};
use super::sender::{Event, Figures, Target};
use super::servers::{self, Versioned};
use super::services::Service;
use super::settings::{Settings, Ticket, Update};
use super::snapshot::Snapshot;
use super::status;
use super::translating::Janitor;
use super::way::Way;
use crate::config::Node;
use crate::control::{Command, Refusal, Reply};
use crate::dataplane::Error;
use crate::offload::{Devices, Failures};
use crate::state::Overrides;
use mirror_base::serve::Caller;
use mirror_base::servers::Watch;

/// How often everything is looked after.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// The same where the kernel itself sends to an agent, whose death is to be noticed within 3 s.
const SOON: Duration = Duration::from_millis(500);

/// How often it is looked at who sends the services' traffic, and who runs before us.
const CENSUS: Duration = Duration::from_secs(5);

/// What has happened.
#[derive(Debug)]
pub(super) enum Input {
    /// Everything is to be looked after.
    Tick,
    /// The rollouts are to be looked at.
    Look,
    /// A moment has come that something waited for: see [`Core::deadline`].
    Due,
    /// The network was looked at.
    Network(Option<Look>),
    /// Something has become of the connection to an agent.
    Agent(Event),
    /// A canary on another host was dialled.
    Dialled(Attempt),
    /// What is set was written, or could not be.
    Kept(Kept),
    /// Lines of a rollout's record were written, or could not be.
    Written(Written),
    /// Somebody who was asked for a rollout has answered.
    Heard(Heard),
    /// A canary's connections were ended, or not.
    Ended(Ended),
    /// LRO was switched; what could not be.
    Lro(Failures),
    /// Somebody wants something.
    Command(Ticket, Caller, Command),
    /// What is known of earlier rollouts was read, for an order that needs it.
    LookedBack(Ticket, LookedBack),
    /// The config was read again, with the records of services that it names anew; or why not.
    Reloaded(Box<Result<(Node, Past), String>>),
}

/// What is to be done. Whatever comes of it comes back as an [`Input`].
#[derive(Debug)]
pub(super) enum Effect {
    /// The heartbeat may go on: the rules in the maps are our own.
    Beat,
    /// What is set goes to the disk.
    Persist(u64, Overrides),
    /// Lines go to a rollout's record.
    Append(Lines),
    /// The oldest records of a service make room for one more.
    MakeRoom(String),
    /// A connection to an agent is kept from now on, in place of one with the same number.
    Connect(Target),
    /// None is kept any more to the agent with this number.
    Disconnect(u32),
    /// The same, after a last report behind what its ring holds.
    Leave(u32, TapReport),
    /// The agent with this number is told what was sent to it.
    Report(u32, TapReport),
    /// These canaries on other hosts are dialled now and then, and no others.
    Dial(BTreeSet<SocketAddr>),
    /// LRO is off on these devices from now on, and put back wherever else it was switched off.
    KeepLroOff(Devices),
    /// A canary's connections end.
    End(Job),
    /// Somebody is asked, or told, for a rollout.
    Ask(Question),
    /// Records are read for somebody.
    Read(Ticket, Query),
    /// Somebody is answered.
    Answer(Ticket, Result<Reply, Refusal>),
}

/// What the core begins with.
pub(super) struct Beginning {
    /// What the file says, and where it is.
    pub(super) file: Node,
    pub(super) path: PathBuf,
    /// What the command line has set, as the disk has it.
    pub(super) settings: Settings,
    pub(super) rollouts: Rollouts,
    pub(super) keys: Keys,
    /// What the maps say of themselves: their life and their hash key.
    pub(super) tap: Tap,
    pub(super) mechanism: Mechanism,
    /// What others look at, or fill.
    pub(super) beside: Beside,
}

/// Threads that are told what to do and read without waiting, and what they have found.
pub(super) struct Beside {
    /// What the servers of services with a canary use.
    pub(super) servers: Arc<Watch<Versioned>>,
    /// Who sends the traffic of services with a canary.
    pub(super) census: Census,
    /// Keeps the tables of translations clean.
    pub(super) janitor: Janitor,
    /// Reads a sample of the services' connections itself.
    pub(super) local_reader: LocalReader,
    /// What the sender has done.
    pub(super) sender: Arc<Figures>,
}

/// The daemon without its hands.
pub(super) struct Core {
    /// What the file says.
    pub(super) file: Node,
    /// Where that is.
    pub(super) path: PathBuf,
    /// The same as rollouts change it.
    pub(super) config: Node,
    pub(super) rollouts: Rollouts,
    /// What the command line set.
    pub(super) settings: Settings,
    /// The programs and maps.
    pub(super) kernel: Box<dyn Kernel>,
    /// What is to be done when this input has been dealt with.
    pub(super) effects: Vec<Effect>,
    /// When that input came.
    pub(super) now: Now,
    /// What scrapes look at.
    pub(super) published: watch::Sender<Arc<Snapshot>>,
    /// What had been counted when the shares that hold began to.
    pub(super) milestones: Milestones,
    pub(super) servers: Arc<Watch<Versioned>>,
    pub(super) sender: Arc<Figures>,
    pub(super) mechanism: Mechanism,
    pub(super) started: Instant,
    pub(super) tap: Tap,
    pub(super) services: Vec<Service>,
    pub(super) agents: BTreeMap<AgentAddress, Agent>,
    /// Agents that the config no longer names, and that have not been told yet.
    pub(super) leaving: Vec<Agent>,
    pub(super) keys: Keys,
    /// Where somebody was seen to listen, ...
    pub(super) listening: Listening,
    /// ... and whether connections arrive there.
    pub(super) arrivals: Arrivals,
    pub(super) local_reader: LocalReader,
    /// Canaries on other hosts.
    pub(super) health: Health,
    /// What is merged on its way in.
    pub(super) lro: lro::Asked,
    /// What the network's watcher should look at.
    pub(super) interest: watch::Sender<Interest>,
    /// The network as it was last seen; nothing before the first look.
    pub(super) view: Option<Arc<View>>,
    pub(super) attachments: Attachments,
    /// Canaries whose connections are to end.
    pub(super) drains: Vec<Drain>,
    pub(super) census: Census,
    pub(super) janitor: Janitor,
    pub(super) reports: u64,
    /// When the services were measured last, ...
    measured: Option<Instant>,
    /// ... and when it was asked who sends their traffic.
    counted: Option<Instant>,
    /// What somebody should know: a config that was rejected, ...
    pub(super) refused_config: Option<String>,
    /// ... a network that cannot be looked at, ...
    pub(super) blind: Option<String>,
    /// ... rules that could not be written.
    pub(super) unwritten: Option<String>,
}

impl Core {
    /// Takes up what an earlier daemon has left in the kernel.
    ///
    /// # Errors
    /// When the maps cannot be read or written.
    pub(super) fn begin(
        beginning: Beginning,
        mut kernel: Box<dyn Kernel>,
        now: Now,
    ) -> Result<(Self, Vec<Effect>), Error> {
        let Beginning {
            file,
            path,
            settings,
            rollouts,
            keys,
            tap,
            mechanism,
            beside,
        } = beginning;
        let listening = Listening::of(&kernel.services()?);
        let config = rollouts.effective(&file, settings.holds());
        let Beside {
            servers,
            census,
            janitor,
            local_reader,
            sender,
        } = beside;
        let first = Snapshot {
            counts: Arc::clone(kernel.counts()),
            status: status::empty(),
            rows: Vec::new(),
            numbers: Vec::new(),
            milestones: Milestones::default(),
            servers: Arc::clone(&servers),
            sender: Arc::clone(&sender),
            rings: Vec::new(),
            unknown: None,
            looks: Vec::new(),
            look_ring: None,
            local_reader: local_reader.figures(),
        };
        let mut core = Self {
            file,
            path,
            config,
            rollouts,
            settings,
            kernel,
            effects: Vec::new(),
            published: watch::Sender::new(Arc::new(first)),
            milestones: Milestones::default(),
            servers,
            sender,
            mechanism,
            started: now.at,
            now,
            tap,
            services: Vec::new(),
            agents: BTreeMap::new(),
            leaving: Vec::new(),
            keys,
            listening,
            arrivals: Arrivals::default(),
            local_reader,
            health: Health::default(),
            lro: lro::Asked::default(),
            interest: watch::Sender::default(),
            view: None,
            attachments: Attachments::default(),
            drains: Vec::new(),
            census,
            janitor,
            reports: 0,
            measured: None,
            counted: None,
            refused_config: None,
            blind: None,
            unwritten: None,
        };
        let left = core.left_in_maps()?;
        core.take_over()?;
        core.recover(&left);
        core.resume_rollouts();
        core.say_interest();
        core.publish();
        let effects = mem::take(&mut core.effects);
        Ok((core, effects))
    }

    /// Takes something in, and says what is to be done, in this order.
    pub(super) fn handle(&mut self, input: Input, now: Now) -> Vec<Effect> {
        self.now = now;
        self.rollouts.clock.set(now);
        match input {
            Input::Tick => self.look_after(),
            Input::Look => self.watch_rollouts(),
            Input::Due => {
                self.end_drains();
                self.take(Update::Tick);
            }
            Input::Network(look) => self.looked(look),
            Input::Agent(event) => self.on_event(event),
            Input::Dialled(attempt) => self.tried(attempt),
            Input::Kept(kept) => self.on_kept(kept),
            Input::Written(written) => self.landed(written),
            Input::Heard(heard) => self.heard(heard),
            Input::Ended(ended) => self.on_ended(ended),
            Input::Lro(failures) => self.on_lro(failures),
            Input::Command(ticket, caller, command) => self.obey(ticket, caller, command),
            Input::LookedBack(ticket, known) => self.looked_back(ticket, known),
            Input::Reloaded(read) => self.reloaded(*read),
        }
        mem::take(&mut self.effects)
    }

    /// What was to be done when an input could not be dealt with to its end.
    pub(super) fn left_over(&mut self) -> Vec<Effect> {
        mem::take(&mut self.effects)
    }

    /// When [`Input::Due`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.settings
            .deadline()
            .into_iter()
            .chain(self.next_drain())
            .min()
    }

    /// How long until the next [`Input::Tick`].
    pub(super) fn rest(&self) -> Duration {
        if self.agents.values().any(Agent::is_geneve) {
            SOON
        } else {
            TICK
        }
    }

    /// Has this done when the input has been dealt with.
    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Tells those who look after the network and the servers what to look at.
    pub(super) fn say_interest(&self) {
        self.servers.want(servers::wanted(&self.config));
        let interest = Interest {
            interfaces: self.config.interfaces.clone(),
            hosts: self
                .agents
                .values()
                .filter_map(|agent| agent.peer)
                .chain(self.canaries_away())
                .collect(),
            dialled: Interest::dialled(&self.config),
            canaries: Interest::canaries(&self.config),
            drops: self.agents.values().any(Agent::is_geneve),
        };
        self.interest.send_if_modified(|before| {
            let is_news = *before != interest;
            *before = interest;
            is_news
        });
    }

    /// One turn. Once a second the agents are asked, and the last second is looked at.
    fn look_after(&mut self) {
        let now = self.now.at;
        self.leave_agents();
        if is_due(&mut self.measured, TICK, now) {
            self.measure();
            self.watch_arrivals();
            self.bring_back_escaped();
            self.report();
            self.sample_traffic();
            self.call_hooks();
        }
        if is_due(&mut self.counted, CENSUS, now) {
            self.ask_census();
            self.look_at_chains();
        }
        self.settle();
    }

    /// The network has been looked at. Where that failed, what was known stays.
    fn looked(&mut self, look: Option<Look>) {
        match look {
            Some(Ok(view)) => {
                let now = self.now.at;
                for agent in self.agents.values_mut() {
                    let way = agent.peer.and_then(|peer| view.ways.get(&peer));
                    if let Some(way) = way {
                        agent.goes(way.clone().and_then(Way::resolved), now);
                    }
                }
                let is_news = self.view.replace(Arc::clone(&view)) != Some(view);
                if !is_news && self.blind.take().is_none() {
                    return;
                }
                self.blind = None;
            }
            Some(Err(why)) => {
                let why = format!("the network cannot be looked at: {why}");
                if self.blind.replace(why.clone()).is_none() {
                    tracing::warn!("{why}");
                }
            }
            None => return,
        }
        self.settle();
    }
}

/// Whether what was done at `last` is to be done again, every so often; then it was done `now`. A timer
/// may come a little early.
fn is_due(last: &mut Option<Instant>, every: Duration, now: Instant) -> bool {
    let is_due = last.is_none_or(|last| now.duration_since(last) + SOON / 2 >= every);
    if is_due {
        *last = Some(now);
    }
    is_due
}
