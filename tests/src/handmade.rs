//! TCP by hand: segments that are sent when a test says so, from addresses that no host has.

use std::io::{self, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mirror_common::packet::{self, ACK, FIN, Link, RST, SYN};
use socket2::{Domain, Protocol, SockAddr, SockFilter, Socket, Type};

use crate::client::{Request, Response, read_response};
use crate::cpus;
use crate::namespace::Namespace;
use crate::wait::LIMIT;

/// Push: the server should read now.
const PSH: u8 = 8;

/// The maximum segment size, as an option (RFC 9293, 3.2): Ethernet's.
const MAX_SEGMENT: [u8; 4] = [2, 4, 5, 0xb4];

/// A segment, IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Who sends it.
    pub source: SocketAddrV4,
    /// Who it is for.
    pub destination: SocketAddrV4,
    /// The first byte's number.
    pub sequence: u32,
    /// The number that is expected next, where `flags` have ACK.
    pub acknowledgement: u32,
    /// As in the header.
    pub flags: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Segment {
    /// With an IPv4 header that wants its checksum: the kernel fills it in.
    fn bytes(&self) -> Vec<u8> {
        let options: &[u8] = if self.flags & SYN == 0 {
            &[]
        } else {
            &MAX_SEGMENT
        };
        let header = 20 + options.len();
        let mut tcp = Vec::with_capacity(header + self.payload.len());
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.sequence.to_be_bytes());
        tcp.extend(self.acknowledgement.to_be_bytes());
        tcp.extend([(header as u8 / 4) << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(options);
        tcp.extend(&self.payload);
        let sum = checksum(*self.source.ip(), *self.destination.ip(), &tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 6, 0, 0];
        bytes.extend(self.source.ip().octets());
        bytes.extend(self.destination.ip().octets());
        bytes.extend(tcp);
        bytes
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let packet = packet::parse(&bytes, bytes.len() as u32, Link::Ip).ok()?;
        let address = |address: SocketAddr| match address {
            SocketAddr::V4(address) => Some(address),
            SocketAddr::V6(_) => None,
        };
        let payload = bytes.get(packet.payload_offset as usize..)?;
        Some(Self {
            source: address(packet.source.into())?,
            destination: address(packet.destination.into())?,
            sequence: packet.sequence,
            acknowledgement: packet.acknowledgement,
            flags: packet.flags,
            payload: payload.get(..packet.payload_length as usize)?.to_vec(),
        })
    }
}

/// The checksum of TCP over IPv4 (RFC 9293, 3.1).
fn checksum(source: Ipv4Addr, destination: Ipv4Addr, tcp: &[u8]) -> u16 {
    let length = (tcp.len() as u16).to_be_bytes();
    let pseudo = [
        &source.octets()[..],
        &destination.octets(),
        &[0, 6],
        &length,
    ]
    .concat();
    let words = pseudo.chunks(2).chain(tcp.chunks(2));
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Puts packets with whatever source on the way that the namespace has to their destination.
fn forger(namespace: &Namespace) -> Result<Socket> {
    let raw = || {
        Socket::new(
            Domain::IPV4,
            Type::RAW,
            Some(Protocol::from(libc::IPPROTO_RAW)),
        )
    };
    namespace
        .run(raw)
        .with_context(|| format!("{}: no raw socket", namespace.name()))
}

/// Sends segments, whoever is said to send them.
///
/// # Errors
/// Needs CAP_NET_RAW.
pub fn forge(namespace: &Namespace, segments: &[Segment]) -> Result<()> {
    let socket = forger(namespace)?;
    for segment in segments {
        socket.send_to(&segment.bytes(), &SockAddr::from(segment.destination))?;
    }
    Ok(())
}

/// Sends `count` SYNs to `server`, each from another address and port, beginning with `from`. Each CPU
/// sends its part: what the kernel evicts of a table it takes from what the CPU that adds has in sight.
///
/// # Errors
/// Needs CAP_NET_RAW.
pub fn flood(
    namespace: &Namespace,
    server: SocketAddrV4,
    from: Ipv4Addr,
    count: u32,
) -> Result<()> {
    let cpus = cpus::allowed()?;
    let send = |first: usize| -> Result<()> {
        cpus::bind(cpus[first])?;
        let socket = forger(namespace)?;
        for number in (first as u32..count).step_by(cpus.len()) {
            let source = Ipv4Addr::from_bits(from.to_bits() + number);
            let port = 1024 + (number % 60_000) as u16;
            let segment = Segment {
                source: SocketAddrV4::new(source, port),
                destination: server,
                sequence: number,
                acknowledgement: 0,
                flags: SYN,
                payload: Vec::new(),
            };
            socket.send_to(&segment.bytes(), &SockAddr::from(server))?;
        }
        Ok(())
    };
    let send = &send;
    thread::scope(|scope| {
        let start = |first| scope.spawn(move || send(first));
        let threads: Vec<_> = (0..cpus.len()).map(start).collect();
        let mut ended = threads.into_iter().map(|thread| thread.join());
        ended.try_for_each(|ended| ended.expect("a sender does not panic"))
    })
}

/// One end of a connection whose other end is a real server. What is sent arrives, and in order:
/// nothing is sent again by itself.
#[derive(Debug)]
pub struct Handmade {
    sender: Socket,
    listener: Socket,
    client: SocketAddrV4,
    server: SocketAddrV4,
    /// The next byte that is sent.
    sequence: u32,
    /// The next byte that should come.
    expected: u32,
    /// Payload that has come and was not read.
    arrived: io::Cursor<Vec<u8>>,
    /// The server's FIN has come.
    finished: bool,
}

impl Handmade {
    /// A client that is not there, behind `device` of `namespace`: the server must have a route to
    /// it, and the namespace must not answer for it.
    ///
    /// # Errors
    /// Needs CAP_NET_RAW.
    pub fn new(
        namespace: &Namespace,
        device: &str,
        client: SocketAddrV4,
        server: SocketAddrV4,
    ) -> Result<Self> {
        let listener = namespace.run(|| listener(device, *client.ip()));
        Ok(Self {
            sender: forger(namespace)?,
            listener: listener.context("no packet socket")?,
            client,
            server,
            sequence: 0,
            expected: 0,
            arrived: io::Cursor::default(),
            finished: false,
        })
    }

    /// Sends a SYN with this sequence number.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn syn(&mut self, initial: u32) -> Result<()> {
        (self.sequence, self.expected, self.finished) = (initial, 0, false);
        self.send(SYN, &[])?;
        self.sequence = initial.wrapping_add(1);
        Ok(())
    }

    /// Waits for the SYN's acknowledgement, and says nothing to it.
    ///
    /// # Errors
    /// When something else comes, or nothing.
    pub fn syn_ack(&mut self) -> Result<()> {
        let heard = self.hear()?;
        let right =
            heard.flags & (SYN | ACK | RST) == SYN | ACK && heard.acknowledgement == self.sequence;
        ensure!(right, "{heard:?} is no answer to the SYN");
        self.expected = heard.sequence.wrapping_add(1);
        Ok(())
    }

    /// Acknowledges everything that has come so far.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn ack(&mut self) -> Result<()> {
        self.send(ACK, &[])
    }

    /// Opens the connection.
    ///
    /// # Errors
    /// When the server does not take it.
    pub fn open(&mut self, initial: u32) -> Result<()> {
        self.syn(initial)?;
        self.syn_ack()?;
        self.ack()
    }

    /// Sends a request and reads its answer, all of which is acknowledged; a FIN is not.
    ///
    /// # Errors
    /// When it fails.
    pub fn ask(&mut self, request: &Request) -> Result<Response> {
        let mut bytes = request.head(self.server.into(), "handmade");
        bytes.extend(request.framed_body());
        self.send(ACK | PSH, &bytes)?;
        read_response(&mut BufReader::new(&mut *self), false)
    }

    /// Ends this side.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn fin(&mut self) -> Result<()> {
        self.send(FIN | ACK, &[])?;
        self.sequence = self.sequence.wrapping_add(1);
        Ok(())
    }

    /// Waits for the end of the server's side, which stays without acknowledgement until
    /// [`ack_fin`](Self::ack_fin).
    ///
    /// # Errors
    /// When something else comes, or nothing.
    pub fn server_fin(&mut self) -> Result<()> {
        while !self.finished {
            let heard = self.hear()?;
            ensure!(heard.flags & RST == 0, "{heard:?}");
            ensure!(heard.payload.is_empty(), "{heard:?} is not read yet");
            self.finished = heard.flags & FIN != 0;
        }
        Ok(())
    }

    /// Acknowledges it.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn ack_fin(&mut self) -> Result<()> {
        self.expected = self.expected.wrapping_add(1);
        self.ack()
    }

    /// Waits for an acknowledgement of everything that was sent.
    ///
    /// # Errors
    /// When none comes.
    pub fn acknowledged(&mut self) -> Result<()> {
        loop {
            let heard = self.hear()?;
            ensure!(heard.flags & RST == 0, "{heard:?}");
            self.finished |= heard.flags & FIN != 0;
            if heard.acknowledgement == self.sequence {
                return Ok(());
            }
        }
    }

    /// Refuses a segment that belongs to no connection (RFC 9293, 3.10.7.3).
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn refuse(&mut self, heard: &Segment) -> Result<()> {
        let sequence = std::mem::replace(&mut self.sequence, heard.acknowledgement);
        self.send(RST, &[])?;
        self.sequence = sequence;
        Ok(())
    }

    /// What comes next.
    ///
    /// # Errors
    /// When nothing does.
    pub fn hear(&mut self) -> Result<Segment> {
        let mut buffer = vec![0; 1 << 16];
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            let length = match (&self.listener).read(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            };
            match Segment::parse(&buffer[..length]) {
                Some(heard) if (heard.source, heard.destination) == (self.server, self.client) => {
                    return Ok(heard);
                }
                _ => {}
            }
        }
        bail!("{} says nothing to {}", self.server, self.client)
    }

    /// Sends a segment with these flags.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn send(&mut self, flags: u8, payload: &[u8]) -> Result<()> {
        let segment = Segment {
            source: self.client,
            destination: self.server,
            sequence: self.sequence,
            acknowledgement: if flags & ACK == 0 { 0 } else { self.expected },
            flags,
            payload: payload.to_vec(),
        };
        self.sender
            .send_to(&segment.bytes(), &SockAddr::from(self.server))?;
        self.sequence = self.sequence.wrapping_add(payload.len() as u32);
        Ok(())
    }
}

