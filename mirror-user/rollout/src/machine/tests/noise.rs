//! Versions that disagree with themselves.

use super::*;
use crate::gates::Role;
use crate::statistics::{Counts, Verdict};
use crate::window::Control;

/// A second of comparisons, of which 29 % differ; of a hundred that the control answered too so many differ from
/// themselves, so many between the versions, and as many both.
fn noisy(itself: u64, versions: u64) -> Window {
    let mut window = compared(1_000, 710);
    if let Some(shadow) = &mut window.shadow {
        shadow.control = Some(Control {
            pairs: Pairs {
                both: 15,
                production_only: itself,
                shadow_only: versions,
                neither: 85 - itself - versions,
            },
            ..Control::default()
        });
        let slice = Slice {
            compared: 500,
            matching: 350,
            control: Pairs {
                both: 8,
                production_only: itself / 2,
                shadow_only: versions / 2,
                neither: 42 - itself / 2 - versions / 2,
            },
        };
        shadow.slices.insert("blue".to_owned(), slice);
    }
    window
}

#[track_caller]
fn gate(told: &Told, name: &str) -> (Verdict, Role, String) {
    let gates = told.rollout.gates().iter();
    let gate = gates.clone().find(|gate| gate.name == name);
    let gate = gate.unwrap_or_else(|| panic!("no {name} in {told}"));
    (gate.verdict, gate.role, gate.to_string())
}

#[test]
fn what_the_old_version_differs_from_itself_is_not_held_against_the_new_one() {
    let mut told = Told::new(with_shadow);
    told.see_for(20, &noisy(13, 13));
    told.assert("shadowing", 0.0);
    let (verdict, role, words) = gate(&told, "agreement");
    assert_eq!((verdict, role), (Verdict::Unknown, Role::Info));
    let differs = "differs 28 %, of which 28 % the old version differs from itself";
    assert!(words.contains(differs), "{words}");
    assert_eq!(gate(&told, "excess").1, Role::Proof);
    assert!(told.waits().contains(&Kind::NotProven), "{told}");
    told.reach("stage 1", &noisy(13, 13));
    told.assert("stage 1", 0.01);
    let (_, role, _) = gate(&told, "agreement");
    assert_eq!(role, Role::Info, "it decides nothing later either");
}

#[test]
fn the_excess_takes_a_version_back() {
    let mut told = Told::new(with_shadow);
    told.see_for(60, &noisy(10, 18));
    told.assert("rolling back", 0.0);
    let State::RollingBack { why, severe: false } = told.rollout.state() else {
        panic!("{told}");
    };
    let limit = "excess exceeds its limit, at most 1 percentage points more than the old version from itself";
    assert!(why.contains(limit), "{why}");
}

/// Both say it sooner, the second alone says nothing.
#[test]
fn a_shadow_that_is_asked_twice_may_be_found_by_that() {
    let mut window = noisy(13, 13);
    let control = window.shadow.as_mut().unwrap().control.as_mut().unwrap();
    control.repeat = Some(Pairs {
        both: 10,
        production_only: 5,
        shadow_only: 15,
        neither: 70,
    });
    let mut told = Told::new(with_shadow);
    told.see_for(60, &window);
    let State::RollingBack { why, .. } = told.rollout.state() else {
        panic!("{told}");
    };
    assert!(why.contains("repeat exceeds its limit"), "{why}");
}

#[test]
fn a_control_that_is_gone_holds_by_its_name() {
    let mut told = Told::new(with_shadow);
    told.see_for(10, &noisy(13, 13));
    let mut gone = noisy(0, 0);
    gone.shadow.as_mut().unwrap().control = Some(Control {
        missing: [("connect".to_owned(), 100)].into(),
        ..Control::default()
    });
    gone.held.push(Held {
        kind: Kind::Control,
        why: "the control gives no answers".into(),
    });
    told.see_for(300, &gone);
    told.assert("shadowing", 0.0);
    assert!(told.waits().contains(&Kind::Control), "{told}");
    let (verdict, _, words) = gate(&told, "excess");
    assert_eq!(verdict, Verdict::Unknown);
    let missing = "no second answer to 30000 requests: connect 30000";
    assert!(words.contains(missing), "{words}");
    told.reach("stage 1", &noisy(13, 13));
}

/// Whatever the control says, it is another model.
#[test]
fn in_nothing_but_noise_nothing_is_proven() {
    let mut told = Told::new(with_shadow);
    let mut window = noisy(0, 0);
    let control = window.shadow.as_mut().unwrap().control.as_mut().unwrap();
    control.pairs = Pairs {
        both: 100,
        ..Pairs::default()
    };
    told.see_for(600, &window);
    told.assert("shadowing", 0.0);
    let (verdict, _, words) = gate(&told, "excess");
    assert_eq!(verdict, Verdict::Unknown);
    assert!(
        words.contains("is the control a copy of the old version?"),
        "{words}"
    );
}

#[test]
fn where_traffic_shows_the_noise_agreement_decides_nothing() {
    let mut window = compared(100, 71);
    let shadow = window.shadow.as_mut().unwrap();
    let slice = Slice {
        compared: 50,
        matching: 35,
        ..Slice::default()
    };
    shadow.slices.insert("blue".to_owned(), slice);
    shadow.traffic = Counts {
        events: 9,
        trials: 30,
    };
    let mut told = Told::new(with_shadow);
    told.see_for(5, &window);
    told.assert("shadowing", 0.0);
    for name in ["agreement", "slice:blue"] {
        let (verdict, role, words) = gate(&told, name);
        assert_eq!((verdict, role), (Verdict::Unknown, Role::Info));
        assert!(
            words.contains("production itself answered 45 of 150"),
            "{words}"
        );
        assert!(words.contains("control = \"host:port\""), "{words}");
    }
    told.reach("stage 1", &window);

    // A service that repeats itself is judged as ever.
    window.shadow.as_mut().unwrap().traffic.events = 0;
    let mut told = Told::new(with_shadow);
    told.see_for(60, &window);
    told.assert("rolling back", 0.0);
}

/// Plans of records from before there were controls.
#[test]
fn an_older_plan_is_judged_as_it_was() {
    let old = |plan: &mut Plan| {
        with_shadow(plan);
        plan.shadow.as_mut().unwrap().max_excess = None;
    };
    let mut told = Told::new(old);
    told.see_for(60, &noisy(13, 13));
    told.assert("rolling back", 0.0);
    let gates = told.rollout.gates();
    assert!(gates.iter().all(|gate| gate.name != "excess"));
}
