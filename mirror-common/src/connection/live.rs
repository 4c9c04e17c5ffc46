//! A connection in a map, as packets move it.

use core::marker::PhantomData;
use core::num::NonZeroU64;

use super::{Connection, Said, Seen, UNTOLD_SCALES, UNTOLD_WINDOW, side, state};
use crate::packet::{ACK, FIN, Packet, RST, SYN};
use crate::policy::opens;
use crate::tunnel::Direction;

/// Old segments may be so far behind, whatever the window: as Linux' connection tracking has it.
const LEAST_WINDOW: u32 = 66_000;

/// Whether `a` is behind `b` (RFC 9293, 3.4).
#[inline(always)]
const fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

#[inline(always)]
const fn larger(a: u32, b: u32) -> u32 {
    if a > b { a } else { b }
}

/// A connection in a map, which packets of both directions touch at the same time, on two CPUs, and the daemon
/// reads. There is never a reference to it: each word is read and written by itself, most of them by packets of
/// one direction alone.
#[derive(Clone, Copy)]
pub struct Live<'a>(*mut Connection, PhantomData<&'a mut Connection>);

/// A word of such a connection.
#[derive(Clone, Copy)]
struct Word(*mut u32);

impl Word {
    #[inline(always)]
    fn get(self) -> u32 {
        // SAFETY: an aligned word of a connection that outlives `Live`; others read and write it whole, as this does.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn set(self, value: u32) {
        // SAFETY: as in `get`.
        unsafe { self.0.write_volatile(value) }
    }

    #[inline(always)]
    fn mark(self, bits: u32) {
        self.set(self.get() | bits);
    }
}

/// Declares the words that packets move: of each side, and of both.
macro_rules! words_of {
    ($($side:ident)+; $($word:ident)+) => {
        $(#[inline(always)]
        fn $side(self, side: usize) -> Word {
            // SAFETY: a place in the connection that this points to; there are two sides.
            Word(unsafe { (&raw mut (*self.0).$side).cast::<u32>().add(side & 1) })
        })+
        $(#[inline(always)]
        fn $word(self) -> Word {
            // SAFETY: a place in the connection that this points to.
            Word(unsafe { &raw mut (*self.0).$word })
        })+
    };
}

impl<'a> Live<'a> {
    words_of!(next acked window end pending sides; initial scales state);

    /// One that nobody else touches.
    pub fn of(connection: &'a mut Connection) -> Self {
        Self(connection, PhantomData)
    }

    /// One in a map.
    ///
    /// # Safety
    /// `connection` is valid for as long as this is used, and nobody has a reference to it.
    #[inline(always)]
    pub const unsafe fn at(connection: *mut Connection) -> Self {
        Self(connection, PhantomData)
    }

    /// What it says now. Of what others write meanwhile there may be some.
    #[inline(always)]
    pub fn get(self) -> Connection {
        // SAFETY: as of `at`. Not volatile, so that only those words are read of which something is made. By a side
        // that is not a constant nothing is to be asked of the copy: it would have to be made, on the stack.
        unsafe { self.0.read() }
    }

    /// Adds to the bits of [`state`].
    #[inline(always)]
    pub fn mark(self, bits: u32) {
        self.state().mark(bits);
    }

    /// A packet of it was taken in.
    #[inline(always)]
    pub fn set_seen(self, now_ns: u64) {
        // SAFETY: as of `at`.
        unsafe { (&raw mut (*self.0).seen_ns).write_volatile(now_ns) }
    }

