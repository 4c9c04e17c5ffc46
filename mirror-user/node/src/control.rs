//! How the daemon is controlled: HTTP with JSON over a Unix socket that only its owner may open.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/status`, `GET /v1/status?service=NAME` | | [`Status`] |
//! | `POST /v1/services/NAME/mirror` | [`Change`]: `"on"`, `"off"`, `"clear"`, `{"sample": 0.25}` | [`Done`] |
//! | `POST /v1/services/NAME/canary` | [`CanaryChange`]: `{"share": 0.05}`, `{"off": "finish"}`, `{"off": "reset"}`, `{"off": {"drain": 30000}}`, `"clear"` | [`Done`] |
//! | `POST /v1/services/NAME/rollout` | [`RolloutOrder`]: `{"start": {"version", "address", "plan", "again", "who", "reason"}}`, `dry_run` with the same, `{"pause": {"who", "reason"}}`, `resume`, `abort`, `{"promote": {"all", "who", "reason"}}`, `{"finish": {"force", "who", "reason"}}` | [`Done`] |
//! | `GET /v1/services/NAME/rollout/record`, `?id=ID` | | the record of that rollout, or of the last one: a list of [`Line`], without what was seen each second |
//! | `GET /v1/rollouts`, `?service=NAME` | | a list of [`RolloutSummary`], the last one first |
//! | `POST /v1/off` | | [`Done`] |
//!
//! The shadow agent has a socket of the same kind, with `GET /v1/shadow` alone: `mirror_agent::control`.
//!
//! What is refused is answered with 4xx or 5xx and `{"error": "..."}`.

mod server;

use mirror_api::{CanaryChange, Change, Done, RolloutOrder, RolloutSummary, Status};
use mirror_rollout::record::Line;
use tokio::sync::oneshot;

pub use mirror_base::serve::Caller;
pub use server::serve;

/// What the daemon is asked to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Tell how things are, of one service or of all.
    Status {
        /// The service's name.
        service: Option<String>,
    },
    /// Change one service's mirror.
    Mirror {
        /// The service's name.
        service: String,
        /// How.
        change: Change,
    },
    /// Change one service's canary.
    Canary {
        /// The service's name.
        service: String,
        /// How.
        change: CanaryChange,
    },
    /// Begin, change or end one service's rollout.
    Rollout {
        /// The service's name.
        service: String,
        /// What is wanted.
        order: RolloutOrder,
    },
    /// Tell one rollout's record.
    RolloutRecord {
        /// The service's name.
        service: String,
        /// Which one; nothing = the last.
        id: Option<String>,
    },
    /// Tell the rollouts that there were, of one service or of all.
    Rollouts {
        /// The service's name.
        service: Option<String>,
    },
    /// Detach everything, and stay so.
    Off,
}

/// A command on its way to the daemon's loop, with the way back.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Who wants it.
    pub caller: Caller,
    /// Where the outcome goes.
    pub reply: oneshot::Sender<Result<Reply, Refusal>>,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// To [`Command::Status`].
    Status(Box<Status>),
    /// To a command that changed something.
    Done(Done),
    /// To [`Command::RolloutRecord`]: every line but those of [`Seen`](mirror_rollout::record::Event::Seen).
    Record(Vec<Line>),
    /// To [`Command::Rollouts`], the last one first.
    Rollouts(Vec<RolloutSummary>),
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The config has no such service.
    #[error("there is no service {name:?}; known: {}", known.join(", "))]
    UnknownService {
        /// What was asked for.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// The request contradicts the config, or itself.
    #[error("{0}")]
    Invalid(String),
    /// It was tried and failed.
    #[error("{0}")]
    Failed(String),
}

#[cfg(test)]
mod tests;
