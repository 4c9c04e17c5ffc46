//! TCP reassembly of one direction (RFC 9293, section 3.4), from copies of its segments.
//!
//! Unlike a receiver, a listener has no say: nothing is sent again for it. So a hole ends in one
//! of two ways, both told by the caller: its bytes arrive after all, or [`Stream::give_up`].

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;

/// Where sequence number 0 of a fresh stream lies, so that positions never go below zero.
const BASE: u64 = 1 << 32;

/// How far before the first segment of an unanchored stream earlier bytes may lie, in bytes.
const SLACK: u64 = 1 << 20;

/// Segments further ahead than TCP's largest window (RFC 7323) are of another connection.
const WINDOW: u64 = 1 << 30;

/// A stretch of a stream: a segment's payload, or what was left of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts: the sequence number, extended to 64 bits.
    pub position: u64,
    /// When the tap saw the segment, in nanoseconds.
    pub time_ns: u64,
    /// The segment's acknowledgement number, where it had one.
    pub acknowledgement: Option<u32>,
    /// Whether it starts where its segment started.
    pub starts: bool,
    /// Whether it ends where its segment ended.
    pub ends: bool,
    /// The bytes; never empty inside a stream.
    pub data: Bytes,
}

impl Piece {
    fn empty() -> Self {
        Self {
            position: 0,
            time_ns: 0,
            acknowledgement: None,
            starts: false,
            ends: false,
            data: Bytes::new(),
        }
    }

    /// The position behind its last byte.
    pub fn end(&self) -> u64 {
        self.position + self.data.len() as u64
    }

    /// Drops what lies before `position`, which is not beyond the piece's end.
    fn cut_front(&mut self, position: u64) {
        let cut = position.saturating_sub(self.position);
        if cut > 0 {
            let _ = self.data.split_to(cut as usize);
            self.position = position;
            self.starts = false;
        }
    }

    /// Drops what lies from `position` on, which is inside the piece.
    fn cut_back(&mut self, position: u64) {
        self.data.truncate((position - self.position) as usize);
        self.ends = false;
    }

    /// Splits at `position`, which is inside the piece; keeps the rest.
    fn split_front(&mut self, position: u64) -> Self {
        let mut front = self.clone();
        front.cut_back(position);
        self.cut_front(position);
        front
    }
}

/// One direction of a TCP connection.
///
/// Invariant: pieces are not empty, ordered, disjoint, and none reaches below `next`; `buffered`
/// is the sum of their lengths. Everything below `next` is settled: handed out, given up, or
/// before the stream's start. The first copy of a byte wins, and is never revised.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// Unknown until the first segment.
    next: Option<u64>,
    /// Whether `next` is known to be the position to go on at, not only a lower bound.
    anchored: bool,
    pieces: VecDeque<Piece>,
    buffered: usize,
    /// The FIN's position.
    end: Option<u64>,
}

impl Stream {
    /// Where `sequence` lies: the position nearest to where the stream is.
    pub fn position(&self, sequence: u32) -> u64 {
        match self.next {
            Some(next) => {
                let distance = sequence.wrapping_sub(next as u32).cast_signed();
                next.saturating_add_signed(i64::from(distance))
            }
            None => BASE + u64::from(sequence),
        }
    }

    /// Like [`Stream::position`]; a stream that knew nothing of its place now lies about there.
    pub fn place(&mut self, sequence: u32) -> u64 {
        let position = self.position(sequence);
        self.next.get_or_insert(position.saturating_sub(SLACK));
        position
    }

    /// The position of the next byte to hand out; meaningful once anchored.
    pub fn next(&self) -> u64 {
        self.next.unwrap_or(0)
    }

    /// Whether the stream knows where it goes on.
    pub fn is_anchored(&self) -> bool {
        self.anchored
    }

    /// The stream goes on at `position`, whatever came before. Returns what lay before.
    pub fn anchor(&mut self, position: u64) -> Vec<Piece> {
        let before = self.discard(position);
        self.next = Some(position);
        self.anchored = true;
        before
    }

    /// No longer knows where it goes on: what it holds stays, nothing is handed out.
    pub fn cast_off(&mut self) {
        self.anchored = false;
    }

    /// Takes what lies before `position` out of the stream.
    pub fn discard(&mut self, position: u64) -> Vec<Piece> {
        let mut before = Vec::new();
        while let Some(mut piece) = self.pieces.pop_front() {
            if piece.position >= position {
                self.pieces.push_front(piece);
                break;
            }
            if piece.end() > position {
                before.push(piece.split_front(position));
                self.pieces.push_front(piece);
                break;
            }
            before.push(piece);
        }
        self.buffered -= before.iter().map(|piece| piece.data.len()).sum::<usize>();
        self.next = self.next.map(|next| next.max(position));
        before
    }

