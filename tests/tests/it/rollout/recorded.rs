//! Records that are damaged, or cannot be written.

use std::fs::{self, OpenOptions};
use std::io::Write as _;

use anyhow::ensure;
use nix::sys::signal::Signal;
use tests::{Mood, eventually};

use super::{Pilot, by_hand, judge_latency, set};
use crate::faults::disk::SmallDisk;
use crate::faults::frozen::Disk;

impl Pilot {
    /// What the daemon wants a person to know.
    #[track_caller]
    fn warnings(&self) -> String {
        self.trial.scene.modelmirror(&["status"])
    }

    /// Waits until the canary answers clients again.
    #[track_caller]
    fn wait_for_answers_of(&self, version: &str, traffic: &tests::Traffic) {
        let before = traffic.got().len();
        eventually(&format!("{version} answers"), || {
            let got = traffic.got();
            ensure!(got[before..].iter().any(|got| got.is_of(version)));
            Ok(())
        });
    }
}

/// Steering stays as it is, and a person is told which file it is about.
#[test]
fn one_that_cannot_be_read_changes_nothing() {
    let Some(mut pilot) = Pilot::new(by_hand) else {
        return;
    };
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for_stage(0);
    eventually("the disk has what the share waits for", || {
        ensure!(pilot.kernel_share() == 0.2);
        Ok(())
    });
    pilot.trial.scene.end_daemon(Signal::SIGKILL);
    let record = pilot.record().unwrap();
    let text = fs::read_to_string(&record).unwrap();
    let middle = text.find('\n').unwrap() + 10;
    fs::write(
        &record,
        [&text[..middle], "\u{0}???", &text[middle..]].concat(),
    )
    .unwrap();
    pilot.trial.scene.start_daemon(&[]);
    let warnings = pilot.warnings();
    let name = record.file_name().unwrap().to_str().unwrap();
    for words in [name, "line 2", "its steering stays as it is"] {
        assert!(warnings.contains(words), "{words} is not in\n{warnings}");
    }
    assert_eq!(pilot.kernel_share(), 0.2);
    pilot.wait_for_answers_of("v13", &traffic);
    let said = pilot.rollout(&["start"]);
    assert_eq!(said.code, Some(1), "{said}");
    assert!(said.text.contains(name), "{said}");

    // As the words say.
    pilot.trial.scene.end_daemon(Signal::SIGTERM);
    fs::rename(&record, record.with_extension("aside")).unwrap();
    pilot.trial.scene.start_daemon(&[]);
    eventually("nothing is steered", || {
        ensure!(pilot.kernel_share() == 0.0);
        Ok(())
    });
}

/// Somebody pulled the plug in the middle of a line, and of a letter.
#[test]
fn a_line_that_is_not_whole_is_cut_off() {
    let Some(mut pilot) = Pilot::new(|plan| set(plan, "min_duration", "5s")) else {
        return;
    };
    let _traffic = pilot.traffic();
    pilot.order(&["start", "--reason", "gr\u{fc}n"]);
    let before = pilot.wait_for("stage");
    pilot.trial.scene.end_daemon(Signal::SIGKILL);
    let record = pilot.record().unwrap();
    let mut file = OpenOptions::new().append(true).open(&record).unwrap();
    file.write_all(
        b"{\"time\":\"2026-01-01T00:00:00Z\",\"event\":{\"ordered\":{\"reason\":\"gr\xc3",
    )
    .unwrap();
    pilot.trial.scene.start_daemon(&[]);
    let after = pilot.state().unwrap();
    assert_eq!(
        (&before["id"], &before["step"]),
        (&after["id"], &after["step"]),
        "{before:#}\n{after:#}"
    );
    pilot.wait_for("promoted");
    let explained = pilot.order(&["explain"]);
    assert!(explained.contains("gr\u{fc}n"), "{explained}");
}

/// A rollout whose disk is full at its first stage; dropped in this order.
struct Stuck {
    pilot: Pilot,
    _traffic: tests::Traffic,
    filler: std::path::PathBuf,
    _disk: SmallDisk,
}

