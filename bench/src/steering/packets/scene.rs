//! The programs over maps of their own, with so many services and connections in them.

use std::collections::HashMap as Rules;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapInfo};
use mirror_common::ABI_VERSION;
use mirror_common::connection::{Connection, state};
use mirror_common::flow::{Endpoint, Flow};
use mirror_common::policy::{Service, Tap};
use mirror_common::steer::{SHARE_PARTS, Steering, flag, share_threshold};
use mirror_common::translate::{self, Ports, Translation, Way};
use mirror_common::tunnel::Arm;
use mirror_node::dataplane::{DataPlane, Sizes};
use tests::{Home, try_within};

use crate::frames::{CLIENT, node};

/// The first service's port; the others follow.
pub(super) const FIRST_PORT: u16 = 8000;

/// The port of the service that has no canary.
pub(super) const PLAIN_PORT: u16 = 7999;

/// Where the canary of all services listens.
pub(super) const CANARY_PORT: u16 = 7998;

/// How long the kernel may take to make room.
const PATIENCE: Duration = Duration::from_secs(10);

/// The port of the service whose canary is on another host.
pub(super) const AWAY_PORT: u16 = 7997;

/// That canary.
const AWAY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 9), 8001);

/// Its connections: each has a port of the node's.
pub(super) const TRANSLATED: u32 = 4096;

/// The first of those ports.
const FIRST_TRANSLATED: u16 = 61_000;

/// A client and its connection to that service, translated to what it is already: each run finds the
/// packet as the one before did.
pub(super) const UNCHANGED: (SocketAddrV4, SocketAddrV4) =
    (node(FIRST_TRANSLATED + TRANSLATED as u16), node(AWAY_PORT));

/// What takes the place of Ethernet headers there and back.
const MACS: [u32; 3] = [1, 2, 3];

/// How large the tables of connections are: as they are by default, and as they can be.
const TABLES: [u32; 2] = [65_536, 1_000_000];

/// How services share out new connections.
pub(super) fn steering() -> Steering {
    Steering {
        canary: endpoint(node(CANARY_PORT)),
        salt: [7, 11],
        threshold: share_threshold(SHARE_PARTS / 2),
        previous: share_threshold(SHARE_PARTS / 2),
        stale_ns: u64::MAX,
        // A limit that is kept, and never reached.
        connection_cost_ns: 1,
        burst_ns: u64::MAX / 2,
        flags: flag::PRESENT,
        ..Steering::default()
    }
}

/// Who has a connection that the canary serves.
pub(super) const CANARY_CLIENT: SocketAddrV4 = SocketAddrV4::new(*CLIENT.ip(), 40_001);

/// What is in the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    /// Services with a canary.
    pub(super) services: u32,
    /// Whether the table of connections is a large one and full, or small and as good as empty.
    pub(super) full: bool,
}

/// Programs and maps. What is declared first is taken down first.
pub(super) struct Scene {
    pub(super) size: Size,
    /// Connections that were put in the table, [`client`]s from 0 on.
    pub(super) connections: u32,
    pub(super) plane: DataPlane,
    table: HashMap<MapData, Flow, Connection>,
    translated: HashMap<MapData, Flow, Connection>,
    translations: HashMap<MapData, Flow, Translation>,
    _home: Home,
}

impl Scene {
    /// Loads and fills it.
    pub(super) fn new(size: Size) -> Result<Self> {
        let home = Home::new()?;
        let mut plane = DataPlane::load(
            mirror_programs::OBJECT,
            home.pins(),
            None,
            Sizes::small(TABLES[usize::from(size.full)]),
        )?;
        let service = |index| Service {
            index,
            id: index,
            here: 1,
            ..Service::default()
        };
        let mut rules: Rules<_, _> = (0..size.services)
            .map(|number| (endpoint(server(number)), service(number + 1)))
            .collect();
        let (plain, away) = (size.services + 1, size.services + 2);
        rules.insert(endpoint(node(PLAIN_PORT)), service(plain));
        rules.insert(endpoint(node(AWAY_PORT)), service(away));
        plane.set_services(&rules)?;
        let here = (1..=size.services).map(|row| (row, steering()));
        for (row, steering) in here.chain([(away, steering_away())]) {
            // The kernel makes room for histograms in the background, less fast than we take it.
            try_within(PATIENCE, "the kernel has room for histograms", || {
                plane.set_steering(row, steering)
            })?;
        }
        plane.set_translated_ports(Ports {
            first: FIRST_TRANSLATED.into(),
            count: TRANSLATED + 1,
        })?;
        plane.set_tap(Tap {
            // Alive for good.
            heartbeat_ns: u64::MAX / 2,
            ..Tap::default()
        })?;
        let maps = home.pins().join(format!("v{ABI_VERSION}/maps"));
        // A little room is left: what falls out of a full table would not be found.
        let room = MapInfo::from_pin(maps.join("CONNECTIONS"))?.max_entries() / 16 * 15;
        let map = |name| MapData::from_pin(maps.join(name)).map(Map::LruHashMap);
        let plain = |name| MapData::from_pin(maps.join(name)).map(Map::HashMap);
        let mut scene = Self {
            size,
            connections: if size.full { room } else { 0 },
            plane,
            table: HashMap::try_from(map("CONNECTIONS")?)?,
            translated: HashMap::try_from(plain("TRANSLATED")?)?,
            translations: HashMap::try_from(plain("TRANSLATIONS")?)?,
            _home: home,
        };
        for number in 0..scene.connections {
            scene.remember(client(number), number % size.services, arm(number))?;
        }
        for number in 0..TRANSLATED {
            let origin = between((client(number), node(AWAY_PORT)));
            scene.translate(origin, between(translated(number)))?;
        }
        scene.translate(between(UNCHANGED), between(UNCHANGED))?;
        Ok(scene)
    }

