//! What becomes of the packets of a canary on another host, byte for byte: the same table at TC and
//! at XDP, held against an independent implementation of the headers.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use etherparse::{PacketBuilder, PacketHeaders, TcpHeader, TcpOptionElement, TransportHeader};
use mirror_api::XdpHook;
use mirror_common::policy::{Service, Tap, WHOLE};
use mirror_common::steer::{Steering, flag};
use mirror_common::translate::{MAX_LOCAL, Ports, Way};
use mirror_node::dataplane::{DataPlane, Interface, Sizes};
use tests::{Home, Namespace, privileged, veth};

mod forged;

/// Verdicts by which a packet leaves for another host, or goes on.
const TC_REDIRECT: i32 = 7;
const TC_NEXT: i32 = -1;
const TC_DROP: i32 = 2;
const XDP_REDIRECT: i32 = 4;
const XDP_TX: i32 = 3;
const XDP_PASS: i32 = 2;

const CLIENT_PORT: u16 = 40_000;
const PORTS: Ports = Ports {
    first: 61_000,
    count: 100,
};
/// Packets of 1,000 bytes fit the way.
const MTU: u32 = 1_000;
/// An interface that there is not: nobody looks in such a run.
const ELSEWHERE: u32 = 4_000;

/// Client, service, our address towards the canary, canary.
#[derive(Clone, Copy)]
struct Hosts {
    client: IpAddr,
    service: IpAddr,
    local: IpAddr,
    canary: IpAddr,
}

fn hosts(ipv6: bool) -> Hosts {
    let address = |v4: [u8; 4], v6: u16| match ipv6 {
        false => IpAddr::from(v4),
        true => IpAddr::from([0xfd00, v6 >> 8, 0, 0, 0, 0, 0, v6 & 0xff]),
    };
    Hosts {
        client: address([10, 0, 0, 2], 0x002),
        service: address([10, 0, 0, 5], 0x005),
        local: address([10, 1, 0, 5], 0x105),
        canary: address([10, 1, 0, 9], 0x109),
    }
}

/// A node whose canary is elsewhere and gets every connection.
struct Node {
    plane: DataPlane,
    /// Holds the pins.
    _home: Home,
    program: &'static str,
    device: u32,
    hosts: Hosts,
}

impl Node {
    /// Inside a namespace with a device `eth0`.
    fn new(program: &'static str, ipv6: bool) -> Result<Self> {
        let home = Home::new()?;
        let hosts = hosts(ipv6);
        let mut plane = DataPlane::load(
            mirror_programs::OBJECT,
            home.pins(),
            None,
            Sizes::small(1_024),
        )?;
        let service = Service {
            index: 1,
            id: 101,
            here: 1,
            ..Service::default()
        };
        let end = SocketAddr::new(hosts.service, 8000).into();
        plane.set_services(&HashMap::from([(end, service)]))?;
        plane.set_tap(Tap {
            heartbeat_ns: u64::MAX / 2,
            boot: 1,
            key: [1, 2],
            ..Tap::default()
        })?;
        plane.set_translated_ports(PORTS)?;
        let steering = Steering {
            canary: SocketAddr::new(hosts.canary, 8001).into(),
            threshold: WHOLE,
            burst_ns: 1_000_000_000,
            flags: flag::PRESENT | flag::AWAY | flag::TRANSLATED | flag::XDP,
            way: Way {
                local: [hosts.local.into(); MAX_LOCAL],
                locals: 1,
                pad: 0,
                next_hop: hosts.canary.into(),
                ifindex: ELSEWHERE,
                mtu: MTU,
                macs: [0x0100_0002, 0x0002_0900, 0x0500_0100],
                veth: 0,
            },
            ..Steering::default()
        };
        plane.set_steering(1, steering)?;
        let device = nix::net::if_::if_nametoindex("eth0")?;
        let interface = Interface {
            name: "eth0".to_owned(),
            index: device,
            ethernet: true,
        };
        // Only then does the kernel take runs for frames that came in there.
        plane.attach_xdp(&interface, Some(XdpHook::Native))?;
        Ok(Self {
            plane,
            _home: home,
            program,
            device,
            hosts,
        })
    }

