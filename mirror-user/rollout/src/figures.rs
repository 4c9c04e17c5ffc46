//! Shares in words.

/// 0.005 is 0.5 %, and not 0.5000000000000001 %.
pub(super) fn percent(part: f64) -> String {
    format!("{} %", hundredths(part))
}

/// A difference between two shares: 1.5 % is 0.5 percentage points more than 1 %, and half as much again.
pub(super) fn points(difference: f64) -> String {
    format!("{} percentage points", hundredths(difference))
}

fn hundredths(part: f64) -> f64 {
    (part * 1e8).round() / 1e6
}
