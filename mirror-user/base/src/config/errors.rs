//! What is wrong with a config file, where, and what cures it.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

use mirror_api::plain;

/// So many problems are shown: they often have one cause.
const SHOWN: usize = 50;

/// The longest text of a problem that is shown, in characters.
const LONGEST: usize = 1_000;

/// As much is shown of a long line, ...
const WIDTH: usize = 120;

/// ... and as much of that before the problem.
const CONTEXT: usize = 40;

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
        let place = |(Problem { fault, .. }, at): (&Problem, Position<'_>)| Place {
            line: at.line,
            column: at.column,
            what: fault.what.clone(),
            cure: fault.cure.clone(),
        };
        self.with_positions().map(place).collect()
    }

    /// The problems and where they begin, in the order of the text, which is gone through once.
    fn with_positions(&self) -> impl Iterator<Item = (&Problem, Position<'_>)> {
        let (mut line, mut line_start) = (1, 0);
        self.problems.iter().map(move |problem| {
            let start = problem.span.start.min(self.text.len());
            let between = &self.text.as_bytes()[line_start..start];
            line += between.iter().filter(|byte| **byte == b'\n').count();
            if let Some(newline) = between.iter().rposition(|byte| *byte == b'\n') {
                line_start += newline + 1;
            }
            let source = self.text[line_start..].lines().next().unwrap_or_default();
            let before = self.text.get(line_start..start).unwrap_or(source);
            let column = before.chars().count() + 1;
            let at = Position {
                line,
                column,
                source,
            };
            (problem, at)
        })
    }
}

/// Where a problem begins.
#[derive(Clone, Copy, Debug)]
struct Position<'a> {
    /// From 1.
    line: usize,
    /// From 1, in characters.
    column: usize,
    /// The whole line.
    source: &'a str,
}

impl Position<'_> {
    /// The line, as much of it as can be looked at, with marks under so many characters.
    fn excerpt(self, marks: usize) -> Option<(String, String)> {
        let source = shown(self.source);
        if source.trim().is_empty() {
            return None;
        }
        let length = source.chars().count();
        let column = self.column.min(length);
        let skipped = (column - 1).saturating_sub(CONTEXT);
        let skipped = if length <= WIDTH { 0 } else { skipped };
        let mut line: String = source.chars().skip(skipped).take(WIDTH).collect();
        if skipped + WIDTH < length {
            line.push('…');
        }
        let line = line.replace(|c: char| c == '\t' || plain::is_odd(c), " ");
        let (cut, indent) = match skipped {
            0 => ("", column - 1),
            _ => ("…", column - skipped),
        };
        let most = line.chars().count() + cut.chars().count() + 1 - indent;
        let marks = "^".repeat(marks.clamp(1, most.max(2) - 1));
        Some((format!("{cut}{line}"), " ".repeat(indent) + &marks))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (problem, at)) in self.with_positions().take(SHOWN).enumerate() {
            let Problem { span, fault } = problem;
            if index > 0 {
                writeln!(f)?;
            }
            let (file, what) = (self.file.display(), plain::line(&fault.what, LONGEST));
            write!(f, "{file}:{}:{}: {what}", at.line, at.column)?;
            let marked = self.text.get(span.clone()).unwrap_or_default();
            let marks = marked.chars().take_while(|&c| c != '\n').count();
            if let Some((line, marks)) = at.excerpt(marks) {
                write!(f, "\n    {line}\n    {marks}")?;
            }
            write!(f, "\n    {}", plain::line(&fault.cure, LONGEST))?;
        }
        let more = self.count().saturating_sub(SHOWN);
        if more > 0 {
            write!(f, "\n{}: {more} more", self.file.display())?;
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

    /// A terminal is no place for a line of a megabyte, nor for what moves the cursor.
    #[test]
    fn any_line_can_be_shown() {
        let show = |text: &str, span: Range<usize>| {
            let fault = Fault::new("odd", "write another");
            let problem = Problem { span, fault };
            Report::new(Path::new("file"), text, vec![problem]).to_string()
        };
        assert_eq!(
            show("a = 1\nbb = 22\n", 11..13),
            "file:2:6: odd\n    bb = 22\n         ^^\n    write another"
        );
        let long = format!("a = \"{}\", 7", "x".repeat(70_000));
        let said = show(&long, 70_008..70_009);
        assert!(said.starts_with("file:1:70009: odd\n    …xxx"), "{said}");
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(
            lines[1].chars().position(|c| c == '7'),
            lines[2].find('^'),
            "{said}"
        );
        assert_eq!(
            show("\u{1b}[2J\u{202e}x", 0..1).lines().nth(1),
            Some("     [2J x")
        );
        for text in ["", "\n", "é", "é\r\n\u{0}"] {
            for start in 0..=text.len() + 1 {
                show(text, start..start + 3);
            }
        }
    }

    #[test]
    fn many_problems_are_counted() {
        let problem = |start| Problem {
            span: start..start + 1,
            fault: Fault::new("odd", "write another"),
        };
        let text = "x\n".repeat(20_000);
        let problems = (0..20_000).map(|line| problem(line * 2)).collect();
        let report = Report::new(Path::new("file"), &text, problems);
        let said = report.to_string();
        assert!(said.ends_with("file: 19950 more"), "{said}");
        assert_eq!(
            (report.count(), report.places()[19_999].line),
            (20_000, 20_000)
        );
    }

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
