//! Packets that no end has sent, by whoever knows its addresses and ports: they go on, to whom they are for,
//! and nothing else comes of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mirror_common::connection::{Connection, side};
use mirror_common::flow::Flow;
use mirror_common::translate::{Translation, phase};
use mirror_common::tunnel::Arm;

use super::{CLIENT_PORT, Hosts, Node, Segment, each};

/// Where a client is, the service, our end and the canary.
#[derive(Clone, Copy)]
struct Ends {
    client: SocketAddr,
    service: SocketAddr,
    near: SocketAddr,
    canary: SocketAddr,
}

/// All that is remembered of translated connections.
#[derive(Clone, Debug, PartialEq)]
struct Memory {
    connections: BTreeMap<Flow, Connection>,
    translations: Vec<(Flow, Translation)>,
    resets: u64,
}

impl Memory {
    fn of(node: &Node) -> Result<Self> {
        let read = node.plane.connection_reader()?.read()?;
        let connections = read.into_iter().map(|(flow, mut connection)| {
            // Another handshake may begin: it is none before it is complete.
            connection.pending = [0; 2];
            connection.sides = connection.sides.map(|bits| bits & !side::PENDING);
            (flow, connection)
        });
        let connections = connections.collect();
        let mut translations = Vec::new();
        let each = |away, translation| translations.push((away, translation));
        node.plane.translations()?.each(each)?;
        let arms = [Arm::Stable, Arm::Canary].map(|arm| node.plane.counts().arm(1, arm));
        let mut resets = 0;
        for counters in arms {
            resets += counters?.resets.iter().sum::<u64>();
        }
        Ok(Self {
            connections,
            translations,
            resets,
        })
    }
}

/// Sends the SYN, and says by which port it went.
fn dial(node: &mut Node) -> Result<Ends> {
    let Hosts {
        client,
        service,
        canary,
        ..
    } = node.hosts;
    let [client, service, canary] =
        [(client, CLIENT_PORT), (service, 8000), (canary, 8001)].map(SocketAddr::from);
    let (_, left) = node.take(&Segment::new(client, service, "S").frame())?;
    Ok(Ends {
        client,
        service,
        near: Segment::read(&left, "S")?.source,
        canary,
    })
}

/// Both sides' numbers afterwards: the client is at 1,101, the canary at 5,201.
fn converse(node: &mut Node, ends: Ends) -> Result<()> {
    let Ends {
        client,
        service,
        near,
        canary,
    } = ends;
    let request = |flags, sequence, acknowledgement| {
        Segment::new(client, service, flags).at(sequence, acknowledgement)
    };
    let response = |flags, sequence, acknowledgement| {
        Segment::new(canary, near, flags).at(sequence, acknowledgement)
    };
    let steps = [
        response("SA", 5_000, 1_001),
        request("A", 1_001, 5_001),
        request("A", 1_001, 5_001).with(&[b'q'; 100]),
        response("A", 5_001, 1_101).with(&[b'r'; 200]),
        request("A", 1_101, 5_201),
    ];
    for step in steps {
        node.take(&step.frame())?;
    }
    Ok(())
}

/// Takes each, and holds what is remembered against what was before.
fn check(node: &mut Node, forged: &[(&str, Vec<u8>, bool)]) -> Result<()> {
    let before = Memory::of(node)?;
    for (what, frame, request) in forged {
        let (verdict, left) = node.take(frame)?;
        ensure!(
            verdict == node.sent(!request) || verdict == super::TC_REDIRECT,
            "{what}: {verdict}, it does not go on"
        );
        ensure!(left != *frame, "{what}: it was not translated");
        let after = Memory::of(node)?;
        ensure!(after == before, "{what}: {after:#?}\nbefore: {before:#?}");
    }
    Ok(())
}

fn phases(node: &Node) -> Result<Vec<u32>> {
    let memory = Memory::of(node)?;
    let phases = memory.translations.iter();
    Ok(phases.map(|(_, translation)| translation.phase).collect())
}

