//! The most frequent of more things than can be told apart: Space-Saving (Metwally, Agrawal and El Abbadi,
//! "Efficient Computation of Frequent and Top-k Elements in Data Streams", ICDT 2005). Pure.
//!
//! Whatever makes up more than 1 / capacity of all that came is among those that are kept, whenever it
//! came first. A new thing takes the place of the one that was seen least, and inherits its count as the
//! most that it may have been missed.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// Things as they come, at most so many at once.
#[derive(Clone, Debug)]
pub(crate) struct Frequent<K, V> {
    capacity: usize,
    places: HashMap<K, usize>,
    kept: Vec<Kept<K, V>>,
    /// Every place by its estimate, once all are taken.
    order: BTreeSet<(u64, usize)>,
}

#[derive(Clone, Debug)]
struct Kept<K, V> {
    key: K,
    /// How often it was seen since it is here.
    count: u64,
    /// How often it may have been seen before.
    missed: u64,
    value: V,
}

impl<K, V> Kept<K, V> {
    fn estimate(&self) -> u64 {
        self.count + self.missed
    }
}

/// One thing in the end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Counted<K, V> {
    pub(crate) key: K,
    /// How often it was seen, those apart that were missed.
    pub(crate) count: u64,
    /// At most so often it came and was not counted: 0 where nothing ever had to make room.
    pub(crate) missed: u64,
    pub(crate) value: V,
}

impl<K: Clone + Eq + Hash + Ord, V> Frequent<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            places: HashMap::new(),
            kept: Vec::new(),
            order: BTreeSet::new(),
        }
    }

    /// Counts a thing, and gives what is known of it since it is here; a new one begins with `fresh`.
    pub(crate) fn add<Q>(&mut self, key: &Q, fresh: impl FnOnce() -> V) -> &mut V
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ToOwned<Owned = K> + ?Sized,
    {
        let place = match self.places.get(key) {
            Some(&place) => {
                self.count(place);
                place
            }
            None => self.admit(key.to_owned(), fresh()),
        };
        &mut self.kept[place].value
    }

    fn count(&mut self, place: usize) {
        let kept = &mut self.kept[place];
        let before = kept.estimate();
        kept.count += 1;
        if self.order.remove(&(before, place)) {
            self.order.insert((before + 1, place));
        }
    }

    fn admit(&mut self, key: K, value: V) -> usize {
        let fresh = Kept {
            key: key.clone(),
            count: 1,
            missed: 0,
            value,
        };
        if self.kept.len() < self.capacity {
            self.kept.push(fresh);
            self.places.insert(key, self.kept.len() - 1);
            return self.kept.len() - 1;
        }
        if self.order.is_empty() {
            let all = self.kept.iter().enumerate();
            self.order = all.map(|(place, kept)| (kept.estimate(), place)).collect();
        }
        let (least, place) = self.order.pop_first().unwrap_or_default();
        let missed = least;
        let gone = std::mem::replace(&mut self.kept[place], Kept { missed, ..fresh });
        self.places.remove(&gone.key);
        self.places.insert(key, place);
        self.order.insert((least + 1, place));
        place
    }

    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// All that are kept, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.kept.iter().map(|kept| (&kept.key, &kept.value))
    }

    /// The most frequent first.
    pub(crate) fn finish(self) -> Vec<Counted<K, V>> {
        let counted = self.kept.into_iter().map(|kept| Counted {
            key: kept.key,
            count: kept.count,
            missed: kept.missed,
            value: kept.value,
        });
        let mut counted: Vec<_> = counted.collect();
        counted.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.key.cmp(&b.key)));
        counted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(capacity: usize, things: &[u32]) -> Frequent<String, u64> {
        let mut frequent = Frequent::new(capacity);
        for thing in things {
            *frequent.add(thing.to_string().as_str(), || 0) += 1;
        }
        frequent
    }

    #[test]
    fn what_comes_late_and_often_is_kept() {
        // A thousand rare things first, and one that makes up a tenth among as many again.
        let mut things: Vec<u32> = (1..1000).collect();
        things.extend((1000..2000).flat_map(|rare| [rare; 9].into_iter().take(1).chain([0])));
        let counted = of(20, &things).finish();
        assert_eq!(counted.len(), 20);
        assert_eq!(
            (counted[0].key.as_str(), counted[0].value),
            ("0", counted[0].count)
        );
        assert!(counted[0].count > 900, "{counted:?}");
    }

    #[test]
    fn few_things_are_counted_exactly() {
        let counted = of(3, &[7, 8, 7, 9, 7, 8]).finish();
        let counted: Vec<_> = counted
            .iter()
            .map(|c| (&*c.key, c.count, c.missed))
            .collect();
        assert_eq!(counted, [("7", 3, 0), ("8", 2, 0), ("9", 1, 0)]);
    }

    proptest! {
        /// Counts lie between what is certain and what is possible, and nothing frequent is missing.
        #[test]
        fn counts_are_bounded(things in proptest::collection::vec(0_u32..30, 0..400), capacity in 1_usize..12) {
            let counted = of(capacity, &things).finish();
            let real = |key: &str| things.iter().filter(|t| t.to_string() == *key).count() as u64;
            for Counted { key, count, missed, value } in &counted {
                prop_assert!(*count <= real(key) && real(key) <= count + missed);
                prop_assert_eq!(count, value);
            }
            for thing in 0..30_u32 {
                let key = thing.to_string();
                let is_frequent = real(&key) as f64 > things.len() as f64 / capacity as f64;
                let is_kept = counted.iter().any(|counted| counted.key == key);
                prop_assert!(is_kept || !is_frequent, "{} of {:?}", key, things);
            }
        }
    }
}
