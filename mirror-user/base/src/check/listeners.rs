//! Ports that we want to listen at.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};

use super::Finding;
use crate::config::collide;
use crate::{servers, sock_diag};

/// The admin endpoints: free, and not for everybody.
pub fn admin(address: SocketAddr) -> Vec<Finding> {
    let mut findings = vec![tcp("admin", address)];
    if !address.ip().is_loopback() {
        findings.push(Finding::warn(
            "admin",
            format!("{address} can be reached from other hosts, without a password"),
            format!(
                "bind it to 127.0.0.1:{}, or let a firewall guard it",
                address.port()
            ),
        ));
    }
    findings
}

/// Whether we can listen at a TCP port.
pub fn tcp(key: &str, address: SocketAddr) -> Finding {
    let bound = TcpListener::bind(address).map(drop);
    finding(key, "TCP", address, bound, || owner(&tcp_sockets(address)))
}

/// Whether we can listen at a UDP port.
pub fn udp(key: &str, address: SocketAddr) -> Finding {
    let bound = UdpSocket::bind(address).map(drop);
    finding(key, "UDP", address, bound, || owner(&udp_sockets(address)))
}

/// A process that listens where we want to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    name: String,
    pid: i32,
}

fn finding(
    key: &str,
    protocol: &str,
    address: SocketAddr,
    bound: io::Result<()>,
    owner: impl FnOnce() -> Option<Owner>,
) -> Finding {
    let Err(error) = bound else {
        return Finding::ok(key, format!("{protocol} {address} is free"));
    };
    match error.kind() {
        ErrorKind::AddrInUse => taken(key, &format!("{protocol} {address}"), owner()),
        ErrorKind::AddrNotAvailable => Finding::refuse(
            key,
            format!("{} is no address of this host", address.ip()),
            format!("correct `{key}` (`ip address` lists what there is)"),
        ),
        _ => Finding::refuse(
            key,
            format!("cannot listen at {protocol} {address}: {error}"),
            format!("choose another `{key}`, or run with more rights"),
        ),
    }
}

fn taken(key: &str, place: &str, owner: Option<Owner>) -> Finding {
    let cure = format!("choose another `{key}`");
    match owner {
        Some(Owner { name, pid }) if name == "modelmirror" => {
            Finding::ok(key, format!("{place}: modelmirror runs (pid {pid})"))
        }
        Some(Owner { name, pid }) => {
            Finding::refuse(key, format!("{place} is taken by {name} (pid {pid})"), cure)
        }
        None => Finding::refuse(
            key,
            format!("{place} is taken, by whom cannot be seen"),
            cure,
        ),
    }
}

/// Inodes of the sockets that keep us from listening at `wanted`.
fn tcp_sockets(wanted: SocketAddr) -> BTreeSet<u64> {
    let listeners = sock_diag::listeners().unwrap_or_default().into_iter();
    let taken = listeners.filter(|listener| collide(listener.address, wanted));
    taken.map(|listener| listener.inode).collect()
}

fn udp_sockets(wanted: SocketAddr) -> BTreeSet<u64> {
    let entries = [procfs::net::udp(), procfs::net::udp6()];
    let bound = entries
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| collide(entry.local_address, wanted));
    bound.map(|entry| entry.inode).collect()
}

/// The process that holds one of these sockets, where we may see it.
fn owner(sockets: &BTreeSet<u64>) -> Option<Owner> {
    let (pid, _) = servers::holders(sockets).ok()?.pop_first()?;
    let name = servers::name(pid)?;
    Some(Owner { name, pid })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn ports_are_tried_and_their_owners_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let found = tcp("admin", address);
        let pid = format!("(pid {})", std::process::id());
        assert!(
            found.level == Level::Refuse && found.what.contains(&pid),
            "{found:?}"
        );
        drop(listener);
        assert_eq!(tcp("admin", address).level, Level::Ok);

        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = udp("listen", socket.local_addr().unwrap());
        assert!(found.what.contains(&pid), "{found:?}");
        let elsewhere = "192.0.2.1:1".parse().unwrap();
        assert_eq!(udp("listen", elsewhere).level, Level::Refuse);
        let open = admin("0.0.0.0:0".parse().unwrap());
        assert!(open[1].what.contains("from other hosts"), "{open:?}");
    }

    #[test]
    fn a_modelmirror_that_runs_is_no_trouble() {
        let owner = |name: &str| {
            let name = name.to_owned();
            Some(Owner { name, pid: 7 })
        };
        let found = taken("admin", "TCP 127.0.0.1:9469", owner("modelmirror"));
        assert_eq!(
            (found.level, found.what.as_str()),
            (Level::Ok, "TCP 127.0.0.1:9469: modelmirror runs (pid 7)")
        );
        let found = taken("admin", "TCP 127.0.0.1:9469", owner("nginx"));
        assert_eq!(
            (found.level, found.what.as_str()),
            (
                Level::Refuse,
                "TCP 127.0.0.1:9469 is taken by nginx (pid 7)"
            )
        );
    }
}
