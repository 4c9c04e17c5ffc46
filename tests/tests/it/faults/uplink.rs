//! An uplink that drops, and programs of somebody else's in its chain, before ours. This is about
//! `geneve` alone: no program of ours is at the uplink of a stream, and TCP yields by itself.

use anyhow::ensure;
use tests::{Fate, ForeignProgram, Scene, eventually};

use crate::traffic::{mirrors, small};

/// A scene where the kernel sends copies by itself, whatever this run is about.
#[track_caller]
fn started() -> Option<Scene> {
    let mut scene = Scene::new()?;
    scene.set_mirror("transport", "geneve");
    scene.give_up_soon();
    scene.start();
    Some(scene)
}

/// Somebody does so with all that leaves by the uplink, then no more.
#[track_caller]
fn check(fate: Fate, during: impl FnOnce(&Scene)) {
    let Some(mut scene) = started() else {
        return;
    };
    let mut sent = scene.load_while(3, small, |scene| {
        scene.wait_for_packets("mirrored");
        let node = &scene.net.node;
        let _foreign = ForeignProgram::first_at_egress(node, "eth1", fate).unwrap();
        during(scene);
    });
    scene.account(&sent);
    scene.wait_for_agent();
    mirrors(&scene, &mut sent);
}

/// Clones that are dropped cost nothing but themselves, and then the agent seems dead.
#[test]
fn it_drops_everything() {
    check(Fate::Drop, |scene| {
        eventually("clones are dropped", || {
            let packets = scene.packets("clone_failed");
            ensure!(packets > 50, "{packets}");
            Ok(())
        });
        scene.wait_for_packets("agent_down");
    });
}

/// A clone that leaves as it is stops copying at once, until our program is the first again.
#[test]
fn it_lets_clones_go_as_they_are() {
    check(Fate::Pass, |scene| {
        eventually("it is noticed", || {
            let said = scene.daemon().process.output();
            ensure!(said.contains("without their tunnel headers"), "{said}");
            Ok(())
        });
        assert!(scene.packets("clone_failed") > 0);
        scene.wait_for_packets("mirrored");
    });
}

/// The mirror yields when the uplink's queue drops, whosever the packets were, and comes back.
#[test]
fn its_queue_drops() {
    let Some(mut scene) = started() else {
        return;
    };
    let mut sent = scene.load_while(3, small, |scene| {
        let tc = |arguments: &str| {
            let arguments: Vec<_> = arguments.split(' ').collect();
            scene.net.node.output("tc", &arguments).unwrap();
        };
        tc("qdisc add dev eth1 root tbf rate 1mbit burst 5kb limit 10kb");
        scene.wait_for("modelmirror_mirror_paused", &[], 1.0);
        tc("qdisc delete dev eth1 root");
        scene.wait_for_packets("paused");
        scene.wait_for("modelmirror_mirror_paused", &[], 0.0);
    });
    scene.account(&sent);
    mirrors(&scene, &mut sent);
}
