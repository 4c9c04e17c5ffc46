//! Class distributions: probabilities of one label each, for one instance or for a batch of them.

/// The label of one instance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Label {
    /// Its index in the distribution: the first largest probability.
    pub(crate) index: usize,
    /// Its probability.
    pub(crate) probability: f64,
}

/// The labels that `numbers` give, where they are class distributions: one, or rows of equal length
/// one after the other, as the Open Inference Protocol flattens a batch. A row has two or more
/// numbers, none below 0, and a sum of one.
pub(crate) fn labels(numbers: &[f64]) -> Option<Vec<Label>> {
    let sum: f64 = numbers.iter().sum();
    // A sum that is no number, or negative, becomes 0 rows.
    let rows = sum.round() as usize;
    if rows == 0 || !numbers.len().is_multiple_of(rows) || numbers.len() / rows < 2 {
        return None;
    }
    numbers.chunks(numbers.len() / rows).map(label).collect()
}

fn label(row: &[f64]) -> Option<Label> {
    let mut label: Option<Label> = None;
    for (index, &probability) in row.iter().enumerate() {
        if probability < 0.0 {
            return None;
        }
        if label.is_none_or(|label| probability > label.probability) {
            label = Some(Label { index, probability });
        }
    }
    label.filter(|_| is_one(row.iter().sum()))
}

/// Whether probabilities sum up to one, as far as rounded ones can.
pub(crate) fn is_one(sum: f64) -> bool {
    (sum - 1.0).abs() <= 1e-3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(numbers: &[f64], expected: Option<&[usize]>) {
        let labels = labels(numbers);
        let indexes = labels.map(|labels| labels.iter().map(|label| label.index).collect());
        assert_eq!(indexes, expected.map(<[usize]>::to_vec), "{numbers:?}");
    }

    #[test]
    fn distributions_are_told_from_other_numbers() {
        check(&[], None);
        check(&[1.0], None);
        check(&[0.25, 0.75], Some(&[1]));
        check(&[0.5, 0.5], Some(&[0]));
        check(&[0.333, 0.333, 0.333], Some(&[0]));
        check(&[0.3, 0.3], None);
        check(&[-0.5, 1.5], None);
        check(&[0.25, 0.75, 1.0, 0.0, 0.5, 0.5], Some(&[1, 0, 0]));
        check(&[0.5, 1.5], None);
        check(&[1.0, 1.0], None);
        check(&[1.0, 1.0, 0.0, 0.0], None);
        check(&[1e300, 1e300, 1e300], None);
    }
}
