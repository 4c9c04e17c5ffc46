//! One agent as the daemon sees it: whether it answers, and by which way copies go there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror_api::AgentAddress;
use mirror_api::Transport;
use mirror_api::tap_report::TapReport;
use mirror_common::counters::Sent;
use mirror_common::policy::{self, agent_state, transport};

use super::sender::{Failure, What};
use super::way::{NoWay, Way};
use crate::config::Mirror;
use crate::dataplane::{self, Counts, Ring};
use mirror_base::transport::keys::PublicKey;

/// An agent that leaves reports unanswered for this long does not answer. It is asked once a second
/// while anything is copied, and looked at twice: a copy of the kernel's stops within 3 s, and one late
/// answer does not stop it.
const SILENCE: Duration = Duration::from_millis(1_400);

/// How long the mirror yields after the uplink has dropped packets.
const PAUSE: Duration = Duration::from_secs(5);

/// How an agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Access {
    /// Its name or address.
    pub(super) address: AgentAddress,
    /// What it is known by; nothing = it is spoken to in clear text.
    pub(super) key: Option<PublicKey>,
    /// How copies travel.
    pub(super) transport: Transport,
}

impl Access {
    /// What a service's mirror says.
    pub(super) fn of(mirror: &Mirror) -> Self {
        Self {
            address: mirror.agent.clone(),
            key: mirror.agent_key.filter(|_| !mirror.insecure),
            transport: mirror.transport,
        }
    }

    /// Tells agents apart in the maps: a restarted daemon finds by it which ring is whose.
    pub(super) fn id(&self) -> u64 {
        use std::hash::{Hash as _, Hasher as _};

        let mut hasher = siphasher::sip::SipHasher13::new();
        (self.address.to_string(), self.transport.label()).hash(&mut hasher);
        hasher.finish().max(1)
    }
}

/// The connection to an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Connection {
    /// There is none yet, or no more.
    Down {
        /// Why, as far as that is known.
        why: Option<String>,
    },
    /// The agent has said welcome.
    Up {
        /// Where it is.
        peer: SocketAddr,
        /// What it calls this node.
        name: String,
    },
}

/// One agent.
#[derive(Debug)]
pub(super) struct Agent {
    /// How it is reached.
    pub(super) access: Access,
    /// Its number in the maps.
    pub(super) number: u32,
    /// Tells the times apart that it has had that number: see [`policy::Agent::tenure`].
    tenure: u32,
    /// Copies that wait for it; nothing where the kernel sends by itself.
    pub(super) ring: Option<Arc<Ring>>,
    /// What datagrams are signed with.
    pub(super) mac_key: [u64; 2],
    /// The connection to it.
    pub(super) connection: Connection,
    /// Where it was reached last.
    pub(super) peer: Option<SocketAddr>,
    /// The way there.
    pub(super) way: Result<Way, NoWay>,
    /// Whether the uplink's program is attached.
    pub(super) attached: bool,
    /// From a report to its echo.
    pub(super) round_trip: Option<Duration>,
    /// The last thing that went wrong.
    pub(super) error: Option<String>,
    /// Connections that it welcomed.
    pub(super) connections: u64,
    /// Attempts at which it showed another key than the config trusts.
    pub(super) other_keys: u64,
    /// This tap's number there.
    tap: u32,
    /// What it was told last.
    told: Option<TapReport>,
    last_echo: Option<Instant>,
    /// Whether it has answered a report over this connection: it then knows what copies are signed with.
    answered: bool,
    /// When the first report was sent that nothing has answered.
    asked: Option<Instant>,
    paused_until: Option<Instant>,
    drops: Option<(u32, u64)>,
    /// When it was first wanted.
    since: Instant,
    /// What the log said of it last: whether it answers.
    said: Option<bool>,
}

