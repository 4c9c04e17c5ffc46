//! The programs by themselves, one frame at a time through BPF_PROG_TEST_RUN: what each frame is
//! counted as, what its copy looks like, and that the kernel decides as the same code does here.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result};
use etherparse::{PacketBuilder, PacketBuilderStep, TcpHeader, TcpOptionElement, VlanId};
use mirror_common::flow::Endpoint;
use mirror_common::packet::{self, Link};
use mirror_common::policy::{self, Agent, Service, Tap, WHOLE, agent_state};
use mirror_common::record::{SMALLEST_RING, value_size};
use mirror_common::tunnel::{Arm, Datagram, Direction, Header, Meta, decode};
use mirror_common::verdict::{Reason, Verdict};
use mirror_node::dataplane::{DataPlane, Interface, Role, Sizes};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tests::{Home, Namespace, privileged, veth};

mod programs;
mod ring;

const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 1], 40_000);
const SERVER: ([u8; 4], u16) = ([10, 0, 0, 5], 8000);
const AGENT: ([u8; 4], u16) = ([10, 1, 0, 9], 6181);
const KEY: [u64; 2] = [7, 11];
/// The number and the key that the agent knows copies by.
const TAP: u16 = 0x0102;
const MAC_KEY: [u64; 2] = [0x1234_5678_9abc_def0, 19];
/// TCX's "next": the only verdict that a packet of the host may get.
const NEXT: i32 = -1;

/// The programs over maps of their own.
struct Bench {
    plane: DataPlane,
    /// Holds the pins.
    _home: Home,
    service: Service,
    tap: Tap,
    agent: Agent,
}

impl Bench {
    /// A service at [`SERVER`], all of it mirrored to [`AGENT`], which is alive.
    fn new() -> Result<Self> {
        let home = Home::new()?;
        let plane = DataPlane::load(
            mirror_programs::OBJECT,
            home.pins(),
            None,
            Sizes::small(65_536),
        )?;
        let service = Service {
            index: 1,
            id: 101,
            agent: 0,
            mirror: policy::mirror::BOTH | policy::mirror::arm(Arm::Stable),
            threshold: WHOLE,
            key: KEY,
            byte_cost: 0,
            burst_ns: 0,
            here: 1,
            look: [0; 2],
        };
        let agent = Agent {
            state: 0,
            local: IpAddr::from([10, 1, 0, 5]).into(),
            remote: IpAddr::from(AGENT.0).into(),
            port: AGENT.1.into(),
            mtu: 1500,
            ethernet: 1,
            macs: [0x0201_0002, 0x0403, 0x0605_0807],
            tap: TAP.into(),
            mac_key: MAC_KEY,
            ..Agent::default()
        };
        let tap = Tap {
            heartbeat_ns: now_ns(),
            boot: 1,
            key: KEY,
            ring: value_size(SMALLEST_RING).into(),
        };
        let mut bench = Self {
            plane,
            _home: home,
            service,
            tap,
            agent,
        };
        bench.apply()?;
        Ok(bench)
    }

    fn services(&self) -> HashMap<Endpoint, Service> {
        let agent = SocketAddr::from(AGENT);
        let server = SocketAddr::from(SERVER);
        let ipv6 = SocketAddr::from((SERVER_V6, SERVER.1));
        HashMap::from([
            (Endpoint::from(server), self.service),
            (Endpoint::from(ipv6), self.service),
            (Endpoint::from(agent), Service::default()),
        ])
    }

    fn apply(&mut self) -> Result<()> {
        let services = self.services();
        self.plane.set_services(&services)?;
        self.plane.set_tap(self.tap)?;
        Ok(self.plane.set_agent(0, &self.agent)?)
    }

    /// Rows of no service, of requests and of responses.
    fn rows(&self) -> Result<[[u64; Reason::COUNT]; 3]> {
        Ok([
            self.plane.counts().packets(0)?.packets,
            self.plane.counts().packets(2)?.packets,
            self.plane.counts().packets(3)?.packets,
        ])
    }

