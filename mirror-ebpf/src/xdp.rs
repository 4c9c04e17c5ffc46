//! Packets of canaries on other hosts, before there is an skb. What can be done here is done, and
//! counted here; all else goes on to TC, untouched and uncounted.

use core::ffi::c_void;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated as helpers;
use mirror_common::checksum;
use mirror_common::flow::{Endpoint, Flow};
use mirror_common::packet::{self, Frame, Link, Packet, RST, SYN, Transport};
use mirror_common::policy::{self, Service, mirror};
use mirror_common::steer::{Steering, flag};
use mirror_common::translate::{Clamp, Translation};
use mirror_common::tunnel::{Arm, Direction};
use mirror_common::verdict::Verdict;

use crate::classify::look_up;
use crate::frame::opaque;
use crate::hand::{Hand, Hook};
use crate::slot::{Action, Followed, HEADER_BUFFER, Slot};
use crate::translate::{addresses_differ, answered_by, one_hop, ports, words};
use crate::{maps, steer, tally};

/// A frame as the driver, or the kernel's own hook, hands it over.
pub(crate) struct Xdp {
    raw: *mut xdp_md,
}

impl Xdp {
    #[inline(always)]
    pub(crate) fn new(raw: *mut xdp_md) -> Self {
        Self { raw }
    }

    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        // SAFETY: the kernel passes a valid `xdp_md` for as long as the program runs.
        let (data, end) = unsafe { ((*self.raw).data, (*self.raw).data_end) };
        (opaque(data as usize), end as usize)
    }

    /// Bytes of its first part.
    #[inline(always)]
    fn length(&self) -> u32 {
        let (data, end) = self.bounds();
        (end - data) as u32
    }

    /// The first `N` bytes, to be written to.
    #[inline(always)]
    fn head<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        let (data, end) = self.bounds();
        if data + N > end {
            return None;
        }
        // SAFETY: N bytes lie before the end, just checked, and nobody else looks at the frame.
        Some(unsafe { &mut *(data as *mut [u8; N]) })
    }

    #[inline(always)]
    fn load_array<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let buffer = maps::SLOT.get_ptr_mut(0)?;
        // SAFETY: a per-CPU value that no other run on this CPU touches before this one ends; the
        // buffer has room for N bytes.
        unsafe {
            let buffer = (&raw mut (*buffer).header).cast::<u8>();
            if N <= HEADER_BUFFER && self.load(offset, buffer, N as u32) {
                Some(*buffer.cast::<[u8; N]>())
            } else {
                None
            }
        }
    }

    #[inline(always)]
    fn store<const N: usize>(&self, offset: u32, mut bytes: [u8; N]) -> bool {
        let from = bytes.as_mut_ptr().cast();
        // SAFETY: the helper checks its arguments; `bytes` is N long.
        unsafe { helpers::bpf_xdp_store_bytes(self.raw, offset, from, N as u32) == 0 }
    }

    /// The verdict that sends the frame out by `ifindex`; on a `veth` never by XDP_TX.
    #[inline(always)]
    fn send_by(&self, ifindex: u32, veth: bool) -> u32 {
        if ifindex == self.interface() && !veth {
            return XDP_TX;
        }
        // SAFETY: the helper checks its arguments.
        unsafe { helpers::bpf_redirect(ifindex, 0) as u32 }
    }
}

impl Frame for Xdp {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let (data, end) = self.bounds();
        let start = data + offset as usize;
        if start + N <= end {
            // SAFETY: N bytes from `start` lie before the end, just checked.
            return Some(unsafe { *(start as *const [u8; N]) });
        }
        None
    }

    #[inline(always)]
    fn read_far<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.load_array(offset)
    }
}

impl Hand for Xdp {
    const LOCAL: bool = false;

    #[inline(always)]
    fn context(&self) -> *mut c_void {
        self.raw.cast()
    }

    #[inline(always)]
    fn interface(&self) -> u32 {
        // SAFETY: as in `bounds`.
        unsafe { (*self.raw).ingress_ifindex }
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        false
    }

