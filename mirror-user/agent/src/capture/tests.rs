use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

use mirror_api::tap_report::Mirrored;
use mirror_common::packet::{ACK, Link, SYN, parse};
use mirror_common::tunnel::mac::Key;
use mirror_common::tunnel::{Arm, Direction, HEADER_LENGTH, Meta};

use super::*;
use crate::conversation::{self, Connection, KEY};
use mirror_base::transport::frame::{Hello, VERSION};

const WAIT: Duration = Duration::from_secs(10);

fn service(id: u32, addresses: &[&str]) -> config::ShadowService {
    let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
    config::ShadowService {
        addresses,
        ..crate::fixtures::service(id, "127.0.0.1:1".parse().unwrap())
    }
}

fn config(listen: SocketAddr, allow: &str) -> config::Shadow {
    config::Shadow {
        listen,
        allow: vec![allow.parse().unwrap()],
        services: vec![service(7, &[]), service(101, &["10.0.0.5:8000"])],
        ..crate::fixtures::shadow()
    }
}

fn memory() -> Memory {
    Memory::new(64 << 20)
}

/// An agent's end and a tap's socket that is connected to it.
fn pair(listen: SocketAddr, from: SocketAddr, allow: &str) -> (Capture, UdpSocket) {
    let capture = Capture::open(&config(listen, allow), vec![bind(listen).unwrap()]).unwrap();
    let mut to = capture.local_address().unwrap();
    if to.ip().is_unspecified() {
        to.set_ip(from.ip());
    }
    let socket = UdpSocket::bind(from).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    (capture, socket)
}

/// The same on loopback, where the tap has said hello.
fn loopback() -> (Capture, UdpSocket) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (mut capture, socket) = pair(any, any, "127.0.0.0/8");
    says(&mut capture, 1, hello(KEY));
    (capture, socket)
}

/// What a tap's connection says of it.
fn says(capture: &mut Capture, tap: u32, item: Item) {
    capture.table.item(TapId(tap), "node", item, &mut |_| ());
}

fn hello(key: Key) -> Item {
    Item::Hello(Hello {
        version: VERSION,
        program: "0.1.0".into(),
        boot: 1,
        transport: Transport::Geneve,
        lanes: Vec::new(),
        mac_key: Some(key),
    })
}

/// Receives until `count` datagrams have come.
fn receive(capture: &mut Capture, count: usize) -> Vec<Segment> {
    receive_when(capture, count, false)
}

fn receive_when(capture: &mut Capture, count: usize, overloaded: bool) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut received = 0;
    while received < count {
        let sink = &mut |segment| segments.push(segment);
        let more = capture.receive(WAIT, overloaded, sink).unwrap();
        assert!(more > 0, "{received} of {count} datagrams in {WAIT:?}");
        received += more;
    }
    segments
}

fn outcomes(capture: &mut Capture) -> Vec<(&'static str, u64, u64)> {
    capture.tick();
    capture.tick();
    let (_, tap) = capture.taps().next().unwrap();
    let totals = tap.totals();
    let outcomes = Outcome::ALL.iter().map(|&outcome| {
        let volume = totals.of(outcome);
        (outcome.label(), volume.copies, volume.bytes)
    });
    outcomes.filter(|&(_, copies, _)| copies > 0).collect()
}

#[test]
fn segments_arrive_as_they_were_copied() {
    let (mut capture, socket) = loopback();
    let mut tap = conversation::Tap::new(1);
    let mut connection = Connection::new(101, 40_000);
    let body: Vec<u8> = (0..4_000_u32).map(|n| n as u8).collect();
    let mut datagrams = connection.open(&mut tap);
    datagrams.extend(connection.request(&mut tap, &body));
    for datagram in &datagrams {
        socket.send(datagram).unwrap();
    }
    let segments = receive(&mut capture, datagrams.len());
    let payload: Vec<u8> = segments
        .iter()
        .filter(|segment| segment.direction == Direction::Request)
        .flat_map(|segment| segment.payload.clone())
        .collect();
    assert_eq!(payload, body);
    let first = &segments[0];
    assert_eq!(
        (first.service, first.flags, first.arm),
        (1, SYN, Arm::Stable)
    );
    let (id, tap) = capture.taps().next().unwrap();
    assert_eq!((first.tap, &*tap.name), (id, "node"));
    assert_eq!(SocketAddr::from(first.flow.client), connection.client());
    assert_eq!(first.time_ns, 1_024_010_240);
    assert_eq!(segments[1].flags, SYN | ACK);
    assert_eq!(segments[1].flow, first.flow);
    assert_eq!(outcomes(&mut capture), [("received", 5, 4_000)]);
}