#[test]
fn an_established_connection_is_moved_by_nothing_that_is_not_its_ends() {
    each(|node| {
        let ends = dial(node)?;
        converse(node, ends)?;
        ensure!(phases(node)? == [phase::OPEN]);
        const FAR: u32 = 1 << 30;
        let q = |flags, sequence, acknowledgement, payload: &[u8]| {
            let segment = Segment::new(ends.client, ends.service, flags);
            (
                segment.at(sequence, acknowledgement).with(payload).frame(),
                true,
            )
        };
        let r = |flags, sequence, acknowledgement, payload: &[u8]| {
            let segment = Segment::new(ends.canary, ends.near, flags);
            (
                segment.at(sequence, acknowledgement).with(payload).frame(),
                false,
            )
        };
        let mut wrong_sum = q("R", 1_101, 0, b"");
        let sum = wrong_sum.0.len() - 4;
        wrong_sum.0[sum] ^= 0x55;
        let table = [
            ("a SYN", q("S", 1_000 + FAR, 0, b"")),
            ("a SYN in the window", q("S", 1_150, 0, b"")),
            ("a SYN with data", q("S", 7, 0, b"early")),
            ("a client's SYN-ACK", q("SA", 7, 5_201, b"")),
            ("a RST at 0", q("R", 0, 0, b"")),
            ("a RST just before", q("R", 1_100, 0, b"")),
            ("a RST in the window", q("R", 1_102, 0, b"")),
            ("a RST far off", q("R", 1_101 + 2 * FAR, 0, b"")),
            ("a RST with ACK", q("RA", 1_102, 5_201, b"")),
            ("a RST with the canary's number", q("R", 5_201, 0, b"")),
            ("a RST with a wrong checksum", wrong_sum),
            ("a FIN far off", q("FA", 1_101 + FAR, 5_201, b"")),
            (
                "a FIN that acknowledges too much",
                q("FA", 1_101, 5_201 + FAR, b""),
            ),
            ("a FIN without ACK", q("F", 1_101, 0, b"")),
            ("data far off", q("A", 1_101 + FAR, 5_201, b"never")),
            (
                "data that acknowledges too much",
                q("A", 1_101, 5_202, b"never"),
            ),
            (
                "an acknowledgement far off",
                q("A", 1_101, 5_201 + FAR, b""),
            ),
            ("the canary's SYN-ACK", r("SA", 9_000, 1_001, b"")),
            ("the canary's RST at 0", r("R", 0, 0, b"")),
            ("the canary's RST in the window", r("RA", 5_202, 1_101, b"")),
            ("the canary's refusal", r("RA", 0, 1_001, b"")),
            ("the canary's FIN far off", r("FA", 5_201 + FAR, 1_101, b"")),
            (
                "the canary's FIN for more",
                r("FA", 5_201, 1_101 + FAR, b""),
            ),
            (
                "the canary's data far off",
                r("A", 5_201 + FAR, 1_101, b"never"),
            ),
        ];
        let table: Vec<_> = table
            .into_iter()
            .map(|(what, (frame, request))| (what, frame, request))
            .collect();
        check(node, &table)?;
        // What an end sends does move it: the connection goes on where it was, and ends.
        let before = Memory::of(node)?;
        node.take(&q("A", 1_101, 5_201, b"more").0)?;
        ensure!(Memory::of(node)? != before);
        node.take(&r("R", 5_201, 0, b"").0)?;
        ensure!(phases(node)? == [phase::FREE] && Memory::of(node)?.resets == 1);
        Ok(())
    });
}

#[test]
fn a_handshake_is_completed_by_nobody_else() {
    each(|node| {
        let ends = dial(node)?;
        let q = |flags, sequence, acknowledgement| {
            let segment = Segment::new(ends.client, ends.service, flags);
            (segment.at(sequence, acknowledgement).frame(), true)
        };
        let r = |flags, sequence, acknowledgement| {
            let segment = Segment::new(ends.canary, ends.near, flags);
            (segment.at(sequence, acknowledgement).frame(), false)
        };
        let named = |table: Vec<(&'static str, (Vec<u8>, bool))>| -> Vec<_> {
            let table = table.into_iter();
            table
                .map(|(what, (frame, request))| (what, frame, request))
                .collect()
        };
        let forged = named(vec![
            ("another SYN", q("S", 77, 0)),
            (
                "an acknowledgement before there is anything",
                q("A", 1_001, 5_001 + (1 << 31)),
            ),
            ("a refusal of another SYN", r("RA", 0, 1_000)),
            ("a refusal without ACK", r("R", 0, 0)),
            ("an answer to another SYN", r("SA", 5_000, 1_002)),
        ]);
        check(node, &forged)?;
        node.take(&r("SA", 5_000, 1_001).0)?;
        let forged = named(vec![
            ("a guess", q("A", 1_001, 5_002)),
            ("a guess far off", q("A", 1_001, 5_001 + (1 << 30))),
            (
                "the right number from far off",
                q("A", 1_001 + (1 << 30), 5_001),
            ),
            ("another SYN", q("S", 77, 0)),
        ]);
        check(node, &forged)?;
        ensure!(phases(node)? == [phase::WAITING]);
        node.take(&q("A", 1_001, 5_001).0)?;
        ensure!(phases(node)? == [phase::OPEN]);
        Ok(())
    });
}

/// From the same ends, for a canary that has forgotten the first: it takes that one's place once its own
/// handshake is complete.
#[test]
fn a_new_connection_on_the_same_ports_needs_its_handshake() {
    each(|node| {
        let ends = dial(node)?;
        converse(node, ends)?;
        let q = |flags, sequence, acknowledgement| {
            let segment = Segment::new(ends.client, ends.service, flags);
            segment.at(sequence, acknowledgement).frame()
        };
        let r = |flags, sequence, acknowledgement| {
            let segment = Segment::new(ends.canary, ends.near, flags);
            segment.at(sequence, acknowledgement).frame()
        };
        let before = Memory::of(node)?;
        node.take(&q("S", 70_000, 0))?;
        node.take(&r("SA", 90_000, 70_001))?;
        node.take(&q("A", 70_001, 90_002))?;
        ensure!(Memory::of(node)? == before);
        node.take(&q("A", 70_001, 90_001))?;
        let after = Memory::of(node)?;
        let initial: Vec<u32> = after.connections.values().map(|one| one.initial).collect();
        ensure!(initial == [70_000] && phases(node)? == [phase::OPEN]);
        Ok(())
    });
}
