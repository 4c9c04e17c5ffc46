//! A cable without link-layer headers: two tun devices, and a thread that carries packets between
//! them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, poll};

use crate::namespace::Namespace;

/// How often the thread looks whether it is still wanted, in milliseconds.
const LOOK: u16 = 50;

/// The longest packet, with room to spare.
const PACKET: usize = 1 << 16;

/// A cable made by [`tun`]; the devices go when it is dropped.
#[derive(Debug)]
pub struct Tun {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Connects two namespaces by tun devices with an MTU of 1,500 bytes, both up.
///
/// # Errors
/// Without /dev/net/tun.
pub fn tun(one: (&Namespace, &str), other: (&Namespace, &str)) -> Result<Tun> {
    let ends = [end(one)?, end(other)?];
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || carry(&ends, &stopped));
    Ok(Tun {
        stop,
        thread: Some(thread),
    })
}

impl Drop for Tun {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
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

/// Carries packets both ways until it is stopped.
fn carry(ends: &[File; 2], stop: &AtomicBool) {
    let mut packet = vec![0; PACKET];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [
            PollFd::new(ends[0].as_fd(), PollFlags::POLLIN),
            PollFd::new(ends[1].as_fd(), PollFlags::POLLIN),
        ];
        if poll(&mut ready, LOOK).is_err() {
            continue;
        }
        for (from, to) in [(0, 1), (1, 0)] {
            // Empty, or gone: either way the next turn looks again.
            while let Ok(length) = (&ends[from]).read(&mut packet) {
                // A device that is down drops, as a cable would.
                let _ = (&ends[to]).write(&packet[..length]);
            }
        }
    }
}
