use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use mirror_wire::fixtures::JSON;
use mirror_wire::fixtures::fields;
use mirror_wire::fixtures::response;
use mirror_wire::message::ShadowError;
use serde_json::{Value, json};

use super::form::milliseconds;
use super::*;
use crate::compare::Comparer;
use crate::compare::fixture::{compare_config, exchange, json_exchange, record_config};
use crate::config::{Payloads, Shadow, ShadowService};

fn config(record_dir: &Path, record: config::Record) -> Shadow {
    let localhost = "127.0.0.1:0".parse().unwrap();
    Shadow {
        listen: localhost,
        vxlan: None,
        admin: localhost,
        key_file: "/nonexistent".into(),
        control_socket: "/nonexistent/control.sock".into(),
        taps: Vec::new(),
        insecure: true,
        allow: Vec::new(),
        record_dir: record_dir.to_owned(),
        record_limit: 1 << 30,
        memory: 1 << 30,
        batch_interval: Duration::ZERO,
        services: vec![ShadowService {
            name: "sentiment".into(),
            id: 101,
            addresses: Vec::new(),
            target: localhost,
            control: None,
            host: config::HostHeader::Keep,
            version: "v13".into(),
            timeout: Duration::from_secs(5),
            incomplete_after: Duration::from_secs(30),
            concurrency: 1,
            queue: 1,
            max_body: 1 << 20,
            requests: config::Requests::default(),
            compare: config::Compare {
                prediction: Some("/y".into()),
                ..compare_config()
            },
            record,
            labels: None,
        }],
    }
}

/// Records the exchanges and returns the raw bytes on the disk.
fn written(record: config::Record, exchanges: &[Exchange]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let config = config(&folder.path().join("records"), record);
    let service = &config.services[0];
    let comparer = Comparer::new(&service.compare, &service.record);
    let recorder = Recorder::open(&config).unwrap();
    for exchange in exchanges {
        let outcome = recorder.write(0, exchange, &comparer.compare(exchange));
        assert_eq!(outcome, Outcome::Queued);
    }
    drop(recorder);
    let files = files(&config.record_dir);
    files
        .iter()
        .map(|f| fs::read_to_string(f).unwrap())
        .collect()
}

