//! A hash table of the programs, for threads of their own: read in batches, since a look at each entry by
//! itself costs two system calls, and all of a large table at once a hundred megabytes.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use aya::maps::{MapData, MapError};
use mirror_common::flow::Flow;

use super::maps::map_error;
use super::{Error, pins};

/// Entries that are read at once.
const BATCH: usize = 4096;

/// Commands of `bpf` (include/uapi/linux/bpf.h).
const LOOKUP_ELEM: libc::c_long = 1;
const UPDATE_ELEM: libc::c_long = 2;
const DELETE_ELEM: libc::c_long = 3;
const LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const LOOKUP_BATCH: libc::c_long = 24;

/// Fails where there is an entry already.
const NOEXIST: u64 = 1;

/// A table by [`Flow`].
#[derive(Debug)]
pub(super) struct Table<V> {
    name: &'static str,
    map: MapData,
    value: PhantomData<V>,
}

/// How far a look at a table has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mark {
    /// The kernel's own mark; nothing at the beginning.
    next: Option<u32>,
    is_end: bool,
}

/// `union bpf_attr` as batches take it.
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// The same for one entry.
#[repr(C)]
struct Entry {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl<V: aya::Pod> Table<V> {
    /// Opens a pinned map, whose sizes [`DataPlane::load`](super::DataPlane::load) has compared with ours.
    pub(super) fn open(maps: &Path, name: &'static str) -> Result<Self, Error> {
        Ok(Self {
            name,
            map: pins::open(maps, name)?,
            value: PhantomData,
        })
    }

    /// The next entries behind `mark`; nothing at the end. What comes or goes meanwhile may be among them,
    /// or not.
    pub(super) fn next(&self, mark: &mut Mark) -> Result<Vec<(Flow, V)>, Error> {
        let mut keys = vec![Flow::NONE; BATCH];
        let mut values = vec![MaybeUninit::<V>::uninit(); BATCH];
        let mut count = 0;
        while count == 0 && !mark.is_end {
            count = self
                .fill(mark, &mut keys, &mut values)
                .map_err(|source| self.error(source))?;
        }
        let filled = keys.into_iter().zip(values).take(count);
        // SAFETY: the kernel has written the first `count` values, and every bit pattern is one.
        Ok(filled
            .map(|(key, value)| (key, unsafe { value.assume_init() }))
            .collect())
    }

    fn fill(
        &self,
        mark: &mut Mark,
        keys: &mut [Flow],
        values: &mut [MaybeUninit<V>],
    ) -> io::Result<usize> {
        let mut next = 0_u32;
        let mut attributes = Batch {
            in_batch: mark.next.as_ref().map_or(0, |at| &raw const *at as u64),
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: keys.len().min(values.len()) as u32,
            map_fd: self.map_fd(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel writes no more than `count` keys and values of this map's sizes, and one mark;
        // all of it lives until the call is over.
        match unsafe { bpf(LOOKUP_BATCH, &mut attributes) } {
            Ok(()) => mark.next = Some(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => mark.is_end = true,
            Err(error) => return Err(error),
        }
        Ok(attributes.count as usize)
    }

    /// The value of a key.
    pub(super) fn get(&self, key: &Flow) -> Result<Option<V>, Error> {
        self.read(LOOKUP_ELEM, key)
    }

    /// Takes the entry of a key away, at once with the look at it.
    pub(super) fn take(&self, key: &Flow) -> Result<Option<V>, Error> {
        self.read(LOOKUP_AND_DELETE_ELEM, key)
    }

    fn read(&self, command: libc::c_long, key: &Flow) -> Result<Option<V>, Error> {
        let mut value = MaybeUninit::<V>::uninit();
        let mut attributes = self.entry(key, value.as_mut_ptr() as u64, 0);
        // SAFETY: the kernel reads a key and writes a value of this map's sizes, which live until the call is
        // over.
        match unsafe { bpf(command, &mut attributes) } {
            // SAFETY: the kernel has written it, and every bit pattern is a value.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(self.error(error)),
        }
    }

    /// Replaces the value of a key.
    pub(super) fn set(&self, key: &Flow, value: &V) -> Result<(), Error> {
        self.write(key, value, 0).map_err(|error| self.error(error))
    }

    /// Puts an entry back, unless there is another by now.
    pub(super) fn put_back(&self, key: &Flow, value: &V) -> Result<(), Error> {
        match self.write(key, value, NOEXIST) {
            Err(error) if error.raw_os_error() != Some(libc::EEXIST) => Err(self.error(error)),
            _ => Ok(()),
        }
    }

    fn write(&self, key: &Flow, value: &V, flags: u64) -> io::Result<()> {
        let mut attributes = self.entry(key, &raw const *value as u64, flags);
        // SAFETY: the kernel reads a key and a value of this map's sizes.
        unsafe { bpf(UPDATE_ELEM, &mut attributes) }
    }

    /// Takes an entry away, if there is one.
    pub(super) fn remove(&self, key: &Flow) -> Result<(), Error> {
        let mut attributes = self.entry(key, 0, 0);
        // SAFETY: the kernel reads a key of this map's size.
        match unsafe { bpf(DELETE_ELEM, &mut attributes) } {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(self.error(error)),
            _ => Ok(()),
        }
    }

    fn entry(&self, key: &Flow, value: u64, flags: u64) -> Entry {
        Entry {
            map_fd: self.map_fd(),
            pad: 0,
            key: &raw const *key as u64,
            value,
            flags,
        }
    }

    fn map_fd(&self) -> u32 {
        self.map.fd().as_fd().as_raw_fd().cast_unsigned()
    }

    fn error(&self, source: io::Error) -> Error {
        map_error(self.name, MapError::IoError(source))
    }
}

/// # Safety
/// What the addresses in `attributes` point to is as large as `command` reads and writes.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<()> {
    let size = size_of::<T>();
    // SAFETY: the caller's affair.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attributes, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
