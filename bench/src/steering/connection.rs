//! A new connection, and which version answers it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mirror_common::tunnel::Arm;
use socket2::SockRef;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

const REQUEST: &[u8] = b"POST / HTTP/1.1\r\nHost: node\r\nContent-Length: 2\r\n\r\n{}";

/// One that was opened, answered and closed again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    /// Before its SYN was sent.
    pub(super) begun: Instant,
    /// After its SYN was acknowledged.
    pub(super) connected: Instant,
    pub(super) answered: Instant,
    pub(super) arm: Arm,
}

/// Opens one; called inside the client's namespace.
pub(super) fn open(server: SocketAddr) -> Result<Opened> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    let connected = Instant::now();
    stream.set_read_timeout(Some(PATIENCE))?;
    // It ends by a reset: thousands that wait out their time would use up the ports.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(REQUEST)?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 2048]);
    let arm = loop {
        let length = stream.read(&mut buffer).context("no answer")?;
        ensure!(length > 0, "half an answer: {answer:?}");
        answer.extend_from_slice(&buffer[..length]);
        if let Some(arm) = arm(&answer) {
            break arm;
        }
    };
    Ok(Opened {
        begun,
        connected,
        answered: Instant::now(),
        arm,
    })
}

/// The version that an answer names, as soon as it does.
fn arm(answer: &[u8]) -> Option<Arm> {
    let named = |version: &[u8]| {
        answer
            .windows(version.len())
            .any(|window| window == version)
    };
    if named(br#""model_version":"v12""#) {
        return Some(Arm::Stable);
    }
    named(br#""model_version":"v13""#).then_some(Arm::Canary)
}
