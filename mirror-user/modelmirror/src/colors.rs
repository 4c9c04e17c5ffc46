//! Levels and verdicts in colour. It is done to finished text, whose odd characters are written out: what others have
//! typed or sent brings no colour of its own.

use std::ops::Range;

use anstyle::{AnsiColor, Style};

const BAD: Style = AnsiColor::Red.on_default().bold();
const CARE: Style = AnsiColor::Yellow.on_default();
const GOOD: Style = AnsiColor::Green.on_default();

/// At the beginning of a line.
const PREFIXES: [(&str, Style); 4] = [
    ("error:", BAD),
    ("warning:", CARE),
    ("NOT READY", BAD),
    ("ready:", GOOD),
];

/// Alone in a cell of a table, or between a line's end and one.
const CELLS: [(&str, Style); 12] = [
    ("REFUSE", BAD),
    ("WORSE", BAD),
    ("rolled back", BAD),
    ("warn", CARE),
    ("warning", CARE),
    ("not known", CARE),
    ("held", CARE),
    ("ok", GOOD),
    ("alive", GOOD),
    ("attached", GOOD),
    ("within", GOOD),
    ("promoted", GOOD),
];

/// Anywhere: who writes them in capitals wants them to be seen.
const WORDS: [(&str, Style); 16] = [
    ("NOT ATTACHED", BAD),
    ("NOT STEERED", BAD),
    ("NOT AT XDP", BAD),
    ("NO ANSWER", BAD),
    ("ROLLED BACK", BAD),
    ("ROLLING BACK", BAD),
    ("BEHIND OTHERS", CARE),
    ("CLEAR TEXT", CARE),
    ("RETIRE DUE", CARE),
    ("HELD", CARE),
    ("DOWN", BAD),
    ("GONE", BAD),
    ("STRAYED", BAD),
    ("OFF", CARE),
    ("INSECURE", CARE),
    ("SATURATED", CARE),
];

/// The text with its levels and verdicts in colour.
pub(crate) fn paint(text: &str) -> String {
    text.split_inclusive('\n').map(paint_line).collect()
}

fn paint_line(line: &str) -> String {
    let mut marks = marks(line);
    marks.sort_by_key(|(range, _)| range.start);
    let (mut painted, mut done) = (String::new(), 0);
    for (range, style) in marks {
        // Of two that overlap, the first.
        if range.start >= done {
            painted += &line[done..range.start];
            painted += &format!("{style}{}{style:#}", &line[range.clone()]);
            done = range.end;
        }
    }
    painted + &line[done..]
}

fn marks(line: &str) -> Vec<(Range<usize>, Style)> {
    let mut marks = Vec::new();
    for (prefix, style) in PREFIXES {
        if line.starts_with(prefix) {
            marks.push((0..prefix.len(), style));
        }
    }
    for cell in cells(line) {
        let text = &line[cell.clone()];
        let found = CELLS.iter().find(|(known, _)| *known == text);
        marks.extend(found.map(|(_, style)| (cell, *style)));
    }
    for (word, style) in WORDS {
        let found = line.match_indices(word).map(|(at, _)| at..at + word.len());
        let whole = found.filter(|range| is_whole(line, range));
        marks.extend(whole.map(|range| (range, style)));
    }
    marks
}

/// What stands between gaps of two blanks and more.
fn cells(line: &str) -> Vec<Range<usize>> {
    let mut cells = Vec::new();
    let mut at = 0;
    for part in line.trim_end().split("  ") {
        let inner = part.trim();
        if !inner.is_empty() {
            let start = at + part.len() - part.trim_start().len();
            cells.push(start..start + inner.len());
        }
        at += part.len() + 2;
    }
    cells
}

/// Whether it is no part of a longer word.
fn is_whole(line: &str, range: &Range<usize>) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    let before = line[..range.start].chars().next_back();
    let after = line[range.end..].chars().next();
    let ends = after.is_none_or(|c| c == '.' || !is_part(c));
    before.is_none_or(|c| !is_part(c)) && ends
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `<`, `{` and `[` stand for the beginning of red, yellow and green, and `>` for an end.
    fn check(marked: &str) {
        let plain = marked.replace(['<', '{', '[', '>'], "");
        let painted = paint(&plain);
        let mut seen = painted.clone();
        for (mark, style) in [("<", BAD), ("{", CARE), ("[", GOOD)] {
            seen = seen.replace(&style.to_string(), mark);
        }
        let seen = seen.replace(&format!("{:#}", BAD), ">");
        assert_eq!(seen, marked);
        assert_eq!(anstream::adapter::strip_str(&painted).to_string(), plain);
    }

    #[test]
    fn levels_and_verdicts_are_painted() {
        check(
            "<REFUSE>  interface eth7  there is none\n{warn>    admin\n[ok>      kernel  Linux\n",
        );
        check("\n<NOT READY>: 1 refuse, 1 warn, 1 ok\n");
        check("[ready:> 0 refuse, 1 warn, 1 ok\n");
        check("10.1.0.9:6181  [alive>  stream  0.8 s ago\n");
        check("10.1.0.9:6181  <DOWN>   stream\n10.1.0.9:6181 <DOWN>: refused\n");
        check("  p99     {not known>  1.61 times\n  errors  [within>     0.00 points\n");
        check("{warning:> the disk is full\n");
        check("v13  [promoted>\nv14  <rolled back>  25s\nv15  {held>");
        check("{OFF>: nothing is attached");
    }

    #[test]
    fn words_that_only_look_like_them_are_not() {
        check("an ok within a sentence, warn or not, alive");
        check("SERVICE OFFERS  id 1, version DOWN-1, /OFF/");
        check("bytes mirrored   2.3 MB    2.2 MB\n");
        check("déjà  vu  é");
    }
}
