//! The headers in front of the tunnel's own: IP and UDP.

use crate::flow::Address;
use crate::policy::Agent;
use crate::tunnel::{OVERHEAD_IPV4, OVERHEAD_IPV6};

/// Lower effort (RFC 8622) in the traffic class field: clones yield.
const TRAFFIC_CLASS: u8 = 1 << 2;
const TIME_TO_LIVE: u8 = 64;
const PROTOCOL_UDP: u8 = 17;

/// Bytes that a copy adds to a packet on the way to `agent`.
#[inline(always)]
pub const fn overhead(agent: &Agent) -> u32 {
    if agent.ipv6 == 0 {
        OVERHEAD_IPV4
    } else {
        OVERHEAD_IPV6
    }
}

/// Outer IPv4 and UDP headers for `length` bytes behind them. The UDP checksum is left out
/// (RFC 768): the inner packet has its own.
#[inline(always)]
pub fn ipv4(agent: &Agent, source_port: u16, length: u32) -> [u8; 28] {
    let total = ((length + 28) as u16).to_be_bytes();
    let udp = ((length + 8) as u16).to_be_bytes();
    let [.., s0, s1, s2, s3] = agent.local.octets();
    let [.., d0, d1, d2, d3] = agent.remote.octets();
    let source = source_port.to_be_bytes();
    let port = (agent.port as u16).to_be_bytes();
    let words = [
        u32::from(u16::from_be_bytes([0x45, TRAFFIC_CLASS])),
        u32::from(u16::from_be_bytes(total)),
        // Do not fragment (0x4000); the identification stays 0 (RFC 6864).
        0x4000,
        u32::from(u16::from_be_bytes([TIME_TO_LIVE, PROTOCOL_UDP])),
        u32::from(u16::from_be_bytes([s0, s1])),
        u32::from(u16::from_be_bytes([s2, s3])),
        u32::from(u16::from_be_bytes([d0, d1])),
        u32::from(u16::from_be_bytes([d2, d3])),
    ];
    let mut sum =
        words[0] + words[1] + words[2] + words[3] + words[4] + words[5] + words[6] + words[7];
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    let checksum = (!(sum as u16)).to_be_bytes();
    [
        0x45,
        TRAFFIC_CLASS,
        total[0],
        total[1],
        0,
        0,
        0x40,
        0,
        TIME_TO_LIVE,
        PROTOCOL_UDP,
        checksum[0],
        checksum[1],
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
        source[0],
        source[1],
        port[0],
        port[1],
        udp[0],
        udp[1],
        0,
        0,
    ]
}

/// Outer IPv6 and UDP headers for `length` bytes behind them, with the zero checksum that tunnels
/// may use (RFC 6935).
#[inline(always)]
pub fn ipv6(agent: &Agent, source_port: u16, length: u32) -> [u8; 48] {
    let udp = ((length + 8) as u16).to_be_bytes();
    let source = source_port.to_be_bytes();
    let port = (agent.port as u16).to_be_bytes();
    let mut header = [0; 48];
    header[0] = 0x60 | (TRAFFIC_CLASS >> 4);
    header[1] = TRAFFIC_CLASS << 4;
    header[4] = udp[0];
    header[5] = udp[1];
    header[6] = PROTOCOL_UDP;
    header[7] = TIME_TO_LIVE;
    put_address(&mut header, 8, agent.local);
    put_address(&mut header, 24, agent.remote);
    header[40] = source[0];
    header[41] = source[1];
    header[42] = port[0];
    header[43] = port[1];
    header[44] = udp[0];
    header[45] = udp[1];
    header
}

#[inline(always)]
fn put_address(header: &mut [u8; 48], offset: usize, address: Address) {
    let octets = address.octets();
    let mut i = 0;
    while i < 16 {
        header[offset + i] = octets[i];
        i += 1;
    }
}
