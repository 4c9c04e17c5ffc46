use super::*;

const AGENT_LINE: &str = "agent_key = \"7AE7TsxOLw1P8Fa38qS031aZlH55SjH+8KWGHdZs57I=\"\n";
const TAP: &str =
    "[[tap]]\nname = \"node-1\"\nkey = \"7DE/pLphe1I114BApFokjCbQ6arHUq+6pP2Y5PKCCd0=\"\n";
const OTHER_KEY: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

#[test]
fn an_agent_is_known_by_its_key_or_on_purpose_by_nothing() {
    let missing = &[
        "file.toml:6:1: `agent_key` in [service.mirror] is missing",
        "`modelmirror keys show` prints on the shadow host",
    ];
    check(Kind::Node, (AGENT_LINE, ""), missing);
    check(Kind::Node, (AGENT_LINE, "insecure = false\n"), missing);
    check(Kind::Node, (AGENT_LINE, "insecure = true\n"), &[]);
    let key = |typed: &str| format!("agent_key = {typed}\n");
    check(
        Kind::Node,
        (AGENT_LINE, &key("\"abc\"")),
        &["file.toml:8:13: `agent_key` in [service.mirror]: \"abc\" is no public key"],
    );
    let private = "\"MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\"";
    check(
        Kind::Node,
        (AGENT_LINE, &key(private)),
        &[
            "file.toml:8:13: `agent_key` in [service.mirror]: this is a private key",
            "keys new --replace",
        ],
    );
}

#[test]
fn what_only_stands_in_for_a_key_is_refused() {
    let remedy = "write what `modelmirror keys show` prints on that host";
    let zeros = format!("{}=", "A".repeat(43));
    for nobodys in [NO_AGENT_KEY, &zeros] {
        let line = format!("agent_key = \"{nobodys}\"\n");
        let what = format!("file.toml:8:13: `agent_key` in [service.mirror]: \"{nobodys}\"");
        check(Kind::Node, (AGENT_LINE, &line), &[&what, remedy]);
    }
    let what = format!("file.toml:3:7: `key` in [tap]: \"{NO_TAP_KEY}\"");
    check(Kind::Shadow, (TAP_KEY, NO_TAP_KEY), &[&what, remedy]);
    // So is what `config default` prints, until somebody has filled it in.
    for kind in [Kind::Node, Kind::Shadow] {
        let report = report(kind, default_text(kind));
        assert!(report.contains("is nobody's"), "{report}");
        assert_eq!(report.matches("file.toml:").count(), 1, "{report}");
    }
}

#[test]
fn an_agent_has_a_name_or_an_address() {
    let address = "10.0.0.9:6181";
    check(Kind::Node, (address, "shadow.ml.svc:6181"), &[]);
    check(Kind::Node, (address, "[2001:db8::9]:6181"), &[]);
    check(
        Kind::Node,
        (address, "2001:db8::9:6181"),
        &[
            "file.toml:7:9: `agent` in [service.mirror]: \"2001:db8::9:6181\" is not a host with a port: an IPv6 address stands in brackets",
        ],
    );
    check(
        Kind::Node,
        (address, "http://shadow:6181"),
        &["file.toml:7:9:", "such as \"shadow.internal:6181\""],
    );
}

#[test]
fn one_agent_is_reached_in_one_way() {
    let check = |lines: &str, expected: &str| {
        let second = "[[service]]\nname = \"ranking\"\nid = 102\naddresses = [\"*:8001\"]\n[service.mirror]\nagent = \"10.0.0.9:6181\"\n";
        let report = report(Kind::Node, &format!("{NODE}{second}{lines}"));
        let first = report.lines().next().unwrap_or_default();
        assert_eq!(first, expected);
    };
    check(AGENT_LINE, "");
    check(
        &format!("agent_key = \"{OTHER_KEY}\""),
        "file.toml:14:9: the agent 10.0.0.9:6181 has another `agent_key` in another service",
    );
    check(
        &format!("{AGENT_LINE}transport = \"geneve\""),
        "file.toml:14:9: the agent 10.0.0.9:6181 has another `transport` in another service",
    );
    check(
        "insecure = true",
        "file.toml:14:9: the agent 10.0.0.9:6181 has another `insecure` in another service",
    );
}

