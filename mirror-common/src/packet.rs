//! From a frame's bytes to the few fields that decisions are made on.
//!
//! Whatever is not understood is named by a [`Reason`] and passed on.

use crate::flow::{Address, Endpoint};
use crate::verdict::Reason;

/// A frame, as the kernel, a test or the fuzzer holds it.
pub trait Frame {
    /// `N` bytes at `offset` from the frame's start, or nothing where it ends before.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// The same at an offset that was itself read from the frame: the kernel's verifier wants to be
    /// shown more there.
    #[inline(always)]
    fn read_far<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.read(offset)
    }
}

impl Frame for &[u8] {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.get(offset as usize..)?.first_chunk().copied()
    }
}

/// What a frame starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tun, WireGuard, the inside of our tunnel.
    Ip,
}

/// The transport that carries a [`Packet`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
}

/// TCP's FIN flag.
pub const FIN: u8 = 0x01;
/// TCP's SYN flag.
pub const SYN: u8 = 0x02;
/// TCP's RST flag.
pub const RST: u8 = 0x04;
/// TCP's ACK flag.
pub const ACK: u8 = 0x10;

/// A parsed TCP segment or UDP datagram. Offsets and lengths are in bytes from the frame's start.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes from.
    pub source: Endpoint,
    /// Where it goes to.
    pub destination: Endpoint,
    /// What carries it.
    pub transport: Transport,
    /// Whether the network header is IPv6.
    pub ipv6: bool,
    /// How many more routers may pass it on (IPv4's time to live).
    pub hop_limit: u8,
    /// TCP's flags; 0 for UDP.
    pub flags: u8,
    /// TCP's sequence number; 0 for UDP.
    pub sequence: u32,
    /// TCP's acknowledgement number; 0 for UDP.
    pub acknowledgement: u32,
    /// TCP's window, as it stands there; 0 for UDP.
    pub window: u16,
    /// Where the IP header starts.
    pub network_offset: u32,
    /// Where the TCP or UDP header starts.
    pub transport_offset: u32,
    /// Where the payload starts.
    pub payload_offset: u32,
    /// How long the payload is, by the IP header: a frame's padding is not payload.
    pub payload_length: u32,
}

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;

/// IPv6 next headers that stand between the IP header and its transport (RFC 8200, section 4),
/// with AH, ESP, Mobility, HIP and Shim6.
#[inline(always)]
const fn is_extension(next_header: u8) -> bool {
    matches!(next_header, 0 | 43 | 50 | 51 | 60 | 135 | 139 | 140)
}

const IPV6_FRAGMENT: u8 = 44;

/// Parses `frame`, which is `length` bytes long.
#[inline(always)]
pub fn parse<F: Frame>(frame: &F, length: u32, link: Link) -> Result<Packet, Reason> {
    let (ethertype, network_offset) = match link {
        Link::Ethernet => ethernet(frame)?,
        Link::Ip => {
            let [first] = frame.read(0).ok_or(Reason::Truncated)?;
            let ethertype = match first >> 4 {
                4 => ETHERTYPE_IPV4,
                6 => ETHERTYPE_IPV6,
                _ => return Err(Reason::NotIp),
            };
            (ethertype, 0)
        }
    };
    let network = match ethertype {
        ETHERTYPE_IPV4 => ipv4(frame, network_offset, length)?,
        ETHERTYPE_IPV6 => ipv6(frame, network_offset, length)?,
        _ => return Err(Reason::NotIp),
    };
    match network.protocol {
        PROTOCOL_TCP => tcp(frame, &network),
        PROTOCOL_UDP => udp(frame, &network),
        _ => Err(Reason::OtherProtocol),
    }
}

/// The type of what an Ethernet header carries, and where that starts, past up to two VLAN tags.
///
/// A tag that the kernel has taken out of the frame does not stand here.
#[inline(always)]
fn ethernet<F: Frame>(frame: &F) -> Result<(u16, u32), Reason> {
    let ethertype = u16::from_be_bytes(frame.read(12).ok_or(Reason::Truncated)?);
    if !is_vlan(ethertype) {
        return Ok((ethertype, 14));
    }
    let ethertype = u16::from_be_bytes(frame.read(16).ok_or(Reason::Truncated)?);
    if !is_vlan(ethertype) {
        return Ok((ethertype, 18));
    }
    let ethertype = u16::from_be_bytes(frame.read(20).ok_or(Reason::Truncated)?);
    if !is_vlan(ethertype) {
        return Ok((ethertype, 22));
    }
    Err(Reason::VlanDepth)
}

#[inline(always)]
const fn is_vlan(ethertype: u16) -> bool {
    ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ
}

struct Network {
    source: Address,
    destination: Address,
    ipv6: bool,
    hop_limit: u8,
    protocol: u8,
    offset: u32,
    transport_offset: u32,
    /// Where the IP payload ends.
    end: u32,
}

