//! `[service.rollout]` and plan files.

use std::time::Duration;

use mirror_rollout::plan::{Baseline, Canary, Endpoint, Hook, HookPoint, OnTimeout, Plan};

use mirror_rollout::Share;

use super::*;

fn plan_report(text: &str) -> String {
    fixture::said(text, plan)
}

/// A plan file is refused with these parts, and no other problem.
fn check_plan(text: &str, expected: &[&str]) {
    let report = plan_report(text);
    for part in expected {
        assert!(
            report.contains(part),
            "{text}\n{part:?} is not in:\n{report}"
        );
    }
    let places = |lines: &str| lines.matches("file.toml:").count();
    let known: usize = expected.iter().map(|part| places(part)).sum();
    assert_eq!(places(&report), known, "{text}\n{report}");
}

#[test]
fn what_is_left_out_is_the_default() {
    assert_eq!(plan(""), Ok(Plan::default()));
    assert_eq!(Plan::default().unsound(), []);
    let text = "[shadow]\n[canary]\nbake = \"0s\"\nmin_duration = \"0s\"\n";
    let read = plan(text).unwrap();
    assert_eq!(read.shadow, Some(Default::default()));
    let canary = Canary {
        bake: Duration::ZERO,
        min_duration: Duration::ZERO,
        ..Canary::default()
    };
    assert_eq!(read.canary, canary);
}

#[test]
fn everything_that_is_written_is_read() {
    let text = r#"
stages = [0.1, 1]
baseline = "none"
tick = "500ms"
prometheus = "https://metrics.example/prometheus/"
[canary]
on_timeout = "rollback"
max_latency = "250ms"
[[gate]]
name = "accuracy"
query = 'accuracy{version="$version"}'
min = 0.9
max = 1
for = "1m"
[[gate]]
name = "cost"
query = 'cost{arm="$arm"}'
max_delta = 0.2
[[hook]]
on = "before"
url = "https://ci.example/approve?key=1"
headers_file = "/etc/modelmirror/ci.headers"
approve = true
"#;
    let plan = plan(text).unwrap();
    assert_eq!(plan.stages, [0.1, 1.0].map(|s| Share::try_from(s).unwrap()));
    assert_eq!(plan.baseline, Baseline::None);
    let base = plan.prometheus.as_ref().and_then(Endpoint::whole);
    assert_eq!(base, Some("https://metrics.example/prometheus"));
    assert_eq!(plan.canary.on_timeout, OnTimeout::Rollback);
    assert_eq!(plan.canary.max_latency, Some(Duration::from_millis(250)));
    let [accuracy, cost] = &plan.gates[..] else {
        panic!("{:?}", plan.gates);
    };
    assert_eq!((accuracy.min, accuracy.max), (Some(0.9), Some(1.0)));
    assert_eq!(accuracy.hold_for, Duration::from_secs(60));
    assert_eq!(cost.max_delta, Some(0.2));
    assert_eq!(cost.staleness, Duration::from_secs(120));
    let hook = Hook {
        on: HookPoint::Before,
        url: "https://ci.example/approve?key=1".into(),
        headers_file: Some("/etc/modelmirror/ci.headers".into()),
        approve: true,
        timeout: Duration::from_secs(5),
    };
    assert_eq!(plan.hooks, [hook]);
}

#[test]
fn a_plan_goes_through_json_unchanged() {
    let plan = plan("tick = \"500ms\"\n[shadow]\n[canary]\nmax_latency = \"1m 30s\"\n").unwrap();
    let json = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
}

#[test]
fn stages_rise_to_everything() {
    check_plan(
        "stages = []",
        &["file.toml:1:10: `stages`: there is no stage"],
    );
    check_plan(
        "stages = [0.1, 0.1, 1]",
        &["file.toml:1:16: `stages`: 0.1 does not lie above the stage before it"],
    );
    check_plan(
        "stages = [0, 1]",
        &["file.toml:1:11: `stages`: 0 is no share"],
    );
    check_plan(
        "stages = [0.1, 0.5]",
        &[
            "file.toml:1:16: `stages`: the last stage is 0.5, which promotes nobody\n",
            "end the list with 1.0",
        ],
    );
    check_plan(
        "stages = [1, 5, 25, 100]",
        &[
            "file.toml:1:14: `stages`: 5 is not a share\n",
            "file.toml:1:17: `stages`: 25 is not a share\n",
            "for 25 % write 0.25",
            "file.toml:1:21: `stages`: 100 is not a share\n",
        ],
    );
    check_plan(
        "stages = [0.00001, 1.0]",
        &["file.toml:1:11: `stages`: 0.00001 is too fine"],
    );
    check_plan("stages = 1.0", &["file.toml:1:10: `stages` is a list"]);
}

