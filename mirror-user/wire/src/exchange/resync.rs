//! Finding the next certain boundary after bytes were lost, or in a connection joined midway.
//!
//! A turn is certain when both ends vouch for it: the client's segment that begins at request
//! position S acknowledges exactly response position A, so it had received all before A when it
//! sent what begins at S, which is a request's head; and a segment of the server's from before A,
//! which is certainly not of an interim answer, acknowledges exactly S. So the server had all
//! before S when it answered, and nothing before A answers what comes from S on. Order of arrival
//! does not matter.
//!
//! One copy of an answer is enough to vouch for where the next request begins. Where the end of a
//! request and every copy of its answer are lost, nothing does: what the client sends next may be
//! the rest of that request, which the server had asked for by `100 Continue`.
//!
//! Where only responses are lost, what begins at S is known to be a request. If the client never
//! pipelined, a lost segment before A is then made up for by what follows A: an answer's head, at
//! the start of a segment, that acknowledges bytes beyond S.
//!
//! Acknowledgements do not tell a client that always has one request too many on its way from one
//! that takes turns. So no turn is trusted once a client was seen to pipeline; one that was not
//! seen to before the loss, but does, gets its answers told wrong. No common client pipelines.

use mirror_common::tunnel::Direction;

use super::Journal;
use super::connection::{Connection, Mode};
use super::half::Half;
use crate::http::{begins_request, begins_response, is_interim, may_be_interim};
use crate::message::DropReason;
use crate::stream::Piece;

/// The most pieces of a direction that are kept while a turn is sought.
const MAX_PIECES: usize = 64;

/// The most bytes of a direction that are kept while a turn is sought.
const MAX_BYTES: usize = 1 << 20;

/// What is passed over while a turn is sought.
#[derive(Debug)]
pub(super) struct Seek {
    reason: DropReason,
    /// Where in the requests it starts: what answers earlier ones is of them.
    start: u64,
    turns: Turns,
    /// Turns that the ledger has.
    counted: usize,
    /// Where the request begins that the ledger had at once.
    announced: Option<u64>,
}

impl Seek {
    /// Nothing of what is passed over is in the ledger.
    pub(super) fn new(reason: DropReason, start: u64) -> Self {
        Self {
            reason,
            start,
            turns: Turns::default(),
            counted: 0,
            announced: None,
        }
    }

    /// An exchange that is in the ledger, and whose request starts at `start`, is cut short: the
    /// `last` of its pieces went in this direction and acknowledged that.
    pub(super) fn after_one(
        reason: DropReason,
        start: u64,
        last: (Direction, Option<u32>),
    ) -> Self {
        let turns = Turns {
            count: 1,
            last: Some(last),
            interim: None,
        };
        Self {
            reason,
            start,
            turns,
            counted: 1,
            announced: None,
        }
    }

    /// It starts at `start` already.
    pub(super) fn go_back_to(&mut self, start: u64) {
        self.start = self.start.min(start);
    }

    /// What was passed over last, if anything: in which direction, and what it acknowledged.
    pub(super) fn last(&self) -> Option<(Direction, Option<u32>)> {
        self.turns.last
    }

    /// Passes over these pieces, and enters the exchanges that they are of into the ledger.
    fn pass(
        &mut self,
        requests: Vec<Piece>,
        mut responses: Vec<Piece>,
        position: impl Fn(u32) -> u64,
        reason: Option<DropReason>,
        journal: &mut Journal<'_>,
    ) {
        responses.retain(|piece| piece.acknowledgement.map(&position) > Some(self.start));
        let requests = requests
            .into_iter()
            .map(|piece| (Direction::Request, piece));
        let responses = responses
            .into_iter()
            .map(|piece| (Direction::Response, piece));
        let mut pieces: Vec<_> = requests.chain(responses).collect();
        pieces.sort_by_key(|(_, piece)| piece.time_ns);
        for (direction, piece) in &pieces {
            self.turns.pass(*direction, piece);
        }
        while self.counted < self.turns.count {
            journal.missed(reason.unwrap_or(self.reason));
            self.counted += 1;
        }
    }
}

/// Counts exchanges by their pieces in the order of time: the ends take turns.
#[derive(Debug, Default)]
struct Turns {
    count: usize,
    last: Option<(Direction, Option<u32>)>,
    /// Where the last interim answer started and ended.
    interim: Option<(u32, u32)>,
}

impl Turns {
    fn pass(&mut self, direction: Direction, piece: &Piece) {
        if direction == Direction::Response && is_interim(&piece.data) {
            self.interim = Some((piece.position as u32, piece.end() as u32));
            return;
        }
        // An interim answer between a request's head and its body begins no turn.
        let acknowledgement = match (piece.acknowledgement, self.interim) {
            (Some(got), Some((start, end))) if got == end => Some(start),
            (acknowledgement, _) => acknowledgement,
        };
        let same = match self.last {
            None => false,
            Some((last, seen)) if last == direction => seen == acknowledgement || seen.is_none(),
            Some((last, _)) => last == Direction::Request,
        };
        self.count += usize::from(!same);
        self.last = Some((direction, acknowledgement));
    }
}

