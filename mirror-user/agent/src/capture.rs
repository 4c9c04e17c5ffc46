//! Receives the tunnel: UDP datagrams in, TCP segments out, every copy in its tap's ledger.
//!
//! Runs on a thread of its own, so that nothing the shadow does delays the receive buffer.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mirror_api::Transport;
use mirror_api::plain;
use mirror_api::shadow::TapStatus;
use mirror_api::tap_report::{ServiceReport, TapReport};
use mirror_common::tunnel::{Datagram, DecodeError, decode};
use mirror_wire::memory::{Lease, Memory};
use mirror_wire::message::{Segment, TapId};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::classify::Classifier;
use self::keys::Keys;
use self::notices::Notices;
use self::roster::{Gone, Roster};
use self::socket::{Buffers, Received, Socket};
use self::streams::{Accept, Got, Inlet, Item, Outlet};
use super::ledger::{Outcome, TapLedger, Totals, Volume};
use super::resume::TapResume;
use crate::config;

mod classify;
mod keys;
mod notices;
mod roster;
mod socket;
#[doc(hidden)]
pub mod streams;

pub use self::roster::GaveWay;
pub(crate) use self::socket::bind;
pub(crate) use self::streams::Streams;
pub use self::streams::{Refusal, Refusals};

/// Receive calls in a row before the caller gets its turn.
const BATCHES: usize = 8;

/// How long it waits for datagrams while streams wait for it.
const OVERLOADED: Duration = Duration::from_millis(2);

/// What is kept of taps besides their copies takes this part of `memory` more.
const PART: usize = 16;

/// What a tap's word on a service takes, in bytes, wherever it is kept.
const SERVICE: usize = 1 << 10;

/// The longest name of a service or version that is remembered, in characters: no config has longer ones.
const MAX_NAME: usize = 63;

/// A datagram that is no copy of any tap. Label `outcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stray {
    /// Ends before its headers do.
    Truncated,
    /// Neither GENEVE nor VXLAN.
    UnknownEncapsulation,
    /// GENEVE without our option, or with another version of it.
    UnknownOption,
    /// Its inner protocol is not IP.
    UnknownProtocol,
    /// Of a tap number that no tap has.
    UnknownTap,
    /// Not written by the tap that it names, or not in front of this packet.
    BadMac,
}

impl Stray {
    /// All of them, in the order of their index.
    pub const ALL: [Self; 6] = [
        Self::Truncated,
        Self::UnknownEncapsulation,
        Self::UnknownOption,
        Self::UnknownProtocol,
        Self::UnknownTap,
        Self::BadMac,
    ];

    /// The value of the `outcome` label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Truncated => "truncated_header",
            Self::UnknownEncapsulation => "unknown_encapsulation",
            Self::UnknownOption => "unknown_option",
            Self::UnknownProtocol => "unknown_protocol",
            Self::UnknownTap => "unknown_tap",
            Self::BadMac => "bad_mac",
        }
    }
}

impl From<DecodeError> for Stray {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::Truncated => Self::Truncated,
            DecodeError::UnknownEncapsulation => Self::UnknownEncapsulation,
            DecodeError::UnknownOption => Self::UnknownOption,
            DecodeError::UnknownProtocol => Self::UnknownProtocol,
        }
    }
}

/// What is new of a tap's stream.
#[derive(Debug)]
pub(crate) enum StreamNews {
    /// It has begun.
    Begins(TapId),
    /// It has begun, and goes on where another agent has left it.
    Resumes(TapId, TapResume),
    /// It has ended.
    Ends(TapId),
    /// The tap with this name is not remembered any more.
    Forgotten(TapId, String),
}

/// What is known of one tap.
#[derive(Debug, Default)]
pub struct Tap {
    /// What it is called.
    pub name: String,
    /// Its numbered copies.
    pub ledger: TapLedger,
    /// Its VXLAN frames, which have no numbers: what was lost of them is not known.
    pub unnumbered: [Volume; Outcome::ALL.len()],
    /// What it last said of each service that this agent knows, by id.
    pub services: HashMap<u32, ServiceReport>,
    /// Since when it is connected.
    connected: Option<jiff::Timestamp>,
    /// How it sends its copies, and its program's version, as it last said.
    hello: Option<(&'static str, String)>,
    /// When it last reported.
    reported: Option<jiff::Timestamp>,
    /// The life of its counters, ...
    boot: u64,
    /// ... and how often those of a service have begun anew, by its id.
    lives: HashMap<u32, u64>,
    /// Whether a datagram has come since the last tick.
    heard: bool,
    /// What its services and its ledger take of the agent's memory.
    room: Option<Lease>,
}

impl Tap {
    /// How it is, for people.
    pub fn status(&self) -> TapStatus {
        let totals = self.totals();
        let copies = Outcome::ALL.iter().map(|&outcome| {
            let copies = totals.of(outcome).copies;
            (outcome.label().to_owned(), copies)
        });
        let (transport, program) = self.hello.clone().unzip();
        TapStatus {
            name: self.name.clone(),
            connected_since: self.connected,
            transport: transport.map(str::to_owned),
            program,
            last_report: self.reported,
            copies: copies.filter(|(_, copies)| *copies > 0).collect(),
            outstanding: self.ledger.outstanding(),
            lost_bytes: totals.of(Outcome::Lost).bytes,
            closes: totals.closes(),
        }
    }

