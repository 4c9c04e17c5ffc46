//! What the comparisons with stable's answers say for a rollout: each request's two fates, paired.
//! Pure.
//!
//! The canary's answers are of another version, and requests without production's answer have no
//! pair: neither is evidence.

use std::collections::BTreeMap;
use std::time::Duration;

use mirror_api::summary::{ErrorPairs, NoisePairs, SliceSummary};
use mirror_common::histogram;
use mirror_common::tunnel::Arm;
use mirror_wire::message::{Exchange, Response, ShadowError};

use super::compare::{Comparison, OTHER, Verdict};
use super::noise;

/// A status from which on an answer is an error: the server's own fault (RFC 9110, 15.6).
const FAILED: u16 = 500;

/// Comparisons of one service, since the agent's start.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    pairs: ErrorPairs,
    /// Requests by the buckets of both latencies, production's first. There are 432 x 432 at most;
    /// two servers fill a few thousand.
    latency: BTreeMap<(u16, u16), u64>,
    /// Requests that are not among them, since they had to wait for the shadow.
    saturated: u64,
    /// Requests that the old version, or the shadow, answered twice.
    control: NoisePairs,
    repeat: NoisePairs,
    /// As many as [`super::compare::Slices`] admits.
    slices: BTreeMap<String, Slice>,
}

#[derive(Clone, Debug, Default)]
struct Slice {
    verdicts: [u64; Verdict::ALL.len()],
    pairs: ErrorPairs,
    control: NoisePairs,
}

impl Evidence {
    /// Takes in a comparison; its slice is one that was admitted.
    pub fn add(&mut self, exchange: &Exchange, comparison: &Comparison) {
        if exchange.arm != Arm::Stable {
            return;
        }
        let failed = [
            exchange.production.status >= FAILED,
            fails(&exchange.shadow),
        ];
        self.pairs.add(failed);
        let disagree = |itself: Option<Verdict>| noise::disagree(itself?, comparison.verdict);
        let control = disagree(comparison.control);
        self.control.add(control);
        self.repeat.add(disagree(comparison.repeat));
        if exchange.request.saturated {
            self.saturated += 1;
        } else if let Some(shadow) = exchange.shadow_first_byte()
            && !exchange.request.late
        {
            let pair = (bucket(exchange.production_first_byte()), bucket(shadow));
            *self.latency.entry(pair).or_default() += 1;
        }
        if let Some(name) = &comparison.slice {
            if !self.slices.contains_key(name) {
                self.slices.insert(name.clone(), Slice::default());
            }
            if let Some(slice) = self.slices.get_mut(name) {
                slice.verdicts[comparison.verdict as usize] += 1;
                slice.pairs.add(failed);
                slice.control.add(control);
            }
        }
    }

    /// A slice is not told apart any more: what is known of it is [`OTHER`]'s.
    pub fn fold(&mut self, slice: &str) {
        let Some(gone) = self.slices.remove(slice) else {
            return;
        };
        let other = self.slices.entry(OTHER.to_owned()).or_default();
        for (sum, count) in other.verdicts.iter_mut().zip(gone.verdicts) {
            *sum += count;
        }
        let (sum, more) = (&mut other.pairs, gone.pairs);
        sum.both += more.both;
        sum.production_only += more.production_only;
        sum.shadow_only += more.shadow_only;
        sum.neither += more.neither;
        let (sum, more) = (&mut other.control, gone.control);
        sum.both += more.both;
        sum.itself += more.itself;
        sum.versions += more.versions;
        sum.neither += more.neither;
    }

    /// Who disagreed, on requests that the control answered too.
    pub fn control(&self) -> NoisePairs {
        self.control
    }

    /// Who disagreed, on requests that the shadow answered twice.
    pub fn repeat(&self) -> NoisePairs {
        self.repeat
    }

    /// Who failed.
    pub fn pairs(&self) -> ErrorPairs {
        self.pairs
    }

