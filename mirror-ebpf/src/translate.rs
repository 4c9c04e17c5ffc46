//! Connections of a canary on another host: who answers to whom, and the packets' new addresses.

use aya_ebpf::bindings::{BPF_F_PSEUDO_HDR, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1};
use aya_ebpf::helpers::generated as helpers;
use mirror_common::checksum;
use mirror_common::connection::{Connection, Live, state};
use mirror_common::flow::{Address, Endpoint, Flow};
use mirror_common::packet::{Packet, Transport};
use mirror_common::steer::Choice;
use mirror_common::translate::{Clamp, Last, PORT_ATTEMPTS, Ports, Translation, Way, phase};

use crate::frame::Skb;
use crate::machine::Shared;
use crate::maps;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Linux 6.16: the sum over a whole IPv6 packet that a NIC delivered does not change with its
/// addresses, since the TCP checksum changes against them.
const BPF_F_IPV6: u64 = 1 << 7;

/// Fails when there is such an entry already (include/uapi/linux/bpf.h).
const BPF_NOEXIST: u64 = 1;

/// Fails when there is none.
const BPF_EXIST: u64 = 2;

/// What an answer of a canary on another host belongs to, if `packet` is one; `via` is the connection as that
/// sees it.
#[inline(always)]
pub(crate) fn answered_by(packet: &Packet, via: &mut Flow) -> Option<&'static Translation> {
    let ports = maps::TRANSLATED_PORTS.get(0)?;
    if packet.transport != Transport::Tcp || !ports.contains(packet.destination.port()) {
        return None;
    }
    *via = Flow {
        client: packet.destination,
        server: packet.source,
    };
    let via: &Flow = via;
    // SAFETY: values stay readable while this runs, whoever replaces them.
    unsafe { maps::TRANSLATIONS.get(via) }
}

/// A new connection to a canary on another host.
pub(crate) struct Opening<'a> {
    pub(crate) translation: &'a Translation,
    pub(crate) connection: &'a mut Connection,
    pub(crate) way: &'a Way,
    pub(crate) canary: &'a Endpoint,
    pub(crate) hash: u64,
    /// Of the client's address.
    pub(crate) client: u32,
}

impl Opening<'_> {
    /// Finds a port of ours and writes down whose it is, in both tables or in neither. `away` is the result,
    /// and `former` holds who had the port before.
    #[inline(always)]
    pub(crate) fn write(mut self, away: &mut Flow, former: &mut Translation) -> Choice {
        if !self.find(away, former) {
            return Choice::NoPort;
        }
        self.connection.away = *away;
        let (origin, connection): (&Flow, &Connection) =
            (&self.translation.origin, self.connection);
        if maps::TRANSLATED.insert(origin, connection, 0).is_ok() {
            return Choice::Canary;
        }
        let key: &Flow = away;
        let _ = maps::TRANSLATIONS.remove(key);
        Choice::NoRoom
    }

    #[inline(always)]
    fn find(&mut self, away: &mut Flow, former: &mut Translation) -> bool {
        let ports = maps::TRANSLATED_PORTS.get(0).copied().unwrap_or_default();
        let now = self.translation.since_ns;
        for attempt in 0..PORT_ATTEMPTS {
            let Some(port) = Ports::candidate(ports, self.hash, self.client, attempt) else {
                return false;
            };
            *away = Flow {
                client: Endpoint::new(self.way.candidate(self.hash, attempt), port),
                server: *self.canary,
            };
            let key: &Flow = away;
            let Some(taken) = maps::TRANSLATIONS.get_ptr_mut(key) else {
                if maps::TRANSLATIONS
                    .insert(key, self.translation, BPF_NOEXIST)
                    .is_ok()
                {
                    return true;
                }
                continue;
            };
            // SAFETY: a map's value. Others may write it meanwhile, or the kernel give the memory to another
            // connection, whose values are as good to read.
            let since_ns = unsafe {
                *former = taken.read();
                Shared::new(&raw mut (*taken).since_ns)
            };
            let before = core::hint::black_box(&*former);
            if !before.yields_to(&self.translation.last, attempt, now) {
                continue;
            }
            if before.phase == phase::WAITING {
                self.connection.state |= state::REUSED;
            }
            // Of those who want it at the same time one gets it.
            let since = before.since_ns;
            if since_ns.exchange(now) != since || since == now {
                continue;
            }
            if maps::TRANSLATIONS
                .insert(key, self.translation, BPF_EXIST)
                .is_ok()
            {
                forget(&former.origin, away);
                return true;
            }
        }
        false
    }
}

