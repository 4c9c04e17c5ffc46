//! The files of all services: written, rotated, bounded, and left alone while the disk is full.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::Shared;
use super::folder::private;
use crate::record::LEDGER;

/// Size at which a file is closed and the next one begun, in bytes.
const FILE_LIMIT: u64 = 64 << 20;

/// Bytes that are gathered before they are written.
const GATHERED: u64 = 64 << 10;

/// How long recording stays stopped after a failure before it tries again.
const PAUSE: Duration = Duration::from_secs(10);

/// Every file of records, and who is writing.
pub(super) struct Store {
    services: Vec<Output>,
    /// Oldest first, over all services: their names begin with the time.
    files: BTreeMap<(String, PathBuf), u64>,
    total: u64,
    limit: u64,
    file_limit: u64,
    /// When recording tries again, while it is stopped.
    stopped_until: Option<Instant>,
    shared: Arc<Shared>,
}

/// One service's file.
struct Output {
    folder: PathBuf,
    open: Option<Open>,
    gathered: Vec<u8>,
    records: u64,
}

struct Open {
    file: File,
    key: (String, PathBuf),
    /// Bytes of whole lines.
    length: u64,
}

/// Whether a file's name is that of a file of records.
pub(super) fn is_records(name: &str) -> bool {
    name.starts_with("comparisons-") && name.ends_with(".jsonl")
}

impl Store {
    /// Takes over what `folders`, one a service, and other folders in `record_dir` hold already.
    pub(super) fn open(
        record_dir: &Path,
        folders: Vec<PathBuf>,
        limit: u64,
        shared: Arc<Shared>,
    ) -> anyhow::Result<Self> {
        let mut files = BTreeMap::new();
        for folder in fs::read_dir(record_dir)?.filter_map(Result::ok) {
            if folder.file_type().is_ok_and(|kind| kind.is_dir()) {
                let path = folder.path();
                list(&path, &mut files)
                    .with_context(|| format!("cannot list {}", path.display()))?;
            }
        }
        let output = |folder| Output {
            folder,
            open: None,
            gathered: Vec::new(),
            records: 0,
        };
        Ok(Self {
            total: files.values().sum(),
            services: folders.into_iter().map(output).collect(),
            files,
            limit,
            file_limit: FILE_LIMIT.min(limit / 8).max(1),
            stopped_until: None,
            shared,
        })
    }

    /// Adds one line to a service's records.
    pub(super) fn append(&mut self, service: usize, line: &[u8], now: Instant) {
        if self.stopped_until.is_some_and(|until| now < until) {
            self.shared.failed(1);
            return;
        }
        if line.len() as u64 > self.limit / 2 {
            self.shared.lost();
            return;
        }
        let Some(output) = self.services.get_mut(service) else {
            return;
        };
        output.gathered.extend_from_slice(line);
        output.records += 1;
        let enough = output.gathered.len() as u64 >= GATHERED.min(self.file_limit);
        if enough || self.stopped_until.is_some() {
            self.flush(service, now);
        }
    }

    /// Writes what was gathered for every service.
    pub(super) fn flush_all(&mut self, now: Instant) {
        for service in 0..self.services.len() {
            self.let_go(service);
            self.flush(service, now);
        }
    }

    fn flush(&mut self, service: usize, now: Instant) {
        let output = &mut self.services[service];
        if output.records == 0 {
            return;
        }
        let mut gathered = std::mem::take(&mut output.gathered);
        let records = std::mem::take(&mut output.records);
        match self.write(service, &gathered) {
            Ok(()) => {
                self.shared.written(records);
                if self.stopped_until.take().is_some() {
                    self.shared.stop(false);
                    tracing::info!("recording again");
                }
            }
            Err(error) => {
                self.shared.failed(records);
                if self.stopped_until.is_none() {
                    self.shared.stop(true);
                    tracing::error!(
                        folder = %self.services[service].folder.display(), %error,
                        "cannot write records: recording stops, all else goes on; it is tried again \
                         every {} s", PAUSE.as_secs()
                    );
                }
                self.stopped_until = Some(now + PAUSE);
            }
        }
        gathered.clear();
        gathered.shrink_to(1 << 20);
        self.services[service].gathered = gathered;
    }

