//! A program of somebody else's in a TC chain.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use nix::libc;

use crate::namespace::Namespace;

/// What it does with every packet. Either way no program after it sees one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Lets it go on its way.
    Pass = 0,
    /// Drops it.
    Drop = 2,
}

/// How packets are handed over to another device, past the host's own stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handing {
    /// To the neighbour that a route names (`bpf_redirect_neigh`).
    Neighbour = 152,
    /// Into the namespace at the other end of a cable (`bpf_redirect_peer`).
    Peer = 155,
}

/// The first program in a device's TCX chain, gone when dropped.
#[derive(Debug)]
pub struct ForeignProgram {
    _link: OwnedFd,
}

/// `bpf(2)`'s commands and constants (linux/bpf.h).
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const SCHED_CLS: u32 = 3;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const BEFORE: u32 = 1 << 3;

/// The part of `union bpf_attr` that loads a program.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    rest: [u64; 4],
}

/// The part of `union bpf_attr` that makes a link.
#[repr(C)]
struct Link {
    program: u32,
    device: u32,
    kind: u32,
    flags: u32,
    rest: [u64; 2],
}

impl ForeignProgram {
    /// Attaches one before all others.
    ///
    /// # Errors
    /// When the kernel refuses it; TCX needs Linux 6.6.
    pub fn first_at_egress(namespace: &Namespace, device: &str, fate: Fate) -> Result<Self> {
        Self::first(namespace, device, TCX_EGRESS, fate)
    }

    /// The same in the ingress chain.
    ///
    /// # Errors
    /// As [`first_at_egress`](Self::first_at_egress).
    pub fn first_at_ingress(namespace: &Namespace, device: &str, fate: Fate) -> Result<Self> {
        Self::first(namespace, device, TCX_INGRESS, fate)
    }

    /// One that hands IPv4 packets for `address` over to the device `to` as they come in, as a CNI's does;
    /// others go on.
    ///
    /// # Errors
    /// As [`first_at_egress`](Self::first_at_egress).
    pub fn hands_over(
        namespace: &Namespace,
        device: &str,
        address: Ipv4Addr,
        to: &str,
        handing: Handing,
    ) -> Result<Self> {
        let to = namespace.run(|| nix::net::if_::if_nametoindex(to))?;
        let put = |register: u64, value: u32| 0xb7 | register << 8 | u64::from(value) << 32;
        let code = [
            0x16bf,                                           // r6 = r1
            0x0010_6261,                                      // r2 = skb.protocol
            0x0008_0255 | 0x0008 << 32,                       // not IPv4: on
            0x20 | 30 << 32,                                  // r0 = its destination
            0x0006_0056 | u64::from(address.to_bits()) << 32, // not `address`: on
            put(1, to),
            put(2, 0),
            put(3, 0),
            put(4, 0),
            0x85 | (handing as u64) << 32, // call
            0x95,                          // exit
            put(0, u32::MAX),              // on: r0 = next
            0x95,
        ];
        Self::put_first(namespace, device, TCX_INGRESS, &code)
    }

    fn first(namespace: &Namespace, device: &str, kind: u32, fate: Fate) -> Result<Self> {
        // `r0 = fate; exit`
        let code = [0xb7 | (fate as u64) << 32, 0x95];
        Self::put_first(namespace, device, kind, &code)
    }

    fn put_first(namespace: &Namespace, device: &str, kind: u32, code: &[u64]) -> Result<Self> {
        let load = Load {
            kind: SCHED_CLS,
            instructions: code.len() as u32,
            code: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            rest: [0; 4],
        };
        let program = bpf(PROG_LOAD, &load).context("cannot load a program")?;
        let attach = || {
            let device = nix::net::if_::if_nametoindex(device)?;
            let link = Link {
                program: program.as_raw_fd().cast_unsigned(),
                device,
                kind,
                flags: BEFORE,
                rest: [0; 2],
            };
            bpf(LINK_CREATE, &link)
        };
        let link = namespace.run(attach).context("cannot attach a program")?;
        Ok(Self { _link: link })
    }
}

/// `bpf(2)`; the result is a file descriptor.
fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `attributes`, which is as long as it is told, and what it points to,
    // which outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(result as RawFd) })
}
