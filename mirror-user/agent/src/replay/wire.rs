//! A request as it goes to the shadow: as it came, but for what belongs to the connection. Pure.

use std::borrow::Cow;
use std::io::Write as _;

use bytes::Bytes;
use uuid::Uuid;

use mirror_wire::mark::MARK_HEADER;
use mirror_wire::message::{Field, Request, Version, header};

/// Names the exchange, in the shadow's logs and in our records.
pub const ID_HEADER: &str = "x-modelmirror-id";

/// Tells servers that a request is a copy.
pub const SHADOW_HEADER: &str = "x-modelmirror-shadow";

/// A request in the pieces that are written in a row; the body is not copied.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) head: Bytes,
    pub(super) body: Bytes,
    pub(super) tail: Bytes,
}

/// Fields of the client's connection, not of its request (RFC 9110, 7.6.1), those for proxies
/// (11.7), and `Expect`: the body is at hand, nobody need ask for it.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "upgrade",
    "http2-settings",
    "expect",
];

/// What is written on a request.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    /// The exchange's.
    pub(super) id: Uuid,
    /// The agent's.
    pub(super) mark: String,
}

/// Encodes `request`; `host` replaces the client's Host where it is given. Fields that are named in
/// `strip`, trailers too, stay behind.
pub(super) fn encode(
    request: &Request,
    stamp: &Stamp,
    host: Option<&str>,
    strip: &[String],
) -> Encoded {
    let stripped = |field: &Field| strip.iter().any(|name| is(field, name));
    let mut head = Vec::with_capacity(256 + request.target.len() + 64 * request.headers.len());
    let version: &[u8] = match request.version {
        Version::Http10 => b" HTTP/1.0\r\n",
        Version::Http11 | Version::Http2 => b" HTTP/1.1\r\n",
    };
    head.extend_from_slice(request.method.as_bytes());
    head.push(b' ');
    head.extend_from_slice(&target(&request.target, host));
    head.extend_from_slice(version);
    for field in &request.headers {
        match host {
            Some(host) if is(field, "host") => put(&mut head, &field.name, host.as_bytes()),
            _ if goes_on(field, request) && !stripped(field) => {
                put(&mut head, &field.name, &field.value)
            }
            _ => {}
        }
    }
    if let Some(host) = host.filter(|_| header(&request.headers, "host").is_none()) {
        put(&mut head, b"host", host.as_bytes());
    }
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    let id = stamp.id.hyphenated().encode_lower(&mut text);
    put(&mut head, ID_HEADER.as_bytes(), id.as_bytes());
    put(&mut head, SHADOW_HEADER.as_bytes(), b"1");
    put(&mut head, MARK_HEADER.as_bytes(), stamp.mark.as_bytes());
    head.extend_from_slice(b"\r\n");
    let tail = if request.chunked {
        let trailers = request.trailers.iter().filter(|field| !stripped(field));
        frame_chunk(&mut head, &request.body, trailers)
    } else {
        Vec::new()
    };
    Encoded {
        head: head.into(),
        body: request.body.clone(),
        tail: tail.into(),
    }
}

/// The request target, with `host` where an absolute one names another (RFC 9112, section 3.2.2): it goes before
/// the Host field.
fn target<'a>(target: &'a str, host: Option<&str>) -> Cow<'a, [u8]> {
    let absolute = host.zip(target.split_once("://"));
    let Some((host, (scheme, rest))) = absolute.filter(|(_, (scheme, _))| {
        scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
    }) else {
        return Cow::Borrowed(target.as_bytes());
    };
    let path = rest.find(['/', '?']).map_or("", |at| &rest[at..]);
    Cow::Owned(format!("{scheme}://{host}{path}").into_bytes())
}

/// The body as one chunk (RFC 9112, 7.1): its size goes to the head, what follows it is returned.
fn frame_chunk<'a>(
    head: &mut Vec<u8>,
    body: &[u8],
    trailers: impl Iterator<Item = &'a Field>,
) -> Vec<u8> {
    let mut tail = Vec::new();
    if !body.is_empty() {
        // Writing to a vector cannot fail.
        let _ = write!(head, "{:x}\r\n", body.len());
        tail.extend_from_slice(b"\r\n");
    }
    tail.extend_from_slice(b"0\r\n");
    for field in trailers {
        put(&mut tail, &field.name, &field.value);
    }
    tail.extend_from_slice(b"\r\n");
    tail
}

fn goes_on(field: &Field, request: &Request) -> bool {
    if is(field, "transfer-encoding") {
        return request.chunked;
    }
    if is(field, "content-length") {
        return !request.chunked;
    }
    // Whatever `Connection` names besides, production's server has read it: it is no proxy.
    let ours = is(field, ID_HEADER) || is(field, SHADOW_HEADER);
    !ours && !HOP_BY_HOP.iter().any(|name| is(field, name))
}

fn is(field: &Field, name: &str) -> bool {
    field.name.eq_ignore_ascii_case(name.as_bytes())
}