    /// Copies by outcome, numbered and not, and the ledger's other figures.
    pub fn totals(&self) -> Totals {
        let mut totals = self.ledger.totals();
        for (sum, &volume) in totals.outcomes.iter_mut().zip(&self.unnumbered) {
            *sum += volume;
        }
        totals
    }
}

/// The agent's end of the tunnel.
#[derive(Debug)]
pub struct Capture {
    sockets: Vec<Socket>,
    buffers: Buffers,
    inlet: Inlet,
    outlet: Outlet,
    refusals: Arc<Refusals>,
    table: Table,
}

/// Who sends, and what becomes of it.
#[derive(Debug)]
struct Table {
    allow: Vec<ipnet::IpNet>,
    classifier: Classifier,
    roster: Roster,
    taps: BTreeMap<TapId, Tap>,
    /// Taps that send datagrams, which are called by their address.
    sources: HashMap<IpAddr, TapId>,
    keys: Keys,
    /// Datagrams that are no copy of any tap, by [`Stray`].
    strays: [u64; Stray::ALL.len()],
    not_allowed: u64,
    /// Streams that have begun or ended.
    streams: Vec<StreamNews>,
    /// What the agent before this one has left, by the taps' names.
    left: HashMap<String, TapResume>,
    /// The next agent goes on with the streams.
    paused: bool,
    notices: Notices,
    changed: bool,
    memory: Memory,
    /// Taps that are not remembered any more, by [`GaveWay`].
    gave_way: [u64; GaveWay::ALL.len()],
}

impl Capture {
    /// Receives on these sockets, which [`bind`] made: the tunnel's end and, where there is one, the
    /// VXLAN end.
    ///
    /// # Errors
    /// When the kernel does not say what it grants.
    pub(crate) fn open(config: &config::Shadow, sockets: Vec<UdpSocket>) -> std::io::Result<Self> {
        let memory = &Memory::new(config.memory / PART);
        let named = config.taps.iter().map(|tap| tap.name.clone());
        let sockets = sockets.into_iter().map(Socket::open);
        let (outlet, inlet) = streams::pair()?;
        Ok(Self {
            sockets: sockets.collect::<Result<_, _>>()?,
            buffers: Buffers::new(),
            inlet,
            outlet,
            refusals: Arc::default(),
            table: Table {
                allow: config.allow.clone(),
                classifier: Classifier::new(&config.services),
                roster: Roster::new(named, memory),
                taps: BTreeMap::new(),
                sources: HashMap::new(),
                keys: Keys::default(),
                strays: Default::default(),
                not_allowed: 0,
                streams: Vec::new(),
                left: HashMap::new(),
                paused: false,
                notices: Notices::new(&config.services),
                changed: false,
                memory: memory.clone(),
                gave_way: Default::default(),
            },
        })
    }

    /// Goes on where another agent has left these taps.
    pub(crate) fn resume(&mut self, taps: Vec<TapResume>) {
        let taps = taps.into_iter().map(|tap| (tap.name.clone(), tap));
        self.table.left = taps.collect();
    }

    /// What streams bring from here on comes once more, to the next agent: it is handed on, and in no
    /// ledger.
    pub(crate) fn pause(&mut self) {
        self.table.paused = true;
        self.inlet.pause();
    }

    /// What the agent before this one has left of taps that have not connected.
    pub(crate) fn take_left(&mut self) -> Vec<TapResume> {
        let left = std::mem::take(&mut self.table.left);
        left.into_values().collect()
    }

