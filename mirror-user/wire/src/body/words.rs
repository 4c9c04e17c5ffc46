//! Values as people read them, side by side.

use super::json::Number;

/// Characters of a value that a difference quotes.
const QUOTED: usize = 60;

/// Characters that stand before the first difference, where the beginning is left out.
const BEFORE: usize = 16;

/// Both numbers, as short as they can be and still be told apart.
pub fn number_pair(a: Number, b: Number) -> (String, String) {
    let (short_a, short_b) = (rounded(a), rounded(b));
    let whole = a.is_integer() || b.is_integer();
    if whole || (short_a == short_b && a != b) {
        (exact(a), exact(b))
    } else {
        (short_a, short_b)
    }
}

fn rounded(number: Number) -> String {
    match number {
        Number::Float(value) => short(value),
        whole => exact(whole),
    }
}

fn exact(number: Number) -> String {
    match number {
        Number::Natural(value) => value.to_string(),
        Number::Negative(value) => value.to_string(),
        Number::Float(value) => plain(value, format!("{value}")),
    }
}

/// A number to six significant digits.
pub fn short(value: f64) -> String {
    let rounded: f64 = format!("{value:.5e}").parse().unwrap_or(value);
    plain(rounded, format!("{rounded}"))
}

/// `decimal`, or the scientific form where that is far shorter.
fn plain(value: f64, decimal: String) -> String {
    if value != 0.0 && !(1e-4..1e17).contains(&value.abs()) {
        format!("{value:e}")
    } else {
        decimal
    }
}

/// Both strings, quoted; long ones are cut to the surroundings of the first difference.
pub fn excerpts(a: &str, b: &str) -> (String, String) {
    let same = a
        .char_indices()
        .zip(b.chars())
        .take_while(|((_, a), b)| a == b);
    let alike = same.count();
    let long = a.chars().nth(QUOTED).is_some() || b.chars().nth(QUOTED).is_some();
    let start = if long && alike > BEFORE * 2 {
        alike - BEFORE
    } else {
        0
    };
    (excerpt(a, start), excerpt(b, start))
}

fn excerpt(text: &str, start: usize) -> String {
    let mut rest = text.chars().skip(start);
    let cut: String = rest.by_ref().take(QUOTED).collect();
    let before = if start > 0 { "…" } else { "" };
    let after = if rest.next().is_some() { "…" } else { "" };
    format!("{before}{cut:?}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_unless_that_hides_the_difference() {
        let check = |a, b, expected: (&str, &str)| {
            let (a, b) = number_pair(Number::Float(a), Number::Float(b));
            assert_eq!((a.as_str(), b.as_str()), expected);
        };
        check(0.5, 0.75, ("0.5", "0.75"));
        check(0.123_456_789, 0.2, ("0.123457", "0.2"));
        check(0.123_456_789, 0.123_456_788, ("0.123456789", "0.123456788"));
        check(1e300, 2e-9, ("1e300", "2e-9"));
        check(0.0, -1234.5, ("0", "-1234.5"));
    }

    #[test]
    fn long_strings_are_cut_around_the_difference() {
        let same = "x".repeat(100);
        let (a, b) = excerpts(&format!("{same}cat"), &format!("{same}dog"));
        assert_eq!(a, format!("…\"{}cat\"", "x".repeat(16)));
        assert_eq!(b, format!("…\"{}dog\"", "x".repeat(16)));
        assert_eq!(
            excerpts("yes\n", "no"),
            ("\"yes\\n\"".into(), "\"no\"".into())
        );
    }
}
