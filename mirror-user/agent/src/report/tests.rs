use std::fs;

use serde_json::{Value, json};

use super::*;

fn line(index: u64, change: impl FnOnce(&mut Value)) -> String {
    let ms = 2.0 + (index % 50) as f64 / 10.0;
    let leg = |version: &str, ms: f64| {
        json!({
            "version": version, "status": 200, "bytes": 80, "sha256": "00",
            "first_byte_ms": ms, "total_ms": ms + 0.4, "prediction": [0.25, 0.75],
        })
    };
    let time = jiff::Timestamp::from_second(1_795_316_400 + index as i64 / 3).unwrap();
    let mut record = json!({
        "id": uuid::Uuid::from_u128(u128::from(index)),
        "time": time,
        "service": "sentiment",
        "slice": format!("tenant-{}", index % 3),
        "client": "10.0.0.7:41000",
        "method": "POST",
        "path": "/v2/models/sentiment/infer",
        "arm": "stable",
        "request": {"bytes": 40, "sha256": "00"},
        "production": leg("v12", ms),
        "shadow": leg("v13", ms * 1.5),
        "verdict": "match",
        "score": 1.0,
    });
    change(&mut record);
    format!("{record}\n")
}

fn different(index: u64) -> String {
    line(index, |record| {
        let now = 0.5 + (index % 7) as f64 / 20.0;
        record["verdict"] = "different".into();
        record["score"] = 0.5.into();
        record["slice"] = "tenant-1".into();
        record["shadow"]["prediction"] = json!([now, 1.0 - now]);
        let words = format!("/outputs/0/data: label 1 became 0 (probability 0.75, now {now})");
        record["difference"] = words.into();
    })
}

fn failed(index: u64) -> String {
    line(index, |record| {
        record["verdict"] = "error".into();
        record["score"] = 0.0.into();
        record["shadow"] = json!({"version": "v13", "error": "timeout"});
        record["difference"] = "the shadow gave no whole answer in time".into();
    })
}

/// 300 records in two files: 276 match, 20 differ, 4 fail.
fn records() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let service = folder.path().join("sentiment");
    fs::create_dir(&service).unwrap();
    let lines: Vec<String> = (0..300)
        .map(|index| match index {
            _ if index % 15 == 7 => different(index),
            _ if index % 75 == 3 => failed(index),
            _ => line(index, |_| {}),
        })
        .collect();
    let (first, second) = lines.split_at(200);
    let half = &line(300, |_| {})[..50];
    let write = |name: &str, text: String| fs::write(service.join(name), text).unwrap();
    write("comparisons-1.jsonl", first.concat() + half);
    write(
        "comparisons-2.jsonl",
        format!("{}not a record\n", second.concat()),
    );
    write("notes.txt", "left alone".into());
    let ledger = json!({
        "since": "2026-11-22T02:59:00Z", "time": "2026-11-22T03:02:00Z",
        "seen": 303, "compared": 300, "drops": {"request_gap": 2, "queue_full": 1},
    });
    write(LEDGER, ledger.to_string());
    folder
}

#[test]
fn the_canary_is_counted_apart() {
    let folder = tempfile::tempdir().unwrap();
    let service = folder.path().join("sentiment");
    fs::create_dir(&service).unwrap();
    let canary = |index| {
        line(index, |record| {
            record["arm"] = "canary".into();
            record["production"]["version"] = "v13".into();
            record["verdict"] = "different".into();
            record["difference"] = "a difference".into();
        })
    };
    let lines = [line(1, |_| {}), canary(2), line(3, |_| {}), canary(4)];
    fs::write(service.join("comparisons-1.jsonl"), lines.concat()).unwrap();
    let report = summarize(folder.path(), &Options::default()).unwrap();
    let service = &report.services[0];
    let found = service.canary.as_ref().unwrap();
    assert_eq!((service.compared, found.compared), (2, 2));
    assert_eq!(
        (service.verdicts.different, found.verdicts.different),
        (0, 2)
    );
    assert_eq!(service.production_versions, ["v12".into()].into());
    assert_eq!(found.versions, ["v13".into()].into());
    assert!(service.differences.is_empty());
    let text = report.to_string();
    assert!(
        text.contains("Answered by the canary in production"),
        "{text}"
    );
}

