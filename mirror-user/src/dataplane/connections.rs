//! Reading the table of connections from a thread of its own.

use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use mirror_common::flow::Flow;
use mirror_common::measure::Connection;

use super::maps::map_error;
use super::{DataPlane, Error};

const CONNECTIONS: &str = "CONNECTIONS";

/// A look at the table costs two system calls an entry: of a larger table these stand for the rest,
/// since its order is that of a hash.
const MOST: usize = 65_536;

/// A hand on the table that needs no [`DataPlane`].
#[derive(Debug)]
pub struct Connections(BpfHashMap<MapData, Flow, Connection>);

impl Connections {
    /// Connections that are remembered, of all services with a canary; of more than 65,536 a part
    /// that is as good as random.
    pub fn read(&self) -> Vec<(Flow, Connection)> {
        // Entries come and go meanwhile: what cannot be read any more has gone. Where the one is
        // gone from which the next would be found, the kernel begins anew: so this counts tries.
        self.0.iter().take(MOST).flatten().collect()
    }
}

impl DataPlane {
    /// A hand on the table of connections, for a thread of its own.
    pub fn connection_reader(&self) -> Result<Connections, Error> {
        let failed = |source| map_error(CONNECTIONS, source);
        let pin = self.links.with_file_name("maps").join(CONNECTIONS);
        let map = Map::LruHashMap(MapData::from_pin(pin).map_err(failed)?);
        Ok(Connections(BpfHashMap::try_from(map).map_err(failed)?))
    }
}
