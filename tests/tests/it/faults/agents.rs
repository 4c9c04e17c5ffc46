//! Agents that die, and those that come after them.

use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{Exchange, Scene, Transport, eventually};

use crate::traffic::{mirrors, small};

/// Its death is noticed within three seconds. Then no clone is made, rings go on, and with another agent
/// all goes on by itself.
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
    if Transport::of_this_run() == Transport::Stream {
        return goes_on(&scene, sent);
    }
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

/// What waited in rings has reached the new agent, and so does what comes now.
#[track_caller]
fn goes_on(scene: &Scene, mut sent: Vec<Exchange>) {
    let more = scene.load(4, 10, small);
    eventually("requests are compared again", || {
        let records = scene.agent().records()?;
        let is_there = |id: &str| records.iter().any(|record| record["request_id"] == id);
        let there = more.iter().filter(|sent| is_there(&sent.id)).count();
        ensure!(there == more.len(), "{there} of {}", more.len());
        Ok(())
    });
    sent.extend(more);
    scene.serves(&sent);
    let outcome = scene.settle();
    assert_eq!(outcome.copies("lost"), 0, "{}", outcome.metrics);
    let compared = outcome.requests("compared");
    assert!(compared > 40, "nothing has waited\n{}", outcome.metrics);
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
    if Transport::of_this_run() == Transport::Stream {
        return scene.wait_for_packets("mirrored");
    }
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

/// The same agent wakes up, in the middle of connections that it knows half of; in a stream, nothing is
/// missing.
#[test]
fn it_sleeps_and_wakes_up() {
    let Some(mut scene) = Scene::started_to_give_up_soon() else {
        return;
    };
    let mut sent = scene.load_while(3, small, |scene| {
        dies(scene, Signal::SIGSTOP);
        scene.agent().process.signal(Signal::SIGCONT).unwrap();
        scene.wait_for_agent();
    });
    scene.account(&sent);
    if Transport::of_this_run() == Transport::Stream {
        scene.complete(&sent, &[]);
    }
    mirrors(&scene, &mut sent);
}
