//! TCP reassembly of one direction (RFC 9293, section 3.4), from copies of its segments.
//!
//! Unlike a receiver, a listener has no say: nothing is sent again for it. So a hole ends in one
//! of two ways, both told by the caller: its bytes arrive after all, or [`Stream::give_up`].

mod piece;

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;

pub use self::piece::{Flaw, Piece};

/// Where sequence number 0 of a fresh stream lies, so that positions never go below zero.
const BASE: u64 = 1 << 32;

/// How far before the first segment of an unanchored stream earlier bytes may lie, in bytes.
const SLACK: u64 = 1 << 20;

/// Segments further ahead than TCP's largest window (RFC 7323) are of another connection.
const WINDOW: u64 = 1 << 30;

/// One direction of a TCP connection.
///
/// Invariant: pieces are not empty, ordered, disjoint, and none reaches below `next`; `buffered`
/// is the sum of their lengths. Everything below `next` is settled: handed out, given up, or
/// before the stream's start. The first copy of a byte wins, and is never revised; a piece of which
/// another copy says otherwise has a flaw.
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

    /// The lowest position that is not settled, as far as anything is known.
    pub fn known(&self) -> Option<u64> {
        self.next
    }

    /// Behind everything that has come.
    pub fn received(&self) -> u64 {
        self.pieces.back().map_or(self.next(), Piece::end)
    }

    /// The FIN's position, where it is known.
    pub fn end(&self) -> Option<u64> {
        self.end
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
            flaw: None,
            data,
        };
        if self
            .end
            .is_some_and(|end| self.contiguous() < end && end < rest.end())
        {
            // Nobody sends on behind a FIN of its own, and the peer has not come to it.
            self.end = None;
        }
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
            let Some(piece) = self.pieces.get_mut(index) else {
                self.buffered += rest.data.len();
                self.pieces.push_back(rest);
                return;
            };
            if piece.differs(rest.position, &rest.data) {
                piece.flaw.get_or_insert(Flaw::Conflict);
            }
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

    /// The sender's FIN stands at `sequence`: nothing follows. The first one counts, and one that is next
    /// in turn whatever seemed to follow. Whether it counts.
    pub fn finish(&mut self, sequence: u32) -> bool {
        let end = self.place(sequence);
        let next = self.next();
        let behind = self.received();
        let in_turn = self.anchored && end == self.contiguous();
        let counts = self.end.is_none() && (in_turn || (end >= behind && end <= next + WINDOW));
        if counts {
            self.truncate(end);
            self.end = Some(end);
        }
        counts
    }

    /// What is held of these bytes has a flaw.
    pub fn mark(&mut self, bytes: Range<u64>, flaw: Flaw) {
        for piece in &mut self.pieces {
            if piece.position < bytes.end && bytes.start < piece.end() {
                piece.flaw.get_or_insert(flaw);
            }
        }
    }

    /// Whether nothing of these bytes is there, nor was settled.
    pub fn lacks(&self, bytes: Range<u64>) -> bool {
        let is_apart = |piece: &Piece| piece.end() <= bytes.start || bytes.end <= piece.position;
        bytes.start >= self.next() && self.pieces.iter().all(is_apart)
    }

    /// Up to where everything is there.
    pub fn contiguous(&self) -> u64 {
        let mut end = self.next();
        for piece in &self.pieces {
            if piece.position != end {
                break;
            }
            end = piece.end();
        }
        end
    }

    /// Drops what lies from `position` on.
    pub fn truncate(&mut self, position: u64) {
        while let Some(piece) = self.pieces.back_mut()
            && piece.end() > position
        {
            let before = piece.data.len();
            if piece.position < position {
                piece.cut_back(position);
                self.buffered -= before - piece.data.len();
                return;
            }
            self.buffered -= before;
            self.pieces.pop_back();
        }
    }

    /// Goes back to `position`: what was settled from there on was not sent by then. Knows no longer where to
    /// go on, and forgets what it holds.
    pub fn rewind(&mut self, position: u64) {
        self.clear();
        self.cast_off();
        self.next = Some(position);
        self.end = None;
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
mod tests;
