//! A record in sentences: who started what, what happened at each step, and why it went on, was held
//! or was taken back, with the numbers.

use std::fmt::Write as _;
use std::time::Duration;

use jiff::Timestamp;

use super::figures::percent;
use super::gates::elapsed;
use super::held::Held;
use super::plan::{Baseline, HookPoint, Plan};
use super::record::{Answer, Called, Decision, Entry, Event, Line, Moved, Order, Started, Want};
use super::state::{State, Step};
use super::words::share;

/// Tells a record, from its first line on. What was seen each second may be left out of it: the
/// decisions say what followed.
pub fn tell(lines: &[Line]) -> String {
    let mut tale = Tale::default();
    for line in lines {
        tale.tell(line);
    }
    tale.end();
    tale.text
}

#[derive(Default)]
struct Tale {
    text: String,
    started: Option<(Timestamp, Started)>,
    /// When the present state was entered.
    entered: Option<Timestamp>,
    last: Option<(Timestamp, Moved)>,
    /// The reason that was given last.
    reason: String,
}

impl Tale {
    fn tell(&mut self, line: &Line) {
        let time = line.time;
        match &line.entry {
            Entry::Event(Event::Started(started)) => self.begin(time, started),
            Entry::Event(Event::Seen(_)) => {}
            Entry::Event(Event::Ordered(order)) => self.order(time, order),
            Entry::Event(Event::Called(called)) => {
                let said = self.call(called);
                self.say(time, &said);
            }
            Entry::Event(Event::TakenBack) => {
                self.say(time, "the kernel gives the canary no new connections");
            }
            Entry::Decision(Decision::Moved(moved)) => self.moved(time, moved),
            Entry::Decision(Decision::Judged(gate)) => {
                if gate.tells() {
                    self.say(time, &gate.to_string());
                }
            }
            Entry::Decision(Decision::Waits(waits)) => self.waits(time, waits),
        }
    }

    /// One sentence with its time, in UTC.
    fn say(&mut self, time: Timestamp, words: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "{}  {words}", time.strftime("%F %TZ"));
    }

    fn detail(&mut self, words: &str) {
        let _ = writeln!(self.text, "                        {words}");
    }

    fn begin(&mut self, time: Timestamp, started: &Started) {
        let Started {
            id,
            service,
            stable,
            canary,
            plan,
            by,
        } = started;
        let _ = writeln!(
            self.text,
            "Rollout {id} of {service}: {} at {} instead of {stable}.",
            canary.version, canary.address
        );
        let _ = writeln!(self.text, "{}\n", outline(plan));
        self.say(time, &format!("started by {by}"));
        self.started = Some((time, started.clone()));
        self.entered = Some(time);
    }

    fn call(&self, called: &Called) -> String {
        let plan = self.started.as_ref().map(|(_, started)| &started.plan);
        let hook = plan.and_then(|plan| plan.hooks.get(called.hook));
        let url = hook.map_or_else(
            || "a hook".to_owned(),
            |hook| format!("the hook at {}", hook.url),
        );
        let when = match called.point {
            HookPoint::Before => "before the start",
            HookPoint::Stage => "after the stage",
            HookPoint::Rollback => "on the rollback",
            HookPoint::Promotion => "on the promotion",
        };
        match &called.answer {
            Answer::Approved if hook.is_some_and(|hook| hook.approve) => {
                format!("{url}, asked {when}, approves")
            }
            Answer::Approved => format!("{url} was told {when}"),
            Answer::Refused(said) => format!("{url}, called {when}, refuses: {said}"),
            Answer::Failed(why) => format!("{url}, called {when}, fails: {why}"),
        }
    }

    fn order(&mut self, time: Timestamp, order: &Order) {
        let reason = order.by.reason.as_deref();
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        self.say(
            time,
            &format!("{} asks to {}{reason}", order.by.who, wish(order)),
        );
        self.reason = order.by.to_string();
    }

    fn waits(&mut self, time: Timestamp, waits: &[Held]) {
        if let [first, rest @ ..] = waits {
            self.say(time, &format!("waits: {}", first.why));
            for held in rest {
                self.detail(&format!("and: {}", held.why));
            }
        }
    }

    fn moved(&mut self, time: Timestamp, moved: &Moved) {
        let to = self.place(moved);
        // What was just said need not be said again.
        if moved.reason == self.reason {
            self.say(time, &to);
        } else {
            self.say(time, &format!("{to}: {}", moved.reason));
        }
        self.reason.clone_from(&moved.reason);
        let stays = is_paused(&moved.from) || is_paused(&moved.to);
        if let State::Going(step) | State::Held { at: step, .. } = &moved.from
            && !stays
        {
            self.evidence(time, *step, moved);
        }
        self.entered = Some(time);
        self.last = Some((time, moved.clone()));
    }

    /// How long a step took, and what every gate said, but for those that are the reason already.
    fn evidence(&mut self, time: Timestamp, step: Step, moved: &Moved) {
        let lasted = self
            .entered
            .map_or(Duration::ZERO, |since| elapsed(since, time));
        let [stable, canary] = moved.requests;
        let span = whole_seconds(lasted);
        match step {
            Step::Stage(_) | Step::Baking | Step::Settling => self.detail(&format!(
                "after {span}, {stable} responses of stable and {canary} of the canary"
            )),
            Step::Shadowing => self.detail(&format!("after {span} in the shadow")),
            Step::Before | Step::ShadowPassed | Step::StagePassed(_) => return,
        }
        for gate in moved.gates.iter().filter(|gate| gate.tells()) {
            let words = gate.to_string();
            if !moved.reason.contains(&words) {
                self.detail(&words);
            }
        }
    }

    /// Where it is now, with the share where clients see one.
    fn place(&self, moved: &Moved) -> String {
        let plan = self.started.as_ref().map(|(_, started)| &started.plan);
        let (State::Going(step), Some(plan)) = (&moved.to, plan) else {
            return moved.to.to_string();
        };
        match (&moved.from, step) {
            (State::Paused { .. } | State::Held { .. }, _) if at(&moved.from) == Some(*step) => {
                format!("goes on at {step}")
            }
            (_, Step::Stage(stage)) => {
                let stages = plan.stages.len();
                let wanted = plan.shares().nth(*stage).unwrap_or_default();
                format!("stage {} of {stages} at {}", stage + 1, share(wanted))
            }
            _ => step.to_string(),
        }
    }

    /// What came of it, in one sentence.
    fn end(&mut self) {
        let Some((began, started)) = &self.started else {
            self.text.push_str("This record has no beginning.\n");
            return;
        };
        let version = &started.canary.version;
        let Some((time, moved)) = &self.last else {
            return;
        };
        let lasted = whole_seconds(elapsed(*began, *time));
        let said = match &moved.to {
            State::RolledBack { why, .. } => {
                format!("{version} was rolled back after {lasted}: {why}")
            }
            State::RollingBack { why, .. } => format!("{version} is being rolled back: {why}"),
            State::Aborted { by } => format!("{version} was aborted after {lasted} by {by}"),
            State::Promoted | State::RetireDue => {
                format!("{version} was promoted, and this node still steers")
            }
            State::Finished => format!("{version} was promoted, and steering has ended"),
            // Why was said last; it may be several sentences.
            State::Held { .. } => format!(
                "{version} is held, {lasted} after the start, and a person is wanted: `rollout resume`, `promote` or `abort`"
            ),
            State::Paused { by, .. } => format!("{version} was paused by {by}"),
            State::Going(_) => format!("{version} is on its way, {lasted} after the start"),
        };
        let _ = writeln!(self.text, "\n{said}.");
    }
}

