//! The rollout's part of the control API.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use mirror_rollout::Share;
use mirror_rollout::gates::Gate;
use mirror_rollout::held::Held;
use mirror_rollout::machine::Rollout;
use mirror_rollout::plan::{Plan, Target};
use mirror_rollout::state::By;
use mirror_rollout::state::{State, Step};

/// What somebody wants of one service's rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutOrder {
    /// Begin one.
    Start(Box<Start>),
    /// Say what would be done, and change nothing. A word of its own: a daemon that does not know it refuses, and does not begin.
    DryRun(Box<Start>),
    /// Stay at this stage.
    Pause(By),
    /// Go on after a pause, or after a hold, whose time begins anew.
    Resume(By),
    /// Go on whatever the gates say.
    Promote(Promote),
    /// Take the canary back.
    Abort(By),
    /// End steering after a promotion.
    Finish(Finish),
}

impl RolloutOrder {
    /// Who wants it.
    pub fn by(&self) -> &By {
        match self {
            Self::Start(start) | Self::DryRun(start) => &start.by,
            Self::Promote(promote) => &promote.by,
            Self::Finish(finish) => &finish.by,
            Self::Pause(by) | Self::Resume(by) | Self::Abort(by) => by,
        }
    }
}

/// How a rollout begins. What is left out is as in the service's config.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The new version.
    #[serde(default)]
    pub version: Option<String>,
    /// Where it listens.
    #[serde(default)]
    pub address: Option<SocketAddr>,
    /// What is done.
    #[serde(default, serialize_with = "Plan::serialize_whole")]
    pub plan: Option<Plan>,
    /// Also after the same version was taken back.
    #[serde(default)]
    pub again: bool,
    /// Who, and why.
    #[serde(flatten)]
    pub by: By,
}

/// How far to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promote {
    /// To the last stage, rather than to the next one.
    #[serde(default)]
    pub all: bool,
    /// Who, and why.
    #[serde(flatten)]
    pub by: By,
}

/// How a rollout is finished.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// Also when nobody is seen to listen at the service's own address.
    #[serde(default)]
    pub force: bool,
    /// Who, and why.
    #[serde(flatten)]
    pub by: By,
}

/// The rollout of one service: the one that runs, or the last one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutState {
    /// Its id, and its record's name.
    pub id: String,
    /// The version on trial.
    pub canary: Target,
    /// The version in production when it began.
    pub stable_version: String,
    /// Where it is.
    pub step: StepName,
    /// The same in words: `stage 2 of 5`.
    pub state: String,
    /// The stage with clients that it is at, from 0.
    pub stage: Option<usize>,
    /// The shares of all stages.
    pub stages: Vec<Share>,
    /// The share of new connections that the canary should have now.
    pub share: Share,
    /// When all of this was so.
    pub time: Timestamp,
    /// Since when it is where it is.
    pub since: Timestamp,
    /// When it began.
    pub started: Timestamp,
    /// Why it is held or paused, or was taken back.
    pub reason: Option<String>,
    /// Why it does not go on yet.
    pub waiting: Vec<Held>,
    /// What every gate says.
    pub gates: Vec<Gate>,
    /// What somebody should look at, such as a plan that the traffic cannot decide in time.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Answers of stable and of the canary at this stage.
    pub requests: [u64; 2],
    /// The canary's part of them; nothing where there were none.
    pub achieved: Option<f64>,
    /// Whether nothing more will happen.
    pub ended: bool,
    /// What came of it, as soon as that is known.
    pub outcome: Option<RolloutOutcome>,
}

/// Where a rollout is, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    /// Hooks have to approve the start.
    Before,
    /// The shadow is compared.
    Shadow,
    /// It was good.
    ShadowPassed,
    /// The canary serves a share of the clients.
    Stage,
    /// It was good.
    StagePassed,
    /// The canary serves all but what is held back, and is watched.
    Baking,
    /// It serves everything.
    Settling,
    /// It has waited for too long, and calls for a person.
    Held,
    /// A person stopped it.
    Paused,
    /// The canary is being taken back.
    RollingBack,
    /// It was taken back.
    RolledBack,
    /// A person took it back.
    Aborted,
    /// The canary serves everything.
    Promoted,
    /// The old version need not stay ready any longer.
    RetireDue,
    /// Nothing is steered any more.
    Finished,
}

/// What came of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutOutcome {
    /// The new version serves everything.
    Promoted,
    /// It was taken back.
    RolledBack,
    /// A person took it back.
    Aborted,
}

/// One rollout in the history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutSummary {
    /// Its id.
    pub id: String,
    /// The service.
    pub service: String,
    /// The version in production when it began.
    pub stable_version: String,
    /// The version on trial.
    pub canary: Target,
    /// When it began.
    pub started: Timestamp,
    /// When what came of it was known.
    pub ended: Option<Timestamp>,
    /// What came of it; nothing while it runs.
    pub outcome: Option<RolloutOutcome>,
    /// Where it is.
    #[serde(default)]
    pub step: Option<StepName>,
    /// Why.
    pub reason: Option<String>,
}