#[inline(always)]
fn ipv4<F: Frame>(frame: &F, offset: u32, length: u32) -> Result<Network, Reason> {
    let header: [u8; 20] = frame.read(offset).ok_or(Reason::Truncated)?;
    let header_length = ((header[0] & 0x0f) as u32) * 4;
    if header[0] >> 4 != 4 || header_length < 20 {
        return Err(Reason::Malformed);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    // More fragments to come, or not the first.
    if fragment & 0x3fff != 0 {
        return Err(Reason::Fragment);
    }
    let total_length = u16::from_be_bytes([header[2], header[3]]) as u32;
    Ok(Network {
        source: Address::from_v4([header[12], header[13], header[14], header[15]]),
        destination: Address::from_v4([header[16], header[17], header[18], header[19]]),
        ipv6: false,
        hop_limit: header[8],
        protocol: header[9],
        offset,
        transport_offset: offset + header_length,
        end: end(offset, total_length, header_length, length)?,
    })
}

#[inline(always)]
fn ipv6<F: Frame>(frame: &F, offset: u32, length: u32) -> Result<Network, Reason> {
    let header: [u8; 40] = frame.read(offset).ok_or(Reason::Truncated)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let next_header = header[6];
    if next_header == IPV6_FRAGMENT {
        return Err(Reason::Fragment);
    }
    if is_extension(next_header) {
        return Err(Reason::ExtensionHeader);
    }
    let payload_length = u16::from_be_bytes([header[4], header[5]]) as u32;
    let total_length = if payload_length == 0 {
        0
    } else {
        payload_length + 40
    };
    let [_, _, _, _, _, _, _, _, addresses @ ..] = header;
    let (source, destination) = halves(&addresses);
    Ok(Network {
        source: Address::from_v6(source),
        destination: Address::from_v6(destination),
        ipv6: true,
        hop_limit: header[7],
        protocol: next_header,
        offset,
        transport_offset: offset + 40,
        end: end(offset, total_length, 40, length)?,
    })
}

#[inline(always)]
fn halves(addresses: &[u8; 32]) -> ([u8; 16], [u8; 16]) {
    let mut source = [0; 16];
    let mut destination = [0; 16];
    let mut i = 0;
    while i < 16 {
        source[i] = addresses[i];
        destination[i] = addresses[i + 16];
        i += 1;
    }
    (source, destination)
}

/// Where an IP packet at `offset` ends. A length of 0 is a super-packet too long for the field
/// (BIG TCP, RFC 2675 without its option): there the frame's own length tells.
#[inline(always)]
fn end(offset: u32, total_length: u32, header_length: u32, length: u32) -> Result<u32, Reason> {
    if total_length == 0 {
        return Ok(length);
    }
    if total_length < header_length {
        return Err(Reason::Malformed);
    }
    let end = offset + total_length;
    if end > length {
        return Err(Reason::Truncated);
    }
    Ok(end)
}

#[inline(always)]
fn tcp<F: Frame>(frame: &F, network: &Network) -> Result<Packet, Reason> {
    let header: [u8; 20] = frame
        .read(network.transport_offset)
        .ok_or(Reason::Truncated)?;
    let header_length = ((header[12] >> 4) as u32) * 4;
    let payload_offset = network.transport_offset + header_length;
    if header_length < 20 || payload_offset > network.end {
        return Err(Reason::Malformed);
    }
    Ok(Packet {
        source: Endpoint::new(network.source, u16::from_be_bytes([header[0], header[1]])),
        destination: Endpoint::new(
            network.destination,
            u16::from_be_bytes([header[2], header[3]]),
        ),
        transport: Transport::Tcp,
        ipv6: network.ipv6,
        hop_limit: network.hop_limit,
        flags: header[13],
        sequence: u32::from_be_bytes([header[4], header[5], header[6], header[7]]),
        acknowledgement: u32::from_be_bytes([header[8], header[9], header[10], header[11]]),
        window: u16::from_be_bytes([header[14], header[15]]),
        network_offset: network.offset,
        transport_offset: network.transport_offset,
        payload_offset,
        payload_length: network.end - payload_offset,
    })
}

#[inline(always)]
fn udp<F: Frame>(frame: &F, network: &Network) -> Result<Packet, Reason> {
    let header: [u8; 8] = frame
        .read(network.transport_offset)
        .ok_or(Reason::Truncated)?;
    let payload_offset = network.transport_offset + 8;
    if payload_offset > network.end {
        return Err(Reason::Malformed);
    }
    Ok(Packet {
        source: Endpoint::new(network.source, u16::from_be_bytes([header[0], header[1]])),
        destination: Endpoint::new(
            network.destination,
            u16::from_be_bytes([header[2], header[3]]),
        ),
        transport: Transport::Udp,
        ipv6: network.ipv6,
        hop_limit: network.hop_limit,
        flags: 0,
        sequence: 0,
        acknowledgement: 0,
        window: 0,
        network_offset: network.offset,
        transport_offset: network.transport_offset,
        payload_offset,
        payload_length: network.end - payload_offset,
    })
}
