//! What the two halves say has become of everything.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::metrics::Metrics;

/// What becomes of a copy in the agent's packet ledger.
const FATES: [&str; 7] = [
    "received",
    "partial",
    "lost",
    "unknown_service",
    "truncated",
    "not_tcp",
    "overloaded",
];

/// The agent's figures, both ledgers closed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its metrics.
    pub metrics: Metrics,
}

impl Outcome {
    /// Holds the agent's figures against the daemon's: nothing is under way, and both ledgers
    /// close.
    ///
    /// # Errors
    /// With what does not hold yet.
    pub fn of(tap: &Metrics, agent: Metrics) -> Result<Self> {
        packets_settled(tap, &agent)?;
        Self::closed(agent)
    }

    /// Holds the agent's figures against each other alone: every copy that it was told of is settled,
    /// and nothing is under way. For an agent that the tap has left.
    ///
    /// # Errors
    /// With what does not hold yet.
    pub fn closed(agent: Metrics) -> Result<Self> {
        for unit in ["packets", "bytes"] {
            let (reported, settled) = both_sides(&agent, unit);
            ensure!(
                reported == settled,
                "{unit}: {reported} were reported, and {settled} are settled\n{agent}"
            );
        }
        let open = agent.sum("modelmirror_shadow_requests_in_flight", &[]);
        ensure!(open == 0.0, "{open} requests have no outcome\n{agent}");
        let outcome = Self { metrics: agent };
        let faithful = outcome.requests("compared") + outcome.requests("not_compared");
        let seen = outcome.seen() - outcome.requests("excluded");
        let fidelity = outcome
            .metrics
            .sum("modelmirror_shadow_fidelity_ratio", &[]);
        ensure!(
            seen == 0 || (fidelity - faithful as f64 / seen as f64).abs() < 1e-9,
            "fidelity is {fidelity}, {faithful} of the {seen} that are not excluded are compared, or replayed alone"
        );
        Ok(outcome)
    }

    /// How many requests ended so: `compared`, or the reason of a drop.
    pub fn requests(&self, outcome: &str) -> u64 {
        let labels = [("outcome", outcome)];
        self.metrics
            .sum("modelmirror_shadow_requests_total", &labels) as u64
    }

    /// How many requests were seen.
    pub fn seen(&self) -> u64 {
        self.metrics.sum("modelmirror_shadow_requests_total", &[]) as u64
    }

    /// How many comparisons had this verdict.
    pub fn verdicts(&self, verdict: &str) -> u64 {
        let labels = [("verdict", verdict)];
        self.metrics
            .sum("modelmirror_shadow_comparisons_total", &labels) as u64
    }

    /// How many copies ended so: `received`, `partial`, `lost` and so on.
    pub fn copies(&self, fate: &str) -> u64 {
        let labels = [("outcome", fate)];
        self.metrics
            .sum("modelmirror_shadow_tunnel_packets_total", &labels) as u64
    }

    /// How many copies the tap had sent before this agent kept account of them.
    pub fn earlier(&self) -> u64 {
        let name = "modelmirror_shadow_tunnel_earlier_packets_total";
        self.metrics.sum(name, &[]) as u64
    }

    /// Every outcome of a request that there was, and how often.
    pub fn all_requests(&self) -> BTreeMap<String, u64> {
        let by = self
            .metrics
            .by("modelmirror_shadow_requests_total", "outcome");
        let counts = by
            .into_iter()
            .map(|(outcome, count)| (outcome, count as u64));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// Every copy arrived, and whole.
    pub(crate) fn arrived(&self) -> Result<()> {
        for fate in &FATES[1..] {
            let copies = self.copies(fate);
            ensure!(copies == 0, "{copies} copies are {fate}");
        }
        let earlier = self.earlier();
        ensure!(earlier == 0, "{earlier} copies are of no account");
        Ok(())
    }
}

/// The ledger of packets closes: what the tap handed to the uplink, before the agent began and
/// since, is what it has reported, and that what the agent has received, lost or dropped; in copies
/// and in bytes.
///
/// # Errors
/// With the sums, as long as they are not equal.
pub(crate) fn packets_settled(tap: &Metrics, agent: &Metrics) -> Result<()> {
    for unit in ["packets", "bytes"] {
        let sent = tap.sum(&format!("modelmirror_tunnel_sent_{unit}_total"), &[]);
        let (reported, settled) = both_sides(agent, unit);
        let earlier = format!("modelmirror_shadow_tunnel_earlier_{unit}_total");
        let earlier = agent.sum(&earlier, &[]);
        ensure!(
            sent == earlier + reported && reported == settled,
            "{unit}: the tap sent {sent}, reported {earlier} and {reported}, and {settled} are \
             settled\n{agent}"
        );
    }
    Ok(())
}

/// What the tap has told the agent that it sent, and what has become of it.
fn both_sides(agent: &Metrics, unit: &str) -> (f64, f64) {
    let reported = agent.sum(&format!("modelmirror_shadow_tunnel_sent_{unit}_total"), &[]);
    let name = format!("modelmirror_shadow_tunnel_{unit}_total");
    let fates = FATES.iter();
    let settled = fates.map(|fate| agent.sum(&name, &[("outcome", fate)]));
    (reported, settled.sum())
}
