//! What was read last, to hold other copies against.

use std::collections::VecDeque;

use crate::stream::Piece;

/// The most bytes that are kept to hold other copies against.
const MAX_RECENT: usize = 64 << 10;

/// The last bytes that were handed out, as far as the peer has not acknowledged them: of more recent copies
/// that say otherwise it is not known which it took.
#[derive(Debug, Default)]
pub(super) struct Recent {
    pieces: VecDeque<Piece>,
    bytes: usize,
}

impl Recent {
    pub(super) fn push(&mut self, piece: &Piece) {
        self.bytes += piece.data.len();
        self.pieces.push_back(piece.clone());
        while self.bytes > MAX_RECENT {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some(piece) = self.pieces.pop_front() {
            self.bytes -= piece.data.len();
        }
    }

    /// What the peer has is settled.
    pub(super) fn forget_before(&mut self, position: u64) {
        while self
            .pieces
            .front()
            .is_some_and(|piece| piece.end() <= position)
        {
            self.drop_first();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The first piece that a copy of bytes at `position` contradicts: where it starts.
    pub(super) fn contradicted_by(&self, position: u64, data: &[u8]) -> Option<u64> {
        let piece = self
            .pieces
            .iter()
            .find(|piece| piece.differs(position, data))?;
        Some(piece.position)
    }
}
