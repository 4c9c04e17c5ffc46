//! A UDP socket made for receiving: batched, with the largest buffer that the kernel grants.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, SockAddr, Type};

/// Messages of one receive call.
pub(super) const BATCH: usize = 32;

/// The longest UDP payload, and the longest that the kernel makes of several.
const MESSAGE: usize = 1 << 16;

/// What we ask for: a quarter of a second at 2 Gbit/s.
const RECEIVE_BUFFER: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct Socket {
    udp: UdpSocket,
    state: UdpSocketState,
    receive_buffer: usize,
    /// What the kernel had dropped before.
    earlier_drops: u64,
}

/// A socket that listens on `address`, with the largest buffer that the kernel grants.
pub(crate) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    if address.is_ipv6() {
        // `[::]` hears IPv4 taps as well.
        socket.set_only_v6(false)?;
        accept_zero_checksums(&socket)?;
    }
    // The privileged way may pass net.core.rmem_max, the other one is cut to it.
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    }
    socket.bind(&SockAddr::from(address))?;
    Ok(UdpSocket::from(socket))
}

impl Socket {
    /// Receives on a socket that [`bind`] made.
    pub(super) fn open(udp: UdpSocket) -> io::Result<Self> {
        let address = udp.local_addr()?;
        // The kernel doubles what it is asked for and says the double.
        let receive_buffer = socket2::SockRef::from(&udp).recv_buffer_size()? / 2;
        let state = UdpSocketState::new((&udp).into())?;
        let earlier_drops = drops(&udp);
        if receive_buffer < RECEIVE_BUFFER {
            tracing::warn!(
                %address,
                granted_bytes = receive_buffer,
                wanted_bytes = RECEIVE_BUFFER,
                "the receive buffer is small, bursts will be lost: \
                 sysctl -w net.core.rmem_max={RECEIVE_BUFFER}, or run with CAP_NET_ADMIN"
            );
        } else {
            tracing::info!(%address, granted_bytes = receive_buffer, "listening");
        }
        Ok(Self {
            udp,
            state,
            receive_buffer,
            earlier_drops,
        })
    }

    pub(super) fn local_address(&self) -> io::Result<SocketAddr> {
        self.udp.local_addr()
    }

    pub(super) fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// Datagrams that the kernel has dropped here since then; 0 where it does not say.
    pub(super) fn drops(&self) -> u64 {
        drops(&self.udp).saturating_sub(self.earlier_drops)
    }

    /// Receives what is there, at most [`BATCH`] messages; returns how many.
    pub(super) fn receive(&self, buffers: &mut Buffers) -> io::Result<usize> {
        let mut slices = buffers.bytes.chunks_exact_mut(MESSAGE).map(IoSliceMut::new);
        let mut slices: [_; BATCH] =
            std::array::from_fn(|_| slices.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        match self
            .state
            .recv(UdpSockRef::from(&self.udp), &mut slices, &mut buffers.metas)
        {
            Ok(count) => Ok(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error),
        }
    }
}

/// Datagrams that the kernel has dropped at a socket; 0 where it does not say.
fn drops(socket: &UdpSocket) -> u64 {
    // SK_MEMINFO_VARS counters, of which the last one is what we want.
    let mut counters = [0_u32; 9];
    let mut length = size_of_val(&counters) as libc::socklen_t;
    // SAFETY: `counters` is as long as `length` says, and lives across the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_MEMINFO,
            counters.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        u64::from(counters[8])
    } else {
        0
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.udp.as_fd()
    }
}

/// Tunnels over IPv6 may leave the UDP checksum out (RFC 6935); the socket must say so.
fn accept_zero_checksums(socket: &socket2::Socket) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value is a `c_int` of the length given, and lives across the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_UDP,
            libc::UDP_NO_CHECK6_RX,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Room for one receive call, used again and again: segments are copied out of it at their exact
/// size, so that a small payload never holds on to a large buffer.
#[derive(Debug)]
pub(super) struct Buffers {
    bytes: Vec<u8>,
    metas: [RecvMeta; BATCH],
}

/// One datagram.
pub(super) struct Received<'a> {
    pub(super) source: SocketAddr,
    /// When it came, since the epoch.
    pub(super) timestamp: Option<Duration>,
    pub(super) payload: &'a [u8],
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BATCH * MESSAGE],
            metas: [RecvMeta::default(); BATCH],
        }
    }

    /// The datagrams of the last receive call, which returned `count`. The kernel may have put
    /// several of one peer into one message (UDP_GRO).
    pub(super) fn received(&self, count: usize) -> impl Iterator<Item = Received<'_>> {
        let messages = self.bytes.chunks_exact(MESSAGE).zip(&self.metas);
        messages.take(count).flat_map(|(bytes, meta)| {
            let bytes = bytes.get(..meta.len).unwrap_or_default();
            bytes.chunks(meta.stride.max(1)).map(|payload| Received {
                source: meta.addr,
                timestamp: meta.timestamp,
                payload,
            })
        })
    }
}
