//! The pin directory: what is in it, whether it is ours, and taking all of it away.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use aya::maps::{Array, Map, MapData};
use aya::programs::SchedClassifier;
use aya::programs::links::{FdLink, PinnedLink};
use mirror_common::ABI_VERSION;

use super::attach::detach_clsact;
use super::maps::map_error;
use super::{Error, Hook, PROGRAMS, qdiscs, rings};

/// So far below a bpffs a `pin_dir` with its layout is looked for.
const DEPTH: usize = 4;

/// Removes every link and map under `pin_dir`, of whatever layout: mirroring and steering end with
/// the next packet. Works without a daemon. Returns what was removed.
pub fn detach_all(pin_dir: &Path) -> io::Result<Vec<String>> {
    let mut removed = Vec::new();
    for interface in interfaces()? {
        for hook in [Hook::Ingress, Hook::Egress] {
            if detach_clsact(&interface, hook) {
                removed.push(format!("clsact/{interface}@{}", hook.label()));
            }
        }
    }
    let layouts = match fs::read_dir(pin_dir) {
        Ok(layouts) => layouts,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(error),
    };
    for layout in layouts {
        let layout = layout?.path();
        blind(&layout.join("maps"));
        // Links first: a map must outlive the programs that use it.
        for kind in ["links", "maps"] {
            let Ok(pins) = fs::read_dir(layout.join(kind)) else {
                continue;
            };
            for pin in pins {
                let pin = pin?;
                fs::remove_file(pin.path())?;
                removed.push(format!("{kind}/{}", pin.file_name().to_string_lossy()));
            }
            fs::remove_dir(layout.join(kind))?;
        }
        removed.extend(qdiscs::remove_all(&layout));
        fs::remove_dir(&layout)?;
    }
    fs::remove_dir(pin_dir)?;
    Ok(removed)
}

/// The interfaces of this network namespace: /sys may show another one's.
fn interfaces() -> io::Result<Vec<String>> {
    let interfaces = nix::net::if_::if_nameindex()?;
    let names = interfaces.iter().map(|interface| interface.name());
    Ok(names
        .map(|name| name.to_string_lossy().into_owned())
        .collect())
}

/// What of ours is attached in this network namespace by links, as `INTERFACE@HOOK`, and the programs' ids.
/// Nothing where the kernel does not tell.
pub fn attached() -> io::Result<BTreeMap<String, u32>> {
    let mut attached = BTreeMap::new();
    for interface in interfaces()? {
        for hook in [Hook::Ingress, Hook::Egress] {
            let query = SchedClassifier::query_tcx(&interface, hook.attach_type());
            let programs = query.map_or_else(|_| Vec::new(), |(_, programs)| programs);
            let ours = programs.iter().filter(|program| {
                let name = program.name_as_str();
                name.is_some_and(|name| PROGRAMS.contains(&name))
            });
            let at = format!("{interface}@{}", hook.label());
            attached.extend(ours.map(|program| (at.clone(), program.id())));
        }
    }
    Ok(attached)
}

/// Directories like `pin_dir`, wherever a bpffs is mounted, whose links are `attached` here.
pub fn find(attached: &BTreeMap<String, u32>) -> Vec<PathBuf> {
    let mounts = procfs::process::Process::myself().and_then(|own| own.mountinfo());
    let mounts = mounts.map_or_else(|_| Vec::new(), |mounts| mounts.0);
    let mounts = mounts.into_iter().filter(|mount| mount.fs_type == "bpf");
    let has_ours = |layout: &PathBuf| {
        entries(&layout.join("links")).any(|pin| {
            let link = PinnedLink::from_pin(pin).map(FdLink::from);
            let link = link.and_then(|link| link.info());
            link.is_ok_and(|link| attached.values().any(|id| *id == link.program_id()))
        })
    };
    let mut found = BTreeSet::new();
    for mount in mounts {
        let mut level = vec![mount.mount_point];
        for _ in 0..DEPTH {
            level = level.iter().flat_map(|folder| entries(folder)).collect();
            let ours = level.iter().filter(|layout| has_ours(layout));
            found.extend(ours.filter_map(|layout| layout.parent().map(Path::to_owned)));
        }
    }
    found.into_iter().collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let found = fs::read_dir(folder).into_iter().flatten().flatten();
    found.map(|entry| entry.path())
}