fn put(head: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    head.extend_from_slice(name);
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use mirror_wire::fixtures::request;

    use super::*;

    const ID: Uuid = Uuid::from_u128(0x0123);
    const ADDED: &str = "x-modelmirror-id: 00000000-0000-0000-0000-000000000123\r\n\
                         x-modelmirror-shadow: 1\r\nx-modelmirror-mark: ours\r\n\r\n";

    /// `expected` is what stands before the fields that are always added, and what after them.
    #[track_caller]
    fn check(request: &Request, host: Option<&str>, expected: (&str, &str)) {
        check_stripped(request, host, &[], expected);
    }

    #[track_caller]
    fn check_stripped(
        request: &Request,
        host: Option<&str>,
        strip: &[&str],
        expected: (&str, &str),
    ) {
        let strip: Vec<String> = strip.iter().map(|&name| name.to_owned()).collect();
        let stamp = Stamp {
            id: ID,
            mark: "ours".to_owned(),
        };
        let encoded = encode(request, &stamp, host, &strip);
        let whole = [&encoded.head[..], &encoded.body, &encoded.tail].concat();
        let whole = String::from_utf8(whole).unwrap();
        assert_eq!(whole, format!("{}{ADDED}{}", expected.0, expected.1));
    }

    #[test]
    fn order_case_and_repetition_are_kept() {
        let mut request = request("POST", "/v2/x?a=%20b");
        request.push("HOST", "model.example");
        request.push("X-b", "2");
        request.push("X-A", "1");
        request.push("X-b", "3");
        request.push("content-length", "2");
        request.body = Bytes::from_static(b"{}");
        check(
            &request,
            None,
            (
                "POST /v2/x?a=%20b HTTP/1.1\r\nHOST: model.example\r\nX-b: 2\r\nX-A: 1\r\n\
                 X-b: 3\r\ncontent-length: 2\r\n",
                "{}",
            ),
        );
    }

    #[test]
    fn the_connection_s_fields_stay_behind() {
        let mut request = request("GET", "/");
        request.version = Version::Http10;
        request.push("Connection", "close, X-Hop ,host, authorization");
        request.push("Host", "a");
        request.push("x-hop", "1");
        request.push("Authorization", "what production's server reads");
        request.push("X-ModelMirror-Mark", "another's");
        request.push("Keep-Alive", "timeout=5");
        request.push("Proxy-Authorization", "secret");
        request.push("TE", "trailers");
        request.push("Upgrade", "h2c");
        request.push("HTTP2-Settings", "AAMAAABk");
        request.push("Expect", "100-continue");
        request.push("X-ModelMirror-Id", "of another");
        request.push("Accept", "*/*");
        check(
            &request,
            None,
            (
                "GET / HTTP/1.0\r\nHost: a\r\nx-hop: 1\r\n\
                 Authorization: what production's server reads\r\n\
                 X-ModelMirror-Mark: another's\r\nAccept: */*\r\n",
                "",
            ),
        );
    }

    #[test]
    fn chunked_stays_chunked_with_its_trailers() {
        let mut request = request("POST", "/");
        request.push("Transfer-Encoding", "chunked");
        request.push("Content-Length", "9");
        request.chunked = true;
        request.body = Bytes::from(vec![b'a'; 17]);
        request.trailers.push(Field {
            name: Bytes::from_static(b"X-Sum"),
            value: Bytes::from_static(b"7"),
        });
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n";
        check(
            &request,
            None,
            (head, "11\r\naaaaaaaaaaaaaaaaa\r\n0\r\nX-Sum: 7\r\n\r\n"),
        );
        request.body = Bytes::new();
        request.trailers.clear();
        check(&request, None, (head, "0\r\n\r\n"));
    }

    #[test]
    fn what_is_stripped_stays_behind() {
        let mut request = request("POST", "/");
        request.push("Authorization", "Bearer secret");
        request.push("Host", "a");
        request.push("X-API-Key", "secret");
        request.push("x-api-key", "another");
        request.push("Transfer-Encoding", "chunked");
        request.chunked = true;
        for name in [&b"X-Sum"[..], b"authorization"] {
            request.trailers.push(Field {
                name: Bytes::copy_from_slice(name),
                value: Bytes::from_static(b"7"),
            });
        }
        let expected = (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n",
            "0\r\nX-Sum: 7\r\n\r\n",
        );
        check_stripped(&request, None, &["authorization", "x-api-key"], expected);
    }

    #[test]
    fn an_absolute_target_follows_the_host() {
        for (sent, expected) in [
            (
                "http://model.example/v1?a=/b",
                "http://127.0.0.1:8000/v1?a=/b",
            ),
            ("HTTPS://model.example:8443", "HTTPS://127.0.0.1:8000"),
            ("http://model.example?q=://", "http://127.0.0.1:8000?q=://"),
            (
                "/redirect?to=http://model.example/",
                "/redirect?to=http://model.example/",
            ),
        ] {
            assert_eq!(target(sent, Some("127.0.0.1:8000")), expected.as_bytes());
            assert_eq!(target(sent, None), sent.as_bytes());
        }
    }

    #[test]
    fn host_may_be_the_target_s() {
        let mut request = request("GET", "/");
        check(
            &request,
            Some("127.0.0.1:8000"),
            ("GET / HTTP/1.1\r\nhost: 127.0.0.1:8000\r\n", ""),
        );
        request.push("Host", "model.example");
        request.push("Accept", "*/*");
        check(
            &request,
            Some("127.0.0.1:8000"),
            (
                "GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nAccept: */*\r\n",
                "",
            ),
        );
    }
}