/// Forgets a connection whose port another one has got.
#[inline(always)]
fn forget(origin: &Flow, away: &Flow) {
    if let Some(connection) = maps::TRANSLATED.get_ptr_mut(origin) {
        // SAFETY: a map's value.
        if unsafe { Live::at(connection) }.get().away == *away {
            let _ = maps::TRANSLATED.remove(origin);
        }
    }
}

/// Notes how far a connection has come, as long as its port is its own.
#[inline(always)]
pub(crate) fn enter((origin, away): (&Flow, &Flow), phase: u32, last: &Last, now_ns: u64) {
    let Some(translation) = maps::TRANSLATIONS.get_ptr_mut(away) else {
        return;
    };
    // SAFETY: a value that all CPUs share, touched by its words alone; each writes what is true.
    unsafe {
        if (&raw const (*translation).origin).read() != *origin {
            return;
        }
        if phase == phase::CLOSED {
            (&raw mut (*translation).last).write(*last);
        }
        Shared::new(&raw mut (*translation).since_ns).set(now_ns);
        Shared::new(&raw mut (*translation).phase).set(phase);
    }
}

/// Gives a packet other ends, and one more router behind it. False where that failed: then it is
/// good for nobody.
#[inline(always)]
pub(crate) fn rewrite(
    skb: &Skb,
    packet: &Packet,
    source: &Endpoint,
    destination: &Endpoint,
) -> bool {
    let checksum = || core::hint::black_box(packet).transport_offset + 16;
    let addresses = wide(addresses_differ(packet, source, destination));
    let (before, after) = (
        wide(ports(&packet.source, &packet.destination)),
        wide(ports(source, destination)),
    );
    let pseudo = u64::from(BPF_F_PSEUDO_HDR);
    let summed = if packet.ipv6 {
        skb.follow_l4(checksum(), 0, addresses, pseudo | BPF_F_IPV6)
            || skb.follow_l4(checksum(), 0, addresses, pseudo)
    } else {
        skb.follow_l4(checksum(), 0, addresses, pseudo)
    };
    summed
        && skb.follow_l4(checksum(), before, after, 4)
        && skb.store_array(checksum() - 16, &(after as u32).to_ne_bytes())
        && rewrite_network(skb, packet, source, destination, addresses as u32)
}

/// A word that is kept as eight bytes: the verifier takes a stack slot of which four are written for one whose
/// former value is still read, and tells ways apart by that.
#[inline(always)]
fn wide(word: u32) -> u64 {
    core::hint::black_box(word.into())
}

/// Both ports as they stand in a TCP header.
#[inline(always)]
pub(crate) fn ports(source: &Endpoint, destination: &Endpoint) -> u32 {
    u32::from(source.port().to_be()) | u32::from(destination.port().to_be()) << 16
}

/// The hop limit behind one more router, and what that adds to the sum over an IPv4 header. It never
/// becomes 0: whoever comes with the last one has no new connection taken away.
#[inline(always)]
pub(crate) fn one_hop(limit: u8) -> (u8, u32) {
    let after = limit.saturating_sub(1).max(1);
    let word = |limit: u8| u32::from(u16::from_ne_bytes([limit, 0]));
    (after, checksum::difference([word(limit)], [word(after)]))
}

/// What other addresses add to the sum over a packet's pseudo header. Those of IPv4 stand in the
/// last words, the others are equal.
#[inline(always)]
pub(crate) fn addresses_differ(packet: &Packet, source: &Endpoint, destination: &Endpoint) -> u32 {
    checksum::add(
        checksum::difference(packet.source.address.words(), source.address.words()),
        checksum::difference(
            packet.destination.address.words(),
            destination.address.words(),
        ),
    )
}