    /// Runs `frame` once: the verdict, and the one counter that it moved.
    fn run(&mut self, program: &str, frame: &[u8]) -> Result<(i32, Option<(usize, Reason)>)> {
        let before = self.rows()?;
        let (verdict, _) = self
            .plane
            .test_run(program, frame, None, 1)
            .with_context(|| format!("{program}, {} bytes: {frame:02x?}", frame.len()))?;
        let after = self.rows()?;
        let mut moved = Vec::new();
        for row in 0..3 {
            for reason in Reason::ALL {
                let index = *reason as usize;
                for _ in before[row][index]..after[row][index] {
                    moved.push((row, *reason));
                }
            }
        }
        assert!(
            moved.len() <= 1,
            "one packet, one counter: {moved:?} for {frame:02x?}"
        );
        Ok((verdict, moved.pop()))
    }
}

const CLIENT_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const SERVER_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];

fn now_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    std::time::Duration::from(now.expect("a monotonic clock")).as_nanos() as u64
}

fn ethernet() -> PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
}

/// A TCP segment from `source` to `destination` with these flags.
fn tcp(
    source: ([u8; 4], u16),
    destination: ([u8; 4], u16),
    flags: &str,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = TcpHeader::new(source.1, destination.1, 1000, 65_000);
    flag(&mut header, flags);
    let step = ethernet()
        .ipv4(source.0, destination.0, 64)
        .tcp_header(header);
    let mut frame = Vec::new();
    step.write(&mut frame, payload).expect("a frame");
    frame
}

fn flag(header: &mut TcpHeader, flags: &str) {
    header.acknowledgment_number = 2000;
    for flag in flags.chars() {
        match flag {
            'S' => header.syn = true,
            'A' => header.ack = true,
            'F' => header.fin = true,
            'R' => header.rst = true,
            'P' => header.psh = true,
            _ => panic!("unknown flag {flag}"),
        }
    }
}

fn tcp_v6(source: ([u8; 16], u16), destination: ([u8; 16], u16), payload: &[u8]) -> Vec<u8> {
    let step = ethernet()
        .ipv6(source.0, destination.0, 64)
        .tcp(source.1, destination.1, 1000, 65_000)
        .ack(2000);
    let mut frame = Vec::new();
    step.write(&mut frame, payload).expect("a frame");
    frame
}

fn udp(source: ([u8; 4], u16), destination: ([u8; 4], u16)) -> Vec<u8> {
    let step = ethernet()
        .ipv4(source.0, destination.0, 64)
        .udp(source.1, destination.1);
    let mut frame = Vec::new();
    step.write(&mut frame, b"datagram").expect("a frame");
    frame
}

/// The same with `edit` done to its bytes.
fn edited(mut frame: Vec<u8>, edit: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    edit(&mut frame);
    frame
}

const NONE: usize = 0;
const REQUEST: usize = 1;
const RESPONSE: usize = 2;

