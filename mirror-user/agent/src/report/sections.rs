//! The report's tables, before it is decided how they look.

use std::collections::{BTreeMap, BTreeSet};

use mirror_rollout::noise::Twin;
use mirror_wire::message::DropReason;

use super::Service;
use super::figures::{count, cut, figure, milliseconds, percent, points, second, span};
use super::labels::{Accuracy, LabelsRead, Right, RightSlice};
use super::prediction::{Bar, Meaning, Numbers, Predictions, Spread};
use super::proposal::Proposal;
use super::selection::Pair;
use super::service::{Canary, Fidelity, LegLatency};
use super::statistics::{Difference, Quantiles, Share};
use crate::compare::Values;

/// Rows of a list that are shown; `--output json` has all.
const ROWS: usize = 10;

/// Other version pairs that are named.
const OTHERS: usize = 5;

/// A table with its title.
pub(super) struct Section {
    /// Nothing for what needs none.
    pub(super) title: &'static str,
    /// Names of the columns, where they need any.
    pub(super) head: Vec<String>,
    pub(super) rows: Vec<Vec<Cell>>,
    /// Columns of figures, aligned to the right.
    pub(super) figures: Vec<usize>,
    /// What is not shown.
    pub(super) more: Option<String>,
}

/// One cell.
pub(super) enum Cell {
    Text(String),
    /// A bar of this part of the longest one.
    Bar(f64),
}

impl<S: Into<String>> From<S> for Cell {
    fn from(text: S) -> Self {
        Self::Text(text.into())
    }
}

impl Section {
    fn new(title: &'static str, head: &[&str], figures: impl IntoIterator<Item = usize>) -> Self {
        Self {
            title,
            head: head.iter().map(|&name| name.to_owned()).collect(),
            rows: Vec::new(),
            figures: figures.into_iter().collect(),
            more: None,
        }
    }

    fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// Says how many of `rows` are not shown.
    fn rest(mut self, rows: usize, what: &str) -> Self {
        let more = rows.saturating_sub(ROWS) as u64;
        if more > 0 {
            self.more = Some(format!(
                "and {} {what} more: --output json lists them",
                count(more)
            ));
        }
        self
    }
}

/// What the service is called, and which versions stand against each other.
pub(super) fn heading(service: &Service) -> String {
    let list = |versions: &BTreeSet<String>| {
        let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
        versions.join(" and ")
    };
    if service.compared == 0 {
        return service.service.clone();
    }
    let production = list(&service.production_versions);
    let shadow = list(&service.shadow_versions);
    format!(
        "{}: {shadow} in the shadow of {production}",
        service.service
    )
}

/// All of a service's tables in their order.
pub(super) fn sections(service: &Service) -> Vec<Section> {
    let mut sections = vec![overview(service)];
    sections.extend(service.canary.as_ref().map(canary));
    if service.compared == 0 {
        return sections;
    }
    sections.push(latency(service));
    sections.push(status(service));
    sections.extend(differences(service));
    let found = service.proposal.as_ref();
    sections.extend(found.map(|found| proposal(found, service.agreement)));
    if let Some(predictions) = &service.predictions {
        sections.extend(labels(predictions));
        sections.extend(changes(predictions));
        if let Some(found) = &predictions.numbers {
            sections.push(spreads(found, predictions.of));
            sections.extend(histogram(found));
            sections.extend(unusual(found));
        }
    }
    sections.extend(slices(service));
    if let Some(accuracy) = &service.labels {
        sections.push(right(accuracy));
        sections.extend(right_slices(accuracy));
    }
    sections
}

/// What became of the file of labels.
pub(super) fn labels_read(read: &LabelsRead) -> Section {
    let mut table = Section::new("Labels", &[], [1]);
    let file = read.file.display().to_string();
    table.row(["ids".into(), count(read.labels).into(), file.into()]);
    not_used(&mut table, &read.unused);
    for bad in &read.bad_lines {
        table.row(["".into(), "".into(), bad.as_str().into()]);
    }
    table
}

fn not_used(table: &mut Section, unused: &BTreeMap<&'static str, u64>) {
    let number = unused.values().sum();
    if number > 0 {
        let reasons: BTreeMap<String, u64> = unused
            .iter()
            .map(|(why, &count)| ((*why).to_owned(), count))
            .collect();
        let number = count(number);
        table.row(["not used".into(), number.into(), by_reason(&reasons).into()]);
    }
}

