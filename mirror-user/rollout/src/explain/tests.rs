use super::*;
use crate::plan::Hook;
use crate::stories::{self, Story};

fn plan() -> Plan {
    let mut plan = stories::plan(2);
    plan.canary.hard_error_rate = 0.9;
    plan
}

/// The story has lines that begin so, in this order.
fn check(story: &Story, expected: &[&str]) {
    let told = tell(&story.lines);
    let mut lines = told.lines();
    for part in expected {
        let found = lines.any(|line| line.trim_start().starts_with(part));
        assert!(found, "{part:?} does not come next in:\n{told}");
    }
}

#[test]
fn a_rollback_is_told_with_its_numbers() {
    let mut story = Story::begin(plan());
    story.pass(3, [900, 1], [100, 0]);
    story.order(Want::Pause);
    story.order(Want::Resume);
    story.pass(20, [900, 1], [100, 12]);
    story.tell(Event::TakenBack);
    let expected = [
        "Rollout sentiment-1 of sentiment: v13 at 10.0.0.5:8001 instead of v12.",
        "No shadow stage. Then 10 %, 100 % of the connections, each for 2s to 1h and 20 responses",
        "2026-11-22 12:04:31Z  started by anna: retrained",
        "2026-11-22 12:04:31Z  stage 1 of 2 at 10 %: the first stage begins",
        "2026-11-22 12:04:31Z  waits: minimum stage time: 0s of 2s elapsed",
        "and: 0 of 20 requests of v12 were seen at this stage",
        "2026-11-22 12:04:33Z  stage 1 passed: no gate is proven beyond its limit",
        "after 2s, 1800 responses of stable and 200 of the canary",
        "p50 is not yet proven within its limit",
        "2026-11-22 12:04:33Z  stage 2 of 2 at 100 %: the next stage begins",
        "2026-11-22 12:04:34Z  anna asks to pause: lunch",
        "2026-11-22 12:04:34Z  paused at stage 2",
        "2026-11-22 12:04:34Z  anna asks to go on: lunch",
        "2026-11-22 12:04:34Z  goes on at stage 2",
        "2026-11-22 12:04:44Z  errors exceeds its limit, at most 0.5 percentage points more than stable: 9.23 % (120 of 1300)",
        "2026-11-22 12:04:44Z  rolling back: errors exceeds its limit",
        "2026-11-22 12:04:54Z  the kernel gives the canary no new connections",
        "2026-11-22 12:04:54Z  rolled back",
        "v13 was rolled back after 23s: errors exceeds its limit",
    ];
    check(&story, &expected);
}

/// What holds it is said when it is waited for, and when it holds; what each gate says is not said once more.
#[test]
fn a_hold_is_not_told_three_times() {
    let mut plan = plan();
    plan.canary.max_duration = Duration::from_secs(60);
    plan.canary.proven_from = 0.0;
    let mut story = Story::begin(plan);
    story.pass(70, [90, 0], [10, 0]);
    let told = tell(&story.lines);
    let held = told.lines().find(|line| line.contains("held at stage 1: "));
    let held = held.unwrap_or_else(|| panic!("{told}"));
    let gate = "errors is not yet proven within its limit";
    assert!(held.contains(gate), "{told}");
    let (_, after) = told.split_once(held).unwrap();
    assert!(!after.contains(gate), "{told}");
    check(
        &story,
        &["v13 is held, 1m after the start, and a person is wanted: `rollout resume`"],
    );
}

#[test]
fn a_hook_that_does_not_approve_is_named() {
    let mut plan = plan();
    plan.hooks.push(Hook {
        on: HookPoint::Before,
        url: "http://ci/ok".into(),
        headers_file: None,
        approve: true,
        timeout: Duration::from_secs(5),
    });
    let mut story = Story::begin(plan);
    let called = |answer| {
        Event::Called(Called {
            hook: 0,
            point: HookPoint::Before,
            answer,
        })
    };
    story.tell(called(Answer::Failed("connection refused".to_owned())));
    story.tell(called(Answer::Approved));
    let expected = [
        "2026-11-22 12:04:31Z  the hook at ci, called before the start, fails: connection refused",
        "2026-11-22 12:04:31Z  the hook at ci, asked before the start, approves",
        "2026-11-22 12:04:31Z  stage 1 of 2 at 10 %",
        "v13 is on its way, 0s after the start.",
    ];
    check(&story, &expected);
}

#[test]
fn what_has_no_beginning_is_said_so() {
    assert_eq!(tell(&[]), "This record has no beginning.\n");
}
