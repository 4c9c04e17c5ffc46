//! What is wrong with a config file, where, and what cures it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

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
    #[error("cannot read the config {}: {why} (`modelmirror config default` prints one to start from)", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        why: std::io::Error,
    },
    /// The file was read and refused.
    #[error("{0}")]
    Refused(Report),
}

/// A problem as programs read it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// What is wrong there.
    pub what: String,
    /// What to write instead.
    pub cure: String,
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

    /// How many problems there are.
    pub fn count(&self) -> usize {
        self.problems.len()
    }

    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Every problem with its line and column.
    pub fn places(&self) -> Vec<Place> {
        let place = |Problem { span, fault }: &Problem| {
            let (line, column) = self.position(span.start);
            Place {
                line,
                column,
                what: fault.what.clone(),
                cure: fault.cure.clone(),
            }
        };
        self.problems.iter().map(place).collect()
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
            let source = shown(self.text.lines().nth(line - 1).unwrap_or_default());
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

/// A line of a config as it may be logged: an address may hold a key.
fn shown(line: &str) -> String {
    let is_address = |&(end, _): &(usize, &str)| {
        let key = line[..end].trim_end().trim_end_matches(['"', '\'']);
        key.ends_with("url") || key.ends_with("prometheus")
    };
    if let Some((end, _)) = line.match_indices('=').find(is_address) {
        return format!("{}= …", &line[..end]);
    }
    match line.split_once("://") {
        Some((before, _)) => format!("{before}://…"),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_not_shown() {
        let check = |line: &str, expected: &str| assert_eq!(shown(line), expected);
        check("sample = 7", "sample = 7");
        check("url = \"hooks/hush", "url = …");
        check("hook = { url = \"hush\" }", "hook = { url = …");
        check("  prometheus=\"http://me:hush@a\"", "  prometheus= …");
        check("urll = \"http://a/hush\"", "urll = \"http://…");
    }
}
