//! Ports that we want to listen at.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener, UdpSocket};

use super::Finding;

/// The admin endpoints: free, and not for everybody.
pub(super) fn admin(address: SocketAddr) -> Vec<Finding> {
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

pub(super) fn tcp(key: &str, address: SocketAddr) -> Finding {
    finding(key, "TCP", address, TcpListener::bind(address).map(drop))
}

pub(super) fn udp(key: &str, address: SocketAddr) -> Finding {
    finding(key, "UDP", address, UdpSocket::bind(address).map(drop))
}

fn finding(key: &str, protocol: &str, address: SocketAddr, bound: io::Result<()>) -> Finding {
    let port = address.port();
    match bound.map_err(|error| (error.kind(), error)) {
        Ok(()) => Finding::ok(key, format!("{protocol} {address} is free")),
        Err((ErrorKind::AddrInUse, _)) => Finding::warn(
            key,
            format!("{protocol} {address} is taken"),
            format!(
                "nothing, if modelmirror already runs here; else choose another `{key}` (`ss -lnp sport = :{port}` shows whose it is)"
            ),
        ),
        Err((ErrorKind::AddrNotAvailable, _)) => Finding::refuse(
            key,
            format!("{} is no address of this host", address.ip()),
            format!("correct `{key}` (`ip address` lists what there is)"),
        ),
        Err((_, error)) => Finding::refuse(
            key,
            format!("cannot listen at {protocol} {address}: {error}"),
            format!("choose another `{key}`, or run with more rights"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Level;

    #[test]
    fn ports_are_tried() {
        let taken = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        assert_eq!(tcp("admin", taken).level, Level::Ok);
        let _listener = TcpListener::bind(taken).unwrap();
        assert_eq!(tcp("admin", taken).level, Level::Warn);
        let elsewhere = "192.0.2.1:1".parse().unwrap();
        assert_eq!(udp("listen", elsewhere).level, Level::Refuse);
        let open = admin("0.0.0.0:0".parse().unwrap());
        assert!(open[1].what.contains("from other hosts"), "{open:?}");
    }
}
