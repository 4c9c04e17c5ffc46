//! A canary and both its versions side by side.

use std::fmt;
use std::time::Duration;

use comfy_table::CellAlignment;

use super::{bytes, dash, percent, table, trimmed};
use crate::Affinity;
use crate::Arm;
use crate::CanaryState;
use crate::Quantiles;
use crate::ServerUse;

pub(super) fn write(f: &mut fmt::Formatter<'_>, canary: &CanaryState) -> fmt::Result {
    let kept = match canary.affinity {
        Affinity::Client => "a client",
        Affinity::Connection => "a connection",
    };
    let way = canary.by.as_ref().map_or_else(
        || "on this host".to_owned(),
        |by| {
            let hook = canary
                .xdp
                .map_or("at tc".to_owned(), |xdp| format!("at xdp {}", xdp.label()));
            format!("on another host by {by}, {hook}")
        },
    );
    writeln!(
        f,
        "  canary       {}, {}, {way}; {kept} keeps its version",
        canary.version, canary.address
    )?;
    if let Some(why) = &canary.xdp_error {
        writeln!(f, "  NOT AT XDP: {why}")?;
    }
    if let Some(why) = &canary.silent {
        writeln!(f, "  NO ANSWER: {why}; new connections go to stable")?;
    }
    if let Some(error) = &canary.error {
        writeln!(f, "  NOT STEERED: {error}")?;
    }
    let share = &canary.share;
    write!(
        f,
        "  share        {} effective; config {}",
        share.effective, share.configured
    )?;
    match share.set {
        _ if share.by_rollout => writeln!(f, "; a rollout has it")?,
        Some(set) => writeln!(f, ", cli {set}")?,
        None => writeln!(f)?,
    }
    let achieved = &share.achieved;
    write!(
        f,
        "  achieved     {} of connections, {} of requests, {} of bytes",
        percent(achieved.connections),
        percent(achieved.requests),
        percent(achieved.bytes)
    )?;
    match achieved.seconds {
        Some(seconds) => {
            let time = humantime::format_duration(Duration::from_secs(seconds as u64));
            writeln!(f, ", in {time}")?;
        }
        None => writeln!(f)?,
    }
    if let Some(spread) = &canary.concentration {
        writeln!(
            f,
            "  clients      {} on {} connections; {} sends {} of the requests' bytes",
            spread.clients,
            spread.connections,
            spread.busiest,
            percent(Some(spread.busiest_client))
        )?;
    }
    let strayed = canary
        .arms
        .iter()
        .skip(1)
        .map(|arm| arm.strayed)
        .sum::<u64>();
    if strayed > 0 {
        writeln!(
            f,
            "  STRAYED: {strayed} of the canary's connections were answered by somebody else: netfilter (DNAT, REDIRECT), a bridge or a VRF takes them on their way"
        )?;
    }
    for line in arms(&canary.arms).lines() {
        writeln!(f, "  {line}")?;
    }
    Ok(())
}

/// A row's name, and what it says of a version.
type Row = (&'static str, fn(&Arm) -> String);

fn arms(arms: &[Arm]) -> String {
    let mut header = vec!["VERSION".to_owned()];
    header.extend(
        arms.iter()
            .map(|arm| format!("{} {}", arm.arm, arm.version)),
    );
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut table = table(&header);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let rows: [Row; 13] = [
        ("connections", |arm| arm.connections.to_string()),
        ("open", |arm| arm.open.to_string()),
        ("unanswered", |arm| arm.unanswered.to_string()),
        ("requests seen", |arm| arm.requests.to_string()),
        ("  2xx 3xx 4xx 5xx", |arm| {
            let [_, classes @ ..] = arm.responses;
            classes.map(|count| count.to_string()).join(" ")
        }),
        ("  cut, unanswered, no HTTP", |arm| {
            let failed = [arm.incomplete, arm.unanswered_requests, arm.unreadable];
            failed.map(|count| count.to_string()).join(", ")
        }),
        ("  says it failed", |arm| arm.says_error.to_string()),
        ("  aborted by client", |arm| arm.aborted.to_string()),
        ("first body byte p50, p99", |arm| both(arm.first_body)),
        ("complete p50, p99", |arm| both(arm.complete)),
        ("handshake p50", |arm| milliseconds(arm.handshake.p50)),
        ("bytes in, out", |arm| arm.bytes.map(bytes).join(", ")),
        ("resets by client, server", |arm| {
            arm.resets.map(|count| count.to_string()).join(", ")
        }),
    ];
    let servers: [Row; 3] = [
        ("server's CPUs", |arm| {
            server(arm, |server| {
                server.cpus.map_or_else(dash, |cpus| format!("{cpus:.2}"))
            })
        }),
        ("server's memory", |arm| {
            server(arm, |server| bytes(server.resident_bytes))
        }),
        ("server's processes", |arm| {
            server(arm, |server| server.processes.to_string())
        }),
    ];
    let seen = arms.iter().any(|arm| arm.server.is_some());
    let servers = servers.into_iter().filter(|_| seen);
    for (name, of) in rows.into_iter().chain(servers) {
        let mut cells = vec![name.to_owned()];
        cells.extend(arms.iter().map(of));
        table.add_row(cells);
    }
    for (reason, counts) in reasons(arms) {
        let mut cells = vec![format!("came by {reason}")];
        cells.extend(counts.iter().map(u64::to_string));
        table.add_row(cells);
    }
    trimmed(&table)
}

fn server(arm: &Arm, of: impl Fn(&ServerUse) -> String) -> String {
    arm.server.as_ref().map_or_else(dash, of)
}

/// Why connections came to each version, but for the share itself.
fn reasons(arms: &[Arm]) -> Vec<(String, Vec<u64>)> {
    let mut names: Vec<&str> = arms
        .iter()
        .flat_map(|arm| &arm.choices)
        .map(|choice| choice.reason.as_str())
        .filter(|reason| *reason != "share")
        .collect();
    names.sort_unstable();
    names.dedup();
    let count = |arm: &Arm, name: &str| {
        let chosen = arm.choices.iter().filter(|choice| choice.reason == name);
        chosen.map(|choice| choice.connections).sum()
    };
    names
        .into_iter()
        .map(|name| {
            (
                name.to_owned(),
                arms.iter().map(|arm| count(arm, name)).collect(),
            )
        })
        .collect()
}

fn both(quantiles: Quantiles) -> String {
    [quantiles.p50, quantiles.p99].map(milliseconds).join(", ")
}

fn milliseconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(dash, |seconds| format!("{:.2} ms", seconds * 1e3))
}
