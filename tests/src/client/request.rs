//! A request, and the bytes that it is sent as.

use std::net::SocketAddr;

/// How a request's body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// With a Content-Length.
    Length,
    /// In chunks of so many bytes, with a trailer.
    Chunked(usize),
}

/// A request to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// GET, POST and so on.
    pub method: &'static str,
    /// Path and query; [`Answers`](crate::Answers) says what they do.
    pub path: String,
    /// Headers besides Host, x-request-id and those of the framing.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// How the body is sent.
    pub framing: Framing,
    /// Whether it is HTTP/1.0, and the connection ends with the answer.
    pub old: bool,
}

impl Request {
    /// A request without a body.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path, &[])
    }

    /// GET without the answer's body.
    pub fn head_of(path: &str) -> Self {
        Self::new("HEAD", path, &[])
    }

    /// A request with a body.
    pub fn post(path: &str, body: &[u8]) -> Self {
        Self::new("POST", path, body)
    }

    fn new(method: &'static str, path: &str, body: &[u8]) -> Self {
        Self {
            method,
            path: path.to_owned(),
            headers: Vec::new(),
            body: body.to_vec(),
            framing: Framing::Length,
            old: false,
        }
    }

    /// With one more header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With its body in chunks of so many bytes.
    #[must_use]
    pub fn chunked(mut self, size: usize) -> Self {
        self.framing = Framing::Chunked(size);
        self
    }

    /// With `Expect: 100-continue`: the body is sent once the server has asked for it.
    #[must_use]
    pub fn expecting_continue(self) -> Self {
        self.header("expect", "100-continue")
    }

    /// As HTTP/1.0: the answer ends with the connection.
    #[must_use]
    pub fn old(mut self) -> Self {
        self.old = true;
        self
    }

    pub(super) fn waits_for_continue(&self) -> bool {
        self.headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("expect"))
    }

    /// Everything up to the empty line.
    pub(crate) fn head(&self, server: SocketAddr, id: &str) -> Vec<u8> {
        let version = if self.old { "1.0" } else { "1.1" };
        let mut head = format!("{} {} HTTP/{version}\r\n", self.method, self.path);
        head += &format!("host: {server}\r\nx-request-id: {id}\r\n");
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        match self.framing {
            Framing::Length if self.body.is_empty() && self.method != "POST" => {}
            Framing::Length => head += &format!("content-length: {}\r\n", self.body.len()),
            Framing::Chunked(_) => head += "transfer-encoding: chunked\r\ntrailer: x-end\r\n",
        }
        head += "\r\n";
        head.into_bytes()
    }

    /// The body as it goes over the wire.
    pub(crate) fn framed_body(&self) -> Vec<u8> {
        match self.framing {
            Framing::Length => self.body.clone(),
            Framing::Chunked(size) => {
                let mut framed = Vec::with_capacity(self.body.len() + 64);
                for chunk in self.body.chunks(size.max(1)) {
                    framed.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    framed.extend(chunk);
                    framed.extend(b"\r\n");
                }
                framed.extend(b"0\r\nx-end: yes\r\n\r\n");
                framed
            }
        }
    }
}