fn files(record_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(record_dir.join("sentiment")).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_record_has_the_fields_of_the_contract() {
    let mut exchange = json_exchange(r#"{"y":1}"#, r#"{"y":2}"#);
    exchange.request.target = "/v2/models/m/infer?key=hush&flag".into();
    exchange.request.headers = fields(&[
        (
            "Traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
        ("X-Request-Id", "r-1"),
    ]);
    let line = written(record_config(), &[exchange]);
    let record: Value = serde_json::from_str(&line).unwrap();
    let sha256 = |text: &str| {
        use sha2::Digest as _;
        format!("{:x}", sha2::Sha256::digest(text))
    };
    let expected = json!({
        "id": "01900000-0000-7000-8000-000000000001",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "request_id": "r-1",
        "time": "2026-11-22T03:00:00.25Z",
        "service": "sentiment",
        "client": "10.0.0.7:41000",
        "method": "POST",
        "path": "/v2/models/m/infer?key=*&*",
        "arm": "stable",
        "request": {"bytes": 40, "sha256": sha256(r#"{"user":{"tenant":"acme"},"text":"fine"}"#)},
        "production": {
            "version": "v12", "status": 200, "bytes": 7, "sha256": sha256(r#"{"y":1}"#),
            "first_byte_ms": 2.0, "total_ms": 4.5, "prediction": 1,
        },
        "shadow": {
            "version": "v13", "status": 200, "bytes": 7, "sha256": sha256(r#"{"y":2}"#),
            "first_byte_ms": 1.0, "total_ms": 3.5, "prediction": 2,
        },
        "verdict": "different",
        "score": 0.0,
        "difference": "/y: 1 became 2",
        "differing": {"/y": "prediction"},
    });
    assert_eq!(record, expected);
}

#[test]
fn a_shadow_without_answer_leaves_its_error() {
    let production = response(200, JSON, br#"{"y":1}"#);
    let line = written(
        record_config(),
        &[exchange(production, Err(ShadowError::Connect))],
    );
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        record["shadow"],
        json!({"version": "v13", "error": "connect"})
    );
    assert_eq!(record["verdict"], "error");
}

#[test]
fn an_answer_before_the_end_of_its_request_took_no_time() {
    assert_eq!(milliseconds(9_000_000, 7_000_000), 0.0);
    assert_eq!(milliseconds(7_000_000, 7_000_499), 0.0);
    assert_eq!(milliseconds(7_000_000, 8_234_567), 1.235);
}

fn payload_policy(payloads: Payloads) -> Vec<bool> {
    let record = config::Record {
        payloads,
        sample: 0.5,
        ..record_config()
    };
    let mut exchanges = vec![json_exchange("1", "1"), json_exchange("1", "2")];
    exchanges[0].id = uuid::Uuid::from_u128(0x7fff_0000_0000_7000_9fff_0000_0000_0000);
    exchanges[1].id = uuid::Uuid::from_u128(0x0000_0000_0000_7000_a000_0000_0000_0000);
    let lines = written(record, &exchanges);
    let bodies = lines.lines().map(|line| {
        let record: Value = serde_json::from_str(line).unwrap();
        let has = |part: &str| record[part].get("body").is_some();
        assert_eq!(has("request"), has("shadow"));
        assert_eq!(has("request"), record["request"].get("headers").is_some());
        has("production")
    });
    bodies.collect()
}

#[test]
fn the_payload_policy_is_kept() {
    assert_eq!(payload_policy(Payloads::None), [false, false]);
    assert_eq!(payload_policy(Payloads::All), [true, true]);
    assert_eq!(payload_policy(Payloads::Different), [false, true]);
    assert_eq!(payload_policy(Payloads::Sampled), [true, false]);
}

#[test]
fn what_is_redacted_never_reaches_the_disk() {
    let record = config::Record {
        payloads: Payloads::All,
        headers: vec!["x-plain".into(), "content-type".into()],
        redact_fields: vec!["/user/*".into(), "/y".into()],
        ..record_config()
    };
    let mut first = json_exchange(r#"{"y":"hush1","z":1}"#, r#"{"y":"hush2","z":1}"#);
    first.request.headers = fields(&[
        ("X-Other-Key", "Bearer hush"),
        ("Cookie", "a=hush"),
        ("X-Plain", "one"),
        ("x-plain", "two"),
    ]);
    first.request.body = bytes::Bytes::from_static(br#"{"user":{"name":"hush"},"text":"fine"}"#);
    first.request.target = "/sk-hush-hush-hush-hush/infer?token=hush".into();
    let text: &[(&str, &str)] = &[("content-type", "text/plain"), ("set-cookie", "hush")];
    let second = exchange(
        response(200, text, b"hush"),
        Ok(response(200, text, b"hush!")),
    );
    let third = json_exchange(r#"{"y":"hush""#, r#"{"y":"hush"}"#);
    let disk = written(record, &[first, second, third]);
    assert!(!disk.contains("hush"), "{disk}");
    let record: Value = serde_json::from_str(disk.lines().next().unwrap()).unwrap();
    assert_eq!(
        record["request"]["body"],
        r#"{"text":"fine","user":{"name":"[redacted]"}}"#
    );
    assert_eq!(record["request"]["headers"]["x-plain"], "one, two");
    assert_eq!(record["request"]["headers"]["x-other-key"], "[redacted]");
    assert_eq!(record["path"], "/*/infer?token=*");
    assert_eq!(record["difference"], "/y: differs (redacted)");
    assert_eq!(record["production"]["prediction"], "[redacted]");
    let record: Value = serde_json::from_str(disk.lines().nth(1).unwrap()).unwrap();
    assert_eq!(
        record["production"]["body_withheld"],
        "not JSON, so that redact_fields cannot be applied"
    );
}

#[test]
fn bodies_that_are_not_utf8_are_written_in_base64() {
    let record = config::Record {
        payloads: Payloads::All,
        ..record_config()
    };
    let exchange = exchange(response(200, &[], b"\xff\x00"), Ok(response(200, &[], b"")));
    let line = written(record, &[exchange]);
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(record["production"]["body_base64"], "/wA=");
    assert_eq!(record["shadow"]["body"], "");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn only_the_owner_can_read() {
    let folder = tempfile::tempdir().unwrap();
    let record_dir = folder.path().join("deep/records");
    let config = config(&record_dir, record_config());
    fs::create_dir_all(record_dir.join("sentiment")).unwrap();
    for lax in [&record_dir, &record_dir.join("sentiment")] {
        fs::set_permissions(lax, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let recorder = Recorder::open(&config).unwrap();
    let exchange = json_exchange("1", "1");
    let comparer = Comparer::new(&compare_config(), &record_config());
    recorder.write(0, &exchange, &comparer.compare(&exchange));
    recorder.write_ledger(
        0,
        &LedgerFile {
            since: exchange.time,
            time: exchange.time,
            shadow_version: String::new(),
            production_versions: Default::default(),
            seen: 1,
            compared: 1,
            drops: Default::default(),
        },
    );
    drop(recorder);
    assert_eq!(mode(&record_dir), 0o700);
    assert_eq!(mode(&record_dir.join("sentiment")), 0o700);
    let files = files(&record_dir);
    assert_eq!(files.len(), 2, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[test]
fn a_folder_that_others_use_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("syslog"), "").unwrap();
    let error = Recorder::open(&config(folder.path(), record_config())).unwrap_err();
    assert!(error.to_string().contains("chmod 700"), "{error}");
    assert_eq!(mode(folder.path()), 0o755);
}

/// As systemd makes it where users are dynamic. A service's own folder may be none.
#[test]
fn the_folder_may_be_a_link() {
    let folder = tempfile::tempdir().unwrap();
    let (real, link) = (folder.path().join("real"), folder.path().join("records"));
    fs::create_dir(&real).unwrap();
    std::os::unix::fs::symlink("real", &link).unwrap();
    let recorder = Recorder::open(&config(&link, record_config())).unwrap();
    let exchange = json_exchange("1", "1");
    let comparison = Comparer::new(&compare_config(), &record_config()).compare(&exchange);
    recorder.write(0, &exchange, &comparison);
    drop(recorder);
    assert_eq!((mode(&real), files(&real).len()), (0o700, 1));
    fs::remove_dir_all(real.join("sentiment")).unwrap();
    std::os::unix::fs::symlink("/tmp", real.join("sentiment")).unwrap();
    let error = Recorder::open(&config(&link, record_config())).unwrap_err();
    assert!(error.to_string().contains("not a folder"), "{error}");
}

#[test]
fn a_service_cannot_leave_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(folder.path(), record_config());
    for name in ["..", "a/b", "", "/etc"] {
        config.services[0].name = name.into();
        assert!(Recorder::open(&config).is_err(), "{name:?}");
    }
}

#[test]
fn without_memory_the_record_is_lost_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let recorder =
        Recorder::open(&config(&folder.path().join("records"), record_config())).unwrap();
    let mut exchange = json_exchange("1", "1");
    let comparison = Comparer::new(&compare_config(), &record_config()).compare(&exchange);
    exchange.request.lease = mirror_wire::memory::Memory::new(10).lease(0).unwrap();
    assert_eq!(recorder.write(0, &exchange, &comparison), Outcome::Lost);
    assert_eq!(recorder.write(9, &exchange, &comparison), Outcome::Lost);
    let state = recorder.state();
    assert_eq!((state.lost, state.written, state.stopped), (2, 0, false));
}
