//! Connections of services that have a canary: who serves them, and what each version does.
//!
//! A new connection that is chosen for a canary on this host is handed to the canary's listener, by
//! the kernel's own means: no address is translated, and an established connection needs nothing. For
//! one on another host see [`crate::translate`].

use core::ops::ControlFlow;

use mirror_common::checksum;
use mirror_common::connection::{Connection, Live, Said, Seen, side, state};
use mirror_common::flow::{Endpoint, Flow};
use mirror_common::measure::{fails, may_end_handshake};
use mirror_common::packet::{FIN, Packet, RST, SYN};
use mirror_common::policy::{self, Service, WHOLE, here, opens};
use mirror_common::steer::{Choice, Readiness, Socket, Steering, flag};
use mirror_common::translate::{HANDSHAKE_NS, Last, Translation, phase};
use mirror_common::tunnel::{Arm, Direction};

use crate::frame::Skb;
use crate::hand::{Hand, Hook, Served};
use crate::machine::{Shared, coarse_now_ns, now_ns};
use crate::slot::{Action, Followed, Slot};
use crate::translate::Opening;
use crate::{arrivals, health, maps, sockets, tally, translate};

/// The loopback's number, in every network namespace.
const LOOPBACK: u32 = 1;

/// Follows a service's TCP packet: counts it for its version, and says which that is, and what is to be
/// done with it.
///
/// Where [`Hand::LOCAL`] is not so, nothing is done with packets that stay on this host, and there
/// is no result: they will be seen again.
#[inline(always)]
pub(crate) fn follow<H: Hand>(
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
    heed(hand, hook, packet, slot);
    let Slot {
        flow,
        connection,
        away,
        translation,
        former,
        via,
        said,
        seen,
        answer,
        ..
    } = slot;
    let case = Case {
        hand,
        hook,
        packet,
        direction,
        flow,
        via,
        said,
        service,
        steering,
    };
    let own = case.own();
    // A SYN for a connection that there is begins no other: the kernel answers it by itself.
    let begins = case.is_syn() && !matches!(own, Socket::Connected | Socket::Requested);
    let mut known: *mut Connection = core::ptr::null_mut();
    if steering.flags & flag::TRANSLATED != 0
        && let Some(connection) = maps::TRANSLATED.get_ptr_mut(case.flow)
    {
        // SAFETY: a map's value, which is one as long as this runs.
        let connection = unsafe { Live::at(connection) };
        if hook == Hook::Egress {
            return Some(Followed {
                arm: connection.get().arm(),
                action: Action::Counted,
            });
        }
        if !begins || case.is_of(&connection.get()) {
            return case.go_away(connection, away, seen);
        }
        let _ = maps::TRANSLATED.remove(case.flow);
    } else if answer.ifindex != 0 {
        // A canary's, of a connection that is over: it tells of nobody else's.
        return Some(Followed::STABLE);
    } else if let Some(connection) = maps::CONNECTIONS.get_ptr_mut(case.flow) {
        known = connection;
    }
    let mut is_new = false;
    // SAFETY: as above.
    if known.is_null() || begins && !case.is_theirs(&unsafe { Live::at(known) }.get()) {
        let formed = Formed {
            connection,
            away,
            translation,
            former,
        };
        if let ControlFlow::Break(followed) = case.meet(begins, own, formed, !known.is_null()) {
            return followed;
        }
        let Some(connection) = maps::CONNECTIONS.get_ptr_mut(case.flow) else {
            return Some(Followed::STABLE);
        };
        known = connection;
        is_new = begins;
    }
    // SAFETY: as above.
    case.stay(unsafe { Live::at(known) }, is_new, seen)
}

