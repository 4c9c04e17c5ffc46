//! A status as people read it, 80 to 100 columns wide.

mod canary;
mod rollout;

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use comfy_table::{CellAlignment, Table};

use super::status::{
    Agent, Interface, LookState, MirrorState, PacketCount, RingState, Service, Status,
};
use super::{Done, Mechanism};

impl fmt::Display for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.done.join("\n"))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uptime = Duration::from_secs(self.uptime_seconds as u64);
        let uptime = humantime::format_duration(uptime);
        writeln!(
            f,
            "modelmirror {} (ABI {}), up {uptime}",
            self.version, self.abi
        )?;
        if self.off {
            writeln!(
                f,
                "OFF: nothing is attached; `modelmirror mirror on --service NAME` ends that"
            )?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        writeln!(f, "\n{}", interfaces(&self.interfaces))?;
        if !self.agents.is_empty() {
            writeln!(f, "\n{}", agents(&self.agents))?;
        }
        // Whole, as something may be copied from it, and so not in the table.
        let troubles = self.agents.iter().filter(|agent| !agent.alive);
        for agent in troubles {
            if let Some(error) = &agent.error {
                writeln!(f, "{} DOWN: {error}", agent.address)?;
            }
        }
        for service in &self.services {
            writeln!(f)?;
            write_service(f, service)?;
        }
        if let (Some(p50), Some(p99)) = (self.run_time.p50_ns, self.run_time.p99_ns) {
            writeln!(f)?;
            write!(
                f,
                "cost of our programs: p50 {p50} ns, p99 {p99} ns a packet"
            )?;
            writeln!(f, " (one run in 1,024 timed: {})", self.run_time.runs)?;
        }
        Ok(())
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    table.set_header(header.to_vec());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

fn interfaces(interfaces: &[Interface]) -> String {
    let mut table = table(&["INTERFACE", "INDEX", "HOOK", "STATE"]);
    for interface in interfaces {
        let state = match (interface.attached, &interface.error) {
            (true, None) => match &interface.xdp_error {
                None if !interface.before.is_empty() => format!(
                    "attached; BEHIND OTHERS ({}): what they keep is not seen",
                    interface.before.join(", ")
                ),
                None => "attached".to_owned(),
                Some(why) => format!("attached, but not at XDP: {why}"),
            },
            (true, Some(error)) => format!("attached; {error}"),
            (false, None) => "not attached".to_owned(),
            (false, Some(error)) => format!("NOT ATTACHED: {error}"),
        };
        let hook = match interface.hook {
            Some(Mechanism::Tcx) => "tcx",
            Some(Mechanism::Clsact) => "clsact",
            None => "-",
        };
        let hook = match interface.xdp {
            Some(xdp) => format!("{hook}, xdp {}", xdp.label()),
            None => hook.to_owned(),
        };
        let index = or_dash(interface.ifindex);
        table.add_row([interface.name.as_str(), &index, &hook, &state]);
    }
    trimmed(&table)
}

fn agents(agents: &[Agent]) -> String {
    let mut table = table(&[
        "AGENT",
        "STATE",
        "TRANSPORT",
        "LAST ECHO",
        "ROUND TRIP",
        "WAITING",
        "UPLINK",
    ]);
    for agent in agents {
        let state = match (agent.alive, &agent.paused) {
            (true, Some(why)) => format!("paused: {why}"),
            (true, None) => "alive".to_owned(),
            (false, _) => "DOWN".to_owned(),
        };
        let by = match agent.insecure {
            true => format!("{}, INSECURE", agent.transport.label()),
            false => agent.transport.label().to_owned(),
        };
        table.add_row([
            agent.address.to_string(),
            state,
            by,
            agent
                .last_echo_seconds
                .map_or_else(dash, |s| format!("{s:.1} s ago")),
            agent
                .round_trip_seconds
                .map_or_else(dash, |s| format!("{:.2} ms", s * 1e3)),
            agent.ring.as_ref().map_or_else(dash, waiting),
            agent.uplink.clone().unwrap_or_else(dash),
        ]);
    }
    trimmed(&table)
}

/// `1.2 MiB, 1 % of the ring`
fn waiting(ring: &RingState) -> String {
    let held = ByteSize(ring.held_bytes);
    format!("{held}, {:.0} % of the ring", ring.fullness * 100.0)
}

fn write_service(f: &mut fmt::Formatter<'_>, service: &Service) -> fmt::Result {
    let Service {
        name, id, version, ..
    } = service;
    writeln!(
        f,
        "SERVICE {name}  id {id}, version {version}, {}",
        service.addresses.join(" ")
    )?;
    match &service.mirror {
        Some(mirror) => write_mirror(f, mirror)?,
        None => writeln!(f, "  mirror       not configured; packets are counted only")?,
    }
    if let Some(look) = &service.look {
        writeln!(f, "  look         {}", self::look(look))?;
    }
    if let Some(canary) = &service.canary {
        canary::write(f, canary)?;
    }
    if let Some(rollout) = &service.rollout {
        rollout::write(f, name, rollout)?;
    }
    write!(f, "  connections  {}", service.connections)?;
    match service.over_budget_connections {
        0 => writeln!(f)?,
        shut_out => writeln!(f, ", {shut_out} shut out by the budget")?,
    }
    if service.packets.is_empty() {
        return writeln!(f, "  packets      none seen yet");
    }
    for line in packets(service).lines() {
        writeln!(f, "  {line}")?;
    }
    Ok(())
}

fn write_mirror(f: &mut fmt::Formatter<'_>, mirror: &MirrorState) -> fmt::Result {
    let on = if mirror.on { "on" } else { "OFF" };
    let insecure = match mirror.insecure {
        true => ", in CLEAR TEXT, without keys (`insecure`)",
        false => "",
    };
    writeln!(
        f,
        "  mirror       {on} (source: {}), to {}{insecure}",
        mirror.from.label(),
        mirror.agent
    )?;
    let sample = &mirror.sample;
    write!(
        f,
        "  sample       {} effective; config {}",
        sample.effective, sample.configured
    )?;
    match sample.set {
        Some(set) => writeln!(f, ", cli {set}")?,
        None => writeln!(f)?,
    }
    let rate = rate(mirror.bytes_per_second as u64);
    match mirror.budget_bytes_per_second {
        Some(budget) => writeln!(f, "  rate         {rate} of {} allowed", self::rate(budget)),
        None => writeln!(f, "  rate         {rate}, no budget known"),
    }
}

/// `0.25 of stable, 72 requests/s; 1.000 of canary, 25 requests/s; at most 1000/s each`
fn look(look: &LookState) -> String {
    let arms = look.arms.iter().map(|arm| {
        let rate = arm.exchanges_per_second;
        format!("{:.3} of {}, {rate:.0} requests/s", arm.effective, arm.arm)
    });
    let arms: Vec<_> = arms.collect();
    let budget = look.budget_exchanges_per_second;
    format!("{}; at most {budget}/s each", arms.join("; "))
}

fn packets(service: &Service) -> String {
    let mut table = table(&["PACKETS", "REQUEST", "RESPONSE"]);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let count = |direction: &str, reason: &str| {
        let found = service
            .packets
            .iter()
            .find(|count| count.direction == direction && count.reason == reason);
        found.map_or(0, |count| count.packets)
    };
    let mut reasons: Vec<&str> = Vec::new();
    for PacketCount { reason, .. } in &service.packets {
        if !reasons.contains(&reason.as_str()) {
            reasons.push(reason);
        }
    }
    for reason in reasons {
        let [request, response] =
            ["request", "response"].map(|direction| count(direction, reason).to_string());
        table.add_row([reason, &request, &response]);
    }
    let bytes = ["request", "response"].map(|direction| {
        let mirrored = service.mirrored.iter().find(|m| m.direction == direction);
        bytes(mirrored.map_or(0, |mirrored| mirrored.bytes))
    });
    table.add_row(["bytes mirrored", &bytes[0], &bytes[1]]);
    trimmed(&table)
}

fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", bytes(bytes_per_second))
}

fn bytes(bytes: u64) -> String {
    ByteSize(bytes).display().si().to_string()
}

fn percent(part: Option<f64>) -> String {
    part.map_or_else(dash, |part| format!("{:.2} %", part * 100.0))
}

fn dash() -> String {
    "-".to_owned()
}

fn or_dash(value: Option<u32>) -> String {
    value.map_or_else(dash, |value| value.to_string())
}

/// A table without blanks at the ends of its lines.
fn trimmed(table: &Table) -> String {
    let lines: Vec<_> = table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.join("\n")
}
