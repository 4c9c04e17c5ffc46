//! A body as it arrives: one segment's bytes are kept as they are, several are copied once.

use bytes::{Bytes, BytesMut};

use super::{Fault, Unfit};
use crate::memory::{Lease, Memory};

/// The most that is allocated for a body before its bytes are there.
const FIRST_ALLOCATION: u64 = 1 << 20;

/// A body, up to a limit and within the agent's memory.
#[derive(Debug)]
pub(crate) struct Body {
    bytes: Held,
    /// What was kept so far, the head included, is paid for here.
    lease: Lease,
    /// Parts of sections that wait for their end: they stay when the body goes.
    sections: usize,
    /// How many bytes came.
    length: u64,
    /// How many bytes more may come.
    room: usize,
    /// Nothing of it is kept.
    skipped: bool,
    unfit: Option<Unfit>,
}

#[derive(Debug)]
enum Held {
    One(Bytes),
    Many(BytesMut),
}

impl Body {
    pub(crate) fn new(memory: &Memory, max_body: usize) -> Self {
        Self {
            bytes: Held::One(Bytes::new()),
            lease: memory.empty_lease(),
            sections: 0,
            length: 0,
            room: max_body,
            skipped: false,
            unfit: None,
        }
    }

    /// How many bytes came, whether they were kept or not.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Nothing of it is to be kept, so that it may have any size.
    pub(crate) fn skip(&mut self) {
        self.skipped = true;
    }

    /// The same from now on, and what has come is given back.
    pub(crate) fn forget(&mut self) {
        self.skipped = true;
        let held = match std::mem::replace(&mut self.bytes, Held::One(Bytes::new())) {
            Held::One(bytes) => bytes.len(),
            Held::Many(bytes) => bytes.len(),
        };
        self.lease.shrink_to(self.lease.bytes() - held);
    }

    /// Why it cannot be handed on, if so. The first reason stays.
    pub(crate) fn unfit(&self) -> Option<Unfit> {
        self.unfit
    }

    /// It cannot be handed on any more: what it holds is given back at once.
    pub(crate) fn spoil(&mut self, unfit: Unfit) {
        self.unfit.get_or_insert(unfit);
        self.bytes = Held::One(Bytes::new());
        self.lease.shrink_to(self.sections);
    }

    /// Pays for `bytes` of a section that has not ended; refused when the memory is not there.
    pub(crate) fn hold(&mut self, bytes: usize) -> Result<(), Fault> {
        if !self.lease.grow(bytes) {
            return Err(Fault::Memory);
        }
        self.sections += bytes;
        Ok(())
    }

    /// Pays for `bytes` that are kept besides the body.
    pub(crate) fn pay(&mut self, bytes: usize) {
        if self.unfit.is_none() && !self.lease.grow(bytes) {
            self.spoil(Unfit::Memory);
        }
    }

    /// A body of `length` bytes is announced.
    pub(crate) fn announce(&mut self, length: u64) {
        if length > self.room as u64 && !self.skipped {
            self.spoil(Unfit::TooLarge);
        }
    }

    /// Takes in the next bytes; `rest` bytes are known to follow them.
    pub(crate) fn push(&mut self, data: Bytes, rest: u64) {
        self.length += data.len() as u64;
        if self.unfit.is_some() || data.is_empty() || self.skipped {
            return;
        }
        if data.len() > self.room {
            return self.spoil(Unfit::TooLarge);
        }
        self.pay(data.len());
        if self.unfit.is_some() {
            return;
        }
        self.room -= data.len();
        match &mut self.bytes {
            Held::One(first) if first.is_empty() => *first = data,
            Held::One(first) => {
                let known = (first.len() + data.len()) as u64 + rest.min(FIRST_ALLOCATION);
                let mut many = BytesMut::with_capacity(known as usize);
                many.extend_from_slice(first);
                many.extend_from_slice(&data);
                self.bytes = Held::Many(many);
            }
            Held::Many(many) => many.extend_from_slice(&data),
        }
    }

    /// The whole body and the memory it occupies.
    pub(crate) fn take(self) -> Result<(Bytes, Lease), Unfit> {
        match (self.unfit, self.bytes) {
            (Some(unfit), _) => Err(unfit),
            (None, Held::One(bytes)) => Ok((bytes, self.lease)),
            (None, Held::Many(bytes)) => Ok((bytes.freeze(), self.lease)),
        }
    }
}