    /// Lets taps connect at `listener`, until [`Streams::stop`]. What they send is handed on as
    /// what comes in datagrams is.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub(crate) fn listen(
        &self,
        listener: TcpListener,
        door: Arc<dyn Accept>,
        memory: &Memory,
        api: Option<streams::Api>,
    ) -> std::io::Result<Streams> {
        let taps = streams::Taps::new(
            self.table.roster.clone(),
            self.outlet.clone(),
            Arc::clone(&self.refusals),
            memory,
            self.table.left.values().map(|left| Got {
                name: left.name.clone(),
                boot: left.boot,
                positions: left.positions.clone(),
            }),
        );
        Streams::start(listener, door, taps, api)
    }

    /// Connections that were refused, or closed.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Where the tunnel ends.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.sockets
            .first()
            .ok_or(std::io::ErrorKind::NotConnected)?
            .local_address()
    }

    /// The receive buffer that the kernel granted, in bytes; the smallest where there are several.
    pub fn receive_buffer(&self) -> usize {
        let sizes = self.sockets.iter().map(Socket::receive_buffer);
        sizes.min().unwrap_or_default()
    }

    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub fn socket_drops(&self) -> u64 {
        self.sockets.iter().map(Socket::drops).sum()
    }

    /// Datagrams of peers that are not listened to.
    pub fn not_allowed(&self) -> u64 {
        self.table.not_allowed
    }

    /// The taps heard so far.
    pub fn taps(&self) -> impl Iterator<Item = (TapId, &Tap)> {
        self.table.taps.iter().map(|(&id, tap)| (id, tap))
    }

    /// One of them.
    pub(crate) fn tap(&self, id: TapId) -> Option<&Tap> {
        self.table.taps.get(&id)
    }

    /// Taps whose streams have begun, or ended, since this was last asked, in order.
    pub(crate) fn take_streams(&mut self) -> Vec<StreamNews> {
        std::mem::take(&mut self.table.streams)
    }

    /// Whether what a tap says of a service, figures apart, has changed since this was last asked.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.table.changed)
    }

    /// Datagrams that are no copy of any tap, by [`Stray`].
    pub fn strays(&self) -> [u64; Stray::ALL.len()] {
        self.table.strays
    }

    /// Taps that are not remembered any more, by [`GaveWay`].
    pub fn gave_way(&self) -> [u64; GaveWay::ALL.len()] {
        self.table.gave_way
    }

    /// Moves the ledgers on, and forgets taps that are gone: call it about once a second.
    pub fn tick(&mut self) {
        self.table.tick(Instant::now());
    }

    /// Closes the ledgers.
    pub fn close(&mut self) {
        for tap in self.table.taps.values_mut() {
            tap.ledger.stop();
        }
    }

    /// Waits until something arrives, but no longer than `timeout`, and hands on what is there.
    ///
    /// With `overloaded`, datagrams are received, counted as such, and forgotten; streams wait.
    /// Returns the number of copies, of datagrams and of reports in streams.
    ///
    /// # Errors
    /// When a socket fails; the tunnel cannot be received any more.
    pub fn receive(
        &mut self,
        timeout: Duration,
        overloaded: bool,
        sink: &mut impl FnMut(Segment),
    ) -> std::io::Result<usize> {
        if !self.wait(timeout, overloaded)? {
            return Ok(0);
        }
        let mut count = 0;
        if !overloaded {
            let table = &mut self.table;
            count += self.inlet.receive(|id, name, item| {
                let copies = table.item(id, name, item, sink);
                (copies, !table.has_news())
            });
        }
        // The tap has its echo: what it sends next is taken in by what it has said.
        if self.table.has_news() {
            return Ok(count);
        }
        for socket in &self.sockets {
            for _ in 0..BATCHES {
                let batch = socket.receive(&mut self.buffers)?;
                count += batch;
                for received in self.buffers.received(batch) {
                    self.table.datagram(&received, overloaded, sink);
                }
                if batch < socket::BATCH {
                    break;
                }
            }
        }
        Ok(count)
    }

    fn wait(&self, timeout: Duration, overloaded: bool) -> std::io::Result<bool> {
        let mut polled: Vec<_> = self
            .sockets
            .iter()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN))
            .collect();
        // Nothing wakes this thread when the load is over: it looks again soon.
        let timeout = if overloaded {
            timeout.min(OVERLOADED)
        } else {
            polled.push(PollFd::new(self.inlet.event(), PollFlags::POLLIN));
            if self.inlet.is_left() {
                return Ok(true);
            }
            timeout
        };
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl Table {
    /// Whether something has to be known before anything else is taken in: that a stream begins or ends, or
    /// what a tap says of its services.
    fn has_news(&self) -> bool {
        self.changed || !self.streams.is_empty()
    }

    /// Accounts for a datagram and hands its segment on.
    fn datagram(
        &mut self,
        received: &Received<'_>,
        overloaded: bool,
        sink: &mut impl FnMut(Segment),
    ) {
        let believed = decode(received.payload)
            .map_err(Stray::from)
            .and_then(|datagram| self.keys.believe(datagram));
        match believed {
            Ok(Datagram::Geneve { header, payload }) => {
                let id = TapId(header.meta.tap.into());
                let Some(tap) = self.taps.get_mut(&id) else {
                    return self.strays[Stray::UnknownTap as usize] += 1;
                };
                let copy = self.classifier.geneve(id, &header, payload);
                let outcome = copy.outcome(overloaded);
                let is_new = tap
                    .ledger
                    .datagram(&header.meta, copy.sequence, copy.length, outcome);
                if is_new {
                    copy.hand_on(outcome, sink);
                }
            }
            // Whoever sends such needs no key, and no connection.
            Ok(Datagram::Vxlan { payload, .. }) => {
                let address = received.source.ip().to_canonical();
                let found = self.source(address);
                let Some((id, tap)) = found.and_then(|id| Some((id, self.taps.get_mut(&id)?)))
                else {
                    self.not_allowed += 1;
                    return self.notices.not_allowed(address);
                };
                tap.heard = true;
                let time_ns = arrival_ns(received.timestamp);
                let copy = self.classifier.vxlan(id, payload, time_ns);
                let outcome = copy.outcome(overloaded);
                tap.unnumbered[outcome as usize] += Volume {
                    copies: 1,
                    bytes: u64::from(copy.length),
                };
                copy.hand_on(outcome, sink);
            }
            Err(stray) => self.strays[stray as usize] += 1,
        }
    }

    /// Takes in what a tap says in a stream. Returns how many copies that is, or 1.
    fn item(&mut self, id: TapId, name: &str, item: Item, sink: &mut impl FnMut(Segment)) -> usize {
        // Each connection begins with a hello: what comes without one is left of a tap that was forgotten.
        if !self.taps.contains_key(&id) && !matches!(item, Item::Hello(_)) {
            return 1;
        }
        let memory = &self.memory;
        let tap = self
            .taps
            .entry(id)
            .or_insert_with(|| Tap::new(name.to_owned(), memory));
        match item {
            Item::Hello(hello) => {
                if let (Some(key), Ok(number)) = (hello.mac_key, u16::try_from(id.0)) {
                    self.keys.set(number, key);
                }
                let streamed = hello.transport == Transport::Stream;
                tap.connected = Some(jiff::Timestamp::now());
                // What it says goes to a terminal.
                let program = plain::line(&hello.program, 64);
                tap.hello = Some((hello.transport.label(), program));
                if streamed {
                    let left = match self.paused {
                        false => self.left.remove(name),
                        // The next agent may go on with it.
                        true => None,
                    };
                    let left = left.filter(|left| left.boot == hello.boot);
                    let left = left.map(|left| StreamNews::Resumes(id, left));
                    self.streams.push(left.unwrap_or(StreamNews::Begins(id)));
                }
                tap.ledger.hello(hello.boot, streamed);
                tap.boot = hello.boot;
                let begun = hello.lanes.iter().filter(|lane| lane.position > 0);
                tap.ledger.begun(begun.map(|lane| lane.lane));
            }
            Item::Gone => {
                tap.connected = None;
                self.streams.push(StreamNews::Ends(id));
            }
            Item::Report(report) => {
                let mut report = clipped(report);
                self.notices.services(name, &report.services);
                let notices = &self.notices;
                report.services.retain(|service| notices.knows(service.id));
                if tap.admit(&mut report.services) {
                    self.notices.no_memory(name);
                }
                self.changed |= tap.report(report);
            }
            Item::Copies(copies) => {
                for copied in &copies {
                    let copy = self.classifier.record(id, copied);
                    let outcome = copy.outcome(false);
                    let record = &copied.record;
                    if !self.paused {
                        tap.ledger
                            .copy(record.lane, record.sequence, copy.length, outcome);
                    }
                    copy.hand_on(outcome, sink);
                }
                return copies.len();
            }
        }
        1
    }

    fn tick(&mut self, now: Instant) {
        for tap in self.taps.values_mut() {
            tap.ledger.tick();
            tap.keep_to_memory();
        }
        let taps = self.taps.values_mut();
        let heard = taps.filter_map(|tap| std::mem::take(&mut tap.heard).then_some(&*tap.name));
        self.roster.heard(heard, now);
        for gone in self.roster.take_gone(now) {
            self.forget(gone);
        }
    }

    fn forget(&mut self, gone: Gone) {
        let Gone {
            id,
            name,
            silent,
            why,
        } = gone;
        let silent = humantime::format_duration(Duration::from_secs(silent.as_secs()));
        tracing::info!(tap = name, reason = why.label(), %silent, "tap forgotten");
        self.gave_way[why as usize] += 1;
        self.taps.remove(&id);
        self.sources.retain(|_, known| *known != id);
        self.keys.forget(id);
        self.streams.push(StreamNews::Forgotten(id, name));
    }

    /// The number of the tap at this address, if it is listened to.
    fn source(&mut self, address: IpAddr) -> Option<TapId> {
        if let Some(&known) = self.sources.get(&address) {
            return Some(known);
        }
        if !self.allow.iter().any(|net| net.contains(&address)) {
            return None;
        }
        let name = address.to_string();
        let id = self.roster.number(&name, Instant::now())?;
        self.sources.insert(address, id);
        let memory = &self.memory;
        self.taps
            .entry(id)
            .or_insert_with(|| Tap::new(name, memory));
        Some(id)
    }
}

