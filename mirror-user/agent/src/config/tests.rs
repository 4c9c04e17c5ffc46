use mirror_base::config::fixture;

use super::*;

/// The smallest file.
const SHADOW: &str = r#"[[tap]]
name = "node-1"
key = "7DE/pLphe1I114BApFokjCbQ6arHUq+6pP2Y5PKCCd0="
[[service]]
name = "sentiment"
id = 101
target = "127.0.0.1:8000"
"#;
const TAP: &str =
    "[[tap]]\nname = \"node-1\"\nkey = \"7DE/pLphe1I114BApFokjCbQ6arHUq+6pP2Y5PKCCd0=\"\n";
const OTHER_KEY: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

/// Changes the smallest file, and expects this to be said of it.
#[track_caller]
fn check(change: (&str, &str), expected: &[&str]) {
    fixture::check(SHADOW, shadow, change, expected);
}

#[test]
fn shadow_values_are_refused_by_name() {
    let cases: &[((&str, &str), &[&str])] = &[
        (
            ("127.0.0.1:8000", "127.0.0.1:9470"),
            &["file.toml:7:10: 127.0.0.1:9470 is `admin` of the agent itself"],
        ),
        (
            ("[[tap]]", "memory = \"1MiB\"\n[[tap]]"),
            &["file.toml:1:10: 1048576 bytes of memory are too few"],
        ),
        (
            ("[[tap]]", "memory = \"32MiB\"\n[[tap]]"),
            &["file.toml:5:1: a body of 67108864 bytes (`max_body`) does not fit"],
        ),
        (
            (
                "[[tap]]",
                "vxlan = \"0.0.0.0:6181\"\nallow = [\"10.0.0.5\"]\n[[tap]]",
            ),
            &[
                "file.toml:1:9: `vxlan` and `listen` listen on the same port",
                "file.toml:1:9: `vxlan` is on, but no service says",
            ],
        ),
    ];
    for (change, expected) in cases {
        check(*change, expected);
    }
    let target = "target = \"127.0.0.1:8000\"";
    let lines = [
        (
            "timeout = 5",
            "file.toml:8:11: `timeout` in [service]: 5 is not a string",
        ),
        (
            "timeout = \"0s\"",
            "file.toml:8:11: `timeout` in [service]: \"0s\" is not a span of time",
        ),
        (
            "concurrency = 0",
            "file.toml:8:15: `concurrency` in [service]: 0 is not a whole number from 1 to 65536",
        ),
        (
            "control = \"127.0.0.1:8000\"",
            "file.toml:8:11: 127.0.0.1:8000 is the shadow itself (`target`)",
        ),
        (
            "control = \"127.0.0.1:8001\"\ncontrol_sample = 0",
            "file.toml:9:18: of no request at all the old version's noise would be known",
        ),
        (
            "control_sample = 0.2",
            "file.toml:8:18: `control_sample` is a share of requests for a `control`, and there is none",
        ),
        (
            "repeat = 0.05",
            "file.toml:8:10: `repeat` alone is blind to a version that is noisier than the old one",
        ),
        (
            "max_body = \"64MeB\"",
            "file.toml:8:12: `max_body` in [service]: \"64MeB\" is not a size",
        ),
        (
            "[service.compare]\nprediction = \"outputs\"",
            "file.toml:9:14: `prediction` in [service.compare]: \"outputs\" is not a JSON pointer",
        ),
        (
            "[service.compare]\nignore = [\"/a~2\"]",
            "file.toml:9:11: `ignore` in [service.compare]: \"/a~2\" is not a JSON pointer",
        ),
        (
            "[service.compare]\nslice = \"tenant\"",
            "file.toml:9:9: `slice` in [service.compare]: \"tenant\" is neither",
        ),
        (
            "[service.compare]\nabsolute = inf",
            "file.toml:9:12: `absolute` in [service.compare]: inf is not a tolerance",
        ),
        (
            "[service.labels]\nfile = \"/labels.csv\"",
            "file.toml:8:1: labels say which prediction was right, and no prediction is recorded",
        ),
        (
            "[service.compare]\nprediction = \"/y\"\n[service.labels]\nfile = \"/l\"\nid_field = \"\"",
            "file.toml:12:12: `id_field` in [service.labels]: a field has a name",
        ),
        (
            "[service.requests]\ninclude = [\"v2/models\"]",
            "file.toml:9:12: `include` in [service.requests]: \"v2/models\" does not begin as a path does",
        ),
        (
            "[service.requests]\nexclude = [\"/a{b\"]",
            "file.toml:9:12: `exclude` in [service.requests]: \"/a{b\" is not a pattern: unclosed alternate group",
        ),
        (
            "[service.requests]\nexclude = [\"/a?b=c\"]",
            "file.toml:9:12: `exclude` in [service.requests]: \"/a?b=c\" has a query",
        ),
        (
            "[service.requests]\nmethods = [\"G ET\"]",
            "file.toml:9:12: `methods` in [service.requests]: \"G ET\" is not a method",
        ),
        (
            "[service.record]\npayloads = \"some\"",
            "file.toml:9:12: `payloads` in [service.record]: \"some\" is not known",
        ),
        (
            "[service.record]\nheaders = [\"a b\"]",
            "file.toml:9:12: `headers` in [service.record]: \"a b\" is not a header's name",
        ),
    ];
    for (line, expected) in lines {
        check((target, &format!("{target}\n{line}")), &[expected]);
    }
}

