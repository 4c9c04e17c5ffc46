//! Whatever happens.

use proptest::prelude::*;

use super::*;
use crate::statistics::Counts;
use crate::window::Control;

fn window() -> impl Strategy<Value = Window> {
    let cluster = (0..70u8, proptest::array::uniform(0..5u64));
    let clusters = proptest::collection::vec(cluster, 0..4);
    let counts = (0..200u64, 0..=100u64, 100..200u16, 0..20u64);
    let arms = (counts, clusters.clone(), clusters).prop_map(|(counts, clients, by_connection)| {
        let (responses, errors, bucket, resets) = counts;
        Arm {
            errors: responses * errors / 100,
            resets,
            clients: clients.into_iter().collect(),
            by_connection: by_connection.into_iter().collect(),
            ..arm(responses, 0, bucket)
        }
    });
    let shadow = proptest::option::of(shadow());
    let trouble = proptest::option::of(0..3u8);
    (arms.clone(), arms, trouble, shadow, any::<bool>()).prop_map(
        |(stable, canary, trouble, shadow, by_client)| Window {
            stable,
            canary,
            shadow,
            by_client,
            unreachable: (trouble == Some(0)).then(|| "gone".into()),
            ..Window::default()
        },
    )
}

/// Comparisons, some of which a control answered too, or the shadow twice.
fn shadow() -> impl Strategy<Value = Shadow> {
    let pairs = proptest::array::uniform4(0..40u64).prop_map(|counts| Pairs {
        both: counts[0],
        production_only: counts[1],
        shadow_only: counts[2],
        neither: counts[3],
    });
    let missing = proptest::collection::btree_map("connect|timeout", 1..9u64, 0..2);
    let control = (
        pairs.clone(),
        missing.clone(),
        proptest::option::of(pairs.clone()),
        missing,
    )
        .prop_map(|(pairs, missing, repeat, repeat_missing)| Control {
            pairs,
            missing,
            repeat,
            repeat_missing,
        });
    let counts = [0..200u64, 0..101u64, 0..9u64, 0..9u64];
    let control = proptest::option::of(control);
    (counts, control, pairs.clone(), pairs).prop_map(|(counts, control, failures, of_slice)| {
        let [compared, matching, saturated, repeated] = counts;
        let matching = compared * matching / 100;
        let slice = Slice {
            compared,
            matching,
            control: of_slice,
        };
        Shadow {
            compared,
            matching,
            saturated,
            control,
            failures,
            traffic: Counts {
                events: repeated / 2,
                trials: repeated,
            },
            latencies: vec![(FAST, SLOW, compared)],
            slices: [("blue".to_owned(), slice)].into(),
            ..Shadow::default()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The record alone brings a rollout to where it is, and through the same decisions.
    #[test]
    fn a_record_replays_to_the_same_decisions(
        windows in proptest::collection::vec(window(), 1..60),
        orders in proptest::collection::vec((0..60usize, 0..4usize), 0..4),
        is_shadowed in any::<bool>(),
    ) {
        let mut told = Told::new(|plan| {
            quick(plan);
            if is_shadowed {
                with_shadow(plan);
            }
        });
        for (at, window) in windows.into_iter().enumerate() {
            for (_, order) in orders.iter().filter(|(when, _)| *when == at) {
                let want = [Want::Pause, Want::Resume, Want::Promote, Want::Abort][*order];
                let _ = told.order(want);
            }
            told.see(window);
        }
        // As it is read from the disk.
        let text: Vec<String> = told.lines.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
        let lines: Vec<Line> = text.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
        prop_assert_eq!(&lines, &told.lines);
        let again = Rollout::replay(&lines).unwrap();
        prop_assert_eq!(again.state(), told.rollout.state());
        prop_assert_eq!(&again.evidence, &told.rollout.evidence);
        prop_assert_eq!(&again.clients, &told.rollout.clients);
        prop_assert_eq!(again.gates(), told.rollout.gates());
        prop_assert_eq!(again.waits(), told.rollout.waits());
        let mut replayed: Option<Rollout> = None;
        let mut decisions = Vec::new();
        for line in &lines {
            match (&line.entry, &mut replayed) {
                (Entry::Event(Event::Started(started)), None) => {
                    replayed = Some(Rollout::start((**started).clone(), line.time));
                }
                (Entry::Event(event), Some(rollout)) => decisions.extend(rollout.tell(event, line.time)),
                _ => {}
            }
        }
        let written = told.lines.iter().filter_map(|line| match &line.entry {
            Entry::Decision(decision) => Some(decision.clone()),
            Entry::Event(_) => None,
        });
        prop_assert_eq!(decisions, written.collect::<Vec<_>>());
    }

    /// However windows come, a stage is only left forward when it has what the plan asks for.
    #[test]
    fn nothing_goes_forward_without_evidence(windows in proptest::collection::vec(window(), 1..120)) {
        let mut told = Told::new(|_| {});
        let mut seen = [0, 0];
        let mut seconds = 0;
        for window in windows {
            let before = told.rollout.share();
            let stage = told.rollout.step();
            seen[0] += window.stable.responses;
            seen[1] += window.canary.responses;
            seconds += 1;
            told.see(window);
            if told.rollout.share() > before {
                prop_assert!(seen.iter().all(|count| *count >= 50), "{:?} at {:?}", seen, stage);
                prop_assert!(seconds >= 5, "after {} s", seconds);
            }
            if told.rollout.step() != stage {
                (seen, seconds) = ([0, 0], 0);
            }
        }
    }
}
