//! TCP sockets of this network namespace, by sock_diag(7): listeners, as `ss --listening` shows
//! them, and connections to end, as `ss --kill` does.

mod listeners;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

pub use self::listeners::{Listener, listeners};

/// `NLMSG_ERROR`, which also carries the acknowledgement.
const ERROR: u16 = 2;
/// `SOCK_DIAG_BY_FAMILY`.
const FIND: u16 = 20;
/// `SOCK_DESTROY`.
const DESTROY: u16 = 21;

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;

/// The kernel fills no larger datagrams unless it is read with larger buffers.
const DATAGRAM: usize = 32 << 10;

/// `struct nlmsghdr`, in bytes.
const HEADER: usize = 16;
/// `struct inet_diag_sockid`'s cookie, from the start of `struct inet_diag_msg`.
const COOKIE: usize = 4 + 2 + 2 + 16 + 16 + 4;
/// Stands for any socket.
const NO_COOKIE: [u8; 8] = [0xff; 8];

const TCP_LISTEN: u8 = 10;
const TCP_TIME_WAIT: u8 = 6;
const ANY_STATE: u32 = u32::MAX;

/// Ends connections, one at a time.
#[derive(Debug)]
pub struct Destroyer {
    netlink: OwnedFd,
}

impl Destroyer {
    /// # Errors
    /// When the kernel has no sock_diag, or the process may not use it.
    pub fn open() -> io::Result<Self> {
        Ok(Self { netlink: open()? })
    }

    /// Resets the connection between `local` and `remote`. Says whether there was one.
    ///
    /// # Errors
    /// When the process may not, or the kernel cannot (CONFIG_INET_DIAG_DESTROY).
    pub fn destroy(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<bool> {
        // A look-up without a connection finds the listener, which must not be ended: so the
        // socket is asked for first, and then ended by its own cookie.
        let Some(cookie) = self.find(local, remote)? else {
            return Ok(false);
        };
        let answer = self.ask(DESTROY, ACKNOWLEDGE, local, remote, cookie)?;
        found(&answer).map(|answer| answer.is_some())
    }

    /// The cookie of an open connection's socket.
    fn find(&mut self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<[u8; 8]>> {
        let answer = self.ask(FIND, 0, local, remote, NO_COOKIE)?;
        let Some(message) = found(&answer)? else {
            return Ok(None);
        };
        let state = message.get(1).copied().unwrap_or(TCP_LISTEN);
        if matches!(state, TCP_LISTEN | TCP_TIME_WAIT) {
            return Ok(None);
        }
        let cookie = message.get(COOKIE..).and_then(|rest| rest.first_chunk());
        Ok(cookie.copied())
    }

    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        local: SocketAddr,
        remote: SocketAddr,
        cookie: [u8; 8],
    ) -> io::Result<Vec<u8>> {
        let request = request(kind, flags, ANY_STATE, local, remote, cookie);
        send(self.netlink.as_raw_fd(), &request, MsgFlags::empty())?;
        receive(&self.netlink)
    }
}

fn open() -> io::Result<OwnedFd> {
    let netlink = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    // The kernel answers before `send` returns; this is for one that does not.
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
    Ok(netlink)
}

/// One datagram of the kernel's.
fn receive(netlink: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut answer = vec![0; DATAGRAM];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    Ok(answer)
}

fn too_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "sock_diag's answer is too short",
    )
}

/// What an answer carries; nothing where there is no such socket.
fn found(answer: &[u8]) -> io::Result<Option<&[u8]>> {
    let (header, message) = answer.split_first_chunk::<HEADER>().ok_or_else(too_short)?;
    if u16::from_ne_bytes([header[4], header[5]]) != ERROR {
        return Ok(Some(message));
    }
    let code = message.first_chunk().map(|code| i32::from_ne_bytes(*code));
    match code.ok_or_else(too_short)? {
        0 => Ok(Some(message)),
        code if Errno::from_raw(-code) == Errno::ENOENT => Ok(None),
        code => Err(io::Error::from_raw_os_error(-code)),
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(
    kind: u16,
    flags: u16,
    states: u32,
    local: SocketAddr,
    remote: SocketAddr,
    cookie: [u8; 8],
) -> Vec<u8> {
    let family = match local.ip() {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    let mut body = vec![family as u8, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    body.extend(octets(local.ip()));
    body.extend(octets(remote.ip()));
    // Whatever the interface.
    body.extend(0u32.to_ne_bytes());
    body.extend(cookie);
    let length = (HEADER + body.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    // Number and sender: the kernel only repeats them.
    message.extend([0; 8]);
    message.append(&mut body);
    message
}

/// `be32[4]`; an IPv4 address stands in the first.
fn octets(ip: IpAddr) -> [u8; 16] {
    let mut octets = [0; 16];
    match ip {
        IpAddr::V4(v4) => octets[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => octets = v6.octets(),
    }
    octets
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Resets a connection, and leaves the listener and the other connection as they are.
    #[track_caller]
    fn check(at: &str) {
        let listener = TcpListener::bind(at).unwrap();
        let address = listener.local_addr().unwrap();
        let connect = || {
            let client = TcpStream::connect(address).unwrap();
            (client, listener.accept().unwrap())
        };
        let (mut client, (_server, remote)) = connect();
        let (other, (mut other_server, _)) = connect();
        let mut sockets = Destroyer::open().unwrap();
        match sockets.destroy(address, remote) {
            // The tests of the whole program run as root; this one need not.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return,
            destroyed => assert!(destroyed.unwrap()),
        }
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(!sockets.destroy(address, remote).unwrap(), "it is gone");
        drop(other);
        assert_eq!(other_server.read(&mut [0]).unwrap(), 0, "closed, not reset");
        assert!(connect().0.peer_addr().is_ok(), "the listener lives");
    }

    #[test]
    fn a_connection_is_reset_and_its_listener_is_not() {
        check("127.0.0.1:0");
        check("[::1]:0");
    }
}
