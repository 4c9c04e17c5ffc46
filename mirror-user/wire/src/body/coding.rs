//! Content codings (RFC 9110, section 8.4.1): a body as it was before it was compressed.
//!
//! A body of a few KiB can unfold to any size, take any time, and do so in layers. So each layer is decoded by
//! itself, bounded in what it reads, in what it becomes and in its members, and all together in time. Pure but for
//! the clock of that.

use std::borrow::Cow;
use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read};
use std::time::Duration;

use brotli_decompressor::Decompressor;
use flate2::bufread::{DeflateDecoder, GzDecoder, ZlibDecoder};
use nix::time::{ClockId, clock_gettime};
use ruzstd::decoding::StreamingDecoder;

use super::room::{Leased, Room};
use crate::message::Field;

/// Codings of one body. Nobody uses two; a proxy may add one to a server's.
const MAX_CODINGS: usize = 2;

/// Members (RFC 1952) or frames (RFC 8878) of one layer: `bgzip` makes one of every 64 KiB.
const MAX_MEMBERS: usize = 1_024;

/// What is read at once of a layer; the clock is looked at as often.
const CHUNK: usize = 4 << 10;

/// The most time of a CPU that one body may take: 16 MiB take a tenth of it.
pub const MAX_TIME: Duration = Duration::from_secs(2);

/// Why a body is left as it came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Coded {
    /// A coding that is not known here.
    #[error("content-encoding {0}")]
    Unknown(String),
    /// Not what its coding says.
    #[error("content-encoding {coding}: {why}")]
    Broken {
        /// All of the body's codings.
        coding: String,
        /// What the decoder says.
        why: String,
    },
    /// Larger than what is read.
    #[error("content-encoding {0}: too large, coded or decoded")]
    TooLarge(String),
    /// It takes more than [`MAX_TIME`].
    #[error("content-encoding {0}: takes too long to decode")]
    TooLong(String),
}

/// Whether a body is coded, so that its length tells little.
pub(super) fn is_coded(headers: &[Field]) -> bool {
    !codings(headers).is_empty()
}

/// The body without its codings, at most `limit` bytes long where it has any.
///
/// # Errors
/// A coding is unknown, the body is not what it says, too large, or takes too long.
pub(super) fn decode<'a>(
    headers: &[Field],
    body: &'a [u8],
    limit: usize,
    room: &Room,
) -> Result<Cow<'a, [u8]>, Coded> {
    decode_within(headers, body, limit, MAX_TIME, room)
}

fn decode_within<'a>(
    headers: &[Field],
    body: &'a [u8],
    limit: usize,
    time: Duration,
    room: &Room,
) -> Result<Cow<'a, [u8]>, Coded> {
    let codings = codings(headers);
    // An answer to HEAD names the coding that its body would have.
    if codings.is_empty() || body.is_empty() {
        return Ok(body.into());
    }
    let named = || codings.join(", ");
    if codings.len() > MAX_CODINGS {
        return Err(Coded::Unknown(named()));
    }
    let allowance = Allowance::of(time);
    let mut bytes = Cow::Borrowed(body);
    // The last one was applied last.
    for coding in codings.iter().rev() {
        if bytes.len() > limit {
            return Err(Coded::TooLarge(named()));
        }
        let before = room.taken();
        let mut layer = Layer {
            input: BufReader::with_capacity(
                CHUNK,
                Watched {
                    input: &bytes,
                    allowance: &allowance,
                },
            ),
            output: Vec::new(),
            limit,
            room,
        };
        let taken_off = match coding.as_str() {
            "gzip" | "x-gzip" | "deflate" | "br" | "zstd" => layer.take_off(coding),
            _ => return Err(Coded::Unknown(named())),
        };
        let output = layer.output;
        room.back_to(before + output.len());
        if allowance.is_used_up.get() {
            return Err(Coded::TooLong(named()));
        }
        taken_off.map_err(|error| Coded::Broken {
            coding: named(),
            why: error.to_string(),
        })?;
        if output.len() > limit {
            return Err(Coded::TooLarge(named()));
        }
        bytes = Cow::Owned(output);
    }
    Ok(bytes)
}

/// Time of a CPU, which is not the less for what others do on it.
struct Allowance {
    end: Duration,
    is_used_up: Cell<bool>,
}

impl Allowance {
    fn of(time: Duration) -> Self {
        Self {
            end: cpu_time() + time,
            is_used_up: Cell::new(false),
        }
    }
}

/// What this thread has used of CPUs; nothing where the kernel does not say.
pub fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Ends when the time is over: whatever a decoder does, it has to read.
struct Watched<'a> {
    input: &'a [u8],
    allowance: &'a Allowance,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if cpu_time() > self.allowance.end {
            self.allowance.is_used_up.set(true);
            return Err(io::ErrorKind::TimedOut.into());
        }
        let most = buffer.len().min(CHUNK);
        self.input.read(&mut buffer[..most])
    }
}

