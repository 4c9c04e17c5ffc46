//! Agents that die, and those that come after them.

use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{Scene, eventually};

use crate::traffic::{mirrors, small};

/// Copying stops within three seconds, and goes on by itself.
#[track_caller]
fn check(end: Signal) {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    let mut sent = scene.load_while(3, small, |scene| dies(scene, end));
    scene.serves(&sent);
    scene.agent = None;
    scene.start_agent();
    scene.wait_for_agent();
    let before = scene.agent().records().unwrap().len();
    sent.extend(scene.load(4, 10, small));
    eventually("requests are compared again", || {
        let records = scene.agent().records()?.len();
        ensure!(records == before + 40, "{records} after {before}");
        Ok(())
    });
    scene.serves(&sent);
    // What the tap had sent to the dead agent is outside the new one's account, and said to be.
    let outcome = scene.settle();
    assert!(outcome.earlier() > 100, "{}", outcome.metrics);
    assert_eq!(outcome.requests("compared"), 40, "{}", outcome.metrics);
}

#[track_caller]
fn dies(scene: &Scene, end: Signal) {
    scene.wait_for_packets("mirrored");
    scene.agent().process.signal(end).unwrap();
    let (death, mut slowest) = (Instant::now(), Duration::ZERO);
    eventually("its death is noticed", || {
        let look = Instant::now();
        let up = scene.node_metrics().sum("modelmirror_agent_up", &[]);
        slowest = slowest.max(look.elapsed());
        ensure!(up == 0.0, "still up");
        Ok(())
    });
    // On a machine that takes its time for a look, the daemon is late for its own as well.
    let (noticed, limit) = (death.elapsed(), Duration::from_secs(3) + 3 * slowest);
    assert!(noticed < limit, "after {noticed:?}, not {limit:?}");
    let copied = scene.packets("mirrored");
    scene.wait_for_packets("agent_down");
    assert_eq!(scene.packets("mirrored"), copied, "copied to a dead agent");
}

#[test]
fn it_is_killed() {
    check(Signal::SIGKILL);
}

#[test]
fn it_is_stopped() {
    check(Signal::SIGSTOP);
}

/// The same agent wakes up, in the middle of connections that it knows half of.
#[test]
fn it_sleeps_and_wakes_up() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    let mut sent = scene.load_while(3, small, |scene| {
        dies(scene, Signal::SIGSTOP);
        scene.agent().process.signal(Signal::SIGCONT).unwrap();
        scene.wait_for_agent();
    });
    scene.account(&sent);
    mirrors(&scene, &mut sent);
}
