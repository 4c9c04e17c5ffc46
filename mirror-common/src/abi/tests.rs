extern crate std;

use std::fmt::{Display, Write};
use std::format;
use std::path::Path;
use std::string::{String, ToString};
use std::vec::Vec;

use super::{Described, Shared};
use crate::connection::{self, Connection, Said};
use crate::counters::{Counters, Sent};
use crate::flow::{Endpoint, Flow};
use crate::histogram::{Latency, RunTime};
use crate::measure::{ArmCounters, ByClient};
use crate::policy::{self, Agent, Budget, Service, Tap};
use crate::steer::{self, Arrivals, Choice, Health, Steering};
use crate::translate::{self, Last, Ports, Translation, Way};
use crate::tunnel::{Arm, Direction};
use crate::verdict::Reason;
use crate::{ABI_VERSION, record};

/// What is in place of sizes alone: raise the number, then `UPDATE_ABI=1` writes the table.
#[test]
fn what_both_halves_touch_is_versioned() {
    let (file, table) = (
        Path::new(env!("CARGO_MANIFEST_DIR")).join("abi.txt"),
        table(),
    );
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    let is_raised = known.lines().next() != table.lines().next();
    if is_raised && std::env::var_os("UPDATE_ABI").is_some() {
        std::fs::write(&file, &table).unwrap();
        return;
    }
    let (old, new): (Vec<_>, Vec<_>) = (known.lines().collect(), table.lines().collect());
    let gone = old.iter().filter(|line| !new.contains(line));
    let come = new.iter().filter(|line| !old.contains(line));
    let changes: Vec<_> = gone
        .map(|line| format!("- {line}"))
        .chain(come.map(|line| format!("+ {line}")))
        .collect();
    assert!(
        known == table,
        "what both halves touch is no longer that of ABI {ABI_VERSION}: raise ABI_VERSION, then UPDATE_ABI=1 \
         writes abi.txt\n{}",
        changes.join("\n")
    );
}

fn table() -> String {
    let mut table = format!("ABI {ABI_VERSION}\n\n");
    for text in [
        structs(),
        histograms(),
        constants(),
        labels(),
        maps(),
        programs_own(),
    ] {
        table += &text;
    }
    table
}

fn structs() -> String {
    fn of<T: Shared>() -> String {
        format!("{}\n", Described::<T>::default())
    }
    [
        of::<Endpoint>(),
        of::<Flow>(),
        of::<Service>(),
        of::<Agent>(),
        of::<Tap>(),
        of::<Budget>(),
        of::<Counters>(),
        of::<Sent>(),
        of::<ArmCounters>(),
        of::<ByClient>(),
        of::<Steering>(),
        of::<Way>(),
        of::<Health>(),
        of::<Arrivals>(),
        of::<Connection>(),
        of::<Said>(),
        of::<Ports>(),
        of::<Translation>(),
        of::<Last>(),
    ]
    .concat()
}

/// Sizes, and where some durations are counted.
fn histograms() -> String {
    let places = |bucket: fn(u64) -> usize| [0, 100, 10_000, 1_000_000, 1 << 40].map(bucket);
    format!(
        "RunTime, {} bytes {:?}\nLatency, {} bytes {:?}\n\n",
        size_of::<RunTime>(),
        places(RunTime::bucket),
        size_of::<Latency>(),
        places(Latency::bucket),
    )
}