#[test]
fn a_datagram_of_64_kib_arrives_whole() {
    let (mut capture, socket) = loopback();
    let mut tap = conversation::Tap::new(1);
    let from = Connection::new(101, 1);
    let payload = vec![9; 65_400];
    let packet = mirror_wire::fixtures::ipv4(from.client, from.server, 1, 1, ACK, &payload);
    let datagram = tap.copy(101, Direction::Request, Arm::Canary, &packet, payload.len());
    socket.send(&datagram).unwrap();
    let segments = receive(&mut capture, 1);
    assert_eq!(segments[0].payload, payload);
    assert_eq!(segments[0].arm, Arm::Canary);
}

#[test]
fn a_report_is_remembered() {
    let (mut capture, _socket) = loopback();
    let mut tap = conversation::Tap::new(1);
    says(&mut capture, 1, Item::Report(tap.report(&[(101, "v12")])));
    let (_, known) = capture.taps().next().unwrap();
    assert_eq!(known.services[&101].stable_version, "v12");
    assert!(capture.take_changed() && !capture.take_changed());
    says(&mut capture, 1, Item::Report(tap.report(&[(101, "v12")])));
    assert!(!capture.take_changed());
}

#[test]
fn who_has_not_said_hello_gets_nothing() {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (mut capture, socket) = pair(any, any, "127.0.0.0/8");
    let mut tap = conversation::Tap::new(1);
    for datagram in Connection::new(101, 1).open(&mut tap) {
        socket.send(&datagram).unwrap();
    }
    assert!(receive(&mut capture, 2).is_empty());
    assert_eq!(capture.strays()[Stray::UnknownTap as usize], 2);
    assert_eq!((capture.taps().count(), capture.not_allowed()), (0, 0));
}

#[test]
fn one_end_hears_both_address_families() {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    for from in ["127.0.0.1:0", "[::1]:0"] {
        let (mut capture, socket) = pair(any, from.parse().unwrap(), "10.0.0.5/32");
        says(&mut capture, 1, hello(KEY));
        let mut tap = conversation::Tap::new(1);
        for datagram in Connection::new(101, 1).open(&mut tap) {
            socket.send(&datagram).unwrap();
        }
        // By its key: where it is does not matter.
        assert_eq!(receive(&mut capture, 2).len(), 2, "{from}");
    }
}

#[test]
fn what_cannot_be_used_is_counted_by_name() {
    let (mut capture, socket) = loopback();
    let mut tap = conversation::Tap::new(1);
    let mut stranger = Connection::new(9, 1);
    let mut connection = Connection::new(101, 1);
    let mut datagrams = stranger.request(&mut tap, b"unknown");
    let mut cut = connection.request(&mut tap, b"cut off").remove(0);
    cut.truncate(cut.len() - 3);
    datagrams.push(cut);
    let mut udp =
        mirror_wire::fixtures::ipv4(connection.client, connection.server, 0, 0, 0, b"bad");
    udp[9] = 17;
    datagrams.push(tap.copy(101, Direction::Request, Arm::Stable, &udp, 5));
    datagrams.push(vec![0xff; 40]);
    datagrams.push(vec![0; 4]);
    for datagram in &datagrams {
        socket.send(datagram).unwrap();
    }
    assert!(receive(&mut capture, datagrams.len()).is_empty());
    // What was cut off is nobody's, and its number is missed.
    let expected = [("lost", 1, 0), ("unknown_service", 1, 7), ("not_tcp", 1, 5)];
    assert_eq!(outcomes(&mut capture), expected);
    for stray in [Stray::UnknownEncapsulation, Stray::Truncated, Stray::BadMac] {
        assert_eq!(capture.strays()[stray as usize], 1, "{stray:?}");
    }
}

#[test]
fn an_overloaded_agent_drops_by_name() {
    let (mut capture, socket) = loopback();
    let mut tap = conversation::Tap::new(1);
    let datagram = Connection::new(101, 1)
        .request(&mut tap, b"too much")
        .remove(0);
    socket.send(&datagram).unwrap();
    assert!(receive_when(&mut capture, 1, true).is_empty());
    assert_eq!(outcomes(&mut capture), [("overloaded", 1, 8)]);
}

