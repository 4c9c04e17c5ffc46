//! A short look at the services' packets as they pass, for what they speak. Nothing is sent, and
//! nothing of what is seen is kept: packet(7) sockets with a filter for the services' ports, which
//! get the first bytes of each packet.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mirror_common::flow::Endpoint;
use mirror_common::packet::{self, Link, Transport};
use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

/// How long to look. It ends earlier when enough is known.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes of each packet: the longest headers, and the beginning of a payload.
const SNAP: u32 = 160;

/// Ports that one filter knows: its jumps reach no further.
const PORTS: usize = 100;

/// Payloads that are enough to know what a port speaks.
const ENOUGH: u32 = 3;

/// What payloads began with, as far as it was understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// TLS records (RFC 8446, section 5.1).
    pub(super) tls: u32,
    /// Request or status lines of HTTP/1 (RFC 9112).
    pub(super) http1: u32,
    /// Prefaces of HTTP/2 (RFC 9113, section 3.4).
    pub(super) http2: u32,
    /// Anything else: mostly the middle of something longer.
    pub(super) other: u32,
}

impl Heard {
    fn hear(&mut self, payload: &[u8]) {
        let known = match payload {
            [0x14..=0x17, 3, 0..=4, high, low, ..] if is_record(*high, *low) => &mut self.tls,
            _ if payload.starts_with(b"PRI * HTTP/2.0\r\n") => &mut self.http2,
            _ if is_http1(payload) => &mut self.http1,
            _ => &mut self.other,
        };
        *known += 1;
    }

    /// How many payloads there were.
    pub(super) fn all(&self) -> u32 {
        self.tls + self.http1 + self.http2 + self.other
    }

    fn is_enough(&self) -> bool {
        self.tls.max(self.http1) >= ENOUGH || self.http2 > 0
    }
}

/// A record's length: never 0, at most 2^14 bytes and what encryption adds.
fn is_record(high: u8, low: u8) -> bool {
    (1..=(1 << 14) + 2048).contains(&u16::from_be_bytes([high, low]))
}

fn is_http1(payload: &[u8]) -> bool {
    let methods = [
        &b"GET "[..],
        b"POST ",
        b"PUT ",
        b"HEAD ",
        b"DELETE ",
        b"OPTIONS ",
        b"PATCH ",
    ];
    payload.starts_with(b"HTTP/1.") || methods.iter().any(|method| payload.starts_with(method))
}

