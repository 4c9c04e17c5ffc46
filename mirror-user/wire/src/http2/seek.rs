//! Where frames begin in a direction that was joined in its middle, or has lost bytes.
//!
//! Nothing marks a frame's first byte. But each frame's header says where the next one stands: where several
//! that could be frames follow each other exactly, and nothing else in the bytes does the same, they are. A chain
//! begins with a frame that few bytes look like, each link of it adds evidence, and one implausible frame
//! ends it.
//!
//! A body may hold frames, of a recording say. What passes as one payload hides them no longer than the largest payload
//! is; and its segments do not begin where they do, as those of an end that writes frames.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use mirror_common::tunnel::Direction;

use super::frame::{DEFAULT_SIZE, HEADER, Header, Kind, flag};
use super::head::Section;
use super::hpack;
use crate::memory::{Lease, Memory};

/// The most bytes that are kept.
const MAX_HELD: usize = 64 << 10;

/// The largest DATA in a chain.
const MAX_DATA: u32 = 1 << 20;

/// The most chains at once.
const MAX_CHAINS: usize = 64;

/// What a chain must have, in bits: how unlikely it is that other bytes look like it.
pub(super) const ENOUGH: u32 = 96;
const FRAMES: u32 = 3;

/// So many of its frames must begin with a segment, or it must be longer than a payload is that nobody has asked to
/// be larger.
const ALIGNED: u32 = 3;
const SPAN: u64 = (DEFAULT_SIZE as usize + HEADER) as u64;

/// A chain that has so much may be the true one, so that no other one counts meanwhile.
const RIVAL: u32 = 48;

/// What could be frames that follow each other.
#[derive(Clone, Copy, Debug)]
struct Chain {
    /// From where on it can be read: what stands before may be frames in a body that happen to lead to true ones.
    from: Option<u64>,
    /// Where the next one would begin.
    next: u64,
    frames: u32,
    evidence: u32,
    /// How many of them begin with a segment.
    aligned: u32,
    /// How long they are, but for large ones, and for the last one: nothing says yet that it ends where it says.
    span: u64,
    last: u64,
    /// The stream whose field block goes on.
    block: Option<u32>,
}

/// One direction, until frames are found in it.
#[derive(Debug)]
pub(super) struct Seek {
    direction: Direction,
    held: BytesMut,
    /// Where what is held begins, counted from where the search did.
    start: u64,
    /// Whether a chain has come by a byte that is held.
    visited: VecDeque<bool>,
    /// Where chains that begin before this byte were looked for.
    searched: u64,
    /// The segments, or what is left of the first one.
    marks: VecDeque<Mark>,
    chains: Vec<Chain>,
    lease: Lease,
}

/// A stretch that passed at once.
#[derive(Clone, Copy, Debug)]
struct Mark {
    begin: u64,
    time_ns: u64,
    /// Whether a segment begins there.
    starts: bool,
}

/// Whether a frame could stand somewhere.
enum Look {
    /// It could, with so much evidence for it.
    Frame(Header, u32),
    /// Not all of it is there.
    More,
    No,
}

impl Seek {
    pub(super) fn new(direction: Direction, memory: &Memory) -> Self {
        Self {
            direction,
            held: BytesMut::new(),
            start: 0,
            visited: VecDeque::new(),
            searched: 0,
            marks: VecDeque::new(),
            chains: Vec::new(),
            lease: memory.empty_lease(),
        }
    }

    /// Bytes are missing here: what was found so far leads nowhere.
    pub(super) fn restart(&mut self) {
        self.trim(self.end());
        self.chains.clear();
    }

    /// Takes bytes in that passed at `time_ns`. Once it is certain where frames begin, all that is held from there on,
    /// with when it passed.
    pub(super) fn feed(
        &mut self,
        mut data: Bytes,
        time_ns: u64,
        mut starts: bool,
    ) -> Option<Vec<(u64, Bytes)>> {
        while !data.is_empty() {
            let part = data.split_to(data.len().min(MAX_HELD / 2));
            if self.end() + part.len() as u64 - self.start > MAX_HELD as u64 {
                self.trim(self.end() - (MAX_HELD / 2) as u64);
            }
            if !self.lease.grow(2 * part.len()) {
                self.restart();
                return None;
            }
            self.marks.push_back(Mark {
                begin: self.end(),
                time_ns,
                starts: std::mem::take(&mut starts),
            });
            self.held.extend_from_slice(&part);
            self.visited.resize(self.held.len(), false);
            self.search();
            if let Some(from) = self.certain() {
                let mut found = self.take(from);
                found.push((time_ns, data));
                return Some(found);
            }
        }
        None
    }

    fn end(&self) -> u64 {
        self.start + self.held.len() as u64
    }