#[test]
fn vxlan_is_known_by_its_addresses() {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (mut capture, socket) = pair(any, any, "127.0.0.0/8");
    let connection = Connection::new(0, 40_000);
    let frame = |from, to, payload: &[u8]| {
        let mut frame = vec![0x08, 0, 0, 0, 0, 0, 7, 0];
        frame.extend_from_slice(&[2; 12]);
        frame.extend_from_slice(&[0x08, 0x00]);
        frame.extend_from_slice(&mirror_wire::fixtures::ipv4(from, to, 5, 6, ACK, payload));
        // Padding of a short frame is not payload.
        frame.extend_from_slice(&[0; 6]);
        frame
    };
    let (client, server) = (connection.client, connection.server);
    for datagram in [
        frame(client, server, b"question"),
        frame(server, client, b"answer"),
        frame(client, server, b""),
        frame(client, client, b"other"),
    ] {
        socket.send(&datagram).unwrap();
    }
    let segments = receive(&mut capture, 4);
    let seen: Vec<_> = segments
        .iter()
        .map(|segment| (segment.service, segment.direction, &segment.payload[..]))
        .collect();
    assert_eq!(
        seen,
        [
            (1, Direction::Request, &b"question"[..]),
            (1, Direction::Response, &b"answer"[..]),
        ]
    );
    assert_eq!(segments[0].flow, segments[1].flow);
    assert!(segments[0].time_ns > 1_700_000_000_000_000_000);
    assert_eq!(
        outcomes(&mut capture),
        [("received", 3, 14), ("unknown_service", 1, 5)]
    );
}

#[test]
fn vxlan_is_taken_of_those_who_are_allowed() {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let (mut capture, socket) = pair(any, any, "10.0.0.5/32");
    socket.send(&[8, 0, 0, 0, 0, 0, 7, 0, 1]).unwrap();
    assert!(receive(&mut capture, 1).is_empty());
    assert_eq!((capture.not_allowed(), capture.taps().count()), (1, 0));
}

#[test]
fn the_kernel_s_own_drops_are_read() {
    let (mut capture, socket) = loopback();
    assert_eq!(capture.socket_drops(), 0);
    assert!(capture.receive_buffer() > 0);
    // A buffer of the least size, and more than it holds.
    let fd = capture.sockets[0].as_fd();
    let smallest = socket2::SockRef::from(&fd);
    smallest.set_recv_buffer_size(1).unwrap();
    for _ in 0..100 {
        socket.send(&[0; 1_000]).unwrap();
    }
    let dropped = capture.socket_drops() as usize;
    assert!(dropped > 50, "{dropped}");
    receive(&mut capture, 100 - dropped);
}

#[test]
fn the_ledger_closes_with_the_tap_s_reports() {
    let (mut capture, socket) = loopback();
    let mut tap = conversation::Tap::new(1);
    let mut kept = Connection::new(101, 1);
    let mut given_up = Connection::new(101, 2);
    says(&mut capture, 1, Item::Report(tap.report(&[])));
    let mut datagrams = kept.open(&mut tap);
    datagrams.extend(kept.request(&mut tap, &[1; 3_000]));
    datagrams.extend(kept.response(&mut tap, &[2; 5_000]));
    datagrams.extend(kept.close(&mut tap));
    datagrams.extend(given_up.reset(&mut tap));
    // Lost on the way: a part of the answer, and the reset.
    datagrams.remove(7);
    datagrams.pop();
    for datagram in &datagrams {
        socket.send(datagram).unwrap();
    }
    receive(&mut capture, datagrams.len());
    says(&mut capture, 1, Item::Report(tap.report(&[])));
    let lost = conversation::SEGMENT as u64;
    let (copies, bytes) = (tap.copies() - 2, tap.bytes() - lost);
    let expected = [("received", copies, bytes), ("lost", 2, lost)];
    assert_eq!(outcomes(&mut capture), expected);
    let totals = capture.taps().next().unwrap().1.totals();
    assert_eq!(
        (totals.sent.copies, totals.sent.bytes),
        (tap.copies(), tap.bytes())
    );
    assert!(totals.closes());
}

