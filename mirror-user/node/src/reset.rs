//! Resets TCP connections that no socket of this host belongs to (RFC 9293, 3.5.2).

use std::io;
use std::net::{IpAddr, SocketAddr};

use etherparse::PacketBuilder;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// One side of a connection, as a reset of it is seen by the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    /// Who seems to send it.
    pub(crate) from: SocketAddr,
    /// Who gets it.
    pub(crate) to: SocketAddr,
    /// The next sequence number that the receiver expects: no other is taken for true (RFC 5961).
    pub(crate) sequence: u32,
}

/// Sends resets.
#[derive(Debug)]
pub(crate) struct Resetter {
    v4: Socket,
    v6: Socket,
}

impl Resetter {
    /// # Errors
    /// Without CAP_NET_RAW.
    pub(crate) fn open() -> io::Result<Self> {
        // What is sent through these brings its own IP header.
        let raw = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        Ok(Self {
            v4: raw(Domain::IPV4)?,
            v6: raw(Domain::IPV6)?,
        })
    }

    /// Sends one.
    ///
    /// # Errors
    /// When the kernel has no route, or both ends are not of one family.
    pub(crate) fn send(&self, side: Side) -> io::Result<()> {
        let packet = packet(side)?;
        let socket = if side.to.is_ipv4() {
            &self.v4
        } else {
            &self.v6
        };
        // A raw socket of IPv6 wants no port.
        let to = SockAddr::from(SocketAddr::new(side.to.ip(), 0));
        socket.send_to(&packet, &to).map(drop)
    }
}

fn packet(Side { from, to, sequence }: Side) -> io::Result<Vec<u8>> {
    const HOPS: u8 = 64;
    let builder = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), HOPS),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), HOPS),
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let builder = builder.tcp(from.port(), to.port(), sequence, 0).rst();
    let mut packet = Vec::with_capacity(builder.size(0));
    builder
        .write(&mut packet, &[])
        .map_err(|error| io::Error::other(error.to_string()))?;
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{SlicedPacket, TransportSlice};

    #[track_caller]
    fn check(from: &str, to: &str) {
        let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
        let sequence = 0x0102_0304;
        let packet = packet(Side { from, to, sequence }).unwrap();
        let sliced = SlicedPacket::from_ip(&packet).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
            panic!("{sliced:?}");
        };
        assert!(tcp.rst() && !tcp.ack() && tcp.sequence_number() == sequence);
        assert_eq!(
            (tcp.source_port(), tcp.destination_port()),
            (from.port(), to.port())
        );
    }

    #[test]
    fn a_reset_says_whose_it_is() {
        check("10.0.0.5:8000", "10.0.0.2:40000");
        check("[fd00::5]:8000", "[fd00::2]:40000");
        let (v4, v6) = (
            "10.0.0.5:1".parse().unwrap(),
            "[fd00::5]:1".parse().unwrap(),
        );
        let mixed = Side {
            from: v4,
            to: v6,
            sequence: 0,
        };
        assert!(packet(mixed).is_err());
    }
}
