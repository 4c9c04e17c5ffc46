//! Interfaces that go away and come back.

use anyhow::{Result, ensure};
use tests::{Site, Topology, Watch, eventually, on, privileged, veth};

use super::{mirrors, small};

/// Cables a host to the node's device again, as [`Topology`] did.
fn connect(net: &Topology, device: &str) -> Result<()> {
    let (host, network, last) = match device {
        "eth0" => (&net.client, 0, 2),
        _ => (&net.shadow, 1, 9),
    };
    veth((&net.node, device), (host, "eth0"))?;
    for (namespace, device, last) in [(&net.node, device, 5), (host, "eth0", last)] {
        namespace.address(device, &format!("10.{network}.0.{last}/24"))?;
        namespace.address(device, &format!("fd00:{network}::{last}/64"))?;
    }
    Ok(())
}

#[test]
fn the_tapped_one_is_deleted_and_made_anew() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let mut sent = Vec::new();
        mirrors(site, &mut sent)?;
        site.net.node.ip("link delete eth0")?;
        let attached = "modelmirror_interface_attached";
        site.wait_for("its loss is noticed", |metrics| {
            metrics.sum(attached, &[]) == 0.0
        });
        connect(&site.net, "eth0")?;
        site.watch = Watch::start(&site.net.client)?;
        site.wait_for("it is tapped again", |metrics| {
            metrics.sum(attached, &[]) == 1.0
        });
        mirrors(site, &mut sent)
    });
}

#[test]
fn the_uplink_is_deleted_and_made_anew() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let mut sent = Vec::new();
        mirrors(site, &mut sent)?;
        let more = site.client.load_while(3, 20, small, || {
            site.net.node.ip("link delete eth1")?;
            refuses(site)?;
            connect(&site.net, "eth1")?;
            site.wait_for_agent();
            Ok(())
        })?;
        sent.extend(more);
        site.account(&sent)?;
        mirrors(site, &mut sent)
    });
}

#[test]
fn the_uplink_goes_down_and_up() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let mut sent = site.client.load_while(3, 20, small, || {
            site.net.node.ip("link set eth1 down")?;
            refuses(site)?;
            site.net.node.ip("link set eth1 up")?;
            site.wait_for_agent();
            Ok(())
        })?;
        site.account(&sent)?;
        mirrors(site, &mut sent)
    });
}

#[test]
fn the_route_is_taken_away_and_given_back() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let mut sent = site.client.load_while(3, 20, small, || {
            site.net.node.ip("route delete 10.1.0.0/24")?;
            refuses(site)?;
            site.net
                .node
                .ip("route add 10.1.0.0/24 dev eth1 src 10.1.0.5")?;
            site.wait_for_agent();
            Ok(())
        })?;
        site.account(&sent)?;
        mirrors(site, &mut sent)
    });
}

/// Without a way nothing is copied, which is counted, and nobody else is hurt.
fn refuses(site: &Site) -> Result<()> {
    site.wait_for("the agent is out of reach", |metrics| {
        metrics.sum("modelmirror_agent_up", &[]) == 0.0
    });
    let (copied, refused) = (site.packets("mirrored")?, site.packets("agent_down")?);
    eventually("packets are counted", || {
        let now = site.packets("agent_down")?;
        ensure!(now > refused + 100, "{now} after {refused}");
        Ok(())
    });
    let now = site.packets("mirrored")?;
    ensure!(now == copied, "{} were copied without a way", now - copied);
    Ok(())
}
