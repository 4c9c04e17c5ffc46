//! Interfaces that go away and come back.

use anyhow::ensure;
use tests::{Scene, Transport, Watch, eventually};

use crate::traffic::{mirrors, small};

#[test]
fn the_tapped_one_is_deleted_and_made_anew() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    let mut sent = Vec::new();
    mirrors(&scene, &mut sent);
    scene.net.node.ip("link delete eth0").unwrap();
    scene.wait_for("modelmirror_interface_attached", &[], 0.0);
    scene.net.cable("eth0").unwrap();
    scene.watch = Watch::start(&scene.net.client).unwrap();
    scene.wait_for("modelmirror_interface_attached", &[], 1.0);
    // That it has its address again is another piece of news.
    scene.count_copies();
    eventually("the service is known", || {
        sent.extend(scene.load(1, 1, small));
        ensure!(scene.copies() > 0, "no copy");
        Ok(())
    });
    mirrors(&scene, &mut sent);
}

/// The way to the agent is taken away while requests are on their way, and given back. What waits in
/// rings arrives then.
#[track_caller]
fn check(take: impl FnOnce(&Scene), give: impl FnOnce(&Scene)) {
    let Some(mut scene) = Scene::started_to_give_up_soon() else {
        return;
    };
    let mut sent = scene.load_while(3, small, |scene| {
        scene.wait_for_packets("mirrored");
        take(scene);
        is_out_of_reach(scene);
        give(scene);
        scene.wait_for_agent();
    });
    scene.account(&sent);
    if Transport::of_this_run() == Transport::Stream {
        scene.complete(&sent, &[]);
    }
    mirrors(&scene, &mut sent);
}

/// Without a way no clone is made, which is counted, and nobody else is hurt; rings go on.
#[track_caller]
fn is_out_of_reach(scene: &Scene) {
    scene.wait_for("modelmirror_agent_up", &[], 0.0);
    if Transport::of_this_run() == Transport::Stream {
        return scene.wait_for_packets("mirrored");
    }
    let copied = scene.packets("mirrored");
    scene.wait_for_packets("agent_down");
    assert_eq!(scene.packets("mirrored"), copied, "copied without a way");
}

/// Runs `ip` on the node.
#[track_caller]
fn ip(scene: &Scene, arguments: &str) {
    scene.net.node.ip(arguments).unwrap();
}

#[test]
fn the_uplink_is_deleted_and_made_anew() {
    check(
        |scene| ip(scene, "link delete eth1"),
        |scene| scene.net.cable("eth1").unwrap(),
    );
}

#[test]
fn the_uplink_goes_down_and_up() {
    check(
        |scene| ip(scene, "link set eth1 down"),
        |scene| ip(scene, "link set eth1 up"),
    );
}

#[test]
fn the_route_is_taken_away_and_given_back() {
    check(
        |scene| ip(scene, "route delete 10.1.0.0/24"),
        |scene| ip(scene, "route add 10.1.0.0/24 dev eth1 src 10.1.0.5"),
    );
}
