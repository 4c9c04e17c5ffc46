//! MPTCP (RFC 8684): a connection with one subflow is read like any other. With a second one, each carries only
//! some of the bytes, and none is read any more.

use super::connection::{Connection, Mode};
use super::{Event, Exchanges, Journal, Key};
use crate::message::{DropReason, Multipath, Segment};

impl Exchanges {
    /// Takes down the token of a first subflow, and leaves that alone when another one joins it.
    pub(super) fn note_multipath(&mut self, key: &Key, segment: &Segment, events: &mut Vec<Event>) {
        match segment.extras.multipath {
            Some(Multipath::Capable { token: Some(token) }) => {
                if self.multipaths.len() >= self.max_connections {
                    let connections = &self.connections;
                    self.multipaths
                        .retain(|_, key| connections.contains_key(key));
                }
                if self.multipaths.len() < self.max_connections {
                    self.multipaths.insert(token, *key);
                }
            }
            Some(Multipath::Join { token: Some(token) }) => self.join(key, token, events),
            _ => {}
        }
    }

    fn join(&mut self, joining: &Key, token: u32, events: &mut Vec<Event>) {
        let is_same = |key: &&Key| (key.tap, key.service) == (joining.tap, joining.service);
        let Some(key) = self.multipaths.get(&token).filter(is_same).copied() else {
            return;
        };
        let Some(connection) = self.connections.get_mut(&key) else {
            return;
        };
        let mut journal = Journal::of(
            &key,
            connection,
            &mut self.last_exchange,
            &mut self.unneeded,
            events,
        );
        connection.leave_to_subflows(&mut journal);
    }
}

impl Connection {
    /// Other subflows carry some of its bytes.
    fn leave_to_subflows(&mut self, journal: &mut Journal<'_>) {
        if matches!(self.mode, Mode::Alone | Mode::Closed { .. }) || self.is_rested() {
            return;
        }
        if self.open.is_empty() && !self.has_open_http2() {
            // What follows is not told any more: it shows once.
            journal.missed(DropReason::Multipath);
        }
        self.leave_alone(DropReason::Multipath, journal);
    }
}
