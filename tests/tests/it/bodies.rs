//! Bodies of every size that is near an edge, as request and as response, to the byte.

use tests::Scene;

use crate::traffic::both_ways;

/// Nothing, one byte, around what one segment holds, around 64 KiB, and larger.
const SIZES: [usize; 9] = [0, 1, 1447, 1448, 1449, 65_436, 65_536, 65_636, 1 << 20];

#[test]
fn bodies_of_every_size_arrive() {
    let Some(scene) = Scene::started() else {
        return;
    };
    let requests: Vec<_> = SIZES.into_iter().flat_map(both_ways).collect();
    scene.prove(&scene.send("10.0.0.5:8000", &requests));
}

#[test]
fn bodies_of_20_mib_arrive() {
    let Some(scene) = Scene::started() else {
        return;
    };
    scene.prove(&scene.send("[fd00:0::5]:8000", &both_ways(20 << 20)));
}
