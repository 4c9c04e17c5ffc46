//! Tables of states and events, by a clock that stands still until it is moved.

mod any_windows;
mod crowd;
mod last_step;
mod noise;
mod outage;

use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::held::Kind;
use crate::plan::{Baseline, Hook, HookPoint, MetricGate, Shadow as ShadowPlan, Target};
use crate::record::{Answer, Called, Order, Want};
use crate::state::By;
use crate::statistics::Pairs;
use crate::window::{Arm, Reading, Shadow, Slice};

/// 1.07 ms, and 2.1 ms: 16 buckets above.
const FAST: u16 = 160;
const SLOW: u16 = FAST + 16;

/// A rollout, its clock, and its record.
struct Told {
    rollout: Rollout,
    now: Timestamp,
    lines: Vec<Line>,
}

fn plan(change: impl FnOnce(&mut Plan)) -> Plan {
    let mut plan = Plan::default();
    plan.canary.min_duration = Duration::from_secs(5);
    plan.canary.min_requests = 50;
    plan.canary.bake = Duration::from_secs(10);
    plan.canary.holdback = Share::NONE;
    plan.canary.warmup = Duration::ZERO;
    change(&mut plan);
    plan
}

impl Told {
    fn new(change: impl FnOnce(&mut Plan)) -> Self {
        let started = Started {
            id: "1".into(),
            service: "digits".into(),
            stable: "v12".into(),
            canary: Target {
                version: "v13".into(),
                address: "10.0.0.5:8001".parse().unwrap(),
            },
            plan: plan(change),
            by: By::default(),
        };
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let first = Event::Started(Box::new(started.clone()));
        let mut told = Self {
            rollout: Rollout::start(started, now),
            now,
            lines: vec![line(now, Entry::Event(first))],
        };
        told.see(Window::default());
        told
    }

    fn tell(&mut self, event: Event) -> Vec<Decision> {
        let decisions = self.rollout.tell(&event, self.now);
        self.lines.push(line(self.now, Entry::Event(event)));
        let entries = decisions.iter().cloned().map(Entry::Decision);
        self.lines
            .extend(entries.map(|entry| line(self.now, entry)));
        decisions
    }

    /// A second passes, in which this happens.
    fn see(&mut self, window: Window) -> Vec<Decision> {
        self.now += jiff::SignedDuration::from_secs(1);
        self.tell(Event::Seen(Box::new(window)))
    }

    /// So many seconds of it, or until another state is reached.
    fn see_for(&mut self, seconds: usize, window: &Window) {
        let before = self.rollout.state().clone();
        for _ in 0..seconds {
            self.see(window.clone());
            if *self.rollout.state() != before {
                return;
            }
        }
    }

    /// Until this state is reached, within somewhat more than an hour.
    #[track_caller]
    fn reach(&mut self, state: &str, window: &Window) {
        for _ in 0..4_000 {
            if self.rollout.state().to_string() == state {
                return;
            }
            self.see(window.clone());
        }
        panic!("not {state}: {self}");
    }

    fn order(&mut self, want: Want) -> Result<Vec<Decision>, Refused> {
        self.rollout.can(want)?;
        let by = By {
            who: "ada".into(),
            reason: Some("a test".into()),
        };
        Ok(self.tell(Event::Ordered(Order { want, by })))
    }

    #[track_caller]
    fn assert(&self, state: &str, share: f64) {
        let found = (
            self.rollout.state().to_string(),
            f64::from(self.rollout.share()),
        );
        assert_eq!(found, (state.to_owned(), share), "{self}");
    }

    fn waits(&self) -> Vec<Kind> {
        self.rollout.waits().iter().map(|held| held.kind).collect()
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{} after {} lines",
            self.rollout.state(),
            self.lines.len()
        )?;
        for held in self.rollout.waits() {
            writeln!(f, "waits: {}", held.why)?;
        }
        for gate in self.rollout.gates() {
            writeln!(f, "gate: {gate}")?;
        }
        Ok(())
    }
}

fn line(time: Timestamp, entry: Entry) -> Line {
    Line {
        time,
        wall: None,
        up_ms: None,
        entry,
    }
}

