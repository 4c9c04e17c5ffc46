use std::path::Path;

use proptest::prelude::*;

use mirror_api::Affinity;
use mirror_rollout::Share;

use super::*;

const AGENT_KEY: &str = "7AE7TsxOLw1P8Fa38qS031aZlH55SjH+8KWGHdZs57I=";
const TAP_KEY: &str = "7DE/pLphe1I114BApFokjCbQ6arHUq+6pP2Y5PKCCd0=";

/// What the printed configs have in place of keys.
const NO_AGENT_KEY: &str = "PutHereWhatKeysShowPrintsOnTheShadowHost000=";
const NO_TAP_KEY: &str = "PutHereWhatKeysShowPrintsOnTheNode000000000=";

const NODE: &str = r#"interfaces = ["eth0"]
[[service]]
name = "sentiment"
id = 101
addresses = ["*:8000"]
[service.mirror]
agent = "10.0.0.9:6181"
agent_key = "7AE7TsxOLw1P8Fa38qS031aZlH55SjH+8KWGHdZs57I="
"#;

const SHADOW: &str = r#"[[tap]]
name = "node-1"
key = "7DE/pLphe1I114BApFokjCbQ6arHUq+6pP2Y5PKCCd0="
[[service]]
name = "sentiment"
id = 101
target = "127.0.0.1:8000"
"#;

/// What is printed as default, with keys.
fn filled_in(kind: Kind) -> String {
    let (placeholder, key) = match kind {
        Kind::Node => (NO_AGENT_KEY, AGENT_KEY),
        Kind::Shadow => (NO_TAP_KEY, TAP_KEY),
    };
    let printed = default_text(kind);
    assert!(printed.contains(placeholder), "{printed}");
    printed.replace(placeholder, key)
}

fn report(kind: Kind, text: &str) -> String {
    let problems = match kind {
        Kind::Node => node(text).err(),
        Kind::Shadow => shadow(text).err(),
    };
    problems.map_or_else(String::new, |problems| {
        Report::new(Path::new("file.toml"), text, problems).to_string()
    })
}

/// Puts `with` in place of `what` in the smallest file and expects these parts, and no other
/// problem, in the report.
fn check(kind: Kind, (what, with): (&str, &str), expected: &[&str]) {
    let smallest = if kind == Kind::Node { NODE } else { SHADOW };
    assert!(smallest.contains(what), "{what:?} is not in the file");
    let report = report(kind, &smallest.replacen(what, with, 1));
    for part in expected {
        assert!(report.contains(part), "{part:?} is not in:\n{report}");
    }
    let places = expected
        .iter()
        .filter(|part| part.starts_with("file.toml:"))
        .count();
    assert_eq!(report.matches("file.toml:").count(), places, "{report}");
}

#[test]
fn what_is_printed_as_default_is_the_default() {
    assert_eq!(node(&filled_in(Kind::Node)).unwrap(), node(NODE).unwrap());
    assert_eq!(
        shadow(&filled_in(Kind::Shadow)).unwrap(),
        shadow(SHADOW).unwrap()
    );
    assert_eq!(kind_of(default_text(Kind::Node)), Kind::Node);
    assert_eq!(kind_of(default_text(Kind::Shadow)), Kind::Shadow);
}

#[test]
fn the_other_host_s_file_is_one_problem() {
    let check = |text: &str, kind, expected: Option<&str>| {
        let whats = meant(text, kind).err().map(|mut problems| {
            let only = problems.pop().filter(|_| problems.is_empty());
            only.unwrap().fault.what
        });
        assert_eq!(whats.as_deref(), expected);
    };
    let (node, shadow) = (default_text(Kind::Node), default_text(Kind::Shadow));
    check(node, Kind::Node, None);
    check(shadow, Kind::Shadow, None);
    check(
        shadow,
        Kind::Node,
        Some("this is a config of the shadow host"),
    );
    check(
        node,
        Kind::Shadow,
        Some("this is a config of the inference node"),
    );
    check("", Kind::Shadow, None);
    check("allow = []\ninterfaces = []", Kind::Node, None);
    let whole = "this is a config of the shadow host";
    check("[[tap]]\nname = \"a\"", Kind::Node, Some(whole));
}

