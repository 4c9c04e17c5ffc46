//! The inference node's file.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use mirror_api::{AgentAddress, Transport};
use mirror_base::config::table::{Problems, Section, parse};
use mirror_base::config::{
    CONTROL_SOCKET, Fault, KEY_FILE, PIN_DIR, Problem, STATE_DIR, refuse_api, refuse_shared_names,
    values,
};
use mirror_common::tunnel::Arm;

use super::canary::TypedCanary;
use super::rollout::{Copied, TypedPlan};
use super::{Directions, Look, Mirror, Node, PortRange, Protocol, Service, ServiceAddress};
use mirror_base::transport::keys::PublicKey;

/// Reads the text of a node's config.
///
/// # Errors
/// Every problem that was found.
pub fn node(text: &str) -> Result<Node, Vec<Problem>> {
    let table = parse(text)?;
    let problems = Problems::default();
    let typed = Typed::read(Section::root(&table, &problems));
    typed.check(&problems);
    problems.into_result(typed.build())
}

/// The file as it was typed: nothing where a value is missing or was refused.
struct Typed {
    interfaces: Vec<Spanned<String>>,
    state_dir: PathBuf,
    pin_dir: PathBuf,
    control_socket: PathBuf,
    admin: Spanned<SocketAddr>,
    key_file: PathBuf,
    ring: u64,
    batch_interval: Duration,
    sender_cpus: f64,
    connections: u32,
    translation_ports: Spanned<PortRange>,
    translation_addresses: Vec<Spanned<IpAddr>>,
    services: Vec<TypedService>,
}

struct TypedService {
    name: Option<Spanned<String>>,
    id: Option<Spanned<u32>>,
    addresses: Vec<Spanned<ServiceAddress>>,
    protocol: Protocol,
    stable_version: String,
    mirror: Option<TypedMirror>,
    look: Option<Look>,
    canary: Option<TypedCanary>,
    rollout: Option<TypedPlan>,
}

struct TypedMirror {
    agent: Option<Spanned<AgentAddress>>,
    agent_key: Option<PublicKey>,
    transport: Transport,
    insecure: bool,
    sample: f64,
    directions: Directions,
    arms: Vec<Spanned<Arm>>,
    max_bytes_per_second: Option<u64>,
}

const PROTOCOLS: &[(&str, Protocol)] = &[
    ("http", Protocol::Http),
    ("grpc", Protocol::Grpc),
    ("tcp", Protocol::Tcp),
];

const DIRECTIONS: &[(&str, Directions)] = &[
    ("both", Directions::Both),
    ("requests", Directions::Requests),
];

const TRANSPORTS: &[(&str, Transport)] =
    &[("stream", Transport::Stream), ("geneve", Transport::Geneve)];

const ARMS: &[(&str, Arm)] = &[("stable", Arm::Stable), ("canary", Arm::Canary)];

impl Typed {
    fn read(mut root: Section<'_>) -> Self {
        let admin = SocketAddr::from(([127, 0, 0, 1], 9469));
        let typed = Self {
            interfaces: root.required_list(
                "interfaces",
                "interfaces = [\"eth0\"]",
                values::interface,
            ),
            state_dir: root
                .or("state_dir", STATE_DIR.into(), values::path)
                .into_inner(),
            pin_dir: root
                .or("pin_dir", PIN_DIR.into(), values::path)
                .into_inner(),
            control_socket: root
                .or("control_socket", CONTROL_SOCKET.into(), values::socket_path)
                .into_inner(),
            admin: root.or("admin", admin, values::listen),
            key_file: root.value("key_file", KEY_FILE.into(), values::path),
            ring: root.value("ring", 256 << 20, values::ring),
            batch_interval: root.value(
                "batch_interval",
                Duration::from_millis(1),
                values::interval,
            ),
            sender_cpus: root.value("sender_cpus", 1.0, values::cpus),
            connections: root
                .or("connections", 65_536, values::integer(1_024, 16_777_216))
                .into_inner() as u32,
            translation_ports: root.or("translation_ports", PortRange::DEFAULT, values::port_range),
            translation_addresses: root
                .list("translation_addresses", values::own_address)
                .unwrap_or_default(),
            services: root
                .sections("service")
                .into_iter()
                .map(TypedService::read)
                .collect(),
        };
        if typed.services.is_empty() {
            root.missing_sections("service", "name, id and addresses");
        }
        root.finish();
        typed
    }

