//! One direction of a connection: its stream, the message being read, and patience with holes.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;

use super::recent::Recent;
use crate::http::{Decoder, may_be_interim};
use crate::message::Segment;
use crate::stream::{Piece, Stream};

/// Bytes that the peer has acknowledged were not lost in production: if their copies have not
/// come after this long, the tunnel has lost them.
const LOST_AFTER: Duration = Duration::from_millis(100);

/// Bytes that nobody has acknowledged may be sent again: for so long they are waited for.
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// The most pieces that wait for bytes before them.
const MAX_PIECES: usize = 8_192;

/// A position that only grows, and how much of it has been known for `window`, to a quarter.
#[derive(Debug)]
struct Known {
    window: Duration,
    newest: u64,
    /// When which position was known: one mark a quarter of the window, no more than five.
    marks: VecDeque<(Duration, u64)>,
    ripe: u64,
}

impl Known {
    fn new(window: Duration) -> Self {
        Self {
            window,
            newest: 0,
            marks: VecDeque::new(),
            ripe: 0,
        }
    }

    fn learn(&mut self, position: u64, now: Duration) {
        if position <= self.newest {
            return;
        }
        self.newest = position;
        self.ripen(now);
        match self.marks.back_mut() {
            Some((since, mark)) if now.saturating_sub(*since) < self.window / 4 => *mark = position,
            _ => self.marks.push_back((now, position)),
        }
    }

    fn ripen(&mut self, now: Duration) {
        while let Some(&(since, position)) = self.marks.front()
            && now.saturating_sub(since) >= self.window
        {
            self.ripe = position;
            self.marks.pop_front();
        }
    }

    /// When something at `position` will have been known for long enough.
    fn due(&self, position: u64) -> Option<Duration> {
        if self.ripe > position {
            return Some(Duration::ZERO);
        }
        let (since, _) = self.marks.iter().find(|(_, mark)| *mark > position)?;
        Some(since.saturating_add(self.window))
    }
}

/// How long missing bytes are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// [`LOST_AFTER`] or [`SILENT_AFTER`].
    Usual,
    /// [`LOST_AFTER`]: only what the peer has acknowledged is known to have been sent.
    Acknowledged,
    /// Not at all.
    None,
}

/// What is remembered of a piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    /// Where it ended.
    pub(super) end: u64,
    /// What its segment acknowledged.
    pub(super) received: u32,
    /// Whether it is known to be of a final answer.
    pub(super) is_final: bool,
}

/// One direction of a connection.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) stream: Stream,
    /// What the decoder has not yet taken of the piece that was handed out last.
    pub(super) current: Option<Piece>,
    pub(super) decoder: Option<Decoder>,
    /// The last piece that was handed out to the end of its segment.
    pub(super) last: Option<Word>,
    acknowledged: Known,
    arrived: Known,
    /// When the tap saw what reaches farthest.
    farthest_ns: u64,
    /// Where the hole starts that everything waits for, and since when it does.
    waits: Option<(u64, Duration)>,
    /// What was given up though nobody had acknowledged it.
    doubted: Option<Range<u64>>,
    /// What was handed out last and may not yet have reached the peer, to hold other copies against.
    pub(super) recent: Recent,
    /// Segments with a wrong checksum, which count once the peer has acknowledged them.
    pub(super) doubtful: Vec<Segment>,
    /// Where segments ended that were beyond the window.
    pub(super) beyond: VecDeque<u64>,
}

impl Half {
    pub(super) fn new() -> Self {
        Self {
            stream: Stream::default(),
            current: None,
            decoder: None,
            last: None,
            acknowledged: Known::new(LOST_AFTER),
            arrived: Known::new(SILENT_AFTER),
            farthest_ns: 0,
            waits: None,
            doubted: None,
            recent: Recent::default(),
            doubtful: Vec::new(),
            beyond: VecDeque::new(),
        }
    }

    /// The stream starts at `sequence`: a SYN says so.
    pub(super) fn start(&mut self, sequence: u32) {
        self.stream.anchor(self.stream.position(sequence));
    }

    /// The peer has received everything before `sequence`.
    pub(super) fn acknowledge(&mut self, sequence: u32, now: Duration) {
        let position = self.stream.place(sequence);
        self.acknowledged.learn(position, now);
        self.recent.forget_before(position);
    }

    /// Everything before `sequence` was sent by then, even if not all has arrived.
    pub(super) fn arrive(&mut self, sequence: u32, time_ns: u64, now: Duration) {
        let position = self.stream.place(sequence);
        if position > self.arrived.newest {
            self.farthest_ns = time_ns;
        }
        self.arrived.learn(position, now);
    }

    /// How far both ends together say that the sender has come; nothing where nothing has come of it.
    pub(super) fn farthest(&self) -> Option<u64> {
        let known = self.stream.known()?;
        Some(known.max(self.arrived.newest).max(self.acknowledged.newest))
    }

