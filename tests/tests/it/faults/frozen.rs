//! A disk that does not answer: what lowers a risk holds at once, and is on the disk when it answers again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mirror_common::ABI_VERSION;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tests::{Trial, eventually, large};

use crate::traffic::small;

/// Less than a command waits for anything else than a disk.
const QUICK: Duration = Duration::from_secs(6);

/// A file system of its own in a folder, which can be frozen; gone when dropped, which must come before whoever
/// waits for it is.
pub(crate) struct Disk {
    folder: PathBuf,
    frozen: bool,
}

impl Disk {
    pub(crate) fn mount(folder: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let image = folder.with_extension("image");
        std::fs::File::create(&image)?.set_len(16 << 20)?;
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_ref()])?;
        let arguments = [
            "-o".as_ref(),
            "loop".as_ref(),
            image.as_ref(),
            folder.as_ref(),
        ];
        run("mount", &arguments)?;
        let frozen = false;
        Ok(Self { folder, frozen })
    }

    pub(crate) fn freeze(&mut self) {
        run("fsfreeze", &["-f".as_ref(), self.folder.as_ref()]).unwrap();
        self.frozen = true;
    }

    pub(crate) fn thaw(&mut self) {
        self.frozen = false;
        run("fsfreeze", &["-u".as_ref(), self.folder.as_ref()]).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Whoever waits for it could not be ended otherwise.
        if self.frozen {
            let _ = run("fsfreeze", &["-u".as_ref(), self.folder.as_ref()]);
        }
        let _ = umount2(&self.folder, MntFlags::MNT_DETACH);
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("{program} cannot be run"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {said}");
    Ok(())
}

/// A canary with half of the connections, and the disk that has the daemon's state.
fn half() -> Option<(Trial, Disk)> {
    let mut trial = Trial::quiet(|_| {})?;
    let disk = Disk::mount(trial.scene.home.path().join("state")).unwrap();
    trial.start_daemon();
    trial.set("0.5");
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    trial.split(&sent).assert_share(0.5);
    Some((trial, disk))
}

/// What a command that cannot be written says.
#[track_caller]
fn order(trial: &Trial, arguments: &[&str]) -> String {
    let begun = Instant::now();
    let said = trial
        .scene
        .modelmirror(&[arguments, &["--output", "json"]].concat());
    let took = begun.elapsed();
    assert!(took < QUICK, "{took:?}");
    said
}

#[track_caller]
fn all_on_stable(trial: &Trial) {
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    assert_eq!(trial.split(&sent).connections, [40, 0]);
}

/// Ends the daemon while what it waits for is lost, and starts another.
fn crash(trial: &mut Trial, disk: &mut Disk) {
    let daemon = &trial.scene.daemon().process;
    daemon.signal(Signal::SIGKILL).unwrap();
    disk.thaw();
    trial.scene.end_daemon(Signal::SIGKILL);
    trial.scene.start_daemon(&[]);
}

const OFF: [&str; 4] = ["canary", "off", "--service", "digits"];

#[test]
fn a_canary_is_switched_off() {
    let Some((trial, mut disk)) = half() else {
        return;
    };
    disk.freeze();
    let said = order(&trial, &OFF);
    assert!(said.contains("not on the disk yet"), "{said}");
    all_on_stable(&trial);
    let status = trial.scene.modelmirror(&["status"]);
    assert!(status.contains("is not on the disk"), "{status}");
    // More waits for the disk.
    let more = ["canary", "set", "0.3", "--service", "digits"];
    let refused = trial.scene.home.modelmirror(&trial.scene.net.node, &more);
    let refused = format!("{:#}", refused.unwrap_err());
    assert!(refused.contains("not yet"), "{refused}");
    order(&trial, &OFF);
    all_on_stable(&trial);
    disk.thaw();
    eventually("everything is on the disk", || {
        let status = trial.scene.modelmirror(&["status"]);
        ensure!(!status.contains("is not on the disk"), "{status}");
        Ok(())
    });
    let state = trial.scene.home.path().join("state/overrides.json");
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(state).unwrap()).unwrap();
    assert_eq!(kept["services"]["digits"]["canary_share"], 0.0, "{kept:#}");
    trial.set("0.5");
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    trial.split(&sent).assert_share(0.5);
}

/// What the kernel has wins, where it is less.
#[test]
fn a_daemon_that_dies_meanwhile_forgets_no_reduction() {
    let Some((mut trial, mut disk)) = half() else {
        return;
    };
    disk.freeze();
    order(&trial, &OFF);
    crash(&mut trial, &mut disk);
    all_on_stable(&trial);
    trial.set("0.5");
    let sent = trial.scene.client.load(40, 1, large).unwrap();
    trial.split(&sent).assert_share(0.5);

    disk.freeze();
    let said = order(&trial, &["off"]);
    assert!(said.contains("detached from eth0"), "{said}");
    assert!(said.contains("not on the disk yet"), "{said}");
    all_on_stable(&trial);
    crash(&mut trial, &mut disk);
    let status = trial.scene.modelmirror(&["status"]);
    assert!(status.contains("off"), "{status}");
    trial
        .scene
        .wait_for("modelmirror_interface_attached", &[], 0.0);
    all_on_stable(&trial);
}

#[test]
fn everything_is_switched_off_without_a_daemon() {
    let Some((mut trial, mut disk)) = half() else {
        return;
    };
    trial.scene.end_daemon(Signal::SIGKILL);
    disk.freeze();
    let config = trial.scene.home.path().join("node.toml");
    let said = order(&trial, &["off", "--config", &config.to_string_lossy()]);
    assert!(said.contains("it is not kept in"), "{said}");
    let links = trial
        .scene
        .home
        .pins()
        .join(format!("v{ABI_VERSION}/links"));
    assert!(!links.exists(), "{} is left", links.display());
    all_on_stable(&trial);
    disk.thaw();
    let state = trial.scene.home.path().join("state/overrides.json");
    eventually("it is on the disk", || {
        let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&state)?)?;
        ensure!(kept["off"] == true, "{kept:#}");
        Ok(())
    });
}

#[test]
fn a_mirror_is_switched_off() {
    let Some(mut scene) = tests::Scene::new() else {
        return;
    };
    let mut disk = Disk::mount(scene.home.path().join("state")).unwrap();
    scene.start();
    scene.complete(&scene.load(4, 5, small), &[]);
    disk.freeze();
    let begun = Instant::now();
    let off = ["mirror", "off", "--service", "digits", "--output", "json"];
    let said = scene.modelmirror(&off);
    assert!(begun.elapsed() < QUICK, "{:?}", begun.elapsed());
    assert!(said.contains("not on the disk yet"), "{said}");
    let before = scene.packets("mirrored");
    scene.load(4, 5, small);
    assert_eq!(scene.packets("mirrored"), before);
    scene.daemon().process.signal(Signal::SIGKILL).unwrap();
    disk.thaw();
    scene.end_daemon(Signal::SIGKILL);
    scene.start_daemon(&[]);
    scene.wait_for("modelmirror_mirror_enabled", &[], 0.0);
    let before = scene.packets("mirrored");
    scene.load(4, 5, small);
    assert_eq!(scene.packets("mirrored"), before);
}