fn stuck(change: fn(&mut toml::Table)) -> Option<Stuck> {
    let trial = tests::Trial::quiet(|_| {})?;
    let state = trial.scene.home.path().join("state");
    let disk = SmallDisk::mount(&state, 256 << 10).unwrap();
    let pilot = Pilot::of(trial, |plan| {
        set(plan, "min_duration", "3s");
        change(plan);
    });
    let traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for_stage(0);
    let filler = state.join("filler");
    let full = fs::write(&filler, vec![0; 1 << 20]);
    assert!(full.is_err(), "there is room");
    eventually("the daemon says so", || {
        let warnings = pilot.warnings();
        ensure!(warnings.contains("cannot be written"), "{warnings}");
        ensure!(warnings.contains("No space left on device"), "{warnings}");
        Ok(())
    });
    Some(Stuck {
        pilot,
        _traffic: traffic,
        filler,
        _disk: disk,
    })
}

impl Stuck {
    /// The stage's time is over, and more.
    #[track_caller]
    fn assert_still(&self) {
        eventually("the stage would be over", || {
            let state = self.pilot.state()?;
            let time = |key: &str| state[key].as_str().unwrap().parse::<jiff::Timestamp>();
            let lasts = time("time")?.duration_since(time("since")?);
            assert_eq!(state["stage"], 0, "{state:#}");
            ensure!(lasts.as_secs() >= 6, "{state:#}");
            Ok(())
        });
        assert_eq!(self.pilot.kernel_share(), 0.2);
    }
}

#[test]
fn a_full_disk_holds_and_goes_on_when_there_is_room() {
    let Some(stuck) = stuck(|_| {}) else { return };
    stuck.assert_still();
    fs::remove_file(&stuck.filler).unwrap();
    stuck.pilot.wait_for("promoted");
    let warnings = stuck.pilot.warnings();
    assert!(!warnings.contains("cannot be written"), "{warnings}");
}

/// Whether it fails at once or is proven to be slow; and the next daemon knows, with the disk full
/// as it is, also when another rollout was begun meanwhile.
#[track_caller]
fn check_taken_back(mood: Mood, again: bool) {
    let Some(mut stuck) = stuck(judge_latency) else {
        return;
    };
    stuck.pilot.trial.canary[0].set_mood(mood);
    stuck.pilot.wait_for("rolled_back");
    assert_eq!(stuck.pilot.kernel_share(), 0.0);
    if again {
        stuck.pilot.order(&["start", "--again"]);
        assert_eq!(stuck.pilot.kernel_share(), 0.0);
    }
    stuck.pilot.kill();
    stuck.pilot.trial.scene.start_daemon(&[]);
    let state = stuck.pilot.state().unwrap();
    assert_eq!(state["step"], "rolled_back", "{state:#}");
    assert_eq!(stuck.pilot.kernel_share(), 0.0);
}

#[test]
fn what_fails_is_taken_back_from_a_full_disk() {
    check_taken_back(Mood::Fails(1), false);
    check_taken_back(Mood::Fails(1), true);
}

/// The order is carried out while the disk does not answer, and the next daemon knows.
#[test]
fn an_abort_does_not_wait_for_the_disk() {
    let Some(trial) = tests::Trial::quiet(|_| {}) else {
        return;
    };
    let disk = Disk::mount(trial.scene.home.path().join("state")).unwrap();
    let (mut pilot, mut disk) = (Pilot::of(trial, by_hand), disk);
    let _traffic = pilot.traffic();
    pilot.order(&["start"]);
    pilot.wait_for_stage(0);
    disk.freeze();
    let said = pilot.order(&["abort"]);
    assert!(said.contains("record is not on the disk yet"), "{said}");
    assert_eq!(pilot.kernel_share(), 0.0);
    let daemon = &pilot.trial.scene.daemon().process;
    daemon.signal(Signal::SIGKILL).unwrap();
    disk.thaw();
    pilot.kill();
    pilot.trial.scene.start_daemon(&[]);
    // The record may have got it at the last moment.
    let state = pilot.state().unwrap();
    let ended = state["step"] == "rolled_back" || state["step"] == "aborted";
    assert!(ended, "{state:#}");
    assert_eq!(pilot.kernel_share(), 0.0);
}

#[test]
fn what_is_slow_is_taken_back_from_a_full_disk() {
    check_taken_back(Mood::Late(std::time::Duration::from_millis(150)), false);
}