#[test]
fn every_frame_has_one_reason_and_goes_on() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut bench = Bench::new()?;
    let request = || tcp(CLIENT, SERVER, "PA", b"POST / HTTP/1.1\r\n\r\n");
    let vlan = |tags: &[u8]| {
        edited(request(), |frame| {
            for _ in tags {
                frame.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
            }
        })
    };
    let mut options = TcpHeader::new(CLIENT.1, SERVER.1, 1, 1);
    options
        .set_options(&[
            TcpOptionElement::MaximumSegmentSize(1460),
            TcpOptionElement::Timestamp(1, 2),
        ])
        .expect("options");
    options.syn = true;
    let mut syn = Vec::new();
    let step = ethernet().ipv4(CLIENT.0, SERVER.0, 64).tcp_header(options);
    step.write(&mut syn, &[]).expect("a frame");
    let mut single = Vec::new();
    let step = ethernet().single_vlan(VlanId::try_new(7).expect("an id"));
    let step = step
        .ipv4(CLIENT.0, SERVER.0, 64)
        .tcp(CLIENT.1, SERVER.1, 1, 1)
        .psh();
    step.write(&mut single, b"x").expect("a frame");

    use Reason::*;
    let table: &[(&str, Vec<u8>, usize, Reason)] = &[
        ("a request", request(), REQUEST, AgentDown),
        (
            "a response",
            tcp(SERVER, CLIENT, "PA", b"HTTP/1.1 200 OK\r\n"),
            RESPONSE,
            AgentDown,
        ),
        ("a SYN with options", syn, REQUEST, AgentDown),
        (
            "a SYN-ACK",
            tcp(SERVER, CLIENT, "SA", b""),
            RESPONSE,
            AgentDown,
        ),
        ("a FIN", tcp(CLIENT, SERVER, "FA", b""), REQUEST, AgentDown),
        ("a RST", tcp(SERVER, CLIENT, "R", b""), RESPONSE, AgentDown),
        (
            "an acknowledgement",
            tcp(CLIENT, SERVER, "A", b""),
            REQUEST,
            PureAck,
        ),
        (
            "an acknowledgement in a padded frame",
            edited(tcp(CLIENT, SERVER, "A", b""), |frame| frame.resize(60, 0)),
            REQUEST,
            PureAck,
        ),
        (
            "IPv6",
            tcp_v6((CLIENT_V6, 1), (SERVER_V6, 8000), b"GET"),
            REQUEST,
            AgentDown,
        ),
        (
            "an IPv6 response",
            tcp_v6((SERVER_V6, 8000), (CLIENT_V6, 1), b"HTTP"),
            RESPONSE,
            AgentDown,
        ),
        ("one VLAN tag", single, REQUEST, AgentDown),
        ("two VLAN tags", vlan(&[1, 2]), REQUEST, AgentDown),
        (
            "three VLAN tags in the frame",
            vlan(&[1, 2, 3, 4]),
            NONE,
            VlanDepth,
        ),
        (
            "IPv4 options",
            edited(request(), |frame| {
                frame[14] = 0x46;
                frame.splice(34..34, [1, 1, 1, 0]);
                let length = frame.len() as u16 - 14;
                frame[16..18].copy_from_slice(&length.to_be_bytes());
            }),
            REQUEST,
            AgentDown,
        ),
        (
            "another port",
            tcp(CLIENT, ([10, 0, 0, 5], 8001), "PA", b"x"),
            NONE,
            NotService,
        ),
        (
            "another address",
            tcp(CLIENT, ([10, 0, 0, 6], 8000), "PA", b"x"),
            NONE,
            NotService,
        ),
        (
            "a UDP datagram to the service",
            udp(CLIENT, SERVER),
            REQUEST,
            Udp,
        ),
        (
            "a UDP datagram from the service",
            udp(SERVER, CLIENT),
            RESPONSE,
            Udp,
        ),
        (
            "the tunnel",
            udp(([10, 1, 0, 5], 50_000), AGENT),
            NONE,
            Tunnel,
        ),
        (
            "the tunnel's echo",
            udp(AGENT, ([10, 1, 0, 5], 50_000)),
            NONE,
            Tunnel,
        ),
        (
            "TCP to the agent's port",
            tcp(CLIENT, AGENT, "PA", b"x"),
            NONE,
            Tunnel,
        ),
        (
            "ARP",
            edited(request(), |frame| frame[12..14].copy_from_slice(&[8, 6])),
            NONE,
            NotIp,
        ),
        (
            "ICMP",
            edited(request(), |frame| frame[23] = 1),
            NONE,
            OtherProtocol,
        ),
        (
            "a first fragment",
            edited(request(), |frame| frame[20] = 0x20),
            NONE,
            Fragment,
        ),
        (
            "a later fragment",
            edited(request(), |frame| frame[21] = 0x10),
            NONE,
            Fragment,
        ),
        (
            "an IPv6 fragment",
            edited(tcp_v6((CLIENT_V6, 1), (SERVER_V6, 8000), b"x"), |frame| {
                frame[20] = 44
            }),
            NONE,
            Fragment,
        ),
        (
            "IPv6 hop-by-hop options",
            edited(tcp_v6((CLIENT_V6, 1), (SERVER_V6, 8000), b"x"), |frame| {
                frame[20] = 0
            }),
            NONE,
            ExtensionHeader,
        ),
        (
            "a short IPv4 header",
            edited(request(), |frame| frame[14] = 0x44),
            NONE,
            Malformed,
        ),
        (
            "a short TCP header",
            edited(request(), |frame| frame[46] = 0x40),
            NONE,
            Malformed,
        ),
        (
            "an IP length beyond the frame",
            edited(request(), |frame| frame[16..18].copy_from_slice(&[5, 0])),
            NONE,
            Truncated,
        ),
        (
            "a frame cut in its TCP header",
            request()[..44].to_vec(),
            NONE,
            Truncated,
        ),
    ];
    for program in ["ingress", "egress"] {
        for (what, frame, row, reason) in table {
            let run = bench.run(program, frame)?;
            assert_eq!(run, (NEXT, Some((*row, *reason))), "{what}, {program}");
        }
    }
    // An uplink that is not tapped looks at nothing but copies.
    assert_eq!(bench.run("uplink", &request())?, (NEXT, None));
    Ok(())
}