/// One coding of a body.
struct Layer<'a> {
    input: BufReader<Watched<'a>>,
    output: Vec<u8>,
    limit: usize,
    room: &'a Room,
}

impl Layer<'_> {
    fn take_off(&mut self, coding: &str) -> io::Result<()> {
        let Self {
            input,
            output,
            limit,
            room,
        } = self;
        let limit = *limit;
        // These keep what they have brought forth, to copy from it.
        let copies = if matches!(coding, "br" | "zstd") {
            2
        } else {
            1
        };
        for _ in 0..MAX_MEMBERS {
            let member: &mut dyn Read = match coding {
                "zstd" => &mut StreamingDecoder::new(&mut *input).map_err(io::Error::other)?,
                "br" => &mut Decompressor::new(&mut *input, CHUNK),
                "deflate" if is_zlib(input.fill_buf()?) => &mut ZlibDecoder::new(&mut *input),
                "deflate" => &mut DeflateDecoder::new(&mut *input),
                _ => &mut GzDecoder::new(&mut *input),
            };
            let member = Leased {
                from: member,
                room,
                copies,
            };
            read(member, output, limit)?;
            let is_one = matches!(coding, "br" | "deflate");
            if is_one || output.len() > limit || input.fill_buf()?.is_empty() {
                return Ok(());
            }
        }
        Err(io::Error::other(format!("more than {MAX_MEMBERS} members")))
    }
}

/// Adds what comes out to `output`, until that is longer than `limit`.
fn read(decoder: impl Read, output: &mut Vec<u8>, limit: usize) -> io::Result<()> {
    let room = limit + 1 - output.len();
    decoder.take(room as u64).read_to_end(output).map(drop)
}

/// `deflate` is zlib's format (RFC 1950); some send what is inside it (RFC 1951).
fn is_zlib(start: &[u8]) -> bool {
    let first = start.first_chunk().copied().map(u16::from_be_bytes);
    first.is_some_and(|first| first >> 8 & 0x0f == 8 && first.is_multiple_of(31))
}

