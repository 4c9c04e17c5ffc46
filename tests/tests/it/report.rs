//! What a person, or a program, reads in the end.

use std::fs;

use anyhow::ensure;
use serde_json::Value;
use tests::{Answers, Request, Scene, binary, eventually, pattern};

use crate::traffic::small;

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

    eventually("every copy of the tap has an outcome", || {
        let status: Value = serde_json::from_str(&scene.agent().status("json")?)?;
        let tap = &status["shadow_agent"]["taps"][0];
        let is_so = tap["name"] == "node"
            && tap["connected_since"].is_string()
            && tap["last_report"].is_string()
            && tap["copies"]["received"].as_u64() > Some(0)
            && (&tap["outstanding"], &tap["closes"]) == (&0.into(), &true.into());
        ensure!(is_so, "{tap:#}");
        Ok(())
    });

    let text = report(&scene, "text");
    for word in ["digits", "v12", "v13", "100", &different.to_string()] {
        assert!(text.contains(word), "no `{word}` in\n{text}");
    }
}

/// How `modelmirror report ARGUMENTS` exits.
#[track_caller]
fn exit(scene: &Scene, arguments: &[&str]) -> Option<i32> {
    let mut command = scene.net.node.command(binary("modelmirror").unwrap());
    command.arg("report").args(arguments);
    command.arg("--records").arg(scene.home.record_dir());
    command.output().unwrap().status.code()
}

/// Files of records that somebody removes or renames, and the whole folder, under a running agent.
#[test]
fn records_go_on_where_they_belong() {
    let Some(scene) = Scene::started() else {
        return;
    };
    let folder = scene.home.record_dir().join("digits");
    let compares = || {
        let sent = scene.load(4, 10, small);
        eventually("they are written where records belong", || {
            let records = scene.agent().records()?;
            let missing = sent.iter().filter(|sent| {
                let mut ids = records.iter().map(|record| &record["request_id"]);
                !ids.any(|id| *id == *sent.id)
            });
            let missing = missing.count();
            ensure!(missing == 0, "{missing} are missing");
            Ok(())
        });
    };
    compares();
    assert_eq!(exit(&scene, &["--fail-under", "compared=40"]), Some(0));
    assert_eq!(exit(&scene, &["--fail-under", "compared=41"]), Some(5));
    assert_eq!(exit(&scene, &["--version", "v99"]), Some(6));
    let nothing = ["--since", "0s", "--fail-under", "agreement=0"];
    assert_eq!(exit(&scene, &nothing), Some(6));
    for file in fs::read_dir(&folder).unwrap().flatten() {
        if file.path().extension().is_some_and(|end| end == "jsonl") {
            fs::rename(file.path(), file.path().with_extension("jsonl.1")).unwrap();
        }
    }
    compares();
    for file in fs::read_dir(&folder).unwrap().flatten() {
        // The ledger is being replaced all the time.
        let _ = fs::remove_file(file.path());
    }
    compares();
    // The agent may be writing the ledger into it.
    eventually("the folder is gone", || {
        Ok::<_, anyhow::Error>(fs::remove_dir_all(&folder)?)
    });
    compares();
    let said = scene.agent().process.output();
    assert!(said.contains("removed or renamed"), "{said}");
}