fn arm(responses: u64, errors: u64, bucket: u16) -> Arm {
    Arm {
        connections: responses / 10,
        requests: responses,
        responses,
        errors,
        request_bytes: responses * 100,
        response_bytes: responses * 100,
        sizes: vec![(200, responses - errors)].into(),
        first_body: vec![(bucket, responses * 9 / 10), (bucket + 8, responses / 10)].into(),
        complete: vec![(bucket, responses * 9 / 10), (bucket + 8, responses / 10)].into(),
        ..Arm::default()
    }
}

/// Both versions do well; the canary's answers are such a part of a thousand.
fn well(share: f64) -> Window {
    let canary = (1_000.0 * share) as u64;
    Window {
        stable: arm(1_000 - canary, 0, FAST),
        canary: arm(canary, 0, FAST),
        ..Window::default()
    }
}

fn compared(count: u64, matching: u64) -> Window {
    Window {
        stable: arm(count, 0, FAST),
        shadow: Some(Shadow {
            compared: count,
            matching,
            failures: Pairs {
                neither: count,
                ..Pairs::default()
            },
            latencies: vec![
                (FAST, FAST, count * 9 / 10),
                (FAST + 8, FAST + 8, count / 10),
            ],
            answered: count,
            ..Shadow::default()
        }),
        ..Window::default()
    }
}

fn with_shadow(plan: &mut Plan) {
    plan.shadow = Some(ShadowPlan::default());
}

/// A plan of one stage, with everything in it.
fn quick(plan: &mut Plan) {
    plan.stages = vec![0.25, 1.0]
        .into_iter()
        .map(|share| Share::try_from(share).unwrap())
        .collect();
    plan.canary.min_duration = Duration::from_secs(20);
}

#[test]
fn a_good_version_is_promoted() {
    let mut told = Told::new(with_shadow);
    told.assert("shadowing", 0.0);
    told.reach("stage 1", &compared(500, 500));
    for (number, share) in (1..).zip([0.01, 0.05, 0.25, 0.5]) {
        told.assert(&format!("stage {number}"), share);
        told.reach(&format!("stage {}", number + 1), &well(share));
    }
    told.reach("baking", &well(1.0));
    told.assert("baking", 1.0);
    assert!(!told.rollout.is_for_good());
    told.reach("promoted", &well(1.0));
    told.assert("promoted", 1.0);
    assert!(told.rollout.is_for_good());
    told.now += jiff::SignedDuration::from_hours(72);
    told.see(Window::default());
    told.assert("retire due", 1.0);
    told.order(Want::Finish).unwrap();
    told.assert("finished", 0.0);
}

/// What takes a canary back that is at its first stage: a window again and again, and the words.
#[track_caller]
fn check_rolled_back(change: impl FnOnce(&mut Plan), window: &Window, severe: bool, words: &str) {
    let mut told = Told::new(change);
    told.reach("stage 1", &compared(500, 500));
    told.see_for(5, &well(0.25));
    told.see_for(120, window);
    told.assert("rolling back", 0.0);
    let State::RollingBack { why, severe: is } = told.rollout.state().clone() else {
        panic!("{told}");
    };
    assert!(why.contains(words) && is == severe, "{is}: {why}");
    told.tell(Event::TakenBack);
    told.assert("rolled back", 0.0);
}

