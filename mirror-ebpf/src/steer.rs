//! Connections of services that have a canary: who serves them, and what each version does.
//!
//! A new connection that is chosen for a canary on this host is handed to the canary's listener, by
//! the kernel's own means: no address is translated, and an established connection needs nothing. For
//! one on another host see [`crate::translate`].

use mirror_common::flow::{Endpoint, Flow};
use mirror_common::measure::{Connection, may_end_handshake, state};
use mirror_common::packet::{Packet, RST};
use mirror_common::policy::{self, Service, WHOLE, here, opens};
use mirror_common::steer::{Choice, Readiness, Socket, Steering, flag};
use mirror_common::translate::Translation;
use mirror_common::tunnel::{Arm, Direction};

use crate::frame::{now_ns, spend};
use crate::hand::Hand;
use crate::mirror::Hook;
use crate::slot::Slot;
use crate::{arrivals, health, maps, sockets, tally, translate};

/// The loopback's number, in every network namespace.
const LOOPBACK: u32 = 1;

/// Where a packet goes on to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Onward {
    /// Where the host sends it.
    Host,
    /// To the canary's host, as the connection that [`Slot::away`] says.
    Away,
    /// To the client: an answer of a canary on another host.
    Back,
    /// Nowhere: a canary that refuses a connection which stable can still have.
    Nowhere,
    /// On, and it was counted when it came in.
    Counted,
}

/// What became of a packet of a service.
#[derive(Clone, Copy)]
pub struct Followed {
    /// Whose it is.
    pub arm: Arm,
    /// Where it goes.
    pub onward: Onward,
}

impl Followed {
    /// It is stable's.
    pub const STABLE: Self = Self {
        arm: Arm::Stable,
        onward: Onward::Host,
    };
}

/// Follows a service's TCP packet: gives it to the canary's listener where it is the canary's,
/// counts it for its version, and says which that is.
///
/// Where [`Hand::LOCAL`] is not so, nothing is done with packets that stay on this host, and there
/// is no result: they will be seen again.
#[inline(always)]
pub fn follow<H: Hand>(
    hand: &H,
    hook: Hook,
    slot: &mut Slot,
    packet: &Packet,
    direction: Direction,
    service: &Service,
) -> Option<Followed> {
    let steering = maps::STEERING.get(service.index)?;
    if steering.flags & flag::PRESENT == 0 {
        return Case::<H>::PASSED_OVER;
    }
    let Slot {
        flow,
        connection,
        away,
        translation,
        ..
    } = slot;
    let case = Case {
        hand,
        hook,
        packet,
        direction,
        flow,
        service,
        steering,
    };
    let own = case.own();
    // A SYN for a connection that there is begins no other: the kernel answers it by itself.
    let begins = case.is_syn() && !matches!(own, Socket::Connected | Socket::Requested);
    let mut known = false;
    if let Some(connection) = maps::CONNECTIONS.get_ptr_mut(case.flow) {
        // SAFETY: the two directions of a connection may be seen on two CPUs at once. They write
        // different fields, but for the state's bits, of which one may get lost: a sample less.
        let connection = unsafe { &mut *connection };
        if !begins
            || connection.is_repeated_by(packet) && !gives_up(connection)
            || holds(connection)
        {
            return case.go_on(connection, away, now_ns);
        }
        known = true;
    }
    let now = now_ns();
    if begins {
        let within = case.is_within(now);
        let choice = case.choose(own, within, now);
        let choice = case.translated(choice, away, translation, now);
        if !H::LOCAL && away.server.port() == 0 {
            return None;
        }
        tally::choice(service, choice);
        if !within {
            // Nor are the ports' last connection's packets to be taken for this one's.
            if known {
                let _ = maps::CONNECTIONS.remove(case.flow);
            }
            return Some(Followed::STABLE);
        }
        case.pay(now);
        *connection = Connection::opened(packet, service.index, choice.arm(), now);
        connection.away = *away;
        if choice == Choice::NoStable {
            connection.state |= state::SOLE;
        }
        if connection.is_away() {
            health::note_asked(service.index, now);
        } else if choice.arm() == Arm::Canary {
            arrivals::note_given(service.index);
        }
    } else if case.is_syn() || !H::LOCAL {
        return Case::<H>::PASSED_OVER;
    } else {
        match case.join(now) {
            Some(joined) => *connection = joined,
            None => {
                tally::stray_reset(packet, direction, service);
                return Some(Followed::STABLE);
            }
        }
    }
    let followed = case.go_on(connection, away, || now);
    let connection: &Connection = connection;
    let _ = maps::CONNECTIONS.insert(case.flow, connection, 0);
    followed
}

