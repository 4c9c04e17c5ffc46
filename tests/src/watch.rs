//! A guard at the client's door: nothing may come in but what belongs there.

use anyhow::Result;

use crate::namespace::Namespace;

/// Counts every frame that comes in at a host's `eth0` and is neither a TCP segment of a service in
/// production, on the node, in its pod or behind a virtual address, nor address resolution: whatever the shadow, its agent or
/// the tunnel would send.
#[derive(Debug)]
pub struct Watch {
    namespace: Namespace,
}

impl Watch {
    /// Starts it. A device that is made anew needs another one.
    ///
    /// # Errors
    /// With what `nft` says.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        namespace.nft(RULES)?;
        Ok(Self {
            namespace: namespace.clone(),
        })
    }

    /// How many foreign frames have come in.
    ///
    /// # Errors
    /// With what `nft` says.
    pub fn foreign(&self) -> Result<u64> {
        self.namespace.nft_counter("netdev", "watch", "foreign")
    }
}

const RULES: &str = "
table netdev watch
delete table netdev watch
table netdev watch {
    counter foreign { }
    chain door {
        type filter hook ingress device eth0 priority 0
        ether type arp accept
        meta l4proto ipv6-icmp accept
        ip saddr { 10.0.0.5, 10.0.0.6, 10.2.0.8, 10.96.0.10 } tcp sport 8000-8003 accept
        ip6 saddr { fd00:0::5, fd00:2::8 } tcp sport 8000-8003 accept
        counter name foreign
    }
}
";
