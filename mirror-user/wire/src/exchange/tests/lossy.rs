//! Random conversations over a random tunnel.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::http::may_be_interim;

/// splitmix64 (Steele, Lea and Flood, 2014): a conversation is told by its seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ (word >> 31)) as usize % sides
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }
}

/// What one exchange is, and its bytes on the wire.
pub(super) struct Original {
    pub(super) method: &'static str,
    request: Vec<u8>,
    /// The client waits for `100 Continue` behind so many bytes of the request.
    waits: Option<usize>,
    pub(super) request_body: Vec<u8>,
    response: Vec<u8>,
    pub(super) response_body: Vec<u8>,
}

fn body(dice: &mut Dice, index: usize) -> Vec<u8> {
    // Bodies that look like messages must not be taken for them.
    let text = match dice.roll(4) {
        0 => post("/smuggled", "x"),
        1 => ok("smuggled"),
        _ => format!("body {index};"),
    };
    let times = dice.roll(20) * dice.roll(4);
    text.repeat(times).into_bytes()
}

fn message(dice: &mut Dice, start: &str, body: &[u8]) -> Vec<u8> {
    let mut message = start.as_bytes().to_vec();
    if dice.chance(50) {
        message.extend(format!("Content-Length: {}\r\n\r\n", body.len()).bytes());
        message.extend(body);
        return message;
    }
    message.extend(b"Transfer-Encoding: chunked\r\n\r\n");
    for chunk in body.chunks(1 + dice.roll(300)) {
        message.extend(format!("{:x}\r\n", chunk.len()).bytes());
        message.extend(chunk);
        message.extend(b"\r\n");
    }
    message.extend(if dice.chance(50) {
        &b"0\r\n\r\n"[..]
    } else {
        b"0\r\nSum: 1\r\n\r\n"
    });
    message
}

fn head_length(message: &[u8]) -> usize {
    let end = message.windows(4).position(|four| four == b"\r\n\r\n");
    end.unwrap() + 4
}

fn original(dice: &mut Dice, index: usize, last: bool) -> Original {
    let method = ["POST", "POST", "GET", "HEAD"][dice.roll(4)];
    let waits = method == "POST" && dice.chance(15);
    let expect = if waits {
        "Expect: 100-continue\r\n"
    } else {
        ""
    };
    let (start, line) = (
        format!("{method} /{index} HTTP/1.1\r\n{expect}"),
        "HTTP/1.1 200 OK\r\n",
    );
    let request_body = if method == "POST" {
        body(dice, index)
    } else {
        Vec::new()
    };
    let request = if method == "POST" {
        message(dice, &start, &request_body)
    } else {
        format!("{start}\r\n").into_bytes()
    };
    let answer = body(dice, index);
    let interim = if dice.chance(10) {
        "HTTP/1.1 100 Continue\r\n\r\n"
    } else {
        ""
    };
    let mut response = interim.as_bytes().to_vec();
    if last && dice.chance(50) && method != "HEAD" {
        response.extend(format!("{line}\r\n").bytes().chain(answer.iter().copied()));
    } else {
        let mut message = message(dice, line, &answer);
        if method == "HEAD" {
            message.truncate(head_length(&message));
        }
        response.extend(message);
    }
    let response_body = if method == "HEAD" { Vec::new() } else { answer };
    Original {
        method,
        waits: waits.then(|| head_length(&request)),
        request,
        request_body,
        response,
        response_body,
    }
}

/// What the tunnel does to a conversation, in percent of its segments.
#[derive(Clone, Copy, Debug, Default)]
struct Tunnel {
    lose: usize,
    reorder: usize,
    duplicate: usize,
    overlap: usize,
    /// Segments that TCP discards come among them.
    forge: usize,
    /// So many exchanges at the beginning lose nothing.
    spare: usize,
}

/// A segment, and the exchange that it is of.
pub(super) type Tagged = (usize, Segment);

