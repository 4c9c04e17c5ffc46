//! The servers of services with a canary: which there are, and what they use.

use std::collections::BTreeMap;

use mirror_api::ServerUse;
use mirror_common::tunnel::Arm;

use crate::config::{Node, ServiceAddress};
use mirror_base::servers::Usage;

/// Whose server it is. Another version is another server, and begins with nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Versioned {
    pub(super) service: String,
    pub(super) arm: Arm,
    pub(super) version: String,
}

/// Where the servers of services with a canary listen. Pure.
pub(super) fn wanted(config: &Node) -> BTreeMap<Versioned, Vec<ServiceAddress>> {
    let mut wanted = BTreeMap::new();
    for service in &config.services {
        let Some(canary) = &service.canary else {
            continue;
        };
        let of = |arm, version: &str| Versioned {
            service: service.name.clone(),
            arm,
            version: version.to_owned(),
        };
        let stable = of(Arm::Stable, &service.stable_version);
        wanted.insert(stable, service.addresses.clone());
        let address = ServiceAddress::of_listener(canary.address);
        wanted.insert(of(Arm::Canary, &canary.version), vec![address]);
    }
    wanted
}

/// As it is told.
pub(super) fn shown(usage: &Usage) -> ServerUse {
    ServerUse {
        processes: usage.processes as u64,
        cpu_seconds: usage.cpu.as_secs_f64(),
        cpus: usage.cpus,
        resident_bytes: usage.resident_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_of_services_with_a_canary_are_looked_for() {
        let text = "interfaces = [\"eth0\"]\n\
            [[service]]\nname = \"a\"\nid = 1\naddresses = [\"*:80\", \"10.0.0.5:90\"]\n\
            stable.version = \"v1\"\ncanary.version = \"v2\"\ncanary.address = \"10.0.0.5:81\"\n\
            [[service]]\nname = \"b\"\nid = 2\naddresses = [\"*:82\"]";
        let config = crate::config::node(text).unwrap();
        let found: Vec<String> = wanted(&config)
            .into_iter()
            .map(|(server, addresses)| {
                let Versioned {
                    service,
                    arm,
                    version,
                } = server;
                let at = addresses.iter().map(ToString::to_string);
                let at: Vec<String> = at.collect();
                format!("{service} {} {version} {}", arm.label(), at.join(" "))
            })
            .collect();
        let expected = ["a stable v1 *:80 10.0.0.5:90", "a canary v2 10.0.0.5:81"];
        assert_eq!(found, expected);
    }
}