    /// Runs a frame that came in by `eth0`: the verdict, and what was left of it.
    fn run(&mut self, frame: &[u8]) -> Result<(i32, Vec<u8>)> {
        let length = frame.len() as u32;
        let words: &[u32] = match self.program {
            // `struct xdp_md`: data, data_end, data_meta, ingress_ifindex.
            "early" => &[0, length, 0, self.device, 0, 0],
            // `struct __sk_buff` up to `ifindex`.
            _ => &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, self.device],
        };
        let context: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let ran = self.plane.test_frame(self.program, frame, Some(&context));
        ran.with_context(|| format!("{}: {frame:02x?}", self.program))
    }

    /// The same, and what is left to TC is taken there.
    fn take(&mut self, frame: &[u8]) -> Result<(i32, Vec<u8>)> {
        let (verdict, left) = self.run(frame)?;
        if (self.program, verdict) != ("early", XDP_PASS) {
            return Ok((verdict, left));
        }
        ensure!(left == frame, "{left:02x?} of {frame:02x?}");
        self.program = "ingress";
        let taken = self.run(frame);
        self.program = "early";
        taken
    }

    /// The verdict for what leaves by another interface than it came in by, or by the same.
    fn sent(&self, same: bool) -> i32 {
        match (self.program, same) {
            ("early", false) => XDP_REDIRECT,
            ("early", true) => XDP_TX,
            _ => TC_REDIRECT,
        }
    }

    fn passed(&self) -> i32 {
        match self.program {
            "early" => XDP_PASS,
            _ => TC_NEXT,
        }
    }
}

/// A segment, as it is built and as it is read.
#[derive(Clone, Debug, PartialEq)]
struct Segment {
    source: SocketAddr,
    destination: SocketAddr,
    /// Of `SAFR`.
    flags: &'static str,
    mss: Option<u16>,
    hop_limit: u8,
    sequence: u32,
    acknowledgement: u32,
    payload: Vec<u8>,
}

impl Segment {
    fn new(source: SocketAddr, destination: SocketAddr, flags: &'static str) -> Self {
        Self {
            source,
            destination,
            flags,
            mss: None,
            hop_limit: 64,
            // Both sides begin alike.
            sequence: 1_000,
            acknowledgement: 1_001,
            payload: Vec::new(),
        }
    }

    fn at(self, sequence: u32, acknowledgement: u32) -> Self {
        Self {
            sequence,
            acknowledgement,
            ..self
        }
    }

    fn with(self, payload: &[u8]) -> Self {
        Self {
            payload: payload.to_vec(),
            ..self
        }
    }