#[test]
fn the_plan_s_own_values_are_refused_by_name() {
    check_plan(
        "tick = \"10ms\"",
        &["file.toml:1:8: `tick`: 10ms is not from 250 ms to a minute"],
    );
    check_plan("tick = 1", &["file.toml:1:8: `tick`: 1 is not a string"]);
    check_plan(
        "baseline = \"stabel\"",
        &[
            "file.toml:1:12: `baseline`: \"stabel\" is not known",
            "did you mean \"stable\"?",
            "or the whole path of a file",
        ],
    );
    check_plan(
        "baseline = \"/nowhere/answer\"",
        &["file.toml:1:12: `baseline`: /nowhere/answer: No such file"],
    );
    check_plan(
        "baseline = \"/dev/zero\"",
        &["file.toml:1:12: `baseline`: /dev/zero is not a file"],
    );
    check_plan(
        "prometheus = \"127.0.0.1:9090\"",
        &["file.toml:1:14: `prometheus`: this is not an http:// or https:// address"],
    );
    check_plan(
        "stage = [1.0]",
        &[
            "file.toml:1:1: unknown key `stage`",
            "did you mean `stages`?",
        ],
    );
    check_plan(
        "baseline = \"none\"\n[shadow]",
        &["file.toml:2:1: `shadow`: with baseline = \"none\" there are no answers"],
    );
}

#[test]
fn a_constant_answer_is_read_at_once() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let text = format!("baseline = {:?}", file.path());
    check_plan(&text, &["file.toml:1:12: `baseline`: ", "is empty"]);
    std::fs::write(file.path(), "{\"label\": \"neutral\"}\n").unwrap();
    let answer = Baseline::Constant("{\"label\": \"neutral\"}".to_owned());
    assert_eq!(plan(&text).unwrap().baseline, answer);
}

#[test]
fn shadow_limits_are_refused_by_name() {
    let check = |line: &str, expected: &str| check_plan(&format!("[shadow]\n{line}"), &[expected]);
    check(
        "agreement = 1.0",
        "file.toml:2:13: `agreement` in [shadow]: an agreement of 1 can never be proven",
    );
    check(
        "agreement = 99",
        "file.toml:2:13: `agreement` in [shadow]: 99 is not a share",
    );
    check(
        "min_compared = 0",
        "file.toml:2:16: `min_compared` in [shadow]: 0 decides without any",
    );
    check(
        "max_latency_ratio = 1.01",
        "file.toml:2:21: `max_latency_ratio` in [shadow]: 1.01 is less than 1.05, and latencies are counted in buckets",
    );
    check(
        "max_latency_ratio = inf",
        "file.toml:2:21: `max_latency_ratio` in [shadow]: inf is no limit",
    );
    check(
        "max_error_delta = 0",
        "file.toml:2:19: `max_error_delta` in [shadow]: 0 is not between 0 and 1",
    );
    check(
        "max_accuracy_drop = 0",
        "file.toml:2:21: `max_accuracy_drop` in [shadow]: 0 is not",
    );
    check(
        "max_cpu_ratio = -1",
        "file.toml:2:17: `max_cpu_ratio` in [shadow]: -1 is not a ratio",
    );
    check(
        "max_memory_ratio = 0",
        "file.toml:2:20: `max_memory_ratio` in [shadow]: 0 is not a ratio",
    );
    check(
        "max_duration = \"0s\"",
        "file.toml:2:16: `max_duration` in [shadow]: \"0s\" is not a span",
    );
    check(
        "on_timeout = \"promote\"",
        "file.toml:2:14: `on_timeout` in [shadow]: \"promote\" is not known",
    );
    check(
        "confidence = 0.9",
        "file.toml:2:1: unknown key `confidence` in [shadow]",
    );
}

