//! A daemon that is killed goes on where it was: never further, and what was taken back stays so.

use std::fs;
use std::path::PathBuf;

use anyhow::ensure;
use aya::maps::{Array, Map, MapData};
use mirror_common::ABI_VERSION;
use mirror_common::steer::{SHARE_PARTS, Steering, share_threshold};
use mirror_rollout::machine::Rollout;
use mirror_rollout::record::Line;
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{Mood, Traffic, eventually, eventually_within};

use super::called::{Called, hook_at};
use super::{LONG, Pilot, by_hand, set};

/// When a daemon is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// As soon as the record has another line: the programs may not know yet.
    Written,
    /// As soon as the programs go by another share.
    Done,
    /// When clients have sent so many more requests: any.
    After(usize),
}

const MOMENTS: [Moment; 6] = [
    Moment::After(0),
    Moment::Written,
    Moment::Done,
    Moment::After(30),
    Moment::Written,
    Moment::Done,
];

impl Pilot {
    /// The service's last record.
    pub(super) fn record(&self) -> Option<PathBuf> {
        let folder = self.trial.scene.home.path().join("state/rollouts/digits");
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.map(|file| file.path()).max()
    }

    /// The share that the record allows.
    fn recorded_share(&self) -> f64 {
        let text = self.record().map(fs::read_to_string);
        let text = text.transpose().unwrap().unwrap_or_default();
        // The last line may be half written.
        let whole = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
        let lines: Vec<Line> = whole
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        Rollout::replay(&lines).map_or(0.0, |rollout| rollout.share().into())
    }

    /// The share that the programs go by, whether there is a daemon or not.
    pub(super) fn kernel_share(&self) -> f64 {
        let maps = self
            .trial
            .scene
            .home
            .pins()
            .join(format!("v{ABI_VERSION}/maps"));
        let map = MapData::from_pin(maps.join("STEERING")).unwrap();
        let steering: Array<_, Steering> = Array::try_from(Map::Array(map)).unwrap();
        let thresholds = steering.iter().map(|row| row.unwrap().threshold);
        let most = thresholds.max().unwrap_or_default() as f64;
        let parts = f64::from(SHARE_PARTS);
        (most / share_threshold(SHARE_PARTS) as f64 * parts).round() / parts
    }

    /// Kills the daemon. What it has left in the kernel is never more than what is on the disk.
    #[track_caller]
    pub(super) fn kill(&mut self) {
        self.trial.scene.end_daemon(Signal::SIGKILL);
        let (kernel, recorded) = (self.kernel_share(), self.recorded_share());
        assert!(
            kernel <= recorded,
            "{kernel} of the kernel's, {recorded} of the record's"
        );
    }

    /// Waits until a moment has come.
    #[track_caller]
    fn wait_for_moment(&self, moment: Moment, traffic: &Traffic) {
        let lines = || {
            let text = self.record().map(fs::read_to_string);
            let text = text.transpose().unwrap().unwrap_or_default();
            text.lines().count()
        };
        let (line, share, sent) = (lines(), self.kernel_share(), traffic.got().len());
        eventually_within(LONG, &format!("{moment:?}"), || {
            let has_come = match moment {
                Moment::Written => lines() > line,
                Moment::Done => self.kernel_share() != share,
                Moment::After(more) => traffic.got().len() >= sent + more,
            };
            ensure!(has_come, "{line} lines, a share of {share}");
            Ok(())
        });
    }

    /// Kills the daemon, starts the next, and says where the rollout is then.
    #[track_caller]
    fn kill_and_start(&mut self) -> Value {
        self.kill();
        self.trial.scene.start_daemon(&[]);
        self.state().unwrap()
    }

    /// Kills the daemon at a step that the rollout does not leave by itself: the next one is there.
    #[track_caller]
    fn stays(&mut self, step: &str) {
        let before = self.wait_for(step);
        let after = self.kill_and_start();
        for key in ["id", "step", "stage", "share"] {
            assert_eq!(before[key], after[key], "{before:#}\n{after:#}");
        }
        let share = after["share"].as_f64().unwrap();
        eventually("the programs go by that share", || {
            let kernel = self.kernel_share();
            ensure!(kernel == share, "{kernel}");
            Ok(())
        });
    }
}

