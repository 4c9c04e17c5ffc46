//! The daemon's hands: starts its threads and tasks, hands what the [`core`](super::core) wants done to them,
//! and what becomes of it back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mirror_common::policy::Tap;
use tokio::sync::{mpsc, oneshot};

use super::concentration::census::{self, Census};
use super::core::{Beginning, Beside, Core, Effect, Input};
use super::ending::{Ended, Ender};
use super::health::{Attempt, Dialler};
use super::heartbeat::Heartbeat;
use super::keeper::{Keeper, Kept};
use super::keys::Keys;
use super::local_reader::{self, LocalReader};
use super::lro::Switcher;
use super::now::{self, Now};
use super::rollout::{Asker, Found, Heard, Journal, LookedBack, Query, Records, Rollouts, Written};
use super::sender::{Event, Pace, Sender};
use super::settings::{Settings, Ticket};
use super::translating::{self, Janitor};
use super::{Options, canary, servers};
use crate::config::{self, Node};
use crate::control::{Refusal, Reply, Request};
use crate::dataplane::DataPlane;
use crate::offload::Failures;
use crate::state::State;
use mirror_base::servers::Watch;

/// Whom an answer goes to.
type Asked = oneshot::Sender<Result<Reply, Refusal>>;

/// Does what the core says.
pub(super) struct Performer {
    heartbeat: Heartbeat,
    keeper: Keeper,
    journal: Journal,
    sender: Sender,
    dialler: Dialler,
    ender: Ender,
    switcher: Switcher,
    asker: Asker,
    records: Records,
    /// Who has looked back into the records.
    found: mpsc::UnboundedSender<(Ticket, LookedBack)>,
    /// Who waits for an answer.
    waiting: BTreeMap<Ticket, Asked>,
    tickets: Ticket,
}

/// What comes back from threads and tasks.
pub(super) struct Inputs {
    kept: mpsc::UnboundedReceiver<Kept>,
    written: mpsc::UnboundedReceiver<Written>,
    agents: mpsc::UnboundedReceiver<Event>,
    dialled: mpsc::Receiver<Attempt>,
    ended: mpsc::UnboundedReceiver<Ended>,
    switched: mpsc::UnboundedReceiver<Failures>,
    heard: mpsc::UnboundedReceiver<Heard>,
    found: mpsc::UnboundedReceiver<(Ticket, LookedBack)>,
}

impl Inputs {
    /// The next one.
    pub(super) async fn next(&mut self) -> Input {
        tokio::select! {
            Some(kept) = self.kept.recv() => Input::Kept(kept),
            Some(written) = self.written.recv() => Input::Written(written),
            Some(event) = self.agents.recv() => Input::Agent(event),
            Some(attempt) = self.dialled.recv() => Input::Dialled(attempt),
            Some(ended) = self.ended.recv() => Input::Ended(ended),
            Some(failures) = self.switched.recv() => Input::Lro(failures),
            Some(heard) = self.heard.recv() => Input::Heard(heard),
            Some((ticket, found)) = self.found.recv() => Input::LookedBack(ticket, found),
            else => std::future::pending().await,
        }
    }

    /// What has become of connections to agents, without waiting.
    pub(super) fn heard_of_agents(&mut self) -> Option<Input> {
        self.agents.try_recv().ok().map(Input::Agent)
    }
}