#[test]
fn canary_limits_are_refused_by_name() {
    let check = |line: &str, expected: &str| check_plan(&format!("[canary]\n{line}"), &[expected]);
    check(
        "max_duration = \"1m\"",
        "file.toml:2:16: `max_duration` in [canary]: a stage would end after 1m, before it may",
    );
    check(
        "min_duration = \"2h\"",
        "file.toml:1:1: `max_duration` in [canary]: a stage would end after 1h",
    );
    check(
        "min_duration = 5",
        "file.toml:2:16: `min_duration` in [canary]: 5 is not a string",
    );
    check(
        "min_requests = 0",
        "file.toml:2:16: `min_requests` in [canary]: 0 decides without any",
    );
    check(
        "max_error_delta = 0.0",
        "file.toml:2:19: `max_error_delta` in [canary]: 0 is not between 0 and 1",
    );
    check(
        "max_latency_ratio = 1",
        "file.toml:2:21: `max_latency_ratio` in [canary]: 1 is less than 1.05",
    );
    check(
        "max_latency_ratio = -0.1",
        "file.toml:2:21: `max_latency_ratio` in [canary]: -0.1 is less than 1.05",
    );
    check(
        "max_latency = \"0s\"",
        "file.toml:2:15: `max_latency` in [canary]: \"0s\" is not a span",
    );
    check(
        "hard_error_rate = 0",
        "file.toml:2:19: `hard_error_rate` in [canary]: 0 is not a share above 0",
    );
    check(
        "hard_error_rate = 0.001",
        "file.toml:2:19: `hard_error_rate` in [canary]: failing 0.1 % of the time is severe, and 0.5 percentage points more",
    );
    check(
        "hard_reset_delta = 2",
        "file.toml:2:20: `hard_reset_delta` in [canary]: 2 is not a share",
    );
    check(
        "proven_from = -0.1",
        "file.toml:2:15: `proven_from` in [canary]: -0.1 is not a share",
    );
    check(
        "confidence = 1.0",
        "file.toml:2:14: `confidence` in [canary]: 1 is not from 0.5 to 0.99999",
    );
    check(
        "confidence = 99",
        "file.toml:2:14: `confidence` in [canary]: 99 is not from 0.5",
    );
    check(
        "max_cpu_ratio = \"1.5\"",
        "file.toml:2:17: `max_cpu_ratio` in [canary]: \"1.5\" is not a number",
    );
    check(
        "bake = \"soon\"",
        "file.toml:2:8: `bake` in [canary]: \"soon\" is not a span of time",
    );
    check(
        "hard_errors = 1",
        "file.toml:2:1: unknown key `hard_errors` in [canary]",
    );
}

#[test]
fn gates_are_refused_by_name() {
    /// `lines` after a gate's name and query, which asks by version.
    fn check(lines: &str, expected: &str) {
        let head = "prometheus = \"http://127.0.0.1:9090\"\n[[gate]]\nname = \"a\"\nquery = 'a{v=\"$version\"}'\n";
        check_plan(&format!("{head}{lines}"), &[expected]);
    }
    check("", "file.toml:2:1: `gate`: gate a has no limit");
    check(
        "min = 2\nmax = 1",
        "file.toml:5:7: `min` in [gate]: no value lies between 2 and 1",
    );
    check(
        "min = 1\nmax_delta = 1",
        "file.toml:6:13: `max_delta` in [gate]: a gate holds a value against",
    );
    check(
        "min = nan",
        "file.toml:5:7: `min` in [gate]: nan is no limit",
    );
    check(
        "max = 1\nstaleness = \"0s\"",
        "file.toml:6:13: `staleness` in [gate]: \"0s\" is not a span",
    );
    check(
        "max = 1\nfor = \"2h\"",
        "file.toml:6:7: `for` in [gate]: no stage is longer than 1h",
    );
    check(
        "max = 1\nlimit = 1",
        "file.toml:6:1: unknown key `limit` in [gate]",
    );
    check(
        "max = 1\n[[gate]]\nname = \"a\"\nquery = \"b\"\nmin = 0",
        "file.toml:7:8: `name` in [gate]: gate a stands here a second time",
    );
    check(
        "max = 1\n[[gate]]\nname = \"b\"\nquery = \"b\"\nmax_delta = 0",
        "file.toml:8:9: `query` in [gate]: `max_delta` asks once for each version",
    );
    check(
        "max = 1\n[[gate]]\nname = \"b\"\nquery = \"rate(b[$__interval])\"\nmin = 0",
        "file.toml:8:9: `query` in [gate]: $__interval is not filled in",
    );
    check(
        "max = 1\n[[gate]]\nquery = \"\"\nmin = 0",
        "file.toml:6:1: `name` in [gate] is missing\n    [[gate]]\n    ^^^^^^^^\n    add a line such as: name = \"conversion\"\nfile.toml:7:9: `query` in [gate]: it is empty",
    );
    check_plan(
        "[[gate]]\nname = \"a\"\nquery = \"a\"\nmin = 0",
        &[
            "file.toml:1:1: `gate`: nothing says where Prometheus is asked",
            "add `prometheus = ",
        ],
    );
    check_plan(
        "[gate]\nname = \"a\"",
        &[
            "file.toml:1:1: `gate` is a list of sections",
            "write [[gate]]",
        ],
    );
}