#[test]
fn what_stops_the_mirror_is_counted_by_reason() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut bench = Bench::new()?;
    let frame = tcp(CLIENT, SERVER, "PA", b"x");
    let alive = agent_state::ALIVE;
    type Change = fn(&mut Bench);
    let table: [(&str, Change, Reason); 7] = [
        (
            "switched off",
            |bench| bench.service.mirror = 0,
            Reason::Off,
        ),
        (
            "responses only",
            |bench| {
                bench.service.mirror =
                    policy::mirror::bit(Direction::Response) | policy::mirror::arm(Arm::Stable)
            },
            Reason::Off,
        ),
        (
            "no share",
            |bench| bench.service.threshold = 0,
            Reason::NotSampled,
        ),
        (
            "no heartbeat",
            |bench| bench.tap.heartbeat_ns = now_ns() - 5_100_000_000,
            Reason::Stale,
        ),
        (
            "a dead agent",
            |bench| bench.agent.state = 0,
            Reason::AgentDown,
        ),
        (
            "a dropping uplink",
            |bench| bench.agent.state = agent_state::ALIVE | agent_state::PAUSED,
            Reason::Paused,
        ),
        (
            "no such interface",
            |bench| bench.agent.ifindex = 0x7fff_ffff,
            Reason::CloneFailed,
        ),
    ];
    for (what, change, reason) in table {
        bench.service.mirror = policy::mirror::BOTH | policy::mirror::arm(Arm::Stable);
        bench.service.threshold = WHOLE;
        bench.tap.heartbeat_ns = now_ns();
        bench.agent.state = alive;
        change(&mut bench);
        bench.apply()?;
        assert_eq!(
            bench.run("ingress", &frame)?,
            (NEXT, Some((REQUEST, reason))),
            "{what}"
        );
    }
    Ok(())
}

#[test]
fn requests_alone_can_be_mirrored() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut bench = Bench::new()?;
    bench.service.mirror =
        policy::mirror::bit(Direction::Request) | policy::mirror::arm(Arm::Stable);
    bench.apply()?;
    for (from, to, row, reason) in [
        (CLIENT, SERVER, REQUEST, Reason::AgentDown),
        (SERVER, CLIENT, RESPONSE, Reason::Off),
    ] {
        for flags in ["PA", "SA", "F"] {
            let run = bench.run("egress", &tcp(from, to, flags, b"x"))?;
            assert_eq!(run, (NEXT, Some((row, reason))), "{flags}");
        }
    }
    Ok(())
}

