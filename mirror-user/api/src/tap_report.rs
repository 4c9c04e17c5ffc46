//! What a tap says of itself about once a second, over its connection to the agent.
//!
//! The agent closes its packet ledger with it and answers, which tells the daemon that the agent lives.
//! Every figure counts from the tap's start.

use mirror_common::counters::Sent;
use serde::{Deserialize, Serialize};

/// What a tap has sent to one agent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TapReport {
    /// Another one = another life of the tap's counters: they start from nothing.
    pub boot: u64,
    /// Counts the reports of one life.
    pub number: u64,
    /// When it was sent, on the tap's monotonic clock, in nanoseconds.
    pub sent_at_ns: u64,
    /// What each lane has sent since the tap's start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lanes: Vec<LaneSent>,
    /// What is mirrored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceReport>,
}

/// What one lane has sent to this agent. A lane is what numbers its copies by itself: one of a CPU's two rings; where
/// copies are datagrams, the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneSent {
    /// The lane's number.
    pub lane: u16,
    /// Copies = the next copy's sequence number; in datagrams that wraps at 2^32.
    pub copies: u64,
    /// Their payload bytes.
    pub bytes: u64,
}

impl LaneSent {
    /// Of each lane that has sent anything.
    pub fn of(lanes: &[Sent]) -> Vec<Self> {
        let lanes = (0..).zip(lanes).filter(|(_, sent)| sent.copies > 0);
        lanes
            .map(|(lane, sent)| Self {
                lane,
                copies: sent.copies,
                bytes: sent.bytes,
            })
            .collect()
    }
}

/// One service as the tap sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceReport {
    /// Its id, the tunnel's VNI.
    pub id: u32,
    /// Its name on the node.
    pub name: String,
    /// The version in production.
    pub stable_version: String,
    /// The version on trial, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary_version: Option<String>,
    /// Whether it is being mirrored.
    pub mirror: bool,
    /// Whether requests alone are copied: no byte of an answer will come. A tap that does not say
    /// copies both.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub requests_only: bool,
    /// Share of connections that is copied, 0..=1, after what the budget took away.
    pub sample: f64,
    /// Copies of requests.
    pub requests: Mirrored,
    /// Copies of responses.
    pub responses: Mirrored,
}

/// What was copied in one direction since the tap's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirrored {
    /// Packets.
    pub packets: u64,
    /// Their payload bytes.
    pub bytes: u64,
}

impl TapReport {
    /// Whether both say the same, number and time apart.
    pub fn says_the_same(&self, other: &Self) -> bool {
        self.boot == other.boot && self.lanes == other.lanes && self.services == other.services
    }

    /// Reads the body of a report's frame.
    ///
    /// # Errors
    /// When that is no report.
    pub fn parse(payload: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taps and agents are not always of the same version.
    #[test]
    fn what_older_ones_do_not_know_is_left_out() {
        let mut said = TapReport {
            boot: u64::MAX,
            number: 7,
            sent_at_ns: 1 << 60,
            lanes: vec![LaneSent {
                lane: 3,
                copies: 1 << 40,
                bytes: u64::MAX,
            }],
            services: vec![ServiceReport {
                id: 101,
                name: "service".into(),
                stable_version: "v12".into(),
                mirror: true,
                sample: 0.25,
                ..ServiceReport::default()
            }],
        };
        let text = serde_json::to_string(&said).unwrap();
        assert!(!text.contains("requests_only"), "{text}");
        assert_eq!(TapReport::parse(text.as_bytes()).unwrap(), said);
        said.services[0].requests_only = true;
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(TapReport::parse(text.as_bytes()).unwrap(), said);
    }
}