const fn is_paused(state: &State) -> bool {
    matches!(state, State::Paused { .. })
}

/// Where a rollout stands still.
const fn at(state: &State) -> Option<Step> {
    match state {
        State::Held { at, .. } | State::Paused { at, .. } => Some(*at),
        _ => None,
    }
}

fn wish(order: &Order) -> &'static str {
    match order.want {
        Want::Pause => "pause",
        Want::Resume => "go on",
        Want::Promote => "go to the next stage",
        Want::PromoteAll => "go to the last stage",
        Want::Abort => "abort",
        Want::Finish => "end steering",
    }
}

/// The plan in a few sentences.
pub fn outline(plan: &Plan) -> String {
    let stages: Vec<String> = plan.shares().map(share).collect();
    let canary = &plan.canary;
    let shadow = plan.shadow.as_ref().map_or_else(
        || "No shadow stage".to_owned(),
        |shadow| {
            let least = shadow.min_compared;
            if shadow.compares_answers() {
                let agreement = percent(shadow.agreement);
                format!(
                    "First the shadow: at least {agreement} of {least} and more responses match"
                )
            } else {
                let latency = if shadow.compares_latency() {
                    " and latency"
                } else {
                    ""
                };
                format!("First the shadow: {least} and more responses, judged by failures{latency}")
            }
        },
    );
    let baseline = match &plan.baseline {
        Baseline::Stable => "against stable at the same time",
        Baseline::None => "against nothing: limits are absolute",
        Baseline::Constant(_) => "against a constant answer",
    };
    let outside = [
        (plan.gates.len(), "asked of Prometheus"),
        (plan.hooks.len(), "called as hooks"),
    ];
    let outside = outside.into_iter().filter(|(count, _)| *count > 0);
    let outside: String = outside
        .map(|(count, what)| format!(" {count} {what}."))
        .collect();
    format!(
        "{shadow}. Then {} of the connections, each for {} to {} and {} responses, proven from {} on; {baseline}.{outside} An equal version is rolled back with a chance of at most {}.",
        stages.join(", "),
        humantime::format_duration(canary.min_duration),
        humantime::format_duration(canary.max_duration),
        canary.min_requests,
        percent(canary.proven_from),
        percent(1.0 - canary.confidence)
    )
}

fn whole_seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

#[cfg(test)]
mod tests;
