use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::memory::Memory;
use crate::message::{Field, Version};

const MAX_BODY: usize = 1 << 20;

fn memory() -> Memory {
    Memory::new(64 << 20)
}

/// Feeds `text` in pieces of `size` bytes, byte N at N nanoseconds. What was left over.
fn feed(decoder: &mut Decoder, text: &[u8], size: usize) -> Result<Vec<u8>, Fault> {
    let mut at = 0;
    for piece in text.chunks(size) {
        let mut input = Bytes::copy_from_slice(piece);
        let step = decoder.feed(&mut input, at as u64)?;
        at += piece.len();
        if step == Step::Complete {
            let mut rest = input.to_vec();
            rest.extend_from_slice(&text[at..]);
            return Ok(rest);
        }
        assert!(input.is_empty(), "left {input:?} without being complete");
    }
    Ok(Vec::new())
}

/// What a message is, in one line: `GET /path body` or `200 body`, then `+ what follows`.
fn describe(kind: &str, text: &[u8], size: usize) -> Result<String, Fault> {
    let memory = memory();
    let mut decoder = match kind {
        "request" => Decoder::request(&memory, MAX_BODY),
        method => Decoder::response(method, &memory, MAX_BODY),
    };
    let rest = feed(&mut decoder, text, size)?;
    let mut end = "";
    if !decoder.is_complete() {
        decoder.end()?;
        end = " at the end";
    }
    let (start, body) = if kind == "request" {
        let request = decoder.into_request().unwrap();
        (
            format!("{} {}", request.method, request.target),
            request.body,
        )
    } else {
        let response = decoder.into_response().unwrap();
        (response.status.to_string(), response.body)
    };
    assert_eq!(memory.used(), 0);
    let body = String::from_utf8_lossy(&body).into_owned();
    let rest = String::from_utf8_lossy(&rest).into_owned();
    let rest = if rest.is_empty() {
        rest
    } else {
        format!(" + {rest}")
    };
    Ok(format!("{start} {body}{end}{rest}"))
}

#[track_caller]
fn check(kind: &str, text: &str, expected: Result<&str, Fault>) {
    for size in [text.len(), 1, 2, 3, 7] {
        let described = describe(kind, text.as_bytes(), size);
        let described = described
            .as_ref()
            .map(String::as_str)
            .map_err(|&fault| fault);
        assert_eq!(described, expected, "in pieces of {size}: {text:?}");
    }
}

#[track_caller]
fn malformed(kind: &str, text: &str) {
    for size in [text.len(), 1] {
        let described = describe(kind, text.as_bytes(), size);
        assert!(
            matches!(described, Err(Fault::Malformed(_))),
            "in pieces of {size}: {text:?} gave {described:?}"
        );
    }
}

#[test]
fn requests() {
    check(
        "request",
        "GET /a HTTP/1.1\r\nHost: x\r\n\r\n",
        Ok("GET /a "),
    );
    check("request", "GET / HTTP/1.0\r\n\r\nGET", Ok("GET /  + GET"));
    check(
        "request",
        "\r\n\r\nGET / HTTP/1.1\nHost: x\n\nG",
        Ok("GET /  + G"),
    );
    check(
        "request",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcP",
        Ok("POST / abc + P"),
    );
    check(
        "request",
        "POST / HTTP/1.1\r\ncontent-length:0\r\n\r\nP",
        Ok("POST /  + P"),
    );
    check(
        "request",
        "POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab",
        Err(Fault::Incomplete),
    );
    check("request", "GET / HTTP/1.1\r\nHost", Err(Fault::Incomplete));
}

