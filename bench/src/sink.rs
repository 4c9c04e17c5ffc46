//! A shadow host that costs as little as can be: it drops copies where they come in, whoever made
//! them, and answers the daemon, so that they are sent.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use tests::Namespace;

/// Naked copies are TCP; of ours, GENEVE's control packets pass, which have the O bit (RFC 8926).
const DOOR: &str = "
table netdev bench {
    chain door {
        type filter hook ingress device eth0 priority 0
        udp dport 6181 @th,72,1 0 drop
        ip protocol tcp drop
    }
}
";

/// How often it looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// Drops copies as they come in at the shadow host, until it is dropped itself.
pub(crate) struct Door(Namespace);

impl Door {
    /// At a host where copies go.
    pub(crate) fn at(shadow: &Namespace) -> Result<Self> {
        shadow.nft(DOOR)?;
        Ok(Self(shadow.clone()))
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        // Fails only when the host has gone.
        let _ = self.0.nft("delete table netdev bench");
    }
}

/// Answers until it is dropped.
pub(crate) struct Sink {
    _door: Door,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// In place of an agent, at its address.
    pub(crate) fn start(shadow: &Namespace) -> Result<Self> {
        let socket = shadow
            .run(|| UdpSocket::bind("0.0.0.0:6181"))
            .context("cannot listen where the agent would")?;
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
            _door: Door::at(shadow)?,
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
