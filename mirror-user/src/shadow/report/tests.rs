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
    let report = summarize(folder.path(), None, None).unwrap();
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
    let report = summarize(folder.path(), None, None).unwrap();
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
fn records_are_added_up() {
    let folder = records();
    let report = summarize(folder.path(), None, None).unwrap();
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
    let text = summarize(folder.path(), None, None).unwrap().to_string();
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
    let error = summarize(folder.path(), Some("none"), None).unwrap_err();
    assert!(
        error.to_string().contains("there are: sentiment"),
        "{error}"
    );
    assert!(summarize(&folder.path().join("none"), None, None).is_err());
}

#[test]
fn nothing_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let report = summarize(folder.path(), None, None).unwrap();
    assert!(report.to_string().contains("nothing was compared yet"));
    fs::create_dir(folder.path().join("new")).unwrap();
    let report = summarize(folder.path(), None, None).unwrap();
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
    let report = summarize(folder.path(), None, None).unwrap();
    assert!(!report.to_string().contains('\u{1b}'));
    let page = report.to_html();
    assert!(!page.contains("<script"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"));
    assert!(page.contains("Slices, worst first"));
}