    /// Requests by both latencies' buckets, see [`mirror_api::summary::ServiceSummary::latency_pairs`].
    pub fn latency_pairs(&self) -> Vec<(u16, u16, u64)> {
        let pairs = self.latency.iter();
        pairs.map(|(&(p, s), &count)| (p, s, count)).collect()
    }

    /// See [`mirror_api::summary::ServiceSummary::saturated`].
    pub fn saturated(&self) -> u64 {
        self.saturated
    }

    /// The slices by name.
    pub fn slices(&self) -> Vec<SliceSummary> {
        let summary = |(name, slice): (&String, &Slice)| SliceSummary {
            slice: name.clone(),
            verdicts: Verdict::ALL
                .iter()
                .zip(slice.verdicts)
                .map(|(verdict, count)| (verdict.label().to_owned(), count))
                .collect(),
            pairs: slice.pairs,
            control: slice.control,
        };
        self.slices.iter().map(summary).collect()
    }
}

fn fails(shadow: &Result<Response, ShadowError>) -> bool {
    match shadow {
        Ok(answer) => answer.status >= FAILED,
        Err(_) => true,
    }
}

/// There are 432 buckets.
fn bucket(first_byte: Duration) -> u16 {
    let ns = u64::try_from(first_byte.as_nanos()).unwrap_or(u64::MAX);
    histogram::Latency::bucket(ns) as u16
}

#[cfg(test)]
mod tests {
    use mirror_wire::fixtures::response;

    use super::*;
    use crate::compare::fixture::exchange;

    const MS: u64 = 1_000_000;

    /// A comparison; latencies in milliseconds, the shadow's answer an error where it has none.
    fn add(
        evidence: &mut Evidence,
        arm: Arm,
        slice: Option<&str>,
        production: (u16, u64),
        shadow: Result<(u16, u64), ShadowError>,
    ) {
        let answer = |from_ns: u64, (status, ms): (u16, u64)| {
            let mut answer = response(status, &[], b"");
            answer.first_byte_ns = from_ns + ms * MS;
            answer
        };
        // The request ends at 5 ms at the tap, and is written to the shadow at 6 ms.
        let shadow = shadow.map(|shadow| answer(6 * MS, shadow));
        let mut exchange = exchange(answer(5 * MS, production), shadow);
        exchange.arm = arm;
        let verdict = match &exchange.shadow {
            Err(_) => Verdict::Error,
            Ok(shadow) if shadow.status == production.0 => Verdict::Match,
            Ok(_) => Verdict::Different,
        };
        let comparison = Comparison {
            verdict,
            slice: slice.map(str::to_owned),
            ..Comparison::default()
        };
        evidence.add(&exchange, &comparison);
    }

    fn pairs(both: u64, production_only: u64, shadow_only: u64, neither: u64) -> ErrorPairs {
        ErrorPairs {
            both,
            production_only,
            shadow_only,
            neither,
        }
    }

    #[test]
    fn an_error_is_a_5xx_or_no_answer_of_the_shadow_s() {
        let check = |production, shadow: Result<u16, ShadowError>, expected| {
            let mut evidence = Evidence::default();
            let shadow = shadow.map(|status| (status, 1));
            add(&mut evidence, Arm::Stable, None, (production, 1), shadow);
            assert_eq!(evidence.pairs(), expected, "{production} {shadow:?}");
        };
        check(200, Ok(200), pairs(0, 0, 0, 1));
        check(404, Ok(499), pairs(0, 0, 0, 1));
        check(500, Ok(599), pairs(1, 0, 0, 0));
        check(503, Ok(404), pairs(0, 1, 0, 0));
        check(200, Ok(500), pairs(0, 0, 1, 0));
        check(200, Err(ShadowError::Timeout), pairs(0, 0, 1, 0));
        check(500, Err(ShadowError::Connect), pairs(1, 0, 0, 0));
    }