#[test]
fn hooks_are_refused_by_name() {
    let check =
        |lines: &str, expected: &[&str]| check_plan(&format!("[[hook]]\n{lines}"), expected);
    check(
        "on = \"end\"",
        &[
            "file.toml:2:6: `on` in [hook]: \"end\" is not known",
            "file.toml:1:1: `url` in [hook] is missing",
        ],
    );
    let line = "on = \"rollback\"\nurl = \"http://a/\"";
    check(
        &format!("{line}\napprove = true"),
        &["file.toml:4:11: `approve` in [hook]: nothing waits for an approval after it was done"],
    );
    check(
        &format!("{line}\napprove = \"no\""),
        &["file.toml:4:11: `approve` in [hook]: \"no\" is neither true nor false"],
    );
    check(
        &format!("{line}\ntimeout = \"0s\""),
        &["file.toml:4:11: `timeout` in [hook]: \"0s\" is not a span"],
    );
    check(
        "on = \"stage\"\nurl = \"ftp://a/\"",
        &["file.toml:3:7: `url` in [hook]: this is not an http://"],
    );
}

#[test]
fn a_pasted_header_is_said_so() {
    let expected = &[
        "file.toml:1:2: a plan file holds what stands under [service.rollout], without that header",
        "[[service.rollout.gate]] becomes [[gate]]",
    ];
    check_plan(
        "[service.rollout]\nstages = [1]\n[service.rollout.canary]",
        expected,
    );
}

#[test]
fn a_shadow_stage_needs_a_mirror_that_can_be_asked() {
    let section = "[service.rollout]\n[service.rollout.shadow]\n";
    let check = |from: &str, to: &str, expected: &str| {
        let text = NODE.replace(from, to);
        let report = report(&format!("{text}{section}"));
        assert!(report.contains(expected), "{report}");
        assert_eq!(report.matches("file.toml:").count(), 1, "{report}");
    };
    let mirror = "[service.mirror]\nagent = \"10.0.0.9:6181\"\nagent_key = \"7AE7TsxOLw1P8Fa38qS031aZlH55SjH+8KWGHdZs57I=\"\n";
    check(
        mirror,
        "",
        "file.toml:7:1: a shadow stage goes by what the agent says, but there is no [service.mirror]",
    );
    let copied = |lines: &str| {
        let text = format!("{NODE}{lines}\n{section}");
        report(&text)
    };
    assert_eq!(copied(""), "");
    let said = copied("directions = \"requests\"");
    assert!(said.contains("copies requests only"), "{said}");
    let said = copied("arms = [\"canary\"]\n[service.canary]\naddress = \"10.0.0.5:8001\"");
    assert!(
        said.contains("copies none of stable's connections"),
        "{said}"
    );
}

#[test]
fn problems_of_a_service_s_plan_stand_where_it_does() {
    let rollout = "[service.rollout]\nstages = [0.5]\n[service.rollout.canary]\nconfidence = 1\n[[service.rollout.gate]]\nname = \"a\"\nquery = \"a\"\nmin = 1\n";
    let text = format!("{NODE}{rollout}");
    let report = report(&text);
    for expected in [
        "file.toml:10:11: `stages` in [service.rollout]: the last stage is 0.5",
        "file.toml:12:14: `confidence` in [service.rollout.canary]: 1 is not from 0.5",
        "file.toml:13:1: `gate` in [service.rollout]: nothing says where Prometheus is asked",
    ] {
        assert!(report.contains(expected), "{expected} is not in\n{report}");
    }
}

#[test]
fn a_changed_plan_is_a_change_of_its_service() {
    let running = node(NODE).unwrap();
    let mut new = running.clone();
    new.services[0].rollout = Some(Plan::default());
    let said = changes(&running, &new).unwrap().to_string();
    assert_eq!(said, "changed sentiment");
}
