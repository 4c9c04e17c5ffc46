//! A cable without link-layer headers: two tun devices, and a thread that carries packets between
//! them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};

use crate::namespace::Namespace;

/// How often the thread looks whether it is still wanted, in milliseconds.
const LOOK: u16 = 50;

/// The longest packet, with room to spare.
const PACKET: usize = 1 << 16;

/// What a cable does to packets, of both directions alike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// How long each is on its way.
    pub delay: Duration,
    /// How many of a hundred get lost, without a pattern, but the same ones every time.
    pub lost_percent: u32,
}

impl Weather {
    fn loses(self, number: u32) -> bool {
        // Knuth's multiplicative hash.
        (number.wrapping_mul(2_654_435_761) >> 16) < 65_536 * self.lost_percent / 100
    }
}

/// A cable made by [`tun`]; the devices go when it is dropped.
#[derive(Debug)]
pub struct Tun {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and the value know of each other.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    lost: AtomicU64,
}

/// Connects two namespaces by tun devices with an MTU of 1,500 bytes, both up.
///
/// # Errors
/// Without /dev/net/tun.
pub fn tun(one: (&Namespace, &str), other: (&Namespace, &str), weather: Weather) -> Result<Tun> {
    let ends = [end(one)?, end(other)?];
    let shared = Arc::<Shared>::default();
    let known = Arc::clone(&shared);
    let thread = std::thread::spawn(move || carry(&ends, weather, &known));
    Ok(Tun {
        shared,
        thread: Some(thread),
    })
}

impl Tun {
    /// How many packets it has lost.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One device, up, with a queue that holds what the thread has not carried yet.
fn end((namespace, device): (&Namespace, &str)) -> Result<File> {
    let file = namespace
        .run(|| open(device))
        .with_context(|| format!("{}: cannot make the tun device {device}", namespace.name()))?;
    namespace.ip(&format!("link set {device} txqueuelen 20000 up"))?;
    Ok(file)
}

/// The kernel's `struct ifreq`, as TUNSETIFF reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: i16,
    rest: [u8; 22],
}

fn open(device: &str) -> io::Result<File> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: (libc::IFF_TUN | libc::IFF_NO_PI) as i16,
        rest: [0; 22],
    };
    request.name[..device.len()].copy_from_slice(device.as_bytes());
    // SAFETY: the descriptor is open, and the request has the size and layout that TUNSETIFF reads.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(file)
}

/// A packet on its way.
struct Underway {
    due: Instant,
    /// The end that it goes to.
    to: usize,
    packet: Vec<u8>,
}

/// Carries packets both ways until it is stopped.
fn carry(ends: &[File; 2], weather: Weather, shared: &Shared) {
    let mut buffer = vec![0; PACKET];
    let mut underway: VecDeque<Underway> = VecDeque::new();
    let mut number = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        let mut ready = [
            PollFd::new(ends[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(ends[1].as_fd(), PollFlags::POLLIN),
        ];
        let next = underway.front().map_or(LOOK, |first| {
            let left = first.due.saturating_duration_since(Instant::now());
            // Rounded up: not to turn round and round for less than a millisecond.
            LOOK.min(left.as_micros().div_ceil(1000) as u16)
        });
        if poll(&mut ready, next).is_err() {
            continue;
        }
        let due = Instant::now() + weather.delay;
        for (from, to) in [(0, 1), (1, 0)] {
            // Empty, or gone: either way the next turn looks again.
            while let Ok(length) = (&ends[from]).read(&mut buffer) {
                number += 1;
                if weather.loses(number) {
                    shared.lost.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let packet = buffer[..length].to_vec();
                underway.push_back(Underway { due, to, packet });
            }
        }
        while let Some(first) = underway.pop_front_if(|first| first.due <= Instant::now()) {
            // A device that is down drops, as a cable would.
            let _ = (&ends[first.to]).write(&first.packet);
        }
    }
}
