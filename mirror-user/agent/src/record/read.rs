//! The records of a service, read back.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, ErrorKind};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;

use super::line::Record;
use super::store::is_records;

/// A line is no record: half of one at the end of a file, most often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRecord;

/// Reads all records in a service's `folder`, the oldest first, until `visit` breaks off. Files that
/// were last written before `since` are left out, and so are those that are deleted meanwhile.
///
/// # Errors
/// When the folder cannot be listed, or a file in it not be read.
pub fn read(
    folder: &Path,
    since: Option<SystemTime>,
    mut visit: impl FnMut(Result<Record<'_>, NoRecord>) -> ControlFlow<()>,
) -> anyhow::Result<()> {
    lines(folder, since, |line| {
        visit(serde_json::from_slice(line).map_err(|_| NoRecord))
    })
}

/// The same, for who does not need all of a record.
///
/// # Errors
/// As [`read`].
pub fn lines(
    folder: &Path,
    since: Option<SystemTime>,
    mut visit: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> anyhow::Result<()> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(is_records))
        .map(|entry| entry.path())
        .collect();
    files.sort_unstable();
    for file in files {
        let read = read_file(&file, since, &mut visit);
        if read
            .with_context(|| format!("cannot read {}", file.display()))?
            .is_break()
        {
            break;
        }
    }
    Ok(())
}

fn read_file(
    path: &Path,
    since: Option<SystemTime>,
    visit: &mut impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<ControlFlow<()>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ControlFlow::Continue(())),
        file => file?,
    };
    if let Some(since) = since
        && file.metadata()?.modified()? < since
    {
        return Ok(ControlFlow::Continue(()));
    }
    let mut reader = BufReader::with_capacity(1 << 18, file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if visit(&line).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        line.clear();
    }
    Ok(ControlFlow::Continue(()))
}
