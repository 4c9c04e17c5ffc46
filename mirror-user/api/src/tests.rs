use mirror_rollout::Share;
use mirror_rollout::gates::{Gate, Role, Unit};
use mirror_rollout::record::Event;
use mirror_rollout::state::By;
use mirror_rollout::statistics::{Finding, Verdict};
use mirror_rollout::stories::Story;

use super::*;
use crate::fixtures::{history, status, story};

#[test]
fn a_status_fits_a_terminal() {
    let expected = "\
modelmirror 0.1.0 (ABI 1), up 3h 12m 3s
warning: the config was not reloaded: node.toml:3:1: unknown key

INTERFACE  INDEX  HOOK  STATE
eth0       2      tcx   attached
veth-pod   -      -     NOT ATTACHED: no such interface; waiting for it

AGENT          STATE  TRANSPORT  LAST ECHO  ROUND TRIP  WAITING                   UPLINK
10.0.0.9:6181  alive  stream     0.4 s ago  0.21 ms     3.0 MiB, 2 % of the ring  eth0

SERVICE sentiment  id 101, version v12, *:8000
  mirror       on (source: config), to 10.0.0.9:6181
  sample       0.25 effective; config 1, cli 0.5
  rate         3.2 MB/s of 12.5 MB/s allowed
  look         0.250 of stable, 72 requests/s; 1.000 of canary, 25 requests/s; at most 100/s each
  connections  1200, 3 shut out by the budget
  PACKETS         REQUEST  RESPONSE
  mirrored          40000         0
  pure_ack              0         7
  bytes mirrored  81.9 MB       0 B

cost of our programs: p50 448 ns, p99 1024 ns a packet (one run in 1,024 timed: 39)
";
    assert_eq!(status().to_string(), expected);
}

/// However long the reason: the table stays narrow, and the reason is whole.
#[test]
fn why_an_agent_is_down_stands_below_the_table() {
    let mut status = status();
    let why =
        "10.0.0.9:6181 does not know this node's key: add [[tap]] name = \"...\", key = \"...\"";
    (status.agents[0].alive, status.agents[0].error) = (false, Some(why.to_owned()));
    let expected = format!(
        "
AGENT          STATE  TRANSPORT  LAST ECHO  ROUND TRIP  WAITING                   UPLINK
10.0.0.9:6181  DOWN   stream     0.4 s ago  0.21 ms     3.0 MiB, 2 % of the ring  eth0
10.0.0.9:6181 DOWN: {why}
"
    );
    let shown = status.to_string();
    assert!(shown.contains(&expected), "{shown}");
}

#[test]
fn clear_text_is_said() {
    let mut status = status();
    status.services[0].mirror.as_mut().unwrap().insecure = true;
    let shown = status.to_string();
    let line = "to 10.0.0.9:6181, in CLEAR TEXT, without keys (`insecure`)\n";
    assert!(shown.contains(line), "{shown}");
}

#[test]
fn both_versions_stand_side_by_side() {
    let server = ServerUse {
        processes: 5,
        cpu_seconds: 71.3,
        cpus: Some(0.314),
        resident_bytes: 412_000_000,
    };
    let mut status = status();
    status.services[0].mirror = None;
    status.services[0].canary = Some(CanaryState {
        version: "v13".to_owned(),
        address: ([10, 0, 0, 5], 8001).into(),
        affinity: Affinity::Client,
        share: ShareState {
            configured: Share::NONE,
            set: Some(Share::try_from(0.05).unwrap()),
            by_rollout: false,
            effective: Share::try_from(0.05).unwrap(),
            achieved: Achieved {
                seconds: Some(187.4),
                connections: Some(0.05),
                requests: Some(0.0612),
                bytes: None,
            },
        },
        arms: vec![
            arm("stable", "v12", Some(server)),
            arm("canary", "v13", None),
        ],
        concentration: Some(Concentration {
            clients: 16,
            connections: 94,
            busiest: [10, 0, 0, 2].into(),
            busiest_client: 0.0975,
            busiest_connection: 0.02,
            client_keys: 12.0,
            connection_keys: 60.0,
        }),
        xdp: None,
        xdp_error: None,
        translations: None,
        by: None,
        up: None,
        silent: None,
        error: None,
    });
    let expected = "
  canary       v13, 10.0.0.5:8001, on this host; a client keeps its version
  share        0.05 effective; config 0, cli 0.05
  achieved     5.00 % of connections, 6.12 % of requests, - of bytes, in 3m 7s
  clients      16 on 94 connections; 10.0.0.2 sends 9.75 % of the requests' bytes
  VERSION                     stable v12  canary v13
  connections                          7           7
  open                                 0           0
  unanswered                           0           0
  requests seen                        0           0
    2xx 3xx 4xx 5xx              0 0 0 0     0 0 0 0
    cut, unanswered, no HTTP     0, 0, 0     0, 0, 0
    says it failed                     0           0
    aborted by client                  0           0
  first body byte p50, p99          -, -        -, -
  complete p50, p99                 -, -        -, -
  handshake p50                        -           -
  bytes in, out                 0 B, 0 B    0 B, 0 B
  resets by client, server          0, 0        0, 0
  server's CPUs                     0.31           -
  server's memory               412.0 MB           -
  server's processes                   5           -
";
    let shown = status.to_string();
    assert!(shown.contains(expected), "{shown}");

    let canary = status.services[0].canary.as_mut().unwrap();
    (canary.arms[0].server, canary.concentration) = (None, None);
    let shown = status.to_string();
    assert!(
        !shown.contains("server's") && !shown.contains("clients"),
        "{shown}"
    );
}

