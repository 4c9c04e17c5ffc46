use std::ffi::OsString;

use mirror_rollout::Share;

use super::*;

#[test]
fn the_command_line_is_consistent() {
    check::parser().debug_assert();
}

fn typed(line: &str) -> Result<Cli, clap::Error> {
    let words = ["modelmirror"].into_iter().chain(line.split(' '));
    parse(words.map(OsString::from).collect())
}

/// `line` is accepted, or refused with these words.
fn check(line: &str, expected: Result<(), &str>) {
    let parsed = typed(line);
    match (parsed, expected) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(words)) => {
            assert_eq!(error.exit_code(), 2, "{line}");
            let said = error.to_string();
            assert!(said.contains(words), "{line}: {said}");
        }
        (parsed, _) => panic!("{line}: {parsed:?}"),
    }
}

#[test]
fn commands_are_those_of_the_contract() {
    check("run --config node.toml --detach-on-exit", Ok(()));
    check("run", Ok(()));
    check("run -c node.toml -vv", Ok(()));
    check("shadow -qq", Ok(()));
    check("shadow -q -v", Err("cannot be used with"));
    check("run --control /tmp/c.sock", Err("leave --control out"));
    check("--control /tmp/c.sock run", Err("leave --control out"));
    check("shadow --config shadow.toml --log-format json", Ok(()));
    check("check --config node.toml --output json", Ok(()));
    check("status --service a --control /tmp/c.sock", Ok(()));
    check("--output json status", Ok(()));
    check("status --agent --service a", Ok(()));
    check("status -s a -o json --color never", Ok(()));
    check("status --check", Ok(()));
    check("status --watch", Ok(()));
    check("status --watch 5s --agent", Ok(()));
    check("status --watch 2", Ok(()));
    check("status --watch 1ms", Err("100ms or more"));
    check("status --watch --check", Err("cannot be used with"));
    check("check --strict", Ok(()));
    check("status --service a/b", Err("letters, digits"));
    check("mirror on --service a", Ok(()));
    check("mirror off", Ok(()));
    check("mirror sample 0.5 --service a", Ok(()));
    check("mirror sample 50 --service a", Err("50% or 0.5"));
    check("mirror sample 50%", Ok(()));
    check("mirror sample 101%", Err("from 0 to 1"));
    check("mirror sample -1%", Err("-1"));
    check("mirror sample nan --service a", Err("from 0 to 1"));
    check("mirror clear --service a", Ok(()));
    check("canary set 0.05 --service a", Ok(()));
    check("canary set 5 --service a", Err("5% or 0.05"));
    check("canary set 5%", Ok(()));
    check("canary set 0.005%", Err("steps of 0.0001"));
    check("canary set 0.00005 --service a", Err("steps of 0.0001"));
    check("canary set 0.1", Ok(()));
    check("canary off --service a --reset", Ok(()));
    check("canary off --service a --drain 30s", Ok(()));
    check(
        "canary off --service a --reset --drain 30s",
        Err("cannot be used with"),
    );
    check("canary off --service a --drain soon", Err("drain"));
    check("canary clear --service a", Ok(()));
    check("rollout start --service a", Ok(()));
    let whole = "rollout start --service a --canary-version v13 --canary-address 10.0.0.5:8001 --plan p.toml --again --reason nightly --wait --timeout 2h";
    check(whole, Ok(()));
    check("rollout start", Ok(()));
    check("rollout start --dry-run", Ok(()));
    check("rollout start --dry-run --wait", Err("cannot be used with"));
    check("rollout status --watch", Ok(()));
    check("rollout start --service a --timeout 2h", Err("--wait"));
    check(
        "rollout start --service a --canary-address model:8001",
        Err("--canary-address"),
    );
    check("rollout status", Ok(()));
    check("rollout pause --service a --reason lunch", Ok(()));
    check("rollout resume --service a", Ok(()));
    check("rollout promote --service a --all", Ok(()));
    check("rollout abort --service a", Ok(()));
    check("rollout abort --yes", Ok(()));
    check("rollout promote --all -y -s a", Ok(()));
    check("rollout finish --service a --force", Ok(()));
    check("rollout explain --service a --rollout a-1", Ok(()));
    check("rollout explain --service a --rollout a/1", Err("history"));
    check("rollout history --service a", Ok(()));
    check("off", Ok(()));
    check("off -c node.toml --yes --if-present", Ok(()));
    check("report --config shadow.toml", Ok(()));
    check("report --records /var/log/modelmirror --service a", Ok(()));
    check("report", Ok(()));
    check(
        "report --labels l.csv --id-field order --label-field fraud",
        Ok(()),
    );
    check("report --id-field order", Err("--labels"));
    let whole = "report --version v12/v13 --since 2h --last 100 --fail-under agreement=0.99 --fail-under compared=1000";
    check(whole, Ok(()));
    check("report --since 2026-11-22T12:00:00Z", Ok(()));
    check("report --since 2026-11-22T12:00", Ok(()));
    check("report --since 2026-11-22", Ok(()));
    check("report --since soon", Err("how long ago"));
    check("report --last 0", Err("--last"));
    check("report --fail-under agreement=99%", Ok(()));
    check(
        "report --fail-under compared=99%",
        Err("number of comparisons"),
    );
    check("report --fail-under agreement=99", Err("from 0 to 1"));
    check("report --fail-under speed=1", Err("names: agreement"));
    check("report --fail-under compared=0", Err("compared=1000"));
    check("report --recompare", Ok(()));
    check("report --recompare --records a", Err("cannot be used with"));
    check("report --recompare --config a", Ok(()));
    check("report --config a --records b", Err("cannot be used with"));
    check("keys new", Ok(()));
    check("keys new --key-file /tmp/key --replace", Ok(()));
    check("keys show --key-file /tmp/key --output json", Ok(()));
    check("keys show --replace", Err("--replace"));
    check("config default --for shadow", Ok(()));
    check("config check --config node.toml", Ok(()));
}