    /// Whether all that was sent before `time_ns` ends at `position`, so that the peer expects what stands
    /// there next: RFC 9293, 3.10.7.4, as RFC 5961 has it. A FIN takes a number of its own.
    pub(super) fn expects(&self, position: u64, time_ns: u64) -> bool {
        let contiguous = self.stream.contiguous();
        let farthest = self.arrived.newest;
        let is_behind = self.stream.is_anchored() && contiguous < farthest;
        (position == farthest && self.farthest_ns <= time_ns)
            || (position == contiguous && is_behind)
            || (position == self.acknowledged.newest && position > farthest)
            || self.stream.end().is_some_and(|end| position == end + 1)
    }

    /// Looks where the hole is that everything waits for.
    pub(super) fn watch(&mut self, now: Duration) {
        let start = self.hole().map(|hole| hole.start);
        if self.waits.map(|(start, _)| start) != start {
            self.waits = start.map(|start| (start, now));
        }
    }

    /// Whether bytes at `position` were given up by mistake: they had not been sent by then.
    pub(super) fn was_wrong_about(&self, position: u64) -> bool {
        let doubted = self.doubted.as_ref();
        doubted.is_some_and(|doubted| doubted.contains(&position))
    }

    /// Takes that back.
    pub(super) fn rewind(&mut self, position: u64) {
        self.doubted = None;
        self.lose();
        self.last = self.last.filter(|word| word.end <= position);
        self.stream.rewind(position);
    }

    /// The next bytes to decode.
    pub(super) fn take(&mut self) -> Option<Piece> {
        if self.current.is_some() {
            return self.current.take();
        }
        let piece = self.stream.pop()?;
        self.recent.push(&piece);
        if let (true, Some(received)) = (piece.ends, piece.acknowledgement) {
            self.last = Some(Word {
                end: piece.end(),
                received,
                is_final: false,
            });
        }
        Some(piece)
    }

    /// Passes over empty lines between messages, also where nothing follows them.
    pub(super) fn skip_blank(&mut self) {
        while self.decoder.is_none() && self.begins_blank() {
            let Some(mut piece) = self.take() else {
                return;
            };
            let is_blank = |byte: &&u8| matches!(byte, b'\r' | b'\n');
            let blank = piece.data.iter().take_while(is_blank).count();
            let end = piece.end();
            let _ = piece.data.split_to(blank);
            self.keep(piece, end);
        }
    }

    fn begins_blank(&self) -> bool {
        let mut pieces = self.stream.pieces();
        let next = pieces
            .next()
            .filter(|piece| piece.position == self.stream.next());
        let next = self
            .current
            .as_ref()
            .or(next.filter(|_| self.stream.is_anchored()));
        next.is_some_and(|piece| matches!(piece.data.first(), Some(b'\r' | b'\n')))
    }

    /// Keeps for later what the decoder has left of a piece that ends at `end`.
    pub(super) fn keep(&mut self, mut piece: Piece, end: u64) {
        if !piece.data.is_empty() {
            piece.position = end - piece.data.len() as u64;
            piece.starts = false;
            self.current = Some(piece);
        }
    }

    /// The position of the next byte that the decoder gets.
    pub(super) fn position(&self) -> u64 {
        match &self.current {
            Some(piece) => piece.position,
            None => self.stream.next(),
        }
    }

    /// Bytes held that seem corrupt.
    pub(super) fn doubtful_bytes(&self) -> usize {
        self.doubtful
            .iter()
            .map(|segment| segment.payload.len())
            .sum()
    }

    /// Bytes held for later.
    pub(super) fn buffered(&self) -> usize {
        self.stream.buffered() + self.current.as_ref().map_or(0, |piece| piece.data.len())
    }

    /// Whether everything there was has been decoded.
    pub(super) fn is_ended(&self) -> bool {
        self.current.is_none() && self.stream.is_ended()
    }

    /// Whether more waits here than may.
    pub(super) fn is_full(&self, limit: usize) -> bool {
        self.exceeds(MAX_PIECES, limit)
    }

    /// Whether more than so many pieces, or so many bytes, wait here.
    pub(super) fn exceeds(&self, pieces: usize, bytes: usize) -> bool {
        self.stream.pieces().len() > pieces || self.stream.buffered() > bytes
    }

    /// What everything that is there waits for.
    fn hole(&self) -> Option<Range<u64>> {
        let acknowledged = Some(self.acknowledged.newest);
        self.stream
            .hole(acknowledged)
            .filter(|_| self.current.is_none())
    }

    /// Takes what seemed corrupt where the peer has it, or no other copy has come for too long. Whether
    /// anything of it was missing.
    pub(super) fn believe_doubtful(&mut self, now: Duration, patience: Patience) -> bool {
        if self.doubtful.is_empty() {
            return false;
        }
        let given_up = self.hopeless(now, patience);
        let until = given_up
            .map_or(0, |hole| hole.end)
            .max(self.acknowledged.newest);
        let mut is_news = false;
        let mut doubtful = std::mem::take(&mut self.doubtful);
        doubtful.retain(|segment| {
            let start = self.stream.position(segment.sequence);
            let end = start + segment.payload.len() as u64;
            if end > until {
                return end > self.stream.next();
            }
            if self.stream.lacks(start..end) {
                let acknowledgement = Some(segment.acknowledgement);
                let data = segment.payload.clone();
                self.stream
                    .insert(segment.sequence, acknowledgement, segment.time_ns, data);
                is_news = true;
            }
            false
        });
        self.doubtful = doubtful;
        is_news
    }

