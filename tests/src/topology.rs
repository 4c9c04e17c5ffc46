//! The three hosts of the design's picture.

use anyhow::Result;

use crate::namespace::{Namespace, veth};

/// A client, an inference node and a shadow host; two cables, and no route between them:
///
/// ```text
/// client eth0 ───────────── eth0 node eth1 ───────────── eth0 shadow
/// 10.0.0.2         10.0.0.5      │      10.1.0.5          10.1.0.9
/// fd00:0::2        fd00:0::5     │      fd00:1::5         fd00:1::9
/// ```
#[derive(Debug)]
pub struct Topology {
    /// Where requests come from.
    pub client: Namespace,
    /// Where the model in production answers.
    pub node: Namespace,
    /// Where the shadow and its agent are.
    pub shadow: Namespace,
}

impl Topology {
    /// Makes and connects the hosts.
    ///
    /// # Errors
    /// Needs root and the program `ip`.
    pub fn new() -> Result<Self> {
        let net = Self {
            client: Namespace::new("client")?,
            node: Namespace::new("node")?,
            shadow: Namespace::new("shadow")?,
        };
        net.cable("eth0")?;
        net.cable("eth1")?;
        Ok(net)
    }

    /// Connects the node's `eth0` to the client, or its `eth1` to the shadow host: again, once the
    /// device is gone.
    ///
    /// # Errors
    /// As [`Topology::new`].
    pub fn cable(&self, device: &str) -> Result<()> {
        let (host, network, last) = match device {
            "eth0" => (&self.client, 0, 2),
            _ => (&self.shadow, 1, 9),
        };
        join((&self.node, device, 5), (host, "eth0", last), network)
    }

    /// A pod on the node, behind a cable of its own; the node routes between it and the client:
    ///
    /// ```text
    /// node pod0 ───────────── eth0 pod
    /// 10.2.0.5           10.2.0.8
    /// fd00:2::5         fd00:2::8
    /// ```
    ///
    /// # Errors
    /// As [`Topology::new`].
    pub fn pod(&self) -> Result<Namespace> {
        let pod = Namespace::new("pod")?;
        join((&self.node, "pod0", 5), (&pod, "eth0", 8), 2)?;
        self.node.sysctl("net/ipv4/ip_forward", "1")?;
        self.node.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for (host, network) in [(&self.client, 0), (&pod, 2)] {
            host.ip(&format!("route add default via 10.{network}.0.5"))?;
            host.ip(&format!("route add default via fd00:{network}::5"))?;
        }
        Ok(pod)
    }

    /// Another shadow host, behind a cable of its own:
    ///
    /// ```text
    /// node eth3 ───────────── eth0 other
    /// 10.3.0.5           10.3.0.9
    /// ```
    ///
    /// # Errors
    /// As [`Topology::new`].
    pub fn other_shadow(&self) -> Result<Namespace> {
        let other = Namespace::new("other")?;
        join((&self.node, "eth3", 5), (&other, "eth0", 9), 3)?;
        Ok(other)
    }

    /// A second way to the shadow host, by a router that passes on no more than `mtu` bytes at once and
    /// says so to whoever sends more; neither end's own link tells:
    ///
    /// ```text
    /// node eth4 ───────── eth0 router eth1 ───────── eth1 shadow
    /// 10.4.0.5      10.4.0.1      10.5.0.1      10.5.0.9
    /// fd00:4::5    fd00:4::1      fd00:5::1    fd00:5::9
    /// ```
    ///
    /// # Errors
    /// As [`Topology::new`].
    pub fn router(&self, mtu: u32) -> Result<Namespace> {
        let router = Namespace::new("router")?;
        join((&self.node, "eth4", 5), (&router, "eth0", 1), 4)?;
        join((&router, "eth1", 1), (&self.shadow, "eth1", 9), 5)?;
        router.sysctl("net/ipv4/ip_forward", "1")?;
        router.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        for (host, network, device, far) in
            [(&self.node, 4, "eth0", 5), (&self.shadow, 5, "eth1", 4)]
        {
            host.ip(&format!("route add 10.{far}.0.0/24 via 10.{network}.0.1"))?;
            host.ip(&format!("route add fd00:{far}::/64 via fd00:{network}::1"))?;
            let to = format!("dev {device} mtu {mtu}");
            router.ip(&format!("route replace 10.{network}.0.0/24 {to}"))?;
            router.ip(&format!("route replace fd00:{network}::/64 {to} metric 10"))?;
        }
        Ok(router)
    }

    /// Has both ends of the clients' cable send, and the node receive, segments one by one: full
    /// packets of 1,500 bytes without GSO, where veth would hand on super-packets.
    ///
    /// # Errors
    /// With what `ethtool` says.
    pub fn lone_segments(&self) -> Result<()> {
        for host in [&self.client, &self.node] {
            host.ethtool("-K eth0 tso off gso off gro off")?;
        }
        Ok(())
    }
}

/// A cable between two hosts, and on each the device's address in a network of this number, by its last
/// byte.
fn join(one: (&Namespace, &str, u8), other: (&Namespace, &str, u8), network: u8) -> Result<()> {
    veth((one.0, one.1), (other.0, other.1))?;
    for (host, device, last) in [one, other] {
        host.address(device, &format!("10.{network}.0.{last}/24"))?;
        host.address(device, &format!("fd00:{network}::{last}/64"))?;
    }
    Ok(())
}
