//! The state machine: what was, what is told, and the time make what is, and what is decided.
//!
//! ```text
//!  before ─> shadowing ─> shadow passed ─> stage 1 ─> stage 1 passed ─> ... ─> baking ─> settling ─> promoted ─> retire due
//!                 │                           │  a pause, or a hold, stays where it is                           │
//!                 └───────────────────────────┴──────────> rolling back ─> rolled back                           └─> finished
//! ```
//!
//! What follows from a state is read off it, [`Rollout::share`] and [`Rollout::calls`], so that it
//! is carried out again after a crash and never twice.

mod hooks;
mod orders;
mod reached;
mod waits;

use hooks::Asked;
pub use hooks::Call;
use reached::{Clients, Connections};
use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
pub use orders::Refused;

use super::alone::Alone;
use super::gates::{Evidence, Gate, Role, elapsed};
use super::held::Held;
use super::plan::{OnTimeout, Plan};
use super::record::{Decision, Entry, Event, Line, Moved, Started};
use super::severe::Recent;
use super::state::{State, Step};
use super::statistics::Verdict;
use super::window::Window;
use crate::Share;

/// One rollout.
#[derive(Clone, Debug)]
pub struct Rollout {
    pub(super) started: Started,
    pub(super) since: Timestamp,
    pub(super) state: State,
    /// When the state was entered.
    pub(super) entered: Timestamp,
    /// When the time of the step began: a pause is not counted.
    pub(super) clock: Timestamp,
    pub(super) evidence: Evidence,
    pub(super) recent: Recent,
    pub(super) alone: Alone,
    /// Answers of stable and of the canary at this stage.
    pub(super) requests: [u64; 2],
    /// The same, those that were not read included.
    pub(super) all_requests: [f64; 2],
    /// What became of the connections of this stage.
    connections: Connections,
    /// Whom the canary serves at this stage.
    clients: Clients,
    /// Requests at this stage whose end was not seen, by why.
    pub(super) unseen: [BTreeMap<String, u64>; 2],
    pub(super) compared: u64,
    pub(super) answered: [Option<Timestamp>; 2],
    pub(super) last_compared: Option<Timestamp>,
    /// When the canary got more than it had.
    risen: Timestamp,
    /// What the last window was held up by.
    pub(super) troubles: Vec<Held>,
    asked: Vec<Asked>,
    /// What was said last.
    pub(super) waits: Vec<Held>,
    pub(super) verdicts: Vec<(String, Verdict)>,
    pub(super) gates: Vec<Gate>,
}

impl Rollout {
    /// One that begins.
    pub fn start(started: Started, now: Timestamp) -> Self {
        let plan = &started.plan;
        Self {
            since: now,
            state: State::Going(Step::Before),
            entered: now,
            clock: now,
            evidence: Evidence::new(plan),
            recent: Recent::default(),
            alone: Alone::default(),
            requests: [0, 0],
            all_requests: [0.0; 2],
            connections: Connections::default(),
            clients: Clients::default(),
            unseen: Default::default(),
            compared: 0,
            answered: [None, None],
            last_compared: None,
            risen: now,
            troubles: Vec::new(),
            asked: vec![Asked::default(); plan.hooks.len()],
            waits: Vec::new(),
            verdicts: Vec::new(),
            gates: Vec::new(),
            started,
        }
    }

