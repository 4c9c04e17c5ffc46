//! A reader that knows how far it has come.

use std::io::{BufRead, Read, Result};

/// Counts what is taken out of a reader.
#[derive(Debug)]
pub(super) struct Counted<R> {
    reader: R,
    count: u64,
}

impl<R> Counted<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, count: 0 }
    }

    /// Bytes taken so far.
    pub(super) fn count(&self) -> u64 {
        self.count
    }
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let read = self.reader.read(buffer)?;
        self.count += read as u64;
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.count += amount as u64;
        self.reader.consume(amount);
    }
}
