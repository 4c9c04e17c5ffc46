//! The records' writer: a thread, so that a disk that hangs holds up nothing but going forward.
//!
//! What cannot be written is kept and tried again, in order; meanwhile nothing new is taken in but
//! what takes a canary back.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::sync::mpsc;

/// How long until what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Lines for one record.
#[derive(Debug)]
struct Entry {
    path: PathBuf,
    text: String,
    /// Whether they must survive a loss of power before anything follows from them.
    sync: bool,
    number: u64,
}

/// What became of an entry.
#[derive(Debug)]
pub(crate) struct Written {
    /// The record.
    pub(super) path: PathBuf,
    /// The entry's number.
    pub(super) number: u64,
    /// Why it is not there yet.
    pub(super) failure: Option<String>,
}

/// Hands lines to the writer.
#[derive(Debug)]
pub(super) struct Journal(Sender<Entry>);

impl Journal {
    /// Starts the writer. What becomes of each entry is sent to `written`.
    pub(super) fn start(written: mpsc::UnboundedSender<Written>) -> io::Result<Self> {
        let (sender, entries) = channel();
        std::thread::Builder::new()
            .name("rollout-record".to_owned())
            .spawn(move || write_all(&entries, &written))?;
        Ok(Self(sender))
    }

    /// Has lines appended to a record.
    pub(super) fn append(&self, path: &Path, text: String, sync: bool, number: u64) {
        let path = path.to_owned();
        // The writer ends with the daemon.
        let _ = self.0.send(Entry {
            path,
            text,
            sync,
            number,
        });
    }
}

fn write_all(entries: &Receiver<Entry>, written: &mpsc::UnboundedSender<Written>) {
    let mut open: Option<(PathBuf, File)> = None;
    while let Ok(entry) = entries.recv() {
        while let Err(error) = write(&mut open, &entry) {
            open = None;
            let failure = Some(format!("{}: {error}", entry.path.display()));
            let number = entry.number;
            let path = entry.path.clone();
            let said = Written {
                path,
                number,
                failure,
            };
            if written.send(said).is_err() {
                return;
            }
            std::thread::sleep(RETRY);
        }
        let said = Written {
            path: entry.path,
            number: entry.number,
            failure: None,
        };
        if written.send(said).is_err() {
            return;
        }
    }
}

/// All of it or nothing: a part of a line would spoil the record.
fn write(open: &mut Option<(PathBuf, File)>, entry: &Entry) -> io::Result<()> {
    if open.as_ref().is_none_or(|(path, _)| *path != entry.path) {
        *open = Some((entry.path.clone(), open_record(&entry.path)?));
    }
    let Some((_, file)) = open else {
        return Ok(());
    };
    let before = file.seek(SeekFrom::End(0))?;
    let written = file
        .write_all(entry.text.as_bytes())
        .and_then(|()| if entry.sync { file.sync_data() } else { Ok(()) });
    if written.is_err() {
        file.set_len(before)?;
    }
    written
}

fn open_record(path: &Path) -> io::Result<File> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let is_new = !path.exists();
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).mode(0o600).open(path)?;
    if is_new {
        File::open(dir)?.sync_all()?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_written_is_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let (sender, mut written) = mpsc::unbounded_channel();
        let journal = Journal::start(sender).unwrap();
        let path = dir.path().join("service/a.jsonl");
        // Somebody's file is where the folder should be.
        std::fs::write(dir.path().join("service"), "").unwrap();
        journal.append(&path, "one\n".to_owned(), true, 1);
        journal.append(&path, "two\n".to_owned(), false, 2);
        let said = written.recv().await.unwrap();
        assert!(said.failure.is_some() && said.number == 1, "{said:?}");
        std::fs::remove_file(dir.path().join("service")).unwrap();
        let mut numbers = Vec::new();
        while numbers != [1, 2] {
            let said = written.recv().await.unwrap();
            if said.failure.is_none() {
                numbers.push(said.number);
            }
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
    }
}
