//! A way to the agent that takes its time, and loses packets in both directions.

use std::time::Duration;

use tests::{Request, Scene, Transport, Weather, pattern, tun};

/// 50 ms each way, and one in twenty is lost: a connection loses nothing, datagrams do.
#[test]
fn it_is_slow_and_lossy() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let (node, shadow) = (&scene.net.node, &scene.net.shadow);
    let weather = Weather {
        delay: Duration::from_millis(50),
        lost_percent: 5,
    };
    let cable = tun((node, "tun0"), (shadow, "tun0"), weather).unwrap();
    node.address("tun0", "10.9.0.5/24").unwrap();
    shadow.address("tun0", "10.9.0.9/24").unwrap();
    scene.set_mirror("agent", "10.9.0.9:6181");
    scene.start();
    let sent = scene.load(8, 12, |connection, index| {
        let length = [0, 1, 900, 1448, 5_000, 20_000][index % 6];
        Request::post("/echo", &pattern(length, (connection * 100 + index) as u64))
    });
    let outcome = scene.account(&sent);
    assert!(cable.lost() > 0, "nothing was lost");
    match Transport::of_this_run() {
        Transport::Stream => scene.complete(&sent, &[]),
        Transport::Geneve => assert!(outcome.requests("compared") > 0, "{}", outcome.metrics),
    }
}