    #[test]
    fn both_latencies_of_a_request_stay_together() {
        let mut evidence = Evidence::default();
        for shadow in [
            Ok((200, 30)),
            Ok((200, 2)),
            Ok((200, 30)),
            Err(ShadowError::Closed),
        ] {
            add(&mut evidence, Arm::Stable, None, (200, 10), shadow);
        }
        let [two, ten, thirty] = [2, 10, 30].map(|ms| bucket(Duration::from_millis(ms)));
        let expected = [(ten, two, 1), (ten, thirty, 2)];
        assert_eq!(evidence.latency_pairs(), expected);
    }

    #[test]
    fn the_latency_of_a_shadow_that_cannot_keep_up_is_none() {
        let mut evidence = Evidence::default();
        let mut exchange = exchange(response(200, &[], b""), Ok(response(200, &[], b"")));
        let comparison = crate::compare::Comparer::new(
            &crate::compare::fixture::compare_config(),
            &crate::compare::fixture::record_config(),
        )
        .compare(&exchange);
        for saturated in [true, true, false] {
            exchange.request.saturated = saturated;
            evidence.add(&exchange, &comparison);
        }
        let counted: u64 = evidence.latency_pairs().iter().map(|(_, _, n)| n).sum();
        assert_eq!((evidence.saturated(), counted), (2, 1));
        assert_eq!(evidence.pairs(), pairs(0, 0, 0, 3));
    }

    #[test]
    fn a_slice_has_its_own_figures() {
        let mut evidence = Evidence::default();
        let mut stable =
            |slice, shadow| add(&mut evidence, Arm::Stable, slice, (200, 1), Ok((shadow, 1)));
        stable(Some("b"), 500);
        stable(Some("a"), 200);
        stable(Some("b"), 200);
        stable(None, 200);
        add(
            &mut evidence,
            Arm::Canary,
            Some("a"),
            (200, 1),
            Ok((500, 1)),
        );
        let slice = |name: &str, [r#match, different, error]: [u64; 3], pairs| SliceSummary {
            slice: name.to_owned(),
            verdicts: [
                ("match", r#match),
                ("different", different),
                ("error", error),
                ("both_failed", 0),
            ]
            .map(|(name, count)| (name.to_owned(), count))
            .into(),
            pairs,
            control: NoisePairs::default(),
        };
        let expected = [
            slice("a", [1, 0, 0], pairs(0, 0, 0, 1)),
            slice("b", [1, 1, 0], pairs(0, 0, 1, 1)),
        ];
        assert_eq!(evidence.slices(), expected);
        assert_eq!(evidence.pairs(), pairs(0, 0, 1, 3));
        evidence.fold("b");
        evidence.fold("never seen");
        let expected = [
            slice("a", [1, 0, 0], pairs(0, 0, 0, 1)),
            slice(OTHER, [1, 1, 0], pairs(0, 0, 1, 1)),
        ];
        assert_eq!(evidence.slices(), expected);
    }

    #[test]
    fn a_second_answer_is_counted_beside_what_the_versions_say() {
        use Verdict::{BothFailed, Different, Match};
        let mut evidence = Evidence::default();
        let exchange = exchange(response(200, &[], b""), Ok(response(200, &[], b"")));
        let mut add = |verdict, control, repeat| {
            let comparison = Comparison {
                verdict,
                control,
                repeat,
                slice: Some("blue".to_owned()),
                ..Comparison::default()
            };
            evidence.add(&exchange, &comparison);
        };
        add(Match, None, None);
        add(Different, Some(Match), Some(Different));
        add(Match, Some(Different), None);
        add(Different, Some(Different), None);
        add(Match, Some(Match), Some(Match));
        add(BothFailed, Some(Different), Some(Match));
        let pairs = |both, itself, versions, neither| NoisePairs {
            both,
            itself,
            versions,
            neither,
        };
        assert_eq!(evidence.control(), pairs(1, 1, 1, 1));
        assert_eq!(evidence.repeat(), pairs(1, 0, 0, 1));
        assert_eq!(evidence.slices()[0].control, evidence.control());
        evidence.fold("blue");
        assert_eq!(evidence.slices()[0].control, pairs(1, 1, 1, 1));
    }
}
