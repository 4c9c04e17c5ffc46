//! What lies on the disk: state, records, the control socket.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::Finding;
use crate::config::Node;
use crate::state::{State, Trouble};
use crate::transport::keys::PrivateKey;

pub(super) fn node(node: &Node) -> Vec<Finding> {
    let mut findings = vec![
        folder("state_dir", &node.state_dir),
        control_socket(&node.control_socket),
    ];
    findings.extend(state(node));
    let mut mirrors = node.services.iter().filter_map(|s| s.mirror.as_ref());
    if mirrors.any(|mirror| !mirror.insecure) {
        findings.extend(key(&node.key_file));
    }
    findings
}

/// A folder that we write: there or to be made, writable, and nobody else's to write.
pub(super) fn folder(about: &str, path: &Path) -> Finding {
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

fn control_socket(path: &Path) -> Finding {
    let about = "control_socket";
    let shown = path.display();
    let Ok(metadata) = path.symlink_metadata() else {
        return folder(about, path.parent().unwrap_or(Path::new("/")));
    };
    if !metadata.file_type().is_socket() {
        let cure = "remove it, or choose another `control_socket`";
        return Finding::refuse(about, format!("{shown} is there and is not a socket"), cure);
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        let what = format!("{shown} can be opened by others (mode {mode:04o})");
        return Finding::warn(about, what, format!("chmod 600 {shown}"));
    }
    match UnixStream::connect(path) {
        Ok(_) => Finding::ok(about, format!("{shown}: a daemon is running")),
        Err(_) => Finding::ok(about, format!("{shown} is left over from a dead daemon")),
    }
}

/// What the command line set earlier still holds, and surprises whoever forgot.
fn state(node: &Node) -> Vec<Finding> {
    let about = "state";
    let state = State::open(&node.state_dir);
    if let Some(Trouble { what, cure }) = state.trouble() {
        return vec![Finding::refuse(about, what, cure)];
    }
    let mut findings = Vec::new();
    if state.overrides().is_off() {
        findings.push(Finding::warn(
            about,
            "`modelmirror off` holds: nothing will be attached",
            "modelmirror mirror on --service NAME, once the daemon runs",
        ));
    }
    let strangers = state.overrides().strangers(node);
    if !strangers.is_empty() {
        findings.push(Finding::warn(
            about,
            format!(
                "something is set for services that the config lacks: {}",
                strangers.join(", ")
            ),
            "modelmirror mirror clear --service NAME, or ignore it",
        ));
    }
    findings
}

/// This host's key. One that others may read is not used.
pub(super) fn key(file: &Path) -> Vec<Finding> {
    let about = "key_file";
    let key = match PrivateKey::read(file) {
        Ok(key) => key,
        Err(error) => return vec![Finding::refuse(about, error.what, error.remedy)],
    };
    let public = format!("the public key of this host is {}", key.public());
    vec![Finding::ok(about, public)]
}

/// Whether there is room for `limit` bytes of records.
pub(super) fn space(path: &Path, limit: u64) -> Option<Finding> {
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

    #[test]
    fn sockets_of_dead_and_living_daemons_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        check(&control_socket(&path), Level::Ok, "a daemon is running");
        drop(listener);
        check(&control_socket(&path), Level::Ok, "left over");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        check(&control_socket(&path), Level::Warn, "by others");
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        check(&control_socket(&path), Level::Refuse, "is not a socket");
    }
}
