//! The tap's end of the `stream` transport: a record of the packet into one of this CPU's two rings.
//!
//! One helper call copies the packet, and one store makes it known: no lock, no second packet, and no
//! wake-up unless the reader sleeps. What a record looks like and where it lies: `mirror_common::record`.

use core::mem::offset_of;

use aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP;
use mirror_common::counters::Sent;
use mirror_common::record::{
    CONTROL, DEEP, HEADER_LENGTH, HOT_RING, LANES, LONGEST_PACKET, Reader, Record, place,
    record_length,
};
use mirror_common::verdict::Reason;

use crate::frame::Skb;
use crate::hand::Served;
use crate::machine::{Shared, cpu};
use crate::maps;

/// Bytes of each CPU's deep ring. The daemon sets it before it loads the programs, so that the verifier
/// knows it too.
#[unsafe(no_mangle)]
static RING_SIZE: u32 = 0;

/// 1 = programs of one CPU may interrupt each other here (PREEMPT_RT): the ring takes a lock.
#[unsafe(no_mangle)]
static INTERRUPTIBLE: u32 = 0;

/// A lane with room for a record.
struct Room {
    /// Where it begins, behind the hot lane.
    start: u32,
    /// Bytes of its ring.
    size: u32,
    head: u64,
}

/// What the daemon reads of a lane's [`Sent`] while this CPU, and no other, writes it.
struct Counted {
    copies: Shared<u64>,
    bytes: Shared<u64>,
    refused: Shared<u64>,
}

impl Counted {
    #[inline(always)]
    fn of(lane: *mut u8) -> Self {
        const SENT: usize = place::SENT;
        Self {
            copies: word(lane, SENT + offset_of!(Sent, copies)),
            bytes: word(lane, SENT + offset_of!(Sent, bytes)),
            refused: word(lane, SENT + offset_of!(Sent, refused)),
        }
    }
}

/// A word of a lane's control block.
#[inline(always)]
fn word(lane: *mut u8, place: usize) -> Shared<u64> {
    // SAFETY: a lane begins with its control block, within the map's value, and words there are aligned; the
    // verifier checks that.
    unsafe { Shared::new(lane.add(place).cast()) }
}

/// Puts a copy of the packet into one of this CPU's lanes of `number`.
#[inline(always)]
pub(crate) fn copy(
    skb: &Skb,
    number: u32,
    served: &Served<'_>,
    reader: Reader,
    time_ns: u64,
) -> Reason {
    let cpu = cpu();
    let Some(ring) = maps::RINGS.get(number, cpu) else {
        return Reason::NoRing;
    };
    if !lock(ring) {
        return Reason::RingBusy;
    }
    let reason = write(skb, ring, cpu, served, reader, time_ns);
    unlock(ring);
    if let Reason::Mirrored = reason {
        wake(ring, reader);
    }
    reason
}

#[inline(always)]
fn write(
    skb: &Skb,
    ring: *mut u8,
    cpu: u32,
    served: &Served<'_>,
    reader: Reader,
    time_ns: u64,
) -> Reason {
    let Served { packet, .. } = served;
    let packet_length = packet.payload_offset + packet.payload_length - packet.network_offset;
    // Shown to the verifier once more: the compiler knows, and would leave the test out. It learns more
    // from "less than" than from "not 0", which kernels before 6.8 make nothing of.
    let less = core::hint::black_box(packet_length.wrapping_sub(1));
    if less >= LONGEST_PACKET {
        return Reason::TooLong;
    }
    let packet_length = less + 1;
    let length = u64::from(record_length(packet_length));
    let Some(Room { start, size, head }) = room(ring, length) else {
        return Reason::RingFull;
    };
    // SAFETY: a lane begins within the value.
    let lane = unsafe { ring.add(start as usize) };
    let sent = Counted::of(lane);
    let copies = sent.copies.get();
    let offset = core::hint::black_box(head as u32) & (size - 1);
    let record = Record {
        direction: served.direction,
        arm: served.arm,
        reader,
        lane: cpu as u16 * LANES + u16::from(start != 0),
        service: served.service.id,
        packet_length,
        sequence: copies,
        time_ns,
    };
    // SAFETY: a record that begins within the ring ends before the slack does.
    let to = unsafe { lane.add((CONTROL + offset) as usize) };
    let [first, second, third, fourth] = record.encode();
    // SAFETY: as above.
    unsafe {
        let header = to.cast::<u64>();
        header.write(first);
        header.add(1).write(second);
        header.add(2).write(third);
        header.add(3).write(fourth);
        if !skb.load(packet.network_offset, to.add(HEADER_LENGTH), packet_length) {
            return Reason::CopyFailed;
        }
    }
    let end = head + length;
    if u64::from(offset) + length > u64::from(size) {
        word(lane, place::CROSSING).set(end);
    }
    sent.copies.set(copies + 1);
    sent.bytes
        .set(sent.bytes.get() + u64::from(packet.payload_length));
    // Orders what was written before, and what `wake` reads afterwards.
    word(lane, place::HEAD).exchange(end);
    Reason::Mirrored
}

/// Where a record of so many bytes goes: into the hot lane, or else the deep one. Its beginning and size are
/// constants on either way from here on, by which the verifier bounds the one write that follows.
#[inline(always)]
fn room(ring: *mut u8, length: u64) -> Option<Room> {
    let fits = |start: u32, size: u32| {
        // SAFETY: a lane begins within the value.
        let lane = unsafe { ring.add(start as usize) };
        let (head, tail) = (word(lane, place::HEAD).get(), word(lane, place::TAIL).get());
        let has_room = (head + length).wrapping_sub(tail) <= u64::from(size);
        has_room.then_some(Room { start, size, head })
    };
    if let Some(hot) = fits(0, HOT_RING) {
        return Some(hot);
    }
    // SAFETY: a constant that the daemon has set.
    let deep = fits(DEEP, unsafe { (&raw const RING_SIZE).read_volatile() });
    if deep.is_none() {
        // SAFETY: a lane begins within the value.
        let refused = Counted::of(unsafe { ring.add(DEEP as usize) }).refused;
        refused.set(refused.get() + 1);
    }
    deep
}

#[inline(always)]
fn interruptible() -> bool {
    // SAFETY: a constant that the daemon has set.
    unsafe { (&raw const INTERRUPTIBLE).read_volatile() != 0 }
}

/// Whoever was interrupted while it wrote keeps the ring.
#[inline(always)]
fn lock(ring: *mut u8) -> bool {
    !interruptible() || word(ring, place::BUSY).exchange(1) == 0
}

#[inline(always)]
fn unlock(ring: *mut u8) {
    if interruptible() {
        word(ring, place::BUSY).exchange(0);
    }
}

/// Wakes a reader that sleeps: it has set the word before it looked at the head for the last time.
#[inline(always)]
fn wake(ring: *mut u8, reader: Reader) {
    let asleep = word(ring, place::ASLEEP);
    if asleep.get() == 0 {
        return;
    }
    asleep.set(0);
    let bell = match reader {
        Reader::Sender => &maps::SENDER_BELL,
        Reader::Look => &maps::LOOK_BELL,
    };
    // One that is full has been rung.
    let _ = bell.output::<u64>(1, u64::from(BPF_RB_FORCE_WAKEUP));
}