/// What the shared code says of `frame`, with the agent dead.
fn judge(frame: &[u8], services: &HashMap<Endpoint, Service>) -> (usize, Reason) {
    let packet = match packet::parse(&frame, frame.len() as u32, Link::Ethernet) {
        Ok(packet) => packet,
        Err(reason) => return (NONE, reason),
    };
    let Some((service, direction)) = policy::find(&packet, |endpoint| services.get(endpoint))
    else {
        return (NONE, Reason::NotService);
    };
    if service.index == 0 {
        return (NONE, Reason::Tunnel);
    }
    let flow = policy::flow(&packet, direction);
    let verdict = policy::decide(
        &packet,
        direction,
        Arm::Stable,
        service,
        || Some(0),
        || false,
        || flow.hash(service.key),
    );
    let reason = match verdict {
        Verdict::Pass(reason) => reason,
        Verdict::Copy => panic!("the agent is dead"),
    };
    (1 + direction as usize, reason)
}

/// BPF_PROG_TEST_RUN refuses frames that end within the IP header that their type announces; those
/// are left to the pure tests.
fn shortest(frame: &[u8]) -> usize {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => 14 + 20,
        Some([0x86, 0xdd]) => 14 + 40,
        _ => 14,
    }
}

/// Frames near the interesting ones: some bytes changed, some cut off.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let v4 = |source, destination| (Just((source, destination)), any::<u8>(), 0_usize..40);
    let seeds = prop_oneof![
        v4(CLIENT, SERVER).prop_map(|((from, to), _, length)| tcp(from, to, "A", &vec![1; length])),
        v4(SERVER, CLIENT).prop_map(|((from, to), _, length)| tcp(
            from,
            to,
            "PA",
            &vec![1; length]
        )),
        v4(CLIENT, SERVER).prop_map(|((from, to), port, _)| tcp(
            (from.0, from.1 + u16::from(port)),
            to,
            "S",
            b""
        )),
        Just(tcp_v6((CLIENT_V6, 1), (SERVER_V6, 8000), b"x")),
        Just(udp(CLIENT, SERVER)),
        Just(udp(AGENT, SERVER)),
    ];
    let edits = proptest::collection::vec((0_usize..64, any::<u8>()), 0..3);
    (
        seeds,
        edits,
        proptest::option::weighted(0.2, 14_usize..80),
        any::<bool>(),
    )
        .prop_map(|(mut frame, edits, cut, tagged)| {
            if tagged {
                frame.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
            }
            for (at, byte) in edits {
                let at = 12 + at;
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            if let Some(cut) = cut {
                frame.truncate(cut);
            }
            frame
        })
}

#[test]
fn kernel_and_host_agree_on_random_frames() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut bench = Bench::new()?;
    bench.service.threshold = WHOLE / 2;
    // Alive for good: the run may take longer than a heartbeat's life.
    bench.tap.heartbeat_ns = u64::MAX / 2;
    bench.apply()?;
    let services = bench.services();
    let mut runner = TestRunner::deterministic();
    let mut seen = HashMap::<Reason, u32>::new();
    let mut agreed = 0;
    while agreed < 20_000 {
        let frame = frames().new_tree(&mut runner).expect("a frame").current();
        if frame.len() < shortest(&frame) {
            continue;
        }
        agreed += 1;
        let expected = judge(&frame, &services);
        assert_eq!(
            bench.run("ingress", &frame)?,
            (NEXT, Some(expected)),
            "{frame:02x?}"
        );
        *seen.entry(expected.1).or_default() += 1;
    }
    assert!(seen.len() >= 10, "too few kinds of frames: {seen:?}");
    Ok(())
}

/// Two namespaces with a cable, the programs at its near end and a sniffer at its far end.
struct Cable {
    node: Namespace,
    _shadow: Namespace,
    socket: socket2::Socket,
    bench: Bench,
}

