use super::*;

const OTHER_KEY: &str = "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";

const AGENT_LINE: &str = "agent_key = \"7AE7TsxOLw1P8Fa38qS031aZlH55SjH+8KWGHdZs57I=\"\n";

#[test]
fn an_agent_is_known_by_its_key_or_on_purpose_by_nothing() {
    let missing = &[
        "file.toml:6:1: `agent_key` in [service.mirror] is missing",
        "`modelmirror keys show` prints on the shadow host",
    ];
    check((AGENT_LINE, ""), missing);
    check((AGENT_LINE, "insecure = false\n"), missing);
    check((AGENT_LINE, "insecure = true\n"), &[]);
    let key = |typed: &str| format!("agent_key = {typed}\n");
    check(
        (AGENT_LINE, &key("\"abc\"")),
        &["file.toml:8:13: `agent_key` in [service.mirror]: \"abc\" is no public key"],
    );
    let private = "\"MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\"";
    check(
        (AGENT_LINE, &key(private)),
        &[
            "file.toml:8:13: `agent_key` in [service.mirror]: this is a private key",
            "keys new --replace",
        ],
    );
}

#[test]
fn an_agent_has_a_name_or_an_address() {
    let address = "10.0.0.9:6181";
    check((address, "shadow.ml.svc:6181"), &[]);
    check((address, "[2001:db8::9]:6181"), &[]);
    check(
        (address, "2001:db8::9:6181"),
        &[
            "file.toml:7:9: `agent` in [service.mirror]: \"2001:db8::9:6181\" is not a host with a port: an IPv6 address stands in brackets",
        ],
    );
    check(
        (address, "http://shadow:6181"),
        &["file.toml:7:9:", "such as \"shadow.internal:6181\""],
    );
}

#[test]
fn one_agent_is_reached_in_one_way() {
    let check = |lines: &str, expected: &str| {
        let second = "[[service]]\nname = \"ranking\"\nid = 102\naddresses = [\"*:8001\"]\n[service.mirror]\nagent = \"10.0.0.9:6181\"\n";
        let report = report(&format!("{NODE}{second}{lines}"));
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
        check((interfaces, &with), &[expected]);
    }
    let with =
        format!("{interfaces}ring = \"1GiB\"\nsender_cpus = 0.5\nbatch_interval = \"500us\"\n");
    check((interfaces, &with), &[]);
}