/// A packet of a service with a canary, and what it belongs to.
struct Case<'a, H> {
    hand: &'a H,
    hook: Hook,
    packet: &'a Packet,
    direction: Direction,
    flow: &'a Flow,
    service: &'a Service,
    steering: &'a Steering,
}

impl<H: Hand> Case<'_, H> {
    /// What becomes of packets that stay where they were going.
    const PASSED_OVER: Option<Followed> = if H::LOCAL {
        Some(Followed::STABLE)
    } else {
        None
    };

    /// Whether it can be given to a canary.
    #[inline(always)]
    fn is_arriving(&self) -> bool {
        self.hook == Hook::Ingress && self.direction == Direction::Request
    }

    #[inline(always)]
    fn is_syn(&self) -> bool {
        opens(self.packet) && self.direction == Direction::Request
    }

    /// What the kernel has for a SYN where it was dialled. Ports that wait out an earlier connection
    /// are no obstacle where nobody listens: the kernel has the client clear them away, who then asks
    /// again.
    #[inline(always)]
    fn own(&self) -> Socket {
        if !self.is_syn() || !self.is_arriving() {
            return Socket::None;
        }
        // What stands behind an address of another host is not known here.
        if self.service.here == here::ELSEWHERE {
            return Socket::Listening;
        }
        let own = match sockets::find(self.hand, self.packet, &self.packet.destination) {
            Socket::TimeWait if sockets::listener(self.hand, self.packet) == Socket::None => {
                Socket::None
            }
            own => own,
        };
        // Only who was there can be gone.
        match own {
            Socket::None if self.service.here != here::LISTENS => Socket::Listening,
            own => own,
        }
    }

    /// A packet of a connection that is known.
    #[inline(always)]
    fn go_on(
        &self,
        connection: &mut Connection,
        away: &mut Flow,
        now: impl Fn() -> u64,
    ) -> Option<Followed> {
        let mut onward = Onward::Host;
        if connection.is_away() {
            match (self.hook, self.direction) {
                (Hook::Ingress, Direction::Request) => {
                    *away = connection.away;
                    onward = Onward::Away;
                }
                (Hook::Ingress, Direction::Response) if is_refusal(self.packet, connection) => {
                    health::note_refused(connection.service, now());
                    onward = Onward::Nowhere;
                }
                (Hook::Ingress, Direction::Response) => {
                    connection.renew(self.packet);
                    onward = Onward::Back;
                }
                (Hook::Egress, _) => {
                    return Some(Followed {
                        arm: connection.arm(),
                        onward: Onward::Counted,
                    });
                }
            }
        } else if !H::LOCAL {
            return None;
        } else if self.is_arriving() {
            match connection.arm() {
                Arm::Canary => self.give(connection),
                Arm::Stable => self.note_delivery(connection),
            }
        }
        let arm = self.measure(connection, now);
        Some(Followed { arm, onward })
    }

    /// Chooses for a SYN.
    #[inline(always)]
    fn choose(&self, own: Socket, within: bool, now: u64) -> Choice {
        if !self.steering.is_on() {
            return Choice::Stable;
        }
        // Seen only as it leaves, it can be given to nobody any more.
        if !self.is_arriving() {
            let wanted = policy::chosen(self.steering.hash(self.flow), self.steering.threshold);
            return if wanted {
                Choice::OutOfReach
            } else {
                Choice::Stable
            };
        }
        let tap = maps::TAP.get(0).copied().unwrap_or_default();
        self.steering.choose(
            self.steering.hash(self.flow),
            self.steering.is_stale(tap.heartbeat_ns, now),
            !within,
            own,
            || self.readiness(now),
        )
    }

    /// Whether the canary can be given the connection that the packet opens.
    #[inline(always)]
    fn readiness(&self, now: u64) -> Readiness {
        if self.steering.is_away() {
            if !self.is_within_reach() {
                Readiness::OutOfReach
            } else if health::answers(self.service.index, now) {
                Readiness::Ready
            } else {
                Readiness::NoAnswer
            }
        } else if !self.is_delivered_here() {
            Readiness::OutOfReach
        } else if !self.canary_listens() {
            Readiness::NoListener
        } else if arrivals::may_be_given(self.service.index) {
            Readiness::Ready
        } else {
            Readiness::OutOfReach
        }
    }

    /// Whether this host delivers what is dialled. Where nobody was ever seen to listen it may lead packets
    /// on (DNAT), and drops those that were given to a socket; unless stable has been retired.
    #[inline(always)]
    fn is_delivered_here(&self) -> bool {
        match self.service.here {
            here::ELSEWHERE => false,
            here::LISTENS => true,
            _ => self.steering.threshold == WHOLE,
        }
    }

    /// Whether the packet can be translated.
    #[inline(always)]
    fn is_within_reach(&self) -> bool {
        let same_family = self.steering.canary.address.is_ipv4() != self.packet.ipv6;
        let plain = !self.hand.is_tagged() && self.packet.network_offset <= 14;
        same_family && plain && self.hand.interface() != LOOPBACK && self.packet.hop_limit > 1
    }

    #[inline(always)]
    fn canary_listens(&self) -> bool {
        let socket = sockets::find(self.hand, self.packet, &self.canary());
        matches!(socket, Socket::Listening)
    }

    /// The canary's listener as a packet of this family reaches it: one that listens on both families
    /// is found by the address that was dialled.
    #[inline(always)]
    fn canary(&self) -> Endpoint {
        let (canary, dialled) = (&self.steering.canary, &self.packet.destination);
        if canary.address.is_ipv4() == dialled.address.is_ipv4() {
            return *canary;
        }
        Endpoint::new(dialled.address, canary.port())
    }

    /// Opens the way for a connection of a canary on another host. `away` is none for all others.
    #[inline(always)]
    fn translated(
        &self,
        choice: Choice,
        away: &mut Flow,
        translation: &mut Translation,
        now: u64,
    ) -> Choice {
        *away = Flow::NONE;
        if choice.arm() == Arm::Stable || !self.steering.is_away() {
            return choice;
        }
        *translation = Translation {
            origin: *self.flow,
            seen_ns: now,
            ifindex: self.hand.interface(),
            state: 0,
            macs: self.hand.sender(self.packet),
            pad: 0,
        };
        let Steering {
            way, canary, salt, ..
        } = self.steering;
        // Not the bits that the share is compared with: the ports would be the same few.
        if translate::open(away, translation, way, *canary, self.flow.hash(*salt)) {
            choice
        } else {
            Choice::NoPort
        }
    }

    /// Meets a connection that nobody remembers: the last acknowledgement of a handshake by SYN
    /// cookie, or one that is older than the canary, or than the table's memory.
    #[inline(always)]
    fn join(&self, now: u64) -> Option<Connection> {
        let service = self.service;
        if self.is_arriving() && self.ends_handshake_of_canary(now) {
            tally::choice(service, Choice::Cookie);
            return Some(Connection::joined(service.index, Arm::Canary));
        }
        // Whatever carries no bytes tells nothing of a connection that is met midway.
        if self.packet.payload_length == 0 {
            return None;
        }
        if let Some(counters) = tally::of(service.index, Arm::Stable) {
            counters.joined += 1;
        }
        Some(Connection::joined(service.index, Arm::Stable))
    }

    #[inline(always)]
    fn ends_handshake_of_canary(&self, now: u64) -> bool {
        let Self {
            steering, packet, ..
        } = self;
        steering.is_on()
            && !steering.is_away()
            && self.service.here != here::ELSEWHERE
            && may_end_handshake(packet)
            && !self.is_crowded(now)
            && steering.answers_cookie(steering.hash(self.flow))
            && matches!(
                sockets::find(self.hand, packet, &packet.destination),
                Socket::None | Socket::Listening
            )
            && self.canary_listens()
    }

    /// Hands a packet of the canary's to the canary's listener, unless the kernel already has a
    /// socket for it. Counts, once, who has the connection when its first request comes: the canary by
    /// such a socket, or somebody to whom the host has led it on.
    #[inline(always)]
    fn give(&self, connection: &mut Connection) {
        if connection.state & state::SETTLED != 0 || self.steering.is_away() {
            return;
        }
        match sockets::find(self.hand, self.packet, &self.packet.destination) {
            Socket::Connected => {
                connection.state |= state::SETTLED;
                tally::delivered(connection.service, Arm::Canary);
                arrivals::note_arrived(connection.service);
            }
            Socket::Requested => arrivals::note_arrived(connection.service),
            Socket::TimeWait => {}
            Socket::None | Socket::Listening => {
                self.note_unmet(connection);
                self.hand.give(self.packet, &self.canary());
            }
        }
    }

    /// Counts, once, whether this host has a socket for a connection of stable's once a request has come: where it leads those on to somebody else, it would lead on the canary's, too.
    #[inline(always)]
    fn note_delivery(&self, connection: &mut Connection) {
        let is_known = connection.state & (state::SETTLED | state::STRAYED) != 0;
        let is_ours = self.service.here != here::ELSEWHERE && connection.opened_ns != 0;
        let has_begun = self.packet.payload_length > 0 || connection.state & state::UNMET != 0;
        if is_known || !is_ours || !has_begun {
            return;
        }
        match sockets::find(self.hand, self.packet, &self.packet.destination) {
            Socket::Connected => {
                connection.state |= state::SETTLED;
                tally::delivered(connection.service, Arm::Stable);
            }
            Socket::None | Socket::Listening => self.note_unmet(connection),
            Socket::Requested | Socket::TimeWait => {}
        }
    }

    /// Counts, once, a connection that was answered and has no socket of this host. The first request may
    /// still make one, by a SYN cookie: what comes after it tells.
    #[inline(always)]
    fn note_unmet(&self, connection: &mut Connection) {
        if connection.is_waiting() || connection.state & state::STRAYED != 0 {
            return;
        }
        if connection.state & state::UNMET != 0 {
            connection.state |= state::STRAYED;
            tally::strayed(connection.service, connection.arm());
        } else if self.packet.payload_length > 0 {
            connection.state |= state::UNMET;
        }
    }

    /// The limit on new connections, which keeps a flood of SYNs from pushing the ones that live out
    /// of the table.
    #[inline(always)]
    fn is_within(&self, now: u64) -> bool {
        maps::OPENING
            .get(self.service.index)
            .is_none_or(|due| policy::within(*due, now, self.steering.burst_ns))
    }

    #[inline(always)]
    fn pay(&self, now: u64) {
        if let Some(due) = maps::OPENING.get_ptr_mut(self.service.index) {
            spend(due, now, self.steering.connection_cost_ns);
        }
    }

    /// Whether SYNs may have come over the limit a moment ago: whose handshake nobody remembers is
    /// stable's then.
    #[inline(always)]
    fn is_crowded(&self, now: u64) -> bool {
        let due = maps::OPENING.get(self.service.index).copied();
        !policy::within(due.unwrap_or_default(), now, self.steering.burst_ns / 2)
    }

    /// Takes the packet into its connection, and counts what it told.
    #[inline(always)]
    fn measure(&self, connection: &mut Connection, now: impl Fn() -> u64) -> Arm {
        let (packet, direction) = (self.packet, self.direction);
        let arm = connection.arm();
        let seen = connection.observe(packet, direction, &now);
        if let Some(counters) = tally::of(connection.service, arm) {
            let is_on_trial = connection.is_since(self.steering.trial_ns);
            counters.count(packet, direction, &seen, is_on_trial);
        }
        if connection.is_away() {
            if seen.answered {
                health::note_answered(connection.service);
                tally::delivered(connection.service, Arm::Canary);
            }
            if seen.closed {
                translate::close(&connection.away, packet.flags & RST != 0, now());
            }
        }
        tally::sample(connection.service, arm, &seen);
        arm
    }
}

/// Whether the canary refuses a connection that stable can have when the client asks again.
#[inline(always)]
fn is_refusal(packet: &Packet, connection: &Connection) -> bool {
    packet.flags & RST != 0 && connection.is_waiting() && connection.state & state::SOLE == 0
}

/// Whether a SYN with another number is for the canary to judge, since its host has the connection (RFC
/// 5961, section 4): its own end is asked, and a client that has begun anew resets it. Until then the way
/// stays, or anybody could end the connection by one packet.
#[inline(always)]
fn holds(connection: &Connection) -> bool {
    connection.is_away() && connection.is_open() && health::answers(connection.service, now_ns())
}

/// Whether a SYN that comes again should be chosen for anew.
#[inline(always)]
fn gives_up(connection: &Connection) -> bool {
    connection.is_away()
        && connection.is_waiting()
        && connection.state & state::SOLE == 0
        && !health::answers(connection.service, now_ns())
}