fn send(
    dice: &mut Dice,
    talk: &mut Talk,
    overlap: usize,
    tagged: (usize, Direction, &[u8]),
) -> Vec<Tagged> {
    let (index, direction, bytes) = tagged;
    let mut segments = Vec::new();
    let longest = [40, 300, 1448][dice.roll(3)];
    let first = match direction {
        Direction::Request => talk.client,
        Direction::Response => talk.server,
    };
    let mut sent = 0;
    while sent < bytes.len() {
        // A head's first segment holds its first line, as every client's does.
        let least = if sent == 0 { 20 } else { 1 };
        let length = (least + dice.roll(longest)).min(bytes.len() - sent);
        segments.push((
            index,
            talk.segment(direction, ACK, &bytes[sent..sent + length]),
        ));
        sent += length;
        if dice.chance(overlap) {
            // The sender's TCP sends something again, cut otherwise.
            let from = dice.roll(sent);
            let to = from + 1 + dice.roll(sent - from);
            let mut again = talk.segment(direction, ACK, b"");
            again.sequence = first.wrapping_add(from as u32);
            again.payload = Bytes::copy_from_slice(&bytes[from..to]);
            segments.push((index, again));
        }
    }
    segments
}

/// A whole connection. At most `depth` requests are unanswered at any time; a client that
/// pipelines does so from the beginning.
pub(super) fn conversation(
    dice: &mut Dice,
    depth: usize,
    overlap: usize,
) -> (Vec<Original>, Vec<Tagged>) {
    let count = 1 + dice.roll(12);
    let originals: Vec<_> = (0..count)
        .map(|index| original(dice, index, index + 1 == count))
        .collect();
    let mut talk = Talk::new();
    talk.client = dice.roll(1 << 32) as u32;
    talk.server = dice.roll(1 << 32) as u32;
    let mut segments: Vec<Tagged> = talk
        .open()
        .into_iter()
        .map(|segment| (count, segment))
        .collect();
    let (mut asked, mut answered) = (0, 0);
    while answered < count {
        let ask = asked < count
            && asked - answered < depth
            && (asked == answered || asked < 2 || dice.chance(50));
        if !ask {
            let answer = (
                answered,
                Direction::Response,
                &originals[answered].response[..],
            );
            segments.extend(send(dice, &mut talk, overlap, answer));
            answered += 1;
            continue;
        }
        let Original { request, waits, .. } = &originals[asked];
        let (head, body) = request.split_at(waits.unwrap_or(request.len()));
        segments.extend(send(
            dice,
            &mut talk,
            overlap,
            (asked, Direction::Request, head),
        ));
        // The server goes on at once only where it has nothing else to answer.
        if waits.is_some() && asked == answered {
            let interim = (
                asked,
                Direction::Response,
                &b"HTTP/1.1 100 Continue\r\n\r\n"[..],
            );
            segments.extend(send(dice, &mut talk, overlap, interim));
        }
        segments.extend(send(
            dice,
            &mut talk,
            overlap,
            (asked, Direction::Request, body),
        ));
        asked += 1;
    }
    segments.push((count, talk.server_fin()));
    segments.push((count, talk.client_fin()));
    (originals, segments)
}

/// What the tunnel has taken, by the exchanges' indices.
#[derive(Debug, Default)]
struct Lost {
    requests: BTreeSet<usize>,
    answers: BTreeSet<usize>,
    /// Of these, something of the answer came through that is not of an interim one for sure.
    vouched: BTreeSet<usize>,
}

impl Lost {
    fn touches(&self, index: usize) -> bool {
        self.requests.contains(&index) || self.answers.contains(&index)
    }
}

