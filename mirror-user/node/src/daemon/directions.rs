//! Whether both directions of a service are seen: requests without responses, or responses without
//! requests, are mirrored and come to nothing, and all else looks well. Pure.

use mirror_common::counters::Counters;
use mirror_common::tunnel::Direction;

/// So many packets of one direction say that the other one is missing: TCP acknowledges sooner.
const ENOUGH: u64 = 20;

/// One service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BothWays {
    /// Packets at the last look, by direction.
    last: Option<[u64; 2]>,
    /// Packets since both were seen.
    alone: [u64; 2],
}

impl BothWays {
    /// Takes in what has been counted of both so far.
    pub(super) fn see(&mut self, counters: [&Counters; 2]) {
        let now = counters.map(|counters| counters.packets.iter().sum::<u64>());
        let last = self.last.replace(now).unwrap_or(now);
        for ((alone, now), last) in self.alone.iter_mut().zip(now).zip(last) {
            *alone += now.saturating_sub(last);
        }
        if self.alone.iter().all(|&packets| packets > 0) {
            self.alone = [0, 0];
        }
    }

    /// The direction that is not seen, and how many packets of the other one have been meanwhile.
    pub(super) const fn missing(&self) -> Option<(Direction, u64)> {
        match self.alone {
            [0, responses] if responses >= ENOUGH => Some((Direction::Request, responses)),
            [requests, 0] if requests >= ENOUGH => Some((Direction::Response, requests)),
            _ => None,
        }
    }

    /// The same in words.
    pub(super) fn warning(&self, service: &str) -> Option<String> {
        let (direction, packets) = self.missing()?;
        Some(match direction {
            Direction::Request => format!(
                "{service}: {packets} packets of responses were seen, and none of requests: those come in by an interface that is not in `interfaces`, pass it by (a CNI's bpf_redirect_peer), or end at another program before ours; name the NIC where clients come in"
            ),
            Direction::Response => format!(
                "{service}: {packets} packets of requests were seen, and none of responses: those leave by an interface that is not in `interfaces`, or nobody answers; name that interface as well"
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets of requests and responses so far, look by look, and what is missing then.
    #[track_caller]
    fn check(looks: &[[u64; 2]], expected: Option<Direction>) {
        let mut directions = BothWays::default();
        for packets in looks {
            let counters = packets.map(|packets| {
                let mut counters = Counters::default();
                counters.packets[0] = packets;
                counters
            });
            directions.see([&counters[0], &counters[1]]);
        }
        let missing = directions.missing().map(|(direction, _)| direction);
        assert_eq!(missing, expected, "{looks:?}");
    }

    #[test]
    fn one_direction_alone_is_told() {
        check(&[[5, 5], [10, 5], [24, 5]], None);
        check(&[[5, 5], [10, 5], [25, 5]], Some(Direction::Response));
        check(&[[0, 0], [0, 300]], Some(Direction::Request));
        check(&[[0, 0], [0, 300], [1, 300]], None);
        check(&[[500, 0]], None);
        check(&[[0, 0], [19, 0], [19, 1], [38, 1]], None);
    }
}
