//! Who talks to whom: addresses, endpoints, and the keyed hash that chooses connections.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::abi::shared;
use crate::siphash::siphash;

/// An IPv6 address, or an IPv4 address mapped into IPv6 (RFC 4291, 2.5.5.2).
///
/// Two lanes in network byte order, so that the kernel hashes and compares 64 bits at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address([u64; 2]);

// SAFETY: two integers.
unsafe impl crate::abi::Plain for Address {}

impl Address {
    /// From an IPv4 header's four bytes.
    #[inline(always)]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let [a, b, c, d] = octets;
        Self([0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])])
    }

    /// From an IPv6 header's sixteen bytes.
    #[inline(always)]
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self([
            u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            u64::from_ne_bytes([i, j, k, l, m, n, o, p]),
        ])
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub const fn is_ipv4(self) -> bool {
        self.0[0] == 0 && self.0[1] as u32 == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Four words in network byte order; of an IPv4 address, the last.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        let [high, low] = self.0;
        [
            high as u32,
            (high >> 32) as u32,
            low as u32,
            (low >> 32) as u32,
        ]
    }

    /// Its sixteen bytes as two little-endian words.
    #[inline(always)]
    pub const fn lanes(self) -> [u64; 2] {
        [self.0[0].to_le(), self.0[1].to_le()]
    }

    /// The sixteen bytes as they stand in an IPv6 header.
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.0[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.0[1].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        let v6 = Ipv6Addr::from(address.octets());
        v6.to_ipv4_mapped().map_or(Self::V6(v6), Self::V4)
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4(address.octets())
    }
}

shared! {
    /// One end of a TCP connection, and the key by which the kernel finds a service.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Endpoint {
        /// The address.
        pub address: Address,
        /// The port in host byte order; 32 bits wide so that the key has no padding in its middle.
        port: u32,
        pad: u32,
    }
}

impl Endpoint {
    /// None.
    pub const NONE: Self = Self::new(Address([0, 0]), 0);

    /// An address and a port in host byte order.
    #[inline(always)]
    pub const fn new(address: Address, port: u16) -> Self {
        Self {
            address,
            port: port as u32,
            pad: 0,
        }
    }

    /// The port in host byte order.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        self.port as u16
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip().into(), address.port())
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(endpoint: Endpoint) -> Self {
        Self::new(endpoint.address.into(), endpoint.port())
    }
}

shared! {
    /// A connection, named the same way by packets of both directions.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
    pub struct Flow {
        /// The end that dialled.
        pub client: Endpoint,
        /// The service's end.
        pub server: Endpoint,
    }
}

impl Flow {
    /// None.
    pub const NONE: Self = Self {
        client: Endpoint::NONE,
        server: Endpoint::NONE,
    };

    /// SipHash-1-3 (Aumasson and Bernstein, 2012) of both ends under `key`.
    ///
    /// Keyed, so that a client cannot choose its way into or out of the sample.
    #[inline(always)]
    pub fn hash(&self, key: [u64; 2]) -> u64 {
        let ports = ((self.client.port as u64) << 32) | self.server.port as u64;
        let words = [
            self.client.address.0[0],
            self.client.address.0[1],
            self.server.address.0[0],
            self.server.address.0[1],
            ports,
        ];
        siphash::<1, 3, 5>(key, &words)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn addresses_survive_the_round_trip(address in any::<IpAddr>()) {
            // A mapped IPv6 address is the IPv4 address: dual-stack listeners see both.
            prop_assert_eq!(IpAddr::from(Address::from(address)), address.to_canonical());
        }
    }
}
