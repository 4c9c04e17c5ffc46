//! A shadow host that costs nothing: it answers the daemon, so that copies are sent, and lets the
//! kernel drop them.

use std::net::UdpSocket;

use anyhow::{Context, Result};
use socket2::{SockFilter, SockRef};
use tests::Namespace;

/// Classic BPF over a UDP header and what follows: passes GENEVE's control packets (RFC 8926, the O
/// bit) and drops everything else.
const CONTROL_ONLY: [SockFilter; 5] = [
    // A = the second byte of GENEVE's header.
    SockFilter::new(0x30, 0, 0, 8 + 1),
    SockFilter::new(0x54, 0, 0, 0x80),
    SockFilter::new(0x15, 1, 0, 0x80),
    SockFilter::new(0x06, 0, 0, 0),
    SockFilter::new(0x06, 0, 0, u32::MAX),
];

/// Answers until its socket is shut by the drop of this value.
pub(crate) struct Sink(UdpSocket);

impl Sink {
    /// In place of an agent, at its address.
    pub(crate) fn start(shadow: &Namespace) -> Result<Self> {
        let socket = shadow
            .run(|| UdpSocket::bind("0.0.0.0:6181"))
            .context("cannot listen where the agent would")?;
        SockRef::from(&socket).attach_filter(&CONTROL_ONLY)?;
        let own = socket.try_clone()?;
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            // Nothing at all arrives once the socket has been shut.
            while let Ok((length @ 1.., tap)) = own.recv_from(&mut buffer) {
                // The daemon asks again when an answer is lost.
                let _ = own.send_to(&buffer[..length], tap);
            }
        });
        Ok(Self(socket))
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        // A UDP socket that is shut wakes its reader, although it was never connected.
        let _ = SockRef::from(&self.0).shutdown(std::net::Shutdown::Both);
    }
}