fn arm(arm: &str, version: &str, server: Option<ServerUse>) -> Arm {
    Arm {
        arm: arm.to_owned(),
        version: version.to_owned(),
        connections: 7,
        server,
        ..Arm::default()
    }
}

#[test]
fn a_change_is_written_as_documented() {
    let written = [
        (Change::On, r#""on""#),
        (Change::Off, r#""off""#),
        (Change::Clear, r#""clear""#),
        (Change::Sample(0.25), r#"{"sample":0.25}"#),
    ];
    for (change, json) in written {
        assert_eq!(serde_json::to_string(&change).unwrap(), json);
    }
}

#[test]
fn a_change_of_the_canary_is_written_as_documented() {
    let share = Share::try_from(0.05).unwrap();
    let written = [
        (CanaryChange::Share(share), r#"{"share":0.05}"#),
        (CanaryChange::Off(Rest::Finish), r#"{"off":"finish"}"#),
        (CanaryChange::Off(Rest::Reset), r#"{"off":"reset"}"#),
        (
            CanaryChange::Off(Rest::Drain(30_000)),
            r#"{"off":{"drain":30000}}"#,
        ),
        (CanaryChange::Clear, r#""clear""#),
    ];
    for (change, json) in written {
        assert_eq!(serde_json::to_string(&change).unwrap(), json);
        assert_eq!(serde_json::from_str::<CanaryChange>(json).unwrap(), change);
    }
    for refused in [r#"{"share":1.5}"#, r#"{"share":0.00001}"#, r#""off""#] {
        assert!(
            serde_json::from_str::<CanaryChange>(refused).is_err(),
            "{refused}"
        );
    }
}

fn state(story: &Story) -> RolloutState {
    RolloutState::of(&story.rollout, story.now)
}

#[test]
fn a_rollout_s_status_says_why_it_waits_and_what_comes_next() {
    let mut rollout = state(&story());
    rollout.gates = gates();
    let rollout = Some(rollout);
    let service = "sentiment".to_owned();
    let said = RolloutStates(vec![ServiceRollout { service, rollout }]).to_string();
    let expected = "\
ROLLOUT sentiment-1  sentiment: v13 at 10.0.0.5:8001 instead of v12
  state        stage 1 of 2, 10 % of new connections, for 2s
  waits        minimum stage time: 2s of 3s elapsed
  next         stage 2 of 2 at 100 % when the gates pass
  responses    180 by v12, 20 by v13 (10.00 % at this stage)
  started      2026-11-22 12:04:31Z, 2s ago
  GATE        VERDICT         FIGURE  PROVEN                      LIMIT                                           COUNTED
  errors      WORSE      4.00 points  1.00 points to 7.50 points  at most 0.5 percentage points more than stable  12 of 300 against 0 of 2700
  conversion  not known            -  -                           at least 0.02                                   -
  p99         within      1.05 times  at most 1.15 times          at most 1.2 times stable's                      300 against 2700
  resets      not worse            -  -                           at most 20 percentage points more than stable   0 of 0 against 0 of 0
  conversion: the value is NaN
";
    assert_eq!(said, expected);
    let service = "sentiment".to_owned();
    let none = RolloutStates(vec![ServiceRollout {
        service,
        rollout: None,
    }]);
    let words =
        "sentiment: no rollout yet; `modelmirror rollout start --service sentiment` begins one\n";
    assert_eq!(none.to_string(), words);
}

/// One of each kind, in no order.
fn gates() -> Vec<Gate> {
    let unknown = Finding {
        verdict: Verdict::Unknown,
        estimate: None,
        low: None,
        high: None,
        limit: 0.2,
        worse: 0.0,
        within: 0.0,
        needed: 6.0,
        effect: 1.0,
        clients_effect: 1.0,
        events: [0, 0],
        trials: [0, 0],
    };
    let gate = |name: &str, unit, limit: &str, finding: Option<Finding>| Gate {
        name: name.to_owned(),
        verdict: finding
            .as_ref()
            .map_or(Verdict::Unknown, |finding| finding.verdict),
        limit: limit.to_owned(),
        unit,
        finding,
        value: None,
        note: None,
        role: Role::Proof,
    };
    let slow = Finding {
        verdict: Verdict::Within,
        estimate: Some(1.05),
        high: Some(1.15),
        trials: [2_700, 300],
        ..unknown.clone()
    };
    let errors = Finding {
        verdict: Verdict::Worse,
        estimate: Some(0.04),
        low: Some(0.01),
        high: Some(0.075),
        events: [0, 12],
        trials: [2_700, 300],
        ..unknown.clone()
    };
    let more = "at most 0.5 percentage points more than stable";
    let mut resets = gate(
        "resets",
        Unit::Difference,
        "at most 20 percentage points more than stable",
        Some(unknown),
    );
    resets.role = Role::Watch;
    let mut metric = gate("conversion", Unit::Metric, "at least 0.02", None);
    metric.note = Some("the value is NaN".to_owned());
    vec![
        gate("p99", Unit::Ratio, "at most 1.2 times stable's", Some(slow)),
        resets,
        metric,
        gate("errors", Unit::Difference, more, Some(errors)),
    ]
}

#[test]
fn a_rollout_that_needs_a_person_is_loud() {
    let mut story = story();
    story.pass(3, [90, 0], [10, 10]);
    story.tell(Event::TakenBack);
    let mut status = status();
    status.services[0].rollout = Some(state(&story));
    let said = status.to_string();
    let expected = "
  rollout      v13: ROLLED BACK, for 0s
               30 of the canary's last 30 requests failed
";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_history_lists_the_last_first() {
    let expected = "\
STARTED               SERVICE    FROM  TO   OUTCOME      AFTER  ID
2026-11-22 12:04:31Z  sentiment  v12   v13  running      -      sentiment-1
2026-11-22 12:04:31Z  sentiment  v12   v13  rolled back  2s     sentiment-0

sentiment-0: p99 exceeds its limit";
    assert_eq!(RolloutHistory(history()).to_string(), expected);
    let mut stopped = history();
    for (step, word) in [
        (StepName::Held, "  held  "),
        (StepName::Paused, "  paused  "),
        (StepName::RollingBack, "  rolling back  "),
    ] {
        stopped[0].step = Some(step);
        let shown = RolloutHistory(stopped.clone()).to_string();
        let line = shown.lines().nth(1).unwrap();
        assert!(line.contains(word), "{line}");
    }
    let none = RolloutHistory(Vec::new()).to_string();
    assert_eq!(none, "no rollout yet");
}

#[test]
fn orders_are_written_as_documented() {
    let by = || By {
        who: "anna".to_owned(),
        reason: None,
    };
    let start = Start {
        version: Some("v13".to_owned()),
        address: Some(([10, 0, 0, 5], 8001).into()),
        by: by(),
        ..Start::default()
    };
    let written = [
        (
            RolloutOrder::Start(Box::new(start)),
            r#"{"start":{"version":"v13","address":"10.0.0.5:8001","plan":null,"again":false,"who":"anna"}}"#,
        ),
        (
            RolloutOrder::DryRun(Box::new(Start {
                by: by(),
                ..Start::default()
            })),
            r#"{"dry_run":{"version":null,"address":null,"plan":null,"again":false,"who":"anna"}}"#,
        ),
        (RolloutOrder::Pause(by()), r#"{"pause":{"who":"anna"}}"#),
        (
            RolloutOrder::Promote(Promote {
                all: true,
                by: by(),
            }),
            r#"{"promote":{"all":true,"who":"anna"}}"#,
        ),
        (
            RolloutOrder::Finish(Finish {
                force: false,
                by: by(),
            }),
            r#"{"finish":{"force":false,"who":"anna"}}"#,
        ),
    ];
    for (order, json) in written {
        assert_eq!(serde_json::to_string(&order).unwrap(), json);
        assert_eq!(serde_json::from_str::<RolloutOrder>(json).unwrap(), order);
    }
    let short = serde_json::from_str(r#"{"start":{"who":"anna"}}"#).unwrap();
    let start = Start {
        by: by(),
        ..Start::default()
    };
    assert_eq!(RolloutOrder::Start(Box::new(start)), short);
}
