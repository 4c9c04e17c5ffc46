//! What is wrong with a config file, where, and what cures it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// What is wrong with one value, and the cure; where it stands is added by who read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What is wrong.
    pub what: String,
    /// What to write instead.
    pub cure: String,
}

impl Fault {
    /// A fault in words.
    pub fn new(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            cure: cure.into(),
        }
    }
}

/// A fault and its place in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Bytes of the text that it is about.
    pub span: Range<usize>,
    /// What and why.
    pub fault: Fault,
}

/// Why a config file cannot be used: every problem that was found, in the order of the text.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{}: {source}; name an existing config file with --config, or start from `modelmirror config default`", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file was read and refused.
    #[error("{0}")]
    Refused(Report),
}

/// The problems of one file, to be shown.
#[derive(Debug)]
pub struct Report {
    file: PathBuf,
    text: String,
    problems: Vec<Problem>,
}

impl Report {
    /// The problems of `file`, whose content is `text`.
    pub fn new(file: &Path, text: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.span.start);
        problems.dedup();
        Self {
            file: file.to_owned(),
            text: text.to_owned(),
            problems,
        }
    }

    /// Line and column (both from 1, in characters) where a problem begins.
    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Problem { span, fault }) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let (line, column) = self.position(span.start);
            write!(f, "{}:{line}:{column}: {}", self.file.display(), fault.what)?;
            let source = self.text.lines().nth(line - 1).unwrap_or_default();
            if !source.trim().is_empty() {
                let width = source.chars().count() + 1 - column.min(source.chars().count());
                let marked = self.text.get(span.clone()).unwrap_or_default();
                let marks = marked.chars().take_while(|&c| c != '\n').count();
                write!(f, "\n    {}", source.replace('\t', " "))?;
                write!(
                    f,
                    "\n    {:indent$}{}",
                    "",
                    "^".repeat(marks.clamp(1, width)),
                    indent = column - 1
                )?;
            }
            write!(f, "\n    {}", fault.cure)?;
        }
        Ok(())
    }
}
