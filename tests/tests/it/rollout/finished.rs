//! A rollout ends when it is proven that the new version serves at the service's own address.

use std::io::{self, Write as _};
use std::net::TcpStream;

use anyhow::ensure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::{Trial, eventually};
use toml::Table;

use super::{Pilot, by_hand};
use crate::servers::Model;

/// A rollout that somebody led to its end, so that the canary has everything.
fn promoted(trial: Trial, change: impl FnOnce(&mut Table)) -> Pilot {
    let pilot = Pilot::of(trial, |plan| {
        by_hand(plan);
        change(plan);
    });
    pilot.order(&["start"]);
    pilot.wait_for_stage(0);
    for _ in ["settling", "promoted"] {
        pilot.order(&["promote", "--all"]);
    }
    pilot.wait_for("promoted");
    assert_eq!(pilot.share(), 1.0);
    pilot
}

/// `finish` without force is refused for this reason, and clients stay where they are.
#[track_caller]
fn assert_refused(pilot: &Pilot, why: &str) {
    eventually(&format!("finish is refused: {why}"), || {
        let said = pilot.rollout(&["finish"]);
        ensure!(said.code == Some(1) && said.text.contains(why), "{said}");
        Ok(())
    });
    assert_eq!(pilot.share(), 1.0);
}

#[track_caller]
fn assert_finished(pilot: &Pilot) {
    eventually("the rollout is finished", || {
        let said = pilot.rollout(&["finish"]);
        ensure!(said.code == Some(0), "{said}");
        Ok(())
    });
    assert_eq!(pilot.share(), 0.0);
    let status = pilot.trial.scene.modelmirror(&["status"]);
    assert!(status.contains("version v13"), "{status}");
}

/// Servers that preload their model fork new workers now and then: those are as old as their master.
#[test]
fn a_recycled_worker_is_the_old_server() {
    let Some(mut trial) = Trial::quiet(|_| {}) else {
        return;
    };
    trial.stop_stable();
    let node = trial.scene.net.node.clone();
    let old = Model::start(&node, "v12", 8000, Some(1));
    let pilot = promoted(trial, |_| {});
    assert_refused(&pilot, "was started before the rollout was");

    let worker = old.worker().unwrap();
    kill(Pid::from_raw(worker), Signal::SIGTERM).unwrap();
    eventually("another worker serves", || {
        let now = old.worker();
        ensure!(now.is_some_and(|now| now != worker), "{now:?}");
        Ok(())
    });
    // What it works is seen when it is.
    let server = [("service", "digits"), ("arm", "stable"), ("version", "v12")];
    let cpu = || {
        let metrics = pilot.trial.scene.node_metrics();
        metrics.sum("modelmirror_server_cpu_seconds_total", &server)
    };
    let before = cpu();
    eventually("the new worker is seen", || {
        node.run(|| work("127.0.0.1:8000"))?;
        ensure!(cpu() > before, "{}", cpu());
        Ok(())
    });
    assert_refused(&pilot, "was started before the rollout was");

    drop(old);
    assert_refused(&pilot, "nobody listens at the service's own address");
    let _new = Model::start(&node, "v13", 8000, Some(2));
    assert_finished(&pilot);
}

/// Has a server work, over loopback.
fn work(server: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(server)?;
    stream.write_all(b"GET /bytes/20000000 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// Who can be asked is asked, whatever processes say: these are the test's own, and older than the rollout.
#[test]
fn a_server_is_asked_for_its_version() {
    let Some(trial) = Trial::quiet(|_| {}) else {
        return;
    };
    let mut pilot = promoted(trial, |plan| {
        let probe = toml::toml! { path = "/label" };
        plan.insert("finish_probe".into(), probe.into());
    });
    assert_refused(
        &pilot,
        "GET /label at [::1]:8000: the body does not have \"v13\"",
    );
    pilot.trial.stop_stable();
    assert_refused(&pilot, "nobody listens at the service's own address");
    pilot.trial.replace_stable("v13");
    assert_finished(&pilot);
}

#[test]
fn a_probe_that_fails_proves_nothing() {
    let Some(trial) = Trial::quiet(|_| {}) else {
        return;
    };
    let mut pilot = promoted(trial, |plan| {
        let probe = toml::toml! {
            path = "/version"
            header = "x-model-version"
            expect = "13"
        };
        plan.insert("finish_probe".into(), probe.into());
    });
    pilot.trial.replace_stable("v13");
    assert_refused(&pilot, "GET /version at [::1]:8000: it was answered 404");
    pilot.order(&["finish", "--force"]);
    assert_eq!(pilot.share(), 0.0);
}
