//! The tables of translations, for the thread that keeps them clean.

use std::collections::HashMap;

use mirror_common::connection::Connection;
use mirror_common::flow::Flow;
use mirror_common::translate::Translation;

use super::connections::{TRANSLATED, TRANSLATIONS};
use super::table::{Mark, Table};
use super::{DataPlane, Error};

/// A hand on the tables that needs no [`DataPlane`].
#[derive(Debug)]
pub struct Translations {
    connections: Table<Connection>,
    translations: Table<Translation>,
}

impl Translations {
    /// Calls `each` for every translation, by the connection as the canary sees it.
    pub fn each(&self, mut each: impl FnMut(Flow, Translation)) -> Result<(), Error> {
        let mut mark = Mark::default();
        loop {
            let batch = self.translations.next(&mut mark)?;
            if batch.is_empty() {
                return Ok(());
            }
            for (away, translation) in batch {
                each(away, translation);
            }
        }
    }

    /// When each connection was last seen, on the monotonic clock, in nanoseconds, by how the canary sees
    /// it.
    pub fn seen(&self) -> Result<HashMap<Flow, u64>, Error> {
        let (mut mark, mut seen) = (Mark::default(), HashMap::new());
        loop {
            let batch = self.connections.next(&mut mark)?;
            if batch.is_empty() {
                return Ok(seen);
            }
            let of_batch = batch.into_iter();
            seen.extend(of_batch.map(|(_, connection)| (connection.away, connection.seen_ns)));
        }
    }

    /// Forgets a translation and its connection, as long as `is_over` says so: the programs may have given
    /// its port to another connection meanwhile, which must not lose it.
    pub fn forget(
        &self,
        away: &Flow,
        is_over: impl Fn(&Translation) -> bool,
    ) -> Result<bool, Error> {
        let Some(translation) = self.translations.take(away)? else {
            return Ok(false);
        };
        if !is_over(&translation) {
            self.translations.put_back(away, &translation)?;
            return Ok(false);
        }
        let origin = translation.origin;
        let known = self.connections.get(&origin)?;
        if known.is_some_and(|connection| connection.away == *away)
            && let Some(connection) = self.connections.take(&origin)?
            && connection.away != *away
        {
            self.connections.put_back(&origin, &connection)?;
        }
        Ok(true)
    }
}

impl DataPlane {
    /// A hand on the tables of translations, for a thread of its own.
    pub fn translations(&self) -> Result<Translations, Error> {
        let maps = self.links.with_file_name("maps");
        Ok(Translations {
            connections: Table::open(&maps, TRANSLATED)?,
            translations: Table::open(&maps, TRANSLATIONS)?,
        })
    }
}
