//! Which requests are slow, or have a short response, beside stable's of late. Pure.
//!
//! What is counted of each client has to say so in a few numbers, and by the same marks for all clients of both
//! versions. They need not be exact: what is held against them is how clients differ, and not how the versions do.

use mirror_common::histogram::Latency;

use super::tally::size_as_ns;

/// A quantile of a stream in constant memory, in buckets of [`Latency`]: a step up for what lies above, and down for
/// what does not, in such a proportion that they cancel out at the quantile (Ma, Muthukrishnan and Sandler 2013).
#[derive(Clone, Copy, Debug)]
struct Mark {
    quantile: f64,
    bucket: Option<f64>,
}

impl Mark {
    const fn of(quantile: f64) -> Self {
        Self {
            quantile,
            bucket: None,
        }
    }

    /// How much above the mark this lies, in buckets.
    fn above(&mut self, ns: u64, learns: bool) -> f64 {
        let bucket = Latency::bucket(ns) as f64;
        let mark = self.bucket.unwrap_or(bucket);
        if learns {
            let step = if bucket > mark {
                self.quantile
            } else {
                self.quantile - 1.0
            };
            self.bucket = Some((mark + step).max(0.0));
        }
        bucket - mark
    }
}

/// The marks of one service.
#[derive(Clone, Debug)]
pub(super) struct Marks {
    /// For how long stable's clients wait for a body, and for its end: half of them, and 99 %.
    slow: [[Mark; 2]; 2],
    /// How long its bodies are, all but 5 %.
    short: Mark,
}

impl Default for Marks {
    fn default() -> Self {
        let slow = [0.5, 0.99].map(Mark::of);
        Self {
            slow: [slow; 2],
            short: Mark::of(0.05),
        }
    }
}

impl Marks {
    /// Whether a client waits for long, for the body and for its end; stable's answers move the marks.
    pub(super) fn slow(&mut self, waited_ns: [Option<u64>; 2], learns: bool) -> [[bool; 2]; 2] {
        let mut found = [[false; 2]; 2];
        for ((found, marks), ns) in found.iter_mut().zip(&mut self.slow).zip(waited_ns) {
            for (found, mark) in found.iter_mut().zip(marks) {
                *found = ns.is_some_and(|ns| mark.above(ns, learns) > 0.0);
            }
        }
        found
    }

    /// Whether a body is short. Where all are alike the mark lies less than a bucket off.
    pub(super) fn short(&mut self, bytes: u64, learns: bool) -> bool {
        self.short.above(size_as_ns(bytes), learns) <= -1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Latencies between 10 and 30 ms, in any order.
    fn ns(at: u64) -> u64 {
        10_000_000 + at.wrapping_mul(7_919) % 20_000 * 1_000
    }

    fn learn(marks: &mut Marks, count: u64, factor: u64) {
        for at in 0..count {
            marks.slow([Some(ns(at) * factor); 2], true);
        }
    }

    #[test]
    fn a_mark_comes_to_its_quantile_and_follows_it() {
        let mut marks = Marks::default();
        for factor in [1, 3] {
            learn(&mut marks, 20_000, factor);
            let slow = (0..20_000).map(|at| marks.slow([Some(ns(at) * factor); 2], false)[0]);
            let counts = slow.fold([0; 2], |[half, few], [p50, p99]| {
                [half + u32::from(p50), few + u32::from(p99)]
            });
            assert!((7_000..13_000).contains(&counts[0]), "{counts:?}");
            assert!(counts[1] < 1_600, "{counts:?}");
        }
    }

    #[test]
    fn the_canary_moves_no_mark() {
        let mut marks = Marks::default();
        learn(&mut marks, 1_000, 1);
        let before = format!("{marks:?}");
        let slow = marks.slow([Some(u64::MAX), None], false);
        assert_eq!(slow, [[true; 2], [false; 2]]);
        assert!((0..1_000).all(|_| !marks.short(0, false)));
        assert_eq!(format!("{marks:?}"), before);
    }

    #[test]
    fn a_short_body_is_shorter_than_nearly_all() {
        let mut marks = Marks::default();
        for _ in 0..1_000 {
            marks.short(3_000, true);
        }
        assert!(marks.short(0, false) && !marks.short(3_000, false));
    }
}