    /// Gives up the hole that everything waits for, once patience has run out. Returns how many
    /// bytes it had.
    pub(super) fn give_up(&mut self, now: Duration, patience: Patience) -> Option<u64> {
        let Range { start, end } = self.hopeless(now, patience)?;
        if end > self.acknowledged.newest {
            self.doubted = Some(start..end);
        }
        Some(self.stream.give_up(end))
    }

    /// What is to be given up now.
    fn hopeless(&mut self, now: Duration, patience: Patience) -> Option<Range<u64>> {
        self.acknowledged.ripen(now);
        self.arrived.ripen(now);
        self.watch(now);
        let hole = self.hole()?;
        let lost = self.acknowledged.ripe;
        let to = match patience {
            Patience::None => hole.end,
            Patience::Usual if self.waited_for(now) => hole.end.min(lost.max(self.arrived.ripe)),
            Patience::Usual | Patience::Acknowledged => hole.end.min(lost),
        };
        (to > hole.start).then_some(hole.start..to)
    }

    /// Whether the hole has been there for long enough to be given up for silence.
    fn waited_for(&self, now: Duration) -> bool {
        let since = self.waits.map_or(now, |(_, since)| since);
        now.saturating_sub(since) >= SILENT_AFTER
    }

    /// When [`Half::give_up`] will have something to give up.
    pub(super) fn deadline(&self, patience: Patience) -> Option<Duration> {
        let hole = self.hole()?;
        let lost = self.acknowledged.due(hole.start);
        let silent = self
            .arrived
            .due(hole.start)
            .filter(|_| patience == Patience::Usual);
        let waits = self
            .waits
            .map(|(_, since)| since.saturating_add(SILENT_AFTER));
        let silent = silent.max(waits.filter(|_| silent.is_some()));
        match (lost, silent) {
            (Some(lost), Some(silent)) => Some(lost.min(silent)),
            (lost, silent) => lost.or(silent),
        }
    }

    /// The message being read cannot be framed any further, nor what follows it.
    pub(super) fn lose(&mut self) {
        self.stream.cast_off();
        self.current = None;
        self.decoder = None;
    }

    /// Goes on at `position`, where a message begins. Returns what lay before.
    pub(super) fn resume(&mut self, position: u64) -> Vec<Piece> {
        self.current = None;
        self.decoder = None;
        self.last = None;
        self.stream.anchor(position)
    }

    /// Takes out what is older than `until_ns`, and all that lies before it; the last segment's
    /// word is remembered.
    pub(super) fn discard_before(&mut self, until_ns: u64) -> Vec<Piece> {
        let mut pieces = self.stream.pieces();
        let Some(end) = pieces
            .rfind(|piece| piece.time_ns < until_ns)
            .map(Piece::end)
        else {
            return Vec::new();
        };
        drop(pieces);
        let discarded = self.stream.discard(end);
        let word = discarded.last().filter(|piece| piece.ends);
        self.last = word.and_then(|piece| {
            let is_final = !may_be_interim(&piece.data);
            let received = piece.acknowledgement?;
            let word = Word {
                end,
                received,
                is_final,
            };
            (is_final || !piece.data.ends_with(b"\n")).then_some(word)
        });
        discarded
    }

    /// The tap's time of the piece in the middle of what is held.
    pub(super) fn middle_ns(&self) -> Option<u64> {
        let mut pieces = self.stream.pieces();
        let count = pieces.len();
        pieces.nth(count / 2).map(|piece| piece.time_ns)
    }

    /// Forgets everything that is held.
    pub(super) fn clear(&mut self) {
        self.lose();
        self.stream.clear();
        self.recent.clear();
        self.doubtful.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_ripens_after_its_window() {
        let ms = Duration::from_millis;
        let mut known = Known::new(ms(100));
        known.learn(10, ms(0));
        known.learn(20, ms(20));
        known.learn(30, ms(50));
        assert_eq!(
            (known.due(15), known.due(25)),
            (Some(ms(100)), Some(ms(150)))
        );
        assert_eq!(known.due(30), None);
        known.ripen(ms(99));
        assert_eq!(known.ripe, 0);
        known.ripen(ms(100));
        assert_eq!((known.ripe, known.due(19)), (20, Some(ms(0))));
        known.ripen(ms(150));
        assert_eq!(known.ripe, 30);
        for step in 0..1_000 {
            known.learn(40 + step, ms(200 + step));
            assert!(known.marks.len() <= 5);
        }
    }
}
