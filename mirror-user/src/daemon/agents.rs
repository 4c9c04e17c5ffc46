//! One agent as the daemon sees it: whether it answers, and by which way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mirror_common::policy::{self, agent_state};
use mirror_common::tunnel::{self, Datagram, Inner};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::way::{NoWay, Way};
use crate::tap_report::TapReport;

/// An agent that leaves control packets unanswered for this long is dead. It is asked once a second,
/// and looked at twice: copying stops within 3 s, and one lost answer does not stop it.
const SILENCE: Duration = Duration::from_millis(1_400);

/// How long the daemon's loop waits for room in the queue of a control packet's socket.
const SENDING: Duration = Duration::from_millis(20);

/// How long the mirror yields after the uplink has dropped packets.
const PAUSE: Duration = Duration::from_secs(5);

/// An echo, as its socket's reader passes it on.
#[derive(Debug)]
pub(super) struct Echo {
    /// Whose.
    pub(super) agent: SocketAddr,
    /// When the control packet was sent, on the monotonic clock, in nanoseconds.
    pub(super) sent_at_ns: u64,
}

/// One agent.
#[derive(Debug)]
pub(super) struct Agent {
    /// Its tunnel end.
    pub(super) address: SocketAddr,
    /// Its number in the maps.
    pub(super) number: u32,
    /// The way there.
    pub(super) way: Result<Way, NoWay>,
    /// Whether the uplink's program is attached.
    pub(super) attached: bool,
    /// From a control packet to its echo.
    pub(super) round_trip: Option<Duration>,
    /// The last thing that went wrong.
    pub(super) error: Option<String>,
    socket: Option<Socket>,
    last_echo: Option<Instant>,
    /// When the first control packet was sent that nothing has answered.
    asked: Option<Instant>,
    paused_until: Option<Instant>,
    drops: Option<(u32, u64)>,
    /// What the log said of it last: whether it answers.
    said: Option<bool>,
}

