//! A shadow host that costs as little as can be: it takes copies by the tap's protocol, acknowledges
//! and forgets them, and drops those of others where they come in.

mod frames;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use mirror_base::transport::tls::{TrustedTaps, server_config};
use nix::time::{ClockId, clock_gettime};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use tests::{Home, Namespace};

use self::frames::Frames;

/// Naked copies are TCP, to or from the service's port; geneve's are datagrams; the rest is for the sink.
const DOOR: &str = "
table netdev bench {
    chain door {
        type filter hook ingress device eth0 priority 0
        udp dport 6181 drop
        tcp dport 8000 drop
        tcp sport 8000 drop
    }
}
";

/// How often it looks whether it should end.
const LOOK: Duration = Duration::from_millis(50);

/// What it reads at a time, in bytes.
const READ: usize = 256 << 10;

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

/// Takes copies until it is dropped.
pub(crate) struct Sink {
    _door: Door,
    stop: Arc<AtomicBool>,
    cpu_ns: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    /// In place of an agent, at its address and with its key.
    pub(crate) fn start(shadow: &Namespace, home: &Home) -> Result<Self> {
        let (own, tap) = home.keys_of_agent()?;
        let taps = TrustedTaps::new(BTreeMap::from([(tap, "node".to_owned())]), |_| {});
        let config = server_config(&own, taps)?;
        let listener = shadow
            .run(|| TcpListener::bind("0.0.0.0:6181"))
            .context("cannot listen where the agent would")?;
        listener.set_nonblocking(true)?;
        let (stop, cpu_ns) = (Arc::default(), Arc::default());
        let (stopped, cpu) = (Arc::clone(&stop), Arc::clone(&cpu_ns));
        let thread = thread::spawn(move || take_all(&listener, &config, &stopped, &cpu));
        Ok(Self {
            _door: Door::at(shadow)?,
            stop,
            cpu_ns,
            thread: Some(thread),
        })
    }

    /// CPU seconds of its thread: TCP, TLS and reading, user and kernel.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.cpu_ns.load(Ordering::Relaxed) as f64 / 1e9
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

fn take_all(
    listener: &TcpListener,
    config: &Arc<ServerConfig>,
    stop: &AtomicBool,
    cpu_ns: &AtomicU64,
) {
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((socket, _)) => {
                // The daemon connects again where it means to go on.
                let _ = take_from(socket, config, stop, cpu_ns);
            }
            Err(_) => thread::sleep(LOOK),
        }
    }
}

/// Takes what one connection brings, until it ends.
fn take_from(
    socket: TcpStream,
    config: &Arc<ServerConfig>,
    stop: &AtomicBool,
    cpu_ns: &AtomicU64,
) -> Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(LOOK))?;
    let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(config))?, socket);
    let (mut frames, mut buffer) = (Frames::default(), vec![0; READ]);
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => stream.write_all(&frames.take(&buffer[..count])?)?,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let spent =
            clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Into::into);
        cpu_ns.store(spent.as_nanos() as u64, Ordering::Relaxed);
    }
    Ok(())
}
