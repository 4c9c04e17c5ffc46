//! gRPC over HTTP/2: messages in bodies, and how a call ended (the protocol's `PROTOCOL-HTTP2.md`).

use std::time::Duration;

use bytes::Bytes;

use crate::message::{Field, Response, header};

/// What stands before each message: whether it is compressed, and how long it is.
const PREFIX: usize = 5;

/// A message of a call, as it was on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whether it has the coding that `grpc-encoding` names.
    pub is_compressed: bool,
    /// Without its prefix.
    pub data: Bytes,
}

/// Why a body is no sequence of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It ends inside a message, or inside its prefix.
    #[error("the body ends inside a message")]
    CutOff,
    /// A flag that is neither 0 nor 1.
    #[error("a message with an unknown flag")]
    Flag,
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// `grpc-status`: 0 where all went well.
    pub code: u32,
    /// `grpc-message`, its percent encoding taken off.
    pub message: String,
}

/// Whether a message with these header fields is one of gRPC's: `application/grpc`, alone or with a subtype. Not
/// gRPC-Web's, which carries its trailers in its body.
pub fn is_grpc(headers: &[Field]) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let Some(kind) = header(headers, "content-type") else {
        return false;
    };
    let Some((kind, rest)) = kind.split_at_checked(TYPE.len()) else {
        return false;
    };
    kind.eq_ignore_ascii_case(TYPE) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

/// The messages of a body, in their order.
///
/// # Errors
/// Where the body is none.
pub fn messages(body: &Bytes) -> Result<Vec<Message>, Broken> {
    let mut rest = body.clone();
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (&[flag, length @ ..], _) = rest.split_first_chunk::<PREFIX>().ok_or(Broken::CutOff)?;
        let is_compressed = match flag {
            0 => false,
            1 => true,
            _ => return Err(Broken::Flag),
        };
        let length = u32::from_be_bytes(length) as usize;
        let _ = rest.split_to(PREFIX);
        if length > rest.len() {
            return Err(Broken::CutOff);
        }
        let data = rest.split_to(length);
        messages.push(Message {
            is_compressed,
            data,
        });
    }
    Ok(messages)
}

/// How a call ended: what its trailers say, or its head where that is all there is of the response. Nothing where
/// neither does.
pub fn status(response: &Response) -> Option<Status> {
    let has_trailers = !response.trailers.is_empty() || response.body_bytes > 0;
    let fields = match has_trailers {
        true => &response.trailers,
        false => &response.headers,
    };
    let code = std::str::from_utf8(header(fields, "grpc-status")?).ok()?;
    let is_number = !code.is_empty() && code.bytes().all(|byte| byte.is_ascii_digit());
    let message = header(fields, "grpc-message").unwrap_or_default();
    Some(Status {
        code: code.parse().ok().filter(|_| is_number)?,
        message: String::from_utf8_lossy(&percent_decoded(message)).into_owned(),
    })
}

/// How long the client waits, from `grpc-timeout`: up to eight digits and a unit.
pub fn timeout(headers: &[Field]) -> Option<Duration> {
    let (&unit, digits) = header(headers, "grpc-timeout")?.split_last()?;
    let fits = (1..=8).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let number: u64 = std::str::from_utf8(digits)
        .ok()
        .filter(|_| fits)?
        .parse()
        .ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3_600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// What is no valid code stays as it is: a message is never lost for its form.
fn percent_decoded(text: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, behind)) = rest.split_first() {
        rest = behind;
        let code = behind
            .split_first_chunk::<2>()
            .filter(|_| first == b'%')
            .and_then(|(&[high, low], behind)| Some((digit(high)? << 4 | digit(low)?, behind)));
        match code {
            Some((byte, behind)) => {
                decoded.push(byte as u8);
                rest = behind;
            }
            None => decoded.push(first),
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::status as status_of;
    use super::*;
    use crate::fixtures::{fields, response};

    #[test]
    fn what_is_grpc() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/json", false),
            ("", false),
        ] {
            assert_eq!(
                is_grpc(&fields(&[("Content-Type", kind)])),
                expected,
                "{kind}"
            );
        }
        assert!(!is_grpc(&[]));
    }

    #[test]
    fn bodies_are_messages() {
        let body = Bytes::from_static(b"\0\0\0\0\x02ab\x01\0\0\0\x01c\0\0\0\0\0");
        let message = |is_compressed, data: &'static [u8]| Message {
            is_compressed,
            data: Bytes::from_static(data),
        };
        let expected = [
            message(false, b"ab"),
            message(true, b"c"),
            message(false, b""),
        ];
        assert_eq!(messages(&body).as_deref(), Ok(&expected[..]));
        let ends = [7, 13, 18, 0];
        for length in 0..body.len() {
            let read = messages(&body.slice(..length));
            assert_eq!(read.is_ok(), ends.contains(&length), "{length}: {read:?}");
        }
        assert_eq!(
            messages(&Bytes::from_static(b"\x02\0\0\0\0")),
            Err(Broken::Flag)
        );
        assert_eq!(
            messages(&Bytes::from_static(b"\0\xff\xff\xff\xff")),
            Err(Broken::CutOff)
        );
    }

    #[test]
    fn how_calls_end() {
        let status = |headers: &[(&str, &str)], body: &[u8], trailers: &[(&str, &str)]| {
            let mut response = response(200, headers, body);
            response.trailers = fields(trailers);
            status_of(&response).map(|status| (status.code, status.message))
        };
        let end = |code, message: &str| Some((code, message.to_owned()));
        assert_eq!(status(&[], b"x", &[("grpc-status", "0")]), end(0, ""));
        let said = [
            ("grpc-status", "13"),
            ("grpc-message", "50%25 of %E2%82%AC%2 %zz"),
        ];
        assert_eq!(status(&[], b"", &said), end(13, "50% of €%2 %zz"));
        assert_eq!(status(&said, b"", &[]), end(13, "50% of €%2 %zz"));
        // What stands in the head of a response with a body says nothing.
        assert_eq!(status(&said, b"x", &[]), None);
        assert_eq!(status(&[], b"", &[("grpc-status", "+1")]), None);
    }

    #[test]
    fn timeouts() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3_600))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("250m", Some(Duration::from_millis(250))),
            ("2M", Some(Duration::from_secs(120))),
            ("7u", Some(Duration::from_micros(7))),
            ("100000000S", None),
            ("S", None),
            ("1", None),
            ("-1S", None),
            ("1x", None),
            ("", None),
        ] {
            assert_eq!(
                timeout(&fields(&[("grpc-timeout", text)])),
                expected,
                "{text}"
            );
        }
    }
}
