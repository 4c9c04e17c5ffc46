//! What clients dial.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use procfs::net::TcpState;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Finding;
use crate::config::{Node, Protocol, Service, ServiceAddress};
use crate::netlink::{self, HostAddress, Netlink};

pub(super) async fn findings(
    netlink: &Netlink,
    node: &Node,
    probe_tls: bool,
) -> Result<Vec<Finding>, netlink::Error> {
    let host = netlink.addresses().await?;
    let listeners = listeners();
    let mut tapped = BTreeSet::new();
    for name in &node.interfaces {
        tapped.extend(netlink.link(name).await?.map(|link| link.index));
    }
    let mut findings = Vec::new();
    for service in &node.services {
        findings.extend(protocol(service));
        for address in &service.addresses {
            findings.push(place(service, *address, &host, &listeners));
            findings.extend(tap(service, *address, &host, &tapped));
            if probe_tls {
                findings.push(tls(service, *address).await);
            }
        }
    }
    if !probe_tls {
        findings.push(Finding::ok(
            "TLS",
            "not looked for; `check --probe-tls` dials each address once (TLS cannot be compared)",
        ));
    }
    Ok(findings)
}

fn about(service: &Service) -> String {
    format!("service {}", service.name)
}

fn protocol(service: &Service) -> Option<Finding> {
    let name = match service.protocol {
        Protocol::Http => return None,
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
    };
    Some(Finding::warn(
        about(service),
        format!("protocol {name} is copied, and this version's agent rebuilds HTTP/1 only"),
        "nothing: what cannot be rebuilt is counted, and not compared",
    ))
}

/// Where this network namespace listens.
fn listeners() -> Vec<SocketAddr> {
    let entries = [procfs::net::tcp(), procfs::net::tcp6()];
    let listening = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.state == TcpState::Listen);
    listening.map(|entry| entry.local_address).collect()
}

/// Whether the address is one of this host's, and somebody listens there.
fn place(
    service: &Service,
    address: ServiceAddress,
    host: &[HostAddress],
    listeners: &[SocketAddr],
) -> Finding {
    let here = |ip: IpAddr| host.iter().any(|own| own.ip == ip) || ip.is_loopback();
    if let Some(ip) = address.ip.filter(|&ip| !here(ip)) {
        return Finding::warn(
            about(service),
            format!("{ip} is no address of this host"),
            "nothing, if it is that of a pod or container: then let `interfaces` hold its veth, and not the NIC as well where addresses are translated (docker -p, NodePort); else correct `addresses`",
        );
    }
    let serves = |listener: &SocketAddr| {
        let ip = listener.ip().to_canonical();
        // `[::]` takes IPv4 as well, unless it asked not to, which cannot be seen.
        let any = |wanted: IpAddr| ip.is_unspecified() && (ip.is_ipv6() || wanted.is_ipv4());
        let serves = address.ip.is_none_or(|wanted| wanted == ip || any(wanted));
        listener.port() == address.port && serves
    };
    if listeners.iter().any(serves) {
        return Finding::ok(about(service), format!("{address}: a server listens"));
    }
    Finding::warn(
        about(service),
        format!("{address}: nothing listens there"),
        "start the model server; in a container's network of its own it is not visible here",
    )
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

/// A ClientHello of TLS 1.2 (RFC 5246) with one cipher suite: any TLS server answers it with a
/// handshake or an alert record, anything else does not.
const CLIENT_HELLO: [u8; 52] = {
    let mut hello = [0; 52];
    let head = [
        0x16, 3, 1, 0, 47, // record: handshake, 47 bytes
        1, 0, 0, 43, 3, 3, // ClientHello, 43 bytes, TLS 1.2; then 32 bytes of random
    ];
    let mut i = 0;
    while i < head.len() {
        hello[i] = head[i];
        i += 1;
    }
    // No session; one suite, TLS_RSA_WITH_AES_128_CBC_SHA; no compression; no extensions.
    hello[44 + 1] = 2;
    hello[44 + 3] = 0x2f;
    hello[44 + 4] = 1;
    hello
};

async fn tls(service: &Service, address: ServiceAddress) -> Finding {
    let ip = address.ip.unwrap_or(Ipv4Addr::LOCALHOST.into());
    let dialled = SocketAddr::new(ip, address.port);
    let asked = async {
        let mut stream = TcpStream::connect(dialled).await?;
        stream.write_all(&CLIENT_HELLO).await?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await?;
        io::Result::Ok(answer)
    };
    match tokio::time::timeout(Duration::from_secs(2), asked).await {
        Ok(Ok([0x15 | 0x16, 3])) => Finding::refuse(
            about(service),
            format!("{dialled} speaks TLS: its requests cannot be rebuilt, only counted"),
            "tap where TLS has ended: behind the ingress or sidecar, often on \"lo\"",
        ),
        Ok(Ok(_)) => Finding::ok(about(service), format!("{dialled} does not speak TLS")),
        // A server may hang up on what it does not understand, or wait for more of it.
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Finding::warn(
            about(service),
            format!("{dialled} cannot be asked for TLS: {error}"),
            "start the model server, then check again",
        ),
        Ok(Err(_)) | Err(_) => Finding::ok(
            about(service),
            format!("{dialled} does not speak TLS (it leaves the greeting unanswered)"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    fn service() -> Service {
        Service {
            name: "sentiment".to_owned(),
            id: 101,
            addresses: Vec::new(),
            protocol: Protocol::Http,
            stable_version: "v1".to_owned(),
            mirror: None,
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

    /// The service's address (unspecified = any), a listener, and what is found.
    fn check(wanted: &str, listener: &str, level: Level, words: &str) {
        let host = [HostAddress {
            interface: 2,
            ip: [10, 0, 0, 5].into(),
        }];
        let listeners = [listener.parse().unwrap()];
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

    #[tokio::test]
    async fn tls_is_told_by_the_first_bytes_of_the_answer() {
        for (answer, level) in [
            (&[0x15, 3, 1, 0, 2, 2, 40][..], Level::Refuse),
            (b"HTTP/1.1 400 Bad Request\r\n", Level::Ok),
            (b"", Level::Ok),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let dialled = listener.local_addr().unwrap().to_string();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut hello = [0; CLIENT_HELLO.len()];
                stream.read_exact(&mut hello).await.unwrap();
                stream.write_all(answer).await.unwrap();
            });
            let found = tls(&service(), address(&dialled)).await;
            assert_eq!(found.level, level, "{found:?}");
        }
    }
}
