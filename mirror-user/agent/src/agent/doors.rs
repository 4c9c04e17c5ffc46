//! What an agent listens on.
//!
//! An agent with a new config is opened while the old one still works, so that what cannot be
//! opened changes nothing. It shares the sockets on which both listen: what arrives while one
//! follows the other waits there.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::capture::bind;
use crate::config;

/// Sockets, by the address that the config asks for.
#[derive(Debug, Default)]
pub struct Doors {
    udp: Vec<(SocketAddr, UdpSocket)>,
    tcp: Vec<(SocketAddr, TcpListener)>,
    /// Where taps connect.
    streams: Vec<(SocketAddr, TcpListener)>,
    /// Where people ask.
    control: Option<PathBuf>,
}

impl Doors {
    /// Opens what `config` asks for; `before` shares what it has of that.
    pub(super) fn open(config: &config::Shadow, before: &Self) -> anyhow::Result<Self> {
        let mut doors = Self::default();
        let (udp, tcp) = open_both(config.listen, before)?;
        doors.udp.push((config.listen, udp));
        doors.streams.push((config.listen, tcp));
        if let Some(address) = config.vxlan {
            let socket = open_udp(address, before)?;
            doors.udp.push((address, socket));
        }
        let address = config.admin;
        let listener = open(
            &before.tcp,
            address,
            TcpListener::try_clone,
            TcpListener::bind,
        )
        .with_context(|| format!("cannot listen on TCP {address} for `admin`"))?;
        listener.set_nonblocking(true)?;
        doors.tcp.push((address, listener));
        Ok(doors)
    }

    /// Where people on this host ask. The agent does its work without it as well.
    pub(super) fn control(
        &mut self,
        path: &Path,
        before: &Self,
    ) -> Option<tokio::net::UnixListener> {
        let opened = match &before.control {
            Some(known) if known == path => mirror_base::control::replace(path),
            _ => mirror_base::control::bind(path),
        };
        match opened {
            Ok(listener) => {
                self.control = Some(path.to_owned());
                Some(listener)
            }
            Err(error) => {
                tracing::warn!("`modelmirror status` cannot ask this agent: {error:#}");
                None
            }
        }
    }

    /// The tunnel's end, and VXLAN's where there is one.
    pub(super) fn udp(&self) -> io::Result<Vec<UdpSocket>> {
        self.udp
            .iter()
            .map(|(_, socket)| socket.try_clone())
            .collect()
    }

    /// Where taps connect.
    pub(super) fn streams(&self) -> io::Result<TcpListener> {
        let (_, listener) = self.streams.first().ok_or(io::ErrorKind::NotConnected)?;
        listener.try_clone()
    }

    /// The listener at `address`.
    pub(super) fn tcp(&self, address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
        let listener = find(&self.tcp, address).ok_or(io::ErrorKind::NotConnected)?;
        tokio::net::TcpListener::from_std(listener.try_clone()?)
    }
}

fn open_udp(address: SocketAddr, before: &Doors) -> anyhow::Result<UdpSocket> {
    open(&before.udp, address, UdpSocket::try_clone, bind)
        .with_context(|| format!("cannot listen on UDP {address}"))
}

/// Where datagrams arrive, and where taps connect: at the same port, even if any will do.
fn open_both(address: SocketAddr, before: &Doors) -> anyhow::Result<(UdpSocket, TcpListener)> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        let udp = open_udp(address, before)?;
        let mut at = address;
        at.set_port(udp.local_addr()?.port());
        let share = TcpListener::try_clone;
        match open(&before.streams, address, share, |_| TcpListener::bind(at)) {
            Ok(tcp) => return Ok((udp, tcp)),
            // The port was free for the one and not for the other.
            Err(_) if address.port() == 0 && attempts < 16 => {}
            Err(error) => {
                return Err(error.context(format!("cannot listen on TCP {at} for `listen`")));
            }
        }
    }
}

fn find<S>(sockets: &[(SocketAddr, S)], address: SocketAddr) -> Option<&S> {
    let found = sockets.iter().find(|(known, _)| *known == address);
    found.map(|(_, socket)| socket)
}

fn open<S>(
    before: &[(SocketAddr, S)],
    address: SocketAddr,
    share: impl FnOnce(&S) -> io::Result<S>,
    bind: impl FnOnce(SocketAddr) -> io::Result<S>,
) -> anyhow::Result<S> {
    if let Some(socket) = find(before, address) {
        return Ok(share(socket)?);
    }
    bind(address).map_err(|error| {
        let ours = before.iter().map(|(known, _)| *known);
        let overlap = ours
            .into_iter()
            .find(|known| known.port() == address.port());
        match (error.kind(), overlap) {
            (io::ErrorKind::AddrInUse, Some(known)) => anyhow::anyhow!(
                "this agent listens on {known}, and not on both at once: restart it"
            ),
            (io::ErrorKind::AddrInUse, None) => {
                anyhow::anyhow!("{error}: stop what listens there, or choose another port")
            }
            _ => error.into(),
        }
    })
}
