//! Frames (RFC 9113, section 4) of one direction, out of its bytes as they come.
//!
//! A frame's header says where the next one begins, so that bytes that are missing inside a frame cost no more
//! than that frame: of DATA its stream's message, of a field block the table.

mod header;

use bytes::{Bytes, BytesMut};

use super::settings::Settings;
use crate::http::MAX_SECTION;
use crate::memory::{Lease, Memory};
use crate::message::DropReason;

pub(super) use self::header::{DEFAULT_SIZE, HEADER, Header, Kind, MAX_SIZE, flag};

/// What a direction's frames say.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// More of a message's body; `end`: the last of the message.
    Data {
        stream: u32,
        data: Bytes,
        end: bool,
    },
    /// Bytes of a message's body are missing.
    Lost {
        stream: u32,
        reason: DropReason,
    },
    /// A message's head or trailers, or what stands for them.
    Headers {
        stream: u32,
        block: Block,
        end: bool,
    },
    /// The server promises an answer that nobody asked for.
    PushPromise {
        block: Block,
    },
    Reset {
        stream: u32,
    },
    Settings(Settings),
    /// What it says, if it says anything, was lost.
    SettingsLost,
    SettingsAck,
    /// Streams beyond this one are not answered.
    GoAway {
        last: u32,
    },
}

/// A field block, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// When its first byte passed, and all of it.
    Whole(u64, Bytes),
    Lost(DropReason),
}

/// A field block of which parts are to come.
#[derive(Debug)]
struct Section {
    stream: u32,
    end: bool,
    is_promise: bool,
    first_ns: u64,
    block: Result<BytesMut, DropReason>,
}

/// Where in the frames the next byte is.
#[derive(Debug)]
enum State {
    /// Before a frame, or so many bytes inside its header.
    Header([u8; HEADER], usize),
    /// `padding` is unknown until its byte was read.
    Data {
        header: Header,
        padding: Option<u32>,
        left: u32,
    },
    /// `left` bytes of a payload are still to come, of which the first are kept.
    Payload {
        header: Header,
        held: BytesMut,
        left: u32,
        lost: Option<DropReason>,
    },
}

const START: State = State::Header([0; HEADER], 0);

/// One direction's frames.
#[derive(Debug)]
pub(super) struct Frames {
    state: State,
    section: Option<Section>,
    /// What is to be said before the next byte is read.
    lost: Option<(u32, DropReason)>,
    /// The largest payload that may come.
    pub(super) max_size: u32,
    /// When the first byte of what is being read passed.
    first_ns: u64,
    /// Pays for what waits.
    lease: Lease,
}

type Malformed = &'static str;

impl Frames {
    /// From a frame's first byte on.
    pub(super) fn new(memory: &Memory) -> Self {
        Self {
            state: START,
            section: None,
            lost: None,
            max_size: DEFAULT_SIZE,
            first_ns: 0,
            lease: memory.empty_lease(),
        }
    }

    /// Takes off the front of `input`, which passed at `time_ns`, what the next thing that is said stands in;
    /// nothing where that needs more bytes. After an error nothing is known of where frames begin.
    pub(super) fn next(
        &mut self,
        input: &mut Bytes,
        time_ns: u64,
    ) -> Result<Option<Frame>, Malformed> {
        if let Some((stream, reason)) = self.lost.take() {
            return Ok(Some(Frame::Lost { stream, reason }));
        }
        loop {
            match std::mem::replace(&mut self.state, START) {
                State::Header(mut held, length) => {
                    if length == 0 {
                        self.first_ns = time_ns;
                    }
                    let taken = input.split_to(input.len().min(HEADER - length));
                    held[length..length + taken.len()].copy_from_slice(&taken);
                    if length + taken.len() < HEADER {
                        self.state = State::Header(held, length + taken.len());
                        return Ok(None);
                    }
                    self.begin(Header::parse(held))?;
                }
                State::Data {
                    header,
                    padding,
                    left,
                } => match self.read_data(header, padding, left, input)? {
                    Read::Frame(frame) => return Ok(Some(frame)),
                    Read::Over => {}
                    Read::More => return Ok(None),
                },
                State::Payload {
                    header,
                    mut held,
                    mut left,
                    lost,
                } => {
                    let taken = input.split_to(input.len().min(left as usize));
                    left -= taken.len() as u32;
                    let kept = taken.len().min(header.kept() - held.len());
                    if lost.is_none() {
                        held.extend_from_slice(&taken[..kept]);
                    }
                    if left > 0 {
                        self.state = State::Payload {
                            header,
                            held,
                            left,
                            lost,
                        };
                        return Ok(None);
                    }
                    if let Some(frame) = self.finish(header, held.freeze(), lost)? {
                        return Ok(Some(frame));
                    }
                }
            }
        }
    }