/// What users see as failures, and a class of 2xx does not tell.
#[test]
fn a_version_whose_clients_fail_is_taken_back() {
    let check = |count: u64, change: fn(&mut Arm, u64), severe, words| {
        let mut window = well(0.25);
        change(&mut window.canary, count);
        check_rolled_back(quick, &window, severe, words);
    };
    let client_errors: fn(&mut Arm, u64) = |arm, count| arm.client_errors = count;
    check(10, client_errors, false, "client errors exceeds its limit");
    check(250, client_errors, false, "client errors exceeds its limit");
    let redirects = |arm: &mut Arm, count| arm.redirects = count;
    check(250, redirects, false, "redirects exceeds its limit");
    let empty = |arm: &mut Arm, count| arm.sizes = vec![(0, count), (200, 250 - count)].into();
    check(10, empty, false, "short responses exceeds its limit");
    let cut = |arm: &mut Arm, count| (arm.responses, arm.incomplete) = (250 - count, count);
    check(10, cut, false, "errors exceeds its limit");
    check(250, cut, true, "last 750 requests failed");
    let closed = |arm: &mut Arm, count| (arm.responses, arm.unanswered) = (250 - count, count);
    check(37, closed, false, "errors exceeds its limit");
    let no_http = |arm: &mut Arm, count| (arm.responses, arm.unreadable) = (0, count);
    check(250, no_http, true, "last 750 requests failed");
    let given_up = |arm: &mut Arm, count| (arm.responses, arm.aborted) = (250 - count, count);
    check(37, given_up, false, "aborted requests exceeds its limit");
    let strayed = |arm: &mut Arm, count| (arm.strayed, arm.delivered) = (count, count / 2);
    check(20, strayed, true, "were answered by somebody else");
    let refused = |arm: &mut Arm, count| arm.unanswered_connections = count;
    check(20, refused, true, "reset by its server or not answered");
}

/// They are clients' doing, until one version has more of them than the other.
#[test]
fn what_both_versions_do_alike_is_no_fault_of_one() {
    let mut window = well(0.25);
    for arm in [&mut window.stable, &mut window.canary] {
        arm.client_errors = arm.requests / 5;
        arm.redirects = arm.requests / 10;
        arm.aborted = arm.requests / 20;
        arm.sizes = vec![(0, arm.requests / 2), (200, arm.requests / 2)].into();
    }
    let mut told = Told::new(quick);
    told.reach("stage 1", &compared(500, 500));
    told.reach("stage 2", &window);
}

/// Of a protocol that cannot be read nothing is known, and no data means hold.
#[test]
fn a_protocol_that_cannot_be_read_is_never_passed() {
    let mut window = well(0.25);
    for arm in [&mut window.stable, &mut window.canary] {
        let unseen = [("http2".to_owned(), arm.requests)].into();
        *arm = Arm {
            connections: arm.connections,
            request_bytes: arm.request_bytes,
            response_bytes: arm.response_bytes,
            unseen,
            ..Arm::default()
        };
    }
    let mut told = Told::new(quick);
    told.reach("stage 1", &compared(500, 500));
    told.see_for(300, &window);
    told.assert("stage 1", 0.25);
    assert!(told.waits().contains(&Kind::NotSeen), "{told}");
    let gates = told.rollout.gates();
    let errors = gates.iter().find(|gate| gate.name == "errors").unwrap();
    let said = errors.to_string();
    assert!(
        said.contains("cannot be seen") && said.contains("http2"),
        "{said}"
    );
}

#[test]
fn a_bad_version_is_taken_back() {
    let bad = |change: fn(&mut Window)| {
        let mut window = well(0.25);
        change(&mut window);
        window
    };
    let failing = bad(|window| window.canary.errors = 10);
    check_rolled_back(quick, &failing, false, "errors exceeds its limit");
    let dead = bad(|window| window.canary.errors = 240);
    check_rolled_back(quick, &dead, true, "of the canary's last");
    let slow = bad(|window| window.canary.first_body = vec![(SLOW, 250)].into());
    check_rolled_back(quick, &slow, false, "p99 exceeds its limit");
    let tail = bad(|window| window.canary.first_body = vec![(FAST, 235), (SLOW + 16, 15)].into());
    check_rolled_back(quick, &tail, false, "p99 exceeds its limit");
    let slow_end = bad(|window| window.canary.complete = vec![(SLOW, 250)].into());
    check_rolled_back(quick, &slow_end, false, "complete p99 exceeds its limit");
    let resets = bad(|window| (window.canary.resets, window.canary.connections) = (25, 25));
    check_rolled_back(quick, &resets, true, "reset");
    let gone = bad(|window| window.unreachable = Some("nobody listens".into()));
    check_rolled_back(quick, &gone, true, "cannot be reached: nobody listens");
    let silent = bad(|window| {
        window.canary = Arm {
            request_bytes: 100,
            ..Arm::default()
        }
    });
    check_rolled_back(quick, &silent, true, "has sent nothing for 10 s");
    let slice = Window {
        shadow: Some(Shadow {
            compared: 100,
            matching: 99,
            slices: [(
                "blue".to_owned(),
                Slice {
                    compared: 10,
                    matching: 5,
                    ..Slice::default()
                },
            )]
            .into(),
            ..Shadow::default()
        }),
        ..well(0.25)
    };
    let both = |plan: &mut Plan| {
        quick(plan);
        with_shadow(plan);
    };
    check_rolled_back(both, &slice, false, "slice:blue exceeds its limit");
    let metric = Window {
        metrics: [(
            "sales".to_owned(),
            Reading::Value {
                canary: 0.1,
                stable: None,
            },
        )]
        .into(),
        ..well(0.25)
    };
    let asked = |plan: &mut Plan| {
        quick(plan);
        plan.gates = vec![gate()];
    };
    check_rolled_back(
        asked,
        &metric,
        false,
        "sales exceeds its limit, at least 0.5: 0.1",
    );
}

