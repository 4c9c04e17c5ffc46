//! The core with a kernel, a disk, records and an agent's connection in memory: no root, no thread, no clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;

use jiff::Timestamp;
use mirror_api::{Done, RolloutOrder, Start};
use mirror_common::steer::threshold_share;
use mirror_rollout::Share;
use mirror_rollout::plan::Plan;
use mirror_rollout::record::Line;

use super::*;
use crate::daemon::fixtures::link;
use crate::daemon::kernel::memory::Memory;
use crate::daemon::rollout::{Earlier, Last};
use crate::state::Overrides;
use mirror_base::sock_diag::Listener;

/// Two services: "a" has a mirror and a canary on this host, "b" a canary elsewhere.
pub(super) const FILE: &str = r#"
interfaces = ["eth0"]

[[service]]
name = "a"
id = 1
addresses = ["10.0.0.5:80"]
stable.version = "v1"
mirror = { agent = "10.0.0.9:6181", insecure = true, sample = 0.5 }
canary = { version = "v2", address = "10.0.0.5:81" }

[[service]]
name = "b"
id = 2
addresses = ["10.0.0.5:90"]
stable.version = "v1"
canary = { version = "v2", address = "10.1.0.9:91" }
"#;

/// Everything around the core.
pub(super) struct World {
    pub(super) core: Core,
    pub(super) kernel: Memory,
    file: String,
    /// What the disk has of what is set, what is on its way there, and whether it works.
    pub(super) disk: Overrides,
    pub(super) writes: VecDeque<(u64, Overrides)>,
    pub(super) works: bool,
    /// The same of rollouts' records.
    pub(super) records: BTreeMap<PathBuf, String>,
    pub(super) lines: VecDeque<Lines>,
    /// What else was to be done.
    pub(super) reads: VecDeque<(Ticket, Query)>,
    pub(super) answers: BTreeMap<Ticket, Result<Reply, Refusal>>,
    pub(super) questions: Vec<Question>,
    pub(super) ended: VecDeque<Job>,
    pub(super) dialled: BTreeSet<SocketAddr>,
    pub(super) lro_off: Vec<Devices>,
    pub(super) connected: Vec<u32>,
    pub(super) left: Vec<u32>,
    pub(super) reports: u64,
    pub(super) beats: u64,
    pub(super) now: Now,
    tickets: Ticket,
}

impl World {
    /// A daemon that has seen the network, with servers at all addresses of this host.
    pub(super) fn new(file: &str) -> Self {
        let kernel = Memory::new();
        let listens = |port| Listener {
            address: ([10, 0, 0, 5], port).into(),
            inode: port.into(),
        };
        kernel.state().listeners = [80, 81, 90].map(listens).to_vec();
        let now = Now {
            at: Instant::now(),
            ns: 1_000_000_000,
            wall: Timestamp::from_second(1_800_000_000).unwrap(),
            up: Some(Duration::from_secs(1)),
        };
        let disk = Overrides::default();
        let (core, effects) = start(file, &kernel, disk.clone(), Past::new(), now);
        let mut world = Self {
            core,
            kernel,
            file: file.to_owned(),
            disk,
            writes: VecDeque::new(),
            works: true,
            records: BTreeMap::new(),
            lines: VecDeque::new(),
            reads: VecDeque::new(),
            answers: BTreeMap::new(),
            questions: Vec::new(),
            ended: VecDeque::new(),
            dialled: BTreeSet::new(),
            lro_off: Vec::new(),
            connected: Vec::new(),
            left: Vec::new(),
            reports: 0,
            beats: 0,
            now,
            tickets: 0,
        };
        world.perform(effects);
        world.input(Input::Network(Some(Ok(view()))));
        world.write_all();
        world
    }

