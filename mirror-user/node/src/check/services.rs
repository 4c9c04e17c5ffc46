//! What clients dial.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::config::{Node, Protocol, Service, ServiceAddress};
use crate::netlink::HostAddress;
use mirror_base::check::Finding;
use mirror_base::servers;
use mirror_base::sock_diag::{self, Listener};

/// `host` has the addresses of this host, `tapped` the numbers of the interfaces that are tapped.
pub(super) fn findings(node: &Node, host: &[HostAddress], tapped: &BTreeSet<u32>) -> Vec<Finding> {
    // Without them it says that nobody listens, which is to be looked after by hand then.
    let listeners = sock_diag::listeners().unwrap_or_default();
    let mut findings = Vec::new();
    for service in &node.services {
        findings.extend(protocol(service));
        for address in &service.addresses {
            findings.push(place(service, *address, host, &listeners));
            findings.extend(tap(service, *address, host, tapped));
        }
        findings.extend(canary(service, host, &listeners));
        findings.extend(other_family(service, host, &listeners));
        findings.extend(unseen(service, host, &listeners));
        findings.extend(proxied(service, host, &listeners));
    }
    findings
}

pub(super) fn about(service: &Service) -> String {
    format!("service {}", service.name)
}

fn protocol(service: &Service) -> Option<Finding> {
    if service.protocol == Protocol::Http {
        return None;
    }
    let name = service.protocol.label();
    Some(Finding::warn(
        about(service),
        format!(
            "protocol {name}: only HTTP/1 can be read, so its requests are copied and counted, but neither compared nor judged by a rollout"
        ),
        "write protocol = \"http\" where it is HTTP/1 in clear text; else steer by hand, and watch the servers' own metrics",
    ))
}

/// Whether the address is one of this host's, and somebody listens there.
fn place(
    service: &Service,
    address: ServiceAddress,
    host: &[HostAddress],
    listeners: &[Listener],
) -> Finding {
    let here = |ip: IpAddr| host.iter().any(|own| own.ip == ip) || ip.is_loopback();
    if let Some(ip) = address.ip.filter(|&ip| !here(ip)) {
        return Finding::warn(
            about(service),
            format!("{ip} is no address of this host"),
            "nothing, if it is that of a pod or container: then let `interfaces` hold its veth, or the NIC (docs/how-to/choose-interface.md); else correct `addresses`",
        );
    }
    let serves = |listener: &Listener| servers::serves(listener.address, address).is_some();
    if listeners.iter().any(serves) {
        return Finding::ok(about(service), format!("{address}: a server listens"));
    }
    Finding::warn(
        about(service),
        format!("{address}: nothing listens there"),
        "start the model server; in a container's network of its own it is not visible here",
    )
}

/// Whether connections can be handed to the canary.
fn canary(service: &Service, host: &[HostAddress], listeners: &[Listener]) -> Option<Finding> {
    let canary = service.canary.as_ref()?;
    let ip = canary.address.ip();
    if !host.iter().any(|own| own.ip == ip) && !ip.is_loopback() {
        // See `canary`.
        return None;
    }
    let address = ServiceAddress::of_listener(canary.address);
    let found = place(service, address, host, listeners);
    Some(Finding {
        what: format!("canary {}", found.what),
        ..found
    })
}

/// Addresses of the other family than the canary's on this host: whoever dials them reaches a canary
/// that listens there too.
fn other_family(service: &Service, host: &[HostAddress], listeners: &[Listener]) -> Vec<Finding> {
    let here = |ip: IpAddr| host.iter().any(|own| own.ip == ip) || ip.is_loopback();
    let canary = service.canary.as_ref().map(|canary| canary.address);
    let Some(canary) = canary.filter(|canary| here(canary.ip())) else {
        return Vec::new();
    };
    let unreached = service.addresses.iter().filter_map(|address| {
        let ip = address.ip.filter(|ip| ip.is_ipv4() != canary.is_ipv4())?;
        let asked = ServiceAddress {
            ip: Some(ip),
            port: canary.port(),
        };
        let serves = |listener: &Listener| servers::serves(listener.address, asked).is_some();
        (!listeners.iter().any(serves)).then(|| {
            Finding::warn(
                about(service),
                format!("{address}: its clients stay with stable, no canary listens at {asked}"),
                format!("have it listen at both families, [::]:{}", canary.port()),
            )
        })
    });
    unreached.collect()
}