    #[inline(always)]
    fn load(&self, offset: u32, to: *mut u8, length: u32) -> bool {
        // SAFETY: the verifier checks that `to` has room for `length` bytes.
        unsafe { helpers::bpf_xdp_load_bytes(self.raw, offset, to.cast(), length) == 0 }
    }
}

/// Takes a packet on if a canary on another host sent it, or shall have it.
#[inline(always)]
pub(crate) fn steer(frame: &mut Xdp) -> u32 {
    let Some(slot) = maps::SLOT.get_ptr_mut(0) else {
        return XDP_PASS;
    };
    // SAFETY: a per-CPU value; programs of one CPU do not run at the same time.
    let slot = unsafe { &mut *slot };
    let Ok(packet) = packet::parse(frame, frame.length(), Link::Ethernet) else {
        return XDP_PASS;
    };
    // Of a reset the checksum counts, which is looked at in one place.
    if packet.transport != Transport::Tcp || !is_plain(&packet) || packet.flags & RST != 0 {
        return XDP_PASS;
    }
    slot.hold(packet);
    match Rewrite::of(frame, slot) {
        Some(rewrite) => rewrite.send(frame, slot.packet()),
        None => XDP_PASS,
    }
}

/// Whether the headers stand where almost all do, which spares a search for each byte written.
#[inline(always)]
fn is_plain(packet: &Packet) -> bool {
    let transport_offset = if packet.ipv6 { 54 } else { 34 };
    packet.network_offset == 14 && packet.transport_offset == transport_offset
}

/// What becomes of a frame.
struct Rewrite {
    source: Endpoint,
    destination: Endpoint,
    /// What the new ends add to the TCP checksum: by their addresses, and by all of them.
    differences: [u32; 2],
    /// The first bytes of the Ethernet header: who gets it, and we.
    macs: [u32; 3],
    /// The largest IP packet on the way to the canary.
    mtu: u32,
    /// Where it leaves; 0 = nowhere.
    ifindex: u32,
    /// Whether a veth leads to the canary.
    veth: bool,
}

impl Rewrite {
    /// Decides. Nothing: TC shall.
    #[inline(always)]
    fn of(frame: &Xdp, slot: &mut Slot) -> Option<Self> {
        match answered_by(slot.packet(), &mut slot.via) {
            Some(translation) => Self::back(frame, slot, translation),
            None => Self::away(frame, slot),
        }
    }

    #[inline(always)]
    fn back(frame: &Xdp, slot: &mut Slot, translation: &Translation) -> Option<Self> {
        if translation.macs == [0; 3] {
            return None;
        }
        let Flow { client, server } = translation.origin;
        let service = look_up(&server)?;
        let steering = steered_here(service)?;
        let packet = slot.packet();
        let differences = differ(packet, &server, &client);
        slot.flow = translation.origin;
        let ifindex = match follow(frame, slot, service, Direction::Response)? {
            Action::Back => translation.ifindex,
            Action::Refuse => 0,
            Action::Host | Action::Give | Action::Away | Action::Outdated | Action::Counted => {
                return None;
            }
        };
        Some(Self {
            source: server,
            destination: client,
            differences,
            macs: translation.macs,
            mtu: steering.way.mtu,
            veth: steering.way.veth != 0,
            ifindex,
        })
    }

    #[inline(always)]
    fn away(frame: &Xdp, slot: &mut Slot) -> Option<Self> {
        let packet = slot.packet();
        let service = look_up(&packet.destination)?;
        let steering = steered_here(service)?;
        if steering.way.macs == [0; 3] {
            return None;
        }
        slot.flow = policy::flow(packet, Direction::Request);
        let Action::Away = follow(frame, slot, service, Direction::Request)? else {
            return None;
        };
        let Flow { client, server } = core::hint::black_box(&*slot).away;
        Some(Self {
            differences: differ(packet, &client, &server),
            source: client,
            destination: server,
            macs: steering.way.macs,
            mtu: steering.way.mtu,
            veth: steering.way.veth != 0,
            ifindex: steering.way.ifindex,
        })
    }

