//! What others have typed or sent, shown to people: it cannot move the cursor, turn the text round, or fill
//! the screen. Pure.

use std::borrow::Cow;

/// Whether a character does something else than to be seen: controls, marks that change the direction of text
/// ([UAX #9](https://www.unicode.org/reports/tr9/)), and what has no width.
pub fn is_odd(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Text of several lines, with odd characters written out.
pub fn text(text: &str) -> Cow<'_, str> {
    let is_odd = |c| is_odd(c) && c != '\n' && c != '\t';
    match text.contains(is_odd) {
        true => Cow::Owned(escaped(text.chars(), is_odd)),
        false => Cow::Borrowed(text),
    }
}

/// One line of at most so many characters, with odd ones written out.
pub fn line(text: &str, most: usize) -> String {
    let mut line = escaped(text.chars().take(most), is_odd);
    if text.chars().nth(most).is_some() {
        line.push('…');
    }
    line
}

/// JSON, with odd characters written out as it has them (RFC 8259, 7).
pub fn json(json: &str) -> String {
    let mut plain = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            odd if is_odd(odd) && odd != '\n' => {
                for unit in odd.encode_utf16(&mut [0; 2]) {
                    plain.push_str(&format!("\\u{unit:04x}"));
                }
            }
            other => plain.push(other),
        }
    }
    plain
}

fn escaped(chars: impl Iterator<Item = char>, is_odd: impl Fn(char) -> bool) -> String {
    let mut escaped = String::new();
    for c in chars {
        match is_odd(c) {
            true => escaped.extend(c.escape_default()),
            false => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_odd_is_written_out() {
        assert_eq!(text("déjà vu\n\tü"), "déjà vu\n\tü");
        assert_eq!(text("a\u{1b}[31mb\u{202e}c"), "a\\u{1b}[31mb\\u{202e}c");
        assert_eq!(line("a\nb", 10), "a\\nb");
        assert_eq!(line("abcdef", 3), "abc…");
        assert_eq!(line("abc", 3), "abc");
    }

    proptest! {
        #[test]
        fn json_stays_what_it_was(given in any::<String>()) {
            let plain = json(&serde_json::to_string_pretty(&given).unwrap());
            prop_assert_eq!(serde_json::from_str::<String>(&plain).unwrap(), given);
            prop_assert!(!plain.contains(is_odd));
        }

        #[test]
        fn nothing_odd_is_left(given in any::<String>(), most in 0_usize..20) {
            prop_assert!(!line(&given, most).contains(is_odd));
            prop_assert!(!text(&given).replace(['\n', '\t'], "").contains(is_odd));
        }
    }
}