impl Cable {
    fn new() -> Result<Self> {
        let (node, shadow) = (Namespace::new("node")?, Namespace::new("shadow")?);
        veth((&node, "up0"), (&shadow, "down0"))?;
        let socket = shadow.run(sniffer)?;
        let index = node.run(|| nix::net::if_::if_nametoindex("up0").expect("an index"));
        let mut bench = Bench::new()?;
        bench.agent.ifindex = index;
        bench.agent.state = agent_state::ALIVE;
        bench.apply()?;
        let uplink = Interface {
            name: "up0".into(),
            index,
            ethernet: true,
        };
        let role = Role {
            tapped: false,
            uplink: true,
            ..Role::default()
        };
        node.run(|| bench.plane.attach(&uplink, role))?;
        Ok(Self {
            node,
            _shadow: shadow,
            socket,
            bench,
        })
    }

    /// The next copies of `frame`: UDP payloads.
    fn copies(&mut self, frame: &[u8], count: usize) -> Result<Vec<Vec<u8>>> {
        let (verdict, counted) = self.node.run(|| self.bench.run("ingress", frame))?;
        let reason = counted.map(|(_, reason)| reason);
        assert_eq!((verdict, reason), (NEXT, Some(Reason::Mirrored)));
        (0..count)
            .map(|_| {
                let frame = receive(&self.socket)?;
                let sliced = etherparse::SlicedPacket::from_ethernet(&frame)?;
                let Some(etherparse::TransportSlice::Udp(udp)) = &sliced.transport else {
                    panic!("no UDP: {frame:02x?}")
                };
                Ok(udp.payload().to_vec())
            })
            .collect()
    }
}

#[test]
fn a_copy_is_the_packet_in_a_tunnel() -> Result<()> {
    if !privileged() {
        return Ok(());
    }
    let mut cable = Cable::new()?;
    let payload = b"POST /v2/models/digits/infer HTTP/1.1\r\n\r\n";
    let frame = tcp(CLIENT, SERVER, "PA", payload);
    let run = cable.node.run(|| cable.bench.run("ingress", &frame))?;
    assert_eq!(run, (NEXT, Some((REQUEST, Reason::Mirrored))));

    let copy = receive(&cable.socket)?;
    let sliced = etherparse::SlicedPacket::from_ethernet(&copy).context("an independent parser")?;
    let Some(etherparse::NetSlice::Ipv4(outer)) = &sliced.net else {
        panic!("no IPv4: {copy:02x?}")
    };
    let header = outer.header();
    assert_eq!(header.source_addr(), std::net::Ipv4Addr::new(10, 1, 0, 5));
    assert_eq!(header.destination_addr(), std::net::Ipv4Addr::from(AGENT.0));
    assert_eq!(
        header.header_checksum(),
        header.to_header().calc_header_checksum()
    );
    assert_eq!(header.dcp().value(), 1, "lower effort");
    let Some(etherparse::TransportSlice::Udp(udp)) = &sliced.transport else {
        panic!("no UDP")
    };
    assert_eq!((udp.destination_port(), udp.checksum()), (AGENT.1, 0));
    assert!(udp.source_port() >= 0xc000);
    let Datagram::Geneve {
        header,
        payload: inner,
    } = decode(udp.payload()).expect("GENEVE")
    else {
        panic!("not GENEVE")
    };
    assert_eq!(inner, &frame[14..], "the packet, byte for byte");
    let Meta {
        cpu, time_ns, mac, ..
    } = header.meta;
    assert!(now_ns() - time_ns < 10_000_000_000);
    let meta = Meta {
        direction: Direction::Request,
        arm: Arm::Stable,
        piece: false,
        last_piece: false,
        cpu,
        length: payload.len() as u32,
        sequence: 0,
        time_ns,
        tap: TAP,
        mac,
    };
    assert_eq!(
        header,
        Header {
            vni: 101,
            ipv6: false,
            meta
        }
    );
    let sent = cable.bench.plane.counts().sent(0)?;
    assert_eq!(
        (sent[usize::from(cpu)].copies, sent[usize::from(cpu)].bytes),
        (1, payload.len() as u64)
    );
    Ok(())
}