#[test]
fn a_killed_daemon_goes_on_where_it_was() {
    let Some(mut pilot) = Pilot::new(|plan| set(plan, "min_duration", "5s")) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    for step in ["stage", "baking", "promoted"] {
        let before = pilot.wait_for(step);
        let after = pilot.kill_and_start();
        for key in ["id", "step", "stage"] {
            assert_eq!(before[key], after[key], "{before:#}\n{after:#}");
        }
    }
    pilot
        .trial
        .scene
        .wait_for("modelmirror_canary_share", &[("service", "digits")], 1.0);
    let got = traffic.stop();
    let failed: Vec<_> = got.iter().filter(|got| got.answer.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Everywhere that somebody is waited for.
#[test]
fn it_waits_on_for_whom_it_waited() {
    let Some(mut pilot) = Pilot::with_shadow(|plan| {
        hook_at(plan, "before", "127.0.0.1:9000/echo");
        hook_at(plan, "stage", "127.0.0.1:9001/echo");
    }) else {
        return;
    };
    pilot.order(&["start"]);
    pilot.stays("before");
    let _before = Called::at(&pilot, "127.0.0.1:9000");
    pilot.stays("shadow");
    let _traffic = pilot.traffic();
    pilot.stays("shadow_passed");
    let stage = Called::at(&pilot, "127.0.0.1:9001");
    pilot.wait_for("stage");
    drop(stage);
    pilot.stays("stage_passed");
    pilot.order(&["pause", "--reason", "a test"]);
    pilot.stays("paused");
    pilot.order(&["resume"]);
    pilot.stays("stage_passed");
    pilot.order(&["abort", "--reason", "a test"]);
    pilot.stays("aborted");
}

#[test]
fn what_is_held_is_held_and_what_was_taken_back_stays_so() {
    let Some(mut pilot) = Pilot::new(|plan| set(plan, "max_duration", "3s")) else {
        return;
    };
    pilot.order(&["start"]);
    pilot.stays("held");
    let _traffic = pilot.traffic();
    pilot.trial.stop_canary();
    pilot.stays("rolled_back");
}

/// What a command has said may be forgotten, and then it is further back; an abort never is.
#[test]
fn a_daemon_that_dies_after_a_command() {
    let Some(mut pilot) = Pilot::new(by_hand) else {
        return;
    };
    let _traffic = pilot.traffic();
    pilot.order(&["start"]);
    if pilot.kill_and_start().is_null() {
        pilot.order(&["start"]);
    }
    pilot.wait_for_stage(0);
    for stage in [1, 2] {
        pilot.order(&["promote"]);
        let state = pilot.kill_and_start();
        let found = state["stage"].as_u64();
        assert!(
            found == Some(stage) || found == Some(stage - 1),
            "{state:#}"
        );
        if found != Some(stage) {
            pilot.order(&["promote"]);
        }
    }
    pilot.order(&["abort"]);
    assert_eq!(pilot.kernel_share(), 0.0);
    pilot.kill();
    assert_eq!(pilot.kernel_share(), 0.0);
    pilot.trial.scene.start_daemon(&[]);
    let state = pilot.state().unwrap();
    let step = state["step"].as_str().unwrap();
    assert!(["aborted", "rolled_back"].contains(&step), "{state:#}");
    assert_eq!(pilot.kernel_share(), 0.0);
}

/// Stages of a tick each: whenever it dies, the kernel has no more than the record.
///
/// Each stage waits until so many requests have come to either version, which on a busy machine takes as long as
/// clients take for them: no share is so small that a stage needs more than a few hundred in all.
#[test]
fn a_daemon_that_dies_between_stages() {
    let Some(mut pilot) = Pilot::new(|plan| {
        let stages = (15..=25).map(|stage| f64::from(stage) / 40.0).chain([1.0]);
        plan.insert("stages".into(), stages.collect::<Vec<_>>().into());
        set(plan, "min_duration", "0s");
        // Enough for the proof that is asked for when stable is gone.
        set(plan, "min_requests", 60);
        set(plan, "proven_from", 1.0);
    }) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    for moment in MOMENTS {
        pilot.wait_for_moment(moment, &traffic);
        if pilot.kill_and_start().is_null() {
            pilot.order(&["start"]);
        }
    }
    pilot.wait_for("promoted");
    let got = traffic.stop();
    let failed: Vec<_> = got.iter().filter(|got| got.answer.is_err()).collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// Whenever it dies while the canary is taken back: that goes on, and nothing comes back.
#[test]
fn a_daemon_that_dies_while_it_takes_back() {
    let Some(mut pilot) = Pilot::new(by_hand) else {
        return;
    };
    let traffic = pilot.traffic();
    for moment in &MOMENTS[..4] {
        pilot.trial.canary[0].set_mood(Mood::Answer);
        pilot.order(&["start", "--again"]);
        pilot.wait_for_stage(0);
        pilot.trial.canary[0].set_mood(Mood::Fails(1));
        pilot.wait_for_moment(*moment, &traffic);
        let was_taken_back = pilot.state().unwrap()["step"] == "rolled_back";
        pilot.kill();
        if was_taken_back {
            assert_eq!(pilot.kernel_share(), 0.0);
        }
        pilot.trial.scene.start_daemon(&[]);
        if was_taken_back {
            let state = pilot.state().unwrap();
            assert_eq!(state["step"], "rolled_back", "{state:#}");
        }
        pilot.wait_for("rolled_back");
        assert_eq!(pilot.kernel_share(), 0.0);
    }
}

/// The agent is asked in the shadow stage; later its absence hurts nobody.
#[test]
fn an_agent_that_dies_later_is_not_waited_for() {
    let Some(mut pilot) = Pilot::with_shadow(|_| {}) else {
        return;
    };
    let _traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for("stage");
    pilot.trial.scene.agent = None;
    pilot.wait_for("promoted");
}
