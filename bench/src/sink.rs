//! A shadow host that costs nothing: it answers the daemon, so that copies are sent, and lets the
//! kernel drop them.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

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

/// How often it looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// Answers until it is dropped.
pub(crate) struct Sink {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// In place of an agent, at its address.
    pub(crate) fn start(shadow: &Namespace) -> Result<Self> {
        let socket = shadow
            .run(|| UdpSocket::bind("0.0.0.0:6181"))
            .context("cannot listen where the agent would")?;
        SockRef::from(&socket).attach_filter(&CONTROL_ONLY)?;
        socket.set_read_timeout(Some(LOOK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, tap)) = socket.recv_from(&mut buffer) {
                    // The daemon asks again when an answer is lost.
                    let _ = socket.send_to(&buffer[..length], tap);
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
