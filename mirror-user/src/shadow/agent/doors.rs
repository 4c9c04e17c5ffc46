//! What an agent listens on.
//!
//! An agent with a new config is opened while the old one still works, so that what cannot be
//! opened changes nothing. It shares the sockets on which both listen: what arrives while one
//! follows the other waits there.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::Context as _;

use crate::config;
use crate::shadow::capture::bind;

/// Sockets, by the address that the config asks for.
#[derive(Debug, Default)]
pub struct Doors {
    udp: Vec<(SocketAddr, UdpSocket)>,
    tcp: Vec<(SocketAddr, TcpListener)>,
}

impl Doors {
    /// Opens what `config` asks for; `before` shares what it has of that.
    pub(super) fn open(config: &config::Shadow, before: &Self) -> anyhow::Result<Self> {
        let mut doors = Self::default();
        for address in [Some(config.listen), config.vxlan].into_iter().flatten() {
            let socket = open(&before.udp, address, UdpSocket::try_clone, bind)
                .with_context(|| format!("cannot listen on UDP {address}"))?;
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

    /// The tunnel's end, and VXLAN's where there is one.
    pub(super) fn udp(&self) -> io::Result<Vec<UdpSocket>> {
        self.udp
            .iter()
            .map(|(_, socket)| socket.try_clone())
            .collect()
    }

    /// The listener at `address`.
    pub(super) fn tcp(&self, address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
        let listener = find(&self.tcp, address).ok_or(io::ErrorKind::NotConnected)?;
        tokio::net::TcpListener::from_std(listener.try_clone()?)
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