fn gate() -> MetricGate {
    MetricGate {
        name: "sales".into(),
        query: "sales".into(),
        min: Some(0.5),
        max: None,
        max_delta: None,
        staleness: Duration::from_secs(60),
        hold_for: Duration::ZERO,
    }
}

/// A shadow that disagrees never gets to clients.
/// The latency of a shadow that gets more than it takes is neither proof nor blame.
#[test]
fn a_saturated_shadow_is_waited_for() {
    let mut told = Told::new(with_shadow);
    let mut window = compared(1_000, 1_000);
    let shadow = window.shadow.as_mut().unwrap();
    // Many times slower, and most had to wait.
    shadow.latencies = vec![(FAST, FAST + 200, 100)];
    shadow.saturated = 900;
    told.see_for(60, &window);
    told.assert("shadowing", 0.0);
    let waits = told.rollout.waits();
    let why: Vec<_> = waits.iter().map(|held| held.why.as_str()).collect();
    assert!(
        why.iter()
            .any(|why| why.contains("the shadow is saturated")),
        "{why:?}"
    );
    assert!(why.iter().any(|why| why.contains("concurrency")), "{why:?}");
    // With more room it shows what it is.
    let shadow = window.shadow.as_mut().unwrap();
    (shadow.latencies, shadow.saturated) = (vec![(FAST, FAST + 200, 1_000)], 0);
    told.see_for(20, &window);
    assert!(
        matches!(
            told.rollout.state(),
            State::RolledBack { .. } | State::RollingBack { .. }
        ),
        "{told}"
    );
}

#[test]
fn a_bad_shadow_is_no_canary() {
    let mut told = Told::new(with_shadow);
    told.see_for(60, &compared(100, 90));
    told.assert("rolling back", 0.0);
}

/// The answers of a better model may well differ.
#[test]
fn a_shadow_can_do_without_agreement() {
    let differ = |change: fn(&mut Shadow)| {
        let mut window = compared(100, 0);
        if let Some(shadow) = &mut window.shadow {
            let slice = Slice {
                compared: 100,
                matching: 0,
                ..Slice::default()
            };
            shadow.slices.insert("blue".to_owned(), slice);
            change(shadow);
        }
        window
    };
    let without = |plan: &mut Plan| {
        with_shadow(plan);
        if let Some(shadow) = &mut plan.shadow {
            shadow.agreement = 0.0;
        }
    };
    let mut told = Told::new(without);
    told.reach("stage 1", &differ(|_| {}));
    let names: Vec<_> = told
        .rollout
        .gates()
        .iter()
        .map(|gate| &*gate.name)
        .collect();
    assert!(
        !names.contains(&"agreement") && !names.contains(&"slice:blue"),
        "{names:?}"
    );
    let failing =
        differ(|shadow| (shadow.failures.neither, shadow.failures.shadow_only) = (90, 10));
    let mut told = Told::new(without);
    told.see_for(60, &failing);
    told.assert("rolling back", 0.0);
    let slow = differ(|shadow| shadow.latencies = vec![(FAST, SLOW, 100)]);
    let mut told = Told::new(without);
    told.see_for(60, &slow);
    told.assert("rolling back", 0.0);
}

