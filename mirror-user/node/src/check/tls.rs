//! Whether the services speak TLS, which can be counted but not compared: heard as their packets
//! pass, or asked of them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::overhear::{Heard, PATIENCE, overhear};
use super::services::about;
use crate::config::{Node, Protocol, Service, ServiceAddress};
use crate::netlink::HostAddress;
use mirror_base::check::Finding;

const WHERE_TO_TAP: &str =
    "tap where TLS has ended: behind the ingress or sidecar, often on \"lo\"";

/// Dials every address once.
pub(super) async fn ask(node: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    for service in &node.services {
        for address in &service.addresses {
            findings.push(probe(service, *address).await);
        }
    }
    findings
}

/// Looks at what passes the tapped interfaces for a moment, and sends nothing.
pub(super) async fn hear(
    node: &Node,
    host: &[HostAddress],
    tapped: &BTreeSet<u32>,
) -> Vec<Finding> {
    let mut ends = BTreeMap::new();
    for (at, service) in node.services.iter().enumerate() {
        for ServiceAddress { ip, port } in &service.addresses {
            match ip {
                Some(ip) => drop(ends.insert(SocketAddr::new(*ip, *port), at)),
                None => ends.extend(host.iter().map(|own| (SocketAddr::new(own.ip, *port), at))),
            }
        }
    }
    let (tapped, count) = (tapped.clone(), node.services.len());
    let hearing = tokio::task::spawn_blocking(move || overhear(&tapped, &ends, count));
    let heard = hearing.await.unwrap_or_else(|error| Err(error.into()));
    match heard {
        Ok(heard) => heard_of(&node.services, &heard),
        Err(error) => vec![Finding::warn(
            "TLS",
            format!("cannot look at the services' packets: {error}"),
            "run it as root (CAP_NET_RAW), or with --probe-tls, which dials each address once",
        )],
    }
}

fn heard_of(services: &[Service], heard: &[Heard]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut silent = Vec::new();
    for (service, heard) in services.iter().zip(heard) {
        match spoken(service, heard) {
            Some(finding) => findings.push(finding),
            None => silent.push(service.name.as_str()),
        }
    }
    if !silent.is_empty() {
        let what = format!(
            "not known: nothing passed within {} s ({}); look again under load, or with --probe-tls",
            PATIENCE.as_secs(),
            silent.join(", ")
        );
        findings.push(Finding::ok("TLS", what));
    }
    findings
}

/// What a service was heard to speak; nothing when nothing was heard.
fn spoken(service: &Service, heard: &Heard) -> Option<Finding> {
    let about = about(service);
    let &Heard {
        tls, http1, http2, ..
    } = heard;
    let all = heard.all();
    let finding = match (tls, http1, http2) {
        _ if all == 0 => return None,
        (0, 0, 0) => Finding::ok(
            about,
            format!("{all} packets heard: no TLS, and no beginning of an HTTP message"),
        ),
        (0, 1.., 0) => Finding::ok(about, "HTTP/1 in clear text is heard, no TLS"),
        (0, _, 1..) if service.protocol == Protocol::Grpc => {
            Finding::ok(about, "HTTP/2 in clear text is heard, no TLS")
        }
        (0, _, 1..) => Finding::warn(
            about,
            "HTTP/2 is heard: its connections are counted as `http2`, and not compared",
            "let clients speak HTTP/1.1 to be compared",
        ),
        (1.., 0, 0) => Finding::refuse(
            about,
            format!(
                "TLS is heard ({tls} of {all} packets begin a record): its requests cannot be rebuilt, only counted"
            ),
            WHERE_TO_TAP,
        ),
        (1.., _, _) => Finding::warn(
            about,
            "clear text is heard and TLS too: connections with TLS are counted as `tls`, and not compared",
            WHERE_TO_TAP,
        ),
    };
    Some(finding)
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

async fn probe(service: &Service, address: ServiceAddress) -> Finding {
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
            WHERE_TO_TAP,
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
    use mirror_base::check::Level;

    fn service(protocol: Protocol) -> Service {
        Service {
            name: "sentiment".to_owned(),
            id: 101,
            addresses: Vec::new(),
            protocol,
            stable_version: "v1".to_owned(),
            mirror: None,
            canary: None,
            look: None,
            rollout: None,
        }
    }

    /// How many payloads began as TLS, HTTP/1, HTTP/2 and anything else, and what is found.
    fn check([tls, http1, http2, other]: [u32; 4], protocol: Protocol, level: Level, words: &str) {
        let heard = Heard {
            tls,
            http1,
            http2,
            other,
        };
        let found = heard_of(&[service(protocol)], &[heard]);
        assert!(
            found.len() == 1 && found[0].level == level && found[0].what.contains(words),
            "{found:?}"
        );
    }

    #[test]
    fn what_is_heard_is_weighed() {
        use Protocol::{Grpc, Http};
        check(
            [0; 4],
            Http,
            Level::Ok,
            "nothing passed within 1 s (sentiment)",
        );
        check([0, 0, 0, 9], Http, Level::Ok, "9 packets heard: no TLS");
        check([0, 3, 0, 9], Http, Level::Ok, "HTTP/1 in clear text");
        check([0, 0, 1, 9], Http, Level::Warn, "HTTP/2 is heard");
        check([0, 0, 1, 9], Grpc, Level::Ok, "HTTP/2 in clear text");
        check(
            [3, 0, 0, 1],
            Http,
            Level::Refuse,
            "3 of 4 packets begin a record",
        );
        check([1, 2, 0, 0], Http, Level::Warn, "TLS too");
    }

    #[tokio::test]
    async fn tls_is_told_by_the_first_bytes_of_the_answer() {
        for (answer, level) in [
            (&[0x15, 3, 1, 0, 2, 2, 40][..], Level::Refuse),
            (b"HTTP/1.1 400 Bad Request\r\n", Level::Ok),
            (b"", Level::Ok),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let dialled = listener.local_addr().unwrap();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut hello = [0; CLIENT_HELLO.len()];
                stream.read_exact(&mut hello).await.unwrap();
                stream.write_all(answer).await.unwrap();
            });
            let address = ServiceAddress {
                ip: Some(dialled.ip()),
                port: dialled.port(),
            };
            let found = probe(&service(Protocol::Http), address).await;
            assert_eq!(found.level, level, "{found:?}");
        }
    }
}