#[derive(Debug)]
struct Socket {
    local: IpAddr,
    socket: Arc<UdpSocket>,
    reader: AbortHandle,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Agent {
    /// An agent that has not been heard of.
    pub(super) fn new(address: SocketAddr, number: u32) -> Self {
        Self {
            address,
            number,
            way: Err(NoWay::NoRoute(address.ip())),
            attached: false,
            round_trip: None,
            error: None,
            socket: None,
            last_echo: None,
            asked: None,
            paused_until: None,
            drops: None,
            said: None,
        }
    }

    /// Whether it answers when it is asked: a daemon that was kept from asking knows nothing new.
    pub(super) fn alive(&self, now: Instant) -> bool {
        let silent = |at: Instant| now.duration_since(at) > SILENCE;
        self.last_echo.is_some() && !self.asked.is_some_and(silent)
    }

    /// Whether it answers, where that is known and the log has not said so yet.
    pub(super) fn news(&mut self, now: Instant) -> Option<bool> {
        let alive = self.alive(now);
        let known = alive
            || self
                .asked
                .is_some_and(|at| now.duration_since(at) > SILENCE);
        let news = Some(alive).filter(|_| known && self.said != Some(alive));
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

    /// It has answered.
    pub(super) fn answered(&mut self, echo: &Echo, now: Instant, now_ns: u64) {
        self.last_echo = Some(now);
        self.asked = None;
        self.round_trip = Some(Duration::from_nanos(now_ns.saturating_sub(echo.sent_at_ns)));
        self.error = None;
    }

    /// Takes note of the way there, and of what its uplink has dropped: more than before pauses the
    /// mirror.
    pub(super) fn goes(&mut self, way: Result<Way, NoWay>, now: Instant) {
        match &way {
            Ok(Way { link, dropped, .. }) => self.watch_drops(link.index, *dropped, now),
            Err(why) => {
                if self.way.as_ref().err() != Some(why) {
                    tracing::warn!(agent = %self.address, "{why}");
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
                tracing::warn!(agent = %self.address, packets, "the uplink drops packets: mirroring pauses");
            }
            self.paused_until = Some(now + PAUSE);
        }
        self.drops = Some((uplink, dropped));
    }

    /// What the programs should know of it; nothing without a way.
    pub(super) fn policy(&self, now: Instant) -> Option<policy::Agent> {
        let way = self.way.as_ref().ok()?;
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
            remote: self.address.ip().into(),
            port: u32::from(self.address.port()),
            mtu: way.mtu,
            ipv6: u32::from(self.address.is_ipv6()),
            ethernet: u32::from(way.link.ethernet),
            macs: way.macs(),
            tap: 0,
            mac_key: [0; 2],
        })
    }

    /// Sends a control packet, through the way that copies take.
    pub(super) async fn ask(&mut self, report: &TapReport, echoes: &mpsc::Sender<Echo>) {
        self.asked.get_or_insert_with(Instant::now);
        let asked = tokio::time::timeout(SENDING, self.try_ask(report, echoes)).await;
        self.error = match asked {
            Ok(Ok(())) => return,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the uplink takes no packets".to_owned()),
        };
    }

    async fn try_ask(
        &mut self,
        report: &TapReport,
        echoes: &mpsc::Sender<Echo>,
    ) -> std::io::Result<()> {
        let local = self.way.as_ref().ok().map(|way| way.local);
        if self.socket.as_ref().map(|socket| socket.local) != local {
            self.socket = None;
        }
        let socket = match &self.socket {
            Some(socket) => Arc::clone(&socket.socket),
            // Even without a way: what is sent makes the kernel look for the next hop.
            None => self.open(local, echoes).await?,
        };
        for datagram in report.datagrams() {
            socket.send(&datagram).await?;
        }
        Ok(())
    }

    async fn open(
        &mut self,
        local: Option<IpAddr>,
        echoes: &mpsc::Sender<Echo>,
    ) -> std::io::Result<Arc<UdpSocket>> {
        let any: IpAddr = if self.address.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let socket = Arc::new(UdpSocket::bind((local.unwrap_or(any), 0)).await?);
        socket.connect(self.address).await?;
        if let Some(local) = local {
            let reader = tokio::spawn(read(Arc::clone(&socket), self.address, echoes.clone()));
            self.socket = Some(Socket {
                local,
                socket: Arc::clone(&socket),
                reader: reader.abort_handle(),
            });
        }
        Ok(socket)
    }
}

/// Passes echoes on. The socket is connected: nobody but the agent can answer.
async fn read(socket: Arc<UdpSocket>, agent: SocketAddr, echoes: mpsc::Sender<Echo>) {
    let mut buffer = vec![0; 2048];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) => {
                if let Ok(Datagram::Geneve { header, .. }) = tunnel::decode(&buffer[..length])
                    && header.inner == Inner::Control
                    && echoes
                        .send(Echo {
                            agent,
                            sent_at_ns: header.meta.time_ns,
                        })
                        .await
                        .is_err()
                {
                    return;
                }
            }
            // "Connection refused": nobody listens there. The next control packet asks again.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::way;
    use super::*;
    use crate::netlink::Link;

    fn agent() -> Agent {
        let mut agent = Agent::new("10.0.0.9:6181".parse().unwrap(), 3);
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

    #[test]
    fn an_agent_is_alive_while_it_answers() {
        let mut agent = agent();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let state = |agent: &Agent, ms| agent.policy(at(ms)).unwrap().state;
        assert_eq!(state(&agent, 0), 0);
        let echo = Echo {
            agent: agent.address,
            sent_at_ns: 1_000,
        };
        agent.answered(&echo, start, 3_000);
        assert_eq!(agent.round_trip, Some(Duration::from_nanos(2_000)));
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
        agent.answered(&echo, at(3_000), 3_000);
        assert_eq!(state(&agent, 3_000), agent_state::ALIVE);
        agent.attached = false;
        assert_eq!(
            state(&agent, 3_000),
            0,
            "without its uplink's program no clone may be sent"
        );
    }

    #[test]
    fn the_log_says_once_whether_it_answers() {
        let mut agent = agent();
        let start = Instant::now();
        let mut check = |ms, echoed, asked: Option<u64>, expected| {
            let now = start + Duration::from_millis(ms);
            if echoed {
                agent.last_echo = Some(now);
            }
            agent.asked = asked.map(|ms| start + Duration::from_millis(ms));
            assert_eq!(agent.news(now), expected, "after {ms} ms");
        };
        check(0, false, Some(0), None);
        check(1_500, false, Some(0), Some(false));
        check(2_000, false, Some(0), None);
        check(3_000, true, None, Some(true));
        check(4_000, true, Some(4_000), None);
        check(9_000, false, Some(5_000), Some(false));
    }

    #[test]
    fn a_dropping_uplink_pauses_the_mirror() {
        let mut agent = agent();
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
        let policy = agent().policy(Instant::now()).unwrap();
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
}