#[test]
fn a_control_has_its_shares() {
    let control = |more: &str| {
        let text = format!("{SHADOW}control = \"127.0.0.1:8001\"\n{more}");
        let read = shadow(&text).unwrap();
        let control = read.services[0].control.unwrap();
        (control.address.port(), control.sample, control.repeat)
    };
    assert_eq!(control(""), (8001, 0.1, 0.0));
    let more = "control_sample = 0.5\nrepeat = 0.05\n";
    assert_eq!(control(more), (8001, 0.5, 0.05));
    assert_eq!(
        shadow(&format!("{SHADOW}repeat = 0.0\n")).unwrap().services[0].control,
        None
    );
}

#[test]
fn somebody_must_be_allowed_to_send() {
    let lines = |lines: &str| format!("{lines}\n{TAP}");
    check(
        (TAP, ""),
        &[
            "file.toml:1:1: there is no [[tap]]",
            "`modelmirror keys show` prints on the node",
        ],
    );
    let open = "insecure = true\nallow = [\"10.0.0.5/32\"]\n";
    check((TAP, open), &[]);
    check((TAP, &lines(open)), &[]);
    check(
        (TAP, "insecure = true\n"),
        &["file.toml:1:1: `allow` is missing"],
    );
    check(
        (TAP, &lines("insecure = true\nallow = []")),
        &["file.toml:1:1: `allow` is missing"],
    );
    check(
        (TAP, &lines("insecure = true\nallow = [\"10.0.0.5/33\"]")),
        &["file.toml:2:10: `allow`: \"10.0.0.5/33\" is not a network"],
    );
    check(
        (TAP, &lines("allow = [\"10.0.0.5/32\"]")),
        &["file.toml:1:1: `allow` is who may send without a key, and that is nobody here"],
    );
    let vxlan = "vxlan = \"0.0.0.0:4789\"\n";
    check(
        (TAP, vxlan),
        &[
            "file.toml:1:1: `allow` is missing",
            "file.toml:1:9: `vxlan` is on, but no service says",
        ],
    );
}

#[test]
fn taps_differ_in_name_and_key() {
    let second =
        |name: &str, key: &str| format!("{TAP}[[tap]]\nname = \"{name}\"\nkey = \"{key}\"\n");
    check((TAP, &second("node-2", OTHER_KEY)), &[]);
    check(
        (TAP, &second("node-1", OTHER_KEY)),
        &["file.toml:5:8: tap name node-1 stands here a second time"],
    );
    let same = "7DE/pLphe1I114BApFokjCbQ6arHUq+6pP2Y5PKCCd0=";
    check(
        (TAP, &second("node-2", same)),
        &["file.toml:6:7: tap key 7DE/"],
    );
    check(
        (TAP, &second("10.0.0.5", OTHER_KEY)),
        &["file.toml:5:8: `name` in [tap]: \"10.0.0.5\" is an address"],
    );
    check(
        (TAP, "[[tap]]\nname = \"node-1\"\n"),
        &[
            "file.toml:1:1: `key` in [tap] is missing",
            "`modelmirror keys show` prints it",
        ],
    );
}

#[test]
fn keys_of_the_earlier_shadow_host_are_told_what_became_of_them() {
    let cases = [
        (
            "api = \"0.0.0.0:9471\"",
            "file.toml:1:1: `api` is no longer supported: nodes ask at `listen`",
        ),
        (
            "token_file = \"/token\"",
            "file.toml:1:1: `token_file` is no longer supported",
        ),
        (
            "gather = \"500us\"",
            "file.toml:1:1: `gather` is no longer supported: it is called `batch_interval`",
        ),
    ];
    for (line, expected) in cases {
        check((TAP, &format!("{line}\n{TAP}")), &[expected]);
    }
    check(
        (TAP, &format!("admin = \"0.0.0.0:6181\"\n{TAP}")),
        &["file.toml:1:9: `admin` and `listen` listen on the same port"],
    );
}