/// Equal refusals are no agreement, and unequal ones no difference.
#[test]
fn what_both_failed_is_counted_apart() {
    let folder = tempfile::tempdir().unwrap();
    let service = folder.path().join("sentiment");
    fs::create_dir(&service).unwrap();
    let failed = |index| {
        line(index, |record| {
            record["verdict"] = "both_failed".into();
            record["score"] = 0.0.into();
            record["production"]["status"] = 422.into();
            record["shadow"]["status"] = 422.into();
        })
    };
    let lines = [
        line(1, |_| {}),
        failed(2),
        failed(3),
        different(7),
        failed(4),
    ];
    fs::write(service.join("comparisons-1.jsonl"), lines.concat()).unwrap();
    let report = summarize(folder.path(), &Options::default()).unwrap();
    let service = &report.services[0];
    assert_eq!((service.compared, service.verdicts.both_failed), (5, 3));
    assert_eq!(service.agreement.unwrap().share, 0.5);
    let compared: u64 = service.slices.iter().map(|slice| slice.compared).sum();
    assert_eq!(compared, 2);
    let text = report.to_string();
    let row = "both failed        3  answered with 4xx or 5xx by both: not part of the agreement";
    assert!(text.contains(row), "{text}");
}

#[test]
fn noise_and_excess_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let service = folder.path().join("sentiment");
    fs::create_dir(&service).unwrap();
    // Of a hundred requests eight were answered twice.
    let lines = (0..100).map(|index| {
        line(index, |record| {
            let (verdict, control) = match index {
                0..4 => ("match", "match"),
                4 => ("match", "different"),
                5 => ("different", "different"),
                6 | 7 => ("different", "match"),
                _ => return,
            };
            record["verdict"] = verdict.into();
            record["control"] = control.into();
        })
    });
    fs::write(
        service.join("comparisons-1.jsonl"),
        lines.collect::<String>(),
    )
    .unwrap();
    let report = summarize(folder.path(), &Options::default()).unwrap();
    let noise = report.services[0].noise.unwrap();
    let requests = noise.requests;
    let counted = [
        requests.both,
        requests.itself,
        requests.versions,
        requests.neither,
    ];
    assert_eq!(counted, [1, 1, 2, 4]);
    assert_eq!(noise.excess.difference, 0.125);
    assert!(
        noise.excess.low < 0.0 && noise.excess.high > 0.3,
        "{noise:?}"
    );
    assert_eq!(report.services[0].repeat, None);
    let text = report.to_string();
    for words in [
        "differs 37.5 %, of which 25 % the old version differs from itself",
        "+12.50  percentage points, 95 % interval",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

#[test]
fn records_are_added_up() {
    let folder = records();
    let report = summarize(folder.path(), &Options::default()).unwrap();
    let service = &report.services[0];
    assert_eq!(service.compared, 300);
    let verdicts = Verdicts {
        r#match: 276,
        different: 20,
        error: 4,
        both_failed: 0,
    };
    assert_eq!(service.verdicts, verdicts);
    assert_eq!(service.agreement.unwrap().share, 0.92);
    assert_eq!(service.unreadable_lines, 2);
    assert_eq!(service.errors["timeout"], 4);
    assert_eq!(service.production_status["2xx"], 300);
    assert_eq!(service.shadow_status["2xx"], 296);
    assert_eq!(service.fidelity.as_ref().unwrap().ratio, 300.0 / 303.0);
    let production = service.latency.production.first_byte_ms.unwrap();
    assert!((production.p50 - 4.4).abs() < 0.1, "{production:?}");
    assert_eq!(service.slices[0].slice, "tenant-1");
    let worse: Vec<bool> = service.slices.iter().map(|slice| slice.worse).collect();
    assert_eq!(worse, [true, false, false]);
    let kinds: Vec<(&str, u64)> = service
        .differences
        .iter()
        .map(|difference| (difference.kind.as_str(), difference.count))
        .collect();
    assert_eq!(
        kinds,
        [
            (
                "/outputs/#/data: label # became # (probability #, now #)",
                20
            ),
            ("the shadow gave no whole answer in time", 4),
        ]
    );
    assert_eq!(
        service.differences[0].example.difference,
        "/outputs/0/data: label 1 became 0 (probability 0.75, now 0.5)"
    );
    let predictions = service.predictions.as_ref().unwrap();
    assert_eq!(predictions.changes[0].count, 20);
}

#[test]
fn the_report_is_read_by_people() {
    let folder = records();
    let text = summarize(folder.path(), &Options::default())
        .unwrap()
        .to_string();
    println!("{text}");
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
        assert_eq!(line.trim_end(), line);
    }
    for words in [
        "sentiment: v13 in the shadow of v12",
        "92.00 %",
        "99.01 %",
        "timeout 4",
        "by more than chance: tenant-1",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
}

#[test]
fn an_unknown_service_is_said_so() {
    let folder = records();
    let options = Options {
        service: Some("none".into()),
        ..Options::default()
    };
    let error = summarize(folder.path(), &options).unwrap_err();
    assert!(
        error.to_string().contains("there are: sentiment"),
        "{error}"
    );
    assert!(summarize(&folder.path().join("none"), &Options::default()).is_err());
}

#[test]
fn nothing_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let report = summarize(folder.path(), &Options::default()).unwrap();
    assert!(report.to_string().contains("nothing was compared yet"));
    fs::create_dir(folder.path().join("new")).unwrap();
    let report = summarize(folder.path(), &Options::default()).unwrap();
    assert_eq!(report.services[0].compared, 0);
    assert!(report.to_string().contains("nothing yet"));
}