    /// What only shows when values are held against each other.
    fn check(&self, problems: &Problems) {
        problems.refuse_twins(&self.interfaces, "interface", "name every interface once");
        refuse_shared_names(
            problems,
            self.services
                .iter()
                .map(|s| (s.name.as_ref(), s.id.as_ref())),
        );
        self.check_addresses(problems);
        self.check_agents(problems);
        for service in &self.services {
            service.check_canary(problems);
            if let Some(rollout) = &service.rollout {
                let mirror = service.mirror.as_ref();
                rollout.check(
                    mirror.map_or(Copied::Nothing, TypedMirror::copied),
                    problems,
                );
            }
        }
        let most = mirror_common::policy::MAX_SERVICES as usize - 1;
        if let Some(service) = self.services.get(most) {
            let span = service.name.as_ref().map_or(0..0, Spanned::span);
            let what = format!("more than {most} services");
            problems.add(span, Fault::new(what, "move some to another node"));
        }
    }

    fn check_addresses(&self, problems: &Problems) {
        let mut seen = Taken::default();
        for service in &self.services {
            let owner = service.label();
            for address in &service.addresses {
                let own = *address.get_ref();
                if let Some((other, of)) = seen.by(own) {
                    let what = format!("{own} is taken: {other} belongs to service {of}");
                    let cure = "a packet must belong to one service: give every address and port to one service, once";
                    problems.add(address.span(), Fault::new(what, cure));
                }
                if own.overlaps(ServiceAddress::of_listener(*self.admin.get_ref())) {
                    let what = format!("{own} covers `admin`, where modelmirror itself listens");
                    let cure = "move `admin` to a port of its own";
                    problems.add(address.span(), Fault::new(what, cure));
                }
                seen.add(own, owner);
            }
        }
    }

    fn check_agents(&self, problems: &Problems) {
        let addresses = self.services.iter().flat_map(|service| &service.addresses);
        let addresses: HashSet<_> = addresses.map(|address| *address.get_ref()).collect();
        let mirrors = self.services.iter().filter_map(|s| s.mirror.as_ref());
        let mut agents: HashMap<&AgentAddress, &TypedMirror> = HashMap::new();
        for mirror in mirrors {
            let Some(agent) = &mirror.agent else { continue };
            let own = agent.get_ref().socket().map(ServiceAddress::of_listener);
            if let Some(own) = own
                && addresses.contains(&own)
            {
                let what = format!("{own} is a service's own address");
                let cure =
                    "write the address where the shadow agent listens (`listen` in its config)";
                problems.add(agent.span(), Fault::new(what, cure));
            }
            let first = *agents.entry(agent.get_ref()).or_insert(mirror);
            if let Some(key) = first.contradicted_by(mirror) {
                let what = format!(
                    "the agent {} has another `{key}` in another service",
                    agent.get_ref()
                );
                let cure = "one agent is reached in one way: write the same in each [service.mirror] that names it";
                problems.add(agent.span(), Fault::new(what, cure));
            }
            if agents.len() > mirror_common::policy::MAX_AGENTS as usize {
                let what = format!("more than {} agents", mirror_common::policy::MAX_AGENTS);
                problems.add(
                    agent.span(),
                    Fault::new(what, "let services share an agent"),
                );
                return;
            }
        }
    }