/// The keys of the printed file, those in comments too.
fn keys(kind: Kind) -> impl Iterator<Item = &'static str> {
    let key = |line: &'static str| {
        let (key, _) = line.strip_prefix("# ").unwrap_or(line).split_once(" = ")?;
        let word = key.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        word.then_some(key)
    };
    default_text(kind).lines().filter_map(key)
}

#[test]
fn every_key_is_documented() {
    let node = concat!(
        include_str!("../../../docs/reference/config-node.md"),
        include_str!("../../../docs/reference/plan-file.md")
    );
    let shadow = include_str!("../../../docs/reference/config-agent.md");
    for (kind, docs) in [(Kind::Node, node), (Kind::Shadow, shadow)] {
        assert!(keys(kind).count() > 10);
        for key in keys(kind) {
            assert!(
                docs.contains(&format!("`{key}`")),
                "`{key}` of the {kind} file"
            );
        }
    }
}

/// The lines that the printed files show in comments are ones that can be used.
#[test]
fn what_is_printed_in_comments_can_be_used() {
    for kind in [Kind::Node, Kind::Shadow] {
        let mut text = String::new();
        for line in filled_in(kind).lines() {
            let bare = line.strip_prefix("# ").unwrap_or(line);
            let key = bare
                .split_once(" = ")
                .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
            let addresses = line == "addresses = []";
            text.push_str(if addresses {
                "addresses = [\"10.0.0.5:8000\"]"
            } else if key || bare.starts_with("[service.") || bare.starts_with("[[service.") {
                bare
            } else {
                line
            });
            text.push('\n');
        }
        match kind {
            Kind::Node => {
                let node = node(&text).unwrap();
                let mirror = node.services[0].mirror.as_ref().unwrap();
                assert_eq!(mirror.max_bytes_per_second, Some(100_000_000));
                let canary = node.services[0].canary.as_ref().unwrap();
                assert_eq!(canary.address, ([10, 0, 0, 5], 8001).into());
                assert_eq!(
                    (canary.share, canary.affinity),
                    (Share::NONE, Affinity::Client)
                );
                let plan = node.services[0].rollout.clone().unwrap();
                assert_eq!((plan.gates.len(), plan.hooks.len()), (1, 1));
            }
            Kind::Shadow => {
                let shadow = shadow(&text).unwrap();
                assert_eq!(shadow.allow, ["10.0.0.5/32".parse().unwrap()]);
                assert_eq!(shadow.taps[0].name, "node-1");
                let compare = &shadow.services[0].compare;
                assert_eq!(compare.prediction.as_deref(), Some("/outputs/0/data"));
                assert_eq!(compare.slice, Some(Slice::Header("x-tenant".to_owned())));
            }
        }
    }
}

#[test]
fn the_design_s_files_are_read() {
    let text = r#"
interfaces = ["eth0", "lo"]
state_dir = "/var/lib/modelmirror"
pin_dir = "/sys/fs/bpf/modelmirror"
control_socket = "/run/modelmirror/control.sock"
admin = "127.0.0.1:9469"

[[service]]
name = "sentiment"
id = 101
addresses = ["10.0.0.5:8000", "[2001:db8::5]:8000"]
protocol = "http"
[service.stable]
version = "v12"
[service.mirror]
agent = "shadow.ml.svc:6181"
agent_key = "7AE7TsxOLw1P8Fa38qS031aZlH55SjH+8KWGHdZs57I="
transport = "geneve"
sample = 0.5
directions = "requests"
arms = ["stable"]
max_bytes_per_second = "100MB"
"#;
    let node = node(text).unwrap();
    let service = &node.services[0];
    assert_eq!(service.stable_version, "v12");
    assert_eq!(service.addresses[1].to_string(), "[2001:db8::5]:8000");
    let mirror = service.mirror.as_ref().unwrap();
    assert_eq!(mirror.agent.to_string(), "shadow.ml.svc:6181");
    assert_eq!(mirror.transport, Transport::Geneve);
    assert_eq!(
        (mirror.sample, mirror.directions),
        (0.5, Directions::Requests)
    );
    assert_eq!(mirror.max_bytes_per_second, Some(100_000_000));
}

