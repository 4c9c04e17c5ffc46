//! Folders that only their owner can read.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use nix::unistd::{AccessFlags, access};

const MODE: u32 = 0o700;
const STICKY: u32 = 0o1000;

/// Where `path` leads, if it is a link of ours or of root's: systemd's LogsDirectory is one where users are dynamic.
/// Another's may lead elsewhere in a moment, and stays what it is, which [`private`] refuses.
pub(super) fn behind_link(path: &Path) -> PathBuf {
    let own = nix::unistd::geteuid().as_raw();
    let is_trusted = |link: fs::Metadata| link.is_symlink() && [0, own].contains(&link.uid());
    let leads_on = fs::symlink_metadata(path).is_ok_and(is_trusted);
    let target = leads_on.then(|| fs::canonicalize(path).ok()).flatten();
    target.unwrap_or_else(|| path.to_owned())
}

/// Makes `path` a folder of mode 0700, whatever the umask.
///
/// A folder that is there and laxer is tightened, but only where that takes nothing away from
/// anybody: it is ours, and `ours` says so of everything in it. Any other is refused.
pub(super) fn private(path: &Path, ours: impl Fn(&OsStr) -> bool) -> anyhow::Result<()> {
    let shown = path.display();
    if let Err(error) = fs::DirBuilder::new()
        .recursive(true)
        .mode(MODE)
        .create(path)
    {
        return Err(error).with_context(|| format!("cannot create {shown} for the records"));
    }
    let metadata = fs::symlink_metadata(path).with_context(|| format!("cannot read {shown}"))?;
    ensure!(
        metadata.is_dir(),
        "{shown} is not a folder: give record_dir another path"
    );
    let allowed = access(path, AccessFlags::W_OK | AccessFlags::X_OK);
    allowed.with_context(|| {
        format!("cannot write records to {shown}: mount or own it otherwise, or change record_dir")
    })?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let mut entries = fs::read_dir(path).with_context(|| format!("cannot list {shown}"))?;
    let foreign = entries.any(|entry| entry.map_or(true, |entry| !ours(&entry.file_name())));
    let owned = metadata.uid() == nix::unistd::geteuid().as_raw();
    if foreign || !owned || mode & STICKY != 0 {
        bail!(
            "{shown} can be read by others (mode {mode:o}) and is not the records' own: give \
             record_dir a folder of its own, or run `chmod 700 {shown}`"
        );
    }
    fs::set_permissions(path, fs::Permissions::from_mode(MODE))
        .with_context(|| format!("cannot run `chmod 700 {shown}`"))?;
    tracing::warn!(path = %shown, mode = format!("{mode:o}"), "tightened the folder of the records to 0700");
    Ok(())
}