/// Starts everything.
///
/// # Errors
/// When the disk cannot be read, or there is no room for another thread.
pub(super) fn start(
    config: Node,
    options: &Options,
    plane: DataPlane,
    tap: Tap,
) -> anyhow::Result<(Core, Performer, Inputs)> {
    let mut pulse = plane.pulse()?;
    let heartbeat = Heartbeat::start(move || {
        let beat = Tap {
            heartbeat_ns: now::ns(),
            ..tap
        };
        if let Err(error) = pulse.set_tap(beat) {
            tracing::error!("heartbeat: {error}");
        }
    })?;
    let (say, ended) = mpsc::unbounded_channel();
    let ender = Ender::start(plane.connection_reader()?, say)?;
    let (say, switched) = mpsc::unbounded_channel();
    let switcher = Switcher::start(&config.state_dir, say)?;
    let (census, asked) = Census::new();
    census::start(asked, plane.connection_reader()?)?;
    let (janitor, room) = Janitor::new(canary::room(&config));
    translating::start(room, plane.translations()?)?;
    let keys = Keys::read(&config)?;
    let (sender, agents) = Sender::start(plane.sender_bell()?, Pace::of(&config))?;
    let (local_reader, orders) = LocalReader::new(tap.key)?;
    local_reader::start(orders, plane.look_bell()?)?;
    let (attempts, dialled) = mpsc::channel(64);

    let state = State::open(&config.state_dir);
    let settings = Settings::new(state.overrides().clone(), state.trouble().cloned());
    let (say, kept) = mpsc::unbounded_channel();
    let keeper = Keeper::start(state, say)?;
    let records = Records::new(&config.state_dir);
    let (say, written) = mpsc::unbounded_channel();
    let journal = Journal::start(records.clone(), say)?;
    let (say, heard) = mpsc::unbounded_channel();
    let asker = Asker::new(say)?;
    let past = records.past(names(&config));
    let now = Now::read();
    let rollouts = Rollouts::new(&config, past, now);
    let effective = rollouts.effective(&config, settings.holds());
    let servers = Watch::start(servers::wanted(&effective))?;

    let beside = Beside {
        servers: Arc::new(servers),
        census,
        janitor,
        local_reader,
        sender: sender.figures(),
    };
    let beginning = Beginning {
        file: config,
        path: options.config.clone(),
        settings,
        rollouts,
        keys,
        tap,
        mechanism: plane.mechanism(),
        beside,
    };
    let (core, effects) = Core::begin(beginning, Box::new(plane), now)?;
    let (say, found) = mpsc::unbounded_channel();
    let mut performer = Performer {
        heartbeat,
        keeper,
        journal,
        sender,
        dialler: Dialler::new(attempts),
        ender,
        switcher,
        asker,
        records,
        found: say,
        waiting: BTreeMap::new(),
        tickets: 0,
    };
    performer.perform_all(effects);
    let inputs = Inputs {
        kept,
        written,
        agents,
        dialled,
        ended,
        switched,
        heard,
        found,
    };
    Ok((core, performer, inputs))
}

fn names(config: &Node) -> impl Iterator<Item = &str> {
    config.services.iter().map(|service| service.name.as_str())
}

impl Performer {
    /// A command has come.
    pub(super) fn expect(&mut self, request: Request) -> Input {
        let Request {
            command,
            caller,
            reply,
        } = request;
        self.tickets += 1;
        self.waiting.insert(self.tickets, reply);
        Input::Command(self.tickets, caller, command)
    }

    /// Reads the config again, and the records of services that `known` does not have.
    pub(super) fn read_again(&self, path: &Path, known: &Node) -> Input {
        let read = config::read_node(path).map_err(|error| error.to_string());
        let read = read.map(|new| {
            let is_known = |name: &&str| names(known).any(|known| known == *name);
            let past = self
                .records
                .past(names(&new).filter(|name| !is_known(name)));
            (new, past)
        });
        Input::Reloaded(Box::new(read))
    }

    /// Does these, in their order.
    pub(super) fn perform_all(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            self.perform(effect);
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Beat => self.heartbeat.passed(),
            Effect::Persist(number, overrides) => self.keeper.keep(number, overrides),
            Effect::Append(lines) => self.journal.append(lines),
            Effect::MakeRoom(service) => self.journal.make_room(service),
            Effect::Connect(target) => self.sender.connect(target),
            Effect::Disconnect(number) => self.sender.disconnect(number),
            Effect::Leave(number, report) => self.sender.leave(number, report),
            Effect::Report(number, report) => self.sender.report(number, report),
            Effect::Dial(canaries) => self.dialler.dial(&canaries),
            Effect::End(job) => self.ender.end(job),
            Effect::KeepLroOff(devices) => self.switcher.keep_off(devices),
            Effect::Ask(question) => self.asker.ask(question),
            Effect::Read(ticket, query) => self.read(ticket, query),
            Effect::Answer(ticket, answer) => {
                if let Some(asked) = self.waiting.remove(&ticket) {
                    let _ = asked.send(answer);
                }
            }
        }
    }

    /// Reads records where that holds up nobody.
    fn read(&mut self, ticket: Ticket, query: Query) {
        let records = self.records.clone();
        let found = self.found.clone();
        let asked = match &query {
            Query::Before(..) => None,
            Query::Record { .. } | Query::History(_) => self.waiting.remove(&ticket),
        };
        tokio::task::spawn_blocking(move || match records.find(query) {
            Found::Answer(answer) => {
                if let Some(asked) = asked {
                    let _ = asked.send(answer);
                }
            }
            Found::LookedBack(known) => {
                let _ = found.send((ticket, known));
            }
        });
    }

    /// Waits for the last write, but no longer than this. Says whether all is on the disk.
    pub(super) fn finish(&mut self, patience: Duration) -> bool {
        self.switcher.finish(patience);
        self.keeper.finish(patience)
    }
}