    /// Takes in a packet. `now` reads the clock, which costs a third of all that is done here; `said` is what
    /// else a SYN, a FIN or a reset says.
    #[inline(always)]
    pub fn observe(
        self,
        packet: &Packet,
        direction: Direction,
        now: impl Fn() -> u64,
        said: &Said,
    ) -> Seen {
        let mut seen = Seen::default();
        let (own, other) = (direction as usize & 1, direction as usize & 1 ^ 1);
        if packet.flags & SYN != 0 {
            if opens(packet) {
                self.ask(packet, own, now, &mut seen);
            } else if own == 1 {
                self.answer(packet, now, said, &mut seen);
            }
            return seen;
        }
        if packet.flags & RST != 0 {
            let known = self.get();
            if !known.is_closed() && self.would_end(packet, direction) && said.sound != 0 {
                let refuses_other = known.is_waiting() && known.state & state::REUSED != 0;
                self.sides(own).mark(side::CLOSED);
                (seen.taken, seen.closed) = (true, true);
                let established = known.sides[0] & side::ESTABLISHED != 0;
                seen.reset = own == 1 && !refuses_other || established;
            }
            return seen;
        }
        if own == 0 && self.get().completes_another(packet) {
            self.renew();
            seen.established = true;
        }
        if !self.fits(packet, own, other) {
            return seen;
        }
        seen.taken = true;
        if self.sides(own).get() & side::KNOWN == 0 {
            self.next(own).set(packet.sequence);
            self.acked(own).set(packet.sequence);
            self.sides(own).mark(side::KNOWN);
        }
        let acknowledges = after(packet.acknowledgement, self.acked(other).get());
        if acknowledges || self.sides(other).get() & side::KNOWN == 0 {
            self.acked(other).set(packet.acknowledgement);
        }
        let window = (packet.window as u32) << self.get().scale(own);
        self.window(other)
            .set(larger(self.window(other).get(), window));
        if own == 0
            && acknowledges
            && self.sides(1).get() & side::ANSWERED != 0
            && self.sides(0).get() & side::ESTABLISHED == 0
        {
            self.sides(0).mark(side::ESTABLISHED);
            seen.established = true;
        }
        self.take_bytes(packet, own, &mut seen);
        self.take_end(packet, own, &mut seen);
        seen
    }

    /// A client's SYN for a connection that there is.
    #[inline(always)]
    fn ask(self, packet: &Packet, own: usize, now: impl Fn() -> u64, seen: &mut Seen) {
        if own != 0 {
            return;
        }
        let known = self.get();
        if known.initial != packet.sequence {
            let next = packet.sequence.wrapping_add(1);
            self.pending(0)
                .set(next.wrapping_add(packet.payload_length));
            self.sides(0).mark(side::PENDING);
        } else if known.is_waiting()
            && known.sides[0] & side::REPEATED == 0
            && now() != known.opened_ns
        {
            self.sides(0).mark(side::REPEATED);
            seen.unanswered = true;
        }
    }

    /// The server's SYN: accepted only where it acknowledges the client's.
    #[inline(always)]
    fn answer(self, packet: &Packet, now: impl Fn() -> u64, said: &Said, seen: &mut Seen) {
        let known = self.get();
        let (ack, next) = (packet.acknowledgement, packet.sequence.wrapping_add(1));
        let of_this =
            known.opened_ns != 0 && after(ack, known.initial) && !after(ack, known.next[0]);
        if of_this && known.is_waiting() {
            self.next(1).set(next);
            self.acked(1).set(packet.sequence);
            self.acked(0).set(ack);
            self.window(0).set(packet.window as u32);
            self.scales().mark(said.scale << 8);
            self.sides(1).mark(side::KNOWN | side::ANSWERED);
            (seen.taken, seen.answered) = (true, true);
            if known.sides[0] & side::REPEATED == 0 {
                seen.handshake_ns = NonZeroU64::new(now().saturating_sub(known.opened_ns).max(1));
            }
            return;
        }
        let of_another = known.sides[0] & side::PENDING != 0 && ack == known.pending[0];
        // A server that remembers no SYN may answer each with another number.
        let anew = of_this && known.sides[0] & side::ESTABLISHED == 0 && next != known.next[1];
        if of_another || anew {
            self.pending(0).set(ack);
            self.pending(1).set(next);
            self.sides(1).mark(side::PENDING);
        }
    }

