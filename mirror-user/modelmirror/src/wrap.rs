//! Sentences that are longer than a terminal's line are continued below their beginning; a table's rows stay whole.

/// The text, with its long lines broken between words.
pub(crate) fn wrap(text: &str, width: usize) -> String {
    let mut wrapped = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let (line, end) = match line.strip_suffix('\n') {
            Some(line) => (line, "\n"),
            None => (line, ""),
        };
        wrapped += &wrap_line(line, width);
        wrapped += end;
    }
    wrapped
}

fn wrap_line(line: &str, width: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let start = sentence(line);
    let before = &line[..start];
    let indent = match before.trim().is_empty() {
        true => start + 2,
        false => before.chars().count(),
    };
    // What begins so far to the right is a table's cell.
    if indent > width / 2 {
        return line.to_owned();
    }
    let mut wrapped = line[..start].to_owned();
    let mut column = line[..start].chars().count();
    for (index, word) in line[start..].split(' ').enumerate() {
        let length = word.chars().count();
        if index > 0 && column + 1 + length > width {
            wrapped += "\n";
            wrapped += &" ".repeat(indent);
            column = indent;
        } else if index > 0 {
            wrapped.push(' ');
            column += 1;
        }
        wrapped += word;
        column += length;
    }
    wrapped
}

/// Where the sentence of a line begins: behind its label, or behind its last gap of two blanks and more.
fn sentence(line: &str) -> usize {
    line.rfind("  ").map_or(0, |gap| gap + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, width: usize, expected: &str) {
        assert_eq!(wrap(text, width), expected);
    }

    #[test]
    fn sentences_go_on_below_their_beginning() {
        check("short\n", 20, "short\n");
        check(
            "  waits    one two three four\n",
            22,
            "  waits    one two\n           three four\n",
        );
        check(
            "warning: one two three\nshort",
            14,
            "warning: one\n  two three\nshort",
        );
        check("  one two three four", 14, "  one two\n    three four");
        // A word that is too long is left whole, so that it can be copied.
        check("  a  0123456789 b", 10, "  a  0123456789\n     b");
        check("ünü ünü ünü", 7, "ünü ünü\n  ünü");
    }

    #[test]
    fn a_table_s_rows_stay_whole() {
        let row = "p99  not known  1.61 times  2237 against 5687";
        check(row, 30, row);
        let cell = "eth0  2  tcx  NOT ATTACHED: there is none";
        check(
            cell,
            30,
            "eth0  2  tcx  NOT ATTACHED:\n              there is none",
        );
    }
}