/// What the option says by RFC 8926 and docs/reference/geneve-format.md, and its MAC by an independent SipHash,
/// of fields that an independent parser found.
#[test]
fn copies_are_signed() -> Result<()> {
    use core::hash::Hasher as _;
    if !privileged() {
        return Ok(());
    }
    let mut cable = Cable::new()?;
    let long = pattern(1400);
    let frames = [
        (tcp(CLIENT, SERVER, "PA", b"request"), 1),
        (tcp(SERVER, CLIENT, "PA", b"response"), 1),
        (tcp_v6((CLIENT_V6, 1), (SERVER_V6, 8000), b"IPv6"), 1),
        (tcp(CLIENT, SERVER, "PA", &[long, pattern(60)].concat()), 2),
        (
            tcp_v6((SERVER_V6, 8000), (CLIENT_V6, 1), &pattern(1_440)),
            2,
        ),
    ];
    for (frame, pieces) in frames {
        for copy in cable.copies(&frame, pieces)? {
            let (header, packet) = copy.split_at(36);
            let number = |at: usize, length: usize| {
                let bytes = header[at..at + length].iter();
                bytes.fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte))
            };
            assert_eq!(number(0, 1), 7, "28 bytes of options");
            assert_eq!((number(8, 2), number(10, 1)), (0xff4d, 2));
            assert_eq!(number(11, 1), 6, "24 bytes in ours");
            assert_eq!(number(26, 2), u64::from(TAP), "tap");
            let inner = etherparse::SlicedPacket::from_ip(packet)?;
            let ipv6 = matches!(inner.net, Some(etherparse::NetSlice::Ipv6(_)));
            let Some(etherparse::TransportSlice::Tcp(segment)) = &inner.transport else {
                panic!("no TCP")
            };
            let ports = [segment.source_port(), segment.destination_port()].map(u64::from);
            let whose = number(4, 3) << 40 | u64::from(ipv6) << 32 | ports[0] << 16 | ports[1];
            let mut words = vec![number(12, 8), number(20, 8), whose];
            let addresses = if ipv6 {
                &packet[8..40]
            } else {
                &packet[12..20]
            };
            words.extend(addresses.chunks(8).map(|address| {
                let word = u64::from_le_bytes(address.try_into().expect("8 bytes"));
                if ipv6 { word } else { word.rotate_left(32) }
            }));
            let mut hasher = siphasher::sip::SipHasher24::new_with_keys(MAC_KEY[0], MAC_KEY[1]);
            for word in words {
                hasher.write(&word.to_le_bytes());
            }
            assert_eq!(number(28, 8), hasher.finish(), "the MAC of {copy:02x?}");
            let Ok(Datagram::Geneve { header, payload }) = decode(&copy) else {
                panic!("no GENEVE")
            };
            let packet = packet::parse(&payload, payload.len() as u32, Link::Ip);
            let packet = packet.expect("a packet");
            assert!(header.is_signed(MAC_KEY, &packet));
            assert!(!header.is_signed(KEY, &packet));
            assert_eq!(header.meta.piece, pieces > 1);
        }
    }
    cable.bench.agent.mac_key = [0; 2];
    cable.bench.apply()?;
    let copies = cable.copies(&tcp(CLIENT, SERVER, "PA", b"no key"), 1)?;
    assert_eq!(copies[0][28..36], [0; 8], "no key, no MAC");
    Ok(())
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| at as u8).collect()
}

/// A socket that sees every frame that comes in.
fn sniffer() -> Result<socket2::Socket> {
    let protocol = socket2::Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let socket = socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(protocol))?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    Ok(socket)
}

/// The next frame that is IPv4 and UDP: links talk among themselves, too.
fn receive(mut socket: &socket2::Socket) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut buffer = vec![0; 65_536];
    loop {
        let length = socket.read(&mut buffer).context("no copy arrived")?;
        let frame = &buffer[..length];
        if frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&17) {
            return Ok(frame.to_vec());
        }
    }
}
