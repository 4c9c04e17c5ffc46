//! Taps' names and numbers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::shadow::message::TapId;

/// Taps at once; what comes of more is not listened to.
const MAX_TAPS: usize = 4096;

/// Who has which number. Shared by all ways in: the same name is the same tap, however it comes.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster(Arc<Mutex<HashMap<String, TapId>>>);

impl Roster {
    /// The number of the tap with this name, a new one where the name is new; nothing when there
    /// are too many.
    pub(super) fn number(&self, name: &str) -> Option<TapId> {
        let mut numbers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(&known) = numbers.get(name) {
            return Some(known);
        }
        let next = u32::try_from(numbers.len() + 1).ok()?;
        if numbers.len() >= MAX_TAPS {
            return None;
        }
        numbers.insert(name.to_owned(), TapId(next));
        Some(TapId(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_number_and_there_is_an_end_of_numbers() {
        let roster = Roster::default();
        assert_eq!(roster.number("a"), Some(TapId(1)));
        assert_eq!(roster.number("b"), Some(TapId(2)));
        assert_eq!(roster.clone().number("a"), Some(TapId(1)));
        for n in 2..MAX_TAPS {
            assert!(roster.number(&n.to_string()).is_some());
        }
        assert_eq!(roster.number("one too many"), None);
        assert_eq!(roster.number("b"), Some(TapId(2)));
    }
}
