//! The least that a program can do to copy packets: `bpf_clone_redirect` to the uplink, or a record in the
//! kernel's own ring buffer, and nothing else. Few instructions, written down as such.

use std::ffi::c_long;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, Result};
use mirror_node::dataplane::Hook;

/// Commands and numbers of linux/bpf.h.
const BPF_MAP_CREATE: c_long = 0;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;
const BPF_PROG_LOAD: c_long = 5;
const BPF_PROG_TEST_RUN: c_long = 10;
const BPF_LINK_CREATE: c_long = 28;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_FUNC_KTIME_GET_NS: i32 = 5;
const BPF_FUNC_CLONE_REDIRECT: i32 = 13;
const BPF_FUNC_SKB_LOAD_BYTES: i32 = 26;
const BPF_FUNC_RINGBUF_RESERVE: i32 = 131;
const BPF_FUNC_RINGBUF_SUBMIT: i32 = 132;
const BPF_RB_NO_WAKEUP: i32 = 1;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const TCX_NEXT: i32 = -1;

/// The beginning of `union bpf_attr` for BPF_MAP_CREATE.
#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// The beginning of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// The beginning of `union bpf_attr` for BPF_LINK_CREATE.
#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
    relative: [u32; 4],
}

/// The beginning of `union bpf_attr` for BPF_PROG_TEST_RUN.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    verdict: u32,
    input_size: u32,
    output_size: u32,
    input: u64,
    output: u64,
    repeat: u32,
    nanoseconds: u32,
    context: [u64; 3],
}

/// The program, loaded.
pub(crate) struct RawClone(OwnedFd);

/// The program at one hook, detached when dropped.
pub(crate) struct Attached {
    program: RawClone,
    _link: OwnedFd,
}

impl RawClone {
    /// Copies to interface number `to` of the namespace that a packet is in.
    pub(crate) fn load(to: u32) -> Result<Self> {
        Self::load_instructions(&[
            // r2 = interface, r3 = flags; r1 is the packet already.
            instruction(0xb7, 2, to.cast_signed()),
            instruction(0xb7, 3, 0),
            instruction(0x85, 0, BPF_FUNC_CLONE_REDIRECT),
            instruction(0xb7, 0, TCX_NEXT),
            instruction(0x95, 0, 0),
        ])
    }

    /// Does nothing at all: what is measured of it is the measurement.
    pub(crate) fn load_empty() -> Result<Self> {
        Self::load_instructions(&[instruction(0xb7, 0, TCX_NEXT), instruction(0x95, 0, 0)])
    }

    /// Reads the clock and does nothing else.
    pub(crate) fn load_clock() -> Result<Self> {
        Self::load_instructions(&[
            instruction(0x85, 0, BPF_FUNC_KTIME_GET_NS),
            instruction(0xb7, 0, TCX_NEXT),
            instruction(0x95, 0, 0),
        ])
    }

    /// Puts each packet, of `length` bytes from its IP header on, into `ring` (BPF_MAP_TYPE_RINGBUF): a
    /// header of 32 bytes as ours has, the time in it, and no wake-up.
    pub(crate) fn load_ring_buffer(ring: BorrowedFd<'_>, length: u32) -> Result<Self> {
        let record = (32 + length).next_multiple_of(8).cast_signed();
        let length = length.cast_signed();
        let (call, move_to, add, load_map, store, store_immediate) =
            (0x85, 0xbf, 0x07, 0x18, 0x7b, 0x7a);
        Self::load_instructions(&[
            wide(move_to, 6, 1, 0, 0),
            // r1 = the map: its descriptor, in two instructions.
            wide(load_map, 1, 1, 0, ring.as_raw_fd()),
            instruction(0, 0, 0),
            instruction(0xb7, 2, record),
            instruction(0xb7, 3, 0),
            instruction(call, 0, BPF_FUNC_RINGBUF_RESERVE),
            // Full: nothing.
            wide(0x15, 0, 0, 15, 0),
            wide(move_to, 7, 0, 0, 0),
            instruction(call, 0, BPF_FUNC_KTIME_GET_NS),
            wide(store, 7, 0, 0, 0),
            wide(store_immediate, 7, 0, 8, 1),
            wide(store_immediate, 7, 0, 16, 2),
            wide(store_immediate, 7, 0, 24, 3),
            wide(move_to, 1, 6, 0, 0),
            instruction(0xb7, 2, 14),
            wide(move_to, 3, 7, 0, 0),
            instruction(add, 3, 32),
            instruction(0xb7, 4, length),
            instruction(call, 0, BPF_FUNC_SKB_LOAD_BYTES),
            wide(move_to, 1, 7, 0, 0),
            instruction(0xb7, 2, BPF_RB_NO_WAKEUP),
            instruction(call, 0, BPF_FUNC_RINGBUF_SUBMIT),
            instruction(0xb7, 0, TCX_NEXT),
            instruction(0x95, 0, 0),
        ])
    }