impl Connection {
    /// Whether requests from position `start` on are answered from the position on that the client
    /// had acknowledged by then. That position, if so. `framed`: `start` is a request's for sure.
    fn turn(&self, start: u64, acknowledgement: u32, framed: bool) -> Option<u64> {
        let responses = &self.responses.stream;
        let answer = responses.position(acknowledgement);
        if self.pipelines {
            return None;
        }
        let received = |piece: &Piece| {
            let acknowledgement = piece.acknowledgement?;
            Some(self.requests.stream.position(acknowledgement))
        };
        // A client does not go on before an interim answer has ended, with an empty line.
        let last = self.responses.last.is_some_and(|word| {
            let near = word.end == answer || (word.is_final && word.end < answer);
            near && self.requests.stream.position(word.received) == start
        });
        let is_final = |piece: &Piece| {
            let ends = piece.end() == answer && piece.ends && !piece.data.ends_with(b"\n");
            ends || !may_be_interim(&piece.data)
        };
        let vouched = last
            || responses
                .pieces()
                .take_while(|piece| piece.end() <= answer)
                .any(|piece| received(piece) == Some(start) && is_final(piece));
        let follows = responses.starting_at(answer);
        let answered = follows.is_some_and(|piece| {
            received(piece) > Some(start) && begins_response(&piece.data).is_some()
        });
        // What the server sent from there on before it had the request answers another one.
        let contradicted = follows.is_some_and(|piece| received(piece) <= Some(start));
        let certain = (vouched && !contradicted) || (answered && framed && self.has_start());
        certain.then_some(answer)
    }

    /// Goes on at the first certain turn, where there is one. Its answer may be lost already.
    pub(super) fn resync(&mut self, journal: &mut Journal<'_>) -> bool {
        let responses = &self.responses.stream;
        let (next, framed) = (responses.next(), responses.is_anchored());
        let announced = match &self.mode {
            Mode::Seek(seek) => seek.announced,
            _ => None,
        };
        let found = self.requests.stream.pieces().find_map(|piece| {
            let acknowledgement = piece.acknowledgement.filter(|_| piece.starts)?;
            let answer = self.turn(piece.position, acknowledgement, false)?;
            let is_turn = (answer >= next || !framed)
                && begins_request(&piece.data)
                && announced.is_none_or(|announced| piece.position > announced);
            is_turn.then_some((piece.position, answer))
        });
        let Some((start, answer)) = found else {
            return false;
        };
        if framed && next < answer && !self.open.is_empty() {
            // Answers from before the loss are still to come, or their holes to be given up.
            return false;
        }
        self.drop_all(DropReason::ResponseGap, journal);
        let requests = self.requests.resume(start);
        if answer < next {
            self.pass(requests, Vec::new(), None, journal);
            self.mode = Mode::SeekResponses;
            return true;
        }
        let responses = self.responses.resume(answer);
        self.pass(requests, responses, None, journal);
        self.mode = Mode::Framed;
        true
    }

    /// Goes on with the first open exchange whose answer can be told, where there is one.
    pub(super) fn realign(&mut self, journal: &mut Journal<'_>) -> bool {
        if !self.has_lost_responses() {
            return false;
        }
        let next = self.responses.stream.next();
        let found = self.open.iter().enumerate().find_map(|(index, open)| {
            let acknowledgement = open
                .acknowledgement
                .filter(|_| open.starts && open.is_awaited())?;
            let answer = self.turn(open.start, acknowledgement, true)?;
            (answer >= next).then_some((index, answer))
        });
        let Some((index, answer)) = found else {
            return false;
        };
        for mut earlier in self.open.drain(..index) {
            earlier.drop(DropReason::ResponseGap, journal);
        }
        self.responses.resume(answer);
        if matches!(self.mode, Mode::SeekResponses) {
            self.mode = Mode::Framed;
        }
        true
    }

    /// The first request of a connection that was joined in its middle: nobody vouches for where it begins, so it is not
    /// replayed, and nothing that comes later changes that. The ledger has it at once.
    pub(super) fn announce_first(&mut self, journal: &mut Journal<'_>) {
        let knows_more = !self.open.is_empty()
            || self.responses.last.is_some()
            || self.responses.buffered() > 0
            || self.is_paused();
        let first = self.requests.stream.pieces().next();
        let first = first.filter(|piece| piece.starts && begins_request(&piece.data));
        let (Mode::Seek(seek), Some(first)) = (&mut self.mode, first) else {
            return;
        };
        let is_first = seek.turns.count == 0 && seek.counted == 0;
        if knows_more || !is_first || seek.reason != DropReason::MidStream {
            return;
        }
        seek.turns.count = 1;
        seek.turns.last = Some((Direction::Request, first.acknowledgement));
        seek.counted = 1;
        seek.announced = Some(first.position);
        journal.missed(DropReason::MidStream);
    }

    /// Keeps what is held while a turn is sought within its limits.
    pub(super) fn trim(&mut self, journal: &mut Journal<'_>) {
        let over = |half: &Half| half.exceeds(MAX_PIECES, MAX_BYTES);
        while over(&self.requests) || over(&self.responses) {
            // The open ones' answers are among what has to go.
            self.drop_all(DropReason::ResponseGap, journal);
            self.responses.lose();
            // Half of one direction goes, and with it what is older in the other.
            let full = if over(&self.requests) {
                &self.requests
            } else {
                &self.responses
            };
            let until_ns = full
                .middle_ns()
                .map_or(u64::MAX, |middle| middle.saturating_add(1));
            let requests = self.requests.discard_before(until_ns);
            let responses = self.responses.discard_before(until_ns);
            self.pass(requests, responses, None, journal);
        }
    }

    /// Passes over everything that is held, but remembers the server's last word.
    pub(super) fn pass_all(&mut self, reason: Option<DropReason>, journal: &mut Journal<'_>) {
        let requests = self.requests.discard_before(u64::MAX);
        let responses = self.responses.discard_before(u64::MAX);
        self.pass(requests, responses, reason, journal);
    }

    fn pass(
        &mut self,
        requests: Vec<Piece>,
        responses: Vec<Piece>,
        reason: Option<DropReason>,
        journal: &mut Journal<'_>,
    ) {
        let position = |sequence| self.requests.stream.position(sequence);
        if let Mode::Seek(seek) = &mut self.mode {
            seek.pass(requests, responses, position, reason, journal);
        }
    }
}