#[test]
fn a_report_names_place_fault_and_cure() {
    let text = NODE.replace("id = 101", "id = 0\nidd = 4");
    let expected = r#"file.toml:4:6: `id` in [service]: 0 is not a whole number from 1 to 16777215
    id = 0
         ^
    write one from 1 to 16777215, without quotes
file.toml:5:1: unknown key `idd` in [service]
    idd = 4
    ^^^
    did you mean `id`?"#;
    assert_eq!(report(Kind::Node, &text), expected);
}

#[test]
fn node_values_are_refused_by_name() {
    let cases: &[((&str, &str), &[&str])] = &[
        (
            ("interfaces = [\"eth0\"]\n", ""),
            &[
                "file.toml:1:1: `interfaces` is missing",
                "interfaces = [\"eth0\"]",
            ],
        ),
        (
            ("[\"eth0\"]", "[]"),
            &["file.toml:1:1: `interfaces` is missing"],
        ),
        (
            ("[\"eth0\"]", "\"eth0\""),
            &["file.toml:1:14: `interfaces` is a list"],
        ),
        (
            ("\"eth0\"", "\"eth0\", \"eth0\""),
            &["file.toml:1:23: interface eth0 stands here a second time"],
        ),
        (
            ("\"eth0\"", "\"a-name-that-is-too-long\""),
            &[
                "file.toml:1:15: `interfaces`: \"a-name-that-is-too-long\" is longer than the 15 bytes",
            ],
        ),
        (
            ("\"eth0\"", "\"\""),
            &["file.toml:1:15: `interfaces`: an empty string"],
        ),
        (
            ("interfaces", "interface"),
            &[
                "file.toml:1:1: `interfaces` is missing",
                "file.toml:1:1: unknown key `interface`",
                "did you mean `interfaces`?",
            ],
        ),
        (
            ("\n[[", "\nstate_dir = \"lib\"\n[["),
            &["file.toml:2:13: `state_dir`: \"lib\" depends on the working directory"],
        ),
        (
            ("\n[[", "\nadmin = \"127.0.0.1:8000\"\n[["),
            &["file.toml:6:14: *:8000 covers `admin`"],
        ),
        (
            ("sentiment", "none"),
            &["file.toml:3:8: `name` in [service]: \"none\" is how metrics label"],
        ),
        (
            ("sentiment", "a/b"),
            &["file.toml:3:8: `name` in [service]: \"a/b\" is not fit for a path"],
        ),
        (
            ("sentiment", ".."),
            &["file.toml:3:8: `name` in [service]: \"..\" is not fit for a path"],
        ),
        (
            ("101", "16777216"),
            &[
                "file.toml:4:6: `id` in [service]: 16777216 is not a whole number from 1 to 16777215",
            ],
        ),
        (
            ("101", "\"101\""),
            &[
                "file.toml:4:6: `id` in [service]: \"101\" is not a whole number",
                "without quotes",
            ],
        ),
        (
            ("*:8000", "0.0.0.0:8000"),
            &[
                "file.toml:5:14: `addresses` in [service]: clients cannot dial 0.0.0.0",
                "write \"*:8000\"",
            ],
        ),
        (
            ("*:8000", "[::]:8000"),
            &["file.toml:5:14:", "write \"*:8000\""],
        ),
        (
            ("*:8000", "*:0"),
            &["file.toml:5:14: `addresses` in [service]: \"0\" is not a port"],
        ),
        (
            ("*:8000", "10.0.0.5:0"),
            &["file.toml:5:14: `addresses` in [service]: nothing can be reached at port 0"],
        ),
        (
            ("*:8000", "224.0.0.1:80"),
            &["file.toml:5:14: `addresses` in [service]: 224.0.0.1 is not one host's address"],
        ),
        (
            ("*:8000", "model.local:80"),
            &[
                "file.toml:5:14: `addresses` in [service]: \"model.local:80\" is not an address",
                "names are not resolved",
            ],
        ),
        (
            ("\"*:8000\"", "\"*:8000\", \"10.0.0.5:8000\""),
            &["file.toml:5:24: 10.0.0.5:8000 is taken: *:8000 belongs to service sentiment"],
        ),
        (
            ("\"*:8000\"", "\"1.1.1.1:80\", \"[::ffff:1.1.1.1]:80\""),
            &["file.toml:5:28: 1.1.1.1:80 is taken"],
        ),
        (
            ("*:8000", "10.0.0.9:6181"),
            &["file.toml:7:9: 10.0.0.9:6181 is a service's own address"],
        ),
        (
            ("10.0.0.9:6181", "0.0.0.0:6181"),
            &["file.toml:7:9: `agent` in [service.mirror]: 0.0.0.0 is no host's address"],
        ),
        (
            ("agent = \"10.0.0.9:6181\"\n", "sample = 1\n"),
            &["file.toml:6:1: `agent` in [service.mirror] is missing"],
        ),
        (
            ("[service.mirror]", "protocol = \"htp\"\n[service.mirror]"),
            &[
                "file.toml:6:12: `protocol` in [service]: \"htp\" is not known",
                "did you mean \"http\"?",
            ],
        ),
        (
            (
                "[service.mirror]",
                "[service.canary]\nshare = 0.1\n[service.mirror]",
            ),
            &["file.toml:6:1: `address` in [service.canary] is missing"],
        ),
    ];
    for (change, expected) in cases {
        check(Kind::Node, *change, expected);
    }
}

