//! Why a rollout does not go on.

use serde::{Deserialize, Serialize};

/// Why a rollout does not go on. The words of `kind` are the metric's `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The kind of reason.
    pub kind: Kind,
    /// With figures, and the cure.
    pub why: String,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal,)+) => {
        /// A kind of reason to wait.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The value of the metric's `reason`.
            pub const fn label(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)+
                }
            }
        }
    };
}

kinds! {
    /// The least time of the stage is not over.
    MinDuration = "min_duration",
    /// There were too few requests, or comparisons.
    TooFew = "too_few",
    /// Nobody is answered.
    NoTraffic = "no_traffic",
    /// A gate is not proven within its limit.
    NotProven = "not_proven",
    /// One client sends everything.
    OneClient = "one_client",
    /// The canary serves too few clients.
    FewClients = "few_clients",
    /// The canary gets another share than it should.
    ShareNotReached = "share_not_reached",
    /// Prometheus does not say what a gate needs.
    Metric = "metric",
    /// The agent cannot be asked, or its shadow is another version.
    Agent = "agent",
    /// The copy of the old version gives no answers, so that its noise is not known.
    Control = "control",
    /// The canary's share is not in force.
    NotSteered = "not_steered",
    /// The rollout's record cannot be written.
    Record = "record",
    /// What the kernel counts cannot be read.
    Counters = "counters",
    /// A hook has not approved.
    Hook = "hook",
    /// Nobody listens for stable any more: there is nobody to go back to.
    StableGone = "stable_gone",
    /// Requests cannot be read.
    NotSeen = "not_seen",
    /// Both versions fail.
    BothFail = "both_fail",
    /// The canary fails more than stable did, or is slower, with nobody beside it.
    Incident = "incident",
}
