//! A stretch of a stream, and how it is cut.

use bytes::Bytes;

/// Why it is not known which bytes the peer took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Two copies of the same bytes differ.
    Conflict,
    /// A byte of it was urgent: servers take it out of the stream, or leave it there.
    Urgent,
}

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
    /// Why it is not known which of its bytes the peer took.
    pub flaw: Option<Flaw>,
    /// The bytes; never empty inside a stream.
    pub data: Bytes,
}

impl Piece {
    pub(super) fn empty() -> Self {
        Self {
            position: 0,
            time_ns: 0,
            acknowledgement: None,
            starts: false,
            ends: false,
            flaw: None,
            data: Bytes::new(),
        }
    }

    /// The position behind its last byte.
    pub fn end(&self) -> u64 {
        self.position + self.data.len() as u64
    }

    /// Whether another copy of a stretch at `position` has other bytes where it overlaps this one.
    pub fn differs(&self, position: u64, data: &[u8]) -> bool {
        let from = self.position.max(position);
        let to = self.end().min(position + data.len() as u64);
        if to <= from {
            return false;
        }
        let within = |start: u64| (from - start) as usize..(to - start) as usize;
        self.data[within(self.position)] != data[within(position)]
    }

    /// Drops what lies before `position`, which is not beyond the piece's end.
    pub(super) fn cut_front(&mut self, position: u64) {
        let cut = position.saturating_sub(self.position);
        if cut > 0 {
            let _ = self.data.split_to(cut as usize);
            self.position = position;
            self.starts = false;
        }
    }

    /// Drops what lies from `position` on, which is inside the piece.
    pub(super) fn cut_back(&mut self, position: u64) {
        self.data.truncate((position - self.position) as usize);
        self.ends = false;
    }

    /// Splits at `position`, which is inside the piece; keeps the rest.
    pub(super) fn split_front(&mut self, position: u64) -> Self {
        let mut front = self.clone();
        front.cut_back(position);
        self.cut_front(position);
        front
    }
}