#[test]
fn canary_values_are_refused_by_name() {
    let cases = [
        (
            "address = \"10.0.0.5:8001\"\nshare = 5",
            "file.toml:8:9: `share` in [service.canary]: 5 is not a share",
        ),
        (
            "address = \"10.0.0.5:8001\"\nshare = 0.00005",
            "file.toml:8:9: `share` in [service.canary]: 0.00005 is too fine",
        ),
        (
            "address = \"127.0.0.1:8000\"",
            "file.toml:7:11: 127.0.0.1:8000 is the service's own address, *:8000",
        ),
        (
            "address = \"0.0.0.0:8001\"",
            "file.toml:7:11: `address` in [service.canary]: 0.0.0.0 is no host's address",
        ),
        (
            "address = \"10.0.0.5:8001\"\naffinity = \"user\"",
            "file.toml:8:12: `affinity` in [service.canary]: \"user\" is not known",
        ),
        (
            "address = \"10.0.0.5:8001\"\nxdp = \"driver\"",
            "file.toml:8:7: `xdp` in [service.canary]: \"driver\" is not known",
        ),
        (
            "address = \"10.0.0.5:8001\"\nsteer_stale = 60",
            "file.toml:8:15: `steer_stale` in [service.canary]: 60 is not a string",
        ),
        (
            "address = \"10.0.0.5:8001\"\nshares = 1",
            "file.toml:8:1: unknown key `shares` in [service.canary]",
        ),
    ];
    for (canary, expected) in cases {
        let section = format!("[service.canary]\n{canary}\n[service.mirror]");
        check(Kind::Node, ("[service.mirror]", &section), &[expected]);
    }
}

