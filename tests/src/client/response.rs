//! Reading an answer (RFC 9112, section 6).

use std::io::{BufRead, Read};

use anyhow::{Context, Result, bail, ensure};

/// An answer, read to its end.
#[derive(Debug)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// All headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, without its framing.
    pub body: Vec<u8>,
}

impl Response {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Reads one answer; to HEAD it has no body.
pub(crate) fn read_response(reader: &mut impl BufRead, head: bool) -> Result<Response> {
    let mut response = parse(&read_head(reader)?)?;
    if head || response.status < 200 || matches!(response.status, 204 | 304) {
        return Ok(response);
    }
    let mut body = Vec::new();
    if response.header("transfer-encoding") == Some("chunked") {
        read_chunks(reader, &mut body)?;
    } else if let Some(length) = response.header("content-length") {
        let length: u64 = length.parse().context("Content-Length is no number")?;
        let read = reader.take(length).read_to_end(&mut body)? as u64;
        ensure!(
            read == length,
            "the connection ended after {read} of {length} bytes"
        );
    } else {
        reader.read_to_end(&mut body)?;
    }
    response.body = body;
    Ok(response)
}

/// Everything up to the empty line, which is included.
fn read_head(reader: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if reader.read_until(b'\n', &mut head)? == 0 {
            bail!(
                "the connection ended after {} bytes of the answer's head",
                head.len()
            );
        }
    }
    Ok(head)
}

fn parse(head: &[u8]) -> Result<Response> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Response::new(&mut headers);
    ensure!(parsed.parse(head)?.is_complete(), "an incomplete head");
    let headers = parsed.headers.iter().map(|header| {
        let value = String::from_utf8_lossy(header.value).into_owned();
        (header.name.to_ascii_lowercase(), value)
    });
    let status = parsed.code.context("no status")?;
    Ok(Response {
        status,
        headers: headers.collect(),
        body: Vec::new(),
    })
}

/// The chunks, and the trailer after them.
fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let line = read_line(reader)?;
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16).with_context(|| format!("chunk size `{line}`"))?;
        if size == 0 {
            while !read_line(reader)?.is_empty() {}
            return Ok(());
        }
        let read = reader.by_ref().take(size).read_to_end(body)? as u64;
        ensure!(read == size, "the connection ended in a chunk");
        ensure!(read_line(reader)?.is_empty(), "a chunk without its end");
    }
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    ensure!(
        reader.read_line(&mut line)? > 0,
        "the connection ended between chunks"
    );
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(bytes: &str, head: bool, expected: (u16, &str)) {
        let response = read_response(&mut bytes.as_bytes(), head).unwrap();
        assert_eq!(
            (response.status, &*String::from_utf8(response.body).unwrap()),
            expected
        );
    }

    #[test]
    fn every_framing_is_read() {
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabcd",
            false,
            (200, "ab"),
        );
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
            true,
            (200, ""),
        );
        check("HTTP/1.1 204 No Content\r\n\r\nabcd", false, (204, ""));
        check("HTTP/1.0 200 OK\r\n\r\nabcd", false, (200, "abcd"));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunks = format!("{chunked}2\r\nab\r\n1;x=y\r\nc\r\n0\r\nx-end: yes\r\n\r\nHTTP");
        check(&chunks, false, (200, "abc"));
    }

    #[test]
    fn a_short_answer_is_an_error() {
        let short = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab";
        let error = read_response(&mut short.as_bytes(), false).unwrap_err();
        assert_eq!(error.to_string(), "the connection ended after 2 of 9 bytes");
    }
}
