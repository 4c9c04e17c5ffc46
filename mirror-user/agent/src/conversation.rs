//! For tests: conversations as a tap copies them, as datagrams of the tunnel.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use mirror_common::packet::{ACK, FIN, Link, RST, SYN, parse};
use mirror_common::tunnel::mac::Key;
use mirror_common::tunnel::{Arm, Direction, Header, Meta};

use mirror_wire::fixtures::ipv4;

use mirror_api::tap_report::{LaneSent, ServiceReport, TapReport};

/// What an ordinary path carries of TCP's payload in one segment.
pub(crate) const SEGMENT: usize = 1_448;

/// The version on trial, as the tap calls it.
pub(crate) const CANARY: &str = "v13-canary";

/// What a tap signs its datagrams with.
pub(crate) const KEY: Key = [17, 4];

/// A tap with one CPU.
pub(crate) struct Tap {
    boot: u64,
    /// The number that the agent gave it.
    pub(crate) number: u16,
    reports: u64,
    copies: u64,
    bytes: u64,
    /// Its clock.
    pub(crate) time_ns: u64,
    /// What it says that it copies.
    pub(crate) requests_only: bool,
}

impl Tap {
    pub(crate) fn new(boot: u64) -> Self {
        Self {
            boot,
            number: 1,
            reports: 0,
            copies: 0,
            bytes: 0,
            // In steps of 1,024 ns, as they are on the wire.
            time_ns: 1_024_000_000,
            requests_only: false,
        }
    }

    pub(crate) fn copies(&self) -> u64 {
        self.copies
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its next report.
    pub(crate) fn report(&mut self, services: &[(u32, &str)]) -> TapReport {
        self.reports += 1;
        TapReport {
            boot: self.boot,
            number: self.reports,
            sent_at_ns: self.time_ns,
            lanes: vec![LaneSent {
                lane: 0,
                copies: self.copies,
                bytes: self.bytes,
            }],
            services: services
                .iter()
                .map(|&(id, version)| ServiceReport {
                    id,
                    name: format!("service-{id}"),
                    stable_version: version.into(),
                    canary_version: Some(CANARY.into()),
                    mirror: true,
                    requests_only: self.requests_only,
                    sample: 1.0,
                    ..ServiceReport::default()
                })
                .collect(),
        }
    }

    pub(crate) fn copy(
        &mut self,
        service: u32,
        direction: Direction,
        arm: Arm,
        packet: &[u8],
        length: usize,
    ) -> Vec<u8> {
        self.time_ns += 10_240;
        let mut header = Header {
            vni: service,
            ipv6: false,
            meta: Meta {
                direction,
                arm,
                piece: false,
                last_piece: false,
                cpu: 0,
                length: length as u32,
                sequence: self.copies as u32,
                time_ns: self.time_ns,
                tap: self.number,
                mac: 0,
            },
        };
        // What is no packet cannot be signed, and is not believed.
        if let Ok(packet) = parse(&packet, packet.len() as u32, Link::Ip) {
            header.meta.mac = header.mac(KEY, &packet);
        }
        self.copies += 1;
        self.bytes += length as u64;
        let mut datagram = header.encode().to_vec();
        datagram.extend_from_slice(packet);
        datagram
    }
}

/// One client's connection to a service.
pub(crate) struct Connection {
    pub(crate) service: u32,
    pub(crate) arm: Arm,
    pub(crate) client: SocketAddrV4,
    pub(crate) server: SocketAddrV4,
    /// Next sequence numbers of the client and of the server.
    next: [u32; 2],
}

impl Connection {
    pub(crate) fn new(service: u32, client_port: u16) -> Self {
        Self {
            service,
            arm: Arm::Stable,
            client: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 7), client_port),
            server: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 5), 8000),
            next: [u32::MAX - 500, 77],
        }
    }

    pub(crate) fn client(&self) -> SocketAddr {
        self.client.into()
    }

    fn segment(
        &mut self,
        tap: &mut Tap,
        direction: Direction,
        flags: u8,
        payload: &[u8],
    ) -> Vec<u8> {
        let (from, to) = match direction {
            Direction::Request => (self.client, self.server),
            Direction::Response => (self.server, self.client),
        };
        let [ours, theirs] = match direction {
            Direction::Request => [0, 1],
            Direction::Response => [1, 0],
        };
        let packet = ipv4(from, to, self.next[ours], self.next[theirs], flags, payload);
        let moves = payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0);
        self.next[ours] = self.next[ours].wrapping_add(moves);
        tap.copy(self.service, direction, self.arm, &packet, payload.len())
    }

    /// SYN and SYN-ACK.
    pub(crate) fn open(&mut self, tap: &mut Tap) -> Vec<Vec<u8>> {
        vec![
            self.segment(tap, Direction::Request, SYN, b""),
            self.segment(tap, Direction::Response, SYN | ACK, b""),
        ]
    }

    /// Bytes from the client, cut into segments.
    pub(crate) fn request(&mut self, tap: &mut Tap, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.send(tap, Direction::Request, bytes, SEGMENT)
    }

    /// Bytes from the server, cut into segments.
    pub(crate) fn response(&mut self, tap: &mut Tap, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.send(tap, Direction::Response, bytes, SEGMENT)
    }

    fn send(
        &mut self,
        tap: &mut Tap,
        direction: Direction,
        bytes: &[u8],
        segment: usize,
    ) -> Vec<Vec<u8>> {
        bytes
            .chunks(segment)
            .map(|chunk| self.segment(tap, direction, ACK, chunk))
            .collect()
    }

    /// Both FINs.
    pub(crate) fn close(&mut self, tap: &mut Tap) -> Vec<Vec<u8>> {
        vec![
            self.segment(tap, Direction::Request, FIN | ACK, b""),
            self.segment(tap, Direction::Response, FIN | ACK, b""),
        ]
    }

    /// A reset by the client.
    pub(crate) fn reset(&mut self, tap: &mut Tap) -> Vec<Vec<u8>> {
        vec![self.segment(tap, Direction::Request, RST, b"")]
    }
}