fn right(accuracy: &Accuracy) -> Section {
    let title = "By the labels that came later: how often each version was right";
    let mut table = Section::new(title, &[], [1]);
    let Right {
        labelled,
        pairs,
        production,
        shadow,
        difference,
    } = accuracy.all;
    let words = "requests with a label and both predictions";
    table.row(["labelled".into(), count(labelled).into(), words.into()]);
    for (name, share) in [("production", production), ("shadow", shadow)] {
        if let Some(Share { share, low, high }) = share {
            let interval = format!("95 % interval {} to {}", percent(low), percent(high));
            table.row([name.into(), percent(share).into(), interval.into()]);
        }
    }
    if let Some(found) = difference {
        let [low, high] = [found.low, found.high].map(points);
        let interval = format!("points, 95 % interval {low} to {high}; of the same requests");
        let found = points(found.difference);
        table.row(["difference".into(), found.into(), interval.into()]);
    }
    for (name, number) in [
        ("both right", pairs.both_right),
        ("production only", pairs.production_only),
        ("shadow only", pairs.shadow_only),
        ("neither", pairs.neither),
    ] {
        table.row([name.into(), count(number).into(), "".into()]);
    }
    not_used(&mut table, &accuracy.unused);
    table
}

fn right_slices(accuracy: &Accuracy) -> Option<Section> {
    let head = [
        "slice",
        "labelled",
        "production",
        "shadow",
        "points",
        "95 % interval",
    ];
    let title = "Slices by their labels, the shadow's greatest loss first";
    let mut table = Section::new(title, &head, 1..5);
    for RightSlice { slice, right } in accuracy.slices.iter().take(ROWS) {
        let share = |share: Option<Share>| share.map_or_else(|| "-".into(), |s| percent(s.share));
        let (lost, interval) = right.difference.map_or_else(Default::default, |found| {
            let [low, high] = [found.low, found.high].map(points);
            (points(found.difference), format!("{low} to {high}"))
        });
        table.row([
            cut(slice).into(),
            count(right.labelled).into(),
            share(right.production).into(),
            share(right.shadow).into(),
            lost.into(),
            interval.into(),
        ]);
    }
    let slices = accuracy.slices.len();
    (slices > 0).then(|| table.rest(slices, "slices"))
}

fn overview(service: &Service) -> Section {
    let mut table = Section::new("", &[], [1]);
    let verdicts = service.verdicts;
    let when = match (service.first, service.last) {
        (Some(first), Some(last)) => span(first, last),
        _ => "nothing yet".into(),
    };
    table.row([
        "compared".into(),
        count(service.compared).into(),
        when.into(),
    ]);
    chosen(service, &mut table);
    if let Some(Share { share, low, high }) = service.agreement {
        let interval = format!("95 % interval {} to {}", percent(low), percent(high));
        table.row(["agreement".into(), percent(share).into(), interval.into()]);
    }
    noise(service, &mut table);
    if let Some(score) = service.mean_score {
        let served = count(verdicts.served());
        let words = format!("mean of the {served} that both answered; 1 = equal");
        table.row(["score".into(), format!("{score:.4}").into(), words.into()]);
    }
    if verdicts.different > 0 {
        let words = "responses that are not equal by the service's rules";
        table.row([
            "different".into(),
            count(verdicts.different).into(),
            words.into(),
        ]);
    }
    let errors = match service.errors.is_empty() {
        true if service.compared == 0 => String::new(),
        true => "the shadow answered every time".into(),
        false => by_reason(&service.errors),
    };
    table.row(["errors".into(), count(verdicts.error).into(), errors.into()]);
    if let Some(fidelity) = &service.fidelity {
        table.row([
            "fidelity".into(),
            percent(fidelity.ratio).into(),
            seen(fidelity).into(),
        ]);
        let mut drops = fidelity.ledger.drops.clone();
        drops.remove(DropReason::NotCompared.label());
        drops.remove(DropReason::Excluded.label());
        let dropped = drops.values().sum();
        if dropped > 0 {
            table.row([
                "dropped".into(),
                count(dropped).into(),
                by_reason(&drops).into(),
            ]);
        }
    }
    if let Some(versions) = &service.ledger_of_others {
        let words = format!("the agent's present ledger is of {versions}");
        table.row(["fidelity".into(), "-".into(), words.into()]);
    }
    if verdicts.both_failed > 0 {
        let words = "answered with 4xx or 5xx by both: not part of the agreement";
        table.row([
            "both failed".into(),
            count(verdicts.both_failed).into(),
            words.into(),
        ]);
    }
    let worse = service.slices.iter().filter(|slice| slice.worse);
    let worse: Vec<String> = worse.map(|slice| cut(&slice.slice)).collect();
    if !worse.is_empty() {
        let number = count(worse.len() as u64);
        let names = worse[..worse.len().min(ROWS)].join(", ");
        let words = format!("slices that agree less than the rest, by more than chance: {names}");
        table.row(["worse in".into(), number.into(), words.into()]);
    }
    if service.unreadable_lines > 0 {
        let words = "lines that are no records, left out";
        table.row([
            "unreadable".into(),
            count(service.unreadable_lines).into(),
            words.into(),
        ]);
    }
    table
}

