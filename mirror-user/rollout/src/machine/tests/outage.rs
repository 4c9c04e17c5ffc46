//! A canary that cannot be reached: gone, back in a moment, or coming and going.

use super::*;

fn at_stage_1() -> Told {
    let mut told = Told::new(quick);
    told.reach("stage 1", &compared(500, 500));
    told.see_for(5, &well(0.25));
    told
}

/// Nobody gets to the canary, so its clients are stable's.
fn gone() -> Window {
    Window {
        canary: Arm::default(),
        unreachable: Some("nobody listens".into()),
        ..well(0.25)
    }
}

#[test]
fn who_is_back_in_a_moment_stays() {
    let mut told = at_stage_1();
    told.see_for(2, &gone());
    told.see_for(5, &well(0.25));
    told.see(gone());
    told.see_for(5, &well(0.25));
    told.assert("stage 1", 0.25);
}

#[test]
fn who_stays_away_has_gone() {
    let mut told = at_stage_1();
    told.see_for(3, &gone());
    told.assert("rolling back", 0.0);

    // New connections come now and then, and in between nobody knows.
    let mut told = at_stage_1();
    let unknown = Window {
        canary: Arm::default(),
        ..well(0.25)
    };
    told.see(gone());
    told.see_for(3, &unknown);
    told.assert("stage 1", 0.25);
    told.see(gone());
    told.assert("rolling back", 0.0);
}

#[test]
fn who_comes_and_goes_is_no_server() {
    let mut told = at_stage_1();
    for _ in 0..2 {
        told.see(gone());
        told.see_for(3, &well(0.25));
    }
    told.assert("stage 1", 0.25);
    told.see(gone());
    told.assert("rolling back", 0.0);

    // Three times within a minute, that is.
    let mut told = Told::new(|plan| {
        quick(plan);
        plan.canary.min_duration = Duration::from_secs(600);
    });
    told.reach("stage 1", &compared(500, 500));
    for _ in 0..5 {
        told.see(gone());
        told.see_for(30, &well(0.25));
    }
    told.assert("stage 1", 0.25);
}

#[test]
fn it_is_told_at_once() {
    let mut told = at_stage_1();
    assert!(!told.rollout.is_alarmed_by(&well(0.25)));
    assert!(told.rollout.is_alarmed_by(&gone()));
    told.see(gone());
    assert!(!told.rollout.is_alarmed_by(&gone()));
}