    fn build(self) -> Option<Node> {
        Some(Node {
            interfaces: self
                .interfaces
                .into_iter()
                .map(Spanned::into_inner)
                .collect(),
            state_dir: self.state_dir,
            pin_dir: self.pin_dir,
            control_socket: self.control_socket,
            admin: self.admin.into_inner(),
            key_file: self.key_file,
            ring: self.ring,
            batch_interval: self.batch_interval,
            sender_cpus: self.sender_cpus,
            connections: self.connections,
            translation_ports: self.translation_ports.into_inner(),
            translation_addresses: self
                .translation_addresses
                .into_iter()
                .map(Spanned::into_inner)
                .collect(),
            services: self
                .services
                .into_iter()
                .map(TypedService::build)
                .collect::<Option<_>>()?,
        })
    }
}

/// Addresses that belong to a service, found without a look at each.
#[derive(Default)]
struct Taken<'a> {
    exactly: HashMap<ServiceAddress, &'a str>,
    /// The first at each port, whatever its address.
    at_port: HashMap<u16, (ServiceAddress, &'a str)>,
}

impl<'a> Taken<'a> {
    fn add(&mut self, address: ServiceAddress, owner: &'a str) {
        self.exactly.entry(address).or_insert(owner);
        self.at_port.entry(address.port).or_insert((address, owner));
    }

    /// What overlaps with `own`, and whose it is.
    fn by(&self, own: ServiceAddress) -> Option<(ServiceAddress, &'a str)> {
        let any = ServiceAddress { ip: None, ..own };
        let exactly = |address| Some((address, *self.exactly.get(&address)?));
        match own.ip {
            None => self.at_port.get(&own.port).copied(),
            Some(_) => exactly(own).or_else(|| exactly(any)),
        }
    }
}

impl TypedService {
    fn read(mut section: Section<'_>) -> Self {
        let stable_version = section.section("stable").map_or_else(
            || "stable".to_owned(),
            |mut stable| {
                let version = stable.or("version", "stable".to_owned(), values::name);
                stable.finish();
                version.into_inner()
            },
        );
        let typed = Self {
            name: section.required("name", "name = \"sentiment\"", values::service_name),
            id: section.required("id", "id = 101", values::id),
            addresses: section.required_list(
                "addresses",
                "addresses = [\"*:8000\"]",
                values::service_address,
            ),
            protocol: section
                .or("protocol", Protocol::Http, values::choice(PROTOCOLS))
                .into_inner(),
            stable_version,
            mirror: section.section("mirror").map(TypedMirror::read),
            look: section.section("look").map(look),
            canary: section.section("canary").map(TypedCanary::read),
            rollout: section.section("rollout").map(TypedPlan::read),
        };
        section.finish();
        typed
    }

    fn check_canary(&self, problems: &Problems) {
        if let Some(canary) = &self.canary {
            return canary.check(&self.addresses, problems);
        }
        let arms = self.mirror.iter().flat_map(|mirror| &mirror.arms);
        for arm in arms.filter(|arm| *arm.get_ref() == Arm::Canary) {
            let what = format!(
                "{} has no canary whose connections could be copied",
                self.label()
            );
            let cure = "write a [service.canary], or arms = [\"stable\"]";
            problems.add(arm.span(), Fault::new(what, cure));
        }
    }

    fn label(&self) -> &str {
        self.name.as_ref().map_or("?", |name| name.get_ref())
    }

    fn build(self) -> Option<Service> {
        let mirror = match self.mirror {
            Some(mirror) => Some(mirror.build()?),
            None => None,
        };
        let canary = match self.canary {
            Some(canary) => Some(canary.build()?),
            None => None,
        };
        let rollout = match self.rollout {
            Some(rollout) => Some(rollout.build()?),
            None => None,
        };
        Some(Service {
            name: self.name?.into_inner(),
            id: self.id?.into_inner(),
            addresses: self
                .addresses
                .into_iter()
                .map(Spanned::into_inner)
                .collect(),
            protocol: self.protocol,
            stable_version: self.stable_version,
            mirror,
            look: self.look,
            canary,
            rollout,
        })
    }
}

