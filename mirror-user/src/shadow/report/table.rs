//! The report as a person reads it, at most 96 columns wide.

use std::collections::BTreeMap;
use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::prediction::{Bar, Meaning, Numbers, Predictions, Spread};
use super::service::{Fidelity, LegLatency, Service};
use super::statistics::{Quantiles, Share};
use super::{Difference, Report};
use crate::shadow::compare::short;

const WIDTH: u16 = 96;

/// Rows of a list that are shown; `--output json` has all.
const ROWS: usize = 10;

/// Characters of a histogram's longest bar.
const BAR: f64 = 24.0;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.services.is_empty() {
            let folder = self.record_dir.display();
            return writeln!(f, "No records in {folder}: nothing was compared yet.");
        }
        for (index, service) in self.services.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{service}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |versions: &std::collections::BTreeSet<String>| {
            let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
            versions.join(" and ")
        };
        write!(f, "{}", self.service)?;
        if self.compared > 0 {
            let production = list(&self.production_versions);
            let shadow = list(&self.shadow_versions);
            write!(f, ": {shadow} in the shadow of {production}")?;
        }
        writeln!(f, "\n")?;
        overview(f, self)?;
        if self.compared == 0 {
            return Ok(());
        }
        latency(f, self)?;
        status(f, self)?;
        differences(f, self)?;
        if let Some(predictions) = &self.predictions {
            labels(f, predictions)?;
            numbers(f, predictions)?;
        }
        slices(f, self)
    }
}