impl RolloutState {
    /// As things are at `now`, without warnings: those are for who knows more than the rollout.
    pub fn of(rollout: &Rollout, now: Timestamp) -> Self {
        let started = rollout.started();
        let [stable, canary] = rollout.requests();
        let all = stable + canary;
        let stages: Vec<Share> = started.plan.shares().collect();
        let stage = match rollout.step() {
            Some(Step::Stage(stage) | Step::StagePassed(stage)) => Some(stage),
            Some(Step::Baking | Step::Settling) => stages.len().checked_sub(1),
            _ => None,
        };
        let step = StepName::of(rollout.state());
        let state = match (step, stage) {
            (StepName::Stage, Some(stage)) => format!("stage {} of {}", stage + 1, stages.len()),
            _ => rollout.state().to_string(),
        };
        Self {
            id: started.id.clone(),
            canary: started.canary.clone(),
            stable_version: started.stable.clone(),
            step,
            state,
            stage,
            stages,
            share: rollout.share(),
            time: now,
            since: rollout.entered(),
            started: rollout.began(),
            reason: reason(rollout.state()),
            waiting: rollout.waits().to_vec(),
            gates: rollout.gates().to_vec(),
            warnings: Vec::new(),
            requests: [stable, canary],
            achieved: (all > 0).then(|| canary as f64 / all as f64),
            ended: step.has_ended(),
            outcome: step.outcome(),
        }
    }
}

/// Why a rollout is where no plan leads.
fn reason(state: &State) -> Option<String> {
    match state {
        State::Held { why, .. }
        | State::RollingBack { why, .. }
        | State::RolledBack { why, .. } => Some(why.clone()),
        State::Paused { by, .. } | State::Aborted { by } => Some(by.to_string()),
        State::Going(_) | State::Promoted | State::RetireDue | State::Finished => None,
    }
}

impl StepName {
    /// Every step, in the order of the way.
    pub const ALL: &'static [Self] = &[
        Self::Before,
        Self::Shadow,
        Self::ShadowPassed,
        Self::Stage,
        Self::StagePassed,
        Self::Baking,
        Self::Settling,
        Self::Held,
        Self::Paused,
        Self::RollingBack,
        Self::RolledBack,
        Self::Aborted,
        Self::Promoted,
        Self::RetireDue,
        Self::Finished,
    ];

    /// The value of the metric's `state`, and the word in JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Shadow => "shadow",
            Self::ShadowPassed => "shadow_passed",
            Self::Stage => "stage",
            Self::StagePassed => "stage_passed",
            Self::Baking => "baking",
            Self::Settling => "settling",
            Self::Held => "held",
            Self::Paused => "paused",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Aborted => "aborted",
            Self::Promoted => "promoted",
            Self::RetireDue => "retire_due",
            Self::Finished => "finished",
        }
    }

    /// What a state is called.
    pub const fn of(state: &State) -> Self {
        match state {
            State::Going(Step::Before) => Self::Before,
            State::Going(Step::Shadowing) => Self::Shadow,
            State::Going(Step::ShadowPassed) => Self::ShadowPassed,
            State::Going(Step::Stage(_)) => Self::Stage,
            State::Going(Step::StagePassed(_)) => Self::StagePassed,
            State::Going(Step::Baking) => Self::Baking,
            State::Going(Step::Settling) => Self::Settling,
            State::Held { .. } => Self::Held,
            State::Paused { .. } => Self::Paused,
            State::RollingBack { .. } => Self::RollingBack,
            State::RolledBack { .. } => Self::RolledBack,
            State::Aborted { .. } => Self::Aborted,
            State::Promoted => Self::Promoted,
            State::RetireDue => Self::RetireDue,
            State::Finished => Self::Finished,
        }
    }

    /// What came of a rollout that is here.
    pub const fn outcome(self) -> Option<RolloutOutcome> {
        match self {
            Self::Promoted | Self::RetireDue | Self::Finished => Some(RolloutOutcome::Promoted),
            Self::RolledBack => Some(RolloutOutcome::RolledBack),
            Self::Aborted => Some(RolloutOutcome::Aborted),
            _ => None,
        }
    }

    /// Whether nothing more will happen.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::RolledBack | Self::Aborted | Self::Finished)
    }
}

impl RolloutOutcome {
    /// In words.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled back",
            Self::Aborted => "aborted",
        }
    }
}

/// What `rollout status` prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct RolloutStates(pub Vec<ServiceRollout>);

/// A service, and its rollout.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceRollout {
    /// The service's name.
    pub service: String,
    /// Nothing before the first.
    pub rollout: Option<RolloutState>,
}

/// What `rollout history` prints: the last one first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct RolloutHistory(pub Vec<RolloutSummary>);
