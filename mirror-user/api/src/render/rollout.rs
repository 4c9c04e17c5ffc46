//! A rollout: where it is, why it waits, what comes next, and what every gate says.

use std::fmt;

use comfy_table::CellAlignment;
use jiff::Timestamp;
use mirror_rollout::gates::{Gate, Role, Unit};
use mirror_rollout::statistics::{Finding, Verdict};
use mirror_rollout::words::share;

use super::{dash, percent, table, trimmed};
use crate::RolloutHistory;
use crate::RolloutOutcome;
use crate::RolloutState;
use crate::RolloutStates;
use crate::RolloutSummary;
use crate::StepName;

impl fmt::Display for RolloutStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, entry) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            match &entry.rollout {
                Some(rollout) => write_whole(f, &entry.service, rollout)?,
                None => writeln!(
                    f,
                    "{}: no rollout yet; `modelmirror rollout start --service {}` begins one",
                    entry.service, entry.service
                )?,
            }
        }
        Ok(())
    }
}

fn write_whole(f: &mut fmt::Formatter<'_>, service: &str, rollout: &RolloutState) -> fmt::Result {
    writeln!(
        f,
        "ROLLOUT {}  {service}: {} at {} instead of {}",
        rollout.id, rollout.canary.version, rollout.canary.address, rollout.stable_version
    )?;
    writeln!(
        f,
        "  state        {}, {} of new connections, for {}",
        loud(rollout),
        share(rollout.share),
        span(rollout.since, rollout.time)
    )?;
    if let Some(reason) = &rollout.reason {
        // Of an order the reason is who gave it, and what was said with it.
        let label = match rollout.step {
            StepName::Paused | StepName::Aborted => "by",
            _ => "because",
        };
        writeln!(f, "  {label:<12} {reason}")?;
    }
    for warning in &rollout.warnings {
        writeln!(f, "  warning      {warning}")?;
    }
    for (index, held) in rollout.waiting.iter().enumerate() {
        let label = if index == 0 { "waits" } else { "" };
        writeln!(f, "  {label:<12} {}", held.why)?;
    }
    if let Some(next) = next(service, rollout) {
        writeln!(f, "  next         {next}")?;
    }
    let [stable, canary] = rollout.requests;
    writeln!(
        f,
        "  responses    {stable} by {}, {canary} by {} ({} at this stage)",
        rollout.stable_version,
        rollout.canary.version,
        percent(rollout.achieved)
    )?;
    writeln!(
        f,
        "  started      {}, {} ago",
        moment(rollout.started),
        span(rollout.started, rollout.time)
    )?;
    if rollout.gates.is_empty() {
        return writeln!(f, "  gates        nothing was looked at yet");
    }
    for line in gates(&rollout.gates).lines() {
        writeln!(f, "  {line}")?;
    }
    for gate in &rollout.gates {
        let said = |note: &str| rollout.waiting.iter().any(|held| held.why.contains(note));
        if let Some(note) = gate.note.as_deref().filter(|note| !said(note)) {
            writeln!(f, "  {}: {note}", gate.name)?;
        }
    }
    Ok(())
}

/// The rollout in `modelmirror status`.
pub(super) fn write(
    f: &mut fmt::Formatter<'_>,
    service: &str,
    rollout: &RolloutState,
) -> fmt::Result {
    write!(
        f,
        "  rollout      {}: {}",
        rollout.canary.version,
        loud(rollout)
    )?;
    if rollout.outcome.is_none() {
        write!(f, ", {} of new connections", share(rollout.share))?;
    }
    writeln!(f, ", for {}", span(rollout.since, rollout.time))?;
    let more = format!("`modelmirror rollout status --service {service}` says more");
    match (&rollout.reason, rollout.waiting.as_slice()) {
        (Some(reason), _) => writeln!(f, "               {reason}")?,
        (None, []) => {}
        (None, [only]) => writeln!(f, "               waits: {}", only.why)?,
        (None, [first, rest @ ..]) => writeln!(
            f,
            "               waits: {}, and {} more: {more}",
            first.why,
            rest.len()
        )?,
    }
    if matches!(rollout.step, StepName::Promoted | StepName::RetireDue) {
        let next = next(service, rollout).unwrap_or_default();
        writeln!(f, "               {next}")?;
    }
    Ok(())
}

/// The state, in capitals where a person is wanted.
fn loud(rollout: &RolloutState) -> String {
    match rollout.step {
        StepName::Held | StepName::RollingBack | StepName::RolledBack | StepName::RetireDue => {
            rollout.state.to_uppercase()
        }
        _ => rollout.state.clone(),
    }
}

/// What comes next, and when.
fn next(service: &str, rollout: &RolloutState) -> Option<String> {
    let (canary, stable) = (&rollout.canary.version, &rollout.stable_version);
    let stages = rollout.stages.len();
    let stage = |index: usize| match rollout.stages.get(index) {
        Some(stage) => format!("stage {} of {stages} at {}", index + 1, share(*stage)),
        None => "bake at the same share".to_owned(),
    };
    let after = rollout.stage.map_or(0, |stage| stage + 1);
    let order = |words: &str| format!("`modelmirror rollout {words} --service {service}`");
    let finish = format!(
        "let {canary} listen at the service's own address, then {}; until then this node steers",
        order("finish")
    );
    Some(match rollout.step {
        StepName::Before => "the beginning, once every hook approves".to_owned(),
        StepName::Shadow => format!("{}, once every gate is within its limit", stage(0)),
        StepName::ShadowPassed | StepName::StagePassed => {
            format!("{}, once every hook approves", stage(after))
        }
        StepName::Stage => format!("{} when the gates pass", stage(after)),
        StepName::Baking => "everything (settling), if it stays good".to_owned(),
        StepName::Settling => "promoted, if it stays good".to_owned(),
        StepName::Held | StepName::Paused => format!(
            "a person decides: {}, or promote, or abort",
            order("resume")
        ),
        StepName::RollingBack => "rolled back, once the kernel has it".to_owned(),
        StepName::RolledBack | StepName::Aborted => format!(
            "{} tells why; `rollout start --again` tries the same once more",
            order("explain")
        ),
        StepName::Promoted => finish,
        StepName::RetireDue => format!("{stable} may be retired; {finish}"),
        StepName::Finished => return None,
    })
}