#[test]
fn what_the_sender_may_take_has_bounds() {
    let interfaces = "interfaces = [\"eth0\"]\n";
    let cases = [
        (
            "ring = \"64KiB\"",
            "file.toml:2:8: `ring`: 65536 bytes are not from 512 KiB to 64 GiB",
        ),
        (
            "sender_cpus = 0",
            "file.toml:2:15: `sender_cpus`: 0 is no number of CPUs",
        ),
        (
            "batch_interval = \"0s\"",
            "file.toml:2:18: `batch_interval`: \"0s\" is not a span of 100 us to 1 s",
        ),
        (
            "key_file = \"key\"",
            "file.toml:2:12: `key_file`: \"key\" depends on the working directory",
        ),
    ];
    for (line, expected) in cases {
        let with = format!("{interfaces}{line}\n");
        check(Kind::Node, (interfaces, &with), &[expected]);
    }
    let with =
        format!("{interfaces}ring = \"1GiB\"\nsender_cpus = 0.5\nbatch_interval = \"500us\"\n");
    check(Kind::Node, (interfaces, &with), &[]);
}

#[test]
fn somebody_must_be_allowed_to_send() {
    let lines = |lines: &str| format!("{lines}\n{TAP}");
    check(
        Kind::Shadow,
        (TAP, ""),
        &[
            "file.toml:1:1: there is no [[tap]]",
            "`modelmirror keys show` prints on the node",
        ],
    );
    let open = "insecure = true\nallow = [\"10.0.0.5/32\"]\n";
    check(Kind::Shadow, (TAP, open), &[]);
    check(Kind::Shadow, (TAP, &lines(open)), &[]);
    check(
        Kind::Shadow,
        (TAP, "insecure = true\n"),
        &["file.toml:1:1: `allow` is missing"],
    );
    check(
        Kind::Shadow,
        (TAP, &lines("insecure = true\nallow = []")),
        &["file.toml:1:1: `allow` is missing"],
    );
    check(
        Kind::Shadow,
        (TAP, &lines("insecure = true\nallow = [\"10.0.0.5/33\"]")),
        &["file.toml:2:10: `allow`: \"10.0.0.5/33\" is not a network"],
    );
    check(
        Kind::Shadow,
        (TAP, &lines("allow = [\"10.0.0.5/32\"]")),
        &["file.toml:1:1: `allow` is who may send without a key, and that is nobody here"],
    );
    let vxlan = "vxlan = \"0.0.0.0:4789\"\n";
    check(
        Kind::Shadow,
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
    check(Kind::Shadow, (TAP, &second("node-2", OTHER_KEY)), &[]);
    check(
        Kind::Shadow,
        (TAP, &second("node-1", OTHER_KEY)),
        &["file.toml:5:8: tap name node-1 stands here a second time"],
    );
    let same = "7DE/pLphe1I114BApFokjCbQ6arHUq+6pP2Y5PKCCd0=";
    check(
        Kind::Shadow,
        (TAP, &second("node-2", same)),
        &["file.toml:6:7: tap key 7DE/"],
    );
    check(
        Kind::Shadow,
        (TAP, &second("10.0.0.5", OTHER_KEY)),
        &["file.toml:5:8: `name` in [tap]: \"10.0.0.5\" is an address"],
    );
    check(
        Kind::Shadow,
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
        check(Kind::Shadow, (TAP, &format!("{line}\n{TAP}")), &[expected]);
    }
    check(
        Kind::Shadow,
        (TAP, &format!("admin = \"0.0.0.0:6181\"\n{TAP}")),
        &["file.toml:1:9: `admin` and `listen` listen on the same port"],
    );
}

/// What the docs show of keys, and of sections, can be written into configs as it stands there.
#[test]
fn what_the_docs_show_is_accepted() {
    const PREDICTION: &str = "[service.compare]\nprediction = \"/outputs/0/data\"\n";
    let pages = [
        include_str!("../../../../docs/reference/cli.md"),
        include_str!("../../../../docs/how-to/join-labels.md"),
        include_str!("../../../../docs/how-to/harden.md"),
    ];
    let (line_of_key, without_tap) = (AGENT_LINE.trim_end(), SHADOW.replace(TAP, ""));
    let mut shown = 0;
    for page in pages {
        let mut lines = page.lines().filter_map(|line| line.strip_prefix("    "));
        while let Some(line) = lines.next() {
            let is_section =
                line == "[[tap]]" || line.starts_with("[service.") && !line.contains(' ');
            if line.starts_with("agent_key = ") {
                node(&NODE.replace(line_of_key, line)).unwrap();
            } else if is_section {
                let values = lines.by_ref().take_while(|line| line.contains(" = "));
                let section: Vec<_> = [line].into_iter().chain(values).collect();
                let section = section.join("\n");
                let text = match line {
                    "[[tap]]" => format!("{section}\n{without_tap}"),
                    _ => format!("{SHADOW}{PREDICTION}{section}"),
                };
                shadow(&text).unwrap();
            } else {
                continue;
            }
            shown += 1;
        }
    }
    assert_eq!(shown, 5, "sections and keys");
}
