//! What requests are sliced by.

use std::collections::{BTreeSet, HashMap};

use crate::frequent::Frequent;

/// Slices of one service that are told apart.
pub const MAX_SLICES: usize = 100;

/// Characters of a slice's name.
const MAX_CHARACTERS: usize = 64;

/// The slice of all that is not one of the [`MAX_SLICES`].
pub const OTHER: &str = "other";

/// Slices that are counted, to find out which of them take the place of others.
const CANDIDATES: usize = 1_000;

/// The slices of one service: those that the config names, and the most frequent of the others. A value that
/// is seen once or twice takes nobody's place.
#[derive(Clone, Debug)]
pub struct Slices {
    fixed: BTreeSet<String>,
    /// With how often each was seen.
    shown: HashMap<String, u64>,
    candidates: Frequent<String, u64>,
}

impl Slices {
    /// These always have their place.
    pub fn new(fixed: &[String]) -> Self {
        Self {
            fixed: fixed.iter().take(MAX_SLICES).cloned().collect(),
            shown: HashMap::new(),
            candidates: Frequent::new(CANDIDATES),
        }
    }

    /// `slice` as metrics and the rollout have it: itself, or [`OTHER`]; and the slice that has made room for it.
    pub fn admit(&mut self, slice: Option<String>) -> (Option<String>, Option<String>) {
        let Some(slice) = slice else {
            return (None, None);
        };
        if self.fixed.contains(&slice) {
            return (Some(slice), None);
        }
        if let Some(count) = self.shown.get_mut(&slice) {
            *count += 1;
            return (Some(slice), None);
        }
        if self.fixed.len() + self.shown.len() < MAX_SLICES {
            self.shown.insert(slice.clone(), 1);
            return (Some(slice), None);
        }
        let count = self.candidates.add(&slice, || 0);
        *count += 1;
        let count = *count;
        let rarest = self.shown.iter().min_by_key(|&(_, count)| *count);
        match rarest.filter(|&(_, &least)| count > 2 * least) {
            Some((rarest, _)) => {
                let gone = rarest.clone();
                self.shown.remove(&gone);
                self.shown.insert(slice.clone(), count);
                (Some(slice), Some(gone))
            }
            None => (Some(OTHER.to_owned()), None),
        }
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

    fn admit(slices: &mut Slices, slice: &str) -> String {
        slices.admit(Some(slice.to_owned())).0.unwrap()
    }

    #[test]
    fn after_a_hundred_slices_comes_other() {
        let mut slices = Slices::new(&[]);
        for number in 0..1000 {
            let admitted = admit(&mut slices, &format!("tenant-{number}"));
            let known = number < MAX_SLICES;
            assert_eq!(admitted == OTHER, !known, "{number}");
        }
        assert_eq!(admit(&mut slices, "tenant-7"), "tenant-7");
        assert_eq!(slices.admit(None), (None, None));
    }

    #[test]
    fn junk_makes_room_for_tenants_and_configured_ones_stay() {
        let mut slices = Slices::new(&["gold".to_owned()]);
        for number in 0..100_000 {
            admit(&mut slices, &format!("junk-{number}"));
            if number > 1_000 && number % 20 == 0 {
                admit(&mut slices, &format!("tenant-{}", number % 400 / 20));
            }
        }
        for number in 0..20 {
            let tenant = format!("tenant-{number}");
            assert_eq!(admit(&mut slices, &tenant), tenant);
        }
        assert_eq!(admit(&mut slices, "gold"), "gold");
        assert_eq!(admit(&mut slices, "junk-100001"), OTHER);
        assert_eq!(slices.fixed.len() + slices.shown.len(), MAX_SLICES);
    }
}