#[test]
fn content_length_is_one_number() {
    for value in ["3\r\nContent-Length: 3", "3, 3", "03,3\r\ncontent-length:3"] {
        check(
            "request",
            &format!("POST / HTTP/1.1\r\nContent-Length: {value}\r\n\r\nabcP"),
            Ok("POST / abc + P"),
        );
        check(
            "GET",
            &format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\nabcH"),
            Ok("200 abc + H"),
        );
    }
    for value in ["3\r\nContent-Length: 4", "3, 4", "3,", "+3", "-1", "3x", ""] {
        malformed(
            "request",
            &format!("POST / HTTP/1.1\r\nContent-Length: {value}\r\n\r\nabc"),
        );
        malformed(
            "GET",
            &format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\nabc"),
        );
    }
    malformed(
        "request",
        "POST / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n",
    );
}

#[test]
fn chunks() {
    let post = |rest: &str| format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{rest}");
    check(
        "request",
        &post("\r\n3\r\nabc\r\n0\r\n\r\nG"),
        Ok("POST / abc + G"),
    );
    check("request", &post("\r\n0\r\n\r\n"), Ok("POST / "));
    check(
        "request",
        &post("\r\nA;x=\"y\"\r\n0123456789\r\n1\r\nZ\r\n000\r\n\r\n"),
        Ok("POST / 0123456789Z"),
    );
    check(
        "request",
        &post("\r\n1\r\na\r\n0\r\nX-Sum: 5\r\nY: z\r\n\r\nG"),
        Ok("POST / a + G"),
    );
    // Transfer-Encoding overrides Content-Length (RFC 9112, section 6.3).
    check(
        "request",
        &post("Content-Length: 1\r\n\r\n2\r\nab\r\n0\r\n\r\n"),
        Ok("POST / ab"),
    );
    check(
        "request",
        &post("\r\n3\r\nabc\r\n0\r\n"),
        Err(Fault::Incomplete),
    );
    malformed("request", &post("\r\n3\r\nabcd\r\n0\r\n\r\n"));
    malformed("request", &post("\r\n\r\n\r\n"));
    malformed("request", &post("\r\n;x\r\n\r\n"));
    malformed("request", &post("\r\n-1\r\n\r\n"));
    malformed("request", &post("\r\n11111111111111111\r\n\r\n"));
    malformed(
        "request",
        &post(&format!("\r\n1;{}\r\na\r\n", "x".repeat(5_000))),
    );
    malformed(
        "request",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
    );
    malformed(
        "request",
        "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
    );
    malformed(
        "request",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
    );
}

/// As the common servers and clients take it.
#[test]
fn what_is_not_quite_right_is_read_where_it_is_clear() {
    check("request", "GET  /two   HTTP/1.1\r\n\r\n", Ok("GET /two "));
    check(
        "GET",
        "HTTP/1.1  200  OK\r\nContent-Length: 1\r\n\r\nA",
        Ok("200 A"),
    );
    let chunked = "Transfer-Encoding: chunked\r\n\r\n";
    check(
        "request",
        &format!("POST / HTTP/1.0\r\n{chunked}1\r\na\r\n0\r\n\r\nG"),
        Ok("POST / a + G"),
    );
    check(
        "GET",
        &format!("HTTP/1.0 200 OK\r\n{chunked}1\r\na\r\n0\r\n\r\n"),
        Ok("200 a"),
    );
    check(
        "request",
        &format!("POST / HTTP/1.1\r\n{chunked}3\nabc\n1;x=y\nd\r\n0\n\nG"),
        Ok("POST / abcd + G"),
    );
    check(
        "request",
        "GET / HTTP/1.1\r\nX-Name: Zo\u{eb} \u{65e5}\u{672c}\r\n\r\n",
        Ok("GET / "),
    );
    malformed("request", "GET /a b HTTP/1.1\r\n\r\n");
    malformed("request", &format!("POST / HTTP/1.1\r\n{chunked}1\r\na\rb"));
}

#[test]
fn trailers_are_kept() {
    let memory = memory();
    let mut decoder = Decoder::request(&memory, MAX_BODY);
    let text =
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Sum:  5 \r\n\r\n";
    feed(&mut decoder, text, 5).unwrap();
    let request = decoder.into_request().unwrap();
    let sum = Field {
        name: Bytes::from_static(b"X-Sum"),
        value: Bytes::from_static(b"5"),
    };
    assert_eq!(request.trailers, [sum]);
    assert!(request.chunked);
    assert_eq!(request.version, Version::Http11);
}

