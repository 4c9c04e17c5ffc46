//! The table of connections, for threads of their own: read in batches, since a look at each entry by
//! itself costs two system calls, and all of a large table at once a hundred megabytes.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{HashMap as BpfHashMap, Map, MapData, MapError};
use mirror_common::flow::Flow;
use mirror_common::measure::{Connection, state};
use mirror_common::translate::Translation;

use super::maps::map_error;
use super::{DataPlane, Error, pins};

const CONNECTIONS: &str = "CONNECTIONS";
const TRANSLATIONS: &str = "TRANSLATIONS";

/// Entries that are read at once.
const BATCH: usize = 4096;

/// Of a larger table these stand for the rest, since its order is that of a hash.
const MOST: usize = 65_536;

/// `BPF_MAP_LOOKUP_BATCH` (include/uapi/linux/bpf.h).
const LOOKUP_BATCH: libc::c_long = 24;

/// A hand on the table that needs no [`DataPlane`].
#[derive(Debug)]
pub struct Connections {
    table: BpfHashMap<MapData, Flow, Connection>,
    translations: BpfHashMap<MapData, Flow, Translation>,
    /// The table once more, for what aya has no call for.
    raw: MapData,
}

/// How far a look at the table has come.
#[derive(Debug, Default)]
pub struct Place {
    /// The kernel's own mark; nothing at the beginning.
    next: Option<u32>,
    is_end: bool,
}

/// `union bpf_attr` as batches take it.
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

impl Connections {
    /// The next connections behind `place`; nothing at the end. What comes or goes meanwhile may be
    /// among them, or not.
    pub fn next(&self, place: &mut Place) -> Result<Vec<(Flow, Connection)>, Error> {
        let (mut keys, mut values) = (vec![Flow::NONE; BATCH], vec![Connection::default(); BATCH]);
        let mut count = 0;
        while count == 0 && !place.is_end {
            count = self
                .fill(place, &mut keys, &mut values)
                .map_err(|source| map_error(CONNECTIONS, MapError::IoError(source)))?;
        }
        keys.truncate(count);
        Ok(keys.into_iter().zip(values).collect())
    }

    fn fill(
        &self,
        place: &mut Place,
        keys: &mut [Flow],
        values: &mut [Connection],
    ) -> io::Result<usize> {
        let mut next = 0_u32;
        let mut attributes = Attributes {
            in_batch: place.next.as_ref().map_or(0, |at| &raw const *at as u64),
            out_batch: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: keys.len().min(values.len()) as u32,
            map_fd: self.raw.fd().as_fd().as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel writes no more than `count` keys and values of this map's sizes, which
        // `DataPlane::load` has compared with ours, and one mark; all of it lives until the call is over.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                LOOKUP_BATCH,
                &raw mut attributes,
                size_of::<Attributes>(),
            )
        };
        let error = io::Error::last_os_error();
        match (result, error.raw_os_error()) {
            (0, _) => place.next = Some(next),
            (_, Some(libc::ENOENT)) => place.is_end = true,
            _ => return Err(error),
        }
        Ok(attributes.count as usize)
    }

    /// Connections that are remembered, of all services with a canary; of more than 65,536 a part
    /// that is as good as random.
    pub fn read(&self) -> Result<Vec<(Flow, Connection)>, Error> {
        let (mut place, mut read) = (Place::default(), Vec::new());
        while read.len() < MOST {
            let batch = self.next(&mut place)?;
            if batch.is_empty() {
                break;
            }
            read.extend(batch);
        }
        read.truncate(MOST);
        Ok(read)
    }

    /// Gives up a connection of a canary on another host: whoever sends on it gets a reset.
    pub fn release(&mut self, flow: &Flow, connection: &Connection) -> Result<(), Error> {
        let away = connection.away;
        let released = Connection {
            away: Flow::NONE,
            state: connection.state | state::CLOSED | state::SETTLED,
            ..*connection
        };
        self.table
            .insert(flow, released, 0)
            .map_err(|source| map_error(CONNECTIONS, source))?;
        match self.translations.remove(&away) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(source) => Err(map_error(TRANSLATIONS, source)),
        }
    }
}

impl DataPlane {
    /// A hand on the table of connections, for a thread of its own.
    pub fn connection_reader(&self) -> Result<Connections, Error> {
        let maps = self.links.with_file_name("maps");
        let open = |name| pins::open(&maps, name);
        let table = Map::LruHashMap(open(CONNECTIONS)?);
        let translations = Map::LruHashMap(open(TRANSLATIONS)?);
        Ok(Connections {
            table: BpfHashMap::try_from(table).map_err(|source| map_error(CONNECTIONS, source))?,
            translations: BpfHashMap::try_from(translations)
                .map_err(|source| map_error(TRANSLATIONS, source))?,
            raw: open(CONNECTIONS)?,
        })
    }
}