#[test]
fn mirror_values_are_refused_by_name() {
    let key = "agent_key = \"7AE7TsxOLw1P8Fa38qS031aZlH55SjH+8KWGHdZs57I=\"";
    let cases = [
        (
            "sample = 1.5",
            "file.toml:9:10: `sample` in [service.mirror]: 1.5 is not a share",
        ),
        (
            "sample = -0.1",
            "file.toml:9:10: `sample` in [service.mirror]: -0.1 is not a share",
        ),
        (
            "sample = nan",
            "file.toml:9:10: `sample` in [service.mirror]: nan is not a share",
        ),
        (
            "sample = \"half\"",
            "file.toml:9:10: `sample` in [service.mirror]: \"half\" is not a number",
        ),
        (
            "arms = [\"stable\", \"canary\"]",
            "file.toml:9:19: sentiment has no canary whose connections could be copied",
        ),
        (
            "directions = \"responses\"",
            "file.toml:9:14: `directions` in [service.mirror]: \"responses\" is not known",
        ),
        (
            "max_bytes_per_second = 0",
            "file.toml:9:24: `max_bytes_per_second` in [service.mirror]: 0 is not a size",
        ),
        (
            "max_bytes_per_second = \"9 apples\"",
            "file.toml:9:24: `max_bytes_per_second` in [service.mirror]: \"9 apples\" is not a size",
        ),
        (
            "api = \"http://10.0.0.9:9471\"",
            "file.toml:9:1: `api` in [service.mirror] is no longer supported: the agent is asked at `agent`, and known by its key",
        ),
        (
            "token_file = \"/token\"",
            "file.toml:9:1: `token_file` in [service.mirror] is no longer supported",
        ),
        (
            "transport = \"udp\"",
            "file.toml:9:13: `transport` in [service.mirror]: \"udp\" is not known",
        ),
        (
            "insecure = 1",
            "file.toml:9:12: `insecure` in [service.mirror]: 1 is neither true nor false",
        ),
        (
            "[service.stable]\nversion = \"v 1\"",
            "file.toml:10:11: `version` in [service.stable]: \"v 1\" is not fit",
        ),
    ];
    for (line, expected) in cases {
        check(Kind::Node, (key, &format!("{key}\n{line}")), &[expected]);
    }
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
        check(Kind::Shadow, *change, expected);
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
        check(
            Kind::Shadow,
            (target, &format!("{target}\n{line}")),
            &[expected],
        );
    }
}

#[test]
fn every_problem_is_found_in_one_go() {
    let second =
        "[[service]]\nname = \"sentiment\"\nid = 101\naddresses = [\"10.0.0.5:8000\"]\nfoo = 1\n";
    let report = report(Kind::Node, &format!("{NODE}{second}"));
    let places: Vec<_> = report
        .lines()
        .filter_map(|line| line.strip_prefix("file.toml:"))
        .filter_map(|line| line.split(": ").nth(1))
        .collect();
    assert_eq!(
        places,
        [
            "service name sentiment stands here a second time",
            "service id 101 stands here a second time",
            "10.0.0.5:8000 is taken",
            "unknown key `foo` in [service]",
        ]
    );
}

#[test]
fn what_is_not_toml_is_said_so() {
    let report = report(Kind::Node, "interfaces = [eth0]\n");
    assert!(report.starts_with("file.toml:1:15: not TOML:"), "{report}");
}

#[test]
fn a_reload_tells_what_changes_and_refuses_what_cannot() {
    let running = node(NODE).unwrap();
    assert_eq!(
        changes(&running, &running).map(|c| c.to_string()),
        Ok("nothing changed".to_owned())
    );

    let mut new = running.clone();
    new.interfaces = vec!["lo".to_owned()];
    new.services[0].stable_version = "v2".to_owned();
    let mut other = running.services[0].clone();
    other.name = "ranking".to_owned();
    new.services.push(other);
    let said = changes(&running, &new).unwrap().to_string();
    assert_eq!(
        said,
        "attach lo; detach eth0; added ranking; changed sentiment"
    );

    new.pin_dir = "/elsewhere".into();
    new.admin = ([127, 0, 0, 1], 1).into();
    assert_eq!(
        changes(&running, &new).unwrap_err().keys,
        ["pin_dir", "admin"]
    );
}

mod keys;
mod rollout;

proptest! {
    /// Whatever is typed, it is taken or its problems can be shown.
    #[test]
    fn nothing_that_is_typed_panics(
        kind in prop_oneof![Just(Kind::Node), Just(Kind::Shadow)],
        at in any::<prop::sample::Index>(),
        gone in 0..12_usize,
        typed in prop_oneof![
            "\\PC{0,6}",
            "[\\[\\]=\"#.,0-9a-z\\n\\t -]{0,8}",
        ],
    ) {
        let mut text: Vec<char> = default_text(kind).chars().collect();
        let at = at.index(text.len());
        text.splice(at..(at + gone).min(text.len()), typed.chars());
        let text = String::from_iter(text);
        let shown = report(kind, &text);
        prop_assert!(shown.is_empty() || shown.starts_with("file.toml:"), "{}", shown);
        kind_of(&text);
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
