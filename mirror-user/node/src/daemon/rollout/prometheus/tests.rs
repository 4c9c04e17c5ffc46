use std::io::ErrorKind;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use tokio::net::TcpListener;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

/// What is said of an answer.
fn check(status: u16, body: &str, expected: Result<f64, &str>) {
    let status = StatusCode::from_u16(status).unwrap();
    let found = number(status, body, MINUTE).map_err(|missing| missing.to_string());
    assert_eq!(found, expected.map_err(str::to_owned), "{body}");
}

fn vector(elements: &str) -> String {
    format!(r#"{{"status":"success","data":{{"resultType":"vector","result":[{elements}]}}}}"#)
}

#[test]
fn one_number_is_a_value() {
    check(
        200,
        &vector(r#"{"metric":{"a":"b"},"value":[1763.5,"0.25"]}"#),
        Ok(0.25),
    );
    check(
        200,
        &vector(r#"{"metric":{},"value":[1763,"-1e3"]}"#),
        Ok(-1000.0),
    );
    let scalar =
        r#"{"status":"success","data":{"resultType":"scalar","result":[1,"4"]},"infos":["a"]}"#;
    check(200, scalar, Ok(4.0));
    let remark = r#"{"status":"success","warnings":["PromQL info: metric might not be a counter"],"data":{"resultType":"scalar","result":[1,"4"]}}"#;
    check(200, remark, Ok(4.0));
}

#[test]
fn everything_else_is_none_with_its_reason() {
    check(
        200,
        &vector(""),
        Err("no series has a sample of the last 1m"),
    );
    for value in ["NaN", "+Inf", "-Inf"] {
        let answer = vector(&format!(r#"{{"metric":{{}},"value":[1,"{value}"]}}"#));
        check(200, &answer, Err(&format!("the value is {value}")));
    }
    let two = r#"{"metric":{"a":"1"},"value":[1,"1"]},{"metric":{"a":"2"},"value":[1,"1"]}"#;
    check(
        200,
        &vector(two),
        Err("2 series, not one: aggregate them, such as with sum(...)"),
    );
    let histogram = r#"{"metric":{},"histogram":[1,{"count":"3","sum":"1"}]}"#;
    check(
        200,
        &vector(histogram),
        Err("the query gives a histogram, not a number"),
    );
    let range =
        r#"{"status":"success","data":{"resultType":"matrix","result":[{"values":[[1,"1"]]}]}}"#;
    check(
        200,
        range,
        Err("the query gives a range of values, not a number"),
    );
    let words = r#"{"status":"success","data":{"resultType":"string","result":[1,"a"]}}"#;
    check(200, words, Err("the query gives a string, not a number"));
    let refused = r#"{"status":"error","errorType":"bad_data","error":"invalid parameter \"query\": 1:4: parse error"}"#;
    check(
        400,
        refused,
        Err("Prometheus refuses the query (400): invalid parameter \"query\": 1:4: parse error"),
    );
    let partial = r#"{"status":"success","warnings":["a store is gone"],"data":{"resultType":"scalar","result":[1,"4"]}}"#;
    check(200, partial, Err("Prometheus warns: a store is gone"));
    check(
        502,
        "<html>\n <h1>Bad Gateway</h1>",
        Err("what answers (502) is not Prometheus; look at `prometheus` in the plan"),
    );
    check(
        200,
        "",
        Err("what answers (200) is not Prometheus; look at `prometheus` in the plan"),
    );
}

/// Serves until the test ends, and returns the base.
async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    base
}

fn prometheus(base: &str) -> Prometheus {
    Prometheus::new(http::client().unwrap(), &base.into())
}

/// Answers with what it was asked, as an error of Prometheus.
async fn echo(form: String) -> (StatusCode, String) {
    let body = format!(r#"{{"status":"error","error":"{form}"}}"#);
    (StatusCode::BAD_REQUEST, body)
}

#[tokio::test]
async fn the_question_is_a_form() {
    let base = serve(Router::new().route("/prefix/api/v1/query", post(echo))).await;
    let prometheus = prometheus(&format!("{base}/prefix"));
    let asked = prometheus.ask("a{b=\"c\"}", MINUTE).await;
    let said = "query=a%7Bb%3D%22c%22%7D&lookback_delta=60000ms&timeout=5000ms".to_owned();
    let status = 400;
    assert_eq!(asked, Err(Missing::Refused { status, said }));
}

#[tokio::test]
async fn who_cannot_tell_old_samples_apart_is_not_believed() {
    let deaf =
        || async { r#"{"status":"success","data":{"resultType":"scalar","result":[1,"4"]}}"# };
    let base = serve(Router::new().route("/api/v1/query", post(deaf))).await;
    let prometheus = prometheus(&base);
    let staleness = Duration::from_secs(120);
    let unknown = prometheus.ask("a", staleness).await.unwrap_err();
    assert_eq!(unknown, Missing::AgeUnknown { staleness });
    let words = unknown.to_string();
    assert!(words.contains("write staleness = \"5m\""), "{words}");
    assert_eq!(prometheus.ask("a", 5 * MINUTE).await, Ok(4.0));
}

#[tokio::test]
async fn who_does_not_answer_is_said_so() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let refused = Missing::Unreachable("Connection refused (os error 111)".to_owned());
    assert_eq!(prometheus(&base).ask("a", MINUTE).await, Err(refused));

    // Nobody accepts: the kernel shakes hands, and that is all.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut prometheus = prometheus(&format!("http://{}", deaf.local_addr().unwrap()));
    prometheus.patience = Duration::from_millis(50);
    let silent = prometheus.ask("a", MINUTE).await.unwrap_err();
    assert_eq!(silent.to_string(), "Prometheus does not answer within 50ms");
}

/// Debian's Prometheus, which scrapes us, in a folder of its own.
struct Real {
    process: Child,
    base: String,
    dir: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Real {
    /// Nothing where it is not installed, except under CI.
    async fn start(target: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}\n\
             scrape_configs: [{{job_name: trial, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        let file = dir.path().join("prometheus.yml");
        std::fs::write(&file, config).unwrap();
        // Free at this moment; nothing tells Prometheus to choose and say which.
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let started = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                dir.path().join("data").display()
            ))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        match started {
            Ok(process) => Some(Self {
                process,
                base: format!("http://{address}"),
                dir,
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                crate::skip::skip("needs Debian's prometheus");
                None
            }
            Err(error) => panic!("prometheus: {error}"),
        }
    }

    /// What it says once that is as expected.
    async fn eventually(
        &self,
        query: &str,
        staleness: Duration,
        expected: impl Fn(&Result<f64, Missing>) -> bool,
    ) {
        let prometheus = prometheus(&self.base);
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let said = prometheus.ask(query, staleness).await;
            if expected(&said) {
                return;
            }
            let log = std::fs::read_to_string(self.dir.path().join("log"));
            assert!(Instant::now() < end, "{query}: {said:?}\n{log:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_real_prometheus_says_what_there_is() {
    let gone = Arc::new(AtomicBool::new(false));
    let scraped = {
        let gone = gone.clone();
        move || async move {
            let old = jiff::Timestamp::now().as_millisecond() - 60_000;
            let brief = if gone.load(Relaxed) { "" } else { "brief 1\n" };
            format!(
                "good 4.5\nodd NaN\ntwice{{a=\"1\"}} 1\ntwice{{a=\"2\"}} 2\nold 7 {old}\n{brief}"
            )
        }
    };
    let base = serve(Router::new().route("/metrics", get(scraped))).await;
    let Some(prometheus) = Real::start(base.trim_start_matches("http://")).await else {
        return;
    };
    let staleness = 5 * MINUTE;
    let check = |query, expected: Result<f64, Missing>| {
        prometheus.eventually(query, staleness, move |said| *said == expected)
    };
    let not_finite = |value: &str| Err(Missing::NotFinite(value.to_owned()));
    check("good", Ok(4.5)).await;
    check("scalar(good)", Ok(4.5)).await;
    check("sum(twice)", Ok(3.0)).await;
    check("old", Ok(7.0)).await;
    check("twice", Err(Missing::Several(2))).await;
    check("odd", not_finite("NaN")).await;
    check("good / 0", not_finite("+Inf")).await;
    check("nowhere", Err(Missing::NoSeries { staleness })).await;
    let range = Missing::NotANumber("range of values".to_owned());
    check("good[1m]", Err(range)).await;
    let parse_error = |said: &Result<f64, Missing>| matches!(said, Err(Missing::Refused { status: 400, said }) if said.contains("parse error"));
    prometheus.eventually("sum(", staleness, parse_error).await;

    // What a target no longer says is stale at once.
    check("brief", Ok(1.0)).await;
    gone.store(true, Relaxed);
    check("brief", Err(Missing::NoSeries { staleness })).await;

    // A sample of a minute ago is none, or a Prometheus before 2.43 cannot tell.
    let staleness = MINUTE / 2;
    let none = [
        Missing::NoSeries { staleness },
        Missing::AgeUnknown { staleness },
    ];
    let stale = |said: &Result<f64, Missing>| said.as_ref().is_err_and(|why| none.contains(why));
    prometheus.eventually("old", staleness, stale).await;
}
