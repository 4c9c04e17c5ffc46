//! The Unix socket by which daemon and agent are controlled, and who asks there.

mod client;

use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

pub use client::{Client, ClientError};

/// The body of an answer that is no success.
#[derive(Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was wrong.
    pub error: String,
}

/// Opens the control socket with mode 0600. What a dead daemon left is replaced.
///
/// # Errors
/// When another daemon listens there, when the path is something else than a socket, and when the
/// folder cannot be written.
pub fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!(
                "{shown} is there and is not a socket: remove it, or choose another `control_socket`"
            )
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            bail!(
                "another daemon listens at {shown}: stop it first, or choose another `control_socket`"
            )
        }
        _ => {}
    }
    replace(path)
}

/// The same, where what listens there is about to end.
///
/// # Errors
/// When the folder cannot be written.
pub fn replace(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    if let Some(dir) = path.parent() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
    }
    // Bound under another name, narrowed, and only then put in its place: at no moment can anybody
    // else open it, and what a dead daemon left is replaced in one step.
    let fresh = path.with_extension(std::process::id().to_string());
    let bound = (|| {
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, path)?;
        io::Result::Ok(listener)
    })();
    bound
        .inspect_err(|_| drop(std::fs::remove_file(&fresh)))
        .with_context(|| format!("cannot open the control socket {shown}"))
}
