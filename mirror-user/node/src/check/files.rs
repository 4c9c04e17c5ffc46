//! What the daemon has on the disk: its state, its key, its control socket.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use mirror_base::check::Finding;
use mirror_base::check::files::{folder, key};

use crate::config::Node;
use crate::state::{State, Trouble};

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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use mirror_base::check::Level;

    use super::*;
    use mirror_base::check::fixture::check;

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