/// A segment that the end host discards, at the place of this one; `before` were sent.
fn forged(dice: &mut Dice, place: &Segment, before: &[Tagged]) -> Vec<Segment> {
    let mut segment = place.clone();
    let payload = Bytes::from([post("/forged", "x"), ok("forged")][dice.roll(2)].clone());
    let far = (2 << 20) + dice.roll(1 << 29) as u32;
    if dice.chance(50) {
        segment.direction = match place.direction {
            Direction::Request => Direction::Response,
            Direction::Response => Direction::Request,
        };
        std::mem::swap(&mut segment.sequence, &mut segment.acknowledgement);
    }
    match dice.roll(7) {
        // A reset that is not exact.
        0 => {
            segment.flags = RST | (segment.flags & ACK);
            segment.payload = Bytes::new();
            segment.sequence = segment.sequence.wrapping_add(far);
        }
        1 => {
            segment.flags = RST;
            segment.payload = Bytes::new();
            segment.sequence = segment.sequence.wrapping_sub(5_000_000);
        }
        // A handshake that the server does not take part in, and what its client would go on with.
        2 if place.flags & FIN == 0 => {
            let mut syn = segment.clone();
            syn.direction = Direction::Request;
            syn.flags = SYN;
            syn.sequence = place.sequence.wrapping_add(far);
            syn.payload = Bytes::new();
            segment = syn.clone();
            segment.flags = ACK;
            segment.sequence = syn.sequence.wrapping_add(1);
            segment.payload = payload;
            return vec![syn, segment];
        }
        // Data, and the end of it, beyond the window.
        3 => {
            segment.flags = ACK | (FIN * dice.roll(2) as u8);
            segment.sequence = segment.sequence.wrapping_add(far);
            segment.payload = payload;
        }
        // Data in turn that acknowledges what nobody sent.
        4 => {
            segment.flags = ACK | (FIN * dice.roll(2) as u8);
            segment.acknowledgement = segment.acknowledgement.wrapping_add(far);
            segment.payload = payload;
        }
        // The same with other bytes, which the checksum contradicts.
        5 => {
            segment = place.clone();
            segment.extras.is_doubtful = true;
            segment.payload = segment.payload.iter().map(|byte| byte ^ 1).collect();
        }
        // What was sent before.
        _ => segment = before[dice.roll(before.len())].1.clone(),
    }
    vec![segment]
}

/// What comes out of the tunnel, and what does not.
fn carry(dice: &mut Dice, tunnel: Tunnel, segments: Vec<Tagged>) -> (Vec<Segment>, Lost) {
    let mut out: Vec<(usize, Segment)> = Vec::new();
    let mut lost = Lost::default();
    for (at, (_, segment)) in segments.iter().enumerate().skip(2) {
        if dice.chance(tunnel.forge) {
            let forged = forged(dice, segment, &segments[..at]);
            out.extend(
                forged
                    .into_iter()
                    .map(|forged| (2 * at + dice.roll(2), forged)),
            );
        }
    }
    for (at, (index, segment)) in segments.into_iter().enumerate() {
        // Forged segments are told by what the handshake says.
        let is_spared = tunnel.forge > 0 && at < 2;
        let response = segment.direction == Direction::Response;
        if !is_spared
            && index >= tunnel.spare
            && (tunnel.spare == 0 || !segment.payload.is_empty())
            && dice.chance(tunnel.lose)
        {
            match response {
                true => lost.answers.insert(index),
                false => lost.requests.insert(index),
            };
            continue;
        }
        if response && !segment.payload.is_empty() && !may_be_interim(&segment.payload) {
            lost.vouched.insert(index);
        }
        let copies = if dice.chance(tunnel.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let late = if !is_spared && dice.chance(tunnel.reorder) {
                1 + dice.roll(6)
            } else {
                0
            };
            out.push((2 * (at + late), segment.clone()));
        }
    }
    out.sort_by_key(|(at, _)| *at);
    (out.into_iter().map(|(_, segment)| segment).collect(), lost)
}

/// What became of each exchange, by its index in the conversation.
#[derive(Debug, Default, PartialEq)]
struct Outcome {
    requested: bool,
    answered: bool,
}

/// Runs a connection through the table and checks what must hold in any case.
fn run(originals: &[Original], segments: Vec<Segment>) -> (BTreeMap<usize, Outcome>, usize) {
    let mut table = Table::with(Limits::new(1 << 20), Memory::new(MEMORY));
    for (at, segment) in segments.into_iter().enumerate() {
        table.feed([segment]);
        table.now += Duration::from_micros(500);
        if at % 40 == 39 {
            table.wait(1);
        }
    }
    table.wait(45_000);
    table.now += Duration::from_secs(3_600);
    table.wait(100);
    let mut outcomes: BTreeMap<usize, Outcome> = BTreeMap::new();
    // Exchange number -> its index, or nothing; and whether it is over.
    let mut ids: BTreeMap<ExchangeId, (Option<usize>, bool)> = BTreeMap::new();
    let mut last = None;
    for event in &table.events {
        match event {
            Event::Seen { id, .. } => {
                assert_eq!(ids.insert(*id, (None, false)), None, "seen twice");
            }
            Event::Request { id, request, .. } => {
                let index = request.target[1..].parse();
                let index: usize = index.expect("a target that was sent");
                let original = &originals[index];
                assert_eq!(request.method, original.method);
                assert!(
                    request.body == original.request_body,
                    "body of request {index}"
                );
                assert!(last < Some(index), "requests out of order");
                last = Some(index);
                let entry = ids.get_mut(id).expect("seen before requested");
                assert_eq!(*entry, (None, false));
                entry.0 = Some(index);
                outcomes.entry(index).or_default().requested = true;
            }
            Event::Response { id, response } => {
                let (index, over) = ids.get_mut(id).expect("seen before answered");
                let index = index.expect("requested before answered");
                assert!(!std::mem::replace(over, true), "over twice");
                let whole = response.body == originals[index].response_body;
                assert!(whole && response.status == 200, "answer of {index}");
                outcomes.entry(index).or_default().answered = true;
            }
            Event::Dropped { id, .. } => {
                let (_, over) = ids.get_mut(id).expect("seen before dropped");
                assert!(!std::mem::replace(over, true), "over twice");
            }
            Event::Closed { .. } => {}
        }
    }
    assert!(ids.values().all(|&(_, over)| over), "{:?}", table.told);
    assert_eq!(table.exchanges.connections(), 0);
    table.empty();
    (outcomes, ids.len())
}

