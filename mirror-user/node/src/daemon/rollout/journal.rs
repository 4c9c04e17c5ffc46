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

use super::records::Records;

/// How long until what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Lines for one record.
#[derive(Debug)]
pub(in crate::daemon) struct Lines {
    /// Which.
    pub(in crate::daemon) path: PathBuf,
    pub(in crate::daemon) text: String,
    /// Whether they must survive a loss of power before anything follows from them.
    pub(in crate::daemon) sync: bool,
    /// What they are called when it is told what became of them.
    pub(in crate::daemon) number: u64,
}

#[derive(Debug)]
enum Job {
    Append(Lines),
    MakeRoom(String),
}

/// What became of lines.
#[derive(Debug)]
pub(in crate::daemon) struct Written {
    /// The record.
    pub(in crate::daemon) path: PathBuf,
    /// The lines' number.
    pub(in crate::daemon) number: u64,
    /// Why it is not there yet.
    pub(in crate::daemon) failure: Option<String>,
}

/// Hands lines to the writer.
#[derive(Debug)]
pub(in crate::daemon) struct Journal(Sender<Job>);

impl Journal {
    /// Starts the writer. What becomes of lines is sent to `written`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(in crate::daemon) fn start(
        records: Records,
        written: mpsc::UnboundedSender<Written>,
    ) -> io::Result<Self> {
        let (sender, jobs) = channel();
        std::thread::Builder::new()
            .name("rollout-record".to_owned())
            .spawn(move || work(&records, &jobs, &written))?;
        Ok(Self(sender))
    }

    /// Has lines appended to a record.
    pub(in crate::daemon) fn append(&self, lines: Lines) {
        // The writer ends with the daemon.
        let _ = self.0.send(Job::Append(lines));
    }

    /// Has the oldest records of a service removed, so that there is room for one more.
    pub(in crate::daemon) fn make_room(&self, service: String) {
        let _ = self.0.send(Job::MakeRoom(service));
    }
}

fn work(records: &Records, jobs: &Receiver<Job>, written: &mpsc::UnboundedSender<Written>) {
    let mut open = None;
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Append(lines) => {
                if !append(&mut open, lines, written) {
                    return;
                }
            }
            Job::MakeRoom(service) => {
                if let Err(error) = records.make_room(&service) {
                    tracing::warn!(service, "old records of rollouts stay: {error}");
                }
            }
        }
    }
}

/// Tries until it is done. Says whether anybody wants to know.
fn append(
    open: &mut Option<(PathBuf, File)>,
    lines: Lines,
    written: &mpsc::UnboundedSender<Written>,
) -> bool {
    let number = lines.number;
    while let Err(error) = write(open, &lines) {
        *open = None;
        let said = Written {
            path: lines.path.clone(),
            number,
            failure: Some(format!("{}: {error}", lines.path.display())),
        };
        if written.send(said).is_err() {
            return false;
        }
        std::thread::sleep(RETRY);
    }
    let said = Written {
        path: lines.path,
        number,
        failure: None,
    };
    written.send(said).is_ok()
}

/// All of it or nothing: a part of a line would spoil the record.
fn write(open: &mut Option<(PathBuf, File)>, lines: &Lines) -> io::Result<()> {
    if open.as_ref().is_none_or(|(path, _)| *path != lines.path) {
        *open = Some((lines.path.clone(), open_record(&lines.path)?));
    }
    let Some((_, file)) = open else {
        return Ok(());
    };
    let before = file.seek(SeekFrom::End(0))?;
    let written = file
        .write_all(lines.text.as_bytes())
        .and_then(|()| if lines.sync { file.sync_data() } else { Ok(()) });
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
        let journal = Journal::start(Records::new(dir.path()), sender).unwrap();
        let path = dir.path().join("service/a.jsonl");
        // Somebody's file is where the folder should be.
        std::fs::write(dir.path().join("service"), "").unwrap();
        let lines = |text: &str, number| Lines {
            path: path.clone(),
            text: text.to_owned(),
            sync: number == 1,
            number,
        };
        journal.append(lines("one\n", 1));
        journal.append(lines("two\n", 2));
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
