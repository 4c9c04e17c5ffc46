//! Labels that come later: the report and the summary say how right each model was, as the client
//! knows it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::ensure;
use serde_json::{Value, json};
use tests::{Answers, Exchange, Request, Scene, eventually, pattern};

/// Production's and the shadow's, which says another digit to one request in four.
struct Models {
    production: Answers,
    shadow: Answers,
}

/// By who was right: both, production alone, the shadow alone, neither.
type Pairs = [u64; 4];

const PAIRS: [&str; 4] = ["both_right", "production_only", "shadow_only", "neither"];

fn figures(pairs: &Value) -> Pairs {
    PAIRS.map(|name| pairs[name].as_u64().unwrap_or(u64::MAX))
}

impl Models {
    /// What turned out to be right: mostly what production said, sometimes what the shadow did,
    /// sometimes neither.
    fn truth(&self, index: usize, body: &[u8]) -> u8 {
        match index % 5 {
            0 => self.shadow.label(body),
            1 => (self.production.label(body) + 5) % 10,
            _ => self.production.label(body),
        }
    }

    fn pairs<'a>(&self, labelled: impl Iterator<Item = &'a (Exchange, u8)>) -> Pairs {
        let mut pairs = Pairs::default();
        for (one, truth) in labelled {
            let right = |model: &Answers| model.label(&one.request.body) == *truth;
            pairs[match (right(&self.production), right(&self.shadow)) {
                (true, true) => 0,
                (true, false) => 1,
                (false, true) => 2,
                (false, false) => 3,
            }] += 1;
        }
        pairs
    }
}

fn region(connection: usize) -> &'static str {
    ["north", "south"][connection % 2]
}

/// Five connections' requests, and what was right for each.
fn send(scene: &Scene, models: &Models) -> Vec<(Exchange, u8)> {
    let sent = scene.load(5, 40, |connection, index| {
        let body = pattern(300, (connection * 100 + index) as u64);
        Request::post("/label", &body).header("x-region", region(connection))
    });
    scene.account(&sent);
    let truths = sent.iter().enumerate();
    let truths = truths.map(|(index, one)| (one.clone(), models.truth(index, &one.request.body)));
    truths.collect()
}

fn models(scene: &mut Scene) -> Models {
    let shadow = Answers {
        other_label_in: Some(4),
        ..Answers::of("v13")
    };
    scene.set_shadow_section("compare", "slice", "header:x-region");
    scene.start_model(&shadow);
    Models {
        production: scene.production.answers().clone(),
        shadow,
    }
}

#[test]
fn the_report_says_how_right_each_version_was() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let models = models(&mut scene);
    scene.start();
    let labelled = send(&scene, &models);

    let mut rows = vec!["when,x_request,digit".to_owned()];
    let row = |(one, truth): &(Exchange, u8)| format!("2026-11-22,{},{truth}", one.id);
    rows.extend(labelled.iter().map(row));
    rows.extend(["2026-11-22,nobody,3".to_owned(), "2026-11-22,,3".to_owned()]);
    rows.push(row(&labelled[7]));
    let path = scene.home.path().join("labels.csv");
    fs::write(&path, rows.join("\n")).unwrap();
    let report = |output: &str| {
        let (records, path) = (scene.home.record_dir(), path.to_string_lossy());
        let records = records.to_string_lossy();
        let columns = ["--id-field", "x_request", "--label-field", "digit"];
        let asked = [
            "report",
            "--records",
            &records,
            "--labels",
            &path,
            "--output",
            output,
        ];
        scene.modelmirror(&[&asked[..], &columns[..]].concat())
    };

    let parsed: Value = serde_json::from_str(&report("json")).unwrap();
    let found = &parsed["services"][0]["labels"];
    let pairs = models.pairs(labelled.iter());
    assert!(pairs.iter().all(|&count| count > 0), "{pairs:?}");
    assert_eq!(figures(&found["pairs"]), pairs, "{found:#}");
    assert_eq!(found["labelled"], labelled.len(), "{found:#}");
    assert_eq!(found["unused"], json!({}), "{found:#}");
    let all = labelled.len() as f64;
    let right = [pairs[0] + pairs[1], pairs[0] + pairs[2]].map(|right| right as f64 / all);
    assert_eq!(found["production"]["share"], right[0], "{found:#}");
    assert_eq!(found["shadow"]["share"], right[1], "{found:#}");
    let lost = found["difference"]["difference"].as_f64().unwrap();
    assert!((lost - (right[1] - right[0])).abs() < 1e-9, "{found:#}");

    let mut slices = BTreeMap::new();
    for slice in found["slices"].as_array().unwrap() {
        slices.insert(slice["slice"].as_str().unwrap(), figures(&slice["pairs"]));
    }
    let expected = ["north", "south"].map(|name| {
        let of = labelled
            .iter()
            .filter(|(one, _)| region(one.connection) == name);
        (name, models.pairs(of))
    });
    assert_eq!(slices, expected.into());

    let read = &parsed["labels"];
    assert_eq!(read["labels"], labelled.len() + 1, "{read:#}");
    let unused = json!({"bad_line": 1, "no_record": 1, "repeated": 1});
    assert_eq!(read["unused"], unused, "{read:#}");
    let bad = format!("line {}: the id is empty", labelled.len() + 3);
    assert_eq!(read["bad_lines"], json!([bad]), "{read:#}");

    let text = report("text");
    for words in [
        "how often each version was right",
        "north",
        &bad,
        "no_record 1",
    ] {
        assert!(text.contains(words), "no `{words}` in\n{text}");
    }
}

#[test]
fn the_summary_follows_a_file_that_grows() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let models = models(&mut scene);
    let path = scene.home.path().join("labels.jsonl");
    let file = path.to_string_lossy().into_owned();
    scene.set_shadow_section("labels", "file", file);
    scene.set_shadow_section("labels", "interval", "100ms");
    scene.start();
    let labels =
        |scene: &Scene| -> anyhow::Result<Value> { Ok(scene.agent().summary()?["labels"].clone()) };
    eventually("what is missing is said", || {
        let said = labels(&scene)?;
        let error = said["error"].as_str().unwrap_or_default();
        ensure!(error.contains("No such file"), "{said:#}");
        Ok(())
    });

    let labelled = send(&scene, &models);
    let line = |(one, truth): &(Exchange, u8)| {
        format!("{}\n", json!({"request_id": one.id, "label": truth}))
    };
    let (first, all) = (&labelled[..80], &labelled[..]);
    for part in [first, all] {
        fs::write(&path, part.iter().map(line).collect::<String>()).unwrap();
        let pairs = models.pairs(part.iter());
        eventually("labels are joined", || {
            let said = labels(&scene)?;
            ensure!(figures(&said["pairs"]) == pairs, "{said:#}, not {pairs:?}");
            ensure!(said["labelled"] == part.len(), "{said:#}");
            ensure!(said["error"].is_null(), "{said:#}");
            Ok(())
        });
    }
    let said = labels(&scene).unwrap();
    for digit in 0..10 {
        let of = labelled.iter().filter(|(_, truth)| *truth == digit);
        let found = figures(&said["by_label"][digit.to_string()]);
        assert_eq!(found, models.pairs(of), "{digit}: {said:#}");
    }
    let joined = [("outcome", "joined")];
    let metrics = scene.shadow_metrics();
    let counted = metrics.sum("modelmirror_shadow_labels_total", &joined);
    assert_eq!(counted, labelled.len() as f64, "{metrics}");
}
