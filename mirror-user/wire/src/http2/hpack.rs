//! Field blocks (RFC 7541) of one direction, as a reader decodes them that may have joined in the middle.
//!
//! An index counts from the newest entry of the table. So what was entered since the reader joined is known
//! whatever the table held before, and whatever its size is: an entry that was too large to be entered emptied
//! the table, and nobody refers to what stands before it. An index behind all that is known is an *unknown* field,
//! not an error, until an entry that is known must have been evicted: then everything before it was, too.

mod fixed;
mod huffman;

use std::collections::VecDeque;

use bytes::Bytes;

use crate::memory::{Lease, Memory};

/// The table's size before anybody says otherwise (RFC 9113, section 6.5.2).
pub(super) const DEFAULT_SIZE: usize = 4096;

/// What is kept of a table, however large the two ends let it become: what lies behind it is unknown.
pub(super) const MAX_SIZE: usize = 64 << 10;

/// What an entry takes besides name and value (section 4.1).
const OVERHEAD: usize = 32;

/// A field, or an entry of the table; what is missing was sent before the reader came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) name: Option<Bytes>,
    pub(super) value: Option<Bytes>,
}

impl Field {
    /// As far as it is known: at least.
    pub(super) fn size(&self) -> usize {
        let length = |part: &Option<Bytes>| part.as_ref().map_or(0, Bytes::len);
        length(&self.name) + length(&self.value) + OVERHEAD
    }

    pub(super) fn is_known(&self) -> bool {
        self.name.is_some() && self.value.is_some()
    }
}

/// One direction's decoder.
///
/// Invariant: `size` is the sum of the entries' sizes, and what `lease` holds; it is at most [`MAX_SIZE`].
#[derive(Debug)]
pub(super) struct Decoder {
    /// The newest first.
    entries: VecDeque<Field>,
    size: usize,
    /// The table's size, as its encoder has said; unknown in one that was joined.
    capacity: Option<usize>,
    /// How large the other end lets it become; unknown where that was not seen.
    pub(super) ceiling: Option<usize>,
    /// Whether nothing lies behind the known entries.
    is_whole: bool,
    /// Whether it is in use since the reader came, and how much was entered since.
    entered: usize,
    lease: Lease,
}

impl Decoder {
    /// That of a connection's first byte.
    pub(super) fn new(memory: &Memory) -> Self {
        Self {
            entries: VecDeque::new(),
            size: 0,
            capacity: Some(DEFAULT_SIZE),
            ceiling: Some(DEFAULT_SIZE),
            is_whole: true,
            entered: 0,
            lease: memory.empty_lease(),
        }
    }

