//! What waits in rings: until another agent comes, until another daemon comes, and until they are full.
//! This is about streams alone.

use anyhow::ensure;
use mirror_base::transport::keys::{Existing, PrivateKey};
use nix::sys::signal::Signal;
use tests::{Agent, Exchange, Scene, Transport, eventually};

use crate::traffic::{mirrors, small};

/// A scene of which nothing has started, where this run is about streams.
fn scene() -> Option<Scene> {
    (Transport::of_this_run() == Transport::Stream).then(Scene::new)?
}

/// Three connections' requests while the agent sleeps, until so many packets have this reason.
#[track_caller]
fn load_of_a_sleeper(scene: &mut Scene, reason: &str) -> Vec<Exchange> {
    scene.load_while(3, small, |scene| {
        scene.agent().process.signal(Signal::SIGSTOP).unwrap();
        scene.wait_for("modelmirror_agent_up", &[], 0.0);
        scene.wait_for_packets(reason);
    })
}

/// Who pretends to be the agent is told nothing and given nothing; it all waits for the one whose key the
/// config trusts.
#[test]
fn an_agent_with_another_key_gets_nothing() {
    let Some(mut scene) = scene() else {
        return;
    };
    let other = scene.home.path().join("other.key");
    PrivateKey::create(&other, Existing::Keep).unwrap();
    let mut config = scene.shadow_config.clone();
    config["key_file"] = other.to_string_lossy().into_owned().into();
    let stranger = Agent::start(&scene.net.shadow, &scene.home, &config).unwrap();
    scene.start_daemon(&[]);
    eventually("the other key is named", || {
        let metrics = scene.node_metrics();
        let others = metrics.sum("modelmirror_agent_other_keys_total", &[]);
        let said = scene.daemon().process.output();
        ensure!(
            others > 0.0 && said.contains("agent shows another key"),
            "{metrics}\n{said}"
        );
        Ok(())
    });
    let mut sent = scene.load(4, 5, small);
    let metrics = stranger.metrics().unwrap();
    assert_eq!(
        metrics.sum("modelmirror_shadow_tunnel_packets_total", &[]),
        0.0,
        "{metrics}"
    );
    drop(stranger);
    scene.start_model(&tests::Answers::of("v13"));
    scene.start_agent();
    scene.wait_for_agent();
    scene.complete(&sent, &[]);
    mirrors(&scene, &mut sent);
}

/// The daemon that comes next ships what the last one has left.
#[test]
fn a_killed_daemon_s_successor_ships_what_waits() {
    let Some(mut scene) = scene() else {
        return;
    };
    scene.start();
    let mut sent = load_of_a_sleeper(&mut scene, "mirrored");
    scene.end_daemon(Signal::SIGKILL);
    scene.start_daemon(&[]);
    scene.agent().process.signal(Signal::SIGCONT).unwrap();
    scene.wait_for_agent();
    scene.account(&sent);
    scene.complete(&sent, &[]);
    mirrors(&scene, &mut sent);
}

/// A full ring costs copies, by name, and nothing else; those that it holds arrive.
#[test]
fn a_full_one_stops_there() {
    let Some(mut scene) = scene() else {
        return;
    };
    scene.node_config.insert("ring".into(), "1MiB".into());
    scene.give_up_soon();
    scene.start();
    let mut sent = load_of_a_sleeper(&mut scene, "ring_full");
    scene.agent().process.signal(Signal::SIGCONT).unwrap();
    scene.wait_for_agent();
    let outcome = scene.account(&sent);
    assert_eq!(outcome.copies("lost"), 0, "{}", outcome.metrics);
    let compared = outcome.requests("compared");
    assert!(
        (1..sent.len() as u64).contains(&compared),
        "{compared} of {}",
        sent.len()
    );
    mirrors(&scene, &mut sent);
}