/// Whether there are servers of a service with a canary whose processes cannot be seen.
fn unseen(service: &Service, host: &[HostAddress], listeners: &[Listener]) -> Option<Finding> {
    let canary = service.canary.as_ref()?;
    let local: Vec<IpAddr> = host.iter().map(|own| own.ip).collect();
    let own = ServiceAddress::of_listener(canary.address);
    let addresses = service.addresses.iter().copied().chain([own]);
    let hidden = addresses.filter(|&address| {
        let sockets: BTreeSet<u64> = servers::sockets(address, listeners, &local).collect();
        !sockets.is_empty() && servers::servers(&sockets).is_ok_and(|holders| holders.is_empty())
    });
    let hidden: Vec<String> = hidden.map(|address| address.to_string()).collect();
    (!hidden.is_empty()).then(|| {
        Finding::warn(
            about(service),
            format!(
                "{}: whose process listens cannot be seen, and there will be no CPU and memory of it",
                hidden.join(", ")
            ),
            "give modelmirror CAP_SYS_PTRACE, and the host's processes to see (`hostPID: true`); nothing, if it is docker-proxy that listens for a container",
        )
    })
}

/// Whether docker-proxy listens for a service: what comes from other hosts, netfilter leads past it.
fn proxied(service: &Service, host: &[HostAddress], listeners: &[Listener]) -> Option<Finding> {
    let local: Vec<IpAddr> = host.iter().map(|own| own.ip).collect();
    let is_proxied = |address: &&ServiceAddress| {
        let sockets: BTreeSet<u64> = servers::sockets(**address, listeners, &local).collect();
        let mut holders = servers::holders(&sockets).unwrap_or_default().into_keys();
        !sockets.is_empty()
            && holders.any(|pid| servers::name(pid).as_deref() == Some("docker-proxy"))
    };
    let address = service.addresses.iter().find(is_proxied)?;
    Some(Finding::warn(
        about(service),
        format!(
            "{address}: docker-proxy listens, for a container; netfilter leads what comes from other hosts past it, to the container itself"
        ),
        "see docs/how-to/choose-interface.md for what to name; a canary on this host works only where nothing is led past docker-proxy",
    ))
}

