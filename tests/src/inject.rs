//! Frames that no socket would send, put on a cable as they are.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use crate::namespace::Namespace;

/// IPv4's EtherType.
const IPV4: u16 = 0x0800;

/// Sends a frame, from its destination MAC address on, out of a device.
///
/// # Errors
/// Needs CAP_NET_RAW.
pub fn inject(namespace: &Namespace, device: &str, frame: &[u8]) -> Result<()> {
    namespace
        .run(|| send(device, frame))
        .with_context(|| format!("{}: cannot send a frame out of {device}", namespace.name()))
}

fn send(device: &str, frame: &[u8]) -> io::Result<()> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    let index = nix::net::if_::if_nametoindex(device)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    // SAFETY: the frame and the address live through the call, and their sizes are told.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The frames of a connection that a client opens and sends `payload` over, in one segment: SYN
/// and data, with these VLAN tags (EtherType and id), outermost first.
pub fn request_frames(
    client: SocketAddrV4,
    server: SocketAddrV4,
    tags: &[(u16, u16)],
    payload: &[u8],
) -> [Vec<u8>; 2] {
    const SYN: u8 = 2;
    const PSH_ACK: u8 = 24;
    let frame = |sequence: u32, flags: u8, payload: &[u8]| {
        let mut frame = vec![0xff; 6];
        frame.extend([2, 0, 0, 0, 0, 1]);
        for (kind, id) in tags {
            frame.extend(kind.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend(IPV4.to_be_bytes());
        let mut ip = ipv4(*client.ip(), *server.ip(), 20 + payload.len());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
        frame.extend(client.port().to_be_bytes());
        frame.extend(server.port().to_be_bytes());
        frame.extend(sequence.to_be_bytes());
        frame.extend(0_u32.to_be_bytes());
        // Five words of header, a window; nobody on this way verifies the checksum.
        frame.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend(payload);
        frame
    };
    [frame(1_000, SYN, &[]), frame(1_001, PSH_ACK, payload)]
}

/// An IPv4 header (RFC 791) for TCP, without its checksum.
fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, length: usize) -> [u8; 20] {
    let total = ((20 + length) as u16).to_be_bytes();
    let mut header = [0; 20];
    header[..4].copy_from_slice(&[0x45, 0, total[0], total[1]]);
    header[8..10].copy_from_slice(&[64, 6]);
    header[12..16].copy_from_slice(&source.octets());
    header[16..].copy_from_slice(&destination.octets());
    header
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8; 20]) -> u16 {
    let words = bytes.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