    /// Blocks were missed: nothing is known of the table any more.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.size = 0;
        self.lease.shrink_to(0);
        self.capacity = None;
        self.ceiling = None;
        self.is_whole = false;
        self.entered = 0;
    }

    /// Whether nothing of the table is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Whether what its encoder refers to is known: nothing was missed, or what was, is gone by now. Of a table
    /// whose size is not known this is judged by the usual one.
    pub(super) fn is_healed(&self) -> bool {
        let is_gone = self.is_whole || (self.capacity.is_none() && self.entered >= DEFAULT_SIZE);
        is_gone && self.entries.iter().all(Field::is_known)
    }

    /// Decodes a whole block. After an error the two ends do not agree on the table any more.
    pub(super) fn decode(
        &mut self,
        block: &[u8],
        mut visit: impl FnMut(Field),
    ) -> Result<(), &'static str> {
        let mut block = Block(block);
        let mut is_begun = false;
        while let Some(&first) = block.0.first() {
            // Section 6: the first bits tell the representations apart.
            if first & 0x80 != 0 {
                let index = block.integer(7)?;
                visit(self.get(index)?);
            } else if first & 0x40 != 0 {
                let field = self.literal(&mut block, 6)?;
                self.enter(field.clone());
                visit(field);
            } else if first & 0x20 != 0 {
                let size = block.integer(5)?;
                if is_begun {
                    return Err("a table's size behind a field");
                }
                self.resize(size)?;
                continue;
            } else {
                let field = self.literal(&mut block, 4)?;
                visit(field);
            }
            is_begun = true;
        }
        Ok(())
    }

    fn literal(&self, block: &mut Block<'_>, prefix: u32) -> Result<Field, &'static str> {
        let name = match block.integer(prefix)? {
            0 => Some(block.string()?),
            index => self.get(index)?.name,
        };
        let value = Some(block.string()?);
        Ok(Field { name, value })
    }

    fn get(&self, index: usize) -> Result<Field, &'static str> {
        let place = index.checked_sub(1).ok_or("index 0")?;
        if let Some(&(name, value)) = fixed::TABLE.get(place) {
            let part = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
            return Ok(Field {
                name: part(name),
                value: part(value),
            });
        }
        match self.entries.get(place - fixed::TABLE.len()) {
            Some(entry) => Ok(entry.clone()),
            None if self.is_whole => Err("an index behind the table's end"),
            None => Ok(Field::default()),
        }
    }

    fn enter(&mut self, field: Field) {
        let size = field.size();
        self.entered = self.entered.saturating_add(size);
        self.evict(size);
        if size > self.capacity.unwrap_or(MAX_SIZE).min(MAX_SIZE) {
            // It emptied the table, and is not in it (section 4.4). One that only this reader has no room for
            // is as unknown as what lies behind it.
            self.is_whole = self.capacity.is_some_and(|capacity| size > capacity);
        } else if self.lease.grow(size) {
            self.size += size;
            self.entries.push_front(field);
        } else {
            let (capacity, ceiling) = (self.capacity, self.ceiling);
            self.forget();
            (self.capacity, self.ceiling) = (capacity, ceiling);
        }
    }

    /// Makes room for `more` bytes.
    fn evict(&mut self, more: usize) {
        let most = self.capacity.unwrap_or(MAX_SIZE).min(MAX_SIZE);
        let is_exact = self.capacity == Some(most);
        while self.size + more > most
            && let Some(entry) = self.entries.pop_back()
        {
            // Where the encoder evicted it, all that was older has gone before.
            self.is_whole = is_exact;
            self.size -= entry.size();
        }
        self.lease.shrink_to(self.size);
    }

    fn resize(&mut self, size: usize) -> Result<(), &'static str> {
        if self.ceiling.is_some_and(|ceiling| size > ceiling) {
            return Err("a table larger than its limit");
        }
        self.capacity = Some(size);
        self.evict(0);
        // Not even an empty entry has room.
        self.is_whole |= size < OVERHEAD;
        Ok(())
    }
}

/// What is left of a block.
struct Block<'a>(&'a [u8]);

impl Block<'_> {
    /// Section 5.1; one of more than 28 bits behind its prefix is refused.
    fn integer(&mut self, prefix: u32) -> Result<usize, &'static str> {
        let most = (1 << prefix) - 1;
        let mut number = usize::from(self.byte()?) & most;
        if number < most {
            return Ok(number);
        }
        for shift in [0, 7, 14, 21] {
            let byte = self.byte()?;
            number += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("an integer that is too large")
    }

    /// Section 5.2.
    fn string(&mut self) -> Result<Bytes, &'static str> {
        let is_coded = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.integer(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(CUT_OFF)?;
        self.0 = rest;
        match is_coded {
            true => huffman::decode(text)
                .map(Bytes::from)
                .ok_or("a string that is no Huffman code"),
            false => Ok(Bytes::copy_from_slice(text)),
        }
    }

    fn byte(&mut self) -> Result<u8, &'static str> {
        let (&first, rest) = self.0.split_first().ok_or(CUT_OFF)?;
        self.0 = rest;
        Ok(first)
    }
}

const CUT_OFF: &str = "a block that ends inside a field";

#[cfg(test)]
pub(super) mod tests;
