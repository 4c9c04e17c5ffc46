//! Preflight: whether a host is ready for its config, and the cure where it is not.
//!
//! Facts are read at the edge (netlink, /proc, the disk); what they mean is decided by small
//! functions from facts to findings.

mod agent;
mod api;
mod canary;
mod files;
mod interfaces;
mod kernel;
mod memory;
mod overhear;
mod ring;
mod services;
mod tls;

use std::collections::BTreeSet;

use mirror_base::check::{Findings, listeners};

use crate::config::Node;
use crate::daemon::Against;
use crate::netlink::Netlink;

/// What is looked at only when asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Dial each service once, to see whether it speaks TLS, rather than look at what passes.
    pub probe_tls: bool,
}

/// Looks whether an inference node is ready.
///
/// # Errors
/// When the kernel cannot be asked through netlink.
pub async fn node(node: &Node, options: Options) -> anyhow::Result<Findings> {
    let netlink = Netlink::open()?;
    let host = netlink.addresses().await?;
    let mut tapped = BTreeSet::new();
    for name in &node.interfaces {
        tapped.extend(netlink.link(name).await?.map(|link| link.index));
    }
    let mut findings = kernel::findings(&kernel::Kernel::read(&node.pin_dir));
    findings.extend(files::node(node));
    findings.extend(listeners::admin(node.admin));
    for name in &node.interfaces {
        findings.extend(interfaces::findings(&netlink, name, node).await?);
    }
    let against = Against::of(&netlink, node).await?;
    findings.extend(interfaces::pairs(&against.pairs));
    findings.extend(services::findings(node, &host, &tapped));
    findings.extend(canary::unreached(&against.canaries));
    findings.extend(against.hidden.as_deref().map(canary::hidden));
    let receivers = against.receivers.iter();
    findings.extend(receivers.filter_map(|(name, lro)| canary::merged(name, *lro)));
    findings.extend(canary::findings(&netlink, node, &host).await?);
    let tls = async {
        if options.probe_tls {
            tls::ask(node).await
        } else {
            tls::hear(node, &host, &tapped).await
        }
    };
    // All wait for others, for about a second.
    let agents = agent::findings(&netlink, node);
    let (tls, agents, rings) = tokio::join!(tls, agents, ring::findings(node));
    findings.extend(tls);
    findings.extend(agents?);
    findings.extend(rings);
    Ok(findings.into())
}