impl Tap {
    fn new(name: String, memory: &Memory) -> Self {
        tracing::info!(tap = name, "new tap");
        Self {
            name,
            room: Some(memory.empty_lease()),
            ..Self::default()
        }
    }

    /// How often the counters of a service have begun anew.
    pub(crate) fn life(&self, service: u32) -> (u64, u64) {
        let lives = self.lives.get(&service).copied();
        (self.boot, lives.unwrap_or_default())
    }

    /// Counters that have gone back have begun anew; so will those of a service that the tap no longer has.
    fn begin_lives(&mut self, reported: &[ServiceReport]) {
        for known in self.services.values() {
            let now = reported.iter().find(|service| service.id == known.id);
            let goes_on = now.is_some_and(|now| {
                now.requests.packets >= known.requests.packets
                    && now.responses.packets >= known.responses.packets
            });
            if !goes_on {
                *self.lives.entry(known.id).or_default() += 1;
            }
        }
    }

    /// Takes a report in; says whether a service is not what it was, figures apart.
    fn report(&mut self, report: TapReport) -> bool {
        self.reported = Some(jiff::Timestamp::now());
        self.ledger.report(report.boot, &report.lanes);
        self.boot = report.boot;
        self.begin_lives(&report.services);
        let mut changed = false;
        for service in report.services {
            let known = self.services.get(&service.id);
            changed |= known.is_none_or(|known| {
                known.stable_version != service.stable_version
                    || known.canary_version != service.canary_version
                    || known.requests_only != service.requests_only
            });
            self.services.insert(service.id, service);
        }
        changed
    }

