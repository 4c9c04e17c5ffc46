//! What both hosts' files have in common.

use mirror_agent::config::Slice;
use mirror_api::Affinity;
use mirror_base::config::{fixture, meant};
use mirror_rollout::Share;
use proptest::prelude::*;

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

const AGENT_LINE: &str = "agent_key = \"7AE7TsxOLw1P8Fa38qS031aZlH55SjH+8KWGHdZs57I=\"\n";
const TAP: &str =
    "[[tap]]\nname = \"node-1\"\nkey = \"7DE/pLphe1I114BApFokjCbQ6arHUq+6pP2Y5PKCCd0=\"\n";

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
    match kind {
        Kind::Node => fixture::said(text, node),
        Kind::Shadow => fixture::said(text, shadow),
    }
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
        include_str!("../../../../docs/reference/config-node.md"),
        include_str!("../../../../docs/reference/plan-file.md")
    );
    let shadow = include_str!("../../../../docs/reference/config-agent.md");
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
fn what_only_stands_in_for_a_key_is_refused() {
    let remedy = "write what `modelmirror keys show` prints on that host";
    let zeros = format!("{}=", "A".repeat(43));
    for nobodys in [NO_AGENT_KEY, &zeros] {
        let line = format!("agent_key = \"{nobodys}\"\n");
        let what = format!("file.toml:8:13: `agent_key` in [service.mirror]: \"{nobodys}\"");
        fixture::check(NODE, node, (AGENT_LINE, &line), &[&what, remedy]);
    }
    let what = format!("file.toml:3:7: `key` in [tap]: \"{NO_TAP_KEY}\"");
    fixture::check(SHADOW, shadow, (TAP_KEY, NO_TAP_KEY), &[&what, remedy]);
    // So is what `config default` prints, until somebody has filled it in.
    for kind in [Kind::Node, Kind::Shadow] {
        let report = report(kind, default_text(kind));
        assert!(report.contains("is nobody's"), "{report}");
        assert_eq!(report.matches("file.toml:").count(), 1, "{report}");
    }
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