    /// Puts an established connection to a service in the table.
    pub(super) fn remember(&mut self, client: SocketAddrV4, service: u32, arm: Arm) -> Result<()> {
        let mut connection = Connection::joined(service + 1, arm);
        if arm == Arm::Canary {
            connection.state |= state::SETTLED;
        }
        let put = self.table.insert(flow(client, service), connection, 0);
        put.context("cannot write the table of connections")
    }

    /// Puts an established connection to a canary on another host in both tables: as the client sees
    /// it, and as the canary does.
    fn translate(&mut self, origin: Flow, away: Flow) -> Result<()> {
        let connection = Connection {
            away,
            ..Connection::joined(self.size.services + 2, Arm::Canary)
        };
        let translation = Translation {
            origin,
            since_ns: 0,
            ifindex: 1,
            phase: translate::phase::OPEN,
            macs: MACS,
            pad: 0,
            last: translate::Last::default(),
        };
        self.translated.insert(origin, connection, 0)?;
        let put = self.translations.insert(away, translation, 0);
        put.context("cannot write the table of translations")
    }

    /// Packets that have been counted for a version, all services together.
    pub(super) fn served(&self, arm: Arm) -> Result<u64> {
        let mut served = 0;
        for row in 1..=self.size.services + 2 {
            served += self
                .plane
                .counts()
                .arm(row, arm)?
                .packets
                .iter()
                .sum::<u64>();
        }
        Ok(served)
    }
}

/// The same with a canary on another host.
fn steering_away() -> Steering {
    let base = steering();
    Steering {
        canary: endpoint(AWAY),
        flags: base.flags | flag::AWAY | flag::TRANSLATED | flag::XDP,
        way: Way {
            local: [IpAddr::from(*node(0).ip()).into(); translate::MAX_LOCAL],
            locals: 1,
            next_hop: IpAddr::from(*AWAY.ip()).into(),
            ifindex: 1,
            mtu: 1500,
            macs: MACS,
            ..Way::default()
        },
        ..base
    }
}

/// A connection to the canary on another host, as that sees it: our end, and its own.
pub(super) fn translated(number: u32) -> (SocketAddrV4, SocketAddrV4) {
    (node(FIRST_TRANSLATED + number as u16), AWAY)
}

/// The address of a service, counted from 0.
pub(super) fn server(service: u32) -> SocketAddrV4 {
    node(FIRST_PORT + service as u16)
}

/// A client of its own for each number.
pub(super) fn client(number: u32) -> SocketAddrV4 {
    let first = u32::from(Ipv4Addr::new(10, 64, 0, 0));
    SocketAddrV4::new(Ipv4Addr::from(first + number), 50_000)
}

/// The version that serves the table's connection of this number.
pub(super) fn arm(number: u32) -> Arm {
    if (number / 8).is_multiple_of(4) {
        Arm::Canary
    } else {
        Arm::Stable
    }
}

/// A client's connection to a service.
pub(super) fn flow(client: SocketAddrV4, service: u32) -> Flow {
    between((client, server(service)))
}

fn between((client, server): (SocketAddrV4, SocketAddrV4)) -> Flow {
    Flow {
        client: endpoint(client),
        server: endpoint(server),
    }
}

fn endpoint(address: SocketAddrV4) -> Endpoint {
    Endpoint::from(SocketAddr::from(address))
}