    fn load_instructions(instructions: &[u64]) -> Result<Self> {
        let license = c"GPL";
        let mut load = ProgLoad {
            prog_type: BPF_PROG_TYPE_SCHED_CLS,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr().addr() as u64,
            license: license.as_ptr().addr() as u64,
            name: *b"raw_clone\0\0\0\0\0\0\0",
            ..ProgLoad::default()
        };
        // SAFETY: the addresses in it are of values that live until after the call.
        let program =
            unsafe { descriptor(BPF_PROG_LOAD, &mut load) }.context("cannot load the raw clone")?;
        Ok(Self(program))
    }

    /// Mean time, in nanoseconds, of so many runs on `frame` in the caller's namespace.
    pub(crate) fn test_run(&self, frame: &[u8], repeat: u32) -> Result<f64> {
        let mut run = TestRun {
            program: self.0.as_raw_fd().cast_unsigned(),
            input_size: frame.len() as u32,
            input: frame.as_ptr().addr() as u64,
            repeat,
            ..TestRun::default()
        };
        // SAFETY: the address in it is of `frame`, of the size given; the kernel writes back into
        // `run` itself.
        unsafe { bpf(BPF_PROG_TEST_RUN, &mut run) }.context("cannot run the raw clone")?;
        Ok(f64::from(run.nanoseconds))
    }

    /// At `hook` of interface number `from`, a number of the namespace that the caller is in.
    pub(crate) fn attach(self, from: u32, hook: Hook) -> Result<Attached> {
        let mut create = LinkCreate {
            program: self.0.as_raw_fd().cast_unsigned(),
            interface: from,
            attach_type: match hook {
                Hook::Ingress => BPF_TCX_INGRESS,
                Hook::Egress => BPF_TCX_EGRESS,
            },
            ..LinkCreate::default()
        };
        // SAFETY: there are no addresses in it.
        let link = unsafe { descriptor(BPF_LINK_CREATE, &mut create) }
            .context("cannot attach the raw clone (needs Linux 6.6)")?;
        Ok(Attached {
            program: self,
            _link: link,
        })
    }
}

impl Attached {
    /// The program's number.
    pub(crate) fn id(&self) -> Result<u32> {
        let path = format!("/proc/self/fdinfo/{}", self.program.0.as_raw_fd());
        let text = fs::read_to_string(path)?;
        let id = text.lines().find_map(|line| line.strip_prefix("prog_id:"));
        Ok(id
            .context("the kernel does not number programs")?
            .trim()
            .parse()?)
    }
}

/// A BPF instruction without source register and offset.
const fn instruction(code: u64, destination: u64, immediate: i32) -> u64 {
    code | destination << 8 | (immediate.cast_unsigned() as u64) << 32
}

/// One with source register and offset.
const fn wide(code: u64, destination: u64, source: u64, offset: u64, immediate: i32) -> u64 {
    instruction(code, destination, immediate) | source << 12 | offset << 16
}

/// A ring buffer of the kernel's own, of so many bytes.
pub(crate) fn ring_buffer(bytes: u32) -> Result<OwnedFd> {
    let mut create = MapCreate {
        map_type: BPF_MAP_TYPE_RINGBUF,
        max_entries: bytes,
        ..MapCreate::default()
    };
    // SAFETY: there are no addresses in it.
    unsafe { descriptor(BPF_MAP_CREATE, &mut create) }.context("cannot make a ring buffer")
}

/// A call of bpf(2).
///
/// # Safety
/// `attribute` must be the beginning of `union bpf_attr` for `command`, with good addresses in it.
unsafe fn bpf<T>(command: c_long, attribute: &mut T) -> io::Result<c_long> {
    // SAFETY: the caller vouches for what it points to; the kernel goes no further than its size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attribute),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

/// A call of bpf(2) that makes a file descriptor.
///
/// # Safety
/// As for [`bpf`], with such a command.
unsafe fn descriptor<T>(command: c_long, attribute: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for it.
    let fd = unsafe { bpf(command, attribute) }?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
