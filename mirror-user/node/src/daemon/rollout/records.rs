//! The records on the disk: `state_dir/rollouts/SERVICE/ID.jsonl`.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use mirror_rollout::record::{Decision, Entry, Event, Line, Started};

use mirror_api::{RolloutSummary, StepName};

/// So many rollouts of a service are remembered.
const KEPT: usize = 50;

/// The last move of a rollout stands in so many bytes at its record's end.
const TAIL: u64 = 256 << 10;

/// How what was seen every second is written.
const SEEN: &str = r#""event":{"seen":"#;

/// All records of a daemon.
#[derive(Clone, Debug)]
pub(in crate::daemon) struct Records(PathBuf);

impl Records {
    pub(in crate::daemon) fn new(state_dir: &Path) -> Self {
        Self(state_dir.join("rollouts"))
    }

    /// Where a rollout's record is.
    pub(super) fn path(&self, service: &str, id: &str) -> PathBuf {
        self.0.join(service).join(format!("{id}.jsonl"))
    }

    /// The records of a service, the oldest first: ids begin with the time.
    pub(super) fn of(&self, service: &str) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(self.0.join(service)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|end| end == "jsonl"));
        paths.sort();
        Ok(paths)
    }

    /// Removes the oldest records of a service, so that there is room for one more, and the addresses of
    /// those before, which nobody calls any more.
    pub(super) fn make_room(&self, service: &str) -> io::Result<()> {
        let paths = self.of(service)?;
        let surplus = (paths.len() + 1).saturating_sub(KEPT);
        for path in &paths {
            match fs::remove_file(secrets(path)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        paths.iter().take(surplus).try_for_each(fs::remove_file)
    }
}

/// Beside a record: the addresses that it leaves out.
pub(super) fn secrets(record: &Path) -> PathBuf {
    let id = record.file_stem().unwrap_or_default().to_string_lossy();
    record.with_file_name(format!(".{id}.secrets"))
}

/// Reads a record, and puts back the addresses that it leaves out. A last line that is not whole was being written when somebody pulled the plug: it
/// is cut off.
pub(super) fn read(path: &Path) -> Result<Vec<Line>> {
    let shown = path.display();
    let bytes = fs::read(path).with_context(|| shown.to_string())?;
    let text = whole_lines(&bytes).with_context(|| shown.to_string())?;
    if text.len() < bytes.len() {
        let file = File::options().write(true).open(path)?;
        file.set_len(text.len() as u64)
            .with_context(|| shown.to_string())?;
    }
    let mut lines = parse(path, text, |_| true)?;
    if let Some(Entry::Event(Event::Started(started))) = lines.first_mut().map(|l| &mut l.entry)
        && let Ok(json) = fs::read(secrets(path))
        && let Ok(secrets) = serde_json::from_slice(&json)
    {
        started.plan.reveal(&secrets);
    }
    Ok(lines)
}

/// The lines that are wanted.
fn parse(path: &Path, text: &str, wanted: impl Fn(&str) -> bool) -> Result<Vec<Line>> {
    let lines = text.lines().zip(1..).filter(|(line, _)| wanted(line));
    let read = lines.map(|(line, number)| {
        let at = || format!("{}, line {number}", path.display());
        serde_json::from_str(line).with_context(at)
    });
    read.collect()
}

/// The text before a last line that is not whole, which may end within a letter.
fn whole_lines(bytes: &[u8]) -> Result<&str, std::str::Utf8Error> {
    let last = bytes.iter().rposition(|byte| *byte == b'\n');
    std::str::from_utf8(&bytes[..last.map_or(0, |last| last + 1)])
}

/// The record without what was seen every second, for people.
pub(super) fn told(path: &Path) -> Result<Vec<Line>> {
    let shown = path.display();
    let bytes = fs::read(path).with_context(|| shown.to_string())?;
    let text = whole_lines(&bytes).with_context(|| shown.to_string())?;
    parse(path, text, |line| !line.contains(SEEN))
}

/// How a rollout began and ended, from the ends of its record.
pub(super) fn summary(path: &Path) -> Result<RolloutSummary> {
    let shown = path.display();
    let mut file = File::open(path).with_context(|| shown.to_string())?;
    let length = file.metadata()?.len();
    let mut head = Vec::new();
    (&file).take(TAIL).read_to_end(&mut head)?;
    // It may end within a letter.
    let first: Option<Line> = String::from_utf8_lossy(&head)
        .lines()
        .next()
        .and_then(|line| serde_json::from_str(line).ok());
    let Some(Line {
        time,
        entry: Entry::Event(Event::Started(started)),
        ..
    }) = first
    else {
        bail!("{shown} does not begin as a record does");
    };
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let tail = String::from_utf8_lossy(&tail);
    let last = tail.lines().rev().find_map(|line| {
        let line: Line = serde_json::from_str(line).ok()?;
        match line.entry {
            Entry::Decision(Decision::Moved(moved)) => Some((line.time, moved)),
            _ => None,
        }
    });
    let Started {
        id,
        service,
        stable,
        canary,
        ..
    } = *started;
    let mut summary = RolloutSummary {
        id,
        service,
        stable_version: stable,
        canary,
        started: time,
        ended: None,
        outcome: None,
        step: None,
        reason: None,
    };
    if let Some((at, moved)) = last {
        let step = StepName::of(&moved.to);
        summary.step = Some(step);
        summary.outcome = step.outcome();
        summary.ended = summary.outcome.map(|_| at);
        summary.reason = Some(moved.reason);
    }
    Ok(summary)
}
