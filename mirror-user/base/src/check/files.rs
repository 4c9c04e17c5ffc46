//! What lies on the disk: folders, keys, room.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::Finding;
use crate::transport::keys::PrivateKey;

/// A folder that we write: there or to be made, writable, and nobody else's to write.
pub fn folder(about: &str, path: &Path) -> Finding {
    let shown = path.display();
    let Some(existing) = path.ancestors().find(|path| path.exists()) else {
        return Finding::refuse(about, format!("{shown} has no root"), "write a whole path");
    };
    let metadata = existing.metadata();
    if !metadata.as_ref().is_ok_and(Metadata::is_dir) {
        let what = format!("{} is not a folder", existing.display());
        return Finding::refuse(about, what, format!("move it away, or change `{about}`"));
    }
    if let Err(error) = access(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        let what = format!("{} cannot be written: {}", existing.display(), error.desc());
        return Finding::refuse(
            about,
            what,
            format!("run as its owner, or change `{about}`"),
        );
    }
    if existing != path {
        return Finding::ok(about, format!("{shown} will be made"));
    }
    let mode = metadata.map_or(0, |metadata| metadata.mode() & 0o7777);
    if mode & 0o022 != 0 {
        let what = format!("{shown} can be written by others (mode {mode:04o})");
        return Finding::warn(about, what, format!("chmod 700 {shown}"));
    }
    Finding::ok(about, format!("{shown} can be written"))
}

/// This host's key. One that others may read is not used.
pub fn key(file: &Path) -> Vec<Finding> {
    let about = "key_file";
    let key = match PrivateKey::read(file) {
        Ok(key) => key,
        Err(error) => return vec![Finding::refuse(about, error.what, error.remedy)],
    };
    let public = format!("the public key of this host is {}", key.public());
    vec![Finding::ok(about, public)]
}

/// Whether there is room for `limit` bytes of records.
pub fn space(path: &Path, limit: u64) -> Option<Finding> {
    let existing = path.ancestors().find(|path| path.exists())?;
    let free = statvfs(existing).ok()?;
    let free = free.blocks_available() * free.fragment_size();
    let show = |bytes| bytesize::ByteSize(bytes).display().iec().to_string();
    if free >= limit {
        return Some(Finding::ok(
            "record_limit",
            format!("{} of {} free", show(limit), show(free)),
        ));
    }
    Some(Finding::warn(
        "record_limit",
        format!(
            "records may grow to {}, and {} are free",
            show(limit),
            show(free)
        ),
        "lower `record_limit`, or move `record_dir` to a larger disk",
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::check::Level;
    use crate::check::fixture::check;
    use crate::transport::keys::Existing;

    #[test]
    fn folders_are_looked_at_before_they_are_needed() {
        let dir = tempfile::tempdir().unwrap();
        check(
            &folder("state_dir", &dir.path().join("a/b")),
            Level::Ok,
            "will be made",
        );
        check(
            &folder("state_dir", dir.path()),
            Level::Ok,
            "can be written",
        );
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        check(&folder("state_dir", dir.path()), Level::Warn, "mode 0777");
        std::fs::write(dir.path().join("file"), "").unwrap();
        check(
            &folder("state_dir", &dir.path().join("file/a")),
            Level::Refuse,
            "is not a folder",
        );
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        check(&key(&file)[0], Level::Refuse, "there is no key");
        let own = PrivateKey::create(&file, Existing::Keep).unwrap();
        let found = key(&file);
        check(&found[0], Level::Ok, &own.public().to_string());
        assert_eq!(found.len(), 1);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        check(&key(&file)[0], Level::Refuse, "mode 0640");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        check(&key(&file)[0], Level::Refuse, "mode 0644");
    }
}
