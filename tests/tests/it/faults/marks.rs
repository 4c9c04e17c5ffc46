//! Marks of others on production's packets: neither read nor written.

use tests::{Client, Scene};

use crate::traffic::mirrors;

/// Over `lo` a mark that is set on the way out is still there on the way in, behind the tap.
#[test]
fn they_change_nothing_and_arrive() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.set_interfaces(&["lo"]);
    scene.start();
    scene.net.node.nft(RULES).unwrap();
    let production = "127.0.0.1:8000".parse().unwrap();
    scene.client = Client::new(&scene.net.node, production, scene.production.answers());
    mirrors(&scene, &mut Vec::new());
    let count = |counter| {
        let counter = scene.net.node.nft_counter("inet", "marks", counter);
        counter.unwrap()
    };
    let (every, marked) = (count("every"), count("marked"));
    assert!(
        every > 100 && every == marked,
        "{marked} of {every} packets had their mark"
    );
    assert_eq!(count("copies"), 0, "copies carry a mark of production's");
}

/// Values that a program with its own ideas of the mark might take for its own.
const RULES: &str = "
table inet marks {
    counter every { }
    counter marked { }
    counter copies { }
    chain out {
        type route hook output priority mangle
        tcp dport 8000 meta mark set numgen inc mod 4 map { 0 : 1, 1 : 2, 2 : 3, 3 : 0xffffffff }
        tcp sport 8000 meta mark set 0x6d6d0001
    }
    chain in {
        type filter hook prerouting priority raw
        tcp dport 8000 counter name every
        tcp sport 8000 counter name every
        tcp dport 8000 meta mark { 1, 2, 3, 0xffffffff } counter name marked
        tcp sport 8000 meta mark 0x6d6d0001 counter name marked
    }
    chain uplink {
        type filter hook postrouting priority 0
        udp dport 6181 meta mark != 0 counter name copies
    }
}
";