    /// Forgets what lies before `position`.
    fn trim(&mut self, position: u64) {
        let cut = (position - self.start) as usize;
        let _ = self.held.split_to(cut);
        self.visited.drain(..cut);
        self.start = position;
        self.searched = self.searched.max(position);
        while self.marks.get(1).is_some_and(|mark| mark.begin <= position) {
            self.marks.pop_front();
        }
        if self.held.is_empty() {
            self.marks.clear();
        }
        self.lease.shrink_to(2 * self.held.len());
        self.chains.retain_mut(|chain| {
            if chain.from.is_some_and(|from| from < position) {
                // In the middle of a field block nothing can be decoded.
                chain.from = Some(chain.next).filter(|_| chain.block.is_none());
            }
            chain.next >= position
        });
    }

    fn search(&mut self) {
        let mut chains = std::mem::take(&mut self.chains);
        chains.retain_mut(|chain| self.follow(chain));
        while self.searched + (HEADER as u64) <= self.end() {
            let next = self.searched;
            self.searched += 1;
            if self.is_visited(next) {
                continue;
            }
            let mut chain = Chain {
                from: None,
                next,
                frames: 0,
                evidence: 0,
                aligned: 0,
                span: 0,
                last: 0,
                block: None,
            };
            // DATA may be any bytes.
            let begins = self
                .header(next)
                .is_some_and(|header| header.kind != Kind::Data);
            if begins && chains.len() < MAX_CHAINS && self.follow(&mut chain) {
                chains.push(chain);
            }
        }
        self.chains = chains;
    }

    /// Goes along a chain as far as its bytes are there. Whether it still could be one.
    fn follow(&mut self, chain: &mut Chain) -> bool {
        while chain.next + (HEADER as u64) <= self.end() {
            if self.is_visited(chain.next) {
                // Another one goes on from here, or has ended.
                return false;
            }
            match self.look(chain.next, chain.block) {
                Look::No => return false,
                Look::More => return true,
                Look::Frame(header, evidence) => {
                    let begin = chain.next;
                    let is_aligned = self.starts_at(begin);
                    self.visited[(begin - self.start) as usize] = true;
                    chain.next += HEADER as u64 + u64::from(header.length);
                    chain.frames += 1;
                    chain.evidence += evidence;
                    chain.aligned += u32::from(is_aligned);
                    chain.span += std::mem::take(&mut chain.last);
                    let is_long = chain.aligned >= ALIGNED || chain.span >= SPAN;
                    if is_long && chain.block.is_none() {
                        chain.from.get_or_insert(begin);
                    }
                    chain.last = match header.length {
                        ..=DEFAULT_SIZE => chain.next - begin,
                        _ => 0,
                    };
                    let is_block = matches!(header.kind, Kind::Headers | Kind::Continuation);
                    let goes_on = is_block && !header.has(flag::END_HEADERS);
                    chain.block = goes_on.then_some(header.stream);
                }
            }
        }
        true
    }

    /// Whether a segment starts here.
    fn starts_at(&self, position: u64) -> bool {
        let at = self
            .marks
            .binary_search_by_key(&position, |mark| mark.begin);
        at.is_ok_and(|at| self.marks[at].starts)
    }

    fn is_visited(&self, position: u64) -> bool {
        self.visited[(position - self.start) as usize]
    }

    fn header(&self, position: u64) -> Option<Header> {
        let place = (position - self.start) as usize;
        let bytes = self.held.get(place..place + HEADER)?;
        // Nobody sets the reserved bit, nor sends extensions often.
        let is_plain = bytes[3] <= 9 && bytes[5] & 0x80 == 0;
        bytes
            .try_into()
            .ok()
            .filter(|_| is_plain)
            .map(Header::parse)
    }

    fn look(&self, position: u64, block: Option<u32>) -> Look {
        let Some(header) = self.header(position) else {
            return Look::No;
        };
        if !is_plausible(header, block) {
            return Look::No;
        }
        if header.kind == Kind::Data {
            let small = header.length <= DEFAULT_SIZE;
            return Look::Frame(header, if small { 16 } else { 8 });
        }
        let place = (position - self.start) as usize + HEADER;
        let Some(payload) = self.held.get(place..place + header.length as usize) else {
            return Look::More;
        };
        match evidence(header, payload, self.direction) {
            Some(evidence) => Look::Frame(header, evidence),
            None => Look::No,
        }
    }

    /// Where the true chain begins, if there is no doubt.
    fn certain(&self) -> Option<u64> {
        let best = self.chains.iter().max_by_key(|chain| chain.evidence)?;
        let rivals = self.chains.iter().filter(|chain| chain.evidence >= RIVAL);
        let is_likely = best.evidence >= ENOUGH && best.frames >= FRAMES;
        let from = best.from.filter(|_| is_likely && rivals.count() == 1)?;
        (from <= self.end()).then_some(from)
    }

