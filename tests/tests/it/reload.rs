//! Configs that are read again on SIGHUP.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{Process, Scene, eventually};

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
        let refused = status.contains("was not taken") && status.contains("simple");
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
    assert!(!status.contains("was not taken"), "{status}");
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
    says(&scene, &["refused", "`tarket`", "shadow.toml:"]);
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
}