    fn begin(&mut self, header: Header) -> Result<(), Malformed> {
        if header.length > self.max_size {
            return Err("a frame larger than its limit");
        }
        if let Some(flaw) = header.flaw() {
            return Err(flaw);
        }
        match &self.section {
            Some(section)
                if header.kind != Kind::Continuation || header.stream != section.stream =>
            {
                return Err("a frame inside a field block");
            }
            None if header.kind == Kind::Continuation => {
                return Err("CONTINUATION without a field block");
            }
            _ => {}
        }
        if header.kind != Kind::Data {
            let mut lost = None;
            if !self.lease.grow(header.kept()) {
                lost = Some(DropReason::Memory);
            }
            self.state = State::Payload {
                header,
                held: BytesMut::new(),
                left: header.length,
                lost,
            };
            return Ok(());
        }
        let is_padded = header.has(flag::PADDED);
        if is_padded && header.length == 0 {
            return Err(PADDING);
        }
        self.state = State::Data {
            header,
            padding: (!is_padded).then_some(0),
            left: header.length,
        };
        Ok(())
    }

    fn read_data(
        &mut self,
        header: Header,
        padding: Option<u32>,
        mut left: u32,
        input: &mut Bytes,
    ) -> Result<Read, Malformed> {
        let stream = header.stream;
        let padding = match padding {
            Some(padding) => padding,
            None if input.is_empty() => {
                self.state = State::Data {
                    header,
                    padding: None,
                    left,
                };
                return Ok(Read::More);
            }
            None => {
                let padding = u32::from(input.split_to(1)[0]);
                left -= 1;
                if padding > left {
                    return Err(PADDING);
                }
                padding
            }
        };
        let data = input.split_to(input.len().min(left.saturating_sub(padding) as usize));
        left -= data.len() as u32;
        if left <= padding {
            let skipped = input.split_to(input.len().min(left as usize));
            left -= skipped.len() as u32;
        }
        if left > 0 {
            self.state = State::Data {
                header,
                padding: Some(padding),
                left,
            };
            return Ok(match data.is_empty() {
                true => Read::More,
                false => Read::Frame(Frame::Data {
                    stream,
                    data,
                    end: false,
                }),
            });
        }
        let end = header.has(flag::END_STREAM);
        Ok(match end || !data.is_empty() {
            true => Read::Frame(Frame::Data { stream, data, end }),
            false => Read::Over,
        })
    }

    /// A frame other than DATA is whole.
    fn finish(
        &mut self,
        header: Header,
        payload: Bytes,
        lost: Option<DropReason>,
    ) -> Result<Option<Frame>, Malformed> {
        let stream = header.stream;
        let number = |at: usize| {
            let bytes = payload.get(at..at + 4)?.try_into().ok()?;
            Some(u32::from_be_bytes(bytes) & (u32::MAX >> 1))
        };
        let frame = match header.kind {
            Kind::Headers | Kind::PushPromise | Kind::Continuation => {
                return self.add(header, payload, lost);
            }
            Kind::Reset => Some(Frame::Reset { stream }),
            Kind::Settings if header.has(flag::ACK) => Some(Frame::SettingsAck),
            Kind::Settings if lost.is_some() => Some(Frame::SettingsLost),
            Kind::Settings => Some(Frame::Settings(Settings::parse(&payload)?)),
            Kind::GoAway => number(0)
                .filter(|_| lost.is_none())
                .map(|last| Frame::GoAway { last }),
            Kind::Data | Kind::Priority | Kind::Ping | Kind::WindowUpdate | Kind::Other => None,
        };
        self.lease
            .shrink_to(self.section.as_ref().map_or(0, Section::held));
        Ok(frame)
    }