    /// Takes a segment's payload in. `acknowledgement` is nothing without the ACK flag.
    pub fn insert(
        &mut self,
        sequence: u32,
        acknowledgement: Option<u32>,
        time_ns: u64,
        data: Bytes,
    ) {
        let position = self.place(sequence);
        let next = self.next();
        let mut rest = Piece {
            position,
            time_ns,
            acknowledgement,
            starts: true,
            ends: true,
            data,
        };
        let end = self.end.unwrap_or(u64::MAX).min(next + WINDOW);
        if rest.end() <= next || end <= position.max(next) {
            return;
        }
        rest.cut_front(next);
        if rest.end() > end {
            rest.cut_back(end);
        }
        self.fill(rest);
    }

    /// Puts into the holes what of `rest` falls into them.
    fn fill(&mut self, mut rest: Piece) {
        let mut index = match self.pieces.back() {
            Some(last) if rest.position < last.end() => self
                .pieces
                .partition_point(|piece| piece.end() <= rest.position),
            _ => self.pieces.len(),
        };
        while !rest.data.is_empty() {
            let Some(piece) = self.pieces.get(index) else {
                self.buffered += rest.data.len();
                self.pieces.push_back(rest);
                return;
            };
            let covered = piece.position..piece.end();
            if rest.position < covered.start {
                let fits = if rest.end() <= covered.start {
                    std::mem::replace(&mut rest, Piece::empty())
                } else {
                    rest.split_front(covered.start)
                };
                self.buffered += fits.data.len();
                self.pieces.insert(index, fits);
            } else if rest.end() <= covered.end {
                return;
            } else {
                rest.cut_front(covered.end);
            }
            index += 1;
        }
    }

    /// The sender's FIN stands at `sequence`: nothing follows. The first one counts.
    pub fn finish(&mut self, sequence: u32) {
        let end = self.place(sequence);
        let next = self.next();
        let behind = self.pieces.back().map_or(next, Piece::end);
        if self.end.is_none() && end >= behind && end <= next + WINDOW {
            self.end = Some(end);
        }
    }

    /// Hands the next piece out, where it has arrived.
    pub fn pop(&mut self) -> Option<Piece> {
        if !self.anchored || self.pieces.front()?.position != self.next() {
            return None;
        }
        let piece = self.pieces.pop_front()?;
        self.buffered -= piece.data.len();
        self.next = Some(piece.end());
        Some(piece)
    }

    /// Whether everything up to the FIN is settled.
    pub fn is_ended(&self) -> bool {
        self.anchored && self.end.is_some_and(|end| end <= self.next())
    }

    /// Whether the FIN's position is known.
    pub fn is_finished(&self) -> bool {
        self.end.is_some()
    }

    /// What is missing before anything more can be handed out: up to the first piece, or to the
    /// FIN, or to where the peer has `acknowledged`.
    pub fn hole(&self, acknowledged: Option<u64>) -> Option<Range<u64>> {
        if !self.anchored {
            return None;
        }
        let next = self.next();
        let known = self.pieces.front().map(|piece| piece.position);
        // The FIN takes a number of its own, which the peer acknowledges too.
        let end = known.or(self.end).or(acknowledged)?;
        (end > next).then_some(next..end)
    }

    /// Settles everything up to `to`, or to the first piece, without its bytes. Returns how many
    /// bytes that were.
    pub fn give_up(&mut self, to: u64) -> u64 {
        let next = self.next();
        let first = self.pieces.front().map_or(to, |piece| piece.position);
        let to = to.min(first).max(next);
        self.next = Some(to);
        to - next
    }

    /// The piece that is the start of a segment at `position`.
    pub fn starting_at(&self, position: u64) -> Option<&Piece> {
        let index = self
            .pieces
            .partition_point(|piece| piece.position < position);
        self.pieces
            .get(index)
            .filter(|piece| piece.position == position && piece.starts)
    }

    /// The piece that is the end of a segment at `position`.
    pub fn ending_at(&self, position: u64) -> Option<&Piece> {
        let index = self.pieces.partition_point(|piece| piece.end() < position);
        self.pieces
            .get(index)
            .filter(|piece| piece.end() == position && piece.ends)
    }

    /// What is held, in order.
    pub fn pieces(&self) -> impl DoubleEndedIterator<Item = &Piece> + ExactSizeIterator {
        self.pieces.iter()
    }

