//! The tables of connections, for threads of their own.

use mirror_common::connection::{Connection, side, state};
use mirror_common::flow::Flow;
use mirror_common::translate::Translation;

use super::table::{Mark, Table};
use super::{DataPlane, Error};

const CONNECTIONS: &str = "CONNECTIONS";
pub(super) const TRANSLATED: &str = "TRANSLATED";
pub(super) const TRANSLATIONS: &str = "TRANSLATIONS";

/// Of larger tables these stand for the rest, since their order is that of a hash.
const MOST: usize = 65_536;

/// A hand on the tables that needs no [`DataPlane`].
#[derive(Debug)]
pub struct Connections {
    /// Those that are served on this host, and those of canaries on other hosts.
    tables: [Table<Connection>; 2],
    translations: Table<Translation>,
}

/// How far a look at the tables has come.
#[derive(Debug, Default)]
pub struct Place {
    table: usize,
    mark: Mark,
}

impl Connections {
    /// The next connections behind `place`; nothing at the end. What comes or goes meanwhile may be
    /// among them, or not.
    pub fn next(&self, place: &mut Place) -> Result<Vec<(Flow, Connection)>, Error> {
        while let Some(table) = self.tables.get(place.table) {
            let batch = table.next(&mut place.mark)?;
            if !batch.is_empty() {
                return Ok(batch);
            }
            *place = Place {
                table: place.table + 1,
                mark: Mark::default(),
            };
        }
        Ok(Vec::new())
    }

    /// Connections that are remembered, of all services with a canary; of more than 65,536 a part
    /// that is as good as random.
    pub fn read(&self) -> Result<Vec<(Flow, Connection)>, Error> {
        let mut all = Vec::new();
        // From the end: one table may have all that there is room for.
        for table in self.tables.iter().rev() {
            let (mut mark, mut read) = (Mark::default(), Vec::new());
            while read.len() < MOST {
                let batch = table.next(&mut mark)?;
                if batch.is_empty() {
                    break;
                }
                read.extend(batch);
            }
            all.extend(read);
        }
        Ok(thinned(all))
    }

    /// Gives up a connection of a canary on another host: whoever sends on it gets a reset.
    pub fn release(&self, flow: &Flow, connection: &Connection) -> Result<(), Error> {
        let [here, translated] = &self.tables;
        let [client, server] = connection.sides;
        let released = Connection {
            away: Flow::NONE,
            state: connection.state | state::SETTLED,
            sides: [client | side::CLOSED, server],
            ..*connection
        };
        here.set(flow, &released)?;
        translated.remove(flow)?;
        self.translations.remove(&connection.away)
    }
}

/// As many as are looked at, evenly of all.
fn thinned(all: Vec<(Flow, Connection)>) -> Vec<(Flow, Connection)> {
    let step = all.len().div_ceil(MOST).max(1);
    all.into_iter().step_by(step).collect()
}

impl DataPlane {
    /// A hand on the tables of connections, for a thread of its own.
    pub fn connection_reader(&self) -> Result<Connections, Error> {
        let maps = self.links.with_file_name("maps");
        Ok(Connections {
            tables: [
                Table::open(&maps, CONNECTIONS)?,
                Table::open(&maps, TRANSLATED)?,
            ],
            translations: Table::open(&maps, TRANSLATIONS)?,
        })
    }
}
