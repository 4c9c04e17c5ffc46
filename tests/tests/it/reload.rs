//! Configs that are reloaded on SIGHUP.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{
    Agent, Answers, Exchange, Home, Outcome, Process, Scene, Server, Transport, eventually,
};

use crate::traffic::{is_not_mirrored, mirrors, small};

#[track_caller]
fn reload(process: &Process, file: &Path, config: &str) {
    fs::write(file, config).unwrap();
    process.signal(Signal::SIGHUP).unwrap();
}

#[test]
fn the_daemon_takes_a_new_config_and_refuses_a_bad_one() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    scene.count_copies();
    let mut sent = Vec::new();
    mirrors(&scene, &mut sent);
    let good = scene.node_config.to_string();
    let reload = |scene: &Scene, config: &str| {
        let daemon = scene.daemon();
        reload(&daemon.process, daemon.config(), config);
    };
    reload(&scene, &good.replace("sample", "simple"));
    eventually("the bad config is refused", || {
        let status = scene.modelmirror(&["status"]);
        let refused = status.contains("rejected") && status.contains("simple");
        ensure!(refused, "{status}");
        Ok(())
    });
    mirrors(&scene, &mut sent);
    let (sample, effective) = ("modelmirror_mirror_sample_ratio", [("of", "effective")]);
    scene.set_mirror("sample", 0.0);
    reload(&scene, &scene.node_config.to_string());
    scene.wait_for(sample, &effective, 0.0);
    is_not_mirrored(&scene, &mut sent);
    assert!(scene.packets("not_sampled") > 0, "{}", scene.node_metrics());
    let status = scene.modelmirror(&["status"]);
    assert!(!status.contains("rejected"), "{status}");
    reload(&scene, &good);
    scene.wait_for(sample, &effective, 1.0);
    mirrors(&scene, &mut sent);
}

/// Forty requests that an agent which has just begun compares, as its config wants it: the records
/// name the shadow so.
#[track_caller]
fn compares_as(scene: &Scene, version: &str) {
    eventually("a new agent has heard of the tap", || {
        let metrics = scene.agent().metrics()?;
        let compared = scene.agent().requests("compared")?;
        let known = metrics.has("modelmirror_shadow_tunnel_sent_packets_total", &[]);
        let output = scene.agent().process.output();
        ensure!(known && compared == 0, "{metrics}\n{output}");
        Ok(())
    });
    scene.wait_for_agent();
    let before = scene.agent().records().unwrap().len();
    let sent = scene.load(4, 10, small);
    let records = eventually("all are compared and written", || {
        let records = scene.agent().records()?;
        let count = records.len();
        ensure!(count == before + sent.len(), "{count} after {before}");
        Ok(records)
    });
    for record in &records[before..] {
        assert_eq!(record["shadow"]["version"], version, "{record}");
        assert_eq!(record["verdict"], "match", "{record}");
    }
    let metrics = scene.shadow_metrics();
    let requests = metrics.sum("modelmirror_shadow_requests_total", &[]);
    assert_eq!(requests as usize, sent.len(), "{metrics}");
}