fn tunnel() -> impl Strategy<Value = Tunnel> {
    let percent = [0..11_usize, 0..11, 0..11, 0..11, 0..31];
    percent.prop_map(|[lose, reorder, duplicate, overlap, forge]| Tunnel {
        lose,
        reorder,
        duplicate,
        overlap,
        forge,
        ..Tunnel::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Never a byte that production did not see, whatever the tunnel does.
    #[test]
    fn what_comes_out_was_sent(seed in any::<u64>(), depth in 1_usize..4, tunnel in tunnel()) {
        let mut dice = Dice(seed);
        let spare = if depth > 1 { 2 } else { 0 };
        let (originals, segments) = conversation(&mut dice, depth, tunnel.overlap);
        let (segments, _) = carry(&mut dice, Tunnel { spare, ..tunnel }, segments);
        run(&originals, segments);
    }

    /// Without loss everything comes out, and nothing else does, whatever else passes the tap.
    #[test]
    fn without_loss_everything_comes_out(
        seed in any::<u64>(),
        depth in 1_usize..4,
        tunnel in tunnel(),
    ) {
        let mut dice = Dice(seed);
        let tunnel = Tunnel { lose: 0, ..tunnel };
        let (originals, segments) = conversation(&mut dice, depth, tunnel.overlap);
        let (segments, _) = carry(&mut dice, tunnel, segments);
        let (outcomes, seen) = run(&originals, segments);
        prop_assert_eq!(outcomes.len(), originals.len());
        prop_assert_eq!(seen, originals.len());
        prop_assert!(outcomes.values().all(|outcome| outcome.answered), "{:?}", outcomes);
    }

    /// An exchange that lost nothing comes out, unless a request before it lost something and its
    /// answer everything: then nobody vouches for where it begins.
    #[test]
    fn what_lost_nothing_comes_out(seed in any::<u64>(), lose in 1_usize..11, forge in 0_usize..31) {
        let mut dice = Dice(seed);
        let (originals, segments) = conversation(&mut dice, 1, 0);
        let tunnel = Tunnel { lose, forge, ..Tunnel::default() };
        let (segments, lost) = carry(&mut dice, tunnel, segments);
        let (outcomes, _) = run(&originals, segments);
        // The tag of SYN and FIN is one beyond the last exchange.
        if lost.touches(originals.len()) {
            return Ok(());
        }
        let mut sure = true;
        for index in 0..originals.len() {
            if sure && !lost.touches(index) {
                let outcome = outcomes.get(&index);
                prop_assert!(outcome.is_some_and(|outcome| outcome.answered), "{}: {:?}", index, outcome);
            }
            let framed = sure && !lost.requests.contains(&index);
            sure = framed || lost.vouched.contains(&index);
        }
    }

    /// Joined in its middle, nothing is made up either.
    #[test]
    fn joined_midway(seed in any::<u64>(), skip in 0_usize..30, tunnel in tunnel()) {
        let mut dice = Dice(seed);
        let (originals, mut segments) = conversation(&mut dice, 1, tunnel.overlap);
        segments.drain(..(2 + skip).min(segments.len()));
        // What is forged well enough cannot be told without the handshake.
        let (segments, _) = carry(&mut dice, Tunnel { forge: 0, ..tunnel }, segments);
        run(&originals, segments);
    }
}
