//! What reading bodies takes of the agent's memory: decoded content, and values.

use std::cell::{Cell, RefCell};
use std::io::{self, Read, Write};

use super::json::Unparsed;
use crate::heap;
use crate::memory::{Lease, Memory};

/// Values in one body: so many are read in a second.
pub(super) const MAX_VALUES: u32 = 2 << 20;

/// Things that a list has room for when it gets its first one.
const FIRST: usize = 4;

/// What the allocator adds to each piece, in bytes, about.
const PIECE: usize = 16;

/// What is read at once of what is decoded.
const CHUNK: usize = 64 << 10;

/// So much is returned to the system at once, before others may take as much.
const RETURNED: usize = 1 << 20;

/// Leases of what reading the bodies of one exchange takes, before it is taken. Once there was no memory, what was
/// read is of no use.
#[derive(Debug)]
pub struct Room {
    /// Nothing where memory is not counted.
    lease: Option<RefCell<Lease>>,
    is_short: Cell<bool>,
}

impl Room {
    /// In the memory that this lease is of.
    pub fn beside(lease: &Lease) -> Self {
        Self {
            lease: lease.sibling(0).map(RefCell::new),
            is_short: Cell::new(false),
        }
    }

    /// In memory of its own.
    pub fn in_memory(memory: &Memory) -> Self {
        Self::beside(&memory.empty_lease())
    }

    /// Without an end, for what is read outside of the agent.
    pub fn unlimited() -> Self {
        Self {
            lease: None,
            is_short: Cell::new(false),
        }
    }

    /// Takes so many bytes. Without room for them nothing is taken any more.
    pub fn take(&self, bytes: usize) -> bool {
        let Some(lease) = &self.lease else {
            return true;
        };
        let taken = !self.is_short.get() && lease.borrow_mut().grow(bytes);
        self.is_short.set(!taken);
        taken
    }

    /// How many bytes are taken by now.
    pub fn taken(&self) -> usize {
        self.lease
            .as_ref()
            .map_or(0, |lease| lease.borrow().bytes())
    }

    /// Gives back what was taken since it was `taken`.
    pub fn back_to(&self, taken: usize) {
        if let Some(lease) = &self.lease {
            shrink(&mut lease.borrow_mut(), taken);
        }
    }

    /// What is left when all but `bytes` is given back; nothing where memory is not counted.
    pub fn into_lease(mut self, bytes: usize) -> Option<Lease> {
        let mut lease = self.lease.take()?.into_inner();
        shrink(&mut lease, bytes);
        Some(lease)
    }

    /// Whether there was no memory for something.
    pub fn is_short(&self) -> bool {
        self.is_short.get()
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.back_to(0);
    }
}

fn shrink(lease: &mut Lease, bytes: usize) {
    if lease.bytes().saturating_sub(bytes) >= RETURNED {
        heap::return_freed();
    }
    lease.shrink_to(bytes);
}

/// What one body may become: values, in this room.
#[derive(Debug)]
pub(super) struct Budget<'r> {
    room: &'r Room,
    values: Cell<u32>,
}

impl<'r> Budget<'r> {
    pub(super) fn new(room: &'r Room) -> Self {
        Self {
            room,
            values: Cell::new(MAX_VALUES),
        }
    }

    /// So many values more.
    pub(super) fn spend(&self, values: usize) -> Result<(), Unparsed> {
        let values = u32::try_from(values).ok();
        let rest = values.and_then(|values| self.values.get().checked_sub(values));
        let rest = rest.filter(|&rest| rest > 0);
        self.values.set(rest.unwrap_or_default());
        rest.map(drop).ok_or(Unparsed::TooManyValues)
    }

    /// Whether all values are spent.
    pub(super) fn is_spent(&self) -> bool {
        self.values.get() == 0
    }

    /// So many bytes more, in one piece.
    pub(super) fn take(&self, bytes: usize) -> Result<(), Unparsed> {
        match self.room.take(bytes + PIECE) {
            true => Ok(()),
            false => Err(Unparsed::Memory),
        }
    }

    /// Adds to a list, and takes what that grows by.
    pub(super) fn push<T>(&self, list: &mut Vec<T>, item: T) -> Result<(), Unparsed> {
        if list.len() == list.capacity() {
            let more = list.len().max(FIRST);
            self.take(more * size_of::<T>())?;
            list.reserve_exact(more);
        }
        list.push(item);
        Ok(())
    }

    /// Takes `bytes` for as long as `work` goes on.
    pub(super) fn while_taking<T>(
        &self,
        bytes: usize,
        work: impl FnOnce() -> T,
    ) -> Result<T, Unparsed> {
        let before = self.room.taken();
        self.take(bytes)?;
        let done = work();
        self.room.back_to(before);
        Ok(done)
    }

    pub(super) fn room(&self) -> &'r Room {
        self.room
    }
}

/// What is written, in room that it takes as it grows.
pub struct Written<'r> {
    bytes: Vec<u8>,
    room: &'r Room,
}

impl<'r> Written<'r> {
    /// With room for so many bytes, where there is.
    pub fn new(room: &'r Room, capacity: usize) -> Option<Self> {
        room.take(capacity).then(|| Self {
            bytes: Vec::with_capacity(capacity),
            room,
        })
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

impl Write for Written<'_> {
    fn write(&mut self, more: &[u8]) -> io::Result<usize> {
        let (length, capacity) = (self.bytes.len(), self.bytes.capacity());
        if length + more.len() > capacity {
            let wanted = (length + more.len()).max(capacity + capacity / 2);
            if !self.room.take(wanted - capacity) {
                return Err(io::ErrorKind::OutOfMemory.into());
            }
            self.bytes.reserve_exact(wanted - length);
        }
        self.bytes.extend_from_slice(more);
        Ok(more.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What is read takes room.
pub(super) struct Leased<'r, R> {
    pub(super) from: R,
    pub(super) room: &'r Room,
    /// How many times it is kept.
    pub(super) copies: usize,
}

impl<R: Read> Read for Leased<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(CHUNK);
        let before = self.room.taken();
        if !self.room.take(self.copies * most) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let read = self.from.read(&mut buffer[..most])?;
        self.room.back_to(before + self.copies * read);
        Ok(read)
    }
}
