use mirror_base::config::fixture;

use super::*;

/// The smallest file.
const NODE: &str = r#"interfaces = ["eth0"]
[[service]]
name = "sentiment"
id = 101
addresses = ["*:8000"]
[service.mirror]
agent = "10.0.0.9:6181"
agent_key = "7AE7TsxOLw1P8Fa38qS031aZlH55SjH+8KWGHdZs57I="
"#;

fn report(text: &str) -> String {
    fixture::said(text, node)
}

/// Changes the smallest file, and expects this to be said of it.
#[track_caller]
fn check(change: (&str, &str), expected: &[&str]) {
    fixture::check(NODE, node, change, expected);
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
    assert_eq!(report(&text), expected);
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
        check(*change, expected);
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
        check(("[service.mirror]", &section), &[expected]);
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
        check((key, &format!("{key}\n{line}")), &[expected]);
    }
}

#[test]
fn every_problem_is_found_in_one_go() {
    let second =
        "[[service]]\nname = \"sentiment\"\nid = 101\naddresses = [\"10.0.0.5:8000\"]\nfoo = 1\n";
    let report = report(&format!("{NODE}{second}"));
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
    let report = report("interfaces = [eth0]\n");
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