/// Whether packets to the address pass one of the tapped interfaces.
fn tap(
    service: &Service,
    address: ServiceAddress,
    host: &[HostAddress],
    tapped: &BTreeSet<u32>,
) -> Option<Finding> {
    let own = host.iter().find(|own| Some(own.ip) == address.ip)?;
    if tapped.contains(&own.interface) || tapped.is_empty() {
        return None;
    }
    Some(Finding::warn(
        about(service),
        format!("{address} belongs to an interface that is not in `interfaces`"),
        "add that interface (`ip address` shows it), and \"lo\" for clients on this host",
    ))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use mirror_base::check::Level;

    fn service() -> Service {
        Service {
            name: "sentiment".to_owned(),
            id: 101,
            addresses: Vec::new(),
            protocol: Protocol::Http,
            stable_version: "v1".to_owned(),
            mirror: None,
            canary: None,
            look: None,
            rollout: None,
        }
    }

    fn address(typed: &str) -> ServiceAddress {
        let address: SocketAddr = typed.parse().unwrap();
        let ip = (!address.ip().is_unspecified()).then_some(address.ip());
        ServiceAddress {
            ip,
            port: address.port(),
        }
    }

    fn listening(at: &str) -> Listener {
        Listener {
            address: at.parse().unwrap(),
            inode: 1,
        }
    }

    /// The service's address (unspecified = any), a listener, and what is found.
    fn check(wanted: &str, listener: &str, level: Level, words: &str) {
        let host = [HostAddress {
            interface: 2,
            ip: [10, 0, 0, 5].into(),
        }];
        let listeners = [listening(listener)];
        let found = place(&service(), address(wanted), &host, &listeners);
        assert!(
            found.level == level && found.what.contains(words),
            "{found:?}"
        );
    }

    #[test]
    fn listeners_are_matched_as_the_kernel_does() {
        check("10.0.0.5:80", "10.0.0.5:80", Level::Ok, "a server listens");
        check("10.0.0.5:80", "0.0.0.0:80", Level::Ok, "a server listens");
        check("10.0.0.5:80", "[::]:80", Level::Ok, "a server listens");
        check("[::1]:80", "[::]:80", Level::Ok, "a server listens");
        check("[::1]:80", "0.0.0.0:80", Level::Warn, "nothing listens");
        check(
            "10.0.0.5:80",
            "[::ffff:10.0.0.5]:80",
            Level::Ok,
            "a server listens",
        );
        check(
            "10.0.0.5:80",
            "127.0.0.1:80",
            Level::Warn,
            "nothing listens",
        );
        check(
            "0.0.0.0:80",
            "127.0.0.1:80",
            Level::Ok,
            "*:80: a server listens",
        );
        check("0.0.0.0:80", "127.0.0.1:81", Level::Warn, "nothing listens");
        check(
            "10.0.0.6:80",
            "0.0.0.0:80",
            Level::Warn,
            "10.0.0.6 is no address of this host",
        );
    }

    #[test]
    fn a_canary_is_looked_for_where_it_should_listen() {
        let host = [HostAddress {
            interface: 2,
            ip: [10, 0, 0, 5].into(),
        }];
        let check = |at: &str, level: Level, words: &str| {
            let text = format!(
                "interfaces = [\"eth0\"]\n[[service]]\nname = \"a\"\nid = 1\naddresses = [\"*:80\"]\n\
                 [service.canary]\naddress = \"{at}\""
            );
            let node = crate::config::node(&text).unwrap();
            let listeners = [listening("0.0.0.0:81")];
            let found = canary(&node.services[0], &host, &listeners)?;
            assert!(
                found.level == level && found.what.contains(words),
                "{found:?}"
            );
            Some(())
        };
        check(
            "10.0.0.5:81",
            Level::Ok,
            "canary 10.0.0.5:81: a server listens",
        );
        check("10.0.0.5:82", Level::Warn, "nothing listens there");
        let elsewhere = check("10.0.0.6:81", Level::Ok, "");
        assert_eq!(elsewhere, None, "looked at by `check::canary`");
    }

    #[test]
    fn a_canary_of_one_family_is_said() {
        let host = [HostAddress {
            interface: 2,
            ip: [10, 0, 0, 5].into(),
        }];
        let check = |listener: &str, expected: &[&str]| {
            let text = "interfaces = [\"eth0\"]\n[[service]]\nname = \"a\"\nid = 1\n\
                 addresses = [\"10.0.0.5:80\", \"[fd00::5]:80\"]\n\
                 [service.canary]\naddress = \"10.0.0.5:81\"";
            let node = crate::config::node(text).unwrap();
            let found = other_family(&node.services[0], &host, &[listening(listener)]);
            let said: Vec<_> = found.iter().map(|found| found.what.as_str()).collect();
            assert_eq!(said, expected, "{listener}");
        };
        check("[::]:81", &[]);
        check(
            "0.0.0.0:81",
            &["[fd00::5]:80: its clients stay with stable, no canary listens at [fd00::5]:81"],
        );
    }

    #[test]
    fn a_server_whose_process_is_hidden_is_said() {
        let text = "interfaces = [\"lo\"]\n[[service]]\nname = \"a\"\nid = 1\n\
            addresses = [\"*:80\"]\ncanary.address = \"127.0.0.1:81\"";
        let node = crate::config::node(text).unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = sock_diag::listeners().unwrap().into_iter();
        let mut own = own.filter(|own| Some(own.address) == socket.local_addr().ok());
        let own = own.next().unwrap();
        let (hidden, address) = (listening("0.0.0.0:81"), "127.0.0.1:80".parse().unwrap());
        let seen = Listener { address, ..own };
        let found = unseen(&node.services[0], &[], &[seen, hidden]).unwrap();
        assert!(found.what.starts_with("127.0.0.1:81: whose"), "{found:?}");
        assert_eq!(unseen(&node.services[0], &[], &[seen]), None);
        assert_eq!(unseen(&service(), &[], &[hidden]), None);
    }

    #[test]
    fn an_interface_that_is_not_tapped_is_said() {
        let host = [HostAddress {
            interface: 2,
            ip: [10, 0, 0, 5].into(),
        }];
        let found = |tapped: &[u32]| {
            let tapped = tapped.iter().copied().collect();
            tap(&service(), address("10.0.0.5:80"), &host, &tapped)
        };
        assert_eq!(found(&[2]), None);
        assert!(found(&[3]).unwrap().what.contains("not in `interfaces`"));
    }
}