#[test]
fn responses() {
    check(
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokH",
        Ok("200 ok + H"),
    );
    check(
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        Ok("200 ok"),
    );
    check(
        "GET",
        "HTTP/1.0 200 OK\r\n\r\nto the end",
        Ok("200 to the end at the end"),
    );
    check("GET", "HTTP/1.1 200\r\n\r\n", Ok("200  at the end"));
    check(
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length : 2\r\nX: a\r\n b\r\n\r\nokH",
        Ok("200 ok + H"),
    );
    check(
        "GET",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        Err(Fault::Incomplete),
    );
    check(
        "GET",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok",
        Err(Fault::Incomplete),
    );
    malformed("GET", "HTTP/1.1 2000 OK\r\n\r\n");
    malformed("GET", "hello\r\n\r\n");
}

#[test]
fn responses_without_a_body() {
    check(
        "HEAD",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nHTTP",
        Ok("200  + HTTP"),
    );
    check(
        "HEAD",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nH",
        Ok("200  + H"),
    );
    check(
        "GET",
        "HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\nH",
        Ok("204  + H"),
    );
    check(
        "GET",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\nH",
        Ok("304  + H"),
    );
    check(
        "CONNECT",
        "HTTP/1.1 200 OK\r\n\r\n\u{1}",
        Ok("200  + \u{1}"),
    );
    check(
        "CONNECT",
        "HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno",
        Ok("407 no"),
    );
    check(
        "GET",
        "HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n\u{1}",
        Ok("101  + \u{1}"),
    );
}

#[test]
fn interim_answers_are_passed_over() {
    let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    check("GET", text, Ok("200 ok"));
    let memory = memory();
    let mut decoder = Decoder::response("GET", &memory, MAX_BODY);
    feed(&mut decoder, text.as_bytes(), 1).unwrap();
    let response = decoder.into_response().unwrap();
    let first = text.find("HTTP/1.1 200").unwrap();
    assert_eq!(response.first_byte_ns, first as u64);
    assert_eq!(response.last_byte_ns, text.len() as u64 - 1);
}

#[test]
fn other_protocols_are_named() {
    let memory = memory();
    let mut decoder = Decoder::request(&memory, MAX_BODY);
    let hello = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc];
    assert_eq!(feed(&mut decoder, &hello, 9), Err(Fault::Tls));
    check(
        "request",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        Err(Fault::Http2),
    );
    malformed("request", "\u{0}\u{1}\u{2}");
    malformed("request", "GET / HTTP/3.0\r\n\r\n");
}