    /// Has the core take something in, and what follows begun.
    pub(super) fn input(&mut self, input: Input) {
        let effects = self.core.handle(input, self.now);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Beat => self.beats += 1,
                Effect::Persist(number, overrides) => self.writes.push_back((number, overrides)),
                Effect::Append(lines) => self.lines.push_back(lines),
                Effect::MakeRoom(_) => {}
                Effect::Connect(target) => self.connected.push(target.number),
                Effect::Disconnect(number) | Effect::Leave(number, _) => self.left.push(number),
                Effect::Report(..) => self.reports += 1,
                Effect::Dial(canaries) => self.dialled = canaries,
                Effect::KeepLroOff(devices) => self.lro_off.push(devices),
                Effect::End(job) => self.ended.push_back(job),
                Effect::Ask(question) => self.questions.push(question),
                Effect::Read(ticket, query) => self.reads.push_back((ticket, query)),
                Effect::Answer(ticket, answer) => {
                    let before = self.answers.insert(ticket, answer);
                    assert!(before.is_none(), "{ticket} was answered before: {before:?}");
                }
            }
        }
    }

    /// Somebody wants something; what comes of it is under the ticket.
    pub(super) fn command(&mut self, command: Command) -> Ticket {
        self.tickets += 1;
        self.input(Input::Command(self.tickets, Caller::default(), command));
        self.tickets
    }

    /// A rollout of this version of a service's canary is wanted, and what was before is known at once.
    pub(super) fn start_rollout(
        &mut self,
        service: &str,
        change: impl FnOnce(&mut Plan),
    ) -> Ticket {
        let ticket = self.start_rollout_later(service, change);
        self.look_back();
        ticket
    }

    /// The same, where that is known later.
    pub(super) fn start_rollout_later(
        &mut self,
        service: &str,
        change: impl FnOnce(&mut Plan),
    ) -> Ticket {
        let mut plan = Plan {
            shadow: None,
            ..Plan::default()
        };
        plan.canary.min_duration = Duration::from_secs(5);
        plan.canary.warmup = Duration::ZERO;
        change(&mut plan);
        let start = Start {
            version: Some("v3".to_owned()),
            address: None,
            plan: Some(plan),
            again: true,
            by: mirror_rollout::state::By::default(),
        };
        let order = RolloutOrder::Start(Box::new(start));
        let service = service.to_owned();
        self.command(Command::Rollout { service, order })
    }

    /// The last ticket.
    pub(super) fn tickets(&self) -> Ticket {
        self.tickets
    }

    /// Records are read.
    pub(super) fn look_back(&mut self) {
        while let Some((ticket, query)) = self.reads.pop_front() {
            let Query::Before(beginning) = query else {
                continue;
            };
            let ids = self.records.keys().filter_map(|path| path.file_stem());
            let ids = ids.map(|id| id.to_string_lossy().into_owned());
            let earlier = Ok(Earlier {
                ids: ids.collect(),
                rollouts: Vec::new(),
            });
            let known = LookedBack { beginning, earlier };
            self.input(Input::LookedBack(ticket, known));
        }
    }

    /// The disk does what it can: of what is set the last, and the next lines of records.
    pub(super) fn write(&mut self) {
        if let Some((number, overrides)) = self.writes.back().cloned() {
            if self.works {
                self.writes.clear();
                self.disk = overrides;
            }
            let failure = self.failure();
            self.input(Input::Kept(Kept { number, failure }));
        }
        if let Some(Lines {
            path, text, number, ..
        }) = self.lines.front()
        {
            let (path, number) = (path.clone(), *number);
            if self.works {
                self.records.entry(path.clone()).or_default().push_str(text);
                self.lines.pop_front();
            }
            let failure = self.failure();
            self.input(Input::Written(Written {
                path,
                number,
                failure,
            }));
        }
    }

    fn failure(&self) -> Option<String> {
        (!self.works).then(|| "no space left".to_owned())
    }

    /// Everything reaches the disk.
    pub(super) fn write_all(&mut self) {
        self.works = true;
        while !self.writes.is_empty() || !self.lines.is_empty() {
            self.write();
        }
    }

    /// So much time passes, and everything is looked after.
    pub(super) fn pass(&mut self, time: Duration) {
        self.now = Now {
            at: self.now.at + time,
            ns: self.now.ns + time.as_nanos() as u64,
            wall: self.now.wall.checked_add(time).unwrap(),
            up: self.now.up.map(|up| up + time),
        };
        if self.core.deadline().is_some_and(|due| due <= self.now.at) {
            self.input(Input::Due);
        }
        self.input(Input::Look);
        self.input(Input::Tick);
    }

    /// The daemon is killed. What it had begun to write is lost; where it `lands`, the disk had the first of it.
    /// Another one starts.
    pub(super) fn crash(&mut self, lands: bool) {
        if let (Some((_, overrides)), true) = (self.writes.pop_front(), lands) {
            self.disk = overrides;
        }
        if let (Some(lines), true) = (self.lines.pop_front(), lands) {
            self.records
                .entry(lines.path)
                .or_default()
                .push_str(&lines.text);
        }
        self.writes.clear();
        self.lines.clear();
        self.reads.clear();
        let mut past = Past::new();
        for (path, text) in &self.records {
            let lines = text.lines().map(serde_json::from_str);
            let lines: Vec<Line> = lines.collect::<Result<_, _>>().unwrap();
            let service = path.parent().and_then(|folder| folder.file_name());
            let service = service.unwrap().to_string_lossy().into_owned();
            past.insert(service, Last::replay(path, &lines));
        }
        let (core, effects) = start(&self.file, &self.kernel, self.disk.clone(), past, self.now);
        self.core = core;
        self.perform(effects);
    }

    /// The share of a service's new connections that the kernel gives to the canary.
    pub(super) fn share(&self, service: &str) -> Share {
        let row = self.core.row(service).unwrap();
        let steering = self.kernel.state().steering.get(&row).copied();
        Share::of_parts(threshold_share(steering.unwrap_or_default().threshold))
    }

    /// What the kernel copies of a service: whether anything, and its share.
    pub(super) fn copies(&self, service: &str) -> Option<f64> {
        let row = self.core.row(service).unwrap();
        let state = self.kernel.state();
        let rule = state.services.values().find(|rule| rule.index == row)?;
        let is_on = rule.mirror & mirror_common::policy::mirror::BOTH != 0;
        is_on.then(|| rule.threshold as f64 / mirror_common::policy::WHOLE as f64)
    }

    /// What somebody was answered.
    pub(super) fn answer(&self, ticket: Ticket) -> Option<Result<Done, String>> {
        match self.answers.get(&ticket)? {
            Ok(Reply::Done(done)) => Some(Ok(done.clone())),
            Ok(other) => Some(Err(format!("{other:?}"))),
            Err(refusal) => Some(Err(refusal.to_string())),
        }
    }
}