    /// One as its record tells it; what was decided follows from the events, and is left aside.
    ///
    /// # Errors
    /// When there is no beginning.
    pub fn replay<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Result<Self, &'static str> {
        let mut rollout: Option<Self> = None;
        for line in lines {
            match (&line.entry, &mut rollout) {
                (Entry::Event(Event::Started(started)), None) => {
                    rollout = Some(Self::start((**started).clone(), line.time));
                }
                (Entry::Event(event), Some(rollout)) => {
                    rollout.tell(event, line.time);
                }
                _ => {}
            }
        }
        rollout.ok_or("it does not say how the rollout began")
    }

    /// What it is told, and what it decides.
    pub fn tell(&mut self, event: &Event, now: Timestamp) -> Vec<Decision> {
        let mut decisions = Vec::new();
        match event {
            Event::Started(_) => {}
            Event::Seen(window) => self.see(window, now, &mut decisions),
            Event::Ordered(order) => self.obey(order, now, &mut decisions),
            Event::Called(called) => self.called(called, now),
            Event::TakenBack => self.taken_back(now, &mut decisions),
        }
        self.advance(now, &mut decisions);
        decisions
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.started.plan
    }

    /// How it began.
    pub fn started(&self) -> &Started {
        &self.started
    }

    /// When it began.
    pub fn began(&self) -> Timestamp {
        self.since
    }

    /// Where it is.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Since when.
    pub fn entered(&self) -> Timestamp {
        self.entered
    }

    /// Why it does not go on; none = nothing holds it up.
    pub fn waits(&self) -> &[Held] {
        &self.waits
    }

    /// What every gate said last.
    pub fn gates(&self) -> &[Gate] {
        &self.gates
    }

    /// Whether nothing was compared yet that counts.
    pub fn has_compared_nothing(&self) -> bool {
        self.compared == 0
    }

    /// Answers of stable and of the canary at this stage.
    pub fn requests(&self) -> [u64; 2] {
        self.requests
    }

    /// The part of a rollout where it is, unless it has ended.
    pub fn step(&self) -> Option<Step> {
        match &self.state {
            State::Going(step) | State::Held { at: step, .. } | State::Paused { at: step, .. } => {
                Some(*step)
            }
            _ => None,
        }
    }

    /// The share of new connections that the canary should have.
    pub fn share(&self) -> Share {
        match self.step() {
            _ if self.is_for_good() => Share::ALL,
            Some(step) => self.share_at(step),
            None => Share::NONE,
        }
    }

    pub(super) fn share_at(&self, step: Step) -> Share {
        let plan = self.plan();
        match step {
            Step::Before | Step::Shadowing | Step::ShadowPassed => Share::NONE,
            Step::Stage(stage) | Step::StagePassed(stage) => {
                plan.shares().nth(stage).unwrap_or(Share::NONE)
            }
            Step::Baking => plan.most(),
            Step::Settling => Share::ALL,
        }
    }

    /// Whether the daemon has to look at what happens.
    pub fn is_watched(&self) -> bool {
        self.step().is_some() || matches!(self.state, State::RollingBack { .. })
    }

    /// Whether it holds the service: nobody else sets the share, and no other rollout begins.
    pub fn is_on(&self) -> bool {
        self.is_watched() || self.is_for_good()
    }

    /// Whether steering may go on without a daemon, for good.
    pub fn is_for_good(&self) -> bool {
        matches!(self.state, State::Promoted | State::RetireDue)
    }

    /// Whether `window`, which has not been taken in yet, shows what cannot wait.
    pub fn is_severe(&self, window: &Window, now: Timestamp) -> bool {
        // Nothing is, while no client is served: that need not be tried.
        if !self.step().is_some_and(Step::has_clients) {
            return false;
        }
        let mut after = self.clone();
        after.see_window(window, now);
        after.why_severe(window, now).is_some()
    }

    /// Whether a window shows what may become severe: it is not to wait for the others of its tick.
    pub fn is_alarmed_by(&self, window: &Window) -> bool {
        self.step().is_some_and(Step::has_clients) && self.recent.alarms(window)
    }

    fn see(&mut self, window: &Window, now: Timestamp, decisions: &mut Vec<Decision>) {
        let Some(step) = self.step() else { return };
        self.see_window(window, now);
        self.troubles.clone_from(&window.held);
        let severe = self.why_severe(window, now);
        self.judge(step, now, decisions);
        if let Some(why) = severe {
            self.roll_back(why, true, now, decisions);
        } else if !window.has_nobody_else()
            && let Some(worse) = self
                .gates
                .iter()
                .find(|gate| gate.verdict == Verdict::Worse && gate.role != Role::Severe)
        {
            let why = worse.to_string();
            self.roll_back(why, false, now, decisions);
        }
    }

    fn see_window(&mut self, window: &Window, now: Timestamp) {
        let Some(step) = self.step() else { return };
        self.connections.see(window);
        self.clients.see(window);
        let arms = [&window.stable, &window.canary];
        self.recent.see_stable(&window.stable, now);
        let is_warm = self.warms_up(step, now).is_none();
        for (at, arm) in arms.into_iter().enumerate() {
            if is_warm {
                self.requests[at] += arm.requests;
            }
            self.all_requests[at] += arm.all_requests();
            if arm.response_bytes > 0 || arm.responses > 0 {
                self.answered[at] = Some(now);
            }
            for (why, count) in &arm.unseen {
                *self.unseen[at].entry(why.clone()).or_default() += count;
            }
        }
        if step.has_clients() {
            self.recent.see(window, now);
            self.alone
                .see(window, self.share_at(step) == Share::ALL, now);
            let limit = self.plan().canary.hard_error_rate;
            let stable_fails = self.recent.stable_fails(limit, now);
            self.evidence.see_severe(window, stable_fails);
            if is_warm {
                self.evidence.see_clients(window, now);
            }
        }
        if !is_warm || !step.has_clients() {
            self.evidence.see_stable(&window.stable);
        }
        // Before it was allowed to begin nothing counts.
        if let Some(shadow) = window.shadow.as_ref().filter(|_| step != Step::Before) {
            self.compared += shadow.compared;
            if shadow.compared > 0 {
                self.last_compared = Some(now);
            }
            self.evidence.see_shadow(shadow, &window.stable, now);
        }
    }

    /// From when on more than severe failures count, since the share has risen.
    pub(super) fn warm(&self) -> Timestamp {
        let warmup = self.warmup();
        self.risen.checked_add(warmup).unwrap_or(Timestamp::MAX)
    }

    /// How long after a rise that is: until answers have come that are as slow as stable's slowest, too.
    pub(super) fn warmup(&self) -> Duration {
        self.plan().canary.warmup.max(self.recent.lingers())
    }

    /// How long that is from now.
    pub(super) fn warms_up(&self, step: Step, now: Timestamp) -> Option<Duration> {
        let rest = elapsed(now, self.warm());
        (step.has_clients() && !rest.is_zero()).then_some(rest)
    }

    fn why_severe(&self, window: &Window, now: Timestamp) -> Option<String> {
        let step = self.step()?;
        if !step.has_clients() {
            return None;
        }
        if window.has_nobody_else() {
            return None;
        }
        if let Some(why) = &window.unreachable
            && self.recent.is_gone()
        {
            return Some(format!("the canary cannot be reached: {why}"));
        }
        let limit = self.plan().canary.hard_error_rate;
        if self.recent.stable_fails(limit, now) {
            return None;
        }
        self.evidence.severe().or_else(|| self.recent.severe(now))
    }

    /// Forms the gates' verdicts, and says which are new.
    fn judge(&mut self, step: Step, now: Timestamp, decisions: &mut Vec<Decision>) {
        let mut gates = Vec::new();
        if step.has_clients() {
            gates = self.evidence.of_clients(now);
        }
        gates.extend(self.evidence.of_shadow().into_iter().map(|mut gate| {
            // What the shadow has shown once counts; what it shows later can only speak against it.
            if step != Step::Shadowing && gate.role == Role::Proof {
                gate.role = Role::Watch;
            }
            gate
        }));
        for gate in &gates {
            let before = self
                .verdicts
                .iter_mut()
                .find(|(name, _)| *name == gate.name);
            let known = match before {
                Some((_, verdict)) => std::mem::replace(verdict, gate.verdict),
                None => {
                    self.verdicts.push((gate.name.clone(), gate.verdict));
                    Verdict::Unknown
                }
            };
            if known != gate.verdict {
                decisions.push(Decision::Judged(Box::new(gate.clone())));
            }
        }
        self.gates = gates;
    }

    /// Goes on where nothing speaks against it, as far as it can.
    fn advance(&mut self, now: Timestamp, decisions: &mut Vec<Decision>) {
        if self.state == State::Promoted
            && elapsed(self.entered, now) >= self.plan().canary.keep_stable
        {
            let reason = format!("{} need not stay ready any longer", self.started.stable);
            self.go(State::RetireDue, reason, now, decisions);
        }
        while let State::Going(step) = self.state {
            let waits = self.waits_at(step, now);
            let is_done = waits.is_empty();
            self.say_waits(waits, decisions);
            if !is_done {
                return self.give_up(step, now, decisions);
            }
            let (next, reason) = self.next(step);
            self.go(next, reason, now, decisions);
        }
        self.say_waits(Vec::new(), decisions);
    }

    fn say_waits(&mut self, waits: Vec<Held>, decisions: &mut Vec<Decision>) {
        let kinds = |waits: &[Held]| waits.iter().map(|held| held.kind).collect::<Vec<_>>();
        if kinds(&self.waits) != kinds(&waits) {
            decisions.push(Decision::Waits(waits.clone()));
        }
        self.waits = waits;
    }

    /// What comes after a step that is done.
    fn next(&self, step: Step) -> (State, String) {
        let plan = self.plan();
        let first = || (Step::Stage(0), "the first stage begins".to_owned());
        let (next, reason) = match step {
            Step::Before if plan.shadow.is_some() => {
                (Step::Shadowing, "the shadow is compared first".to_owned())
            }
            Step::Before | Step::ShadowPassed => first(),
            Step::Shadowing => (
                Step::ShadowPassed,
                format!(
                    "all gates are within their limits after {} comparisons",
                    self.compared
                ),
            ),
            Step::Stage(stage) => {
                let [_, canary] = self.requests;
                let said = if self.is_proof_needed(step) {
                    "all gates are proven within their limits"
                } else {
                    "no gate is proven beyond its limit"
                };
                let reason = format!("{said} after {canary} requests of the canary");
                (Step::StagePassed(stage), reason)
            }
            Step::StagePassed(stage) if stage + 1 < plan.stages.len() => {
                (Step::Stage(stage + 1), "the next stage begins".to_owned())
            }
            Step::StagePassed(_) => (Step::Baking, "all stages are passed".to_owned()),
            Step::Baking => {
                let bake = humantime::format_duration(plan.canary.bake);
                let reason = format!("baked for {bake}, no gate failed");
                (Step::Settling, reason)
            }
            Step::Settling => {
                let least = humantime::format_duration(plan.canary.min_duration);
                let reason = format!("it has had everything for {least}");
                return (State::Promoted, reason);
            }
        };
        (State::Going(next), reason)
    }

    pub(super) fn is_proof_needed(&self, step: Step) -> bool {
        match step {
            Step::Shadowing => true,
            // Without stable beside it nothing more can be proven.
            Step::Stage(_) => {
                let share = self.share_at(step);
                share < Share::ALL && f64::from(share) >= self.plan().canary.proven_from
            }
            _ => false,
        }
    }

    fn go(&mut self, to: State, reason: String, now: Timestamp, decisions: &mut Vec<Decision>) {
        let before = self.share();
        let from = std::mem::replace(&mut self.state, to.clone());
        if self.share() > before {
            self.risen = now;
        }
        decisions.push(Decision::Moved(Box::new(Moved {
            from,
            to,
            reason,
            requests: self.requests,
            gates: self.gates.clone(),
        })));
        (self.entered, self.clock) = (now, now);
        self.asked = vec![Asked::default(); self.plan().hooks.len()];
        if matches!(
            self.state,
            State::Going(Step::Stage(_) | Step::Baking | Step::Settling)
        ) {
            self.requests = [0, 0];
            self.all_requests = [0.0; 2];
            self.connections = Connections::default();
            self.clients = Clients::default();
            self.unseen = Default::default();
        }
    }

    fn roll_back(
        &mut self,
        why: String,
        severe: bool,
        now: Timestamp,
        decisions: &mut Vec<Decision>,
    ) {
        let reason = why.clone();
        self.go(State::RollingBack { why, severe }, reason, now, decisions);
    }

    fn taken_back(&mut self, now: Timestamp, decisions: &mut Vec<Decision>) {
        let (why, severe) = match &self.state {
            State::RollingBack { why, severe } => (why.clone(), *severe),
            _ if self.step().is_some_and(Step::has_clients) => {
                let why = "the daemon was ended while it took the canary back";
                (why.to_owned(), false)
            }
            _ => return,
        };
        let reason = why.clone();
        self.go(State::RolledBack { why, severe }, reason, now, decisions);
    }

    /// What ends the waiting of a step that takes too long.
    fn give_up(&mut self, step: Step, now: Timestamp, decisions: &mut Vec<Decision>) {
        let plan = self.plan();
        let (limit, then) = match (step, &plan.shadow) {
            (Step::Before, _) => (plan.canary.max_duration, OnTimeout::Hold),
            (Step::Shadowing | Step::ShadowPassed, Some(shadow)) => {
                (shadow.max_duration, shadow.on_timeout)
            }
            (Step::Baking, _) => {
                let limit = plan.canary.bake + plan.canary.max_duration;
                (limit, plan.canary.on_timeout)
            }
            _ => (plan.canary.max_duration, plan.canary.on_timeout),
        };
        if elapsed(self.clock, now) < limit {
            return;
        }
        let waits: Vec<&str> = self.waits.iter().map(|held| held.why.as_str()).collect();
        let limit = humantime::format_duration(limit);
        let why = format!("max_duration = {limit} is over: {}", waits.join("; "));
        match then {
            OnTimeout::Hold => {
                let reason = why.clone();
                self.go(State::Held { at: step, why }, reason, now, decisions);
            }
            OnTimeout::Rollback => self.roll_back(why, false, now, decisions),
        }
    }
}

#[cfg(test)]
mod tests;
