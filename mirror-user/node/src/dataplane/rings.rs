//! The maps of the rings: made before the programs are loaded, since their size is the config's.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData, MapError, RingBuf};
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_map_type};
use mirror_common::policy::{MAX_RINGS, Tap};
use mirror_common::record::{SMALLEST_RING, ring_in, value_size};
use nix::errno::Errno;

use super::maps::map_error;
use super::pins::possible_cpus;
use super::ring::Ring;
use super::{DataPlane, Error};

/// BPF_F_MMAPABLE.
const MAPPABLE: u32 = 1 << 10;

/// How pins of rings begin; the number follows.
pub(super) const PREFIX: &str = "RING_";

/// Makes the map of all rings where there is none yet, with about `wanted` bytes for each CPU's deep ring:
/// less where the kernel has limits of its own. Returns that size.
pub(super) fn prepare(maps: &Path, wanted: u32) -> Result<u32, Error> {
    let pin = maps.join("RINGS");
    if pin.exists() {
        if let Some(size) = known_size(maps)? {
            return Ok(size);
        }
        // Whoever made it did not come as far as to say how large they are, or made them otherwise.
        std::fs::remove_file(&pin).map_err(|error| map_error("RINGS", error_of(error)))?;
    }
    let mut size = wanted;
    loop {
        match make_all(&pin, size) {
            Ok(()) => return Ok(size),
            Err(error) if size > SMALLEST_RING && is_too_large(&error) => size /= 2,
            Err(error) => return Err(map_error("RINGS", error_of(error))),
        }
    }
}

/// Older kernels take no value of over 4 MiB; any has only so much memory.
fn is_too_large(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::E2BIG | Errno::ENOMEM | Errno::EINVAL))
}

/// The size of the deep rings that an earlier daemon made; nothing where it made none, or of another layout.
fn known_size(maps: &Path) -> Result<Option<u32>, Error> {
    let failed = |source| map_error("TAP", source);
    let pin = maps.join("TAP");
    if !pin.exists() {
        return Ok(None);
    }
    let tap = MapData::from_pin(pin).map_err(failed)?;
    let tap = Array::<_, Tap>::try_from(Map::Array(tap)).map_err(failed)?;
    Ok(ring_in(tap.get(&0, 0).map_err(failed)?.ring))
}

fn error_of(error: io::Error) -> MapError {
    MapError::IoError(error)
}

fn make_all(pin: &Path, size: u32) -> io::Result<()> {
    // What every ring is like; the kernel looks at it and forgets it.
    let like = make_ring(size)?;
    let rings = make_map(
        "RINGS",
        bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS,
        4,
        MAX_RINGS,
        0,
        Some(like.as_fd()),
    )?;
    pin_map(rings, pin)
}

fn make_ring(size: u32) -> io::Result<OwnedFd> {
    make_map(
        "RING",
        bpf_map_type::BPF_MAP_TYPE_ARRAY,
        value_size(size),
        possible_cpus(),
        MAPPABLE,
        None,
    )
}

/// Pins a small map where `pin_dir` is, or would be made, and takes it away again.
///
/// # Errors
/// Why that cannot be done.
pub fn try_to_pin(pin_dir: &Path) -> Result<(), String> {
    let existing = pin_dir.ancestors().find(|path| path.exists());
    let existing = existing.ok_or("it has no root")?;
    let folder = existing.join(format!("modelmirror-check-{}", std::process::id()));
    let pin = folder.join("map");
    let array = bpf_map_type::BPF_MAP_TYPE_ARRAY;
    let map = make_map("CHECK", array, 4, 1, 0, None).map_err(|error| format!("a map: {error}"))?;
    std::fs::create_dir(&folder).map_err(|error| format!("{}: {error}", existing.display()))?;
    let pinned = pin_map(map, &pin).map_err(|error| error.to_string());
    let _ = std::fs::remove_file(&pin);
    let _ = std::fs::remove_dir(&folder);
    pinned
}

fn pin_map(map: OwnedFd, pin: &Path) -> io::Result<()> {
    let map = MapData::from_fd(map).map_err(io::Error::other)?;
    map.pin(pin).map_err(io::Error::other)
}

