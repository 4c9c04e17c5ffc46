//! Figures as people read them.

use mirror_wire::body::short;

/// A number in groups of three digits.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A share in percent; only all is 100 %, and only nothing is 0 %.
pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let text = format!("{percent:.2}");
    match text.as_str() {
        "100.00" if share < 1.0 => ">99.99 %".into(),
        "0.00" if share > 0.0 => "<0.01 %".into(),
        _ => format!("{text} %"),
    }
}

/// A difference of shares in percentage points.
pub(super) fn points(difference: f64) -> String {
    // Rounded before it is printed: there is no -0.00.
    let points = (difference * 1e4).round() / 100.0 + 0.0;
    format!("{points:+.2}")
}

pub(super) fn milliseconds(value: f64) -> String {
    let decimals = match value {
        v if v < 10.0 => 2,
        v if v < 1000.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// A number to four significant digits.
pub(super) fn figure(value: f64) -> String {
    let rounded = format!("{value:.3e}").parse().unwrap_or(value);
    short(rounded)
}

pub(super) fn cut(text: &str) -> String {
    match text.char_indices().nth(32) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A span of time to the second, the date said once where it is one.
pub(super) fn span(from: jiff::Timestamp, to: jiff::Timestamp) -> String {
    let (from, to) = (second(from), second(to));
    let end = match (from.split_once(' '), to.split_once(' ')) {
        (Some((day, _)), Some((last_day, time))) if day == last_day => time,
        _ => &to,
    };
    format!("{from} to {end}")
}

/// A time to the second, in UTC.
pub(super) fn second(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}