    fn frame(&self) -> Vec<u8> {
        let (from, to) = (self.source.port(), self.destination.port());
        let mut header = TcpHeader::new(from, to, self.sequence, 512);
        header.acknowledgment_number = self.acknowledgement;
        header.syn = self.flags.contains('S');
        header.ack = self.flags.contains('A');
        header.fin = self.flags.contains('F');
        header.rst = self.flags.contains('R');
        if let Some(mss) = self.mss {
            use TcpOptionElement::{MaximumSegmentSize, Noop, WindowScale};
            // At an odd offset, as no stack sends it, and all may.
            let options = [WindowScale(7), MaximumSegmentSize(mss), Noop];
            header.set_options(&options).expect("they fit");
        }
        let step = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let step = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                step.ipv4(from.octets(), to.octets(), self.hop_limit)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                step.ipv6(from.octets(), to.octets(), self.hop_limit)
            }
            _ => panic!("{self:?} is of no family"),
        };
        let mut frame = Vec::new();
        let step = step.tcp_header(header);
        step.write(&mut frame, &self.payload).expect("a frame");
        frame
    }

    /// Reads a frame, whose checksums must be right.
    fn read(frame: &[u8], flags: &'static str) -> Result<Self> {
        let headers = PacketHeaders::from_ethernet_slice(frame)?;
        let Some(TransportHeader::Tcp(tcp)) = headers.transport else {
            anyhow::bail!("no TCP: {headers:?}");
        };
        let payload = headers.payload.slice();
        let (source, destination, hop_limit): (IpAddr, IpAddr, u8) = match headers.net {
            Some(etherparse::NetHeaders::Ipv4(ip, _)) => {
                ensure!(ip.header_checksum == ip.calc_header_checksum(), "{ip:?}");
                let expected = tcp.calc_checksum_ipv4_raw(ip.source, ip.destination, payload)?;
                ensure!(tcp.checksum == expected, "{expected:04x}: {tcp:?}");
                (ip.source.into(), ip.destination.into(), ip.time_to_live)
            }
            Some(etherparse::NetHeaders::Ipv6(ip, _)) => {
                let expected = tcp.calc_checksum_ipv6_raw(ip.source, ip.destination, payload)?;
                ensure!(tcp.checksum == expected, "{expected:04x}: {tcp:?}");
                (ip.source.into(), ip.destination.into(), ip.hop_limit)
            }
            other => anyhow::bail!("no IP: {other:?}"),
        };
        let mss = tcp.options_iterator().find_map(|option| match option {
            Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
            _ => None,
        });
        Ok(Self {
            source: SocketAddr::new(source, tcp.source_port),
            destination: SocketAddr::new(destination, tcp.destination_port),
            flags,
            mss,
            hop_limit,
            sequence: tcp.sequence_number,
            acknowledgement: tcp.acknowledgment_number,
            payload: payload.to_vec(),
        })
    }
}

/// Runs `inside` in a namespace with a veth `eth0`, for both programs and both families.
fn each(inside: impl Fn(&mut Node) -> Result<()> + Sync) {
    if !privileged() {
        return;
    }
    let (node, far) = (
        Namespace::new("node").unwrap(),
        Namespace::new("far").unwrap(),
    );
    veth((&node, "eth0"), (&far, "eth0")).unwrap();
    for program in ["ingress", "early"] {
        for ipv6 in [false, true] {
            let run = || inside(&mut Node::new(program, ipv6)?);
            let done = node.run(run);
            done.unwrap_or_else(|error| panic!("{program}, IPv6 {ipv6}: {error:?}"));
        }
    }
}

/// A conversation: what either side sends is what the other gets, but for the addresses, a hop, and
/// the segment size.
#[test]
fn both_ends_are_translated_both_ways() {
    each(|node| {
        let Hosts {
            client,
            service,
            local,
            canary,
        } = node.hosts;
        let [client, service, canary] =
            [(client, CLIENT_PORT), (service, 8000), (canary, 8001)].map(SocketAddr::from);
        let clamped = MTU as u16 - if canary.is_ipv6() { 60 } else { 40 };
        let odd = vec![7; 1_333];
        let steps: [(bool, &str, Option<u16>, &[u8]); 9] = [
            (true, "S", Some(1_460), b""),
            (false, "SA", Some(1_460), b""),
            (true, "A", None, b""),
            (true, "A", None, b"POST / HTTP/1.1\r\n\r\n"),
            (true, "A", None, &odd),
            (false, "A", None, b"HTTP/1.1 200 OK\r\n\r\n"),
            (false, "A", None, &odd),
            (false, "FA", None, b"x"),
            (true, "FA", None, b""),
        ];
        let mut near = None;
        for (request, flags, mss, payload) in steps {
            let from = near.unwrap_or(SocketAddr::new(local, 0));
            let (source, destination) = if request {
                (client, service)
            } else {
                (canary, from)
            };
            let sent = Segment {
                mss,
                payload: payload.to_vec(),
                ..Segment::new(source, destination, flags)
            };
            let (verdict, left) = node.run(&sent.frame())?;
            let got = Segment::read(&left, flags).with_context(|| format!("{sent:?}"))?;
            ensure!(verdict == node.sent(!request), "{verdict} for {sent:?}");
            let from = *near.get_or_insert(got.source);
            ensure!(
                from.ip() == local && PORTS.contains(from.port()),
                "{from} for {sent:?}"
            );
            let (source, destination) = if request {
                (from, canary)
            } else {
                (service, client)
            };
            let expected = Segment {
                source,
                destination,
                mss: mss.map(|_| clamped),
                hop_limit: 63,
                ..sent
            };
            ensure!(got == expected, "got {got:?}, expected {expected:?}");
            // Where it goes at XDP is written there; at TC the kernel does that.
            if node.program == "early" {
                let macs: [u8; 12] = match request {
                    true => [2, 0, 0, 1, 0, 9, 2, 0, 0, 1, 0, 5],
                    false => [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2],
                };
                ensure!(left[..12] == macs, "{:02x?} for {expected:?}", &left[..12]);
            }
        }
        Ok(())
    });
}