/// BPF_MAP_CREATE: aya makes no map of maps, nor one whose size its object does not know.
fn make_map(
    name: &str,
    map_type: bpf_map_type,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    // SAFETY: integers only: zero is a value of each.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the union's part of this command; all of it was set to zero.
    let map = unsafe { &mut attributes.__bindgen_anon_1 };
    map.map_type = map_type as u32;
    map.key_size = 4;
    map.value_size = value_size;
    map.max_entries = max_entries;
    map.map_flags = map_flags;
    map.inner_map_fd = inner.map_or(0, |fd| fd.as_raw_fd() as u32);
    for (to, from) in map.map_name.iter_mut().zip(name.bytes()) {
        *to = from as _;
    }
    let fd = bpf(bpf_cmd::BPF_MAP_CREATE, &attributes)?;
    // SAFETY: a file of our own, which the kernel has just opened.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the pin of the map of all rings has to be: type, sizes of key and value, entries.
pub(super) const EXPECTED_OF_ALL: (u32, u32, u32, u32) = (
    bpf_map_type::BPF_MAP_TYPE_ARRAY_OF_MAPS as u32,
    4,
    4,
    MAX_RINGS,
);

/// What every pin of a ring has to be.
pub(super) fn expected(size: u32) -> (u32, u32, u32, u32) {
    let map_type = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    (map_type, 4, value_size(size), possible_cpus())
}

impl DataPlane {
    /// The ring with this number, made where there is none yet; from now on the tap may write to it.
    pub fn ring(&mut self, number: u32) -> Result<Ring, Error> {
        let failed = |source| map_error("RINGS", source);
        let maps = self.links.with_file_name("maps");
        let pin: PathBuf = maps.join(format!("{PREFIX}{number}"));
        if !pin.exists() {
            let made = make_ring(self.ring_size).and_then(|map| pin_map(map, &pin));
            made.map_err(|error| failed(error_of(error)))?;
        }
        let ring = MapData::from_pin(&pin).map_err(failed)?;
        let rings = MapData::from_pin(maps.join("RINGS")).map_err(failed)?;
        set_ring(&rings, number, Some(ring.fd().as_fd()))
            .map_err(|error| failed(error_of(error)))?;
        let map = ring.fd().as_fd().try_clone_to_owned();
        let mapped = map.and_then(|map| Ring::map(map, self.ring_size, possible_cpus() as u16));
        let ring = mapped.map_err(|error| failed(error_of(error)))?;
        ring.begin_life(uuid::Uuid::new_v4().as_u64_pair().1);
        Ok(ring)
    }

    /// Takes the ring with this number away from the tap, and what it holds.
    pub fn remove_ring(&mut self, number: u32) -> Result<(), Error> {
        let failed = |source| map_error("RINGS", source);
        let maps = self.links.with_file_name("maps");
        let pin = maps.join(format!("{PREFIX}{number}"));
        if !pin.exists() {
            return Ok(());
        }
        let rings = MapData::from_pin(maps.join("RINGS")).map_err(failed)?;
        set_ring(&rings, number, None).map_err(|error| failed(error_of(error)))?;
        std::fs::remove_file(&pin).map_err(|error| failed(error_of(error)))
    }

    /// Numbers of the rings that there are.
    pub fn ring_numbers(&self) -> Vec<u32> {
        let Ok(pins) = std::fs::read_dir(self.links.with_file_name("maps")) else {
            return Vec::new();
        };
        let names = pins.flatten().map(|pin| pin.file_name());
        names
            .filter_map(|name| name.to_str()?.strip_prefix(PREFIX)?.parse().ok())
            .collect()
    }

    /// Bytes of each CPU's deep ring.
    pub fn ring_size(&self) -> u32 {
        self.ring_size
    }

    /// What the tap rings when a sender that sleeps should look.
    pub fn sender_bell(&self) -> Result<Bell, Error> {
        self.bell("SENDER_BELL")
    }

    /// The same for the local reader.
    pub fn look_bell(&self) -> Result<Bell, Error> {
        self.bell("LOOK_BELL")
    }

    fn bell(&self, name: &'static str) -> Result<Bell, Error> {
        let failed = |source| map_error(name, source);
        let pin = self.links.with_file_name("maps").join(name);
        let map = Map::RingBuf(MapData::from_pin(pin).map_err(failed)?);
        Ok(Bell(RingBuf::try_from(map).map_err(failed)?))
    }
}

/// Puts a ring among the others, or takes it away: aya takes none whose size it does not know.
fn set_ring(rings: &MapData, number: u32, ring: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let command = match ring {
        Some(_) => bpf_cmd::BPF_MAP_UPDATE_ELEM,
        None => bpf_cmd::BPF_MAP_DELETE_ELEM,
    };
    let value = ring.map_or(0, |fd| fd.as_raw_fd() as u32);
    // SAFETY: as in `make_map`.
    let mut attributes: bpf_attr = unsafe { mem::zeroed() };
    // SAFETY: the union's part of these commands; all of it was set to zero.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = rings.fd().as_fd().as_raw_fd() as u32;
    element.key = (&raw const number) as u64;
    if ring.is_some() {
        element.__bindgen_anon_1.value = (&raw const value) as u64;
    }
    match bpf(command, &attributes) {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

fn bpf(command: bpf_cmd, attributes: &bpf_attr) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as it is told there are, and what they point to, which
    // outlives the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw const *attributes,
            size_of::<bpf_attr>(),
        )
    };
    Ok(Errno::result(done)? as i32)
}

/// What wakes a reader.
pub struct Bell(RingBuf<MapData>);

impl Bell {
    /// Can be waited for: readable = it was rung.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Makes it quiet.
    pub fn quiet(&mut self) {
        while self.0.next().is_some() {}
    }
}