/// Those that speak against the version first, then those that are waited for.
fn gates(gates: &[Gate]) -> String {
    let mut table = table(&["GATE", "VERDICT", "FIGURE", "PROVEN", "LIMIT", "COUNTED"]);
    if let Some(column) = table.column_mut(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut gates: Vec<&Gate> = gates.iter().collect();
    gates.sort_by_key(|gate| match (gate.verdict, gate.role) {
        (Verdict::Worse, _) => 0,
        (Verdict::Unknown, Role::Proof) => 1,
        (Verdict::Within, Role::Proof) => 2,
        (_, Role::Watch | Role::Severe) => 3,
        (_, Role::Info) => 4,
    });
    for gate in gates {
        let verdict = match (gate.verdict, gate.role) {
            (_, Role::Info) => "not judged",
            (Verdict::Worse, _) => "WORSE",
            (Verdict::Within, _) => "within",
            (Verdict::Unknown, Role::Proof) => "not known",
            (Verdict::Unknown, Role::Watch | Role::Severe) => "not worse",
        };
        let finding = gate.finding.as_ref();
        let value = finding.and_then(|finding| finding.estimate).or(gate.value);
        table.add_row([
            gate.name.clone(),
            verdict.to_owned(),
            value.map_or_else(dash, |value| figure(gate.unit, value)),
            finding.map_or_else(dash, |finding| proven(gate.unit, finding)),
            gate.limit.clone(),
            finding.map_or_else(dash, |finding| counted(gate.unit, finding)),
        ]);
    }
    trimmed(&table)
}

fn figure(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Share | Unit::Spans => percent(Some(value)),
        Unit::Difference => format!("{:.2} points", value * 100.0),
        Unit::Ratio => format!("{value:.2} times"),
        Unit::Metric => format!("{value}"),
    }
}

fn proven(unit: Unit, finding: &Finding) -> String {
    let figure = |end| figure(unit, end);
    match (finding.low, finding.high) {
        (None, None) => dash(),
        (Some(low), None) => format!("at least {}", figure(low)),
        (None, Some(high)) => format!("at most {}", figure(high)),
        (Some(low), Some(high)) => format!("{} to {}", figure(low), figure(high)),
    }
}

/// The canary's, or the shadow's, against the other's.
fn counted(unit: Unit, finding: &Finding) -> String {
    let ([others, events], [other_trials, trials]) = (finding.events, finding.trials);
    match unit {
        Unit::Share | Unit::Spans => format!("{events} of {trials}"),
        Unit::Difference => format!("{events} of {trials} against {others} of {other_trials}"),
        Unit::Ratio => format!("{trials} against {other_trials}"),
        Unit::Metric => dash(),
    }
}

impl fmt::Display for RolloutHistory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no rollout yet");
        }
        let mut table = table(&["STARTED", "SERVICE", "FROM", "TO", "OUTCOME", "AFTER", "ID"]);
        for rollout in &self.0 {
            table.add_row([
                moment(rollout.started),
                rollout.service.clone(),
                rollout.stable_version.clone(),
                rollout.canary.version.clone(),
                came_to(rollout).to_owned(),
                took(rollout),
                rollout.id.clone(),
            ]);
        }
        f.write_str(&trimmed(&table))?;
        let reasons = self.0.iter().filter_map(|rollout| {
            let reason = rollout.reason.as_ref()?;
            let by = match (rollout.outcome, rollout.step) {
                (Some(RolloutOutcome::Aborted), _) => "aborted by ",
                (None, Some(StepName::Paused)) => "paused by ",
                _ => "",
            };
            Some(format!("\n{}: {by}{reason}", rollout.id))
        });
        let reasons: String = reasons.collect();
        if !reasons.is_empty() {
            write!(f, "\n{reasons}")?;
        }
        Ok(())
    }
}

/// What came of it, or what keeps it from going on.
fn came_to(rollout: &RolloutSummary) -> &'static str {
    match (rollout.outcome, rollout.step) {
        (Some(outcome), _) => outcome.label(),
        (None, Some(StepName::Held)) => "held",
        (None, Some(StepName::Paused)) => "paused",
        (None, Some(StepName::RollingBack)) => "rolling back",
        (None, _) => "running",
    }
}

fn took(rollout: &RolloutSummary) -> String {
    rollout
        .ended
        .map_or_else(dash, |ended| span(rollout.started, ended))
}

/// From one moment to another, in whole seconds.
fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = to.duration_since(from).as_secs().max(0);
    humantime::format_duration(std::time::Duration::from_secs(seconds.unsigned_abs())).to_string()
}

/// In UTC, to the second.
fn moment(time: Timestamp) -> String {
    time.strftime("%F %TZ").to_string()
}
