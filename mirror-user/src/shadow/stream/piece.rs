//! A stretch of a stream, and how it is cut.

use bytes::Bytes;

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
    pub(super) fn empty() -> Self {
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
