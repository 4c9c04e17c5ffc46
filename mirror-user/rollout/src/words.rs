//! What states, steps and gates are called.

use std::fmt;

use super::figures::{percent, points};
use super::gates::{Gate, Role, Unit};
use super::state::By;
use super::state::{State, Step};
use super::statistics::{Finding, Verdict};
use crate::Share;

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{}: {reason}", self.who),
            None => f.write_str(&self.who),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before => f.write_str("before the start"),
            Self::Shadowing => f.write_str("shadowing"),
            Self::ShadowPassed => f.write_str("shadow passed"),
            Self::Stage(stage) => write!(f, "stage {}", stage + 1),
            Self::StagePassed(stage) => write!(f, "stage {} passed", stage + 1),
            Self::Baking => f.write_str("baking"),
            Self::Settling => f.write_str("settling"),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Going(step) => step.fmt(f),
            Self::Held { at, .. } => write!(f, "held at {at}"),
            Self::Paused { at, .. } => write!(f, "paused at {at}"),
            Self::RollingBack { .. } => f.write_str("rolling back"),
            Self::RolledBack { .. } => f.write_str("rolled back"),
            Self::Aborted { .. } => f.write_str("aborted"),
            Self::Promoted => f.write_str("promoted"),
            Self::RetireDue => f.write_str("retire due"),
            Self::Finished => f.write_str("finished"),
        }
    }
}

impl Gate {
    /// Whether it is worth a line: one that nobody waits for is, when it speaks against a version, or says why it
    /// does not. Of slices there may be a hundred.
    pub fn tells(&self) -> bool {
        let explains = self.role == Role::Info && !self.name.starts_with("slice:");
        self.role == Role::Proof || self.verdict == Verdict::Worse || explains
    }
}

impl fmt::Display for Gate {
    /// One sentence: `p99 exceeds its limit, at most 1.2 times stable's: 1.61 times, at least 1.35,
    /// at most 2 (5,210 and 512 requests)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_unseen = |finding: &Finding| finding.trials == [0, 0];
        if self.finding.as_ref().is_some_and(is_unseen) {
            let note = self.note.as_deref().unwrap_or("no data yet");
            return write!(f, "no data for {}: {note}", self.name);
        }
        let said = match self.verdict {
            Verdict::Within => "is within its limit",
            Verdict::Worse => "exceeds its limit",
            Verdict::Unknown => "is not yet proven within its limit",
        };
        write!(f, "{} {said}, {}", self.name, self.limit)?;
        if let Some(value) = self.value {
            write!(f, ": {value}")?;
        }
        if let Some(finding) = &self.finding {
            write!(f, ": {}", Figures(self.unit, finding))?;
        }
        match &self.note {
            Some(note) => write!(f, " ({note})"),
            None => Ok(()),
        }
    }
}

/// Who waits so many times as long waits for ever.
const MANY: f64 = 1_000.0;

/// So many requests that count as one are worth a word.
const TELLS: f64 = 2.0;

/// What a test found, in its unit.
pub struct Figures<'a>(pub Unit, pub &'a Finding);

impl fmt::Display for Figures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(unit, finding) = self;
        let ([_, events], [_, trials]) = (finding.events, finding.trials);
        let [other_events, other_trials] = [finding.events[0], finding.trials[0]];
        match unit {
            Unit::Share => write!(f, "{} ({events} of {trials})", rate(events, trials))?,
            Unit::Difference => write!(
                f,
                "{} ({events} of {trials}) against {} ({other_events} of {other_trials})",
                rate(events, trials),
                rate(other_events, other_trials)
            )?,
            Unit::Ratio | Unit::Metric => match finding.estimate {
                // Most of them never came.
                Some(estimate) if estimate > MANY => {
                    write!(
                        f,
                        "more than {MANY} times, {trials} requests against {other_trials}"
                    )?;
                }
                Some(estimate) => {
                    write!(
                        f,
                        "{estimate:.2} times, {trials} requests against {other_trials}"
                    )?;
                }
                None => f.write_str("nothing to compare yet")?,
            },
            Unit::Spans => write!(f, "{events} of {trials} spans of 10 s beyond it")?,
        }
        self.write_interval(f)?;
        if finding.effect >= TELLS {
            write!(
                f,
                "; {:.0} requests count as one, since stable varies by itself",
                finding.effect
            )?;
        }
        if finding.clients_effect >= TELLS {
            write!(
                f,
                "; {:.0} requests count as one, since clients differ",
                finding.clients_effect
            )?;
        }
        Ok(())
    }
}

impl Figures<'_> {
    /// What is proven: `; at least 1.1 %, at most 4 %`.
    fn write_interval(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(unit, finding) = self;
        let figure = |end: f64| match unit {
            Unit::Ratio | Unit::Metric => format!("{end}"),
            Unit::Difference => points(end),
            _ => percent(end),
        };
        let what = match unit {
            Unit::Difference => "difference ",
            _ => "",
        };
        match (finding.low, finding.high) {
            (None, None) => Ok(()),
            (Some(low), None) => write!(f, "; {what}at least {}", figure(low)),
            (None, Some(high)) => write!(f, "; {what}at most {}", figure(high)),
            (Some(low), Some(high)) => {
                write!(f, "; {what}{} to {}", figure(low), figure(high))
            }
        }
    }
}

/// A share as people say it: `5 %`.
pub fn share(share: Share) -> String {
    percent(share.into())
}

fn rate(events: u64, trials: u64) -> String {
    if trials == 0 {
        return "nothing".to_owned();
    }
    format!("{:.2} %", 100.0 * events as f64 / trials as f64)
}
