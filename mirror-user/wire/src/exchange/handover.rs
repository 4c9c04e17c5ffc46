//! From one agent to the next: what has begun ends here, what comes later is the next one's.

use std::time::Duration;

use mirror_common::flow::Flow;

use super::anchor::Anchor;
use super::clock::Clock;
use super::connection::Connection;
use super::{ConnectionId, Event, Exchanges, Journal, Key, wind};
use crate::message::TapId;

/// A connection that the next agent goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandedOver {
    /// Index of the service.
    pub service: usize,
    /// The tap it comes from.
    pub tap: TapId,
    /// Its ends.
    pub flow: Flow,
    /// Where it goes on.
    pub anchor: Anchor,
}

impl Exchanges {
    /// From here on, what streams bring comes once more, to another agent: it is taken in only where it
    /// belongs to what has begun.
    pub fn pause(&mut self, now: Duration, events: &mut Vec<Event>) {
        self.paused = true;
        for (key, connection) in &mut self.connections {
            if !self.clocks.contains_key(&key.tap) {
                continue;
            }
            let mut journal = Journal::of(
                key,
                connection,
                &mut self.last_exchange,
                &mut self.unneeded,
                events,
            );
            connection.pause(now, &mut journal);
        }
    }

    /// Whether the streams' exchanges that have begun are over.
    pub fn is_at_rest(&self) -> bool {
        let streams = |key: &Key| self.clocks.contains_key(&key.tap);
        let mut connections = self.connections.iter();
        connections.all(|(key, connection)| connection.is_at_rest() || !streams(key))
    }

    /// The agent stops, paused: as [`Exchanges::finish`]. Returns where the next agent goes on with the
    /// streams' connections.
    pub fn hand_over(&mut self, events: &mut Vec<Event>) -> Vec<HandedOver> {
        let streamed = self
            .connections
            .extract_if(|key, _| self.clocks.contains_key(&key.tap));
        let (exchanges, unneeded) = (&mut self.last_exchange, &mut self.unneeded);
        let handed_over = streamed.map(|(key, mut connection)| {
            let mut journal = Journal::of(&key, &connection, exchanges, unneeded, events);
            HandedOver {
                service: key.service,
                tap: key.tap,
                flow: key.flow,
                anchor: connection.hand_over(&mut journal),
            }
        });
        let mut handed_over: Vec<_> = handed_over.collect();
        let parked = self.parking.drain();
        let parked = parked.filter(|(key, _)| self.clocks.contains_key(&key.tap));
        handed_over.extend(parked.map(|(key, anchor)| HandedOver {
            service: key.service,
            tap: key.tap,
            flow: key.flow,
            anchor,
        }));
        self.finish(events);
        self.timers.clear();
        handed_over
    }

    /// Goes on with a connection where another agent has left it.
    pub fn resume(&mut self, handed_over: &HandedOver, now: Duration) {
        let Some(&limits) = self.services.get(handed_over.service) else {
            return;
        };
        let key = Key {
            service: handed_over.service,
            tap: handed_over.tap,
            flow: handed_over.flow,
        };
        if self.connections.len() >= self.max_connections || self.connections.contains_key(&key) {
            return;
        }
        self.last_connection += 1;
        let id = ConnectionId(self.last_connection);
        let anchor = &handed_over.anchor;
        let now = self
            .clocks
            .get(&key.tap)
            .map_or(now, |clock| clock.now(now));
        let mut connection = Connection::resume(id, &key, anchor, limits, &self.memory, now);
        wind(&mut self.timers, key, &mut connection, now);
        self.connections.insert(key, Box::new(connection));
    }

    /// A moment by the clock of a tap whose copies come in a stream, in nanoseconds, and by the agent's: of
    /// the copy that was the fastest on its way.
    pub fn moment(&self, tap: TapId) -> Option<(u64, Duration)> {
        self.clocks.get(&tap)?.moment()
    }

    /// It was `time_ns` by a tap's clock when this agent began: what was copied long before it comes is
    /// known to have waited.
    pub fn resume_clock(&mut self, tap: TapId, time_ns: u64) {
        self.clocks
            .entry(tap)
            .or_insert_with(|| Clock::resumed(time_ns));
    }
}