#[test]
fn what_comes_from_traffic_is_escaped() {
    let folder = tempfile::tempdir().unwrap();
    let service = folder.path().join("sentiment");
    fs::create_dir(&service).unwrap();
    let evil = "<script>alert('x')</script>\u{1b}[2J";
    let text = line(1, |record| {
        record["slice"] = evil.into();
        record["verdict"] = "different".into();
        record["difference"] = format!("{evil} & more").into();
        record["production"]["prediction"] = evil.into();
        record["shadow"]["prediction"] = evil.into();
        record["shadow"]["version"] = evil.into();
    });
    fs::write(service.join("comparisons-1.jsonl"), text).unwrap();
    let report = summarize(folder.path(), &Options::default()).unwrap();
    assert!(!report.to_string().contains('\u{1b}'));
    let page = report.to_html();
    assert!(!page.contains("<script"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    assert!(page.contains("Slices, worst first"));
}

/// A service's folder with one file.
fn folder_of(lines: &[String]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let service = folder.path().join("sentiment");
    fs::create_dir(&service).unwrap();
    fs::write(service.join("comparisons-1.jsonl"), lines.concat()).unwrap();
    folder
}

/// A comparison of these versions, three a second.
fn of_pair(index: u64, production: &str, shadow: &str) -> String {
    line(index, |record| {
        record["production"]["version"] = production.into();
        record["shadow"]["version"] = shadow.into();
    })
}

/// Three pairs, the last of which ends with record 9; and what the canary got meanwhile.
fn pairs() -> tempfile::TempDir {
    let canary = |index| {
        let mut record: Value = serde_json::from_str(&of_pair(index, "v13", "v13")).unwrap();
        record["arm"] = "canary".into();
        format!("{record}\n")
    };
    let lines: Vec<String> = (0..10)
        .map(|index| match index {
            0..2 => of_pair(index, "v11", "v12"),
            2..4 => of_pair(index, "v11", "v13"),
            _ => of_pair(index, "v12", "v13"),
        })
        .chain([canary(2), canary(9)])
        .collect();
    folder_of(&lines)
}

fn wanted(wanted: Wanted) -> Options {
    Options {
        wanted,
        ..Options::default()
    }
}

#[test]
fn a_report_is_of_one_pair() {
    let folder = pairs();
    let check = |version: Option<&str>, expected: Option<(&str, &str)>, counts: [u64; 2]| {
        let options = wanted(Wanted {
            version: version.map(|version| version.parse().unwrap()),
            ..Wanted::default()
        });
        let report = summarize(folder.path(), &options).unwrap();
        let service = &report.services[0];
        let found = service.pair.as_ref().map(|found| &found.pair);
        let found = found.map(|pair| (&*pair.production, &*pair.shadow));
        assert_eq!(found, expected, "{version:?}");
        let canary = service.canary.as_ref().map_or(0, |canary| canary.compared);
        assert_eq!([service.compared, canary], counts, "{version:?}");
        report
    };
    let report = check(None, Some(("v12", "v13")), [6, 1]);
    let text = report.to_string();
    for words in [
        "sentiment: v13 in the shadow of v12",
        " 2  --version v11/v13: v13 in the shadow of v11, until 2026-11-22 03:00:01Z\n",
        " 2  --version v12: v12 in the shadow of v11, until 2026-11-22 03:00:00Z\n",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    check(Some("v13"), Some(("v12", "v13")), [6, 1]);
    check(Some("v11/v13"), Some(("v11", "v13")), [2, 2]);
    check(Some("v12"), Some(("v11", "v12")), [2, 0]);
    check(Some("v14"), None, [0, 0]);
}

#[test]
fn a_report_is_of_a_time() {
    let folder = pairs();
    let count = |since: Option<u64>, last| {
        let time = |index: u64| jiff::Timestamp::from_second(1_795_316_400 + index as i64 / 3);
        let options = wanted(Wanted {
            since: since.map(|index| time(index).unwrap()),
            last,
            version: None,
        });
        let report = summarize(folder.path(), &options).unwrap();
        let service = &report.services[0];
        let ids: Vec<_> = service.first.into_iter().chain(service.last).collect();
        (service.compared, ids.first().copied() == time(6).ok())
    };
    assert_eq!(count(None, None), (6, false));
    assert_eq!(count(Some(6), None), (4, true));
    assert_eq!(count(None, Some(4)), (4, true));
    assert_eq!(count(Some(6), Some(100)), (4, true));
    assert_eq!(count(None, Some(100)), (6, false));
    assert_eq!(count(Some(600), None), (0, false));
}

#[test]
fn a_ledger_of_other_versions_says_nothing_of_these() {
    let folder = records();
    let file = folder.path().join("sentiment").join(LEDGER);
    let ledger: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let report = |shadow: &str, production: &[&str]| {
        let mut ledger = ledger.clone();
        ledger["shadow_version"] = shadow.into();
        ledger["production_versions"] = json!(production);
        fs::write(&file, ledger.to_string()).unwrap();
        summarize(folder.path(), &Options::default()).unwrap()
    };
    let of_these = report("v13", &["v12"]);
    assert!(of_these.services[0].fidelity.is_some());
    for (shadow, production) in [("v14", &["v12"][..]), ("v13", &["v11", "v12"])] {
        let report = report(shadow, production);
        assert_eq!(report.services[0].fidelity, None);
        let text = report.to_string();
        let words = format!("{shadow} in the shadow of {}", production.join(" and "));
        assert!(text.contains(&words), "{words} in {text}");
    }
}

#[test]
fn no_data_does_not_pass() {
    let folder = records();
    let reached = |options: &Options, thresholds: &[&str]| {
        let thresholds: Vec<Threshold> = thresholds.iter().map(|t| t.parse().unwrap()).collect();
        let mut report = summarize(folder.path(), options).unwrap();
        report.check(&thresholds);
        let said = report.thresholds.iter();
        said.map(|at| (at.passes(), at.to_string()))
            .collect::<Vec<_>>()
    };
    let said = reached(
        &Options::default(),
        &[
            "agreement=0.92",
            "agreement_low=0.92",
            "fidelity=0.99",
            "compared=301",
            "answered=0.98",
        ],
    );
    let passes: Vec<bool> = said.iter().map(|(passes, _)| *passes).collect();
    assert_eq!(passes, [true, false, true, false, true], "{said:?}");
    assert!(said[1].1.contains("is below 0.92"), "{said:?}");
    let nothing = wanted(Wanted {
        version: Some("v99".parse().unwrap()),
        ..Wanted::default()
    });
    let said = reached(&nothing, &["agreement=0", "compared=1"]);
    assert_eq!(
        said[0],
        (
            false,
            "sentiment: agreement has no data, at least 0 is wanted".into()
        )
    );
    assert!(!said[1].0);
}

#[test]
fn what_always_differs_is_proposed() {
    let lines: Vec<String> = (0..20)
        .map(|index| {
            line(index, |record| {
                record["verdict"] = "different".into();
                record["difference"] = r#"/id: "a" became "b"; 1 more difference: /created"#.into();
                record["differing"] = json!({"/id": "token", "/created": "integer"});
                if index == 7 {
                    record["differing"]["/label"] = "token".into();
                }
            })
        })
        .collect();
    let folder = folder_of(&lines);
    let options = Options {
        ignored: [("sentiment".to_owned(), vec!["/old".to_owned()])].into(),
        ..Options::default()
    };
    let report = summarize(folder.path(), &options).unwrap();
    assert_eq!(
        report.services[0].differences[0].kind,
        "/id: \"…\" became \"…\""
    );
    for said in [report.to_string(), report.to_html().replace("&quot;", "\"")] {
        for words in [
            "95.00 % would agree, rather than 0.00 %",
            r#"ignore = ["/old", "/created", "/id"]"#,
        ] {
            assert!(said.contains(words), "{words} in\n{said}");
        }
    }
}

/// An exchange with the bodies that were recorded of it.
fn with_bodies(
    index: u64,
    production: &str,
    shadow: &str,
    change: impl FnOnce(&mut Value),
) -> String {
    line(index, |record| {
        for (leg, body) in [("production", production), ("shadow", shadow)] {
            record[leg]["body"] = body.into();
            record[leg]["headers"] = json!({"content-type": "application/json"});
            record[leg]["sha256"] = crate::record::form::sha256(body.as_bytes()).into();
        }
        record["verdict"] = "different".into();
        record["score"] = 0.5.into();
        record["difference"] = "as it was".into();
        change(record);
    })
}

#[test]
fn recorded_payloads_are_compared_once_more() {
    use crate::config::{Compare, Record};
    let without_bodies = |record: &mut Value| {
        for leg in ["production", "shadow"] {
            for key in ["body", "headers"] {
                record[leg].as_object_mut().unwrap().remove(key);
            }
        }
    };
    let withheld = |why: &'static str| {
        move |record: &mut Value| {
            record["shadow"].as_object_mut().unwrap().remove("body");
            record["shadow"]["body_withheld"] = why.into();
        }
    };
    let [was, now] = [r#"{"id":1,"y":[0.5]}"#, r#"{"id":2,"y":[0.6]}"#];
    let coded = |record: &mut Value| {
        for leg in ["production", "shadow"] {
            record[leg]["headers"]["content-encoding"] = "gzip".into();
            record[leg]["sha256"] = "of what was coded".into();
        }
    };
    let lines = [
        // Within the tolerance now; and not.
        with_bodies(0, was, now, |_| {}),
        with_bodies(1, was, now, coded),
        with_bodies(2, was, r#"{"id":2,"y":[9]}"#, |_| {}),
        // No body is needed.
        with_bodies(3, was, was, without_bodies),
        with_bodies(4, was, now, |record| {
            without_bodies(record);
            record["shadow"]["status"] = 500.into();
        }),
        failed(5),
        // These cannot be told.
        with_bodies(6, was, now, without_bodies),
        with_bodies(7, was, now, withheld("larger than 16 MiB")),
        with_bodies(
            8,
            was,
            now,
            withheld("not JSON, so that redact_fields cannot be applied"),
        ),
        with_bodies(9, was, now, |record| {
            record["shadow"]["body"] = "{\"y\":\"[redacted]\"}".into()
        }),
    ];
    let folder = folder_of(&lines);
    let compare = Compare {
        ignore: vec!["/id".into()],
        absolute: 0.2,
        prediction: Some("/y".into()),
        ..Compare::default()
    };
    let rules = Comparer::new(&compare, &Record::default());
    let options = Options {
        rules: Some([("sentiment".to_owned(), rules)].into()),
        ..Options::default()
    };
    let report = summarize(folder.path(), &options).unwrap();
    let service = &report.services[0];
    let left_out = [
        ("payload_cut", 1),
        ("payload_not_recorded", 1),
        ("payload_redacted", 2),
    ];
    let expected = Recompared {
        recompared: 6,
        changed: 3,
        left_out: left_out.into(),
    };
    assert_eq!(service.recompared, Some(expected));
    let verdicts = Verdicts {
        r#match: 3,
        different: 2,
        error: 1,
        both_failed: 0,
    };
    assert_eq!((service.compared, service.verdicts), (6, verdicts));
    let text = report.to_string();
    for words in [
        "payload_redacted 2",
        "/y: 1 of 1 numbers",
        "status 200 became 500",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    let other = Options {
        rules: Some(BTreeMap::new()),
        ..Options::default()
    };
    assert!(summarize(folder.path(), &other).is_err());
}

/// What is frequent is told, whenever it came first.
#[test]
fn what_comes_late_is_told_as_well() {
    let late = |index: u64, name: &str| {
        line(index, |record| {
            record["verdict"] = "different".into();
            record["slice"] = name.into();
            record["difference"] = format!("/{name}: differs").into();
            record["production"]["prediction"] = format!("was {name}").into();
            record["shadow"]["prediction"] = format!("now {name}").into();
        })
    };
    let rare = (0..1_100).map(|index| late(index, &format!("rare{index}x")));
    let frequent = (1_100..1_400).map(|index| late(index, "frequent"));
    let folder = folder_of(&rare.chain(frequent).collect::<Vec<_>>());
    let report = summarize(folder.path(), &Options::default()).unwrap();
    let service = &report.services[0];
    let first = &service.differences[0];
    assert_eq!((&*first.kind, first.count), ("/frequent: differs", 300));
    let told: u64 = service.differences.iter().map(|kind| kind.count).sum();
    assert_eq!(told + service.other_differences, 1_400);
    let slice = |name: &str| service.slices.iter().find(|s| s.slice == name).unwrap();
    assert_eq!(slice("frequent").compared, 300);
    assert_eq!(slice("other").compared, service.other_differences);
    let predictions = service.predictions.as_ref().unwrap();
    assert_eq!(predictions.changes[0].count, 300);
    let label = |name: &str| predictions.labels.iter().find(|l| l.label == name).unwrap();
    assert_eq!(label("was frequent").production, 300);
    let all: u64 = predictions
        .labels
        .iter()
        .map(|label| label.production)
        .sum();
    assert_eq!(all, 1_400);
}