    /// Leaves out what a report says of services that there is no memory for. Says whether that is so.
    fn admit(&mut self, reported: &mut Vec<ServiceReport>) -> bool {
        let before = reported.len();
        let (services, room) = (&self.services, &mut self.room);
        reported.retain(|service| {
            services.contains_key(&service.id)
                || room.as_mut().is_none_or(|room| room.grow(SERVICE))
        });
        reported.len() < before
    }

    /// Where there is no memory for copies that may still come, they are settled as lost.
    fn keep_to_memory(&mut self) {
        let Some(room) = &mut self.room else { return };
        let bytes = self.services.len() * SERVICE + self.ledger.bytes();
        let more = bytes.saturating_sub(room.bytes());
        if !room.grow(more) {
            self.ledger.settle();
        }
        room.shrink_to(bytes);
    }
}

/// A report without what no config would say, whoever sends it.
fn clipped(mut report: TapReport) -> TapReport {
    let clip = |name: &mut String| {
        if let Some((end, _)) = name.char_indices().nth(MAX_NAME) {
            name.truncate(end);
            name.shrink_to_fit();
        }
    };
    for service in &mut report.services {
        clip(&mut service.name);
        clip(&mut service.stable_version);
        service.canary_version.iter_mut().for_each(clip);
    }
    report
}

/// VXLAN says nothing of time: what the kernel noted on arrival stands in.
fn arrival_ns(timestamp: Option<Duration>) -> u64 {
    let since_epoch = timestamp
        .or_else(|| {
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .ok()
        })
        .unwrap_or_default();
    u64::try_from(since_epoch.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
