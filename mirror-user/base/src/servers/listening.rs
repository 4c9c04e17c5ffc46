//! Which listeners get what is sent to an address. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::config::ServiceAddress;
use crate::sock_diag::Listener;

/// How well a listener fits an address that is dialled: the kernel gives to the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    /// `[::]` takes IPv4 as well, unless it asked not to.
    BothFamilies,
    /// Any address of this family.
    AnyAddress,
    /// This very address.
    Exact,
}

/// How well a listener fits an address; nothing where it does not.
pub fn serves(listener: SocketAddr, address: ServiceAddress) -> Option<Fit> {
    let ip = listener.ip().to_canonical();
    let fit = match address.ip {
        None => Fit::Exact,
        Some(wanted) if wanted == ip => Fit::Exact,
        Some(wanted) if ip.is_unspecified() && wanted.is_ipv4() == ip.is_ipv4() => Fit::AnyAddress,
        Some(IpAddr::V4(_)) if ip.is_unspecified() => Fit::BothFamilies,
        Some(_) => return None,
    };
    (listener.port() == address.port).then_some(fit)
}

/// The inodes of the sockets that get what is sent to `address`. `local` has the addresses of this
/// host: what is sent elsewhere gets to no listener here, whatever its port.
pub fn sockets<'a>(
    address: ServiceAddress,
    listeners: &'a [Listener],
    local: &[IpAddr],
) -> impl Iterator<Item = u64> + use<'a> {
    let here = |ip: IpAddr| ip.is_loopback() || local.contains(&ip);
    let listeners = match address.ip {
        Some(ip) if !here(ip) => &[],
        _ => listeners,
    };
    let fit = move |listener: &Listener| serves(listener.address, address);
    let best = listeners.iter().filter_map(fit).max();
    let taken = listeners
        .iter()
        .filter(move |listener| best.is_some() && fit(listener) == best);
    taken.map(|listener| listener.inode)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(typed: &str) -> ServiceAddress {
        let (ip, port) = typed.rsplit_once(':').unwrap();
        ServiceAddress {
            ip: (ip != "*").then(|| ip.trim_matches(['[', ']']).parse().unwrap()),
            port: port.parse().unwrap(),
        }
    }

    /// The numbers of the listeners that get what is sent to an address.
    #[track_caller]
    fn check(sent_to: &str, listeners: &[&str], expected: &[u64]) {
        let listeners = (0..).zip(listeners).map(|(inode, at)| Listener {
            address: at.parse().unwrap(),
            inode,
        });
        let listeners: Vec<_> = listeners.collect();
        let local = ["10.0.0.5".parse().unwrap(), "fd00::5".parse().unwrap()];
        let found: Vec<u64> = sockets(address(sent_to), &listeners, &local).collect();
        assert_eq!(found, expected, "{sent_to} of {listeners:?}");
    }

    #[test]
    fn the_closest_listener_serves() {
        let all = ["[::]:80", "0.0.0.0:80", "10.0.0.5:80", "[fd00::5]:80"];
        check("10.0.0.5:80", &all, &[2]);
        check("127.0.0.1:80", &all, &[1]);
        check("[fd00::5]:80", &all, &[3]);
        check("[::1]:80", &all, &[0]);
        check("10.0.0.5:80", &["[::]:80", "[::1]:80"], &[0]);
        check("10.0.0.5:80", &["[::ffff:10.0.0.5]:80", "0.0.0.0:80"], &[0]);
        check("*:80", &all, &[0, 1, 2, 3]);
    }

    #[test]
    fn workers_with_sockets_of_their_own_all_serve() {
        check("10.0.0.5:80", &["10.0.0.5:80"; 3], &[0, 1, 2]);
        check("10.0.0.5:80", &["0.0.0.0:80"; 2], &[0, 1]);
    }

    #[test]
    fn nobody_else_does() {
        check("10.0.0.5:80", &["10.0.0.5:81", "127.0.0.1:80"], &[]);
        check("[::1]:80", &["0.0.0.0:80"], &[]);
        check("*:80", &["0.0.0.0:81"], &[]);
        // On another host, or in another network namespace.
        check("10.0.0.6:80", &["0.0.0.0:80", "[::]:80"], &[]);
    }
}