    /// Bytes held.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// Drops everything that is held.
    pub fn clear(&mut self) {
        self.pieces = VecDeque::new();
        self.buffered = 0;
    }
}

/// `5 [8..10) [12..14) fin 20`, relative to nothing: positions as they are, modulo 2^32.
impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |position: u64| position as u32;
        write!(f, "{}", short(self.next()))?;
        for piece in &self.pieces {
            write!(f, " [{}..{})", short(piece.position), short(piece.end()))?;
        }
        if let Some(end) = self.end {
            write!(f, " fin {}", short(end))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A stream that starts at 0 and has taken these segments in.
    fn stream(segments: &[(u32, &'static str)]) -> Stream {
        let mut stream = Stream::default();
        stream.anchor(BASE);
        for &(sequence, text) in segments {
            stream.insert(sequence, Some(7), 1, Bytes::from_static(text.as_bytes()));
        }
        stream
    }

    fn drain(stream: &mut Stream) -> String {
        let mut text = String::new();
        while let Some(piece) = stream.pop() {
            text.push_str(std::str::from_utf8(&piece.data).unwrap());
        }
        text
    }

    #[track_caller]
    fn check(segments: &[(u32, &'static str)], shown: &str, out: &str) {
        let mut stream = stream(segments);
        assert_eq!(stream.to_string(), shown);
        let held: usize = stream.pieces().map(|piece| piece.data.len()).sum();
        assert_eq!(held, stream.buffered());
        assert_eq!(drain(&mut stream), out);
    }

    #[test]
    fn in_order() {
        check(&[(0, "ab"), (2, "cd")], "0 [0..2) [2..4)", "abcd");
    }

    #[test]
    fn reordered() {
        check(&[(2, "cd"), (0, "ab")], "0 [0..2) [2..4)", "abcd");
    }

    #[test]
    fn hole() {
        check(&[(2, "cd")], "0 [2..4)", "");
    }

    #[test]
    fn the_same_again() {
        check(&[(2, "cd"), (2, "XX")], "0 [2..4)", "");
        check(&[(0, "ab"), (0, "XX")], "0 [0..2)", "ab");
    }

    #[test]
    fn inside_what_is_there() {
        check(&[(0, "abcd"), (1, "XX")], "0 [0..4)", "abcd");
    }

    #[test]
    fn overlap_at_the_front() {
        check(&[(2, "cd"), (0, "abXX")], "0 [0..2) [2..4)", "abcd");
    }

    #[test]
    fn overlap_at_the_back() {
        check(&[(0, "abc"), (2, "XdX")], "0 [0..3) [3..5)", "abcdX");
    }

    #[test]
    fn around_what_is_there() {
        check(
            &[(2, "cd"), (0, "abXXef")],
            "0 [0..2) [2..4) [4..6)",
            "abcdef",
        );
    }

    #[test]
    fn over_two_pieces_and_their_hole() {
        check(
            &[(1, "b"), (3, "d"), (0, "aXcXe")],
            "0 [0..1) [1..2) [2..3) [3..4) [4..5)",
            "abcde",
        );
    }

    #[test]
    fn exactly_the_hole() {
        check(
            &[(0, "a"), (2, "c"), (1, "b")],
            "0 [0..1) [1..2) [2..3)",
            "abc",
        );
    }

    #[test]
    fn what_was_handed_out_is_not_revised() {
        let mut stream = stream(&[(0, "abcd")]);
        assert_eq!(drain(&mut stream), "abcd");
        stream.insert(2, None, 2, Bytes::from_static(b"XXef"));
        assert_eq!(stream.to_string(), "4 [4..6)");
        assert_eq!(drain(&mut stream), "ef");
        // A keep-alive probe: one byte before the next.
        stream.insert(5, None, 2, Bytes::from_static(b"X"));
        assert_eq!(stream.to_string(), "6");
    }

    #[test]
    fn sequence_numbers_wrap() {
        let mut stream = Stream::default();
        stream.anchor(BASE + u64::from(u32::MAX - 1));
        stream.insert(1, None, 0, Bytes::from_static(b"d"));
        stream.insert(u32::MAX - 1, None, 0, Bytes::from_static(b"abc"));
        stream.finish(2);
        assert_eq!(drain(&mut stream), "abcd");
        assert_eq!(stream.next(), BASE + (1 << 32) + 2);
        assert!(stream.is_ended());
    }

    #[test]
    fn a_hole_given_up_is_counted_in_bytes() {
        let mut stream = stream(&[(3, "de"), (7, "h")]);
        let hole = stream.hole(None).unwrap();
        assert_eq!((hole.end - hole.start, stream.give_up(hole.end)), (3, 3));
        assert_eq!(drain(&mut stream), "de");
        // The lost bytes come too late.
        stream.insert(0, None, 0, Bytes::from_static(b"abc"));
        assert_eq!(stream.to_string(), "5 [7..8)");
        // Nothing beyond the first piece is given up.
        assert_eq!(stream.give_up(u64::MAX), 2);
        assert_eq!(drain(&mut stream), "h");
    }

    #[test]
    fn a_lost_tail_is_a_hole_up_to_the_fin_or_the_acknowledgement() {
        let mut stream = stream(&[(0, "ab")]);
        drain(&mut stream);
        assert_eq!(stream.hole(None), None);
        assert_eq!(stream.hole(Some(BASE + 5)), Some(BASE + 2..BASE + 5));
        stream.finish(4);
        assert_eq!(stream.hole(Some(BASE + 5)), Some(BASE + 2..BASE + 4));
        stream.give_up(BASE + 4);
        assert!(stream.is_ended());
    }

    #[test]
    fn nothing_follows_the_fin() {
        let mut stream = stream(&[(0, "ab")]);
        stream.finish(2);
        stream.insert(1, None, 0, Bytes::from_static(b"bX"));
        stream.finish(9);
        assert_eq!(stream.to_string(), "0 [0..2) fin 2");
        drain(&mut stream);
        assert!(stream.is_ended());
    }

    #[test]
    fn a_stream_that_goes_on_past_a_false_fin_has_ended() {
        let mut stream = stream(&[]);
        stream.finish(4);
        stream.anchor(BASE + 6);
        stream.insert(2, None, 0, Bytes::from_static(b"cdefgh"));
        assert_eq!(stream.to_string(), "6 fin 4");
        assert!(stream.is_ended());
    }

    #[test]
    fn joined_in_its_middle_it_hands_out_nothing_until_anchored() {
        let mut stream = Stream::default();
        stream.insert(1_000, Some(1), 0, Bytes::from_static(b"cd"));
        stream.insert(998, Some(1), 0, Bytes::from_static(b"ab"));
        assert_eq!(stream.pop(), None);
        assert_eq!(stream.hole(None), None);
        let before = stream.anchor(BASE + 999);
        assert_eq!(before[0].data, "a");
        assert_eq!(drain(&mut stream), "bcd");
    }

    #[test]
    fn edges_are_those_of_segments() {
        let mut stream = stream(&[(2, "cd"), (0, "abXXef")]);
        let edges: Vec<_> = stream.pieces().map(|p| (p.starts, p.ends)).collect();
        assert_eq!(edges, [(true, false), (true, true), (false, true)]);
        assert!(stream.starting_at(BASE + 2).is_some());
        assert!(stream.starting_at(BASE + 4).is_none());
        assert!(stream.ending_at(BASE + 4).is_some());
        assert!(stream.ending_at(BASE + 2).is_none());
        let front = stream.discard(BASE + 3);
        assert_eq!(front.len(), 2);
        assert_eq!(stream.to_string(), "3 [3..4) [4..6)");
    }

    #[test]
    fn far_segments_are_of_another_connection() {
        let mut stream = stream(&[(0x5000_0000, "x")]);
        assert_eq!(stream.buffered(), 0);
        stream.finish(0x6000_0000);
        assert!(!stream.is_finished());
    }

    proptest! {
        /// Whatever is cut out of a text and in whatever order, each byte comes out at its place.
        #[test]
        fn bytes_keep_their_place(
            start in any::<u32>(),
            cuts in prop::collection::vec((0_usize..300, 1_usize..60, any::<bool>()), 0..60),
        ) {
            let text: Vec<u8> = (0..400_u32).map(|i| (i * 7 + i / 256) as u8).collect();
            let mut stream = Stream::default();
            stream.anchor(BASE + u64::from(start));
            let origin = stream.next();
            for (from, length, give_up) in cuts {
                let data = Bytes::copy_from_slice(&text[from..from + length]);
                stream.insert(start.wrapping_add(from as u32), None, 0, data);
                if give_up && let Some(hole) = stream.hole(None) {
                    stream.give_up(hole.end);
                }
                while let Some(piece) = stream.pop() {
                    let at = (piece.position - origin) as usize;
                    prop_assert_eq!(&piece.data[..], &text[at..at + piece.data.len()]);
                }
                let held: usize = stream.pieces().map(|piece| piece.data.len()).sum();
                prop_assert_eq!(held, stream.buffered());
            }
        }
    }
}