#[test]
fn heads_have_a_limit() {
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(MAX_SECTION));
    assert_eq!(
        describe("request", long.as_bytes(), 1448),
        Err(Fault::HeadTooLarge)
    );
    assert_eq!(
        describe("request", long.as_bytes(), long.len()),
        Err(Fault::HeadTooLarge)
    );
    let fields: String = (0..1_000).map(|i| format!("X-{i}: {i}\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\n{fields}\r\n");
    assert_eq!(
        describe("request", many.as_bytes(), 1448).unwrap(),
        "GET / "
    );
    let fields: String = (0..MAX_FIELDS + 1).map(|i| format!("X{i}:1\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\n{fields}\r\n");
    assert_eq!(
        describe("request", many.as_bytes(), 1448),
        Err(Fault::HeadTooLarge)
    );
}

#[test]
fn a_body_in_one_segment_is_not_copied() {
    let memory = memory();
    let text = Bytes::from_static(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc");
    let mut decoder = Decoder::request(&memory, MAX_BODY);
    assert_eq!(decoder.feed(&mut text.clone(), 0), Ok(Step::Complete));
    let request = decoder.into_request().unwrap();
    assert_eq!(request.body.as_ptr(), text[text.len() - 3..].as_ptr());
    assert_eq!(request.lease.bytes(), text.len());
    assert_eq!(memory.used(), text.len());
}

#[track_caller]
fn unfit(text: &[u8], memory: &Memory, max_body: usize, expected: Unfit) {
    let mut decoder = Decoder::request(memory, max_body);
    let rest = feed(&mut decoder, text, 1).unwrap();
    assert_eq!(rest, b"GET");
    assert_eq!(decoder.unfit(), Some(expected));
    assert_eq!(decoder.into_request().unwrap_err(), expected);
    assert_eq!(memory.used(), 0);
}

#[test]
fn what_is_unfit_is_framed_to_its_end() {
    let length = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcdGET";
    let chunks = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\nGET";
    let coded =
        b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\nGET";
    unfit(length, &memory(), 3, Unfit::TooLarge);
    unfit(chunks, &memory(), 3, Unfit::TooLarge);
    unfit(length, &Memory::new(length.len() - 4), 4, Unfit::Memory);
    unfit(chunks, &Memory::new(chunks.len() - 15), 4, Unfit::Memory);
    unfit(coded, &memory(), 4, Unfit::Coding);
}

#[test]
fn a_head_that_does_not_fit_into_memory() {
    let text = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcdGET";
    let memory = Memory::new(10);
    // In one piece it costs nothing to frame; in many it would have to be held.
    let mut decoder = Decoder::request(&memory, 4);
    assert_eq!(feed(&mut decoder, text, 99), Ok(b"GET".to_vec()));
    assert_eq!(decoder.into_request().unwrap_err(), Unfit::Memory);
    let mut decoder = Decoder::request(&memory, 4);
    assert_eq!(feed(&mut decoder, text, 4), Err(Fault::Memory));
    drop(decoder);
    assert_eq!(memory.used(), 0);
}

/// A decoder that has seen the first `seen` bytes of a message, misses `gap`, and goes on.
fn with_gap(text: &[u8], seen: usize, gap: usize) -> (bool, Decoder) {
    let memory = memory();
    let mut decoder = Decoder::response("GET", &memory, MAX_BODY);
    feed(&mut decoder, &text[..seen], 1).unwrap();
    let certain = decoder.skip(gap as u64);
    if certain {
        feed(&mut decoder, &text[seen + gap..], 1).unwrap();
    }
    (certain, decoder)
}

#[test]
fn gaps() {
    let length = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789";
    let chunks =
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n0\r\n\r\n";
    let close = b"HTTP/1.1 200 OK\r\n\r\n123456789";
    // (message, bytes seen, bytes missing, whether the rest can be framed)
    let head = length.len() - 9;
    let data = chunks.len() - 16;
    let table: [(&[u8], usize, usize, bool); 9] = [
        (length, head + 2, 3, true),
        (length, head, 9, true),
        (length, head + 2, 8, false),
        (length, 5, 3, false),
        (length, 0, 3, false),
        (chunks, data + 2, 3, true),
        (chunks, data + 2, 7, false),
        (chunks, chunks.len() - 3, 1, false),
        (close, close.len() - 4, 2, true),
    ];
    for (text, seen, gap, expected) in table {
        let (certain, mut decoder) = with_gap(text, seen, gap);
        assert_eq!(certain, expected, "{seen} seen, {gap} missing");
        if certain {
            assert_eq!(decoder.end(), Ok(()));
            assert_eq!(decoder.into_response().unwrap_err(), Unfit::Gap);
        }
    }
}

#[test]
fn persistence() {
    let persistent = |text: &str| {
        let mut decoder = Decoder::response("GET", &memory(), MAX_BODY);
        feed(&mut decoder, text.as_bytes(), 100).unwrap();
        decoder.is_persistent()
    };
    assert!(persistent("HTTP/1.1 204 No\r\n\r\n"));
    assert!(!persistent(
        "HTTP/1.1 204 No\r\nConnection: x, Close\r\n\r\n"
    ));
    assert!(!persistent("HTTP/1.0 204 No\r\n\r\n"));
    assert!(persistent(
        "HTTP/1.0 204 No\r\nConnection: keep-alive\r\n\r\n"
    ));
    assert!(!persistent("HTTP/1.1 200 OK\r\n\r\n"));
}

#[test]
fn beginnings() {
    for (text, expected) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\nbody", true),
        ("POST /v2/models HTTP/1.1\r\nConten", true),
        ("GET /half-a-target", false),
        ("{\"id\": 1}", false),
        ("HTTP/1.1 200 OK\r\n\r\n", false),
        ("", false),
    ] {
        assert_eq!(begins_request(text.as_bytes()), expected, "{text}");
    }
    assert_eq!(begins_response(b"HTTP/1.1 200 OK\r\nServ"), Some(200));
    assert_eq!(begins_response(b"GET / HTTP/1.1\r\n"), None);
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    assert!(is_interim(interim.as_bytes()) && is_interim(interim.repeat(2).as_bytes()));
    assert!(!is_interim(
        format!("{interim}HTTP/1.1 200 OK\r\n\r\n").as_bytes()
    ));
    assert!(!is_interim(format!("{interim}x").as_bytes()) && !is_interim(b""));
}

proptest! {
    #[test]
    fn nothing_panics(text in any::<Vec<u8>>(), size in 1_usize..9, kind in 0_usize..3) {
        let kind = ["request", "GET", "HEAD"][kind];
        let memory = memory();
        let mut decoder = match kind {
            "request" => Decoder::request(&memory, 9),
            method => Decoder::response(method, &memory, 9),
        };
        let _ = feed(&mut decoder, &text, size);
    }

    /// Wherever a stream is cut, the same message comes out.
    #[test]
    fn cuts_do_not_matter(
        body in prop::collection::vec(any::<u8>(), 0..200),
        chunk in 1_usize..50,
        size in 1_usize..80,
        chunked in any::<bool>(),
    ) {
        let mut text = b"POST /p HTTP/1.1\r\n".to_vec();
        if chunked {
            text.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            for data in body.chunks(chunk) {
                text.extend_from_slice(format!("{:x};e=f\r\n", data.len()).as_bytes());
                text.extend_from_slice(data);
                text.extend_from_slice(b"\r\n");
            }
            text.extend_from_slice(b"0\r\nT: u\r\n\r\n");
        } else {
            text.extend_from_slice(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
            text.extend_from_slice(&body);
        }
        let memory = memory();
        let mut decoder = Decoder::request(&memory, MAX_BODY);
        prop_assert_eq!(feed(&mut decoder, &text, size), Ok(Vec::new()));
        let request = decoder.into_request().unwrap();
        prop_assert_eq!(&request.body[..], &body[..]);
        prop_assert_eq!(request.trailers.len(), usize::from(chunked));
        drop(request);
        prop_assert_eq!(memory.used(), 0);
    }
}

#[test]
fn what_may_be_of_an_interim_answer() {
    let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 100 Go on\r\n\r\n";
    for from in 0..interim.len() {
        for to in from..=interim.len() {
            let part = &interim[from..to];
            assert!(
                may_be_interim(part),
                "{:?}",
                part.escape_ascii().to_string()
            );
        }
    }
    for (bytes, expected) in [
        (&b"HTTP/1.1 200 OK\r\n"[..], false),
        (b"HTTP/1.1 100 Go on\r\n\r\nHTTP/1.1 200", false),
        (b"e\r\n\r\nHTTP/1.0 4", false),
        (b"Length: 3\r\n\r\nabc", false),
        (b"3\r\nabc\r\n0\r\n\r\n", false),
        // Nothing speaks against these.
        (b"Length: 3\r\n\r\n", true),
        (b"{\"a\": 1}", true),
        (b"0\r\n\r\n", true),
    ] {
        let text = bytes.escape_ascii().to_string();
        assert_eq!(may_be_interim(bytes), expected, "{text}");
    }
}