#[inline(always)]
fn rewrite_network(
    skb: &Skb,
    packet: &Packet,
    source: &Endpoint,
    destination: &Endpoint,
    addresses: u32,
) -> bool {
    let offset = packet.network_offset;
    let (source, destination) = (source.address.words(), destination.address.words());
    let (limit, hops) = one_hop(packet.hop_limit);
    if packet.ipv6 {
        return skb.store_array(offset + 7, &[limit])
            && skb.store_array::<16>(offset + 8, &words(source))
            && skb.store_array::<16>(offset + 24, &words(destination));
    }
    skb.follow_l3(offset + 10, checksum::add(addresses, hops))
        && skb.store_array(offset + 8, &[limit])
        && skb.store_array(offset + 12, &source[3].to_ne_bytes())
        && skb.store_array(offset + 16, &destination[3].to_ne_bytes())
}

/// Words as they lie in memory.
#[inline(always)]
pub(crate) fn words<const N: usize, const M: usize>(words: [u32; N]) -> [u8; M] {
    const { assert!(N * 4 == M) };
    let mut bytes = [0; M];
    let mut i = 0;
    while i < N {
        let [a, b, c, d] = words[i].to_ne_bytes();
        bytes[i * 4] = a;
        bytes[i * 4 + 1] = b;
        bytes[i * 4 + 2] = c;
        bytes[i * 4 + 3] = d;
        i += 1;
    }
    bytes
}

/// Lowers the segment size that a SYN announces to what fits the way.
#[inline(always)]
pub(crate) fn clamp(skb: &Skb, packet: &Packet, mtu: u32) -> bool {
    let Some(clamp) = Clamp::of(skb, packet, mtu) else {
        return true;
    };
    skb.follow_l4(
        packet.transport_offset + 16,
        clamp.before.into(),
        clamp.after.into(),
        2,
    ) && skb.store_array(clamp.offset, &clamp.bytes)
}

impl Skb {
    /// Has the TCP checksum at `offset` follow a change from `from` to `to`, as
    /// `bpf_l4_csum_replace` takes them; also one that a NIC will finish.
    #[inline(always)]
    fn follow_l4(&self, offset: u32, from: u64, to: u64, flags: u64) -> bool {
        // SAFETY: the helper checks its arguments.
        unsafe { helpers::bpf_l4_csum_replace(self.raw(), offset, from, to, flags) == 0 }
    }

    /// Has the IPv4 header's checksum at `offset` follow a difference.
    #[inline(always)]
    fn follow_l3(&self, offset: u32, difference: u32) -> bool {
        // SAFETY: the helper checks its arguments.
        unsafe { helpers::bpf_l3_csum_replace(self.raw(), offset, 0, difference.into(), 0) == 0 }
    }

    /// The verdict that sends the packet out by `ifindex` to a neighbour, whose hardware address is
    /// the kernel's affair.
    #[inline(always)]
    pub(crate) fn send_to(&self, ifindex: u32, next_hop: &Address) -> i32 {
        let words = next_hop.words();
        let mut params = if next_hop.is_ipv4() {
            bpf_redir_neigh {
                nh_family: AF_INET,
                __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 {
                    ipv6_nh: [words[3], 0, 0, 0],
                },
            }
        } else {
            bpf_redir_neigh {
                nh_family: AF_INET6,
                __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: words },
            }
        };
        let size = size_of::<bpf_redir_neigh>() as i32;
        // SAFETY: the parameters are `size` bytes long.
        unsafe { helpers::bpf_redirect_neigh(ifindex, &mut params, size, 0) as i32 }
    }

    /// The verdict that sends the packet out by `ifindex`, to whom the routing table says.
    #[inline(always)]
    pub(crate) fn send_by(&self, ifindex: u32) -> i32 {
        // SAFETY: without parameters the kernel looks for the neighbour itself.
        unsafe { helpers::bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
    }
}
