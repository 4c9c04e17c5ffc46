//! A full disk.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tests::{Site, on, privileged};

use super::small;

/// A file system of its own in a folder, gone when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path, bytes: usize) -> Result<Self> {
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
    if !privileged() {
        return;
    }
    on(Site::quiet(), |site| {
        let _disk = SmallDisk::mount(&site.home.record_dir(), 160 << 10)?;
        site.start_agent(&site.home.shadow_config())?;
        site.start_daemon(&site.node_config())?;
        site.wait_for_agent();
        let sent = site.client.load(8, 50, small)?;
        let stopped = site.wait_for_shadow("recording has stopped", |metrics| {
            metrics.sum("modelmirror_shadow_recording_stopped", &[]) == 1.0
        });
        let outcome = site.settle();
        ensure!(outcome.requests("compared") == 400, "{}", outcome.metrics);
        ensure!(outcome.verdicts("match") == 400, "{}", outcome.metrics);
        ensure!(
            site.shadowed().len() == 400,
            "{} were replayed",
            site.shadowed().len()
        );
        let failed = [("outcome", "failed")];
        ensure!(
            stopped.sum("modelmirror_shadow_records_total", &failed) > 0.0,
            "{stopped}"
        );
        let said = site.agent.as_ref().context("no agent")?.process.output();
        ensure!(said.contains("No space left on device"), "{said}");
        // What is there can be read.
        ensure!(!site.records()?.is_empty(), "nothing was recorded");
        site.serves(&sent)
    });
}