fn constants() -> String {
    let mut text = String::new();
    for (name, words) in [
        ("connection::state", connection::state::ALL),
        ("connection::side", connection::side::ALL),
        ("policy::agent_state", policy::agent_state::ALL),
        ("policy::here", policy::here::ALL),
        ("policy::transport", policy::transport::ALL),
        ("record::place", record::place::ALL),
        ("steer::flag", steer::flag::ALL),
        ("translate::phase", translate::phase::ALL),
    ] {
        let words: Vec<_> = words
            .iter()
            .map(|(word, value)| format!("  {word} = {value}\n"))
            .collect();
        text += &format!("{name}\n{}\n", words.concat());
    }
    for (name, value) in [
        ("Direction::Request", Direction::Request as u32),
        ("Direction::Response", Direction::Response as u32),
        ("Arm::Stable", Arm::Stable as u32),
        ("Arm::Canary", Arm::Canary as u32),
        (
            "mirror of requests",
            policy::mirror::bit(Direction::Request),
        ),
        (
            "mirror of responses",
            policy::mirror::bit(Direction::Response),
        ),
        ("mirror of stable", policy::mirror::arm(Arm::Stable)),
        ("mirror of the canary", policy::mirror::arm(Arm::Canary)),
        ("mirror::HELD", policy::mirror::HELD),
        ("mirror::OFF", policy::mirror::OFF),
        ("MAX_SERVICES", policy::MAX_SERVICES),
        ("MAX_AGENTS", policy::MAX_AGENTS),
        ("MAX_RINGS", policy::MAX_RINGS),
        ("MAX_ENDPOINTS", policy::MAX_ENDPOINTS),
        ("LOOK_RING", policy::LOOK_RING),
        ("record::CONTROL", record::CONTROL),
        ("record::SLACK", record::SLACK),
        ("record::HOT_RING", record::HOT_RING),
        ("record::DEEP", record::DEEP),
        ("record::LANES", record::LANES.into()),
        ("a record of 1,000 bytes", record::record_length(1_000)),
    ] {
        text += &format!("{name} = {value}\n");
    }
    text + "\n"
}

fn labels() -> String {
    let mut text = String::from("Reason\n");
    for (number, reason) in Reason::ALL.iter().enumerate() {
        text += &format!("  {number:2} {reason:?} = {}\n", reason.label());
    }
    text += "\nChoice\n";
    for (number, choice) in Choice::ALL.iter().enumerate() {
        let (label, arm) = (choice.label(), choice.arm().label());
        text += &format!("  {number:2} {choice:?} = {label}, {arm}\n");
    }
    text + "\n"
}

/// The programs' maps, as they are declared.
fn maps() -> String {
    let source = read("mirror-ebpf/src/maps.rs");
    let maps = statements(&source)
        .into_iter()
        .filter_map(|statement| Some(statement.split_once("static ")?.1.to_string()));
    lines("maps", maps)
}

/// What the programs tell each other, and no other half: those of two versions may run at once.
fn programs_own() -> String {
    let slot = read("mirror-ebpf/src/slot.rs");
    let own = [
        (&slot, "pub(crate) mod state {"),
        (&slot, "pub(crate) struct Slot {"),
        (&slot, "pub(crate) struct Answer {"),
        (&slot, "pub(crate) enum Action {"),
        (&slot, "pub(crate) struct Followed {"),
        (&slot, "pub(crate) struct Progress {"),
        (&read("mirror-common/src/packet.rs"), "pub struct Packet {"),
        (
            &read("mirror-common/src/connection.rs"),
            "pub struct Seen {",
        ),
    ]
    .map(|(source, head)| {
        let (before, rest) = source.split_once(head).unwrap();
        let (body, _) = rest.split_once("\n}").unwrap();
        let attributes = before.rsplit("\n\n").next().unwrap_or_default();
        let layout = attributes.lines().find(|line| line.starts_with("#[repr("));
        let name = head.replace("pub(crate) ", "").replace("pub ", "");
        // A module has none.
        assert!(
            layout.is_some() || name.starts_with("mod "),
            "{name}: any layout"
        );
        let body = body
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .map(|line| line.replace("pub(crate) ", "").replace("pub ", ""));
        lines(&format!("{} {name}", layout.unwrap_or_default()), body)
    });
    own.concat()
}

fn lines(head: &str, lines: impl IntoIterator<Item = impl Display>) -> String {
    let mut text = format!("{}\n", head.trim());
    for line in lines {
        let line = line.to_string();
        if !line.trim().is_empty() {
            writeln!(text, "  {}", line.trim()).unwrap();
        }
    }
    text + "\n"
}

/// A source's statements, each in one line, without comments.
fn statements(source: &str) -> Vec<String> {
    let code: Vec<_> = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(str::trim)
        .collect();
    let code = code.join(" ");
    code.split(';')
        .map(|text| text.trim().to_string())
        .collect()
}

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(path)).unwrap()
}
