//! Mirroring and steering together.

use anyhow::ensure;
use tests::{Trial, eventually, large};

/// What is copied is told apart by who answered.
#[test]
fn versions_are_mirrored_as_configured() {
    for arms in [&["stable"][..], &["canary"], &["stable", "canary"]] {
        let Some(mut trial) = Trial::quiet(|canary| {
            canary.insert("share".into(), 0.5.into());
        }) else {
            return;
        };
        trial.scene.set_mirror("arms", arms.to_vec());
        trial.scene.start();
        let sent = trial.scene.client.load(40, 3, large).unwrap();
        let split = trial.split(&sent);
        split.assert_share(0.5);
        let outcome = trial.scene.settle();
        let expected = |arm, index: usize| split.requests[index] * u64::from(arms.contains(&arm));
        let expected = [expected("stable", 0), expected("canary", 1)];
        let mirrored = expected.iter().sum::<u64>();
        assert_eq!(
            outcome.requests("compared"),
            mirrored,
            "{arms:?}: {split:?}\n{}",
            trial.scene.describe()
        );
        let canary = trial.canary_asked();
        let by_arm = |arm: &str| {
            let records = trial.scene.agent().records().unwrap();
            records.iter().filter(|record| record["arm"] == arm).count() as u64
        };
        eventually("all records are written", || {
            let written = by_arm("stable") + by_arm("canary");
            ensure!(written == mirrored, "{written} of {mirrored}");
            Ok(())
        });
        let recorded = ["stable", "canary"].map(by_arm);
        assert_eq!(recorded, expected, "{arms:?}");
        for record in trial.scene.agent().records().unwrap() {
            let id = record["request_id"].as_str().unwrap();
            let arm = if canary.contains(id) {
                "canary"
            } else {
                "stable"
            };
            assert_eq!(record["arm"], arm, "{record}");
            let version = if arm == "canary" { "v13" } else { "v12" };
            assert_eq!(record["production"]["version"], version, "{record}");
        }
    }
}