/// The same datagram, written by tap 4 with this key.
fn signed(datagram: &[u8], key: Key) -> Vec<u8> {
    let Ok(Datagram::Geneve {
        mut header,
        payload,
    }) = decode(datagram)
    else {
        panic!("no GENEVE")
    };
    let packet = parse(&payload, payload.len() as u32, Link::Ip).unwrap();
    header.meta.tap = 4;
    header.meta.mac = header.mac(key, &packet);
    [&header.encode(), payload].concat()
}

#[test]
fn only_the_key_s_owner_is_believed() {
    let (mut capture, socket) = loopback();
    says(&mut capture, 4, hello(KEY));
    let mut tap = conversation::Tap::new(1);
    tap.number = 3;
    let mut one = Connection::new(101, 40_000);
    let mut other = Connection::new(101, 40_001);
    let genuine = signed(&one.request(&mut tap, b"genuine")[0], KEY);
    let (header, packet) = genuine.split_at(HEADER_LENGTH);
    let elsewhere = &other.request(&mut tap, b"other")[0];
    let with = |at: usize, bytes: &[u8]| {
        let mut changed = genuine.clone();
        changed[at..at + bytes.len()].copy_from_slice(bytes);
        changed
    };
    let mut nameless = vec![0, 0, 0x08, 0, 0, 0, 101, 0];
    nameless.extend_from_slice(packet);
    // Version 1 was shorter.
    let mut old = with(0, &[6]);
    (old[10], old[11]) = (1, 5);
    old.drain(32..HEADER_LENGTH);
    let forged = [
        (
            "a tap that is not there",
            Stray::UnknownTap,
            elsewhere.clone(),
        ),
        ("a wrong key", Stray::BadMac, signed(elsewhere, [17, 5])),
        ("no key", Stray::BadMac, with(HEADER_LENGTH - 8, &[0; 8])),
        (
            "a header of another connection",
            Stray::BadMac,
            [header, &elsewhere[HEADER_LENGTH..]].concat(),
        ),
        ("another number", Stray::BadMac, with(20, &[0, 0, 0, 9])),
        ("another service", Stray::BadMac, with(6, &[7])),
        ("another tap", Stray::BadMac, with(26, &[0, 1])),
        ("a packet cut off", Stray::BadMac, genuine[..60].to_vec()),
        ("an old version", Stray::UnknownOption, old),
        ("no option", Stray::UnknownOption, nameless),
        ("a control packet", Stray::UnknownProtocol, with(1, &[0x80])),
    ];
    let mut counted = [0; Stray::ALL.len()];
    for (what, stray, datagram) in forged {
        socket.send(&datagram).unwrap();
        assert!(receive(&mut capture, 1).is_empty(), "{what}");
        counted[stray as usize] += 1;
        assert_eq!(capture.strays(), counted, "{what}");
    }
    socket.send(&genuine).unwrap();
    let segments = receive(&mut capture, 1);
    assert_eq!(segments[0].payload, &b"genuine"[..]);
    assert_eq!(segments[0].tap, TapId(4));
    // Each of its lives has its own.
    says(&mut capture, 4, hello([17, 5]));
    socket.send(&genuine).unwrap();
    assert!(receive(&mut capture, 1).is_empty(), "an old key");
}

/// Whoever sees datagrams on their way may send them again: at once, or when their connection is long over.
#[test]
fn what_was_recorded_is_not_taken_in_again() {
    let (mut capture, socket) = loopback();
    let mut tap = conversation::Tap::new(1);
    let mut connection = Connection::new(101, 40_000);
    let mut datagrams = connection.open(&mut tap);
    datagrams.extend(connection.request(&mut tap, b"GET / HTTP/1.1\r\n\r\n"));
    let send = |capture: &mut Capture| {
        for datagram in &datagrams {
            socket.send(datagram).unwrap();
        }
        receive(capture, 3).len()
    };
    assert_eq!(send(&mut capture), 3);
    assert_eq!(send(&mut capture), 0);
    for _ in 0..3 {
        capture.tick();
    }
    assert_eq!(send(&mut capture), 0);
    let (_, tap) = capture.taps().next().unwrap();
    let totals = tap.totals();
    assert_eq!(totals.of(Outcome::Received).copies, 3);
    assert_eq!((totals.duplicates, totals.late), (3, 3));
}