/// What the daemon reads itself.
fn look(mut section: Section<'_>) -> Look {
    let usual = Look::default();
    let look = Look {
        stable: section.value("stable", usual.stable, values::share),
        canary: section.value("canary", usual.canary, values::share),
        exchanges_per_second: section.value(
            "exchanges_per_second",
            usual.exchanges_per_second,
            values::integer(1, 1_000_000),
        ),
        unanswered_after: section.value(
            "unanswered_after",
            usual.unanswered_after,
            values::duration,
        ),
        fail_if: section.maybe("fail_if", values::pointer),
    };
    section.finish();
    look
}

impl TypedMirror {
    fn read(mut section: Section<'_>) -> Self {
        refuse_api(
            &mut section,
            "the agent is asked at `agent`, and known by its key",
            "take it out, and write `agent_key`: `modelmirror keys show` on the shadow host prints it",
        );
        let agent_key = section.maybe("agent_key", values::public_key);
        let insecure = section.value("insecure", false, values::flag);
        if !insecure && !section.has("agent_key") {
            section.lacks(
                "agent_key",
                "write the line that `modelmirror keys show` prints on the shadow host: agent_key = \"...\" (or insecure = true: copies in clear text, to whoever is there)",
            );
        }
        let typed = Self {
            agent: section.required("agent", "agent = \"10.0.0.9:6181\"", values::agent),
            agent_key,
            transport: section.value(
                "transport",
                Transport::default(),
                values::choice(TRANSPORTS),
            ),
            insecure,
            sample: section.or("sample", 1.0, values::share).into_inner(),
            directions: section
                .or(
                    "directions",
                    Directions::default(),
                    values::choice(DIRECTIONS),
                )
                .into_inner(),
            arms: section
                .list("arms", values::choice(ARMS))
                .unwrap_or_else(|| vec![Spanned::new(0..0, Arm::Stable)]),
            max_bytes_per_second: section
                .optional("max_bytes_per_second", values::size)
                .map(Spanned::into_inner),
        };
        section.finish();
        typed
    }

    /// What a shadow stage could go by.
    fn copied(&self) -> Copied {
        let stable = self.arms.iter().any(|arm| *arm.get_ref() == Arm::Stable);
        match self.directions {
            Directions::Requests => Copied::RequestsOnly,
            Directions::Both if !stable => Copied::CanaryOnly,
            Directions::Both => Copied::Compared,
        }
    }

    /// What `other` says of the same agent, and this one otherwise.
    fn contradicted_by(&self, other: &Self) -> Option<&'static str> {
        let differs = [
            ("insecure", self.insecure != other.insecure),
            ("agent_key", self.agent_key != other.agent_key),
            ("transport", self.transport != other.transport),
        ];
        differs.into_iter().find_map(|(key, is)| is.then_some(key))
    }

    fn build(self) -> Option<Mirror> {
        Some(Mirror {
            agent: self.agent?.into_inner(),
            agent_key: self.agent_key,
            transport: self.transport,
            insecure: self.insecure,
            sample: self.sample,
            directions: self.directions,
            arms: self.arms.into_iter().map(Spanned::into_inner).collect(),
            max_bytes_per_second: self.max_bytes_per_second,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn address() -> impl Strategy<Value = ServiceAddress> {
        (prop::option::of(0_u8..3), 80_u16..83).prop_map(|(ip, port)| ServiceAddress {
            ip: ip.map(|last| [10, 0, 0, last].into()),
            port,
        })
    }

    proptest! {
        #[test]
        fn what_is_taken_is_found(taken in prop::collection::vec(address(), 0..6), own in address()) {
            let mut known = Taken::default();
            taken.iter().for_each(|address| known.add(*address, "a"));
            let found = known.by(own);
            prop_assert_eq!(found.is_some(), taken.iter().any(|other| other.overlaps(own)));
            prop_assert!(found.is_none_or(|(other, _)| other.overlaps(own)));
        }
    }
}
