//! Messages for tests.

use std::net::SocketAddrV4;

use bytes::Bytes;

use crate::memory::Memory;
use crate::message::{Field, Request, Response, Version};

/// Header fields of JSON.
pub const JSON: &[(&str, &str)] = &[("Content-Type", "application/json")];

/// Header fields with these names and values.
pub fn fields(fields: &[(&str, &str)]) -> Vec<Field> {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let field = |&(name, value): &(&str, &str)| Field {
        name: bytes(name),
        value: bytes(value),
    };
    fields.iter().map(field).collect()
}

/// A whole response.
pub fn response(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Response {
    Response {
        status,
        headers: fields(headers),
        body: Bytes::copy_from_slice(body),
        trailers: Vec::new(),
        first_byte_ns: 7_000_000,
        body_ns: (!body.is_empty()).then_some(7_000_000),
        last_byte_ns: 9_500_000,
        body_bytes: body.len() as u64,
        lease: Memory::new(0).empty_lease(),
    }
}

/// A request without header fields and body.
pub fn request(method: &str, target: &str) -> Request {
    Request {
        method: method.into(),
        target: target.into(),
        version: Version::Http11,
        headers: Vec::new(),
        body: Bytes::new(),
        chunked: false,
        trailers: Vec::new(),
        first_byte_ns: 0,
        last_byte_ns: 0,
        late: false,
        saturated: false,
        lease: Memory::new(usize::MAX).empty_lease(),
    }
}

impl Request {
    /// Adds a header field.
    pub fn push(&mut self, name: &'static str, value: &'static str) {
        self.headers.push(Field {
            name: Bytes::from_static(name.as_bytes()),
            value: Bytes::from_static(value.as_bytes()),
        });
    }
}

/// A response without header fields and body.
pub fn empty_response(status: u16) -> Response {
    Response {
        status,
        headers: Vec::new(),
        body: Bytes::new(),
        trailers: Vec::new(),
        first_byte_ns: 0,
        body_ns: None,
        last_byte_ns: 0,
        body_bytes: 0,
        lease: Memory::new(usize::MAX).empty_lease(),
    }
}

/// An IPv4 packet with a TCP segment, checksums left unfinished as offloading does.
pub fn ipv4(
    from: SocketAddrV4,
    to: SocketAddrV4,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
    payload: &[u8],
) -> Vec<u8> {
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&(40 + payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet.extend_from_slice(&from.ip().octets());
    packet.extend_from_slice(&to.ip().octets());
    packet.extend_from_slice(&from.port().to_be_bytes());
    packet.extend_from_slice(&to.port().to_be_bytes());
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&acknowledgement.to_be_bytes());
    packet.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend_from_slice(payload);
    packet
}