/// Listens at the interfaces with these numbers to what goes to and from the `ends`, each of which
/// belongs to one of `count` services, and returns what each service was heard to speak. Blocks.
///
/// # Errors
/// When packet sockets are not allowed (CAP_NET_RAW).
pub(super) fn overhear(
    interfaces: &BTreeSet<u32>,
    ends: &BTreeMap<SocketAddr, usize>,
    count: usize,
) -> io::Result<Vec<Heard>> {
    let ports: BTreeSet<u16> = ends.keys().map(SocketAddr::port).collect();
    let ports: Vec<u16> = ports.into_iter().collect();
    let mut ears = Vec::new();
    for &interface in interfaces {
        for ports in ports.chunks(PORTS) {
            ears.push(ear(interface, ports)?);
        }
    }
    let heard = Mutex::new(vec![Heard::default(); count]);
    let until = Instant::now() + PATIENCE;
    std::thread::scope(|scope| {
        for ear in &ears {
            scope.spawn(|| listen(ear, until, ends, &heard));
        }
    });
    Ok(heard.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Ends when enough is known of every service, or it is time.
fn listen(
    mut ear: &Socket,
    until: Instant,
    ends: &BTreeMap<SocketAddr, usize>,
    heard: &Mutex<Vec<Heard>>,
) {
    let heard = || heard.lock().unwrap_or_else(PoisonError::into_inner);
    let mut packet = [0; SNAP as usize];
    while Instant::now() < until && !heard().iter().all(Heard::is_enough) {
        // Nothing within the socket's time-out: another ear may have heard enough.
        let Ok(length) = ear.read(&mut packet) else {
            continue;
        };
        let Some((source, destination, payload)) = take_apart(&packet[..length]) else {
            continue;
        };
        let service = ends.get(&source).or_else(|| ends.get(&destination));
        if let Some(&service) = service {
            heard()[service].hear(payload);
        }
    }
}

/// Both ends of a TCP packet and the beginning of its payload, where it has any.
fn take_apart(packet: &[u8]) -> Option<(SocketAddr, SocketAddr, &[u8])> {
    // What was cut off counts as there: only the beginning is looked at.
    let parsed = packet::parse(&packet, u32::MAX, Link::Ip).ok()?;
    let payload = packet.get(parsed.payload_offset as usize..)?;
    if parsed.transport != Transport::Tcp || parsed.payload_length == 0 || payload.is_empty() {
        return None;
    }
    let end = |end: Endpoint| SocketAddr::new(end.address.into(), end.port());
    Some((end(parsed.source), end(parsed.destination), payload))
}

/// A socket that gets the first bytes of what passes an interface to or from `ports`.
fn ear(interface: u32, ports: &[u16]) -> io::Result<Socket> {
    // Without a protocol it hears nothing until it is bound, and by then it has its filter.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
    socket.attach_filter(&filter(ports))?;
    socket.set_read_timeout(Some(PATIENCE / 10))?;
    let mut address = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is one of the types that the storage is for, and it is all zeroes.
    let link = unsafe { address.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    link.sll_ifindex = interface as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds an address of that family and length.
    socket.bind(&unsafe { SockAddr::new(address, length) })?;
    Ok(socket)
}

/// The program of a socket filter (bpf(4)) that lets the first bytes of unfragmented TCP packets to
/// or from `ports` through. Packets start with the IP header.
fn filter(ports: &[u16]) -> Vec<SockFilter> {
    use libc::{
        BPF_ABS, BPF_ALU, BPF_B, BPF_H, BPF_IMM, BPF_IND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_JSET,
        BPF_K, BPF_LD, BPF_LDX, BPF_MSH, BPF_RET, BPF_RSH,
    };
    const TCP: u32 = 6;
    /// Instructions before the ports, and from there to the two last ones.
    const HEAD: usize = 14;
    let length = HEAD + 2 * (1 + ports.len()) + 2;
    let (drop, accept) = (length - 2, length - 1);
    let mut program = Vec::with_capacity(length);
    let mut step = |code: u32, value: u32, jump: Option<(usize, usize)>| {
        let next = program.len() + 1;
        let (yes, no) = jump.unwrap_or((next, next));
        // `PORTS` keeps them below 256.
        let (yes, no) = ((yes - next) as u8, (no - next) as u8);
        program.push(SockFilter::new(code as u16, yes, no, value));
    };
    step(BPF_LD | BPF_B | BPF_ABS, 0, None);
    step(BPF_ALU | BPF_RSH | BPF_K, 4, None);
    step(BPF_JMP | BPF_JEQ | BPF_K, 4, Some((3, 9)));
    // IPv4: TCP, not a later fragment, and X = the header's length.
    step(BPF_LD | BPF_B | BPF_ABS, 9, None);
    step(BPF_JMP | BPF_JEQ | BPF_K, TCP, Some((5, drop)));
    step(BPF_LD | BPF_H | BPF_ABS, 6, None);
    step(BPF_JMP | BPF_JSET | BPF_K, 0x1fff, Some((drop, 7)));
    step(BPF_LDX | BPF_B | BPF_MSH, 0, None);
    step(BPF_JMP | BPF_JA, (HEAD - 9) as u32, None);
    // IPv6 without extension headers.
    step(BPF_JMP | BPF_JEQ | BPF_K, 6, Some((10, drop)));
    step(BPF_LD | BPF_B | BPF_ABS, 6, None);
    step(BPF_JMP | BPF_JEQ | BPF_K, TCP, Some((12, drop)));
    step(BPF_LDX | BPF_IMM, 40, None);
    step(BPF_JMP | BPF_JA, 0, None);
    // Either port.
    for offset in [0, 2] {
        step(BPF_LD | BPF_H | BPF_IND, offset, None);
        for (at, port) in ports.iter().enumerate() {
            let next = HEAD + 1 + at + 1 + if offset == 0 { 0 } else { 1 + ports.len() };
            step(
                BPF_JMP | BPF_JEQ | BPF_K,
                u32::from(*port),
                Some((accept, next)),
            );
        }
    }
    step(BPF_RET | BPF_K, 0, None);
    step(BPF_RET | BPF_K, SNAP, None);
    program
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::spawn_blocking;

    use super::*;

    fn check(payload: &[u8], expected: Heard) {
        let mut heard = Heard::default();
        heard.hear(payload);
        assert_eq!(heard, expected, "{payload:?}");
    }

    #[test]
    fn payloads_are_told_by_their_first_bytes() {
        let tls = Heard {
            tls: 1,
            ..Heard::default()
        };
        let http1 = Heard {
            http1: 1,
            ..Heard::default()
        };
        let http2 = Heard {
            http2: 1,
            ..Heard::default()
        };
        let other = Heard {
            other: 1,
            ..Heard::default()
        };
        check(&[0x16, 3, 1, 2, 0, 1, 0, 1], tls);
        check(&[0x17, 3, 3, 0x40, 0x11, 9], tls);
        check(&[0x17, 3, 3, 0x50, 0, 9], other);
        check(&[0x17, 3, 3, 0, 0, 9], other);
        check(&[0x18, 3, 3, 0, 9], other);
        check(&[0x16, 3], other);
        check(b"POST /v2/models/m/infer HTTP/1.1\r\n", http1);
        check(b"HTTP/1.1 200 OK\r\n", http1);
        check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", http2);
        check(b"0.25, 0.5]", other);
    }

    /// Somebody says `word` to `listener`, again and again.
    async fn talk(listener: &TcpListener, word: &[u8]) -> io::Result<()> {
        let address = listener.local_addr()?;
        loop {
            let (speaking, hearing) = tokio::join!(TcpStream::connect(address), listener.accept());
            let (mut hearing, _) = hearing?;
            speaking?.write_all(word).await?;
            hearing.read_exact(&mut vec![0; word.len()]).await?;
        }
    }

    /// Needs CAP_NET_RAW.
    #[tokio::test]
    async fn a_port_is_overheard_and_others_are_not() {
        if !nix::unistd::geteuid().is_root() {
            return crate::skip::skip("needs root to overhear");
        }
        let lo = BTreeSet::from([nix::net::if_::if_nametoindex("lo").unwrap()]);
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let service = TcpListener::bind(host).await.unwrap();
            let other = TcpListener::bind(host).await.unwrap();
            let ends = BTreeMap::from([(service.local_addr().unwrap(), 0)]);
            let lo = lo.clone();
            let heard = tokio::select! {
                heard = spawn_blocking(move || overhear(&lo, &ends, 1)) => heard.unwrap().unwrap(),
                ended = talk(&service, b"GET / HTTP/1.1\r\n") => panic!("{ended:?}"),
                ended = talk(&other, &[0x16, 3, 1, 0, 9, 1]) => panic!("{ended:?}"),
            };
            let [heard] = heard[..] else {
                panic!("{heard:?}")
            };
            assert!(
                heard.http1 >= ENOUGH && heard.all() == heard.http1,
                "{heard:?}"
            );
        }
    }

    #[test]
    fn a_filter_reaches_as_many_ports_as_it_is_given() {
        let ports: Vec<u16> = (1..=PORTS as u16).collect();
        assert_eq!(filter(&ports).len(), 14 + 2 * (1 + PORTS) + 2);
    }
}
