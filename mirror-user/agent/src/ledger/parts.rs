//! Which bytes of one copy have arrived, where it came in several datagrams.

/// The most ranges: what would be one more is not counted.
const MAX_RANGES: usize = 64;

/// Disjoint ranges of TCP sequence numbers, relative to the first one that arrived.
///
/// Invariant: ranges are in order, not empty and do not touch. Super-packets have at most a few
/// dozen segments, and those come in order: there is one range nearly always.
#[derive(Debug, Default)]
pub(super) struct Parts {
    origin: Option<u32>,
    ranges: Vec<(i64, i64)>,
}

impl Parts {
    /// Adds `length` bytes from `sequence` on; returns how many of them are new.
    pub(super) fn insert(&mut self, sequence: u32, length: u32) -> u32 {
        let origin = *self.origin.get_or_insert(sequence);
        let mut start = i64::from(sequence.wrapping_sub(origin).cast_signed());
        let mut end = start + i64::from(length);
        let mut known = 0;
        let (from, to) = (start, end);
        let first = self.ranges.partition_point(|range| range.1 < start);
        let mut last = first;
        while let Some(range) = self.ranges.get(last).filter(|range| range.0 <= end) {
            known += (range.1.min(to) - range.0.max(from)).max(0);
            start = start.min(range.0);
            end = end.max(range.1);
            last += 1;
        }
        if first == last && self.ranges.len() >= MAX_RANGES {
            return 0;
        }
        if end > start {
            self.ranges.splice(first..last, [(start, end)]);
        }
        length - known as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn counts_every_byte_once(
            origin: u32,
            inserted in proptest::collection::vec((0_u32..200, 0_u32..60), 0..30),
        ) {
            let mut parts = Parts::default();
            let mut seen = std::collections::BTreeSet::new();
            for (start, length) in inserted {
                let new = (start..start + length).filter(|&byte| seen.insert(byte)).count();
                prop_assert_eq!(parts.insert(origin.wrapping_add(start), length) as usize, new);
            }
        }
    }
}