#[test]
fn shares_are_typed_in_per_cent_too() {
    let check = |typed: &str, parts| {
        let share = fine_share(typed).unwrap();
        assert_eq!(share, Share::of_parts(parts), "{typed}");
    };
    for (typed, parts) in [
        ("0.05", 500),
        ("5%", 500),
        ("5 %", 500),
        ("0.29%", 29),
        ("33.33%", 3_333),
        ("100%", 10_000),
        ("1", 10_000),
        ("0%", 0),
    ] {
        check(typed, parts);
    }
}

/// Every command that a person types has an example.
#[test]
fn each_command_s_help_has_examples() {
    fn visit(command: &clap::Command, seen: &mut usize) {
        let mut commands = command.get_subcommands().peekable();
        if commands.peek().is_none() {
            *seen += 1;
            let name = command.get_name();
            let said = command.get_after_help().map(ToString::to_string);
            let said = said.unwrap_or_default();
            let own = said.lines().skip(1).filter(|line| line.contains(name));
            assert!(said.starts_with("Examples:\n"), "{name}: {said}");
            assert!(own.count() > 0, "{name}: {said}");
            // They can be typed so.
            for line in said
                .lines()
                .filter(|line| line.starts_with("  modelmirror "))
            {
                let line = line.split("   ").find(|part| !part.is_empty()).unwrap();
                let end = line.find([';', '|', '>', '\\']).unwrap_or(line.len());
                let line = line[..end].replace("\"retrained on November\"", "retrained");
                let line = line
                    .replace("\"v12 leaks memory\"", "leak")
                    .replace('"', "");
                let line = line.trim().trim_start_matches("modelmirror ");
                check(line, Ok(()));
            }
        }
        commands.for_each(|command| visit(command, seen));
    }
    let mut seen = 0;
    visit(&check::parser(), &mut seen);
    assert!(seen > 20, "only {seen} commands");
}

#[test]
fn help_leaves_out_what_has_no_use() {
    let help = |line: &str| typed(line).unwrap_err().to_string();
    for (line, control, log) in [
        ("run --help", false, true),
        ("shadow -h", false, true),
        ("check -h", false, false),
        ("report -h", false, false),
        ("keys new -h", false, false),
        ("config check -h", false, false),
        ("status -h", true, false),
        ("canary set -h", true, false),
        ("rollout start -h", true, false),
        ("off -h", true, false),
    ] {
        let help = help(line);
        assert_eq!(help.contains("--control"), control, "{line}: {help}");
        assert_eq!(help.contains("--log-format"), log, "{line}: {help}");
        assert!(help.contains("--output"), "{line}: {help}");
    }
}

#[test]
fn errors_are_wanted_as_json_where_it_says_so() {
    let wants = |line: &str| wants_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
    for line in [
        "status -o json",
        "--output json x",
        "x --output=json",
        "-ojson",
    ] {
        assert!(wants(line), "{line}");
    }
    for line in [
        "status",
        "status -o text",
        "json -o",
        "report --output text json",
    ] {
        assert!(!wants(line), "{line}");
    }
}
