//! What several rounds say together.

use std::fmt;

/// The median of some values, and how far apart they lie.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
}

impl Spread {
    /// Of at least one value; all NaN of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
        let last = sorted.len().saturating_sub(1);
        Self {
            // With an even number of values the mean of the two in the middle.
            median: f64::midpoint(at(last / 2), at(last - last / 2)),
            least: at(0),
            most: at(last),
        }
    }
}

/// `0.97 (0.95-0.99)`, with the formatter's precision.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(0);
        let Self {
            median,
            least,
            most,
        } = self;
        write!(f, "{median:.digits$} ({least:.digits$}-{most:.digits$})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ends() {
        let check = |values: &[f64], expected: &str| {
            let spread = Spread::of(values.iter().copied());
            assert_eq!(format!("{spread:.1}"), expected);
        };
        check(&[3.0, 1.0, 2.0], "2.0 (1.0-3.0)");
        check(&[4.0, 1.0, 2.0, 3.0], "2.5 (1.0-4.0)");
        check(&[7.0], "7.0 (7.0-7.0)");
        check(&[], "NaN (NaN-NaN)");
    }
}