/// Servers may be so restless that no latency is ever proven.
#[test]
fn latency_is_judged_where_it_is_asked_for() {
    let ratio = |ratio: f64| {
        move |plan: &mut Plan| {
            quick(plan);
            with_shadow(plan);
            plan.canary.max_latency_ratio = ratio;
            if let Some(shadow) = &mut plan.shadow {
                shadow.max_latency_ratio = ratio;
            }
        }
    };
    let mut slow = compared(100, 100);
    if let Some(shadow) = &mut slow.shadow {
        shadow.latencies = vec![(FAST, SLOW, 100)];
    }
    let mut told = Told::new(ratio(1.2));
    told.see_for(60, &slow);
    told.assert("rolling back", 0.0);
    let mut told = Told::new(ratio(0.0));
    told.reach("stage 1", &slow);
    let mut slow = well(0.25);
    slow.canary.first_body = vec![(SLOW, 250)].into();
    slow.canary.complete = vec![(SLOW, 250)].into();
    told.reach("stage 2", &slow);
    let names = told.rollout.gates().iter().map(|gate| &*gate.name);
    assert!(
        names
            .clone()
            .all(|name| !name.contains("p50") && !name.contains("p99")),
        "{told}"
    );
}

/// Equal failures prove nothing, and blame nobody.
#[test]
fn what_both_versions_refuse_is_no_agreement() {
    let refused = |count, both_failed| {
        let mut window = compared(count, count);
        if let Some(shadow) = &mut window.shadow {
            shadow.both_failed = both_failed;
        }
        window
    };
    let mut told = Told::new(with_shadow);
    told.see_for(300, &refused(0, 100));
    told.assert("shadowing", 0.0);
    told.see_for(300, &refused(100, 20));
    told.assert("shadowing", 0.0);
    assert!(told.waits().contains(&Kind::NotProven), "{told}");
    let why =
        "both failed is not yet proven within its limit, at most 10 %: 54.55 % (36000 of 66000)";
    assert!(told.to_string().contains(why), "{told}");
    told.reach("stage 1", &refused(500, 0));
}

/// What holds a rollout up at its first stage, though the time is over and nothing is worse.
#[track_caller]
fn check_held(change: impl FnOnce(&mut Plan), window: &Window, kinds: &[Kind]) {
    let mut told = Told::new(change);
    told.reach("stage 1", &compared(500, 500));
    told.see_for(300, window);
    told.assert("stage 1", 0.25);
    assert_eq!(told.waits(), kinds, "{told}");
}

#[test]
fn no_data_means_hold() {
    use Kind::*;
    check_held(
        quick,
        &Window::default(),
        &[
            TooFew, NoTraffic, TooFew, NoTraffic, NotProven, NotProven, NotProven, NotProven,
            NotProven,
        ],
    );
    let stable_alone = Window {
        canary: Arm::default(),
        ..well(0.25)
    };
    let expected = [
        TooFew,
        NoTraffic,
        ShareNotReached,
        NotProven,
        NotProven,
        NotProven,
        NotProven,
        NotProven,
    ];
    check_held(quick, &stable_alone, &expected);
    let few = Window {
        canary: arm(10, 0, FAST),
        ..well(0.25)
    };
    let mut told = Told::new(quick);
    told.see_for(6, &few);
    assert!(
        told.waits().contains(&NotProven) && !told.waits().contains(&TooFew),
        "{told}"
    );
    let one = Window {
        held: vec![Held {
            kind: OneClient,
            why: "10.0.0.2 sends everything".into(),
        }],
        ..well(0.25)
    };
    check_held(quick, &one, &[OneClient]);
    let missing = Window {
        metrics: [(
            "sales".to_owned(),
            Reading::Missing("the value is NaN".into()),
        )]
        .into(),
        ..well(0.25)
    };
    let asked = |plan: &mut Plan| {
        quick(plan);
        plan.gates = vec![gate()];
    };
    check_held(asked, &missing, &[Metric]);
    check_held(asked, &well(0.25), &[Metric]);
    let outage = Window {
        stable: arm(750, 700, FAST),
        canary: arm(250, 233, FAST),
        ..Window::default()
    };
    let mut told = Told::new(quick);
    told.see_for(10, &well(0.25));
    told.see_for(300, &outage);
    assert!(told.waits().contains(&BothFail), "{told}");
    // It is no evidence afterwards.
    told.reach("stage 2", &well(0.25));
}