    /// What is held from `from` on.
    fn take(&mut self, from: u64) -> Vec<(u64, Bytes)> {
        self.trim(from);
        let held = std::mem::take(&mut self.held).freeze();
        let mut found = Vec::new();
        let ends = self.marks.iter().skip(1).map(|mark| mark.begin);
        let ends = ends.chain([self.start + held.len() as u64]);
        let mut before = self.start;
        for (mark, end) in self.marks.iter().zip(ends) {
            let within = (before - self.start) as usize..(end - self.start) as usize;
            found.push((mark.time_ns, held.slice(within)));
            before = end;
        }
        found
    }
}

/// How much speaks for a segment's payload being whole frames, in bits: of the last one DATA may be missing.
pub(super) fn likeness(payload: &[u8], direction: Direction) -> u32 {
    let (mut sum, mut rest, mut open) = (0, payload, None);
    while let Some((bytes, behind)) = rest.split_first_chunk::<HEADER>() {
        let header = Header::parse(*bytes);
        let length = header.length as usize;
        let is_data = header.kind == Kind::Data;
        let (payload, behind) = match behind.split_at_checked(length) {
            Some(split) => split,
            None if is_data => (behind, &[][..]),
            None => return 0,
        };
        let bits = match is_data {
            true => Some(16),
            false => evidence(header, payload, direction),
        };
        let Some(bits) = bits.filter(|_| is_plausible(header, open)) else {
            return 0;
        };
        let goes_on = matches!(header.kind, Kind::Headers | Kind::Continuation)
            && !header.has(flag::END_HEADERS);
        open = goes_on.then_some(header.stream);
        sum += bits;
        rest = behind;
    }
    if rest.is_empty() { sum } else { 0 }
}

/// Whether a frame's header is one that somebody would send here.
fn is_plausible(header: Header, block: Option<u32>) -> bool {
    let Header {
        length,
        kind,
        flags,
        stream,
    } = header;
    if let Some(block) = block {
        return kind == Kind::Continuation
            && stream == block
            && length <= DEFAULT_SIZE
            && flags & !flag::END_HEADERS == 0;
    }
    let is_call = stream % 2 == 1;
    match kind {
        Kind::Data => {
            let flags_fit = flags & !(flag::END_STREAM | flag::PADDED) == 0;
            let says_something = length > 0 || flags == flag::END_STREAM;
            is_call && flags_fit && says_something && length <= MAX_DATA
        }
        Kind::Headers => {
            let known = flag::END_STREAM | flag::END_HEADERS | flag::PADDED | flag::PRIORITY;
            is_call && flags & !known == 0 && (1..=DEFAULT_SIZE).contains(&length)
        }
        Kind::Priority => is_call && length == 5 && flags == 0,
        Kind::Reset => is_call && length == 4 && flags == 0,
        Kind::Settings => match flags {
            0 => stream == 0 && length.is_multiple_of(6) && (6..=120).contains(&length),
            flag::ACK => stream == 0 && length == 0,
            _ => false,
        },
        Kind::Ping => stream == 0 && length == 8 && flags & !flag::ACK == 0,
        Kind::GoAway => stream == 0 && flags == 0 && (8..=1024).contains(&length),
        Kind::WindowUpdate => length == 4 && flags == 0 && (stream == 0 || is_call),
        // A promise is an answer that hardly any server gives.
        Kind::PushPromise | Kind::Continuation | Kind::Other => false,
    }
}

/// What speaks for such a frame, in bits, where its payload could be one.
fn evidence(header: Header, payload: &[u8], direction: Direction) -> Option<u32> {
    let first = payload
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes));
    let number = first.unwrap_or(0);
    match header.kind {
        Kind::Headers => block(header, payload, direction),
        Kind::Continuation => Some(16),
        // Its codes (RFC 9113, section 7).
        Kind::Reset => (number <= 0xd).then_some(48),
        Kind::Settings if header.has(flag::ACK) => Some(64),
        Kind::Settings => {
            let (settings, _) = payload.as_chunks::<6>();
            let is_known = |&[high, low, ..]: &[u8; 6]| {
                (1..=0x10).contains(&(u16::from(high) << 8 | u16::from(low)))
            };
            settings.iter().all(is_known).then_some(48)
        }
        Kind::Ping => Some(64),
        Kind::WindowUpdate => (1..1 << 31).contains(&number).then_some(40),
        Kind::Priority => Some(32),
        Kind::GoAway => Some(32),
        Kind::Data | Kind::PushPromise | Kind::Other => None,
    }
}

/// A field block that could be decoded by somebody who knows its table.
fn block(header: Header, payload: &[u8], direction: Direction) -> Option<u32> {
    if !header.has(flag::END_HEADERS) {
        return Some(8);
    }
    let block = super::frame::strip(header, Bytes::copy_from_slice(payload)).ok()?;
    let mut decoder = hpack::Decoder::new(&Memory::new(hpack::MAX_SIZE));
    decoder.forget();
    let mut section = Section::default();
    decoder.decode(&block, |field| section.push(field)).ok()?;
    section.is_plausible(direction).then_some(24)
}

#[cfg(test)]
mod tests;