/// What of the difference no version is to blame for.
fn noise(service: &Service, table: &mut Section) {
    let twins = [
        (["noise", "excess"], Twin::Control, service.noise),
        (["repeated", "excess"], Twin::Repeat, service.repeat),
    ];
    for ([name, excess], twin, found) in twins {
        let Some(found) = found else { continue };
        let all = found.requests.count();
        let words = found.requests.in_words(twin).unwrap_or_default();
        table.row([name.into(), count(all).into(), words.into()]);
        let Difference {
            difference,
            low,
            high,
        } = found.excess;
        let interval = format!(
            "percentage points, 95 % interval {} to {}",
            points(low),
            points(high)
        );
        table.row([excess.into(), points(difference).into(), interval.into()]);
    }
}

/// Which records these are, and which there are besides.
fn chosen(service: &Service, table: &mut Section) {
    let mut note = |name: &str, number: Option<u64>, words: String| {
        let number = number.map(count).unwrap_or_default();
        table.row([name.into(), number.into(), words.into()]);
    };
    if let (Some(last), Some(pair)) = (service.last_only, &service.pair) {
        let words = format!("the last ones of {}", count(pair.compared));
        note("at most", Some(last), words);
    }
    if let Some(since) = service.since {
        let since = second(since);
        note("since", None, format!("{since}; none from before"));
    }
    if let Some(recompared) = &service.recompared {
        let changed = count(recompared.changed);
        let words = format!("by the present rules; {changed} have another verdict than recorded");
        note("recompared", Some(recompared.recompared), words);
        let left_out: BTreeMap<String, u64> = recompared
            .left_out
            .iter()
            .map(|(why, &count)| ((*why).to_owned(), count))
            .collect();
        let number = left_out.values().sum();
        if number > 0 {
            let words = format!("cannot be recompared: {}", by_reason(&left_out));
            note("left out", Some(number), words);
        }
    }
    for (index, other) in service.other_pairs.iter().enumerate().take(OTHERS) {
        let Pair { production, shadow } = &other.pair;
        let shadows = service.pair.iter().chain(&service.other_pairs[..index]);
        let is_plain = shadows
            .into_iter()
            .all(|known| known.pair.shadow != *shadow);
        let option = match is_plain {
            true => shadow.clone(),
            false => format!("{production}/{shadow}"),
        };
        let until = second(other.last);
        let words =
            format!("--version {option}: {shadow} in the shadow of {production}, until {until}");
        note("not here", Some(other.compared), words);
    }
    let more = service.other_pairs.len().saturating_sub(OTHERS);
    if more > 0 {
        note(
            "not here",
            None,
            format!("and {more} pairs more: --output json lists them"),
        );
    }
}

/// What always differs, and the line that leaves it out of the comparison.
fn proposal(found: &Proposal, now: Option<Share>) -> Section {
    let title = "Always different: ids, times, versions? Then ignore them";
    let mut table = Section::new(title, &[], [0]);
    for place in found.places.iter().take(ROWS) {
        let values = match place.values {
            Values::Integer => "integers",
            Values::Missing => "only in one answer",
            _ => "short texts",
        };
        let pointer = place.pointer.as_str();
        table.row([percent(place.share).into(), pointer.into(), values.into()]);
    }
    let share = |share: Option<Share>| share.map_or_else(|| "-".into(), |s| percent(s.share));
    let (would, now) = (share(found.agreement), share(now));
    table.more = Some(format!(
        "{would} would agree, rather than {now}, with this in [service.compare]:\n  {}",
        found.line()
    ));
    table
}