/// Has the programs find no service any more. The kernel detaches a program a moment after its link's
/// pin is gone, and the next packet may come before that.
fn blind(maps: &Path) {
    let Ok(map) = MapData::from_pin(maps.join("PORTS")) else {
        return;
    };
    // Another layout's map may be of another kind: its programs end a moment later.
    let Ok(mut ports) = Array::<_, u64>::try_from(Map::Array(map)) else {
        return;
    };
    for word in 0..ports.len() {
        let _ = ports.set(word, 0, 0);
    }
}

/// The directories for maps and links, made where missing. Refuses layouts of other versions.
pub(super) fn prepare(pin_dir: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::PinDir { path, source }
    };
    let own = format!("v{ABI_VERSION}");
    if let Ok(layouts) = fs::read_dir(pin_dir) {
        for layout in layouts.flatten() {
            let found = layout.file_name().to_string_lossy().into_owned();
            if found != own {
                return Err(Error::UnknownLayout {
                    path: pin_dir.to_owned(),
                    found,
                });
            }
        }
    }
    let root = pin_dir.join(own);
    let (maps, links) = (root.join("maps"), root.join("links"));
    for directory in [&maps, &links] {
        fs::create_dir_all(directory).map_err(failed(directory))?;
    }
    fs::set_permissions(pin_dir, fs::Permissions::from_mode(0o700)).map_err(failed(pin_dir))?;
    Ok((maps, links))
}

/// aya 0.14 reuses pinned maps unseen, and a larger value would overrun its buffers. Rings are left out
/// while their size is not known.
pub(super) fn check_maps(object: &[u8], maps: &Path, ring_size: Option<u32>) -> Result<(), Error> {
    let object = aya_obj::Object::parse(object)
        .map_err(|error| Error::Missing(format!("meaning: {error}")))?;
    let entries = fs::read_dir(maps).map_err(|source| Error::PinDir {
        path: maps.to_owned(),
        source,
    })?;
    for entry in entries.flatten() {
        let path = entry.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let is_ring = name.starts_with(rings::PREFIX);
        let wanted = object.maps.get(name);
        if wanted.is_none() && !is_ring {
            return Err(Error::UnknownLayout {
                path: maps.to_owned(),
                found: format!("map {name}"),
            });
        }
        if wanted.is_none() && ring_size.is_none() {
            continue;
        }
        let info = MapData::from_pin(&path)
            .and_then(|map| map.info())
            .map_err(|source| map_error("pinned", source))?;
        let expected = match wanted {
            None => rings::expected(ring_size.unwrap_or_default()),
            Some(_) if name == "RINGS" => rings::EXPECTED_OF_ALL,
            Some(wanted) => {
                let entries = match name {
                    "SCRATCH" => possible_cpus(),
                    // As large as the config said when they were made.
                    "CONNECTIONS" | "TRANSLATED" | "TRANSLATIONS" => info.max_entries(),
                    _ => wanted.max_entries(),
                };
                let (map_type, key, value) =
                    (wanted.map_type(), wanted.key_size(), wanted.value_size());
                (map_type, key, value, entries)
            }
        };
        let map_type = info.map_type().map(|map_type| map_type as u32).unwrap_or(0);
        let found = (
            map_type,
            info.key_size(),
            info.value_size(),
            info.max_entries(),
        );
        let (found, expected) = (shape(found), shape(expected));
        if found != expected {
            return Err(Error::ForeignMap {
                path,
                found,
                expected,
            });
        }
    }
    Ok(())
}

/// One of the pinned maps, once more.
pub(super) fn open(maps: &Path, name: &'static str) -> Result<MapData, Error> {
    MapData::from_pin(maps.join(name)).map_err(|source| map_error(name, source))
}

fn shape((map_type, key, value, entries): (u32, u32, u32, u32)) -> String {
    format!("type {map_type}, {key}-byte keys, {value}-byte values, {entries} entries")
}

pub(super) fn possible_cpus() -> u32 {
    aya::util::nr_cpus().map_or(1, |cpus| cpus as u32)
}
