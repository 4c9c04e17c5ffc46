//! What is not seen is told.

use anyhow::ensure;
use tests::{Fate, ForeignProgram, Scene, eventually};

use super::nics::macvlan;
use crate::traffic::small;

/// Sends until the daemon says that it sees this direction alone, or both.
#[track_caller]
pub(super) fn is_told(scene: &Scene, missing: Option<&str>) {
    eventually("it is told what is missing", || {
        scene.client.load(2, 10, small)?;
        let metrics = scene.daemon().metrics()?;
        for direction in ["request", "response"] {
            let labels = [("service", "digits"), ("direction", direction)];
            let found = metrics.sum("modelmirror_direction_missing", &labels);
            let expected = f64::from(missing == Some(direction));
            ensure!(found == expected, "{direction}: {found}");
        }
        Ok(())
    });
    let status = scene.modelmirror(&["status"]);
    let none = missing.map_or("none of".to_owned(), |missing| {
        format!("none of {missing}s")
    });
    assert_eq!(status.contains(&none), missing.is_some(), "{status}");
}

/// Somebody's program that comes before ours and lets packets pass, for good: we see none.
#[test]
fn a_program_that_ends_the_chain_before_ours_is_told() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.start();
    is_told(&scene, None);
    let foreign = ForeignProgram::first_at_ingress(&scene.net.node, "eth0", Fate::Pass).unwrap();
    let before = "modelmirror_foreign_programs_before";
    scene.wait_for(before, &[("interface", "eth0")], 1.0);
    is_told(&scene, Some("request"));
    let status = scene.modelmirror(&["status"]);
    assert!(status.contains("BEHIND OTHERS (ingress: "), "{status}");
    drop(foreign);
    scene.wait_for(before, &[("interface", "eth0")], 0.0);
    is_told(&scene, None);
}

/// Requests come in by the NIC, whose hardware address clients know, and responses leave by the macvlan on
/// it, which alone is tapped.
#[test]
fn routing_that_is_asymmetric_is_told() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    macvlan(&scene);
    let (node, client) = (&scene.net.node, &scene.net.client);
    let shown = node.ip("-o link show dev eth0").unwrap();
    let mac = shown.split("link/ether ").nth(1).unwrap();
    let mac = mac.split(' ').next().unwrap();
    let line = format!("neighbour replace 10.0.0.5 lladdr {mac} dev eth0 nud permanent");
    client.ip(&line).unwrap();
    scene.set_interfaces(&["mv0"]);
    scene.start();
    is_told(&scene, Some("request"));
}