/// A report may say anything: of services that nobody knows here, and names without end, nothing is kept.
#[test]
fn what_a_tap_says_of_itself_is_bounded() {
    let (mut capture, _socket) = loopback();
    for number in 0..64 {
        let services = (0..1_024).map(|id| ServiceReport {
            id,
            name: format!("{number}-{}", "n".repeat(900)),
            stable_version: format!("{number}-{}", "v".repeat(900)),
            mirror: true,
            ..ServiceReport::default()
        });
        let report = TapReport {
            number,
            services: services.collect(),
            ..TapReport::default()
        };
        says(&mut capture, 1, Item::Report(report));
    }
    let (_, tap) = capture.taps().next().unwrap();
    let mut known: Vec<_> = tap.services.keys().copied().collect();
    known.sort_unstable();
    assert_eq!(known, [7, 101]);
    let longest = tap
        .services
        .values()
        .map(|service| service.stable_version.capacity());
    assert!(longest.max() <= Some(MAX_NAME));
}

#[test]
fn counters_that_begin_anew_are_another_life() {
    let mut tap = Tap::new("node".to_owned(), &memory());
    let mut said = |boot, packets: Option<u64>| {
        let service = packets.map(|packets| ServiceReport {
            id: 101,
            requests: Mirrored { packets, bytes: 0 },
            ..ServiceReport::default()
        });
        tap.report(TapReport {
            boot,
            services: service.into_iter().collect(),
            ..TapReport::default()
        });
        tap.life(101)
    };
    assert_eq!(said(7, Some(10)), (7, 0));
    assert_eq!(said(7, Some(10)), (7, 0));
    assert_eq!(said(7, Some(9)), (7, 1));
    assert_eq!(said(7, None), (7, 2));
    assert_eq!(said(8, Some(20)).0, 8);
}

#[test]
fn a_tap_that_is_silent_for_a_day_leaves_nothing_behind() {
    let (mut capture, _socket) = loopback();
    let table = &mut capture.table;
    let now = Instant::now();
    let id = table.source(Ipv4Addr::new(127, 0, 0, 9).into()).unwrap();
    let mut tap = conversation::Tap::new(1);
    let report = Item::Report(tap.report(&[(7, "v12")]));
    table.item(id, "127.0.0.9", report, &mut |_| ());
    assert!(table.memory.used() > 0);
    table.streams.clear();

    let day = Duration::from_secs(24 * 3600);
    table.taps.get_mut(&id).unwrap().heard = true;
    table.tick(now + day);
    assert!(table.taps.contains_key(&id), "it was heard of");
    table.tick(now + 2 * day);
    assert!(!table.taps.contains_key(&id) && table.sources.is_empty());
    assert_eq!((table.gave_way, table.memory.used()), ([1, 0], 0));
    let news = table.streams.pop();
    assert!(matches!(news, Some(StreamNews::Forgotten(gone, _)) if gone == id));
    // What is left of its connection is nobody's.
    let report = Item::Report(tap.report(&[(7, "v12")]));
    table.item(id, "127.0.0.9", report, &mut |_| ());
    assert!(!table.taps.contains_key(&id));
}

#[test]
fn what_taps_say_keeps_to_the_agent_s_memory() {
    let memory = Memory::new(SERVICE);
    let mut tap = Tap::new("node".to_owned(), &memory);
    let report = |id| ServiceReport {
        id,
        ..ServiceReport::default()
    };
    let mut reported = vec![report(7), report(101)];
    assert!(tap.admit(&mut reported));
    assert_eq!(reported.iter().map(|r| r.id).collect::<Vec<_>>(), [7]);
    tap.report(TapReport {
        services: reported,
        ..TapReport::default()
    });
    let mut known = vec![report(7)];
    assert!(!tap.admit(&mut known) && known.len() == 1);

    // Copies that may still come need memory, too: here there is none, and they are settled.
    let meta = |sequence| Meta {
        direction: Direction::Request,
        arm: Arm::Stable,
        piece: false,
        last_piece: false,
        cpu: 0,
        length: 10,
        sequence,
        time_ns: 0,
        tap: 1,
        mac: 0,
    };
    tap.ledger.datagram(&meta(1), 0, 10, Outcome::Received);
    tap.ledger.datagram(&meta(9), 0, 10, Outcome::Received);
    tap.keep_to_memory();
    let totals = tap.totals();
    assert_eq!(totals.of(Outcome::Lost).copies, 7);
    assert_eq!(totals.of(Outcome::Received).copies, 2);
    assert_eq!(memory.used(), SERVICE);
}
