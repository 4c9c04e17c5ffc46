//! Time in the kernel: what its own statistics say of our programs and of a raw clone.

use anyhow::{Context, Result, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};
use mirror_user::dataplane::Hook;

use crate::load::Load;
use crate::nginx::MODEL_PORT;
use crate::raw_clone::{Attached, RawClone};
use crate::stage::Stage;
use crate::variant::{Far, Modelmirror};

/// Nanoseconds of one load, by direction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) requests: f64,
    pub(crate) responses: f64,
}

/// Mean times of a copy, one load each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    /// Per run of the raw clone, each of which copies.
    pub(crate) raw: Times,
    /// All runs of ours, those that copy nothing included, shared among the copies.
    pub(crate) ours: Times,
}

/// Where a program's figures stood.
#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    nanoseconds: f64,
    count: f64,
}

/// Measures both, one after the other, with several loads of so many seconds: a pair for each load.
pub(crate) fn measure(stage: &Stage, loads: &[&Load], seconds: u32) -> Result<Vec<Pair>> {
    // Switched off again when this is closed, here or by the end of the process.
    let _statistics = enable_stats(Stats::RunTime).context("the kernel measures no programs")?;
    let client = &stage.net.client;
    let mut raw = Vec::new();
    {
        let (ingress, egress) = stage.net.node.run(attach_raw_clones)?;
        let ids = [ingress.id()?, egress.id()?];
        for load in loads {
            let before = runs(ids)?;
            load.run(client, MODEL_PORT, seconds)?;
            raw.push(mean(before, runs(ids)?));
        }
    }
    let mirror = Modelmirror::start(stage, "both", Far::Sink)?;
    let ids = [
        program_id(&mirror, "ingress")?,
        program_id(&mirror, "egress")?,
    ];
    let copies = || -> Result<[f64; 2]> {
        let metrics = mirror.daemon.metrics()?;
        Ok(["request", "response"].map(|direction| {
            metrics.sum(
                "modelmirror_mirrored_packets_total",
                &[("direction", direction)],
            )
        }))
    };
    let mut pairs = Vec::new();
    for (load, raw) in loads.iter().zip(raw) {
        let (copies_before, before) = (copies()?, runs(ids)?);
        load.run(client, MODEL_PORT, seconds)?;
        let (copies_after, after) = (copies()?, runs(ids)?);
        let per_copy = [0, 1].map(|at| {
            let copied = copies_after[at] - copies_before[at];
            (after[at].nanoseconds - before[at].nanoseconds) / copied
        });
        ensure!(
            per_copy.iter().all(|ns| ns.is_finite()),
            "nothing was copied"
        );
        pairs.push(Pair {
            raw,
            ours: Times::of(per_copy),
        });
    }
    Ok(pairs)
}

/// Raw clones of what comes in and goes out; called inside the node.
fn attach_raw_clones() -> Result<(Attached, Attached)> {
    let number = |name: &str| {
        nix::net::if_::if_nametoindex(name).with_context(|| format!("there is no {name}"))
    };
    let (tapped, uplink) = (number("eth0")?, number("eth1")?);
    Ok((
        RawClone::load(uplink)?.attach(tapped, Hook::Ingress)?,
        RawClone::load(uplink)?.attach(tapped, Hook::Egress)?,
    ))
}

/// The number of our program at a hook of the tapped interface, by its pinned link.
fn program_id(mirror: &Modelmirror, hook: &str) -> Result<u32> {
    let layout = format!("v{}", mirror_common::ABI_VERSION);
    let links = mirror.home.pins().join(layout).join("links");
    let entries = std::fs::read_dir(&links).with_context(|| links.display().to_string())?;
    let pin = entries.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("eth0@") && name.ends_with(&format!("@{hook}"))
    });
    let pin = pin.with_context(|| format!("no pinned link of eth0's {hook}"))?;
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    Ok(link.info()?.program_id())
}

fn runs(ids: [u32; 2]) -> Result<[Runs; 2]> {
    let mut found = [None; 2];
    for program in loaded_programs() {
        // Others may unload theirs at any time.
        let Ok(program) = program else { continue };
        if let Some(at) = ids.iter().position(|id| *id == program.id()) {
            found[at] = Some(Runs::of(&program));
        }
    }
    match found {
        [Some(one), Some(other)] => Ok([one, other]),
        _ => anyhow::bail!("a program is gone"),
    }
}

impl Runs {
    fn of(program: &ProgramInfo) -> Self {
        Self {
            nanoseconds: program.run_time().as_nanos() as f64,
            count: program.run_count() as f64,
        }
    }
}

fn mean(before: [Runs; 2], after: [Runs; 2]) -> Times {
    Times::of([0, 1].map(|at| {
        (after[at].nanoseconds - before[at].nanoseconds) / (after[at].count - before[at].count)
    }))
}

impl Times {
    fn of([requests, responses]: [f64; 2]) -> Self {
        Self {
            requests,
            responses,
        }
    }
}