/// Reads what else stands in a packet, of those whose options or whose checksum matter.
#[inline(always)]
fn heed<H: Hand>(hand: &H, hook: Hook, packet: &Packet, slot: &mut Slot) {
    if packet.flags & (SYN | FIN | RST) == 0 {
        return;
    }
    if hook == Hook::Egress {
        slot.said = Said::OWN;
        return;
    }
    slot.said = Said::default();
    if !hand.load_header(packet, &mut slot.header) {
        return;
    }
    if packet.flags & RST == 0 {
        slot.said.read(&slot.header);
    } else {
        slot.said.sound = checksum::is_of_segment(&slot.header, packet).into();
    }
}

/// Where what is new is formed.
struct Formed<'a> {
    connection: &'a mut Connection,
    away: &'a mut Flow,
    translation: &'a mut Translation,
    former: &'a mut Translation,
}

/// A packet of a service with a canary, and what it belongs to.
struct Case<'a, H> {
    hand: &'a H,
    hook: Hook,
    packet: &'a Packet,
    direction: Direction,
    flow: &'a Flow,
    /// By which connection of a canary's an answer came.
    via: &'a Flow,
    said: &'a Said,
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

    /// Meets a connection that nobody remembers, or a SYN that opens one, and writes it down. What it breaks
    /// with is the result: there is nothing to be measured.
    #[inline(always)]
    fn meet(
        &self,
        begins: bool,
        own: Socket,
        formed: Formed<'_>,
        is_known: bool,
    ) -> ControlFlow<Option<Followed>> {
        use ControlFlow::{Break, Continue};
        let now = now_ns();
        if begins {
            let within = self.is_within(now);
            let choice = self.choose(own, within, now);
            formed.connection.begin(
                self.packet,
                self.service.index,
                choice.arm(),
                now,
                self.said,
            );
            if choice == Choice::NoStable {
                formed.connection.state |= state::SOLE;
            }
            let choice = self.translated(
                choice,
                &mut *formed.connection,
                formed.away,
                formed.translation,
                formed.former,
                now,
            );
            let connection: &Connection = formed.connection;
            if !H::LOCAL && !connection.is_away() {
                return Break(None);
            }
            tally::choice(self.service, self.flow, choice);
            if is_known && (!within || connection.is_away()) {
                // Nor are the ports' last connection's packets to be taken for this one's.
                let _ = maps::CONNECTIONS.remove(self.flow);
            }
            if !within {
                return Break(Some(Followed::STABLE));
            }
            self.pay(now);
            if connection.is_away() {
                health::note_asked(self.service.index, now);
                return Break(Some(self.count(connection, &Seen::default(), Action::Away)));
            }
            if choice.arm() == Arm::Canary {
                arrivals::note_given(self.service.index);
            }
        } else if self.is_syn() || !H::LOCAL {
            return Break(Case::<H>::PASSED_OVER);
        } else {
            match self.join(now) {
                Some(arm) => formed.connection.join(self.service.index, arm),
                None => {
                    tally::stray_reset(self.packet, self.direction, self.service);
                    return Break(Some(Followed::STABLE));
                }
            }
        }
        let connection: &Connection = formed.connection;
        let _ = maps::CONNECTIONS.insert(self.flow, connection, 0);
        Continue(())
    }

    /// Whether a SYN belongs to a connection that somebody on this host, or behind it, has. Of another host's
    /// sockets nothing else is known.
    #[inline(always)]
    fn is_theirs(&self, connection: &Connection) -> bool {
        connection.is_repeated_by(self.packet)
            || self.service.here == here::ELSEWHERE && connection.is_open()
    }

    /// Whether a SYN belongs to a connection of a canary's on another host. With its own number, unless that
    /// does not answer; with another one it is for the canary's host to judge, since that has the connection
    /// (RFC 5961, section 4): its end asks the client, who resets what it has begun anew. Until then the way
    /// stays, or anybody could end the connection by one packet. A canary that has long been silent is not
    /// asked any more.
    #[inline(always)]
    fn is_of(&self, connection: &Connection) -> bool {
        let now = now_ns();
        let silent_ns = now.saturating_sub(connection.seen_ns);
        let answers = health::answers(connection.service, now);
        if connection.is_closed() {
            false
        } else if connection.is_open() {
            answers || silent_ns < SILENCE_NS
        } else if connection.is_repeated_by(self.packet) {
            answers || !connection.is_waiting() || connection.state & state::SOLE != 0
        } else {
            answers && silent_ns < HANDSHAKE_NS
        }
    }

    /// A packet of a connection of a canary's on another host, where it comes in.
    #[inline(always)]
    fn go_away(&self, connection: Live<'_>, away: &mut Flow, seen: &mut Seen) -> Option<Followed> {
        let known = connection.get();
        *away = known.away;
        let away: &Flow = away;
        let mut action = Action::Back;
        if self.direction == Direction::Request {
            action = Action::Away;
        } else if *away != *self.via {
            // Late, from where an earlier connection of the same client's went.
            return Case::<H>::PASSED_OVER;
        } else if is_refusal(self.packet, connection) && self.said.sound != 0 {
            if known.state & state::REUSED == 0 {
                health::note_refused(known.service, now_ns());
            }
            action = Action::Refuse;
        }
        *seen = connection.observe(self.packet, self.direction, now_ns, self.said);
        let seen: &Seen = core::hint::black_box(seen);
        self.keep(connection, away, seen);
        Some(self.count(&connection.get(), seen, action))
    }

    /// A packet of a connection that stays on this host. The SYN that a new one was made of has been taken in:
    /// once more it would be one that came again.
    #[inline(always)]
    fn stay(&self, connection: Live<'_>, is_new: bool, seen: &mut Seen) -> Option<Followed> {
        if !H::LOCAL {
            return None;
        }
        let mut action = Action::Host;
        if self.is_arriving() {
            match connection.get().arm() {
                Arm::Canary if self.is_to_be_given(connection) => action = Action::Give,
                Arm::Canary => {}
                Arm::Stable => self.note_delivery(connection),
            }
        }
        *seen = Seen::default();
        if !is_new && !self.is_pretended() {
            *seen = connection.observe(self.packet, self.direction, now_ns, self.said);
        }
        let seen: &Seen = core::hint::black_box(seen);
        Some(self.count(&connection.get(), seen, action))
    }

    /// Counts what a packet told of its connection's version.
    #[inline(always)]
    fn count(&self, connection: &Connection, seen: &Seen, action: Action) -> Followed {
        let arm = connection.arm();
        if let Some(counters) = tally::of(connection.service, arm) {
            let is_on_trial = connection.is_since(self.steering.trial_ns);
            counters.count(self.packet, self.direction, seen, is_on_trial);
            if fails(self.direction, seen, is_on_trial) {
                tally::client(self.service, self.flow, arm, true);
            }
        }
        tally::sample(connection.service, arm, seen);
        Followed { arm, action }
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
        let socket = sockets::find(
            self.hand,
            self.packet,
            &listener(self.steering, self.packet),
        );
        matches!(socket, Socket::Listening)
    }

    /// Opens the way for a connection of a canary on another host.
    #[inline(always)]
    fn translated(
        &self,
        choice: Choice,
        connection: &mut Connection,
        away: &mut Flow,
        translation: &mut Translation,
        former: &mut Translation,
        now: u64,
    ) -> Choice {
        if choice.arm() == Arm::Stable || !self.steering.is_away() {
            return choice;
        }
        *translation = Translation {
            origin: *self.flow,
            since_ns: now,
            ifindex: self.hand.interface(),
            phase: phase::WAITING,
            macs: self.hand.sender(self.packet),
            pad: 0,
            last: Last::of(self.packet.sequence, self.said),
        };
        let Steering {
            way, canary, salt, ..
        } = self.steering;
        let opening = Opening {
            translation,
            connection: &mut *connection,
            way,
            canary,
            // Not the bits that the share is compared with: the ports would be the same few.
            hash: self.flow.hash(*salt),
            client: self.client_hash(salt[0]),
        };
        let opened = opening.write(away, former);
        if opened == Choice::Canary {
            return choice;
        }
        connection.away = Flow::NONE;
        connection.state = 0;
        opened
    }

    /// A number for the client's address; that others share it does no harm.
    #[inline(always)]
    fn client_hash(&self, salt: u64) -> u32 {
        let [a, b] = self.flow.client.address.lanes();
        ((a ^ b ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
    }

    /// Whose a connection is that nobody remembers: the last acknowledgement of a handshake by SYN
    /// cookie, or one that is older than the canary, or than the table's memory.
    #[inline(always)]
    fn join(&self, now: u64) -> Option<Arm> {
        let service = self.service;
        if self.is_arriving() && self.ends_handshake_of_canary(now) {
            tally::choice(service, self.flow, Choice::Cookie);
            return Some(Arm::Canary);
        }
        // Whatever carries no bytes tells nothing of a connection that is met midway.
        if self.packet.payload_length == 0 {
            return None;
        }
        if let Some(counters) = tally::of(service.index, Arm::Stable) {
            counters.joined += 1;
        }
        Some(Arm::Stable)
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

    /// Whether a packet of the canary's is handed to the canary's listener: unless the kernel already has a
    /// socket for it. Counts, once, who has the connection when its first request comes: the canary by
    /// such a socket, or somebody to whom the host has led it on.
    #[inline(always)]
    fn is_to_be_given(&self, connection: Live<'_>) -> bool {
        let known = connection.get();
        if known.state & state::SETTLED != 0 || self.steering.is_away() {
            return false;
        }
        match sockets::find(self.hand, self.packet, &self.packet.destination) {
            Socket::Connected => {
                connection.mark(state::SETTLED);
                tally::delivered(known.service, Arm::Canary);
                arrivals::note_arrived(known.service);
            }
            Socket::Requested => arrivals::note_arrived(known.service),
            Socket::TimeWait => {}
            Socket::None | Socket::Listening => {
                self.note_unmet(connection);
                return true;
            }
        }
        false
    }

    /// Counts, once, whether this host has a socket for a connection of stable's once a request has come: where it leads those on to somebody else, it would lead on the canary's, too.
    #[inline(always)]
    fn note_delivery(&self, connection: Live<'_>) {
        let known = connection.get();
        let is_known = known.state & (state::SETTLED | state::STRAYED) != 0;
        let is_ours = self.service.here != here::ELSEWHERE && known.opened_ns != 0;
        let has_begun = self.packet.payload_length > 0 || known.state & state::UNMET != 0;
        if is_known || !is_ours || !has_begun {
            return;
        }
        match sockets::find(self.hand, self.packet, &self.packet.destination) {
            Socket::Connected => {
                connection.mark(state::SETTLED);
                tally::delivered(known.service, Arm::Stable);
            }
            Socket::None | Socket::Listening => self.note_unmet(connection),
            Socket::Requested | Socket::TimeWait => {}
        }
    }

    /// Counts, once, a connection that was answered and has no socket of this host. The first request may
    /// still make one, by a SYN cookie: what comes after it tells.
    #[inline(always)]
    fn note_unmet(&self, connection: Live<'_>) {
        let known = connection.get();
        if known.is_waiting() || known.state & state::STRAYED != 0 {
            return;
        }
        if known.state & state::UNMET != 0 {
            connection.mark(state::STRAYED);
            tally::strayed(known.service, known.arm());
        } else if self.packet.payload_length > 0 {
            connection.mark(state::UNMET);
        }
    }

    /// The limit on new connections, which keeps a flood of SYNs from pushing the ones that live out
    /// of the table.
    #[inline(always)]
    fn is_within(&self, now: u64) -> bool {
        self.due_ns()
            .is_none_or(|due| policy::within(due.get(), now, self.steering.burst_ns))
    }

    #[inline(always)]
    fn pay(&self, now: u64) {
        if let Some(due) = self.due_ns() {
            due.spend(now, self.steering.connection_cost_ns);
        }
    }

    /// Whether SYNs may have come over the limit a moment ago: whose handshake nobody remembers is
    /// stable's then.
    #[inline(always)]
    fn is_crowded(&self, now: u64) -> bool {
        let due_ns = self.due_ns().map_or(0, Shared::get);
        !policy::within(due_ns, now, self.steering.burst_ns / 2)
    }

    /// When the new connections so far will have been earned.
    #[inline(always)]
    fn due_ns(&self) -> Option<Shared<u64>> {
        let due_ns = maps::OPENING.get_ptr_mut(self.service.index)?;
        // SAFETY: a map's value.
        Some(unsafe { Shared::new(due_ns) })
    }

    /// Keeps the translation of a connection as far as that is.
    #[inline(always)]
    fn keep(&self, connection: Live<'_>, away: &Flow, seen: &Seen) {
        let packet = self.packet;
        let known = connection.get();
        let of_client = self.direction == Direction::Request;
        let asked_again = packet.flags & SYN != 0
            && of_client
            && known.is_repeated_by(packet)
            && known.sides[0] & side::ESTABLISHED == 0;
        if seen.taken || asked_again {
            connection.set_seen(coarse_now_ns());
        }
        if seen.answered {
            health::note_answered(known.service);
            tally::delivered(known.service, Arm::Canary);
        }
        // A client's last FIN says more than the one before.
        let ends_again = packet.flags & FIN != 0
            && seen.taken
            && of_client
            && known.sides[0] & side::RELEASED == 0;
        let phase = if seen.released || seen.closed && packet.flags & RST != 0 {
            phase::FREE
        } else if known.has_finished() && (seen.closed || ends_again) {
            phase::CLOSED
        } else if seen.established {
            phase::OPEN
        } else if asked_again {
            phase::WAITING
        } else {
            return;
        };
        // What the client said last is known by its own packet.
        let last = match of_client {
            true => Last::of(known.next[0], self.said),
            false => Last::UNKNOWN,
        };
        translate::enter((self.flow, away), phase, &last, now_ns());
    }

    /// Whether a packet is only said to be the server's: who has it listen does not get its packets by the
    /// wire.
    #[inline(always)]
    fn is_pretended(&self) -> bool {
        self.hook == Hook::Ingress
            && self.direction == Direction::Response
            && self.service.here == here::LISTENS
            && self.hand.interface() != LOOPBACK
    }
}

/// Hands a packet to the canary's listener on this host, if there still is one.
#[inline(always)]
pub(crate) fn give(skb: &Skb, served: &Served<'_>) {
    if let Some(steering) = maps::STEERING.get(served.service.index) {
        sockets::give(skb, served.packet, &listener(steering, served.packet));
    }
}

/// The canary's listener as a packet of this family reaches it: one that listens on both families
/// is found by the address that was dialled.
#[inline(always)]
fn listener(steering: &Steering, packet: &Packet) -> Endpoint {
    let (canary, dialled) = (&steering.canary, &packet.destination);
    if canary.address.is_ipv4() == dialled.address.is_ipv4() {
        return *canary;
    }
    Endpoint::new(dialled.address, canary.port())
}

/// So long after its last packet a connection is not held for a canary that does not answer.
const SILENCE_NS: u64 = 60_000_000_000;

/// Whether the canary refuses a connection that stable can have when the client asks again.
#[inline(always)]
fn is_refusal(packet: &Packet, connection: Live<'_>) -> bool {
    let known = connection.get();
    packet.flags & RST != 0
        && known.is_waiting()
        && known.state & state::SOLE == 0
        && connection.would_end(packet, Direction::Response)
}
