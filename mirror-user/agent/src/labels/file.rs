//! A file of labels on the disk, as far as it is written.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{BadLine, Decoder, Id, Label, Unusable};
use crate::config::Columns;

/// Bytes that are read at once, and the longest line.
const PIECE: usize = 1 << 20;

/// Why there are no labels.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is not there, or not for us.
    #[error("cannot read the labels in {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is something else than labels.
    #[error("cannot read the labels in {path}: {error}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Unusable,
    },
    /// A line has no end.
    #[error("cannot read the labels in {path}: a line after byte {offset} is longer than 1 MiB")]
    LongLine {
        /// The file.
        path: PathBuf,
        /// Where it was read to.
        offset: u64,
    },
}

/// A file that is read from where it was read to: appended to, or replaced by another one.
#[derive(Debug)]
pub struct LabelFile {
    path: PathBuf,
    columns: Columns,
    decoder: Decoder,
    /// The file by device and inode.
    identity: Option<(u64, u64)>,
    offset: u64,
}

impl LabelFile {
    /// Nothing is read yet.
    pub fn new(path: &Path, columns: &Columns) -> Self {
        Self {
            path: path.to_owned(),
            columns: columns.clone(),
            decoder: Decoder::new(columns.clone()),
            identity: None,
            offset: 0,
        }
    }

    /// Reads on, a megabyte at most. A line that is not ended yet waits, unless the file is `whole`.
    /// Says whether the end was reached.
    ///
    /// # Errors
    /// When the file cannot be read, or is none of labels.
    pub fn read(
        &mut self,
        whole: bool,
        visit: impl FnMut(Result<(Id, Label), BadLine>),
    ) -> Result<bool, Error> {
        let path = self.path.clone();
        let piece = match self.next() {
            Ok(piece) => piece,
            Err(error) => return Err(Error::Unreadable { path, error }),
        };
        let end = piece.len() < PIECE;
        let read = match self.decoder.feed(&piece, end && whole, visit) {
            Ok(read) => read,
            Err(error) => return Err(Error::Unusable { path, error }),
        };
        self.offset += read as u64;
        let offset = self.offset;
        match (end, read) {
            (false, 0) => Err(Error::LongLine { path, offset }),
            _ => Ok(end),
        }
    }

    /// Opens it; one that is another, or has become shorter, is read from the beginning.
    fn open(&mut self) -> io::Result<File> {
        let file = File::open(&self.path)?;
        let metadata = file.metadata()?;
        let identity = Some((metadata.dev(), metadata.ino()));
        if self.identity != identity || metadata.len() < self.offset {
            self.identity = identity;
            self.offset = 0;
            self.decoder = Decoder::new(self.columns.clone());
        }
        Ok(file)
    }

    fn next(&mut self) -> io::Result<Vec<u8>> {
        let mut file = self.open()?;
        let mut piece = Vec::new();
        file.seek(SeekFrom::Start(self.offset))?;
        file.take(PIECE as u64).read_to_end(&mut piece)?;
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[track_caller]
    fn check(file: &mut LabelFile, whole: bool, expected: &[(&str, &str)]) {
        let mut found = Vec::new();
        let end = file.read(whole, |line| found.push(line.unwrap()));
        assert!(end.unwrap());
        let pair = |(id, label): &(&str, &str)| (Id::of(id), Label::new(label).unwrap());
        let expected: Vec<_> = expected.iter().map(pair).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_was_read_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.csv");
        let mut file = LabelFile::new(&path, &Columns::default());
        let error = file.read(false, |_| {}).unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");

        let write = |text: &str| fs::write(&path, text).unwrap();
        write("id,label\na,1\nb,");
        check(&mut file, false, &[("a", "1")]);
        write("id,label\na,1\nb,2\nc,3\n");
        check(&mut file, false, &[("b", "2"), ("c", "3")]);
        check(&mut file, false, &[]);

        // Shorter: it was emptied, and begun anew.
        write("label,id\n4,d\n5,e");
        check(&mut file, false, &[("d", "4")]);
        // Another file in its place.
        let next = folder.path().join("next");
        fs::write(
            &next,
            "{\"id\":\"a\",\"label\":1}\n{\"id\":\"b\",\"label\":2}\n",
        )
        .unwrap();
        fs::rename(&next, &path).unwrap();
        check(&mut file, false, &[("a", "1"), ("b", "2")]);
    }

    #[test]
    fn a_whole_file_may_end_without_a_line_s_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        let rows: String = (0..50_000)
            .map(|row| format!("{{\"id\":\"request-{row}\",\"label\":{row}}}\n"))
            .collect();
        fs::write(&path, rows.trim_end()).unwrap();
        let mut file = LabelFile::new(&path, &Columns::default());
        let mut count = 0;
        while !file
            .read(true, |line| count += u64::from(line.is_ok()))
            .unwrap()
        {}
        assert_eq!(count, 50_000);
    }

    #[test]
    fn a_line_without_end_is_said_so() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("labels.jsonl");
        fs::write(
            &path,
            "{\"id\":1,\"label\":2}\n{".to_owned() + &" ".repeat(2 * PIECE),
        )
        .unwrap();
        let mut file = LabelFile::new(&path, &Columns::default());
        assert!(!file.read(false, |_| {}).unwrap());
        let error = file.read(false, |_| {}).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("after byte 19 is longer than 1 MiB"),
            "{error}"
        );
    }
}
