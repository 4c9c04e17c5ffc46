//! Whether few keys carry most of a service's traffic, so that no share can be reached.
//!
//! What counts is bytes of requests, which the table of connections tells: how far each client's
//! sequence numbers have come since the last look. A thread looks ([`census`]); the sums and what
//! to say of them are pure.

pub(super) mod census;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use mirror_common::connection::Connection;
use mirror_common::flow::{Address, Flow};
use mirror_common::tunnel::Direction;
use mirror_rollout::Share;

use mirror_api::{Affinity, Concentration};

/// What was sent so long ago counts half.
const HALF_LIFE: Duration = Duration::from_secs(30);

/// Connections that were opened no longer ago count as a whole when they are met.
const RECENT: Duration = Duration::from_secs(60);

/// Of fewer requests nothing is said.
const LEAST_REQUESTS: f64 = 20.0;

/// With fewer keys, weighted by how busy they are, the achieved ratio cannot come near a share.
const FEW_KEYS: f64 = 10.0;

/// What has been seen so far. It holds as many connections as a look does.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    connections: HashMap<Flow, Track>,
    /// Answers so far, and those of late, by service.
    requests: BTreeMap<u32, (u64, f64)>,
    looked: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Track {
    /// Which connection it was: ports are used again.
    initial: u32,
    /// The number after the last byte of the client's, once it is known.
    next: Option<u32>,
    /// Bytes of requests, of late.
    bytes: f64,
}

impl Tracker {
    /// Takes in a look at `now`, on the monotonic clock, and says how the services' traffic is
    /// spread. `requests` has the answers of each service that is asked about, so far.
    pub(super) fn look(
        &mut self,
        now: Duration,
        requests: &BTreeMap<u32, u64>,
        connections: Vec<(Flow, Connection)>,
    ) -> BTreeMap<u32, Concentration> {
        let passed = self
            .looked
            .map_or(Duration::ZERO, |then| now.saturating_sub(then));
        self.looked = Some(now);
        let fade = 0.5f64.powf(passed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.count_requests(requests, fade);
        let mut before = std::mem::take(&mut self.connections);
        let mut spreads: BTreeMap<u32, Spread> = BTreeMap::new();
        for (flow, connection) in connections {
            let known = before
                .remove(&flow)
                .filter(|track| track.initial == connection.initial);
            let track = track(&connection, known, fade, now);
            self.connections.insert(flow, track);
            if track.bytes > 0.0 {
                let spread = spreads.entry(connection.service).or_default();
                spread.add(flow.client.address, track.bytes);
            }
        }
        let enough = |row: &u32| {
            let of_late = self.requests.get(row).map(|(_, of_late)| *of_late);
            of_late.is_some_and(|of_late| of_late >= LEAST_REQUESTS)
        };
        spreads
            .into_iter()
            .filter(|(row, _)| enough(row))
            .filter_map(|(row, spread)| Some((row, spread.concentration()?)))
            .collect()
    }

    fn count_requests(&mut self, requests: &BTreeMap<u32, u64>, fade: f64) {
        let count = |(&row, &answered): (&u32, &u64)| {
            let of_late = match self.requests.get(&row) {
                Some(&(last, of_late)) if last <= answered => {
                    of_late * fade + (answered - last) as f64
                }
                // The row is another service's by now.
                Some(_) => answered as f64,
                None => 0.0,
            };
            (row, (answered, of_late))
        };
        self.requests = requests.iter().map(count).collect();
    }
}

/// A connection's bytes by now.
fn track(connection: &Connection, known: Option<Track>, fade: f64, now: Duration) -> Track {
    let next = connection
        .knows(Direction::Request)
        .then_some(connection.next[0]);
    let opened = Duration::from_nanos(connection.opened_ns);
    let recent = connection.opened_ns != 0 && now.saturating_sub(opened) <= RECENT;
    let from = match known {
        Some(track) => track.next,
        None => recent.then(|| connection.initial.wrapping_add(1)),
    };
    let new = match (from, next) {
        // Numbers wrap at 4 GiB: what seems to have gone back is nothing.
        (Some(from), Some(next)) => (next.wrapping_sub(from).cast_signed()).max(0),
        _ => 0,
    };
    let before = known.map_or(0.0, |track| track.bytes);
    Track {
        initial: connection.initial,
        next,
        // Less than a byte is none.
        bytes: Some(before * fade + f64::from(new))
            .filter(|bytes| *bytes >= 1.0)
            .unwrap_or(0.0),
    }
}

/// Bytes by client, and of connections what is needed of them.
#[derive(Debug, Default)]
struct Spread {
    clients: HashMap<Address, f64>,
    connections: Sums,
}

/// Of parts of a whole.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    count: u64,
    sum: f64,
    squares: f64,
    largest: f64,
}

impl Sums {
    fn add(&mut self, part: f64) {
        self.count += 1;
        self.sum += part;
        self.squares += part * part;
        self.largest = self.largest.max(part);
    }

    /// The inverse Simpson index: so many equal parts would have the same squares.
    fn effective(&self) -> f64 {
        self.sum * self.sum / self.squares
    }
}

impl Spread {
    fn add(&mut self, client: Address, bytes: f64) {
        *self.clients.entry(client).or_default() += bytes;
        self.connections.add(bytes);
    }

    fn concentration(&self) -> Option<Concentration> {
        let mut clients = Sums::default();
        self.clients.values().for_each(|&bytes| clients.add(bytes));
        let parts = self.clients.iter();
        let (&busiest, _) = parts.max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        Some(Concentration {
            clients: clients.count,
            connections: self.connections.count,
            busiest: IpAddr::from(busiest),
            busiest_client: clients.largest / clients.sum,
            busiest_connection: self.connections.largest / self.connections.sum,
            client_keys: clients.effective(),
            connection_keys: self.connections.effective(),
        })
    }
}

/// What somebody should know before a share is believed; nothing where there are keys enough, or
/// the canary gets all of them.
pub(super) fn warning(spread: &Concentration, affinity: Affinity, share: Share) -> Option<String> {
    if share == Share::ALL || spread.keys(affinity) >= FEW_KEYS {
        return None;
    }
    let percent = |part: f64| format!("{:.0} %", part * 100.0);
    let more = "let clients open more connections, or end them sooner (nginx: keepalive_requests; Envoy: max_requests_per_connection)";
    Some(match affinity {
        Affinity::Client => {
            let Concentration {
                busiest, clients, ..
            } = spread;
            let many = spread.connection_keys >= FEW_KEYS;
            let cure = match many {
                true => "set affinity = \"connection\" if it is a gateway".to_owned(),
                false => format!("if it is a gateway, set affinity = \"connection\", and {more}"),
            };
            format!(
                "{busiest} sends {} of the requests' bytes ({clients} clients in all), and one client's connections stay together: no share can be reached; {cure}",
                percent(spread.busiest_client)
            )
        }
        Affinity::Connection => format!(
            "the busiest connection carries {} of the requests' bytes ({} in all), and keeps its version: no share can be reached; {more}",
            percent(spread.busiest_connection),
            spread.connections
        ),
    })
}

#[cfg(test)]
mod tests;