#[test]
fn an_agent_that_is_gone_holds_the_shadow() {
    let mut told = Told::new(with_shadow);
    let gone = Window {
        held: vec![Held {
            kind: Kind::Agent,
            why: "the agent cannot be reached".into(),
        }],
        ..Window::default()
    };
    told.see_for(10, &compared(50, 50));
    told.see_for(300, &gone);
    told.assert("shadowing", 0.0);
    assert!(told.waits().contains(&Kind::Agent), "{told}");
    told.reach("stage 1", &compared(500, 500));
}

#[test]
fn a_hold_ends_as_held_or_in_a_rollback() {
    for (then, expected) in [
        (OnTimeout::Hold, "held at stage 1"),
        (OnTimeout::Rollback, "rolling back"),
    ] {
        let mut told = Told::new(|plan| {
            quick(plan);
            plan.canary.on_timeout = then;
        });
        told.reach(expected, &Window::default());
        let why = match told.rollout.state() {
            State::Held { why, .. } | State::RollingBack { why, .. } => why,
            state => panic!("{state}"),
        };
        assert!(why.contains("0 of 50 requests of v13 were seen"), "{why}");
    }
}

#[test]
fn a_hold_goes_on_when_a_person_says_so() {
    let mut told = Told::new(quick);
    told.reach("held at stage 1", &Window::default());
    told.see_for(60, &well(0.25));
    told.assert("held at stage 1", 0.25);
    told.order(Want::Resume).unwrap();
    told.assert("stage 1", 0.25);
    told.reach("stage 2", &well(0.25));
}

#[test]
fn a_pause_stops_the_clock_and_nothing_else() {
    let mut told = Told::new(quick);
    told.see_for(3, &well(0.25));
    told.order(Want::Pause).unwrap();
    assert_eq!(told.order(Want::Pause).unwrap(), []);
    told.see_for(600, &well(0.25));
    told.assert("paused at stage 1", 0.25);
    told.order(Want::Resume).unwrap();
    assert_eq!(told.order(Want::Resume).unwrap(), []);
    assert!(told.waits().contains(&Kind::MinDuration), "{told}");
    told.order(Want::Pause).unwrap();
    let mut dead = well(0.25);
    dead.canary.errors = 250;
    told.see_for(3, &dead);
    told.assert("rolling back", 0.0);
}

#[test]
fn people_may_go_faster() {
    let mut told = Told::new(with_shadow);
    told.order(Want::Promote).unwrap();
    told.assert("stage 1", 0.01);
    told.order(Want::Promote).unwrap();
    told.assert("stage 2", 0.05);
    told.order(Want::PromoteAll).unwrap();
    told.assert("settling", 1.0);
    told.order(Want::PromoteAll).unwrap();
    told.assert("promoted", 1.0);
    assert_eq!(told.order(Want::Promote).unwrap(), []);
    told.order(Want::Abort).unwrap();
    told.assert("aborted", 0.0);
    assert_eq!(told.order(Want::Abort).unwrap(), []);
    for want in [Want::Pause, Want::Resume, Want::Promote, Want::Finish] {
        assert!(told.order(want).is_err(), "{want:?}");
    }
}

fn hook(on: HookPoint, approve: bool) -> Hook {
    Hook {
        on,
        url: "http://127.0.0.1:9000/".into(),
        headers_file: None,
        approve,
        timeout: Duration::from_secs(5),
    }
}

