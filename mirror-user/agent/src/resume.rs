//! What an agent that stops leaves to the one that comes after it: how far it has got in each tap's rings,
//! and where each connection goes on.
//!
//! A file beside the records, written once, at the end, and taken away by the next agent when it begins. Where
//! it is missing, too old, or of another format, the next agent begins anew, and counts what that costs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use mirror_wire::exchange::{Anchor, MAX_CONNECTIONS};
use serde::{Deserialize, Serialize};

use mirror_base::transport::frame::Position;

/// Its name in `record_dir`.
pub(crate) const FILE: &str = ".resume.json";

/// The format that is read and written.
const FORMAT: u32 = 1;

/// Older ones are of no use: by then most of what they say is over.
const YOUNG: Duration = Duration::from_secs(60);

/// The largest file that is read, in bytes: more than [`MAX_CONNECTIONS`] take.
const LONGEST: u64 = 64 << 20;

/// What is left to the next agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Resume {
    format: u32,
    /// When it was written, in nanoseconds since 1970.
    written_ns: u64,
    /// Of each tap.
    pub(crate) taps: Vec<TapResume>,
}

/// What is left of one tap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TapResume {
    /// What it is called.
    pub(crate) name: String,
    /// The life in which its rings had these positions.
    pub(crate) boot: u64,
    /// Everything below is accounted for, and nothing above.
    pub(crate) positions: Vec<Position>,
    /// A moment by the tap's clock, and in nanoseconds since 1970.
    pub(crate) moment: Option<(u64, u64)>,
    /// Its connections.
    pub(crate) connections: Vec<Left>,
}

/// Where a connection goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Left {
    /// The service's id.
    pub(crate) service: u32,
    /// The connection's ends.
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    pub(crate) at: Anchor,
}

impl Resume {
    fn new(mut taps: Vec<TapResume>, now_ns: u64) -> Self {
        let mut room = MAX_CONNECTIONS;
        for tap in &mut taps {
            tap.connections.truncate(room);
            room -= tap.connections.len();
        }
        Self {
            format: FORMAT,
            written_ns: now_ns,
            taps,
        }
    }

    /// Puts it into `folder`, whole or not at all.
    pub(crate) fn write(folder: &Path, taps: Vec<TapResume>) -> io::Result<()> {
        let json = serde_json::to_vec(&Self::new(taps, unix_ns()))?;
        let new = folder.join(".resume.json.new");
        // Whatever is left of another attempt is not written into.
        let _ = fs::remove_file(&new);
        let mut options = OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let written = (|| {
            options.open(&new)?.write_all(&json)?;
            fs::rename(&new, path(folder))
        })();
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    /// Takes it out of `folder`: what is left there of an agent that has stopped just now.
    pub(crate) fn take(folder: &Path) -> Vec<TapResume> {
        let path = path(folder);
        let read = read(&path);
        // It is true once only.
        let removed = fs::remove_file(&path);
        match (read, removed) {
            (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            (Ok(resume), Ok(())) if resume.holds(unix_ns()) => resume.taps,
            (Ok(_), Ok(())) => Vec::new(),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "the last agent left nothing to go on with");
                Vec::new()
            }
        }
    }

    fn holds(&self, now_ns: u64) -> bool {
        let age = now_ns.checked_sub(self.written_ns);
        self.format == FORMAT && age.is_some_and(|age| u128::from(age) <= YOUNG.as_nanos())
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join(FILE)
}

fn read(path: &Path) -> io::Result<Resume> {
    if fs::symlink_metadata(path)?.len() > LONGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// The time, in nanoseconds since 1970.
pub(crate) fn unix_ns() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn tap() -> TapResume {
        TapResume {
            name: "node-1".to_owned(),
            boot: u64::MAX,
            positions: vec![Position {
                lane: 3,
                position: 4_096,
            }],
            moment: Some((7, 8)),
            connections: Vec::new(),
        }
    }

    #[test]
    fn it_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Resume::take(folder.path()), []);
        Resume::write(folder.path(), vec![tap()]).unwrap();
        let mode = fs::metadata(path(folder.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(Resume::take(folder.path()), [tap()]);
        assert_eq!(Resume::take(folder.path()), []);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_a_young_one_of_this_format_counts() {
        let resume = Resume::new(vec![tap()], 1_000_000_000_000);
        assert!(resume.holds(1_000_000_000_000));
        assert!(resume.holds(1_060_000_000_000));
        assert!(!resume.holds(1_060_000_000_001));
        assert!(!resume.holds(999_999_999_999), "the clock was set back");
        let other = Resume {
            format: FORMAT + 1,
            ..resume
        };
        assert!(!other.holds(1_000_000_000_000));
        let folder = tempfile::tempdir().unwrap();
        fs::write(path(folder.path()), "{").unwrap();
        assert_eq!(Resume::take(folder.path()), []);
        assert!(!path(folder.path()).exists());
    }
}