/// The payload that the server sends, each segment acknowledged.
impl Read for Handmade {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.arrived.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
            let heard = self.hear().map_err(io::Error::other)?;
            if heard.flags & RST != 0 {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if heard.sequence == self.expected && !heard.payload.is_empty() {
                self.expected = self.expected.wrapping_add(heard.payload.len() as u32);
                self.finished = heard.flags & FIN != 0;
                self.arrived = io::Cursor::new(heard.payload);
                self.ack().map_err(io::Error::other)?;
            }
        }
    }
}

/// Hears the IPv4 packets for one address that come in by a device.
fn listener(device: &str, address: Ipv4Addr) -> io::Result<Socket> {
    // Linux takes the protocol in network byte order.
    let protocol = (libc::ETH_P_IP as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(0)))?;
    let filter = |code: u32, jt, jf, k| SockFilter::new(code as u16, jt, jf, k);
    socket.attach_filter(&[
        // The destination address.
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 16),
        filter(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            address.to_bits(),
        ),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ])?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let index = nix::net::if_::if_nametoindex(device)?;
    let place = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address lives through the call, and its size is told.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const place).cast(),
            size_of_val(&place) as u32,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_read_as_they_were_written() {
        let segment = Segment {
            source: SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 1), 40_000),
            destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 5), 8000),
            sequence: 7,
            acknowledgement: 9,
            flags: SYN | ACK,
            payload: b"hello".to_vec(),
        };
        let mut bytes = segment.bytes();
        // What the kernel would fill in.
        let length = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(Segment::parse(&bytes), Some(segment));
        let sum = checksum(
            Ipv4Addr::new(10, 9, 0, 1),
            Ipv4Addr::new(10, 0, 0, 5),
            &bytes[20..],
        );
        assert_eq!(sum, 0, "a segment's checksum makes its sum zero");
    }
}
