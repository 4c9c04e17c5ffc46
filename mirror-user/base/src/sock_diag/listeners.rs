//! Who listens.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{MsgFlags, send};

use super::{COOKIE, ERROR, FIND, HEADER, NO_COOKIE, TCP_LISTEN};
use super::{found, open, receive, request, too_short};

/// `NLMSG_DONE`.
const DONE: u16 = 3;
/// `NLM_F_DUMP`.
const ALL: u16 = 0x300;

/// `struct inet_diag_msg`'s address, from its start.
const SOURCE: usize = 4 + 2 + 2;
/// Its inode; expiry, two queues and the owner lie between it and the cookie.
const INODE: usize = COOKIE + 8 + 4 * 4;

/// A socket at which somebody listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its address and port.
    pub address: SocketAddr,
    /// What names it in /proc/PID/fd.
    pub inode: u64,
}

/// Who listens in this network namespace. Unlike /proc/net/tcp it does not cost more when there
/// are many connections.
///
/// # Errors
/// When the kernel has no sock_diag.
pub fn listeners() -> io::Result<Vec<Listener>> {
    let netlink = open()?;
    let mut listeners = Vec::new();
    let (v4, v6) = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    for any in [SocketAddr::new(v4.into(), 0), SocketAddr::new(v6.into(), 0)] {
        let request = request(FIND, ALL, 1 << TCP_LISTEN, any, any, NO_COOKIE);
        send(netlink.as_raw_fd(), &request, MsgFlags::empty())?;
        while take(&receive(&netlink)?, &mut listeners)? {}
    }
    Ok(listeners)
}

/// Takes the listeners out of a datagram. Says whether more will come.
fn take(mut datagram: &[u8], listeners: &mut Vec<Listener>) -> io::Result<bool> {
    while let Some(length) = datagram.first_chunk() {
        let length = u32::from_ne_bytes(*length) as usize;
        let whole = datagram.get(..length).ok_or_else(too_short)?;
        let (header, message) = whole.split_first_chunk::<HEADER>().ok_or_else(too_short)?;
        match u16::from_ne_bytes([header[4], header[5]]) {
            DONE => return Ok(false),
            ERROR => return found(whole).map(|_| false),
            _ => listeners.push(listener(message).ok_or_else(too_short)?),
        }
        // The next one begins at a multiple of four.
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(true)
}

/// `struct inet_diag_msg`.
fn listener(message: &[u8]) -> Option<Listener> {
    let octets: [u8; 16] = *message.get(SOURCE..)?.first_chunk()?;
    let ip = match i32::from(*message.first()?) {
        libc::AF_INET => IpAddr::from([octets[0], octets[1], octets[2], octets[3]]),
        _ => IpAddr::from(octets),
    };
    let port = u16::from_be_bytes(*message.get(4..)?.first_chunk()?);
    let inode = u32::from_ne_bytes(*message.get(INODE..)?.first_chunk()?);
    Some(Listener {
        address: SocketAddr::new(ip, port),
        inode: inode.into(),
    })
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[track_caller]
    fn check(at: &str) {
        let socket = TcpListener::bind(at).unwrap();
        let address = socket.local_addr().unwrap();
        let fd = format!("/proc/self/fd/{}", socket.as_raw_fd());
        let inode = std::fs::metadata(fd).unwrap().ino();
        let expected = Listener { address, inode };
        let found = listeners().unwrap();
        assert!(found.contains(&expected), "{expected:?} of {found:?}");
        drop(socket);
        let found = listeners().unwrap();
        assert!(!found.contains(&expected), "{expected:?} of {found:?}");
    }

    #[test]
    fn listeners_are_found_while_they_listen() {
        for at in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0"] {
            check(at);
        }
    }

    /// More than one datagram holds.
    #[test]
    fn all_listeners_are_found() {
        let sockets = (0..1_000).map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
        let sockets: Vec<TcpListener> = sockets.collect();
        let found = listeners().unwrap();
        for socket in &sockets {
            let address = socket.local_addr().unwrap();
            assert!(found.iter().any(|found| found.address == address));
        }
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let mut datagram = 40u32.to_ne_bytes().to_vec();
        assert!(take(&datagram, &mut Vec::new()).is_err());
        datagram.resize(40, 0);
        assert!(take(&datagram, &mut Vec::new()).is_err());
        assert!(take(&[], &mut Vec::new()).unwrap());
        datagram.splice(4..6, DONE.to_ne_bytes());
        assert!(!take(&datagram, &mut Vec::new()).unwrap());
    }
}