fn canary(canary: &Canary) -> Section {
    let mut table = Section::new("Answered by the canary in production", &[], [1]);
    let versions: Vec<&str> = canary.versions.iter().map(String::as_str).collect();
    let compared = count(canary.compared).into();
    table.row(["compared".into(), compared, versions.join(" and ").into()]);
    if let Some(Share { share, low, high }) = canary.agreement {
        let interval = format!("95 % interval {} to {}", percent(low), percent(high));
        table.row(["agreement".into(), percent(share).into(), interval.into()]);
    }
    let verdicts = [
        ("different", canary.verdicts.different),
        ("errors", canary.verdicts.error),
        ("both failed", canary.verdicts.both_failed),
    ];
    for (name, number) in verdicts.into_iter().filter(|&(_, number)| number > 0) {
        table.row([name.into(), count(number).into(), "".into()]);
    }
    let legs = [
        ("canary p50", canary.latency.production),
        ("shadow p50", canary.latency.shadow),
    ];
    for (name, leg) in legs {
        if let Some(quantiles) = leg.first_byte_ms {
            let words = "milliseconds from the last byte of the request to the first of the answer";
            table.row([
                name.into(),
                milliseconds(quantiles.p50).into(),
                words.into(),
            ]);
        }
    }
    table
}

fn seen(fidelity: &Fidelity) -> String {
    let ledger = &fidelity.ledger;
    let (compared, seen) = (count(ledger.compared), count(ledger.seen));
    let since = second(ledger.since);
    let replayed = match ledger.not_compared() {
        0 => String::new(),
        replayed => format!(", replayed alone {}", count(replayed)),
    };
    let excluded = match ledger.excluded() {
        0 => String::new(),
        excluded => format!(", {} excluded", count(excluded)),
    };
    format!("compared {compared}{replayed} of {seen} seen since {since}{excluded}")
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

fn latency(service: &Service) -> Section {
    let title = "Latency in milliseconds, from the last byte of the request";
    let mut table = Section::new(title, &["", "", "p50", "p95", "p99", "max"], 2..6);
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
        let mut row = |name: &str, to: &str, quantiles: &Option<Quantiles>| {
            let figures = quantiles.map(|q| [q.p50, q.p95, q.p99, q.max].map(milliseconds));
            let [p50, p95, p99, max] =
                figures.unwrap_or_else(|| std::array::from_fn(|_| "-".into()));
            table.row([
                name.into(),
                to.into(),
                p50.into(),
                p95.into(),
                p99.into(),
                max.into(),
            ]);
        };
        row(name, "first byte", first_byte_ms);
        row("", "total", total_ms);
    }
    table
}

fn status(service: &Service) -> Section {
    let (production, shadow) = (&service.production_status, &service.shadow_status);
    let mut columns: BTreeSet<&str> = production.keys().map(String::as_str).collect();
    columns.extend(shadow.keys().map(String::as_str));
    let mut table = Section::new("Status", &[""], 1..=columns.len() + 1);
    table
        .head
        .extend(columns.iter().map(|&class| class.to_owned()));
    let errors = service.verdicts.error;
    if errors > 0 {
        table.head.push("none".into());
    }
    for (name, statuses, none) in [("production", production, 0), ("shadow", shadow, errors)] {
        let number = |n: u64| Cell::from(if n > 0 { count(n) } else { "-".into() });
        let mut row = vec![name.into()];
        let counts = columns.iter().map(|&class| statuses.get(class).copied());
        row.extend(counts.map(|n| number(n.unwrap_or_default())));
        if errors > 0 {
            row.push(number(none));
        }
        table.rows.push(row);
    }
    table
}

fn differences(service: &Service) -> Option<Section> {
    let mut table = Section::new("Most frequent differences", &[], 0..2);
    for difference in service.differences.iter().take(ROWS) {
        let share = difference.count as f64 / service.compared as f64;
        let kind = difference.kind.as_str();
        table.row([
            count(difference.count).into(),
            percent(share).into(),
            kind.into(),
        ]);
        let example = &difference.example;
        let mut lines = vec![format!("exchange {}", example.id)];
        if example.difference != kind {
            lines.insert(0, example.difference.clone());
        }
        for (line, before) in lines.into_iter().zip(["e.g. ", "     "]) {
            table.row(["".into(), "".into(), format!("{before}{line}").into()]);
        }
    }
    let kinds = service.differences.len();
    (kinds > 0).then(|| table.rest(kinds, "kinds"))
}