#[test]
fn the_agent_takes_a_new_config_and_refuses_a_bad_one() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    let mut sent = Vec::new();
    mirrors(&scene, &mut sent);
    let good = scene.shadow_config.to_string();
    let reload = |scene: &Scene, config: &str| {
        let agent = scene.agent();
        reload(&agent.process, agent.config(), config);
    };
    let says = |scene: &Scene, words: &[&str]| {
        eventually("it says why", || {
            let said = scene.agent().process.output();
            ensure!(words.iter().all(|word| said.contains(word)), "{said}");
            Ok(())
        });
    };
    // Nothing of it is taken: not even the figures begin anew.
    reload(&scene, &good.replace("target", "tarket"));
    says(&scene, &["reload rejected", "`tarket`", "shadow.toml:"]);
    mirrors(&scene, &mut sent);

    // One that can be read, but not run, on this host: the model has that port.
    let original = scene.shadow_config.clone();
    scene.set_shadow("record_dir", "/proc/records");
    let no_folder = scene.shadow_config.to_string();
    scene.shadow_config = original.clone();
    scene.set_shadow("admin", "[::1]:8000");
    let port_taken = scene.shadow_config.to_string();
    scene.shadow_config = original;
    let not_ours = good.replace("[::]:6181", "192.0.2.1:6181");
    let overlaps = good.replace("[::]:6181", "127.0.0.1:6181");
    let cases = [
        (&not_ours, ["cannot run", "UDP 192.0.2.1:6181"]),
        (&overlaps, ["UDP 127.0.0.1:6181", "[::]:6181"]),
        (&port_taken, ["[::1]:8000", "`admin`"]),
        (&no_folder, ["cannot run", "/proc/records"]),
    ];
    for (config, words) in cases {
        // Open connections are followed as if nothing had been asked.
        sent.extend(scene.load_while(2, small, |scene| {
            scene.wait_for_packets("mirrored");
            reload(scene, config);
            says(scene, &words);
            scene.wait_for_packets("mirrored");
        }));
        scene.account(&sent);
        scene.complete(&sent, &[]);
    }

    scene.set_shadow_service("version", "v14");
    reload(&scene, &scene.shadow_config.to_string());
    compares_as(&scene, "v14");
    // It is the new one that people ask, and its rules that the log has.
    let status = scene.agent().status("text").unwrap();
    assert!(status.contains("v14 in the shadow of v12"), "{status}");
    let said = scene.agent().process.output();
    let rules = said.lines().filter(|line| line.contains("rules in force"));
    let versions = rules.map(|line| line.contains("v14")).collect::<Vec<_>>();
    assert_eq!(versions, [false, true], "{said}");
}

/// Has the daemon mirror to another address, in the middle of requests, and sends one more as soon as it
/// does: the agent there compares it.
#[track_caller]
fn moves(scene: &mut Scene, sent: &mut Vec<Exchange>, address: &str, agent: &Agent) {
    scene.set_mirror("agent", address);
    let mut first = Vec::new();
    sent.extend(scene.load_while(3, small, |scene| {
        scene.wait_for_packets("mirrored");
        let daemon = scene.daemon();
        reload(
            &daemon.process,
            daemon.config(),
            &scene.node_config.to_string(),
        );
        eventually("copies are for the other agent", || {
            let (metrics, labels) = (scene.daemon().metrics()?, [("agent", address)]);
            // Rings take copies before the agent is reached.
            let is_so = match Transport::of_this_run() {
                Transport::Stream => metrics.has("modelmirror_agent_up", &labels),
                Transport::Geneve => metrics.sum("modelmirror_agent_up", &labels) == 1.0,
            };
            ensure!(is_so, "{metrics}");
            Ok(())
        });
        first = scene.load(1, 1, small);
        scene.wait_for_packets("mirrored");
    }));
    let id = first[0].id.clone();
    sent.extend(first);
    eventually("it is compared there", || {
        let records = agent.records()?;
        let is_there = records.iter().any(|record| record["request_id"] == *id);
        ensure!(is_there, "{id} is none of {}", records.len());
        Ok(())
    });
}

#[test]
fn copies_go_to_another_agent_and_back() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    // Connections whose other half goes elsewhere.
    scene.give_up_soon();
    let (host, home) = (scene.net.other_shadow().unwrap(), Home::new().unwrap());
    let model = "127.0.0.1:8000".parse().unwrap();
    let _model = Server::start(&host, model, &Answers::of("v13")).unwrap();
    let mut config = scene.shadow_config.clone();
    config["record_dir"] = home.record_dir().to_string_lossy().into_owned().into();
    let other = Agent::start(&host, &home, &config).unwrap();
    scene.start();
    let agent = scene.agent.take().unwrap();
    let mut sent = Vec::new();
    moves(&mut scene, &mut sent, "10.3.0.9:6181", &other);
    moves(&mut scene, &mut sent, "10.1.0.9:6181", &agent);
    scene.serves(&sent);
    let mut compared = 0;
    for agent in [agent, other] {
        let outcome = eventually("its ledgers close", || Outcome::closed(agent.metrics()?));
        assert_eq!(outcome.copies("lost"), 0, "{}", outcome.metrics);
        compared += outcome.requests("compared");
    }
    // Datagrams are sent once the agent has answered.
    if Transport::of_this_run() == Transport::Stream {
        // Of each connection that was open at a move, the request that was under way.
        let least = sent.len() as u64 - 6;
        assert!(
            (least..=sent.len() as u64).contains(&compared),
            "{compared} of {}",
            sent.len()
        );
        for reason in ["no_ring", "ring_full", "stale"] {
            assert_eq!(scene.packets(reason), 0, "{}", scene.node_metrics());
        }
    }
}
