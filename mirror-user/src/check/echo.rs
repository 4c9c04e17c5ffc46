//! Asks an agent through the tunnel: it sends control packets back as they are.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use mirror_common::tunnel::HEADER_LENGTH;
use nix::sys::socket::{setsockopt, sockopt};
use nix::{setsockopt_impl, sockopt_impl};
use tokio::net::UdpSocket;

use crate::tap_report::control_packet;

/// How long the agent may take; it is asked three times.
const PATIENCE: Duration = Duration::from_secs(1);
/// The longest packet to ask with, in bytes: a jumbo frame's.
pub(super) const LARGEST: u32 = 9_000;

sockopt_impl!(
    /// What the kernel does with packets that do not fit (ip(7)).
    MtuDiscover,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);

/// A control packet of `length` bytes, and the time until it came back; nothing when it did not.
pub(super) async fn echo(agent: SocketAddr, length: usize) -> io::Result<Option<Duration>> {
    let any: IpAddr = match agent {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Never in fragments: the copies are not, either.
    if agent.is_ipv4() {
        setsockopt(&socket, MtuDiscover, &libc::IP_PMTUDISC_DO)?;
    } else {
        setsockopt(&socket, sockopt::Ipv6DontFrag, &true)?;
    }
    socket.connect(agent).await?;
    let datagram = control(length);
    let asked = async {
        let mut received = vec![0; LARGEST as usize];
        let start = Instant::now();
        loop {
            socket.send(&datagram).await?;
            let wait = tokio::time::timeout(PATIENCE / 3, socket.recv(&mut received));
            // Something else, or nothing yet: ask again.
            if let Ok(length) = wait.await
                && received[..length?] == datagram
            {
                return Ok(start.elapsed());
            }
        }
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(outcome) => outcome.map(Some),
        Err(_) => Ok(None),
    }
}

/// A control packet that is no report: the agent counts it apart, and echoes it.
fn control(length: usize) -> Vec<u8> {
    let mut datagram = control_packet(0, 0, b"modelmirror check");
    datagram.resize(length.max(HEADER_LENGTH), b'.');
    datagram
}