    /// Writes the new headers and sends the frame.
    #[inline(always)]
    fn send(&self, frame: &mut Xdp, packet: &Packet) -> u32 {
        if self.ifindex == 0 {
            return XDP_DROP;
        }
        let [addresses, mut all] = self.differences;
        if packet.flags & SYN != 0
            && let Some(clamp) = Clamp::of(frame, packet, self.mtu)
        {
            if !frame.store(clamp.offset, clamp.bytes) {
                return XDP_DROP;
            }
            all = checksum::add(all, checksum::difference([clamp.before], [clamp.after]));
        }
        let ports = ports(&self.source, &self.destination).to_ne_bytes();
        let source = self.source.address.words();
        let destination = self.destination.address.words();
        let (limit, hops) = one_hop(packet.hop_limit);
        if packet.ipv6 {
            let Some(head) = frame.head::<74>() else {
                return XDP_DROP;
            };
            write::<_, 12>(head, 0, &words(self.macs));
            head[21] = limit;
            write::<_, 16>(head, 22, &words(source));
            write::<_, 16>(head, 38, &words(destination));
            write(head, 54, &ports);
            let before = [head[70], head[71]];
            write(head, 70, &checksum::updated(before, all));
        } else {
            let Some(head) = frame.head::<54>() else {
                return XDP_DROP;
            };
            write::<_, 12>(head, 0, &words(self.macs));
            head[22] = limit;
            let before = [head[24], head[25]];
            let header = checksum::add(addresses, hops);
            write(head, 24, &checksum::updated(before, header));
            write(head, 26, &source[3].to_ne_bytes());
            write(head, 30, &destination[3].to_ne_bytes());
            write(head, 34, &ports);
            let before = [head[50], head[51]];
            write(head, 50, &checksum::updated(before, all));
        }
        frame.send_by(self.ifindex, self.veth)
    }
}

/// How a service is steered, if its packets may be taken here.
#[inline(always)]
fn steered_here(service: &Service) -> Option<&'static Steering> {
    let steering = maps::STEERING.get(service.index)?;
    // Copies are made at TC.
    let copied =
        service.mirror & mirror::BOTH != 0 && service.mirror & mirror::arm(Arm::Canary) != 0;
    (steering.flags & flag::XDP != 0 && !copied).then_some(steering)
}

/// Follows the packet at hand, and counts it if it goes on from here.
#[inline(always)]
fn follow(frame: &Xdp, slot: &mut Slot, service: &Service, direction: Direction) -> Option<Action> {
    let packet = slot.packet();
    // What the daemon reads is copied at TC.
    if service.has_look() && service.is_looked_at(Arm::Canary, slot.flow.hash(service.key)) {
        return None;
    }
    let Followed { arm, action } =
        steer::follow(frame, Hook::Ingress, slot, packet, direction, service)?;
    // Nothing here is copied, so nothing is asked.
    let verdict = policy::decide(packet, direction, arm, service, || None, || false, || 0);
    if let Verdict::Pass(reason) = verdict
        && let Some(counters) = tally::counters(service, direction, packet)
    {
        tally::count(counters, reason);
    }
    if let Some(counters) = tally::of(service.index, arm) {
        counters.early[direction as usize & 1] += 1;
    }
    Some(action)
}

/// [`Rewrite::differences`].
#[inline(always)]
fn differ(packet: &Packet, source: &Endpoint, destination: &Endpoint) -> [u32; 2] {
    let addresses = addresses_differ(packet, source, destination);
    let before = ports(&packet.source, &packet.destination);
    let ports = checksum::difference([before], [ports(source, destination)]);
    [addresses, checksum::add(addresses, ports)]
}

#[inline(always)]
fn write<const N: usize, const M: usize>(head: &mut [u8; N], offset: usize, bytes: &[u8; M]) {
    let mut i = 0;
    while i < M {
        head[offset + i] = bytes[i];
        i += 1;
    }
}
