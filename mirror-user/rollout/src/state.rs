//! Where a rollout is, and who put it there.

use serde::{Deserialize, Serialize};

/// A part of the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Hooks have to approve the start.
    Before,
    /// The shadow is compared.
    Shadowing,
    /// It is good; hooks have to approve the canary.
    ShadowPassed,
    /// The canary serves the share of a stage, counted from 0.
    Stage(usize),
    /// It is good; hooks have to approve what comes.
    StagePassed(usize),
    /// The canary serves all but what is held back, and is watched.
    Baking,
    /// It serves everything.
    Settling,
}

/// Where a rollout is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// On its way.
    Going(Step),
    /// It has waited for too long, and calls for a person.
    Held {
        /// Where.
        at: Step,
        /// Why.
        why: String,
    },
    /// A person stopped it.
    Paused {
        /// Where.
        at: Step,
        /// Who, and why.
        by: By,
    },
    /// The canary gets no new connections; the kernel has not confirmed that yet.
    RollingBack {
        /// Why.
        why: String,
        /// Whether the canary's open connections are to be reset at once.
        severe: bool,
    },
    /// The canary was rolled back.
    RolledBack {
        /// Why.
        why: String,
        /// Whether the canary's open connections were to be reset at once.
        severe: bool,
    },
    /// A person took it back.
    Aborted {
        /// Who, and why.
        by: By,
    },
    /// The canary serves everything.
    Promoted,
    /// The old version need not stay ready any longer.
    RetireDue,
    /// The new version listens at the service's own address; nothing is steered any more.
    Finished,
}

impl Step {
    /// Whether the canary serves clients.
    pub const fn has_clients(self) -> bool {
        matches!(
            self,
            Self::Stage(_) | Self::StagePassed(_) | Self::Baking | Self::Settling
        )
    }
}

/// Who wants something, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// A user's name, or a pipeline's.
    pub who: String,
    /// In their words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl By {
    /// A record, every page and every hook has these: they are not for whole files.
    ///
    /// # Errors
    /// Which of them is too long.
    pub fn bounded(&self) -> Result<(), String> {
        const WHO: usize = 200;
        const REASON: usize = 2_000;
        let reason = self.reason.as_deref().unwrap_or_default();
        let mut texts = [("who", &*self.who, WHO), ("reason", reason, REASON)].into_iter();
        match texts.find(|(_, text, most)| text.chars().count() > *most) {
            Some((which, _, most)) => Err(format!("{which:?} has more than {most} characters")),
            None => Ok(()),
        }
    }
}
