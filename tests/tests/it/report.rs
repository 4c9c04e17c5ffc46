//! What a person, or a program, reads in the end.

use serde_json::Value;
use tests::{Answers, Request, Scene, pattern};

fn report(scene: &Scene, output: &str) -> String {
    let records = scene.home.record_dir();
    let records = records.to_string_lossy();
    scene.modelmirror(&["report", "--records", &records, "--output", output])
}

#[test]
fn its_numbers_are_the_client_s() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let other = Answers {
        other_label_in: Some(4),
        ..Answers::of("v13")
    };
    scene.start_model(&other);
    scene.start();
    let sent = scene.load(5, 20, |connection, index| {
        Request::post("/label", &pattern(300, (connection * 100 + index) as u64))
    });
    scene.account(&sent);
    let production = scene.production.answers();
    let differs = |body: &[u8]| production.label(body) != other.label(body);
    let different = sent.iter().filter(|sent| differs(&sent.request.body));
    let different = different.count();
    assert!(different > 0, "every label is the same");

    let parsed: Value = serde_json::from_str(&report(&scene, "json")).unwrap();
    let service = &parsed["services"][0];
    let expected = [
        ("/service", "digits".into()),
        ("/compared", sent.len().into()),
        ("/verdicts/different", different.into()),
        ("/verdicts/error", 0.into()),
        ("/fidelity/ratio", 1.0.into()),
        ("/production_versions/0", "v12".into()),
        ("/shadow_versions/0", "v13".into()),
        ("/production_status/2xx", sent.len().into()),
        ("/shadow_status/2xx", sent.len().into()),
    ];
    for (pointer, value) in expected {
        let found = service.pointer(pointer);
        assert_eq!(found, Some(&value), "{pointer}: {service:#}");
    }
    let times = &service["latency"];
    for leg in ["production", "shadow"] {
        let median = times[leg]["first_byte_ms"]["p50"].as_f64();
        assert!(median.is_some_and(|ms| ms > 0.0), "{times:#}");
    }

    let text = report(&scene, "text");
    for word in ["digits", "v12", "v13", "100", &different.to_string()] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}
