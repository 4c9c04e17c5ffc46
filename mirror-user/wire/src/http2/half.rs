//! One direction of a connection.

use mirror_common::tunnel::Direction;

use super::frame::Frames;
use super::head::Unusable;
use super::hpack;
use super::seek::Seek;
use super::settings::Bounds;
use crate::memory::Memory;
use crate::message::DropReason;

/// Where in a direction the next byte is.
#[derive(Debug)]
pub(super) enum Place {
    /// So many bytes inside the client's preface.
    Preface(usize),
    Frames(Frames),
    Unknown(Seek),
}

/// One direction.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) place: Place,
    pub(super) table: hpack::Decoder,
    pub(super) bounds: Bounds,
    /// Why fields that were entered before are not known.
    pub(super) unknown: Unusable,
    /// Why streams that began before were not seen to.
    pub(super) unseen: Unusable,
    /// For so many bytes more it is not certain that its frames are some.
    pub(super) probation: u64,
}

impl Half {
    pub(super) fn new(place: Place, memory: &Memory) -> Self {
        Self {
            place,
            table: hpack::Decoder::new(memory),
            bounds: Bounds::new(),
            unknown: DropReason::JoinedLate.into(),
            unseen: DropReason::MidStream.into(),
            probation: 0,
        }
    }

    pub(super) fn joined(direction: Direction, memory: &Memory) -> Self {
        let mut half = Self::new(Place::Unknown(Seek::new(direction, memory)), memory);
        half.table.forget();
        half.bounds.forget();
        half
    }

    pub(super) fn is_joined(&self) -> bool {
        !matches!(self.place, Place::Unknown(_))
    }
}
