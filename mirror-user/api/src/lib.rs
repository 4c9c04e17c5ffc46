//! What node, agent and command line say to each other, and how people read it. Values alone: who sends and asks is
//! elsewhere.

mod agent_address;
mod canary;
mod choices;
#[cfg(any(test, feature = "fixtures"))]
pub mod fixtures;
pub mod plain;
mod render;
mod rollout;
pub mod shadow;
mod status;
pub mod summary;
pub mod tap_report;
#[cfg(test)]
mod tests;
mod trouble;

use serde::{Deserialize, Serialize};

pub use agent_address::{AgentAddress, NoAddress};
pub use canary::{
    Achieved, Arm, CanaryChange, CanaryState, ChoiceCount, Concentration, Quantiles, Rest,
    ServerUse, ShareState, Translations,
};
pub use choices::{Affinity, Change, Mechanism, Source, Transport, XdpHook};
pub use rollout::{
    Finish, Promote, RolloutHistory, RolloutOrder, RolloutOutcome, RolloutState, RolloutStates,
    RolloutSummary, ServiceRollout, Start, StepName,
};
pub use status::{
    Agent, Interface, LookState, LookedArm, LookedExchanges, MirrorState, Mirrored, PacketCount,
    RingState, RunTimes, Sample, Service, Status,
};

/// A command that was carried out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// What was done, a line for each step.
    pub done: Vec<String>,
    /// What the caller should know all the same, such as a state file that could not be written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}