impl Agent {
    /// An agent that has not been heard of.
    pub(super) fn new(
        access: Access,
        (number, tenure): (u32, u32),
        ring: Option<Arc<Ring>>,
        now: Instant,
    ) -> Self {
        let [a, b] = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|uuid| uuid.as_u64_pair());
        Self {
            number,
            tenure,
            ring,
            // Version and variant of a UUID are fixed; what is left over is random.
            mac_key: [a.0 ^ b.1.rotate_left(32), a.1 ^ b.0.rotate_left(32)],
            connection: Connection::Down { why: None },
            peer: access.address.socket(),
            way: Err(NoWay::Unresolved(access.address.to_string())),
            attached: false,
            round_trip: None,
            error: None,
            connections: 0,
            other_keys: 0,
            tap: 0,
            told: None,
            last_echo: None,
            answered: false,
            asked: None,
            paused_until: None,
            drops: None,
            since: now,
            said: None,
            access,
        }
    }

    /// Whether the kernel sends copies by itself.
    pub(super) fn is_geneve(&self) -> bool {
        self.access.transport == Transport::Geneve
    }

    /// Whether it answers when it is asked: a daemon that was kept from asking knows nothing new.
    pub(super) fn alive(&self, now: Instant) -> bool {
        let up = matches!(self.connection, Connection::Up { .. });
        up && self.answered && !self.overdue(now)
    }

    fn overdue(&self, now: Instant) -> bool {
        let silent = |at: Instant| now.duration_since(at) > SILENCE;
        self.asked.is_some_and(silent)
    }

    /// Names this life of the numbers that its copies have, in the tap's life `boot`.
    pub(super) fn life(&self, boot: u64) -> u64 {
        let of_datagrams = boot ^ u64::from(self.tenure).rotate_left(32);
        self.ring.as_ref().map_or(of_datagrams, |ring| ring.life())
    }

    /// What each CPU has sent to it.
    pub(super) fn sent(&self, counts: &dyn Counts) -> Result<Vec<Sent>, dataplane::Error> {
        match &self.ring {
            Some(ring) => Ok(ring.sent_by_lane()),
            None => counts.sent(self.number),
        }
    }

    /// Whether it is known by now whether it answers.
    pub(super) fn is_known(&self, now: Instant) -> bool {
        self.alive(now) || now.duration_since(self.since) > 2 * SILENCE
    }

    /// Whether it answers, where that is known and the log has not said so yet.
    pub(super) fn news(&mut self, now: Instant) -> Option<bool> {
        let alive = self.alive(now);
        let news = Some(alive).filter(|_| self.is_known(now) && self.said != Some(alive));
        self.said = news.or(self.said);
        news
    }

    /// How long ago it answered.
    pub(super) fn silence(&self, now: Instant) -> Option<Duration> {
        self.last_echo.map(|at| now.duration_since(at))
    }

    /// Whether copying yields to the uplink's own traffic.
    pub(super) fn paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }

    /// Why there is no connection, or what else is wrong.
    pub(super) fn trouble(&self) -> Option<String> {
        match &self.connection {
            Connection::Down { why } => {
                let why = why.clone();
                Some(why.unwrap_or_else(|| "not reached yet".to_owned()))
            }
            Connection::Up { .. } => self.error.clone(),
        }
    }

    /// Something has happened to the connection.
    pub(super) fn on_event(&mut self, what: What, now: Instant, now_ns: u64) {
        match what {
            What::Connected { peer, name, tap } => {
                self.peer = Some(peer);
                self.tap = tap;
                self.connections += 1;
                self.connection = Connection::Up { peer, name };
                self.answered = false;
                (self.error, self.asked, self.told) = (None, None, None);
            }
            What::Lost { why } => {
                tracing::info!(agent = %self.access.address, why, "connection to the agent lost");
                self.connection = Connection::Down { why: Some(why) };
                self.asked = None;
            }
            What::Failed(failure) => self.on_failure(&failure),
            What::Echo { sent_at_ns } => {
                self.last_echo = Some(now);
                self.answered = true;
                self.asked = None;
                self.round_trip = Some(Duration::from_nanos(now_ns.saturating_sub(sent_at_ns)));
                self.error = None;
            }
        }
    }

    fn on_failure(&mut self, failure: &Failure) {
        let why = Some(failure.to_string());
        let is_news = !matches!(&self.connection, Connection::Down { why: known } if *known == why);
        let agent = &self.access.address;
        match failure {
            Failure::OtherKey { .. } => {
                self.other_keys += 1;
                if is_news {
                    tracing::error!(%agent, "agent shows another key; nothing is sent to it: {failure}");
                }
            }
            Failure::OurKey { .. } if is_news => {
                tracing::error!(%agent, "agent does not know this node's key: {failure}");
            }
            _ => {}
        }
        self.connection = Connection::Down { why };
        self.asked = None;
    }

    /// Takes note of the way there, and of what its uplink has dropped: more than before pauses the
    /// mirror.
    pub(super) fn goes(&mut self, way: Result<Way, NoWay>, now: Instant) {
        match &way {
            // TCP slows down by itself where packets are dropped.
            Ok(_) if !self.is_geneve() => {}
            Ok(Way { link, dropped, .. }) => self.watch_drops(link.index, *dropped, now),
            Err(why) => {
                if self.way.as_ref().err() != Some(why) {
                    tracing::warn!(agent = %self.access.address, "no way to the agent: {why}");
                }
                // What an uplink drops while it is down, or leads nowhere, is no sign of too much
                // traffic.
                self.drops = None;
            }
        }
        self.way = way;
    }

    fn watch_drops(&mut self, uplink: u32, dropped: u64, now: Instant) {
        if let Some((before_uplink, before)) = self.drops
            && before_uplink == uplink
            && dropped > before
        {
            if !self.paused(now) {
                let packets = dropped - before;
                tracing::warn!(agent = %self.access.address, packets, "uplink drops packets; mirroring paused");
            }
            self.paused_until = Some(now + PAUSE);
        }
        self.drops = Some((uplink, dropped));
    }

    /// What the programs should know of it; nothing without a way.
    pub(super) fn policy(&self, now: Instant) -> Option<policy::Agent> {
        let id = self.access.id();
        if !self.is_geneve() {
            // Whether it answers or not: copies wait in the ring.
            return self.ring.as_ref().map(|_| policy::Agent {
                state: agent_state::ALIVE,
                transport: transport::STREAM,
                id,
                ..policy::Agent::default()
            });
        }
        let (way, peer) = (self.way.as_ref().ok()?, self.peer?);
        let alive = if self.attached && self.alive(now) {
            agent_state::ALIVE
        } else {
            0
        };
        let paused = if self.paused(now) {
            agent_state::PAUSED
        } else {
            0
        };
        Some(policy::Agent {
            ifindex: way.link.index,
            state: alive | paused,
            local: way.local.into(),
            remote: peer.ip().into(),
            port: u32::from(peer.port()),
            mtu: way.mtu,
            ipv6: u32::from(peer.is_ipv6()),
            ethernet: u32::from(way.link.ethernet),
            macs: way.macs(),
            transport: transport::GENEVE,
            id,
            mac_key: self.mac_key,
            tap: self.tap,
            tenure: self.tenure,
        })
    }

    /// Whether it should be told this: it is always, unless nothing has changed since the last report and
    /// that was answered. Nobody is woken on an idle node.
    pub(super) fn should_hear(&mut self, report: &TapReport, now: Instant) -> bool {
        if !matches!(self.connection, Connection::Up { .. }) {
            return false;
        }
        let same = self
            .told
            .as_ref()
            .is_some_and(|told| told.says_the_same(report));
        if same && self.asked.is_none() && !self.is_geneve() {
            return false;
        }
        self.told = Some(report.clone());
        self.asked.get_or_insert(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::way;
    use super::*;
    use crate::netlink::Link;

    fn agent(transport: Transport) -> Agent {
        let access = Access {
            address: "10.0.0.9:6181".parse().unwrap(),
            key: None,
            transport,
        };
        let mut agent = Agent::new(access, (3, 0), None, Instant::now());
        let link = Link {
            name: "eth0".into(),
            index: 7,
            up: true,
            mtu: 1500,
            ethernet: true,
            mac: [9; 6],
            ..Link::default()
        };
        agent.way = Ok(Way {
            link,
            local: [10, 0, 0, 5].into(),
            mtu: 1400,
            ..way()
        });
        agent.attached = true;
        agent
    }

    fn connected() -> What {
        What::Connected {
            peer: "10.0.0.9:6181".parse().unwrap(),
            name: "node".into(),
            tap: 1,
        }
    }

    #[test]
    fn an_agent_is_alive_while_it_is_connected_and_answers() {
        let mut agent = agent(Transport::Geneve);
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let state = |agent: &Agent, ms| agent.policy(at(ms)).unwrap().state;
        assert_eq!(state(&agent, 0), 0);
        agent.on_event(connected(), start, 0);
        assert_eq!(state(&agent, 0), 0, "it may not know the key yet");
        agent.on_event(What::Echo { sent_at_ns: 0 }, start, 0);
        assert_eq!(
            state(&agent, 60_000),
            agent_state::ALIVE,
            "nobody asked it anything"
        );
        agent.asked = Some(at(1_000));
        assert_eq!(
            (state(&agent, 2_400), state(&agent, 2_401)),
            (agent_state::ALIVE, 0)
        );
        agent.on_event(What::Echo { sent_at_ns: 1_000 }, at(3_000), 3_000);
        assert_eq!(agent.round_trip, Some(Duration::from_nanos(2_000)));
        assert_eq!(state(&agent, 3_000), agent_state::ALIVE);
        agent.attached = false;
        assert_eq!(
            state(&agent, 3_000),
            0,
            "without its uplink's program no clone may be sent"
        );
        agent.attached = true;
        agent.on_event(What::Lost { why: "gone".into() }, at(3_000), 3_000);
        assert_eq!(state(&agent, 3_000), 0);
    }

    #[test]
    fn the_log_says_once_whether_it_answers() {
        let mut agent = agent(Transport::Stream);
        let start = agent.since;
        let news = |agent: &mut Agent, ms| agent.news(start + Duration::from_millis(ms));
        assert_eq!(news(&mut agent, 0), None);
        assert_eq!(news(&mut agent, 3_000), Some(false));
        assert_eq!(news(&mut agent, 4_000), None);
        agent.on_event(connected(), start, 0);
        agent.on_event(What::Echo { sent_at_ns: 0 }, start, 0);
        assert_eq!(news(&mut agent, 5_000), Some(true));
        assert_eq!(news(&mut agent, 6_000), None);
        agent.asked = Some(start + Duration::from_millis(6_000));
        assert_eq!(news(&mut agent, 9_000), Some(false));
    }

    #[test]
    fn a_dropping_uplink_pauses_the_mirror() {
        let mut agent = agent(Transport::Geneve);
        let start = Instant::now();
        let way = agent.way.clone().unwrap();
        let by = |uplink: u32, dropped| {
            let mut way = way.clone();
            way.link.index = uplink;
            way.dropped = dropped;
            Ok(way)
        };
        agent.goes(by(7, 100), start);
        assert!(!agent.paused(start));
        agent.goes(by(7, 101), start);
        assert!(agent.paused(start) && !agent.paused(start + PAUSE));
        // What it dropped while it led nowhere does not count.
        agent.goes(Err(NoWay::Down("eth0".into())), start + PAUSE);
        agent.goes(by(7, 300), start + PAUSE);
        assert!(!agent.paused(start + PAUSE));
        // Another uplink counts from another number.
        agent.goes(by(8, 500), start + PAUSE);
        assert!(!agent.paused(start + PAUSE));
    }

    #[test]
    fn the_way_is_written_for_the_programs() {
        let policy = agent(Transport::Geneve).policy(Instant::now()).unwrap();
        assert_eq!(
            (policy.ifindex, policy.mtu, policy.ipv6, policy.ethernet),
            (7, 1400, 0, 1)
        );
        let macs: Vec<u8> = policy
            .macs
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        assert_eq!(macs, [1, 2, 3, 4, 5, 6, 9, 9, 9, 9, 9, 9]);
    }

    #[test]
    fn copies_wait_for_an_agent_that_is_away() {
        let mut agent = agent(Transport::Stream);
        assert_eq!(agent.policy(Instant::now()), None, "there is no ring");
        agent.ring = Some(Arc::new(Ring::of_memory(1)));
        let policy = agent.policy(Instant::now()).unwrap();
        assert_eq!(
            (policy.state, policy.transport),
            (agent_state::ALIVE, transport::STREAM)
        );
    }

    #[test]
    fn an_idle_agent_is_left_alone() {
        let mut agent = agent(Transport::Stream);
        let mut report = TapReport::default();
        assert!(
            !agent.should_hear(&report, Instant::now()),
            "it is not connected"
        );
        agent.on_event(connected(), Instant::now(), 0);
        assert!(agent.should_hear(&report, Instant::now()));
        report.number += 1;
        assert!(
            agent.should_hear(&report, Instant::now()),
            "nothing has answered yet"
        );
        agent.on_event(What::Echo { sent_at_ns: 0 }, Instant::now(), 0);
        report.number += 1;
        assert!(!agent.should_hear(&report, Instant::now()));
        report
            .lanes
            .push(mirror_api::tap_report::LaneSent::default());
        assert!(agent.should_hear(&report, Instant::now()));
    }
}