    /// Whether a reset would end it (RFC 5961, section 3.2): with the number that the other side expects
    /// next, which is what it has acknowledged, or what it has been sent since. Others are asked about.
    #[inline(always)]
    pub fn would_end(self, packet: &Packet, direction: Direction) -> bool {
        let own = direction as usize & 1;
        let known = self.get();
        if own == 1 && known.is_waiting() {
            // A refusal says what it refuses (RFC 9293, 3.10.7.3).
            let ack = packet.acknowledgement;
            let of_this = after(ack, known.initial) && !after(ack, known.next[0]);
            return packet.flags & ACK != 0 && known.opened_ns != 0 && of_this;
        }
        let begun_here = known.opened_ns != 0 && own == 0;
        let both = known.sides[0] & known.sides[1] & side::KNOWN != 0;
        let exact =
            packet.sequence == self.next(own).get() || packet.sequence == self.acked(own).get();
        (both || begun_here) && exact
    }

    /// Whether a segment fits the windows of both sides, as far as they are known.
    #[inline(always)]
    fn fits(self, packet: &Packet, own: usize, other: usize) -> bool {
        let known = self.get();
        // There is nothing to be said before the server has answered.
        if known.opened_ns != 0 && known.is_waiting() {
            return false;
        }
        let (start, ack) = (packet.sequence, packet.acknowledgement);
        let end = start.wrapping_add(packet.payload_length);
        let (acked, window) = (self.acked(own).get(), self.window(own).get());
        let known = self.sides(own).get() & side::KNOWN != 0;
        let in_window = !after(start, acked.wrapping_add(window))
            && !after(acked.wrapping_sub(larger(window, LEAST_WINDOW)), end);
        let behind = larger(self.window(other).get(), LEAST_WINDOW);
        let other_known = self.sides(other).get() & side::KNOWN != 0;
        let acknowledges = !after(ack, self.next(other).get())
            && !after(self.acked(other).get().wrapping_sub(behind), ack);
        packet.flags & ACK != 0 && (!known || in_window) && (!other_known || acknowledges)
    }

    #[inline(always)]
    fn renew(self) {
        let [client, server] = [self.pending(0).get(), self.pending(1).get()];
        self.initial().set(client.wrapping_sub(1));
        for (side, number) in [(0, client), (1, server)] {
            self.next(side).set(number);
            self.acked(side).set(number);
            self.window(side).set(UNTOLD_WINDOW);
        }
        self.scales().set(UNTOLD_SCALES);
        self.sides(0).set(side::KNOWN | side::ESTABLISHED);
        self.sides(1).set(side::KNOWN | side::ANSWERED);
    }

    #[inline(always)]
    fn take_bytes(self, packet: &Packet, own: usize, seen: &mut Seen) {
        if packet.payload_length == 0 {
            return;
        }
        let next = self.next(own).get();
        let end = packet.sequence.wrapping_add(packet.payload_length);
        // A keep-alive probe repeats one byte on purpose (RFC 9293, 3.8.4).
        let probe = packet.payload_length == 1 && end == next;
        if after(end, next) {
            self.next(own).set(end);
        } else {
            seen.retransmission = !probe;
        }
    }

    #[inline(always)]
    fn take_end(self, packet: &Packet, own: usize, seen: &mut Seen) {
        if packet.flags & FIN != 0 {
            let known = self.get();
            let end = packet.sequence.wrapping_add(packet.payload_length);
            let end = end.wrapping_add(1);
            let has_other = known.sides[0] & side::FINISHED != 0
                && !after(known.end[0], packet.acknowledgement);
            if own == 1 && known.sides[1] & side::FINISHED == 0 && has_other {
                self.sides(1).mark(side::PASSIVE);
            }
            self.end(own).set(end);
            self.sides(own).mark(side::FINISHED);
            if after(end, self.next(own).get()) {
                self.next(own).set(end);
            }
        }
        let known = self.get();
        if !known.has_finished() {
            return;
        }
        if !known.is_closed() {
            self.sides(own).mark(side::CLOSED);
            seen.closed = true;
        }
        let acknowledged =
            !after(known.end[0], known.acked[0]) && !after(known.end[1], known.acked[1]);
        let passive = known.sides[1] & side::PASSIVE != 0;
        if own == 0 && acknowledged && passive && known.sides[0] & side::RELEASED == 0 {
            self.sides(0).mark(side::RELEASED);
            seen.released = true;
        }
    }
}
