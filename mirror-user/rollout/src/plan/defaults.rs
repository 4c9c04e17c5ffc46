//! What a plan says where nothing was written.

use std::time::Duration;

use super::{Baseline, Canary, OnTimeout, Plan, Shadow};
use crate::Share;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);

impl Default for Plan {
    /// What an empty `[service.rollout]` says: straight to the canary.
    fn default() -> Self {
        let stages = [0.01, 0.05, 0.25, 0.5, 1.0];
        Self {
            stages: stages.into_iter().flat_map(Share::try_from).collect(),
            baseline: Baseline::Stable,
            tick: Duration::from_secs(1),
            shadow: None,
            canary: Canary::default(),
            prometheus: None,
            gates: Vec::new(),
            hooks: Vec::new(),
            finish_probe: None,
        }
    }
}

/// Clients that ask for what is not there are part of life; a service that refuses most is not tested.
pub(super) const fn max_both_failed() -> f64 {
    0.1
}

/// How much more often something may happen that should not.
pub(super) const fn delta() -> f64 {
    0.005
}

impl Default for Shadow {
    /// What an empty `[service.rollout.shadow]` says.
    fn default() -> Self {
        Self {
            min_compared: 1_000,
            agreement: 0.99,
            max_excess: Some(0.01),
            max_both_failed: max_both_failed(),
            max_latency_ratio: 1.2,
            max_error_delta: delta(),
            max_accuracy_drop: None,
            max_cpu_ratio: None,
            max_memory_ratio: None,
            max_duration: HOUR,
            on_timeout: OnTimeout::Hold,
        }
    }
}

impl Default for Canary {
    /// What an empty `[service.rollout.canary]` says.
    fn default() -> Self {
        Self {
            min_duration: 5 * MINUTE,
            max_duration: HOUR,
            on_timeout: OnTimeout::Hold,
            min_requests: 500,
            max_error_delta: delta(),
            max_client_error_delta: delta(),
            max_redirect_delta: delta(),
            max_short_delta: delta(),
            max_aborted_delta: delta(),
            max_latency_ratio: 1.2,
            max_latency: None,
            hard_error_rate: 0.5,
            hard_reset_delta: 0.2,
            proven_from: 0.25,
            confidence: 0.99,
            max_cpu_ratio: None,
            max_memory_ratio: None,
            bake: 30 * MINUTE,
            holdback: Share::of_parts(500),
            warmup: MINUTE,
            drain: Duration::from_secs(30),
            keep_stable: 72 * HOUR,
        }
    }
}