    /// More of a field block.
    fn add(
        &mut self,
        header: Header,
        mut payload: Bytes,
        lost: Option<DropReason>,
    ) -> Result<Option<Frame>, Malformed> {
        let is_promise = header.kind == Kind::PushPromise;
        let too_large =
            (header.kept() < header.length as usize).then_some(DropReason::HeadTooLarge);
        let lost = lost.or(too_large);
        let first = header.kind != Kind::Continuation;
        if first && lost.is_none() {
            payload = strip(header, payload)?;
        }
        let first_ns = self.first_ns;
        let section = self.section.get_or_insert_with(|| Section {
            stream: header.stream,
            end: header.has(flag::END_STREAM) && !is_promise,
            is_promise,
            first_ns,
            block: Ok(BytesMut::new()),
        });
        match (&mut section.block, lost) {
            (block @ Ok(_), Some(reason)) => *block = Err(reason),
            (Ok(block), None) if block.len() + payload.len() <= MAX_SECTION => {
                block.extend_from_slice(&payload);
            }
            (block @ Ok(_), None) => *block = Err(DropReason::HeadTooLarge),
            (Err(_), _) => {}
        }
        self.lease.shrink_to(section.held());
        if !header.has(flag::END_HEADERS) {
            return Ok(None);
        }
        let Some(section) = self.section.take() else {
            return Ok(None);
        };
        self.lease.shrink_to(0);
        let (stream, end) = (section.stream, section.end);
        let block = match section.block {
            Ok(block) => Block::Whole(section.first_ns, block.freeze()),
            Err(reason) => Block::Lost(reason),
        };
        Ok(Some(match section.is_promise {
            true => Frame::PushPromise { block },
            false => Frame::Headers { stream, block, end },
        }))
    }

    /// `bytes` bytes are missing here. Whether it is still known where frames begin; [`Frames::next`] then says what
    /// is lost.
    pub(super) fn skip(&mut self, bytes: u64, reason: DropReason) -> bool {
        match &mut self.state {
            State::Data {
                header,
                padding,
                left,
            } if bytes <= u64::from(*left) => {
                *left -= bytes as u32;
                // Where the padding begins does not matter any more.
                padding.get_or_insert(0);
                self.lost = Some((header.stream, reason));
                true
            }
            State::Payload { left, lost, .. } if bytes <= u64::from(*left) => {
                *left -= bytes as u32;
                lost.get_or_insert(reason);
                true
            }
            _ => false,
        }
    }
}

impl Section {
    fn held(&self) -> usize {
        self.block.as_ref().map_or(0, BytesMut::len)
    }
}

/// What came of more DATA.
enum Read {
    Frame(Frame),
    Over,
    More,
}

const PADDING: Malformed = "more padding than payload";

/// Takes padding and what is not of the block off the first part of one.
pub(super) fn strip(header: Header, mut payload: Bytes) -> Result<Bytes, Malformed> {
    let mut padding = 0;
    if header.has(flag::PADDED) {
        if payload.is_empty() {
            return Err(PADDING);
        }
        padding = usize::from(payload.split_to(1)[0]);
    }
    let before = match header.kind {
        Kind::PushPromise => 4,
        _ if header.has(flag::PRIORITY) => 5,
        _ => 0,
    };
    if payload.len() < before + padding {
        return Err(PADDING);
    }
    payload.truncate(payload.len() - padding);
    Ok(payload.split_off(before))
}
