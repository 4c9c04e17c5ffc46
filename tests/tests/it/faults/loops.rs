//! Traffic that must not be mirrored: the mirror's own.

use anyhow::ensure;
use tests::{Agent, Answers, Client, Daemon, Home, Scene, Server, eventually};

use crate::traffic::{mirrors, small};

/// The copies that the tap says it sent are the packets that it copied, each once.
#[track_caller]
fn copied_once(scene: &Scene) {
    let metrics = scene.node_metrics();
    let sent = metrics.sum("modelmirror_tunnel_sent_packets_total", &[]);
    let copied = metrics.sum("modelmirror_mirrored_packets_total", &[]);
    assert_eq!(sent, copied, "copies of packets\n{metrics}");
    let tunnel = [("service", "none"), ("reason", "tunnel")];
    let own = metrics.sum("modelmirror_packets_total", &tunnel);
    assert!(own > 0.0, "no packet of the tunnel was seen\n{metrics}");
}

#[test]
fn a_client_cannot_opt_out() {
    let Some(scene) = Scene::started() else {
        return;
    };
    let sent = scene.load(2, 5, |connection, index| {
        small(connection, index).header("x-modelmirror-shadow", "1")
    });
    let outcome = scene.settle();
    let (matching, loops) = (outcome.verdicts("match"), outcome.requests("loop"));
    assert_eq!((matching, loops), (10, 0), "{}", outcome.metrics);
    scene.serves(&sent);
    assert_eq!(scene.shadowed().len(), sent.len());
}

/// Each host's model is the other's shadow, and each taps all that reaches its model: a request comes round once.
#[test]
fn two_nodes_shadow_each_other() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_interfaces(&["eth0", "lo"]);
    scene.start();
    let (home, net) = (Home::new().unwrap(), &scene.net);
    let (mut node, shadow) = (home.node_config(), home.shadow_config());
    node["interfaces"] = vec!["eth0", "lo"].into();
    node["service"][0]["mirror"]["agent"] = "10.1.0.5:6181".into();
    let agent = Agent::start(&net.node, &home, &shadow).unwrap();
    let daemon = Daemon::start(&net.shadow, &home, &node).unwrap();
    daemon.wait_for_agent().unwrap();
    let sent = scene.load(4, 10, small);
    eventually("what comes back is known", || {
        let metrics = scene.agent().metrics()?;
        let requests = |outcome| scene.agent().requests(outcome);
        let (compared, loops) = (requests("compared")?, requests("loop")?);
        ensure!(
            (compared, loops) == (40, 40),
            "{compared} and {loops}\n{metrics}"
        );
        let compared = agent.requests("compared")?;
        ensure!(compared == 40, "{compared} of 40\n{}", agent.metrics()?);
        Ok(())
    });
    // The clients' requests, and once each what the other node's agent makes of the copies.
    assert_eq!(agent.requests("loop").unwrap(), 0);
    assert_eq!(scene.shadowed().len(), 40);
    assert_eq!(scene.production.received().len(), 80);
    assert_eq!(sent.len(), 40);
}

/// Clients, agent and shadow on the node itself: all of it goes over `lo`, which is tapped.
#[test]
fn the_agent_is_on_the_same_host() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_interfaces(&["lo"]);
    scene.set_mirror("agent", "127.0.0.1:6181");
    scene.set_shadow_service("target", "127.0.0.1:8001");
    let (node, home) = (&scene.net.node, &scene.home);
    let model = Server::start(node, "127.0.0.1:8001".parse().unwrap(), &Answers::of("v13"));
    scene.model = Some(model.unwrap());
    scene.agent = Some(Agent::start(node, home, &scene.shadow_config).unwrap());
    scene.client = Client::new(
        node,
        "127.0.0.1:8000".parse().unwrap(),
        scene.production.answers(),
    );
    scene.start();
    mirrors(&scene, &mut Vec::new());
    copied_once(&scene);
}

/// Clients and agent are behind the same interface: copies leave where they were tapped.
#[test]
fn the_uplink_is_tapped() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_interfaces(&["eth1"]);
    scene.start();
    let production = "10.1.0.5:8000".parse().unwrap();
    scene.client = Client::new(&scene.net.shadow, production, scene.production.answers());
    mirrors(&scene, &mut Vec::new());
    copied_once(&scene);
}