/// A table without lines, two columns in from the left.
fn plain() -> Table {
    let mut table = Table::new();
    table
        .load_preset(comfy_table::presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_width(WIDTH);
    table
}

fn right(table: &mut Table, columns: std::ops::Range<usize>) {
    for index in columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

fn show(f: &mut fmt::Formatter<'_>, title: &str, table: &Table) -> fmt::Result {
    if !title.is_empty() {
        writeln!(f, "\n  {title}")?;
    }
    for line in table.to_string().lines() {
        writeln!(f, " {}", line.trim_end())?;
    }
    Ok(())
}

fn overview(f: &mut fmt::Formatter<'_>, service: &Service) -> fmt::Result {
    let mut table = plain();
    let verdicts = service.verdicts;
    table.add_row([
        "compared".into(),
        count(service.compared),
        match (service.first, service.last) {
            (Some(first), Some(last)) => span(first, last),
            _ => "nothing yet".into(),
        },
    ]);
    if let Some(Share { share, low, high }) = service.agreement {
        let interval = format!("95 % interval {} to {}", percent(low), percent(high));
        table.add_row(["agreement".into(), percent(share), interval]);
    }
    if let Some(score) = service.mean_score {
        let judged = count(service.compared - verdicts.error);
        let words = format!("mean of the {judged} that are not errors; 1 = equal");
        table.add_row(["score".into(), format!("{score:.4}"), words]);
    }
    if verdicts.different > 0 {
        let words = "answers that are not equal by the service's rules".to_owned();
        table.add_row(["different".into(), count(verdicts.different), words]);
    }
    table.add_row([
        "errors".into(),
        count(verdicts.error),
        match service.errors.is_empty() {
            true => "the shadow answered every time".into(),
            false => by_reason(&service.errors),
        },
    ]);
    if let Some(fidelity) = &service.fidelity {
        table.add_row(["fidelity".into(), percent(fidelity.ratio), seen(fidelity)]);
        let drops = &fidelity.ledger.drops;
        let dropped = drops.values().sum();
        if dropped > 0 {
            table.add_row(["dropped".into(), count(dropped), by_reason(drops)]);
        }
    }
    if service.both_failed > 0 {
        let words = "answered with 5xx by both, equal or not".to_owned();
        table.add_row(["both failed".into(), count(service.both_failed), words]);
    }
    if service.unreadable_lines > 0 {
        let words = "lines that are no records, left out".to_owned();
        table.add_row(["unreadable".into(), count(service.unreadable_lines), words]);
    }
    right(&mut table, 1..2);
    show(f, "", &table)
}

fn seen(fidelity: &Fidelity) -> String {
    let ledger = &fidelity.ledger;
    let (compared, seen) = (count(ledger.compared), count(ledger.seen));
    let since = second(ledger.since);
    format!("compared {compared} of {seen} seen since {since} UTC")
}

fn by_reason(counts: &BTreeMap<String, u64>) -> String {
    let mut sorted: Vec<(&String, &u64)> = counts.iter().filter(|(_, n)| **n > 0).collect();
    sorted.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    let words: Vec<String> = sorted
        .into_iter()
        .map(|(reason, n)| format!("{reason} {}", count(*n)))
        .collect();
    words.join(", ")
}

fn latency(f: &mut fmt::Formatter<'_>, service: &Service) -> fmt::Result {
    let mut table = plain();
    table.set_header(["", "", "p50", "p95", "p99", "max"]);
    let legs = [
        ("production", &service.latency.production),
        ("shadow", &service.latency.shadow),
    ];
    for (
        name,
        LegLatency {
            first_byte_ms,
            total_ms,
        },
    ) in legs
    {
        let row = |name: &str, to: &str, quantiles: &Option<Quantiles>| {
            let figures = quantiles.map(|q| [q.p50, q.p95, q.p99, q.max].map(milliseconds));
            let figures = figures.unwrap_or_else(|| std::array::from_fn(|_| "-".into()));
            [name.into(), to.into()].into_iter().chain(figures)
        };
        table.add_row(row(name, "first byte", first_byte_ms));
        table.add_row(row("", "total", total_ms));
    }
    right(&mut table, 2..6);
    show(
        f,
        "Latency in milliseconds, from the last byte of the request",
        &table,
    )
}

fn status(f: &mut fmt::Formatter<'_>, service: &Service) -> fmt::Result {
    let (production, shadow) = (&service.production_status, &service.shadow_status);
    let classes: std::collections::BTreeSet<&String> =
        production.keys().chain(shadow.keys()).collect();
    let errors = service.verdicts.error;
    let mut table = plain();
    let mut header: Vec<&str> = vec![""];
    header.extend(classes.iter().map(|class| class.as_str()));
    if errors > 0 {
        header.push("none");
    }
    let columns = header.len();
    table.set_header(header);
    for (name, statuses, none) in [("production", production, 0), ("shadow", shadow, errors)] {
        let mut row = vec![name.to_owned()];
        row.extend(classes.iter().map(|class| match statuses.get(*class) {
            Some(n) => count(*n),
            None => "-".into(),
        }));
        if errors > 0 {
            row.push(if none > 0 { count(none) } else { "-".into() });
        }
        table.add_row(row);
    }
    right(&mut table, 1..columns);
    show(f, "Status", &table)
}

fn differences(f: &mut fmt::Formatter<'_>, service: &Service) -> fmt::Result {
    if service.differences.is_empty() {
        return Ok(());
    }
    let mut table = plain();
    for Difference {
        kind,
        count: n,
        example,
    } in service.differences.iter().take(ROWS)
    {
        let share = *n as f64 / service.compared as f64;
        table.add_row([count(*n), percent(share), kind.clone()]);
        let id = example.id;
        if example.difference != *kind {
            table.add_row(["", "", &format!("e.g. {}", example.difference)]);
        }
        table.add_row(["", "", &format!("     {id}")]);
    }
    let more = service.differences.len().saturating_sub(ROWS);
    if more > 0 || service.other_differences > 0 {
        table.add_row([
            "",
            "",
            &format!("and {more} kinds more: --output json lists them"),
        ]);
    }
    right(&mut table, 0..2);
    show(f, "Most frequent differences", &table)
}

fn labels(f: &mut fmt::Formatter<'_>, predictions: &Predictions) -> fmt::Result {
    if predictions.labels.is_empty() {
        return Ok(());
    }
    let total =
        |leg: fn(&super::LabelCount) -> u64| -> u64 { predictions.labels.iter().map(leg).sum() };
    let totals = [total(|label| label.production), total(|label| label.shadow)];
    let share = |n: u64, leg: usize| n as f64 / totals[leg].max(1) as f64;
    let all = predictions.labels.iter();
    let most = all
        .map(|label| share(label.production, 0).max(share(label.shadow, 1)))
        .fold(f64::MIN_POSITIVE, f64::max);
    let mut table = plain();
    table.set_header(["label", "production", "", "shadow", "", "points"]);
    for label in predictions.labels.iter().take(ROWS) {
        let (p, s) = (share(label.production, 0), share(label.shadow, 1));
        // Rounded before it is printed: there is no -0.00.
        let points = ((s - p) * 1e4).round() / 100.0 + 0.0;
        table.add_row([
            cut(&label.label),
            percent(p),
            bar(p / most),
            percent(s),
            bar(s / most),
            format!("{points:+.2}"),
        ]);
    }
    right(&mut table, 1..2);
    right(&mut table, 3..4);
    right(&mut table, 5..6);
    show(f, "Prediction: share of each label", &table)?;
    rest(f, predictions.labels.len(), "labels")?;
    if predictions.changes.is_empty() {
        return Ok(());
    }
    let mut table = plain();
    table.set_header(["times", "production", "shadow"]);
    for change in predictions.changes.iter().take(ROWS) {
        table.add_row([count(change.count), cut(&change.from), cut(&change.to)]);
    }
    right(&mut table, 0..1);
    show(f, "Labels that changed", &table)?;
    rest(f, predictions.changes.len(), "pairs")
}

fn numbers(f: &mut fmt::Formatter<'_>, predictions: &Predictions) -> fmt::Result {
    let Some(numbers) = &predictions.numbers else {
        return Ok(());
    };
    let what = match predictions.of {
        Meaning::Values => "Prediction: values",
        Meaning::Confidence => "Prediction: probability of the label",
    };
    let mut table = plain();
    table.set_header(["", "min", "p5", "p25", "p50", "p75", "p95", "max", "mean"]);
    for (name, spread) in [
        ("production", numbers.production),
        ("shadow", numbers.shadow),
    ] {
        let Some(s) = spread else { continue };
        let Spread {
            min,
            p5,
            p25,
            p50,
            p75,
            p95,
            max,
            mean,
            ..
        } = s;
        let figures = [min, p5, p25, p50, p75, p95, max, mean].map(figure);
        table.add_row([name.to_owned()].into_iter().chain(figures));
    }
    right(&mut table, 1..9);
    show(f, what, &table)?;
    histogram(f, numbers)?;
    unusual(f, numbers)
}

fn histogram(f: &mut fmt::Formatter<'_>, numbers: &Numbers) -> fmt::Result {
    if numbers.histogram.is_empty() {
        return Ok(());
    }
    let most = numbers
        .histogram
        .iter()
        .flat_map(|bar| [bar.production, bar.shadow]);
    let scale = most.fold(f64::MIN_POSITIVE, f64::max);
    let mut table = plain();
    table.set_header(["from", "to", "production", "", "shadow", ""]);
    for Bar {
        from,
        to,
        production,
        shadow,
    } in &numbers.histogram
    {
        table.add_row([
            figure(*from),
            figure(*to),
            percent(*production),
            bar(production / scale),
            percent(*shadow),
            bar(shadow / scale),
        ]);
    }
    right(&mut table, 0..3);
    right(&mut table, 4..5);
    writeln!(f)?;
    show(f, "", &table)
}

fn unusual(f: &mut fmt::Formatter<'_>, numbers: &Numbers) -> fmt::Result {
    if numbers.unusual.is_empty() {
        return Ok(());
    }
    let mut table = plain();
    table.set_header(["production", "shadow", "exchange"]);
    for unusual in &numbers.unusual {
        let said = [unusual.production, unusual.shadow];
        let [production, shadow] = said.map(|said| said.map_or_else(|| "-".into(), figure));
        table.add_row([production, shadow, unusual.id.to_string()]);
    }
    right(&mut table, 0..2);
    show(f, "Unusually low and high ones", &table)
}

fn slices(f: &mut fmt::Formatter<'_>, service: &Service) -> fmt::Result {
    if service.slices.is_empty() {
        return Ok(());
    }
    let mut table = plain();
    table.set_header(["slice", "compared", "agreement", "95 % interval"]);
    for slice in service.slices.iter().take(ROWS) {
        let Share { share, low, high } = slice.agreement;
        table.add_row([
            cut(&slice.slice),
            count(slice.compared),
            percent(share),
            format!("{} to {}", percent(low), percent(high)),
        ]);
    }
    right(&mut table, 1..3);
    show(f, "Slices, worst first", &table)?;
    rest(f, service.slices.len(), "slices")
}

/// Says how many rows of a list are not shown.
fn rest(f: &mut fmt::Formatter<'_>, rows: usize, what: &str) -> fmt::Result {
    match rows.saturating_sub(ROWS) {
        0 => Ok(()),
        more => writeln!(
            f,
            "  and {} {what} more: --output json lists them",
            count(more as u64)
        ),
    }
}

fn bar(share: f64) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (share.clamp(0.0, 1.0) * BAR * 8.0).round() as usize;
    let mut bar = "█".repeat(eighths / 8);
    bar.push_str(EIGHTHS[eighths % 8]);
    bar
}

/// A number in groups of three digits.
fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A share in percent; only all is 100 %, and only nothing is 0 %.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    let text = format!("{percent:.2}");
    match text.as_str() {
        "100.00" if share < 1.0 => ">99.99 %".into(),
        "0.00" if share > 0.0 => "<0.01 %".into(),
        _ => format!("{text} %"),
    }
}

fn milliseconds(value: f64) -> String {
    let decimals = match value {
        v if v < 10.0 => 2,
        v if v < 1000.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

/// A number to four significant digits.
fn figure(value: f64) -> String {
    let rounded = format!("{value:.3e}").parse().unwrap_or(value);
    short(rounded)
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(32) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A span of time to the second, the date said once where it is one.
fn span(from: jiff::Timestamp, to: jiff::Timestamp) -> String {
    let (from, to) = (second(from), second(to));
    let end = match (from.split_once(' '), to.split_once(' ')) {
        (Some((day, _)), Some((last_day, time))) if day == last_day => time,
        _ => &to,
    };
    format!("{from} to {end} UTC")
}

/// A time to the second.
fn second(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}
