//! A status as people read it, 80 to 100 columns wide.

use std::fmt;

use bytesize::ByteSize;
use comfy_table::Table;
use mirror_rollout::noise::Twin;

use super::{AgentStatus, ServiceStatus, TapStatus};
use crate::plain;

impl fmt::Display for AgentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = second(self.since);
        writeln!(
            f,
            "modelmirror {}, shadow agent since {since}",
            self.version
        )?;
        if self.records.stopped {
            let folder = self.record_dir.display();
            writeln!(
                f,
                "warning: record writes suspended, the disk refused them: {folder}"
            )?;
        }
        writeln!(f, "\n{}", taps(&self.taps))?;
        if let Some(last) = &self.last_refusal {
            let (peer, why, time) = (
                printable(&last.peer),
                printable(&last.why),
                second(last.time),
            );
            writeln!(f, "last refused: {peer} at {time}: {why}")?;
        }
        for service in &self.services {
            writeln!(f)?;
            write_service(f, service)?;
        }
        let [used, limit] = self.memory_bytes.map(ByteSize);
        writeln!(f, "\nmemory   {used} of {limit}")?;
        let records = self.records;
        write!(f, "records  {} written", records.written)?;
        for (number, what) in [
            (records.lost, "lost"),
            (records.failed, "refused by the disk"),
        ] {
            if number > 0 {
                write!(f, ", {number} {what}")?;
            }
        }
        writeln!(f, ", {}", self.record_dir.display())
    }
}

fn taps(taps: &[TapStatus]) -> String {
    if taps.is_empty() {
        return "no tap has connected yet".to_owned();
    }
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header([
        "TAP",
        "CONNECTED SINCE",
        "BY",
        "LAST REPORT",
        "COPIES",
        "ON THE WAY",
        "LOST",
    ]);
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for tap in taps {
        let connected = match (tap.connected_since, &tap.transport) {
            (Some(since), _) => second(since),
            (None, Some(_)) => "GONE".to_owned(),
            (None, None) => "-".to_owned(),
        };
        let copies: u64 = tap.copies.values().sum();
        let lost = match tap.copies.get("lost") {
            Some(0) | None => "0".to_owned(),
            Some(lost) => format!("{lost} ({})", ByteSize(tap.lost_bytes)),
        };
        table.add_row([
            tap.name.clone(),
            connected,
            tap.transport
                .clone()
                .unwrap_or_else(|| "datagrams".to_owned()),
            tap.last_report.map_or_else(|| "-".to_owned(), second),
            copies.to_string(),
            tap.outstanding.to_string(),
            lost,
        ]);
    }
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}

/// What the versions differ from themselves.
fn write_noise(f: &mut fmt::Formatter<'_>, service: &ServiceStatus) -> fmt::Result {
    if let Some(control) = &service.control {
        let state = match &control.down {
            Some(error) => format!("DOWN ({error}): noise is not known"),
            None => "ok".to_owned(),
        };
        writeln!(f, "  control      {}, {state}", control.address)?;
        let twins = [
            ("noise", Twin::Control, &control.pairs, &control.missing),
            (
                "repeated",
                Twin::Repeat,
                &control.repeat,
                &control.repeat_missing,
            ),
        ];
        for (name, twin, pairs, missing) in twins {
            if let Some(words) = pairs.in_words(twin) {
                writeln!(f, "  {name:<11}  of {}: {words}", pairs.count())?;
            }
            let missing = missing.iter().map(|(why, count)| format!("{why} {count}"));
            let missing: Vec<_> = missing.collect();
            if !missing.is_empty() {
                writeln!(f, "  {name:<11}  no answer: {}", missing.join(", "))?;
            }
        }
    }
    let traffic = service.traffic;
    if traffic.differing > 0 {
        let (differing, all) = (traffic.differing, traffic.repeated);
        writeln!(
            f,
            "  traffic      {differing} of {all} repeated requests were not answered as before"
        )?;
    }
    Ok(())
}

fn write_service(f: &mut fmt::Formatter<'_>, service: &ServiceStatus) -> fmt::Result {
    let versions: Vec<&str> = service
        .production_versions
        .iter()
        .map(String::as_str)
        .collect();
    let production = match versions.is_empty() {
        true => "a version that no tap has named yet".to_owned(),
        false => versions.join(" and "),
    };
    let ServiceStatus {
        name, id, version, ..
    } = service;
    writeln!(
        f,
        "SERVICE {name}  id {id}, {version} in the shadow of {production}"
    )?;
    let state = match (service.down_seconds, service.saturated_seconds) {
        (Some(down), _) => format!("DOWN for {down:.0} s"),
        (None, Some(full)) => {
            format!("SATURATED for {full:.0} s: lower sample or raise concurrency")
        }
        (None, None) => "ok".to_owned(),
    };
    writeln!(f, "  shadow       {}, {state}", service.target)?;
    let ([waiting, queue], [active, concurrency]) = (service.queue, service.active);
    writeln!(
        f,
        "  queue        {waiting} of {queue} wait, {active} of {concurrency} under way"
    )?;
    write!(
        f,
        "  requests     {} seen, {} compared",
        service.seen, service.compared
    )?;
    if let Some(fidelity) = service.fidelity {
        write!(f, " (fidelity {:.2} %)", fidelity * 100.0)?;
    }
    writeln!(f, ", {} without an outcome yet", service.in_flight)?;
    for (name, counts) in [("dropped", &service.drops), ("verdicts", &service.verdicts)] {
        let counts = counts.iter().filter(|(_, count)| **count > 0);
        let counts: Vec<_> = counts
            .map(|(what, count)| format!("{what} {count}"))
            .collect();
        if !counts.is_empty() {
            writeln!(f, "  {name:<11}  {}", counts.join(", "))?;
        }
    }
    write_noise(f, service)?;
    if let Some(last) = &service.last_error {
        let time = second(last.time);
        writeln!(
            f,
            "  last error   {} at {time}, exchange {}",
            last.error, last.id
        )?;
    }
    if let Some(last) = &service.last_malformed {
        let (why, side, client) = (&last.why, &last.side, last.client);
        writeln!(f, "  malformed    the last one: {why} ({side}) of {client}")?;
    }
    Ok(())
}

/// What others say cannot move the cursor.
fn printable(text: &str) -> String {
    plain::line(text, 200)
}

fn second(time: jiff::Timestamp) -> String {
    time.strftime("%F %TZ").to_string()
}