fn start(
    file: &str,
    kernel: &Memory,
    disk: Overrides,
    past: Past,
    now: Now,
) -> (Core, Vec<Effect>) {
    let file = crate::config::node(file).unwrap();
    let tap = Tap {
        boot: 7,
        key: [1, 2],
        ..Tap::default()
    };
    let beginning = Beginning {
        rollouts: Rollouts::new(&file, past, now),
        path: "/etc/node.toml".into(),
        settings: Settings::new(disk, None),
        keys: Keys::none(),
        tap,
        mechanism: Mechanism::Tcx,
        beside: Beside {
            servers: Arc::new(Watch::idle()),
            census: Census::new().0,
            janitor: Janitor::new(crate::daemon::canary::room(&file)).0,
            local_reader: LocalReader::new(tap.key).unwrap().0,
            sender: Arc::default(),
        },
        file,
    };
    Core::begin(beginning, Box::new(kernel.clone()), now).unwrap()
}

/// The network: eth0 here, the canary of "b" behind eth1.
pub(super) fn view() -> Arc<View> {
    let canary = ([10, 1, 0, 9], 91).into();
    let links =
        [("eth0", 2), ("eth1", 3)].map(|(name, index)| (name.to_owned(), Some(link(name, index))));
    Arc::new(View {
        addresses: vec![[10, 0, 0, 5].into(), [10, 1, 0, 5].into()],
        links: links.into(),
        ways: BTreeMap::from([(canary, Ok(crate::daemon::fixtures::way()))]),
        ..View::default()
    })
}
