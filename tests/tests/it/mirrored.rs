//! The main job: what clients send reaches the shadow byte for byte, and is compared.

use tests::{Answers, Request, Scene, pattern};

#[test]
fn every_request_reaches_the_shadow_byte_for_byte() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    scene.start_model(&Answers {
        other_label_in: Some(5),
        ..Answers::of("v13")
    });
    scene.start();
    let sent = scene.load(5, 20, |connection, index| {
        let body = pattern(1 + connection * 7000 + index * 131, index as u64);
        Request::post("/label", &body)
    });
    scene.prove(&sent);
    let outcome = scene.settle();
    for verdict in ["match", "different"] {
        assert!(outcome.verdicts(verdict) > 0, "no {verdict}");
    }
}