#[test]
fn hooks_are_waited_for() {
    let mut told = Told::new(|plan| {
        quick(plan);
        plan.hooks = vec![
            hook(HookPoint::Before, true),
            hook(HookPoint::Stage, false),
            hook(HookPoint::Rollback, false),
        ];
    });
    told.assert("before the start", 0.0);
    let answer = |hook, point, answer| {
        Event::Called(Called {
            hook,
            point,
            answer,
        })
    };
    let due = |told: &Told| told.rollout.calls(told.now);
    assert_eq!(
        due(&told),
        [Call {
            hook: 0,
            point: HookPoint::Before
        }]
    );
    told.tell(answer(
        0,
        HookPoint::Before,
        Answer::Refused("403 Forbidden".into()),
    ));
    assert_eq!(due(&told), []);
    assert!(
        told.rollout.waits()[0].why.contains("403 Forbidden"),
        "{told}"
    );
    told.see_for(10, &Window::default());
    assert_eq!(due(&told).len(), 1);
    told.tell(answer(0, HookPoint::Before, Answer::Approved));
    told.assert("stage 1", 0.25);
    told.reach("stage 1 passed", &well(0.25));
    for _ in 0..3 {
        assert_eq!(
            due(&told),
            [Call {
                hook: 1,
                point: HookPoint::Stage
            }],
            "{told}"
        );
        told.assert("stage 1 passed", 0.25);
        told.tell(answer(
            1,
            HookPoint::Stage,
            Answer::Failed("refused".into()),
        ));
        told.see_for(10, &well(0.25));
    }
    told.assert("stage 2", 1.0);
    let mut gone = well(1.0);
    gone.unreachable = Some("nobody listens".into());
    told.see_for(3, &gone);
    assert_eq!(due(&told), []);
    told.tell(Event::TakenBack);
    assert_eq!(
        due(&told),
        [Call {
            hook: 2,
            point: HookPoint::Rollback
        }]
    );
}

/// What is compared before the start is allowed is no evidence.
#[test]
fn nothing_counts_before_it_is_allowed() {
    let mut told = Told::new(|plan| {
        with_shadow(plan);
        plan.hooks = vec![hook(HookPoint::Before, true)];
    });
    told.see_for(20, &compared(500, 100));
    told.assert("before the start", 0.0);
    told.tell(Event::Called(Called {
        hook: 0,
        point: HookPoint::Before,
        answer: Answer::Approved,
    }));
    told.assert("shadowing", 0.0);
    told.see(compared(500, 500));
    assert!(told.waits().contains(&Kind::TooFew), "{told}");
}

/// Rollback works while somebody is waited for.
#[test]
fn a_rollback_waits_for_no_approval() {
    let mut told = Told::new(|plan| {
        quick(plan);
        plan.hooks = vec![hook(HookPoint::Stage, true)];
    });
    told.reach("stage 1 passed", &well(0.25));
    let mut dead = well(0.25);
    dead.canary.errors = 250;
    told.see_for(3, &dead);
    told.assert("rolling back", 0.0);
}

#[test]
fn without_a_baseline_limits_are_absolute() {
    let mut told = Told::new(|plan| {
        quick(plan);
        plan.baseline = Baseline::None;
        plan.canary.max_latency = Some(Duration::from_millis(10));
    });
    let names: Vec<String> = {
        told.see(well(0.25));
        let gates = told.rollout.gates().iter();
        gates.map(|gate| gate.name.clone()).collect()
    };
    assert_eq!(names, ["errors", "latency", "hard errors", "connections"]);
    told.reach("stage 2", &well(0.25));
    // Stable fails as often: it does not count.
    let mut failing = well(0.25);
    (failing.stable.errors, failing.canary.errors) = (50, 20);
    told.see_for(60, &failing);
    told.assert("rolling back", 0.0);
}

/// A kernel that has taken the canary back is believed, also where nobody wrote it down.
#[test]
fn what_the_kernel_has_taken_back_stays_so() {
    let mut told = Told::new(quick);
    told.see(well(0.25));
    told.tell(Event::TakenBack);
    told.assert("rolled back", 0.0);
}
