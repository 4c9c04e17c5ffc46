//! What requests are sliced by.

use std::collections::HashSet;

/// Slices of one service that are told apart.
pub const MAX_SLICES: usize = 100;

/// Characters of a slice's name.
const MAX_CHARACTERS: usize = 64;

/// The slice of all that came after the first [`MAX_SLICES`].
pub const OTHER: &str = "other";

/// The slices of one service that were seen so far; one client cannot make them grow without end.
#[derive(Clone, Debug, Default)]
pub struct Slices(HashSet<String>);

impl Slices {
    /// `slice` as metrics and the rollout have it: itself while there is room, [`OTHER`] from then on.
    pub fn admit(&mut self, slice: Option<String>) -> Option<String> {
        let slice = slice?;
        if self.0.contains(&slice) {
            return Some(slice);
        }
        if self.0.len() >= MAX_SLICES {
            return Some(OTHER.to_owned());
        }
        self.0.insert(slice.clone());
        Some(slice)
    }
}

/// A slice's name from a header's or a member's value.
pub(super) fn name(value: &str) -> Option<String> {
    let name: String = value.trim().chars().take(MAX_CHARACTERS).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_hundred_slices_comes_other() {
        let mut slices = Slices::default();
        for number in 0..1000 {
            let admitted = slices.admit(Some(format!("tenant-{number}"))).unwrap();
            let known = number < MAX_SLICES;
            assert_eq!(admitted == OTHER, !known, "{number}");
        }
        assert_eq!(
            slices.admit(Some("tenant-7".into())).as_deref(),
            Some("tenant-7")
        );
        assert_eq!(slices.admit(None), None);
    }
}
