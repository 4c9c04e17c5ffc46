//! The PROXY protocol, versions 1 and 2 (haproxy's `proxy-protocol.txt`): a proxy says before anything else for
//! whom it has connected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header of version 1, in bytes.
const LONGEST_V1: usize = 107;

/// The longest header of version 2 that is read: addresses, and a few hundred bytes besides.
const LONGEST_V2: usize = 4_096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// What a connection begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preface {
    /// No such header.
    None,
    /// Maybe one: more bytes are needed.
    More,
    /// A header.
    Header {
        /// How long it is, in bytes.
        length: usize,
        /// The client that it names; nothing where the proxy speaks for itself.
        client: Option<SocketAddr>,
    },
}

/// Reads a connection's first bytes.
pub fn preface(first: &[u8]) -> Preface {
    let begins = |whole: &[u8]| {
        let length = whole.len().min(first.len());
        first[..length] == whole[..length]
    };
    if begins(b"PROXY ") {
        version_1(first)
    } else if begins(SIGNATURE) {
        version_2(first)
    } else {
        Preface::None
    }
}

fn version_1(first: &[u8]) -> Preface {
    let line = &first[..first.len().min(LONGEST_V1)];
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        return match first.len() < LONGEST_V1 {
            true => Preface::More,
            false => Preface::None,
        };
    };
    let Ok(text) = std::str::from_utf8(&line[..end]) else {
        return Preface::None;
    };
    let words: Vec<_> = text.split(' ').collect();
    let client = match words[..] {
        [_, "UNKNOWN", ..] => None,
        [_, "TCP4" | "TCP6", source, _, port, _] => {
            let (Ok(address), Ok(port)) = (source.parse::<IpAddr>(), port.parse()) else {
                return Preface::None;
            };
            Some(SocketAddr::new(address, port))
        }
        _ => return Preface::None,
    };
    let length = end + 2;
    Preface::Header { length, client }
}

fn version_2(first: &[u8]) -> Preface {
    let Some((head, rest)) = first.split_at_checked(16) else {
        return Preface::More;
    };
    let length = 16 + usize::from(u16::from_be_bytes([head[14], head[15]]));
    if head[12] >> 4 != 2 || length > LONGEST_V2 {
        return Preface::None;
    }
    let Some(block) = rest.get(..length - 16) else {
        return Preface::More;
    };
    // Command PROXY; TCP over IPv4 or IPv6.
    let client = match (head[12] & 0xf, head[13]) {
        (1, 0x11) => ipv4(block),
        (1, 0x21) => ipv6(block),
        _ => None,
    };
    Preface::Header { length, client }
}

fn ipv4(block: &[u8]) -> Option<SocketAddr> {
    let address: [u8; 4] = *block.first_chunk()?;
    let port: [u8; 2] = *block.get(8..)?.first_chunk()?;
    let address = Ipv4Addr::from(address);
    Some(SocketAddr::new(address.into(), u16::from_be_bytes(port)))
}

fn ipv6(block: &[u8]) -> Option<SocketAddr> {
    let address: [u8; 16] = *block.first_chunk()?;
    let port: [u8; 2] = *block.get(32..)?.first_chunk()?;
    let address = Ipv6Addr::from(address);
    Some(SocketAddr::new(address.into(), u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(header: &[u8], client: Option<&str>) {
        let client = client.map(|client| client.parse().unwrap());
        for cut in 1..header.len() {
            assert_eq!(preface(&header[..cut]), Preface::More, "{cut}");
        }
        let length = header.len();
        let whole = [header, b"GET / HTTP/1.1\r\n"].concat();
        assert_eq!(preface(&whole), Preface::Header { length, client });
    }

    fn version_2(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = (block.len() as u16).to_be_bytes();
        let head = [0x20 | command, family, length[0], length[1]];
        [&SIGNATURE[..], &head, block].concat()
    }

    #[test]
    fn headers_are_read() {
        let line = b"PROXY TCP4 192.0.2.7 10.0.0.1 40000 80\r\n";
        check(line, Some("192.0.2.7:40000"));
        let line = b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 80\r\n";
        check(line, Some("[2001:db8::7]:40000"));
        check(b"PROXY UNKNOWN ffff:f...f:ffff 1 2\r\n", None);
        let mut block = [192, 0, 2, 7, 10, 0, 0, 1, 0x9c, 0x40, 0, 80].to_vec();
        check(&version_2(1, 0x11, &block), Some("192.0.2.7:40000"));
        // With more than addresses.
        block.extend([4, 0, 1, 0]);
        check(&version_2(1, 0x11, &block), Some("192.0.2.7:40000"));
        // A health check of the proxy's own.
        check(&version_2(0, 0, &[]), None);
        let client: Ipv6Addr = "2001:db8::7".parse().unwrap();
        let block = [&client.octets()[..], &[0; 16], &[0x9c, 0x40, 0, 80]].concat();
        check(&version_2(1, 0x21, &block), Some("[2001:db8::7]:40000"));
    }

    #[test]
    fn what_is_none_is_none() {
        for first in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"POST / HTTP/1.1\r\n",
            b"PROXY TCP4 nobody 10.0.0.1 40000 80\r\n",
            b"PROXY TCP4\r\n",
            b"\r\nGET / HTTP/1.1\r\n",
            &[b"PROXY ", &[b'x'; 120][..]].concat(),
            &[&SIGNATURE[..], &[0x31, 0x11, 0, 0]].concat(),
        ] {
            assert_eq!(preface(first), Preface::None, "{first:?}");
        }
    }
}