/// Whatever is not the canary's, or cannot be taken there, is left as it was.
#[test]
fn all_else_goes_on_untouched() {
    each(|node| {
        let hosts = node.hosts;
        let client = SocketAddr::new(hosts.client, CLIENT_PORT);
        let service = SocketAddr::new(hosts.service, 8000);
        let canary = SocketAddr::new(hosts.canary, 8001);
        let near = SocketAddr::new(hosts.local, PORTS.first as u16);
        let syn = Segment::new(client, service, "S");
        let tagged = {
            let mut frame = syn.frame();
            frame.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
            frame
        };
        let last_hop = Segment {
            hop_limit: 1,
            ..syn.clone()
        };
        let frames = [
            (
                "data without a SYN",
                Segment::new(client, service, "A").frame(),
            ),
            (
                "an answer to nobody",
                Segment::new(canary, near, "SA").frame(),
            ),
            ("a stranger's", Segment::new(client, canary, "S").frame()),
            ("with a VLAN tag", tagged),
            ("on its last hop", last_hop.frame()),
        ];
        for (what, frame) in frames {
            let (verdict, left) = node.run(&frame)?;
            ensure!(verdict == node.passed(), "{what}: {verdict}");
            ensure!(left == frame, "{what}: {left:02x?} of {frame:02x?}");
        }
        Ok(())
    });
}

/// A refused handshake is kept from the client, who asks again and gets stable.
#[test]
fn a_refusal_goes_nowhere() {
    each(|node| {
        let hosts = node.hosts;
        let client = SocketAddr::new(hosts.client, CLIENT_PORT);
        let service = SocketAddr::new(hosts.service, 8000);
        let canary = SocketAddr::new(hosts.canary, 8001);
        // Somebody listens at the service's address as well.
        let services = HashMap::from([(
            service.into(),
            Service {
                index: 1,
                id: 101,
                here: 0,
                ..Service::default()
            },
        )]);
        node.plane.set_services(&services)?;
        let syn = Segment::new(client, service, "S").frame();
        let (_, left) = node.run(&syn)?;
        let near = Segment::read(&left, "S")?.source;
        let other = Segment::new(canary, near, "RA").at(0, 2_000).frame();
        let (verdict, _) = node.take(&other)?;
        ensure!(verdict == TC_REDIRECT, "{verdict} for what refuses another");
        let refusal = Segment::new(canary, near, "RA").at(0, 1_001).frame();
        let (verdict, _) = node.take(&refusal)?;
        ensure!(verdict == TC_DROP, "{verdict}");
        let (verdict, left) = node.run(&syn)?;
        ensure!(
            verdict == node.passed() && left == syn,
            "{verdict}: {left:02x?}"
        );
        // What XDP passes comes by TC, where stable is chosen. Should the canary say yes after all, it
        // is too late.
        node.program = "ingress";
        let (verdict, left) = node.run(&syn)?;
        ensure!(verdict == TC_NEXT && left == syn, "{verdict}: {left:02x?}");
        let (verdict, _) = node.run(&Segment::new(canary, near, "SA").frame())?;
        ensure!(verdict == TC_DROP, "{verdict} for a late answer");
        Ok(())
    });
}