fn labels(predictions: &Predictions) -> Option<Section> {
    let totals = predictions.labels.iter().fold([0, 0], |[p, s], label| {
        [p + label.production, s + label.shadow]
    });
    let share = |n: u64, leg: usize| n as f64 / totals[leg].max(1) as f64;
    let most = predictions
        .labels
        .iter()
        .map(|label| share(label.production, 0).max(share(label.shadow, 1)))
        .fold(f64::MIN_POSITIVE, f64::max);
    let head = ["label", "production", "", "shadow", "", "points"];
    let mut table = Section::new("Prediction: share of each label", &head, [1, 3, 5]);
    for label in predictions.labels.iter().take(ROWS) {
        let (p, s) = (share(label.production, 0), share(label.shadow, 1));
        table.row([
            cut(&label.label).into(),
            percent(p).into(),
            Cell::Bar(p / most),
            percent(s).into(),
            Cell::Bar(s / most),
            points(s - p).into(),
        ]);
    }
    let labels = predictions.labels.len();
    (labels > 0).then(|| table.rest(labels, "labels"))
}

fn changes(predictions: &Predictions) -> Option<Section> {
    let head = ["times", "production", "shadow"];
    let mut table = Section::new("Labels that changed", &head, [0]);
    for change in predictions.changes.iter().take(ROWS) {
        let times = count(change.count);
        table.row([
            times.into(),
            cut(&change.from).into(),
            cut(&change.to).into(),
        ]);
    }
    let pairs = predictions.changes.len();
    (pairs > 0).then(|| table.rest(pairs, "pairs"))
}

fn spreads(numbers: &Numbers, of: Meaning) -> Section {
    let title = match of {
        Meaning::Values => "Prediction: values",
        Meaning::Confidence => "Prediction: probability of the label",
    };
    let head = ["", "min", "p5", "p25", "p50", "p75", "p95", "max", "mean"];
    let mut table = Section::new(title, &head, 1..9);
    for (name, spread) in [
        ("production", numbers.production),
        ("shadow", numbers.shadow),
    ] {
        let Some(Spread {
            min,
            p5,
            p25,
            p50,
            p75,
            p95,
            max,
            mean,
            ..
        }) = spread
        else {
            continue;
        };
        let figures = [min, p5, p25, p50, p75, p95, max, mean].map(|value| figure(value).into());
        let row = [Cell::from(name)].into_iter().chain(figures);
        table.rows.push(row.collect());
    }
    table
}

fn histogram(numbers: &Numbers) -> Option<Section> {
    let shares = numbers
        .histogram
        .iter()
        .flat_map(|bar| [bar.production, bar.shadow]);
    let most = shares.fold(f64::MIN_POSITIVE, f64::max);
    let head = ["from", "to", "production", "", "shadow", ""];
    let mut table = Section::new("", &head, [0, 1, 2, 4]);
    for Bar {
        from,
        to,
        production,
        shadow,
    } in &numbers.histogram
    {
        table.row([
            figure(*from).into(),
            figure(*to).into(),
            percent(*production).into(),
            Cell::Bar(production / most),
            percent(*shadow).into(),
            Cell::Bar(shadow / most),
        ]);
    }
    (!table.rows.is_empty()).then_some(table)
}

fn unusual(numbers: &Numbers) -> Option<Section> {
    let head = ["production", "shadow", "exchange"];
    let mut table = Section::new("Unusually low and high ones", &head, 0..2);
    for unusual in &numbers.unusual {
        let said = [unusual.production, unusual.shadow];
        let [production, shadow] = said.map(|said| said.map_or_else(|| "-".into(), figure));
        table.row([
            production.into(),
            shadow.into(),
            unusual.id.to_string().into(),
        ]);
    }
    (!table.rows.is_empty()).then_some(table)
}

fn slices(service: &Service) -> Option<Section> {
    let head = ["slice", "compared", "agreement", "95 % interval"];
    let mut table = Section::new("Slices, worst first", &head, 1..3);
    for slice in service.slices.iter().take(ROWS) {
        let Share { share, low, high } = slice.agreement;
        let interval = format!("{} to {}", percent(low), percent(high));
        let name = cut(&slice.slice);
        table.row([
            name.into(),
            count(slice.compared).into(),
            percent(share).into(),
            interval.into(),
        ]);
    }
    let slices = service.slices.len();
    (slices > 0).then(|| table.rest(slices, "slices"))
}
