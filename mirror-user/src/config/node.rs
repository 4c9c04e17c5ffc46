//! The inference node's file.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::Spanned;

use mirror_common::tunnel::Arm;

use super::canary::TypedCanary;
use super::errors::{Fault, Problem};
use super::rollout::{Copied, TypedPlan};
use super::table::{Problems, Section, parse};
use super::{
    AgentApi, Directions, Mirror, Node, PortRange, Protocol, Secret, Service, ServiceAddress,
    values,
};

/// Reads the text of a node's config; `secret` reads a token file.
///
/// # Errors
/// Every problem that was found.
pub fn node(text: &str, secret: Secret<'_>) -> Result<Node, Vec<Problem>> {
    let table = parse(text)?;
    let problems = Problems::default();
    let typed = Typed::read(Section::root(&table, &problems), secret);
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
    connections: u32,
    translation_ports: Spanned<PortRange>,
    services: Vec<TypedService>,
}

struct TypedService {
    name: Option<Spanned<String>>,
    id: Option<Spanned<u32>>,
    addresses: Vec<Spanned<ServiceAddress>>,
    protocol: Protocol,
    stable_version: String,
    mirror: Option<TypedMirror>,
    canary: Option<TypedCanary>,
    rollout: Option<TypedPlan>,
}

struct TypedMirror {
    agent: Option<Spanned<SocketAddr>>,
    api: Option<AgentApi>,
    /// Whether `api` is there, whatever it says.
    asked: bool,
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

const ARMS: &[(&str, Arm)] = &[("stable", Arm::Stable), ("canary", Arm::Canary)];

impl Typed {
    fn read(mut root: Section<'_>, secret: Secret<'_>) -> Self {
        let admin = SocketAddr::from(([127, 0, 0, 1], 9469));
        let typed = Self {
            interfaces: root.required_list(
                "interfaces",
                "interfaces = [\"eth0\"]",
                values::interface,
            ),
            state_dir: root
                .or("state_dir", super::STATE_DIR.into(), values::path)
                .into_inner(),
            pin_dir: root
                .or("pin_dir", super::PIN_DIR.into(), values::path)
                .into_inner(),
            control_socket: root
                .or(
                    "control_socket",
                    super::CONTROL_SOCKET.into(),
                    values::socket_path,
                )
                .into_inner(),
            admin: root.or("admin", admin, values::listen),
            connections: root
                .or("connections", 65_536, values::integer(1_024, 16_777_216))
                .into_inner() as u32,
            translation_ports: root.or("translation_ports", PortRange::DEFAULT, values::port_range),
            services: root
                .sections("service")
                .into_iter()
                .map(|section| TypedService::read(section, secret))
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
        super::refuse_shared_names(
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
        let mut seen: Vec<(ServiceAddress, &str)> = Vec::new();
        for service in &self.services {
            let owner = service.label();
            for address in &service.addresses {
                let own = *address.get_ref();
                if let Some((other, of)) = seen.iter().find(|(other, _)| other.overlaps(own)) {
                    let what = format!("{own} is taken: {other} belongs to service {of}");
                    let cure = "a packet must belong to one service: give every address and port to one service, once";
                    problems.add(address.span(), Fault::new(what, cure));
                }
                if own.overlaps(ServiceAddress::of_listener(*self.admin.get_ref())) {
                    let what = format!("{own} covers `admin`, where modelmirror itself listens");
                    let cure = "move `admin` to a port of its own";
                    problems.add(address.span(), Fault::new(what, cure));
                }
                seen.push((own, owner));
            }
        }
    }

    fn check_agents(&self, problems: &Problems) {
        let addresses = || self.services.iter().flat_map(|service| &service.addresses);
        let mirrors = self.services.iter().filter_map(|s| s.mirror.as_ref());
        let mut agents = HashSet::new();
        for agent in mirrors.filter_map(|mirror| mirror.agent.as_ref()) {
            let own = ServiceAddress::of_listener(*agent.get_ref());
            if addresses().any(|address| *address.get_ref() == own) {
                let what = format!("{own} is a service's own address");
                let cure =
                    "write the address where the shadow agent listens (`listen` in its config)";
                problems.add(agent.span(), Fault::new(what, cure));
            }
            agents.insert(*agent.get_ref());
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
            connections: self.connections,
            translation_ports: self.translation_ports.into_inner(),
            services: self
                .services
                .into_iter()
                .map(TypedService::build)
                .collect::<Option<_>>()?,
        })
    }
}

impl TypedService {
    fn read(mut section: Section<'_>, secret: Secret<'_>) -> Self {
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
            mirror: section
                .section("mirror")
                .map(|mirror| TypedMirror::read(mirror, secret)),
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
            canary,
            rollout,
        })
    }
}

impl TypedMirror {
    fn read(mut section: Section<'_>, secret: Secret<'_>) -> Self {
        let asked = section.has("api");
        let token = super::token(&mut section, secret);
        let base = section.optional("api", values::http_base);
        let typed = Self {
            asked,
            agent: section.required("agent", "agent = \"10.0.0.9:6181\"", values::remote),
            api: base
                .map(Spanned::into_inner)
                .zip(token)
                .map(|(base, token)| AgentApi { base, token }),
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
        match (self.asked, self.directions) {
            (false, _) => Copied::Unasked,
            (true, Directions::Requests) => Copied::RequestsOnly,
            (true, Directions::Both) if !stable => Copied::CanaryOnly,
            (true, Directions::Both) => Copied::Compared,
        }
    }

    fn build(self) -> Option<Mirror> {
        Some(Mirror {
            agent: self.agent?.into_inner(),
            api: self.api,
            sample: self.sample,
            directions: self.directions,
            arms: self.arms.into_iter().map(Spanned::into_inner).collect(),
            max_bytes_per_second: self.max_bytes_per_second,
        })
    }
}

/// Reads a token file: what stands in it, without the final line break.
///
/// # Errors
/// When it cannot be read, is empty, or everybody may read it. A group may, as in a volume of
/// Kubernetes' secrets; `modelmirror check` says so.
pub fn read_secret(path: &Path) -> Result<String, Fault> {
    use std::os::unix::fs::PermissionsExt;

    let shown = path.display();
    let cure = format!("write a long random token into {shown} and `chmod 600` it");
    let refuse = |error: std::io::Error| Fault::new(format!("{shown}: {error}"), cure.clone());
    let mode = std::fs::metadata(path)
        .map_err(refuse)?
        .permissions()
        .mode();
    if mode & 0o007 != 0 {
        let what = format!(
            "{shown} can be read by everybody (mode {:04o})",
            mode & 0o7777
        );
        return Err(Fault::new(what, format!("run `chmod 600 {shown}`")));
    }
    let token = std::fs::read_to_string(path).map_err(refuse)?;
    let token = token.trim();
    let printable = token.bytes().all(|byte| byte.is_ascii_graphic());
    if token.is_empty() || !printable {
        let what = format!("{shown} does not hold a token of printable characters");
        return Err(Fault::new(what, cure));
    }
    Ok(token.to_owned())
}
