//! Time in the kernel: what its own statistics say of our programs, of a raw clone and of an empty one.

mod page;

use anyhow::{Context, Result, ensure};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{ProgramInfo, loaded_programs};
use aya::sys::{Stats, enable_stats};
use mirror_node::dataplane::Hook;
use tests::Transport;

use crate::load::Load;
use crate::nginx::MODEL_PORT;
use crate::raw_clone::{Attached, RawClone};
use crate::samples::{Samples, turns};
use crate::stage::Stage;
use crate::statistics::Spread;
use crate::variant::{Far, Modelmirror};

/// What runs for each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    /// Two instructions: what is measured of it is the measurement.
    Empty,
    /// `bpf_clone_redirect` of every packet, and nothing else.
    Raw,
    /// Ours, of a service none of whose connections is chosen.
    Classify,
    Stream,
    Geneve,
}

const ALL: [Program; 5] = [
    Program::Empty,
    Program::Raw,
    Program::Classify,
    Program::Stream,
    Program::Geneve,
];

/// What was the same in each round.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Cell {
    program: Program,
    /// Bytes of a request's body.
    body: usize,
}

/// One load, by direction.
#[derive(Clone, Copy, Debug)]
struct Times([Time; 2]);

#[derive(Clone, Copy, Debug)]
struct Time {
    /// Mean of all runs, in nanoseconds, those for pure ACKs included.
    run_ns: f64,
    /// Copies in a run.
    copies: f64,
}

/// All rounds.
#[derive(Default)]
pub(crate) struct KernelTimes(Samples<Cell, Times>);

/// Which of a load's packets.
#[derive(Clone, Copy)]
enum Direction {
    Requests,
    Responses,
}

impl KernelTimes {
    /// The whole run of a program, in nanoseconds.
    fn run(&self, program: Program, body: usize, direction: Direction) -> Spread {
        let figure = |times: &Times| times.0[direction as usize].run_ns;
        self.0.spread(Cell { program, body }, figure)
    }

    /// What a copy adds to what the program takes without it, in nanoseconds.
    fn copy(&self, program: Program, body: usize, direction: Direction) -> Spread {
        let cell = |program| Cell { program, body };
        let cells = [cell(program), cell(base(program))];
        self.0
            .together(cells, |[with, without]| added(with, without, direction))
    }

    /// The same in times of a raw clone's.
    fn ratio(&self, program: Program, body: usize, direction: Direction) -> Spread {
        let cell = |program| Cell { program, body };
        let cells = [program, base(program), Program::Raw, Program::Empty].map(cell);
        self.0.together(cells, |[with, without, raw, empty]| {
            added(with, without, direction) / added(raw, empty, direction)
        })
    }
}

/// The program that does all the same but copying.
fn base(program: Program) -> Program {
    match program {
        Program::Empty | Program::Raw => Program::Empty,
        Program::Classify | Program::Stream | Program::Geneve => Program::Classify,
    }
}

fn added(with: &Times, without: &Times, direction: Direction) -> f64 {
    let [with, without] = [with, without].map(|times| times.0[direction as usize]);
    (with.run_ns - without.run_ns) / with.copies
}

/// Where a program's figures stood.
#[derive(Clone, Copy, Debug, Default)]
struct Runs {
    nanoseconds: f64,
    count: f64,
}

/// One round: each program is attached afresh, and measured with loads of so many seconds.
pub(crate) fn round(
    times: &mut KernelTimes,
    stage: &Stage,
    round: usize,
    loads: &[(usize, &Load)],
    seconds: u32,
) -> Result<()> {
    // Switched off again when this is closed, here or by the end of the process.
    let _statistics = enable_stats(Stats::RunTime).context("the kernel measures no programs")?;
    for program in turns(&ALL, round) {
        let attached = Running::attach(stage, program)?;
        for &(body, load) in loads {
            let (copies, before) = (attached.copies()?, runs(attached.ids)?);
            load.run(&stage.net.client, MODEL_PORT, seconds)?;
            let (copied, after) = (attached.copies()?, runs(attached.ids)?);
            let time = |at: usize| {
                let count = after[at].count - before[at].count;
                let copies = match program {
                    Program::Raw => 1.0,
                    _ => (copied[at] - copies[at]) / count,
                };
                let run_ns = (after[at].nanoseconds - before[at].nanoseconds) / count;
                Time { run_ns, copies }
            };
            let measured = Times([0, 1].map(time));
            let copies = measured.0.iter().all(|time| time.copies > 0.0);
            let should_copy = !matches!(program, Program::Empty | Program::Classify);
            ensure!(copies == should_copy, "{program:?}: {measured:?}");
            times.0.push(round, Cell { program, body }, measured);
        }
    }
    Ok(())
}

/// A program at both hooks, and their numbers.
struct Running {
    ids: [u32; 2],
    what: What,
}

enum What {
    Bare { _programs: [Attached; 2] },
    Ours(Box<Modelmirror>),
}

impl Running {
    fn attach(stage: &Stage, program: Program) -> Result<Self> {
        let (transport, sample) = match program {
            Program::Empty | Program::Raw => {
                let programs = stage.net.node.run(|| attach_bare(program))?;
                let [ingress, egress] = &programs;
                return Ok(Self {
                    ids: [ingress.id()?, egress.id()?],
                    what: What::Bare {
                        _programs: programs,
                    },
                });
            }
            Program::Classify => (Transport::Stream, 0.0),
            Program::Stream => (Transport::Stream, 1.0),
            Program::Geneve => (Transport::Geneve, 1.0),
        };
        let mirror = Modelmirror::start(stage, transport, Far::Sink, |mirror| {
            mirror.insert("sample".to_owned(), sample.into());
        })?;
        Ok(Self {
            ids: [
                program_id(&mirror, "ingress")?,
                program_id(&mirror, "egress")?,
            ],
            what: What::Ours(Box::new(mirror)),
        })
    }

    /// How many requests' and responses' packets have been copied.
    fn copies(&self) -> Result<[f64; 2]> {
        let What::Ours(mirror) = &self.what else {
            return Ok([0.0; 2]);
        };
        let metrics = mirror.daemon.metrics()?;
        let name = "modelmirror_mirrored_packets_total";
        Ok(["request", "response"].map(|direction| metrics.sum(name, &[("direction", direction)])))
    }
}

/// Bare programs for what comes in and goes out; called inside the node.
fn attach_bare(program: Program) -> Result<[Attached; 2]> {
    let number = |name: &str| {
        nix::net::if_::if_nametoindex(name).with_context(|| format!("there is no {name}"))
    };
    let (tapped, uplink) = (number("eth0")?, number("eth1")?);
    let load = || match program {
        Program::Raw => RawClone::load(uplink),
        _ => RawClone::load_empty(),
    };
    Ok([
        load()?.attach(tapped, Hook::Ingress)?,
        load()?.attach(tapped, Hook::Egress)?,
    ])
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