    /// Lets go of a file that is no longer where it was: removed, or renamed by logrotate. What is written
    /// to it would be lost, and its room stays taken while it is open.
    fn let_go(&mut self, service: usize) {
        let output = &mut self.services[service];
        let Some(open) = output.open.take_if(|open| !open.is_there()) else {
            return;
        };
        let (name, folder) = &open.key;
        tracing::warn!(
            path = %folder.join(name).display(),
            "file of records removed or renamed; the next record begins a new one"
        );
        if let Some(length) = self.files.remove(&open.key) {
            self.total -= length;
        }
    }

    fn write(&mut self, service: usize, lines: &[u8]) -> io::Result<()> {
        let length = lines.len() as u64;
        self.let_go(service);
        self.make_room(length);
        let mut open = match self.services[service].open.take() {
            Some(open) => open,
            None => create(&self.services[service].folder)?,
        };
        if let Err(error) = open.file.write_all(lines) {
            self.abandon(&open);
            return Err(error);
        }
        open.length += length;
        self.total += length;
        self.files.insert(open.key.clone(), open.length);
        if open.length < self.file_limit {
            self.services[service].open = Some(open);
        }
        Ok(())
    }

    /// Leaves a file behind as it was after its last whole line.
    fn abandon(&self, open: &Open) {
        if open.length == 0 {
            let _ = fs::remove_file(open.key.1.join(&open.key.0));
        } else {
            let _ = open.file.set_len(open.length);
        }
    }

    /// Deletes the oldest files until `more` bytes fit.
    fn make_room(&mut self, more: u64) {
        while self.total + more > self.limit {
            let Some(((name, folder), length)) = self.files.pop_first() else {
                return;
            };
            self.total -= length;
            for output in &mut self.services {
                output
                    .open
                    .take_if(|open| open.key.0 == name && open.key.1 == folder);
            }
            let path = folder.join(name);
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "cannot delete old records");
            }
        }
    }

    /// Puts a service's ledger beside its records; a failure costs nothing but its news.
    pub(super) fn ledger(&self, service: usize, json: &[u8]) {
        let Some(output) = self.services.get(service) else {
            return;
        };
        let (new, path) = (
            output.folder.join(".ledger.json"),
            output.folder.join(LEDGER),
        );
        let written = (|| {
            let mut options = private_file();
            let mut file = in_folder(&output.folder, || {
                options.create(true).truncate(true).open(&new)
            })?;
            file.write_all(json)?;
            fs::rename(&new, &path)
        })();
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), %error, "cannot write the ledger");
            let _ = fs::remove_file(&new);
        }
    }
}

fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options
}

/// Opens a file in a service's folder, and makes that anew where somebody has removed it.
fn in_folder(folder: &Path, mut open: impl FnMut() -> io::Result<File>) -> io::Result<File> {
    match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            private(folder, |_| true).map_err(io::Error::other)?;
            open()
        }
        opened => opened,
    }
}

impl Open {
    /// Whether the file is still the one at its path.
    fn is_there(&self) -> bool {
        let (name, folder) = &self.key;
        let there = fs::symlink_metadata(folder.join(name));
        let own = self.file.metadata();
        matches!((there, own), (Ok(there), Ok(own)) if there.dev() == own.dev() && there.ino() == own.ino())
    }
}

fn create(folder: &Path) -> io::Result<Open> {
    // A new file each time: half a line that a crash left behind stays alone.
    let name = jiff::Timestamp::now()
        .strftime("comparisons-%Y%m%dT%H%M%S%.9fZ.jsonl")
        .to_string();
    let mut options = private_file();
    let file = in_folder(folder, || {
        options
            .create_new(true)
            .append(true)
            .open(folder.join(&name))
    })?;
    Ok(Open {
        file,
        key: (name, folder.to_owned()),
        length: 0,
    })
}

fn list(folder: &Path, files: &mut BTreeMap<(String, PathBuf), u64>) -> io::Result<()> {
    for entry in fs::read_dir(folder)?.filter_map(Result::ok) {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if is_records(&name)
            && let Ok(metadata) = entry.metadata()
            && metadata.is_file()
        {
            files.insert((name, folder.to_owned()), metadata.len());
        }
    }
    Ok(())
}
