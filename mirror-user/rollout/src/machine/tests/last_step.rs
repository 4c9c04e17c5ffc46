//! The end of the way: stable keeps a part until the canary has proven itself, and is missed afterwards.

use mirror_common::histogram::Latency;

use super::*;

/// Half, then all but a twentieth, then everything.
fn held_back(plan: &mut Plan) {
    quick(plan);
    plan.stages = vec![Share::of_parts(5_000), Share::ALL];
    plan.canary.holdback = Share::of_parts(500);
    plan.canary.bake = Duration::from_secs(120);
}

fn settling() -> Told {
    let mut told = Told::new(held_back);
    told.reach("baking", &well(0.5));
    told.assert("baking", 0.95);
    told.reach("settling", &well(0.95));
    told.assert("settling", 1.0);
    told
}

#[test]
fn both_serve_until_the_canary_has_baked() {
    let mut told = Told::new(held_back);
    told.reach("stage 2", &well(0.5));
    told.assert("stage 2", 0.95);
    let mut told = settling();
    told.reach("promoted", &well(1.0));
    told.assert("promoted", 1.0);
}

/// What is only seen with nearly everything: three times slower, or failing a little more.
#[test]
fn who_is_bad_with_nearly_everything_is_taken_back() {
    let check = |change: fn(&mut Arm), words: &str| {
        let mut told = Told::new(held_back);
        told.reach("baking", &well(0.5));
        let mut window = well(0.95);
        change(&mut window.canary);
        told.see_for(300, &window);
        told.assert("rolling back", 0.0);
        let State::RollingBack { why, .. } = told.rollout.state() else {
            panic!("{told}");
        };
        assert!(why.contains(words), "{why}");
    };
    check(
        |canary| canary.first_body = vec![(SLOW + 8, 950)].into(),
        "exceeds its limit",
    );
    check(|canary| canary.errors = 30, "errors exceeds its limit");
}

/// With nobody beside it nobody knows whether it is the canary: that holds, and takes nobody back.
#[test]
fn an_incident_with_everything_holds() {
    let mut told = settling();
    let mut failing = well(1.0);
    failing.canary.errors = 30;
    told.see_for(60, &failing);
    told.assert("settling", 1.0);
    assert!(told.waits().contains(&Kind::Incident), "{told}");
    told.reach("promoted", &well(1.0));
}

/// Three times slower, once it has everything: that is not promoted, and goes on when it is well again.
#[test]
fn who_is_slow_with_everything_is_not_promoted() {
    let mut told = settling();
    let mut slow = well(1.0);
    slow.canary.first_body = vec![(SLOW + 8, 1_000)].into();
    told.see_for(600, &slow);
    told.assert("settling", 1.0);
    let mut waits = told.rollout.waits().iter();
    let incident = waits.find(|held| held.kind == Kind::Incident);
    let why = &incident.unwrap_or_else(|| panic!("{told}")).why;
    assert!(why.starts_with("p50 was "), "{why}");
    told.reach("promoted", &well(1.0));
}

#[test]
fn who_fails_most_with_everything_is_taken_back() {
    let mut told = settling();
    let mut failing = well(1.0);
    failing.canary.errors = 600;
    told.see_for(3, &failing);
    told.assert("rolling back", 0.0);
}

/// A second of failures is a burst, and the canary's own if stable has none; three are an end.
#[test]
fn no_second_decides_alone() {
    let mut told = Told::new(quick);
    told.reach("stage 1", &compared(500, 500));
    let mut dead = well(0.25);
    dead.canary.errors = 250;
    for _ in 0..2 {
        told.see(dead.clone());
        told.see_for(5, &well(0.25));
    }
    told.assert("stage 1", 0.25);
    told.see_for(3, &dead);
    told.assert("rolling back", 0.0);
}

/// Versions that both always fail three requests of ten are as bad as each other.
#[test]
fn who_fails_as_stable_does_is_not_severe() {
    let mut told = Told::new(|plan| {
        quick(plan);
        plan.canary.min_duration = Duration::from_secs(600);
    });
    told.reach("stage 1", &compared(500, 500));
    // As few as a small share has: by chance many of twenty fail.
    for second in 0..500 {
        let mut window = well(0.25);
        window.stable.errors = window.stable.requests * 3 / 10;
        window.canary = arm(4, if second % 20 < 4 { 3 } else { 1 }, FAST);
        told.see(window);
    }
    told.assert("stage 1", 0.25);
}

/// Caches are cold, and compilers at work: what is slow at first is no worse version, unless it fails.
#[test]
fn only_severe_failures_count_while_it_warms_up() {
    let warming = |plan: &mut Plan| {
        quick(plan);
        plan.canary.warmup = Duration::from_secs(60);
    };
    let mut told = Told::new(warming);
    told.reach("stage 1", &compared(500, 500));
    let mut cold = well(0.25);
    cold.canary.first_body = vec![(SLOW + 16, 250)].into();
    told.see_for(59, &cold);
    told.assert("stage 1", 0.25);
    assert!(told.waits().contains(&Kind::MinDuration), "{told}");
    assert_eq!(told.rollout.requests(), [0, 0]);
    told.see_for(19, &well(0.25));
    told.assert("stage 1", 0.25);
    told.reach("stage 2", &well(0.25));

    let mut told = Told::new(warming);
    told.reach("stage 1", &compared(500, 500));
    let mut dead = well(0.25);
    dead.canary.errors = 250;
    told.see_for(3, &dead);
    told.assert("rolling back", 0.0);
}

/// Failures come at once; the answers that they are to be held against take ten seconds.
#[test]
fn for_as_long_as_slow_answers_take_nothing_counts() {
    let mut told = Told::new(quick);
    told.reach("stage 1", &compared(500, 500));
    let ten_seconds = Latency::bucket(10_000_000_000) as u16;
    let mut early = well(0.25);
    early.stable.complete = vec![(FAST, 700), (ten_seconds, 50)].into();
    early.canary = arm(50, 20, FAST);
    told.see_for(9, &early);
    told.assert("stage 1", 0.25);
    assert_eq!(told.rollout.requests(), [0, 0]);
    let mut later = well(0.25);
    later.stable.complete = early.stable.complete.clone();
    later.canary.complete = vec![(FAST, 233), (ten_seconds, 17)].into();
    told.see_for(10, &later);
    told.assert("stage 1", 0.25);
    assert_ne!(told.rollout.requests(), [0, 0]);
    told.see_for(60, &early);
    told.assert("rolling back", 0.0);
}

/// In three seconds nothing is proven against a version that is sixteen times slower, but more clients do not
/// get it either.
#[test]
fn who_looks_worse_gets_no_more_clients() {
    let mut told = Told::new(|plan| {
        quick(plan);
        plan.stages = vec![Share::of_parts(100), Share::of_parts(1_000), Share::ALL];
        plan.canary.min_duration = Duration::from_secs(3);
        plan.canary.min_requests = 10;
    });
    told.reach("stage 1", &compared(500, 500));
    let mut slow = well(0.01);
    slow.canary.first_body = vec![(FAST + 64, 10)].into();
    told.see_for(4, &slow);
    told.assert("stage 1", 0.01);
    assert!(told.waits().contains(&Kind::NotProven), "{told}");
    told.see_for(60, &slow);
    told.assert("rolling back", 0.0);
}
