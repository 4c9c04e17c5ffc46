//! A daemon that is held up mirrors on; one that is dead for good, in a process that goes on, does
//! not.

use std::fs;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tests::{Scene, throughout};

use crate::traffic::small;

#[test]
fn a_loop_that_is_held_up_is_borne_and_a_dead_one_is_not() {
    let Some(mut scene) = Scene::started() else {
        return;
    };
    let config = scene.daemon().config().to_owned();
    let text = fs::read_to_string(&config).unwrap();
    // Whoever reads it waits until somebody writes it: the daemon's loop, told to read it again.
    fs::remove_file(&config).unwrap();
    mkfifo(&config, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    let sent = scene.load_while(3, small, |scene| {
        scene.daemon().process.signal(Signal::SIGHUP).unwrap();
        // Longer than the programs' own patience, and less than the daemon's.
        throughout(Duration::from_secs(7), "copies are made", || {
            scene.wait_for_packets("mirrored");
            let stale = scene.packets("stale");
            ensure!(stale == 0, "{stale} are stale");
            Ok(())
        });
        scene.wait_for_packets("stale");
        fs::write(&config, &text).unwrap();
        scene.wait_for_packets("mirrored");
    });
    scene.serves(&sent);
}
