//! Traffic that must not be mirrored: the mirror's own.

use anyhow::{Context, Result, ensure};
use tests::{Agent, Client, Daemon, Home, Server, Site, eventually, on, privileged};

use super::{mirrors, small};

/// The copies that the tap says it sent are the packets that it copied, each once.
fn copied_once(site: &Site) -> Result<()> {
    let metrics = site.node_metrics()?;
    let sent = metrics.sum("modelmirror_tunnel_sent_packets_total", &[]);
    let copied = metrics.sum("modelmirror_mirrored_packets_total", &[]);
    ensure!(
        sent == copied,
        "{sent} copies of {copied} packets\n{metrics}"
    );
    let tunnel = [("service", "none"), ("reason", "tunnel")];
    let own = metrics.sum("modelmirror_packets_total", &tunnel);
    ensure!(own > 0.0, "no packet of the tunnel was seen\n{metrics}");
    Ok(())
}

#[test]
fn a_request_of_a_shadow_s_is_dropped() {
    if !privileged() {
        return;
    }
    on(Site::start(), |site| {
        let mut sent = site.client.load(2, 5, |connection, index| {
            small(connection, index).header("x-modelmirror-shadow", "1")
        })?;
        let outcome = site.account(&sent)?;
        ensure!(outcome.requests("loop") == 10, "{}", outcome.metrics);
        ensure!(site.shadowed().is_empty(), "{:?}", site.shadowed());
        mirrors(site, &mut sent)
    });
}

/// Each host's model is the other's shadow, and each taps all that reaches its model.
#[test]
fn two_nodes_shadow_each_other() {
    if !privileged() {
        return;
    }
    let taps_lo = |node: &mut toml::Table| {
        node.insert("interfaces".into(), vec!["eth0", "lo"].into());
    };
    on(Site::with(taps_lo, |_| {}), |site| {
        let home = Home::new()?;
        let (mut node, mut shadow) = (home.node_config(), home.shadow_config());
        taps_lo(&mut node);
        node["service"][0]["mirror"]["agent"] = "10.1.0.5:6181".into();
        shadow["allow"] = vec!["10.1.0.9/32"].into();
        let agent = Agent::start(&site.net.node, &home, &shadow)?;
        let daemon = Daemon::start(&site.net.shadow, &home, &node)?;
        daemon.wait_for_agent()?;
        let sent = site.client.load(4, 10, small)?;
        site.account(&sent)?;
        eventually("what was replayed is seen by the other node", || {
            let loops = agent.requests("loop")?;
            ensure!(loops == 40, "{loops} of 40\n{}", agent.metrics()?);
            Ok(())
        });
        ensure!(agent.requests("compared")? == 0, "{}", agent.metrics()?);
        // Neither model was asked more than once for each request.
        ensure!(site.shadowed().len() == 40, "{}", site.shadowed().len());
        site.serves(&sent)
    });
}

/// Clients, agent and shadow on the node itself: all of it goes over `lo`, which is tapped.
#[test]
fn the_agent_is_on_the_same_host() {
    if !privileged() {
        return;
    }
    on(Site::quiet(), |site| {
        let (mut node, mut shadow) = (site.node_config(), site.home.shadow_config());
        node["interfaces"] = vec!["lo"].into();
        node["service"][0]["mirror"]["agent"] = "127.0.0.1:6181".into();
        shadow["allow"] = vec!["127.0.0.0/8"].into();
        shadow["service"][0]["target"] = "127.0.0.1:8001".into();
        let answers = tests::Answers::of("v13");
        let model = Server::start(&site.net.node, "127.0.0.1:8001".parse()?, &answers)?;
        site.shadow = Some(model);
        site.agent = Some(Agent::start(&site.net.node, &site.home, &shadow)?);
        site.start_daemon(&node)?;
        site.wait_for_agent();
        let production = "127.0.0.1:8000".parse()?;
        site.client = Client::new(&site.net.node, production, site.production.answers());
        mirrors(site, &mut Vec::new())?;
        copied_once(site)
    });
}

/// Clients and agent are behind the same interface: copies leave where they were tapped.
#[test]
fn the_uplink_is_tapped() {
    if !privileged() {
        return;
    }
    let one_interface = |node: &mut toml::Table| {
        node.insert("interfaces".into(), vec!["eth1"].into());
    };
    on(Site::with(one_interface, |_| {}), |site| {
        let daemon = site.daemon.as_ref().context("no daemon")?;
        daemon.wait_for_agent()?;
        let production = "10.1.0.5:8000".parse()?;
        site.client = Client::new(&site.net.shadow, production, site.production.answers());
        let mut sent = Vec::new();
        mirrors(site, &mut sent)?;
        copied_once(site)
    });
}
