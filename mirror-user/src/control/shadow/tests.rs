use axum::body::Body;
use axum::http::Request;
use tower::Service as _;

use super::*;
use crate::shadow::summary::NoisePairs;

pub(crate) fn status() -> AgentStatus {
    AgentStatus {
        version: "0.1.0".into(),
        since: jiff::Timestamp::UNIX_EPOCH,
        time: jiff::Timestamp::UNIX_EPOCH,
        taps: vec![TapStatus {
            name: "node-1".into(),
            transport: Some("stream".into()),
            copies: [("lost".to_owned(), 2), ("received".to_owned(), 40)].into(),
            lost_bytes: 100,
            outstanding: 7,
            ..TapStatus::default()
        }],
        last_refusal: Some(LastRefusal {
            peer: "10.0.0.8".into(),
            reason: "bad_tls".into(),
            why: "no\u{1b}[2J key".into(),
            time: jiff::Timestamp::UNIX_EPOCH,
        }),
        services: vec![ServiceStatus {
            name: "sentiment".into(),
            version: "v13".into(),
            production_versions: ["v12".to_owned()].into(),
            saturated_seconds: Some(3.0),
            queue: [5, 10],
            drops: [("queue_full".to_owned(), 4)].into(),
            last_malformed: Some(Malformed {
                client: "10.0.0.7:4000".parse().unwrap(),
                side: "request".into(),
                why: "line end".into(),
            }),
            control: Some(ControlSummary {
                address: "10.0.0.9:8001".into(),
                down: Some("connect".into()),
                pairs: NoisePairs {
                    both: 1,
                    itself: 1,
                    versions: 1,
                    neither: 5,
                },
                missing: [("connect".to_owned(), 3)].into(),
                ..ControlSummary::default()
            }),
            traffic: TrafficSummary {
                repeated: 9,
                differing: 2,
            },
            ..ServiceStatus::default()
        }],
        memory_bytes: [1, 1 << 30],
        records: RecordStatus {
            stopped: true,
            ..RecordStatus::default()
        },
        record_dir: "/var/log/modelmirror".into(),
    }
}

#[test]
fn it_is_read_by_people() {
    let text = status().to_string();
    for words in [
        "warning: record writes suspended",
        "node-1  GONE",
        "last refused: 10.0.0.8 at 1970-01-01 00:00:00 UTC: no\\u{1b}[2J key",
        "2 (100 B)",
        "SERVICE sentiment  id 0, v13 in the shadow of v12",
        "SATURATED for 3 s: lower sample or raise concurrency",
        "5 of 10 wait",
        "queue_full 4",
        "control      10.0.0.9:8001, DOWN (connect): noise is not known",
        "noise        of 8: differs 25 %, of which 25 % the old version differs from itself",
        "noise        no answer: connect 3",
        "traffic      2 of 9 repeated requests were not answered as before",
        "line end (request) of 10.0.0.7:4000",
    ] {
        assert!(text.contains(words), "{words} in\n{text}");
    }
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
        assert_eq!(line.trim_end(), line);
    }
}

#[tokio::test]
async fn it_is_there_while_the_agent_works() {
    let ask = async |path: &str, says: Option<AgentStatus>| {
        let request = Request::get(path).body(Body::empty()).unwrap();
        router(move || says.clone())
            .call(request)
            .await
            .unwrap()
            .status()
    };
    assert_eq!(ask(PATH, Some(status())).await, StatusCode::OK);
    assert_eq!(ask(PATH, None).await, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        ask("/v1/status", Some(status())).await,
        StatusCode::NOT_FOUND
    );
}