/// Codings in the order in which they were applied, in lower case.
fn codings(headers: &[Field]) -> Vec<String> {
    headers
        .iter()
        .filter(|field| field.name.eq_ignore_ascii_case(b"content-encoding"))
        .flat_map(|field| field.value.split(|&byte| byte == b','))
        .map(|coding| String::from_utf8_lossy(coding.trim_ascii()).to_ascii_lowercase())
        .filter(|coding| !matches!(coding.as_str(), "" | "identity"))
        .collect()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write as _;

    use super::*;
    use crate::fixtures::fields;
    use crate::memory::Memory;

    const TEXT: &[u8] = br#"{"label": "cat", "scores": [0.5, 0.25, 0.25]}"#;

    #[track_caller]
    fn check(coding: &str, base64: &str, expected: Result<&[u8], &str>) {
        let body = STANDARD.decode(base64).unwrap();
        let headers = fields(&[("Content-Encoding", coding)]);
        let decoded =
            decode(&headers, &body, 100, &Room::unlimited()).map_err(|coded| coded.to_string());
        match (decoded, expected) {
            (Ok(decoded), Ok(expected)) => assert_eq!(
                String::from_utf8_lossy(&decoded),
                String::from_utf8_lossy(expected),
                "{coding}"
            ),
            (Err(coded), Err(expected)) => assert!(coded.starts_with(expected), "{coded}"),
            (decoded, expected) => panic!("{coding}: {decoded:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn codings_are_taken_off() {
        check(
            "gzip",
            "H4sIAAAAAAACA6tWyklMSs1RslJQSk4sUdJRUCpOzi9KLQYKRBvomeooGOgZQcnYWgCRtdDPLQAAAA==",
            Ok(TEXT),
        );
        check(
            "X-GZIP",
            "H4sIAAAAAAACA6tWyklMSs1RslJQSk4sUdJRUCpOzi9KLQYKRBvomeooGOgZQcnYWgCRtdDPLQAAAA==",
            Ok(TEXT),
        );
        check(
            "deflate",
            "eJyrVspJTErNUbJSUEpOLFHSUVAqTs4vSi0GCkQb6JnqKBjoGUHJ2FoAJ+0L+Q==",
            Ok(TEXT),
        );
        check(
            "deflate",
            "q1bKSUxKzVGyUlBKTixR0lFQKk7OL0otBgpEG+iZ6igY6BlBydhaAA==",
            Ok(TEXT),
        );
        check(
            "br",
            "CxaAeyJsYWJlbCI6ICJjYXQiLCAic2NvcmVzIjogWzAuNSwgMC4yNSwgMC4yNV19Aw==",
            Ok(TEXT),
        );
        check(
            "zstd",
            "KLUv/SAtaQEAeyJsYWJlbCI6ICJjYXQiLCAic2NvcmVzIjogWzAuNSwgMC4yNSwgMC4yNV19",
            Ok(TEXT),
        );
        check(
            "gzip, br",
            "ixyAH4sIAAAAAAACA6tWyklMSs1RslJQSk4sUdJRUCpOzi9KLQYKRBvomeooGOgZQcnYWgCRtdDPLQAAAAM=",
            Ok(TEXT),
        );
        check(
            "identity",
            "eyJsYWJlbCI6ICJjYXQiLCAic2NvcmVzIjogWzAuNSwgMC4yNSwgMC4yNV19",
            Ok(TEXT),
        );
    }

    #[test]
    fn what_unfolds_is_bounded() {
        check(
            "gzip",
            "H4sIAAAAAAACA0tMpAMAAHhrx6JlAAAA",
            Err("content-encoding gzip: too large"),
        );
    }

    /// As `gzip` writes it.
    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[track_caller]
    fn check_bomb(coding: &str, body: &[u8], expected: &str) {
        let before = cpu_time();
        let headers = fields(&[("content-encoding", coding)]);
        let error = decode(&headers, body, 16 << 20, &Room::unlimited())
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error}");
        let took = cpu_time() - before;
        assert!(took < MAX_TIME + Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn layers_of_empty_members_end_soon() {
        let empty = gzip(b"");
        let members = empty.repeat((16 << 20) / empty.len());
        check_bomb("gzip", &members, "more than 1024 members");
        let twice = gzip(&members);
        assert!(twice.len() < 64 << 10, "{}", twice.len());
        check_bomb("gzip, gzip", &twice, "more than 1024 members");
        check_bomb("gzip, gzip, gzip", &gzip(&twice), "gzip, gzip, gzip");
        // What is between two layers is bounded, too.
        check_bomb("gzip, gzip", &gzip(&vec![0; 17 << 20]), "too large");
        check_bomb("gzip", &vec![0; (16 << 20) + 1], "too large");
    }

    #[test]
    fn several_members_are_one_body() {
        let (gzip, zstd) = (
            gzip(TEXT).repeat(3),
            "KLUv/SAtaQEAeyJsYWJlbCI6ICJjYXQiLCAic2NvcmVzIjogWzAuNSwgMC4yNSwgMC4yNV19",
        );
        let zstd = STANDARD.decode(zstd).unwrap().repeat(3);
        for (coding, body) in [("gzip", gzip), ("zstd", zstd)] {
            let headers = fields(&[("content-encoding", coding)]);
            let decoded = decode(&headers, &body, 1_000, &Room::unlimited()).unwrap();
            assert_eq!(*decoded, TEXT.repeat(3), "{coding}");
        }
    }

    #[test]
    fn blocks_without_content_end_soon() {
        // A frame of a zstd window, then blocks of no bytes that are not the last one.
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0x58];
        frame.resize(16 << 20, 0);
        check_bomb("zstd", &frame, "content-encoding zstd: ");
        // Stored blocks of no bytes, none of them the last.
        let stored = [0, 0, 0, 0xff, 0xff].repeat((16 << 20) / 5);
        check_bomb("deflate", &stored, "content-encoding deflate: ");
    }

    #[test]
    fn no_body_takes_longer_than_it_may() {
        for (coding, body) in [
            ("gzip", gzip(TEXT)),
            ("br", vec![0; 10]),
            ("zstd", vec![0; 10]),
        ] {
            let headers = fields(&[("content-encoding", coding)]);
            // The clock moves between two looks at it.
            let decoded = decode_within(&headers, &body, 100, Duration::ZERO, &Room::unlimited());
            assert_eq!(decoded, Err(Coded::TooLong(coding.to_owned())));
        }
    }

    #[test]
    fn an_answer_to_head_has_a_coding_and_no_body() {
        check("gzip", "", Ok(b""));
    }

    #[test]
    fn what_cannot_be_decoded_says_why() {
        check("compress", "AAAA", Err("content-encoding compress"));
        check("gzip", "AAAA", Err("content-encoding gzip: "));
        check("deflate", "AA==", Err("content-encoding deflate: "));
        check("br", "/////w==", Err("content-encoding br: "));
        check("zstd", "AAAA", Err("content-encoding zstd: "));
        check("gzip, gzip, gzip", "AAAA", Err("content-encoding gzip, "));
    }

    #[test]
    fn what_comes_out_keeps_to_the_agent_s_memory() {
        let memory = Memory::new(1 << 20);
        let body = gzip(&vec![7; 3 << 20]);
        let headers = fields(&[("content-encoding", "gzip")]);
        let room = Room::in_memory(&memory);
        let decoded = decode(&headers, &body, 16 << 20, &room);
        assert!(decoded.is_err() && room.is_short());
        drop(room);
        assert_eq!(memory.used(), 0);

        let room = Room::in_memory(&memory);
        let decoded = decode(&headers, &gzip(&vec![7; 300_000]), 16 << 20, &room).map(|d| d.len());
        assert_eq!((decoded, room.is_short()), (Ok(300_000), false));
        assert_eq!(memory.used(), 300_000);
    }
}
