//! Frames for programs that are run without a network.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use etherparse::PacketBuilder;

/// Whom packets come from, but for those that are about many clients.
pub(crate) const CLIENT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 40_000);

/// A port of the node.
pub(crate) const fn node(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 5), port)
}

/// What a TCP packet is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Segment {
    /// It opens a connection.
    Syn,
    /// It acknowledges, and brings so many bytes.
    Data(usize),
}

/// A TCP packet.
pub(crate) fn tcp(from: SocketAddrV4, to: SocketAddrV4, segment: Segment) -> Result<Vec<u8>> {
    let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(from.ip().octets(), to.ip().octets(), 64)
        .tcp(from.port(), to.port(), 1, 65_000);
    let (step, payload) = match segment {
        Segment::Syn => (step.syn(), 0),
        Segment::Data(payload) => (step.ack(1), payload),
    };
    let mut frame = Vec::new();
    step.write(&mut frame, &vec![0; payload])
        .context("cannot build a frame")?;
    Ok(frame)
}

/// A UDP packet of 1,000 bytes.
pub(crate) fn udp(from: SocketAddrV4, to: SocketAddrV4) -> Result<Vec<u8>> {
    let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4(from.ip().octets(), to.ip().octets(), 64)
        .udp(from.port(), to.port());
    let mut frame = Vec::new();
    step.write(&mut frame, &[0; 1000])
        .context("cannot build a frame")?;
    Ok(frame)
}

/// A frame that is no IP packet.
pub(crate) fn arp() -> Vec<u8> {
    let mut frame = vec![0; 60];
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    frame
}
