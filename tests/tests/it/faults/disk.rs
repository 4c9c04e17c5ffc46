//! A full disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::{Scene, eventually};

use crate::traffic::small;

/// A file system of its own in a folder, gone when dropped.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    pub(crate) fn mount(folder: &Path, bytes: usize) -> Result<Self> {
        std::fs::create_dir(folder)?;
        let options = format!("size={bytes},mode=0700");
        let (kind, flags) = (Some("tmpfs"), MsFlags::empty());
        mount(kind, folder, kind, flags, Some(&*options)).context("cannot mount a tmpfs")?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // It is still in use where a test has failed.
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// Recording stops and says so; everything else goes on.
#[test]
fn it_is_full() {
    let Some(mut scene) = Scene::new() else {
        return;
    };
    let _disk = SmallDisk::mount(&scene.home.record_dir(), 160 << 10).unwrap();
    scene.start();
    let sent = scene.load(8, 50, small);
    eventually("recording has stopped", || {
        let metrics = scene.agent().metrics()?;
        let stopped = metrics.sum("modelmirror_shadow_recording_stopped", &[]);
        let failed = [("outcome", "failed")];
        let failed = metrics.sum("modelmirror_shadow_records_total", &failed);
        ensure!(stopped == 1.0 && failed > 0.0, "{metrics}");
        Ok(())
    });
    scene.complete(&sent, &[]);
    let outcome = scene.settle();
    assert_eq!(outcome.verdicts("match"), 400, "{}", outcome.metrics);
    let said = scene.agent().process.output();
    assert!(said.contains("No space left on device"), "{said}");
    // What is there can be read.
    let records = scene.agent().records().unwrap();
    assert!(!records.is_empty(), "nothing was recorded");
    scene.serves(&sent);
}
