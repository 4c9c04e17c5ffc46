use std::io::Write as _;

use mirror_wire::fixtures::JSON;
use mirror_wire::fixtures::fields;
use mirror_wire::fixtures::response;
use proptest::prelude::*;
use serde_json::json;

use super::fixture::{compare_config, exchange, json_exchange, record_config};
use super::*;

fn comparer(change: impl FnOnce(&mut config::Compare)) -> Comparer {
    let mut compare = compare_config();
    change(&mut compare);
    Comparer::new(&compare, &record_config())
}

/// Compares two JSON answers; `expected` are the words, nothing for a match.
fn check(comparer: &Comparer, production: &str, shadow: &str, expected: Option<&str>) {
    let comparison = comparer.compare(&json_exchange(production, shadow));
    let verdict = if expected.is_some() {
        Verdict::Different
    } else {
        Verdict::Match
    };
    assert_eq!(
        (comparison.difference.as_deref(), comparison.verdict),
        (expected, verdict),
        "{production} and {shadow}"
    );
    assert_eq!(comparison.score < 1.0, expected.is_some());
}

#[test]
fn json_is_compared_by_value() {
    let plain = comparer(|_| {});
    check(
        &plain,
        r#"{"a":1,"b":[]}"#,
        r#"{ "b" : [], "a" : 1.0 }"#,
        None,
    );
    check(
        &plain,
        "[1,2]",
        "[1,2,3]",
        Some("the answer: 2 elements became 3"),
    );
    check(&plain, r#"{"a":1}"#, r#"{"a":2}"#, Some("/a: 1 became 2"));
    check(
        &plain,
        r#"{"a":"x"}"#,
        r#"{"a":null}"#,
        Some(r#"/a: "x" became null"#),
    );
    check(
        &plain,
        r#"{"a":[]}"#,
        r#"{"a":{}}"#,
        Some("/a: an array of 0 became an object"),
    );
    check(
        &plain,
        r#"{"a/b":{"~":1}}"#,
        r#"{"a/b":{"~":1,"c":2}}"#,
        Some("/a~1b/c: only in the shadow's answer"),
    );
    check(
        &plain,
        r#"{"a":1,"b":2,"c":3}"#,
        r#"{"a":2,"b":3}"#,
        Some("/a: 1 became 2; 2 more differences: /b, /c"),
    );
}

#[test]
fn integers_are_never_rounded() {
    let near = comparer(|compare| {
        compare.absolute = 1e-6;
        compare.relative = 1e-4;
    });
    check(
        &near,
        "[9007199254740993]",
        "[9007199254740992]",
        Some(
            "the answer: 1 of 1 numbers differs, at index 0: 9007199254740993 became 9007199254740992 (by 1)",
        ),
    );
    check(
        &near,
        r#"{"token":18446744073709551615}"#,
        r#"{"token":18446744073709551614}"#,
        Some("/token: 18446744073709551615 became 18446744073709551614"),
    );
    check(
        &comparer(|_| {}),
        "9007199254740993",
        "9007199254740992.0",
        Some("the answer: 9007199254740993 became 9007199254740992 (by 1)"),
    );
}

#[test]
fn numbers_agree_within_either_tolerance() {
    let near = comparer(|compare| {
        compare.absolute = 0.001;
        compare.relative = 0.01;
    });
    check(&near, "0.0001", "-0.0001", None);
    check(&near, "100.0", "100.9", None);
    check(&near, "-100.0", "-100.9", None);
    check(
        &near,
        "100.0",
        "102.0",
        Some("the answer: 100 became 102 (by 2)"),
    );
    // A relative tolerance would make neighbours of large identifiers equal.
    check(
        &near,
        "100000",
        "100001",
        Some("the answer: 100000 became 100001"),
    );
    check(
        &comparer(|compare| compare.absolute = 1.0),
        "100000",
        "100001",
        None,
    );
}

#[test]
fn the_largest_difference_of_an_array_is_named() {
    let near = comparer(|compare| compare.absolute = 0.01);
    check(
        &near,
        r#"{"data":[1.0,2.0,3.0,4.0]}"#,
        r#"{"data":[1.001,2.5,3.75,4.0]}"#,
        Some("/data: 2 of 4 numbers differ, most at index 2: 3 became 3.75 (by 0.75)"),
    );
}

#[test]
fn a_class_distribution_is_judged_by_its_label_first() {
    let labels = comparer(|compare| {
        compare.prediction = Some("/outputs/0/data".into());
        compare.absolute = 0.01;
    });
    let answer = |data: &str| format!(r#"{{"id":"{}","outputs":[{{"data":{data}}}]}}"#, data.len());
    check(
        &labels,
        &answer("[0.1,0.6,0.3]"),
        &answer("[0.10,0.25,0.65]"),
        Some(
            "/outputs/0/data: label 1 became 2 (probability 0.6, now 0.65); 1 more difference: /id",
        ),
    );
    check(
        &labels,
        &answer("[0.125,0.625,0.25]"),
        &answer("[0.125,0.75,0.125]"),
        Some(
            "/outputs/0/data: 2 of 3 numbers differ, most at index 1: 0.625 became 0.75 \
             (by 0.125); the label agrees (1)",
        ),
    );
    // A batch of two, flattened.
    check(
        &labels,
        &answer("[1.0,0.0,0.25,0.75]"),
        &answer("[1.0,0.0,0.75,0.25]"),
        Some("/outputs/0/data: label 1 became 0 in row 1 of 2 (probability 0.75, now 0.75)"),
    );
    check(
        &labels,
        &answer("[1.0,0.0,0.250,0.750]"),
        &answer("[1.0,0.0,0.375,0.625]"),
        Some(
            "/outputs/0/data: 2 of 4 numbers differ, most at index 2: 0.25 became 0.375 \
             (by 0.125); all 2 labels agree",
        ),
    );
    // A tie within the tolerance is no difference, whichever label leads by a hair.
    check(
        &labels,
        &answer("[0.5,0.499,0.001]"),
        &answer("[0.499,0.5,0.001]"),
        None,
    );
    // Not a distribution: the sum is 2.
    check(
        &labels,
        &answer("[0.5,1.5]"),
        &answer("[1.5,0.5]"),
        Some("/outputs/0/data: 2 of 2 numbers differ, most at index 0: 0.5 became 1.5 (by 1)"),
    );
}

#[test]
fn ties_of_labels_show_as_a_match_within_the_tolerance() {
    let comparer = comparer(|compare| {
        compare.prediction = Some("/p/*".into());
        compare.absolute = 0.1;
    });
    check(
        &comparer,
        r#"{"p":[0.9,0.1]}"#,
        r#"{"p":[0.2,0.8]}"#,
        Some("/p: label 0 became 1 (probability 0.9, now 0.8)"),
    );
    check(
        &comparer,
        r#"{"p":[0.52,0.48]}"#,
        r#"{"p":[0.48,0.52]}"#,
        None,
    );
}

#[test]
fn ignored_places_are_not_seen() {
    let ignoring = comparer(|compare| compare.ignore = vec!["/id".into(), "/outputs/*/ms".into()]);
    check(
        &ignoring,
        r#"{"id":1,"outputs":[{"ms":1,"y":2}]}"#,
        r#"{"outputs":[{"ms":[9],"y":2}]}"#,
        None,
    );
    check(
        &ignoring,
        r#"{"outputs":[{"y":2}]}"#,
        r#"{"outputs":[{"y":3}]}"#,
        Some("/outputs/0/y: 2 became 3"),
    );
}

#[test]
fn the_score_is_the_share_of_leaves_that_agree() {
    let score = |production: &str, shadow: &str| {
        let comparison = comparer(|_| {}).compare(&json_exchange(production, shadow));
        comparison.score
    };
    assert_eq!(score("[1,2,3,4]", "[1,2,3,5]"), 0.75);
    assert_eq!(score(r#"{"a":1,"b":[1,2,3]}"#, r#"{"a":1}"#), 0.25);
    assert_eq!(score("1", "2"), 0.0);
}

fn check_bodies(
    production: (&[(&str, &str)], &[u8]),
    shadow: (&[(&str, &str)], &[u8]),
    (expected, score): (&str, f64),
) {
    let exchange = exchange(
        response(200, production.0, production.1),
        Ok(response(200, shadow.0, shadow.1)),
    );
    let comparison = comparer(|_| {}).compare(&exchange);
    assert_eq!(comparison.difference.as_deref(), Some(expected));
    assert_eq!(comparison.score, score);
}

#[test]
fn what_is_not_json_is_compared_as_text_or_bytes() {
    let text: &[(&str, &str)] = &[("content-type", "text/plain; charset=utf-8")];
    let png: &[(&str, &str)] = &[("content-type", "image/png")];
    let gzip: &[(&str, &str)] = &[("content-encoding", "gzip"), JSON[0]];
    check_bodies(
        (text, b"one\ntwo\nthree"),
        (text, b"one\n2\nthree"),
        (r#"line 2: "two" became "2""#, 2.0 / 3.0),
    );
    check_bodies(
        (text, b"one"),
        (text, b"one\n"),
        ("line 2: only in the shadow's answer", 0.5),
    );
    check_bodies(
        (text, b"[1,2]"),
        (&[], b"[1,3]"),
        (
            "the answer: 1 of 2 numbers differs, at index 1: 2 became 3 (by 1)",
            0.5,
        ),
    );
    check_bodies(
        (png, b"\x89PNG"),
        (png, b"\x89pNG"),
        ("bytes differ from offset 1 on, of 4", 0.75),
    );
    check_bodies(
        (png, b"\x89PNG"),
        (png, b"\x89PN"),
        ("4 bytes became 3, different from offset 3 on", 0.75),
    );
    check_bodies(
        (gzip, b"\x1f\x8b1"),
        (gzip, b"\x1f\x8b2"),
        (
            "bytes differ from offset 2 on, of 3 (compared as bytes: content-encoding gzip: \
             unexpected end of file)",
            2.0 / 3.0,
        ),
    );
    check_bodies(
        (JSON, b"[nan]"),
        (JSON, b"[1]"),
        (
            "only one answer is JSON; production's is not valid JSON (expected ident at line 1 column 3)",
            0.0,
        ),
    );
    check_bodies(
        (JSON, b"[nan]"),
        (JSON, b"[nan,1]"),
        (
            r#"line 1: "[nan]" became "[nan,1]" (compared as text: not valid JSON (expected ident at line 1 column 3))"#,
            0.0,
        ),
    );
    check_bodies(
        (JSON, b"[NaN, Infinity]"),
        (JSON, b"[NaN,1]"),
        (
            "the answer: 1 of 2 numbers differs, at index 1: inf became 1 (by inf)",
            0.5,
        ),
    );
    let mut large = vec![b' '; json::MAX_PARSED + 2];
    large[json::MAX_PARSED] = b'1';
    let mut other = large.clone();
    other[json::MAX_PARSED] = b'2';
    let score = (json::MAX_PARSED + 1) as f64 / (json::MAX_PARSED + 2) as f64;
    check_bodies(
        (JSON, &large),
        (JSON, &other),
        (
            "bytes differ from offset 16777216 on, of 16777218 (compared as bytes: larger than 16 MiB)",
            score,
        ),
    );
}

fn gzip(body: &[u8], time: u32) -> Vec<u8> {
    let mut gzip = flate2::GzBuilder::new()
        .mtime(time)
        .write(Vec::new(), flate2::Compression::fast());
    gzip.write_all(body).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn content_codings_are_taken_off_first() {
    let coded: &[(&str, &str)] = &[("Content-Encoding", "gzip"), JSON[0]];
    let (was, now) = (gzip(b"[1,2]", 7), gzip(b"[1,2]", 8));
    let comparer = comparer(|compare| compare.prediction = Some("/0".into()));
    let same = comparer.compare(&exchange(
        response(200, coded, &was),
        Ok(response(200, coded, &now)),
    ));
    assert_eq!((same.verdict, same.difference), (Verdict::Match, None));
    assert_eq!(same.production_prediction, Some(json!(1)));
    check_bodies(
        (coded, &was),
        (JSON, b"[1,3]"),
        (
            "the answer: 1 of 2 numbers differs, at index 1: 2 became 3 (by 1)",
            0.5,
        ),
    );
    let png: &[(&str, &str)] = &[("Content-Encoding", "gzip"), ("Content-Type", "image/png")];
    check_bodies(
        (png, &gzip(b"\x89PNG", 0)),
        (png, &gzip(b"\x89pNG", 0)),
        ("bytes differ from offset 1 on, of 4", 0.75),
    );
}

/// An answer with one tensor behind it.
fn tensor(id: &str, datatype: &str, data: &[u8]) -> Response {
    let json = json!({"id": id, "outputs": [{
        "name": "scores", "shape": [2], "datatype": datatype,
        "parameters": {"binary_data_size": data.len()},
    }]})
    .to_string();
    let length = json.len().to_string();
    let headers = [
        ("Content-Type", "application/octet-stream"),
        ("Inference-Header-Content-Length", &length),
    ];
    response(200, &headers, &[json.as_bytes(), data].concat())
}

#[test]
fn binary_tensors_are_compared_as_numbers() {
    let comparer = comparer(|compare| {
        compare.prediction = Some("/outputs/0/data".into());
        compare.ignore = vec!["/id".into()];
        compare.relative = 1e-3;
    });
    let floats = |values: [f32; 2]| values.map(f32::to_le_bytes).concat();
    let check = |production: Response, shadow: Response, expected: Option<&str>| {
        let comparison = comparer.compare(&exchange(production, Ok(shadow)));
        assert_eq!(comparison.difference.as_deref(), expected);
        comparison
    };
    let production = || tensor("1", "FP32", &floats([0.75, 0.25]));
    let near = check(
        production(),
        tensor("2", "FP32", &floats([0.7501, 0.2499])),
        None,
    );
    assert_eq!(near.production_prediction, Some(json!([0.75, 0.25])));
    check(
        production(),
        tensor("1", "FP32", &floats([0.25, 0.75])),
        Some("/outputs/0/data: label 0 became 1 (probability 0.75, now 0.75)"),
    );
    let plain =
        r#"{"outputs":[{"name":"scores","shape":[2],"datatype":"FP32","data":[0.75,0.25]}]}"#;
    check(production(), response(200, JSON, plain.as_bytes()), None);
    check(
        tensor("1", "FP32", &floats([f32::NAN, f32::INFINITY])),
        tensor("2", "FP32", &floats([f32::NAN, f32::INFINITY])),
        None,
    );
    check(
        tensor("1", "FP32", &floats([0.5, 0.25])),
        tensor("1", "FP32", &floats([f32::NAN, f32::INFINITY])),
        Some("/outputs/0/data: 2 of 2 numbers differ, most at index 0: 0.5 became NaN (by inf)"),
    );
    check(
        production(),
        tensor("1", "FP31", &floats([0.25, 0.75])),
        Some(
            "bytes differ from offset 37 on, of 114 (compared as bytes: not tensors: \
             a datatype that is not known)",
        ),
    );
}

#[test]
fn streamed_answers_are_compared_piece_by_piece() {
    let events: &[(&str, &str)] = &[("Content-Type", "text/event-stream; charset=utf-8")];
    let lines: &[(&str, &str)] = &[("Content-Type", "application/x-ndjson")];
    let comparer = comparer(|compare| {
        compare.prediction = Some("/*/data/text".into());
        compare.ignore = vec!["/*/data/id".into(), "/*/at".into()];
    });
    let answer = |id: u8, last: &str| {
        format!(
            "data: {{\"id\":{id},\"text\":\"Hel\"}}\n\ndata: {{\"id\":{id},\"text\":\"{last}\"}}\n\n\
             data: [DONE]\n\n"
        )
    };
    let compare = |headers, production: &str, shadow: &str| {
        comparer.compare(&exchange(
            response(200, headers, production.as_bytes()),
            Ok(response(200, headers, shadow.as_bytes())),
        ))
    };
    let same = compare(events, &answer(1, "lo"), &answer(2, "lo"));
    assert_eq!((same.verdict, same.difference), (Verdict::Match, None));
    assert_eq!(same.shadow_prediction, Some(json!(["Hel", "lo"])));
    let other = compare(events, &answer(1, "lo"), &answer(2, "p"));
    assert_eq!(
        other.difference.as_deref(),
        Some(r#"/1/data/text: "lo" became "p""#)
    );
    let lines = compare(
        lines,
        "{\"at\":1,\"y\":1}\n",
        "{\"at\":2,\"y\":1}\n{\"y\":2}\n",
    );
    assert_eq!(
        lines.difference.as_deref(),
        Some("the answer: 1 elements became 2")
    );
    let plain = compare(events, "data: hello\n\n", "data: help\n\n");
    assert_eq!(
        plain.difference.as_deref(),
        Some(r#"line 1: "data: hello" became "data: help""#)
    );
}

#[test]
fn the_status_comes_first() {
    let comparer = comparer(|compare| compare.prediction = Some("/y".into()));
    let answer = |status, body: &str| response(status, JSON, body.as_bytes());
    let comparison = comparer.compare(&exchange(
        answer(200, r#"{"y":1}"#),
        Ok(answer(503, r#"{"y":1}"#)),
    ));
    assert_eq!(comparison.verdict, Verdict::Different);
    assert_eq!(comparison.score, 0.0);
    assert_eq!(
        comparison.difference.as_deref(),
        Some("status 200 became 503")
    );
    for [was, now] in [[500, 500], [422, 422], [400, 503]] {
        let both = comparer.compare(&exchange(answer(was, "x"), Ok(answer(now, "x"))));
        assert_eq!(both.verdict, Verdict::BothFailed, "{was} {now}");
        assert_eq!((both.score, both.difference), (0.0, None));
    }
    for [was, now] in [[404, 200], [200, 404], [302, 404]] {
        let one = comparer.compare(&exchange(answer(was, "x"), Ok(answer(now, "x"))));
        assert_eq!(one.verdict, Verdict::Different, "{was} {now}");
    }
    let moved = comparer.compare(&exchange(answer(302, ""), Ok(answer(302, ""))));
    assert_eq!(moved.verdict, Verdict::Match);
}

#[test]
fn a_shadow_without_answer_is_an_error() {
    let comparer = comparer(|compare| compare.prediction = Some("/y".into()));
    let production = response(200, JSON, br#"{"y":1}"#);
    let comparison = comparer.compare(&exchange(production, Err(ShadowError::Timeout)));
    assert_eq!(comparison.verdict, Verdict::Error);
    assert_eq!(comparison.production_prediction, Some(json!(1)));
    assert_eq!(comparison.shadow_prediction, None);
    assert_eq!(
        comparison.difference.as_deref(),
        Some("the shadow gave no whole answer in time")
    );
}

fn check_prediction(pointer: &str, body: &str, expected: Option<Value>) {
    let comparer = comparer(|compare| compare.prediction = Some(pointer.into()));
    let comparison = comparer.compare(&json_exchange(body, body));
    assert_eq!(comparison.production_prediction, expected, "{pointer}");
    assert_eq!(comparison.shadow_prediction, expected, "{pointer}");
}

#[test]
fn the_prediction_is_kept_small() {
    check_prediction("/y", r#"{"y":"cat"}"#, Some(json!("cat")));
    check_prediction("/x", r#"{"y":"cat"}"#, None);
    check_prediction("/*/y", r#"[{"y":1},{"y":2.5},{}]"#, Some(json!([1, 2.5])));
    check_prediction("/*/y", "[]", None);
    check_prediction("", "3", Some(json!(3)));
    let numbers: Vec<f64> = (0..100).map(f64::from).collect();
    let summary = json!({"length": 100, "argmax": 99, "min": 0.0, "max": 99.0, "mean": 49.5});
    check_prediction("", &json!(numbers).to_string(), Some(summary));
    let words = vec!["word"; 1000];
    check_prediction("", &json!(words).to_string(), Some(json!({"length": 1000})));
    let long = "é".repeat(1000);
    let cut = format!("{}…", "é".repeat(256));
    check_prediction("", &json!(long).to_string(), Some(json!(cut)));
}

#[test]
fn slices_come_from_a_header_or_from_the_request() {
    let slice = |slice| {
        let comparer = comparer(|compare| compare.slice = Some(slice));
        let mut exchange = json_exchange("1", "1");
        exchange.request.headers = fields(&[("X-Tenant", "blue")]);
        comparer.compare(&exchange).slice
    };
    let header = |name: &str| slice(config::Slice::Header(name.into()));
    let pointer = |pointer: &str| slice(config::Slice::Pointer(pointer.into()));
    assert_eq!(header("x-tenant").as_deref(), Some("blue"));
    assert_eq!(header("x-other"), None);
    assert_eq!(pointer("/user/tenant").as_deref(), Some("acme"));
    assert_eq!(pointer("/user/none"), None);
}

#[test]
fn nothing_redacted_is_quoted() {
    let compare = config::Compare {
        prediction: Some("/out".into()),
        slice: Some(config::Slice::Header("authorization".into())),
        ..compare_config()
    };
    let record = config::Record {
        redact_fields: vec!["/secret".into(), "/out/*/name".into(), "/row/1".into()],
        ..record_config()
    };
    let comparer = Comparer::new(&compare, &record);
    let compare = |production: &str, shadow: &str| {
        let mut exchange = json_exchange(production, shadow);
        exchange.request.headers = fields(&[("Authorization", "Bearer hush")]);
        comparer.compare(&exchange)
    };
    let words = |production: &str, shadow: &str| compare(production, shadow).difference.unwrap();

    assert_eq!(
        words(r#"{"secret":{"hush":1}}"#, r#"{"secret":{"hush":2}}"#),
        "/secret: differs (redacted)"
    );
    assert_eq!(
        words(r#"{"row":[1,2]}"#, r#"{"row":[1,777]}"#),
        "/row: 1 of 2 numbers differ (redacted)"
    );
    assert!(!words(r#"{"secret":"hush1""#, r#"{"secret":"hush2""#).contains("hush"));
    let predicted = compare(
        r#"{"out":[{"name":"hush","p":1}]}"#,
        r#"{"out":[{"name":"hush","p":2}]}"#,
    );
    assert_eq!(
        predicted.production_prediction,
        Some(json!([{"name": "[redacted]", "p": 1}]))
    );
    assert_eq!(predicted.slice.as_deref(), Some("[redacted]"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let number = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (-10.0..10.0).prop_map(Value::from),
        (0_i64..3).prop_map(Value::from),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number.boxed(),
        "[a-c/~é]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-c]", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn verdict(comparer: &Comparer, production: &Value, shadow: &Value) -> Comparison {
    // The space keeps equal values from being recognised by their bytes.
    comparer.compare(&json_exchange(
        &production.to_string(),
        &format!(" {shadow}"),
    ))
}

proptest! {
    #[test]
    fn an_answer_matches_itself(value in any_json(), prediction in prop::option::of("(/[a-c*]){0,3}")) {
        let comparer = comparer(|compare| compare.prediction = prediction);
        let comparison = verdict(&comparer, &value, &value);
        prop_assert_eq!(comparison.verdict, Verdict::Match);
        prop_assert_eq!(comparison.score, 1.0);
        prop_assert_eq!(comparison.difference, None);
    }

    #[test]
    fn verdict_and_score_are_symmetric(a in any_json(), b in any_json(), relative in 0.0..0.5) {
        let comparer = comparer(|compare| {
            compare.relative = relative;
            compare.prediction = Some("/a".into());
        });
        let (there, back) = (verdict(&comparer, &a, &b), verdict(&comparer, &b, &a));
        prop_assert_eq!(there.verdict, back.verdict);
        prop_assert_eq!(there.score, back.score);
        prop_assert!((0.0..=1.0).contains(&there.score));
        prop_assert_eq!(there.verdict == Verdict::Match, there.score == 1.0);
    }

    #[test]
    fn a_wider_tolerance_never_finds_more(
        a in prop::collection::vec(-2.0..2.0, 1..6),
        b in prop::collection::vec(-2.0..2.0, 1..6),
        absolute in 0.0..2.0,
        relative in 0.0..1.0,
        wider in 0.0..2.0,
    ) {
        let narrow = comparer(|c| (c.absolute, c.relative) = (absolute, relative));
        let wide = comparer(|c| (c.absolute, c.relative) = (absolute + wider, relative + wider));
        let (a, b) = (json!(a), json!(b));
        prop_assert!(verdict(&wide, &a, &b).score >= verdict(&narrow, &a, &b).score);
    }

    #[test]
    fn an_ignored_place_is_invisible(value in any_json(), a in any_json(), b in any_json()) {
        let comparer = comparer(|compare| compare.ignore = vec!["/x/*/y".into()]);
        let answer = |hidden: &Value| json!({"x": [{"y": hidden, "z": value}], "w": value});
        let comparison = verdict(&comparer, &answer(&a), &answer(&b));
        prop_assert_eq!(comparison.verdict, Verdict::Match);
        let without = json!({"x": [{"z": value}], "w": value});
        prop_assert_eq!(verdict(&comparer, &answer(&a), &without).verdict, Verdict::Match);
    }

    #[test]
    fn any_bytes_are_compared(a in any::<Vec<u8>>(), b in any::<Vec<u8>>(), json in any::<bool>()) {
        let headers = if json { JSON } else { &[] };
        let answer = |body: &[u8]| response(200, headers, body);
        let comparison = comparer(|_| {}).compare(&exchange(answer(&a), Ok(answer(&b))));
        prop_assert!(a != b || comparison.verdict == Verdict::Match);
        prop_assert!((0.0..=1.0).contains(&comparison.score));
    }
}

/// What a report proposes to ignore is told from the places where answers differ.
#[test]
fn places_are_noted_by_what_differs_there() {
    let comparer = comparer(|compare| {
        compare.prediction = Some("/y".into());
        compare.ignore = vec!["/ignored".into()];
    });
    let production = r#"{"y":1,"id":"a-1","at":"2026-11-22 03:00","n":1,"f":0.5,"s":"a b","ignored":1,
        "list":[{"id":"a","t":"x"},{"id":"b","t":"x y"}],"k":1,"long":[1]}"#;
    let shadow = r#"{"y":2,"id":"a-2","at":"2026-11-22 03:01","n":2,"f":0.7,"s":"a c","ignored":2,
        "list":[{"id":"c","t":"z"},{"id":"d","t":"z y"}],"k":"1","long":[1,2],"new":true}"#;
    let comparison = comparer.compare(&json_exchange(production, shadow));
    let expected = [
        ("/at", Values::Token),
        ("/f", Values::Number),
        ("/id", Values::Token),
        ("/k", Values::Kinds),
        ("/list/*/id", Values::Token),
        ("/list/*/t", Values::Text),
        ("/long", Values::Length),
        ("/n", Values::Integer),
        ("/new", Values::Missing),
        ("/s", Values::Text),
        ("/y", Values::Prediction),
    ];
    let found: Vec<_> = comparison.places.found.iter().collect();
    let found: Vec<_> = found.iter().map(|(p, v)| (&***p, **v)).collect();
    assert_eq!((found, comparison.places.more), (expected.to_vec(), false));
    let words = comparison.difference.unwrap();
    assert_eq!(
        words,
        "/y: 1 became 2; 12 more differences: /at, /f, /id, …"
    );
}

#[test]
fn many_places_are_not_all_noted() {
    let body = |value: u32, keys: u32| {
        let members: Vec<String> = (0..keys).map(|key| format!("\"k{key}\":{value}")).collect();
        format!("{{{}}}", members.join(","))
    };
    let places = |keys| {
        let comparer = comparer(|_| {});
        let comparison = comparer.compare(&json_exchange(&body(1, keys), &body(5, keys)));
        (comparison.places.found.len(), comparison.places.more)
    };
    assert_eq!(places(16), (16, false));
    assert_eq!(places(17), (16, true));
    assert_eq!(places(5000), (16, true));
}

/// Names of members under what is redacted are not shown, as one of more differences either.
#[test]
fn redacted_places_end_there() {
    let record = config::Record {
        redact_fields: vec!["/user".into()],
        ..record_config()
    };
    let comparer = Comparer::new(&compare_config(), &record);
    let production = r#"{"a":1,"user":{"hush":1,"hush2":1}}"#;
    let shadow = r#"{"a":2,"user":{"hush":2,"hush2":2}}"#;
    let comparison = comparer.compare(&json_exchange(production, shadow));
    let words = comparison.difference.unwrap();
    assert_eq!(words, "/a: 1 became 2; 2 more differences: /user, …");
    assert_eq!(comparison.places.found["/user"], Values::Redacted);
}
