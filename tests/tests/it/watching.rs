//! What somebody who watches a canary is told: what its share has come to, and whether it can.

use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Trial, eventually, large, skip};

/// The canary as `status --output json` describes it.
#[track_caller]
fn canary(trial: &Trial) -> Value {
    let status = trial.scene.modelmirror(&["status", "--output", "json"]);
    let status: Value = serde_json::from_str(&status).unwrap();
    status["services"][0]["canary"].clone()
}

/// The canary's achieved part of connections, requests and bytes.
#[track_caller]
fn achieved(trial: &Trial) -> Vec<f64> {
    let metrics = trial.scene.node_metrics();
    let ratios = metrics.by("modelmirror_canary_achieved_ratio", "by");
    ratios.into_iter().map(|(_, ratio)| ratio).collect()
}

/// Neither version has done anything.
const NOTHING: [f64; 0] = [];

#[test]
fn what_is_achieved_is_what_came_since_the_share_changed() {
    let Some(mut trial) = Trial::new() else {
        return;
    };
    assert_eq!(achieved(&trial), NOTHING);
    trial.set("1");
    trial.scene.client.load(10, 2, large).unwrap();
    trial.wait_for_responses([0, 20]);
    assert_eq!(achieved(&trial), [1.0; 3]);
    trial.set("0");
    assert_eq!(achieved(&trial), NOTHING, "nothing has come at this share");
    trial.scene.client.load(10, 2, large).unwrap();
    trial.wait_for_responses([20, 20]);
    assert_eq!(achieved(&trial), [0.0; 3]);
    assert_eq!(trial.connections(), [10, 10], "the counters go on");
    assert!(canary(&trial)["share"]["achieved"]["seconds"].as_f64() > Some(0.0));

    // The next daemon knows the counters, and not what they were when the share changed.
    trial.scene.end_daemon(Signal::SIGTERM);
    trial.scene.start_daemon(&[]);
    assert_eq!(achieved(&trial), NOTHING);
    trial.scene.client.load(10, 2, large).unwrap();
    trial.wait_for_responses([20, 0]);
    assert_eq!(achieved(&trial), [0.0; 3]);
}

/// Waits until the status warns of few keys, in these words; without words, until it does not.
#[track_caller]
fn wait_for_warning(trial: &Trial, words: &[&str]) {
    eventually(&format!("the status warns: {words:?}"), || {
        let status = trial.scene.modelmirror(&["status"]);
        let warned = status.contains("no share can be reached");
        ensure!(warned != words.is_empty(), "{status}");
        for words in words {
            ensure!(status.contains(words), "{words:?} is not in\n{status}");
        }
        Ok(())
    });
}

#[track_caller]
fn gauge(trial: &Trial, name: &str) -> f64 {
    let metrics = trial.scene.node_metrics();
    assert!(metrics.has(name, &[("service", "digits")]), "{metrics}");
    metrics.sum(name, &[])
}

#[test]
fn one_address_that_brings_everything_is_named() {
    let Some(trial) = Trial::with(|canary| {
        canary.insert("affinity".into(), "client".into());
    }) else {
        return;
    };
    trial.scene.client.load(30, 2, large).unwrap();
    let words = [
        "digits: 10.0.0.2 sends 100 %",
        "set affinity = \"connection\" if",
    ];
    wait_for_warning(&trial, &words);
    assert_eq!(gauge(&trial, "modelmirror_client_concentration_ratio"), 1.0);
    assert_eq!(gauge(&trial, "modelmirror_affinity_keys"), 1.0);

    for number in 0..40 {
        let host = format!("10.0.0.{}", 100 + number);
        let client = &trial.scene.net.client;
        client.address("eth0", &format!("{host}/24")).unwrap();
        let client = trial.scene.client.from(host.parse::<IpAddr>().unwrap());
        client.load(1, 10, large).unwrap();
    }
    wait_for_warning(&trial, &[]);
    // 60 requests of one address, which fade, and 10 each of 40.
    let busiest = gauge(&trial, "modelmirror_client_concentration_ratio");
    assert!(busiest < 0.15, "{busiest}");
    let keys = gauge(&trial, "modelmirror_affinity_keys");
    assert!((10.0..=41.0).contains(&keys), "{keys}");
}

#[test]
fn a_connection_that_carries_everything_is_named() {
    let Some(trial) = Trial::new() else {
        return;
    };
    trial.scene.client.load(1, 60, large).unwrap();
    let words = ["the busiest connection carries 100 %", "keepalive_requests"];
    wait_for_warning(&trial, &words);
    trial.scene.client.load(80, 5, large).unwrap();
    wait_for_warning(&trial, &[]);
}

/// Has Prometheus's own tool look at a scrape: names, types, helps.
fn promtool(scrape: &str) -> Result<()> {
    let tool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut tool = match tool {
        Ok(tool) => tool,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skip("needs promtool of Debian's prometheus");
            return Ok(());
        }
        Err(error) => return Err(error).context("promtool"),
    };
    let mut input = tool.stdin.take().context("its input")?;
    input.write_all(scrape.as_bytes())?;
    drop(input);
    let output = tool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        output.status.success() && said.is_empty(),
        "{said}\n{scrape}"
    );
    Ok(())
}

#[track_caller]
fn assert_families(scrape: &str, names: &[&str]) {
    for name in names {
        let sample = scrape
            .lines()
            .any(|line| line.starts_with(&format!("{name}{{")));
        assert!(sample, "no {name} in\n{scrape}");
    }
}

#[test]
fn prometheus_finds_nothing_wrong_with_the_metrics() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.scene.start();
    trial.set("0.5");
    let sent = trial.scene.client.load(40, 2, large).unwrap();
    trial.split(&sent).assert_share(0.5);
    let of_node = eventually("all that the daemon can show is there", || {
        let metrics = trial.scene.node_metrics();
        ensure!(metrics.has("modelmirror_affinity_keys", &[]), "{metrics}");
        let servers = metrics.by("modelmirror_server_resident_bytes", "arm");
        ensure!(servers.len() == 2, "{metrics}");
        trial.scene.daemon().scrape()
    });
    assert_families(
        &of_node,
        &[
            "modelmirror_server_cpu_seconds_total",
            "modelmirror_server_processes",
            "modelmirror_client_concentration_ratio",
            "modelmirror_canary_achieved_ratio",
            "modelmirror_first_byte_seconds_bucket",
        ],
    );
    promtool(&of_node).unwrap();

    let of_agent = eventually("all that the agent can show is there", || {
        let metrics = trial.scene.shadow_metrics();
        let resident = "modelmirror_shadow_server_resident_bytes";
        ensure!(metrics.has(resident, &[]), "{metrics}");
        trial.scene.agent().scrape()
    });
    assert_families(&of_agent, &["modelmirror_shadow_server_cpu_seconds_total"]);
    promtool(&of_agent).unwrap();
}
