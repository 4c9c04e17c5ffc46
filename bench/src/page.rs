//! docs/benchmarks.md.

use std::fmt::{self, Write as _};

use crate::agent::Run;
use crate::kernel_time::{Pair, Times};
use crate::load::{CONNECTIONS, Measured};
use crate::machine::Machine;
use crate::rollout::Rollbacks;
use crate::samples::Samples;
use crate::single::{Single, Singles};
use crate::stage::Offloads;
use crate::statistics::Spread;
use crate::steering::Steering;
use crate::throughput::Cell;
use crate::variant::Variant;
use crate::{LARGE, SMALL};

/// Kernel time of a copy, in times of a raw clone's.
const KERNEL_TARGET: f64 = 1.5;

/// The agent's CPU time for a request, in microseconds.
const AGENT_TARGET_US: f64 = 50.0;

const KERNEL_CURE: &str = "What would get it there: of the time under `bpf_clone_redirect` (a profile by cpu-clock of both body sizes, offloads on), \
    the uplink's program takes a fifth: 9 % its own code, 7 % `bpf_skb_adjust_room`, 3 % `bpf_skb_store_bytes`; another 7 % is the kernel looking \
    super-packets through once more, since `bpf_skb_adjust_room` marks their headers as unchecked, with `BPF_F_ADJ_ROOM_FIXED_GSO` as well. Un-sharing \
    the packet's head, 14 %, is the raw clone's too. The rest of the difference is deciding (see below). Headers made once for each agent and copied \
    as words would save a part of the 9 %; the ratio of 1.5 takes a helper that clones with room in front.";

const AGENT_CURE: &str = "What would get it there: CPU for a request falls with the rate, since at a low one every look finds few copies, and every answer of \
    the shadow model's wakes the agent for itself. A longer `batch_interval` lets more copies come together; answers could as well, were \
    they timed by the kernel on arrival. Where requests are lost at the highest rate, production takes the CPU that the shadow model would need: a shadow \
    model on a host of its own has the queue to itself.";

/// All that was measured.
pub(crate) struct Page {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) seconds: u32,
    pub(crate) samples: Samples<Cell>,
    pub(crate) kernel: Vec<Kernel>,
    pub(crate) singles: Singles,
    pub(crate) agents: Vec<Run>,
    pub(crate) steering: Steering,
    pub(crate) rollbacks: Rollbacks,
}

/// Kernel times of one load.
pub(crate) struct Kernel {
    pub(crate) body: usize,
    pub(crate) offloads: Offloads,
    pub(crate) pair: Pair,
}

/// Whether a figure is what it should be.
pub(crate) fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "**missed**" }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        self.throughput(f)?;
        self.kernel(f)?;
        self.singles(f)?;
        self.agent(f)?;
        writeln!(f, "{}", self.steering)?;
        self.rollbacks.fmt(f)
    }
}

impl Page {
    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            processor,
            cores,
            kernel,
            distribution,
            load,
        } = &self.machine;
        writeln!(
            f,
            "# Benchmarks\n\n\
             Written by `cargo xtask bench`, all of it in one run; do not edit. Compare figures within a table only.\n\n\
             - Machine: {processor}, {cores} cores; {kernel}; {distribution}. Load average before: {load:.1}.\n\
             - Client, inference node and shadow host are network namespaces on these {cores} cores, joined by veth: \
             what the client or the shadow host needs is missing on the node.\n\
             - Load: wrk over {CONNECTIONS} keep-alive connections, POSTs in the KServe V2 protocol, answered by nginx (one process). \
             Not one request failed.\n\
             - {} rounds of {} s for each cell, the ways taking turns, each attached afresh. \
             Figures are medians, with the least and the most in brackets.\n",
            self.rounds, self.seconds,
        )
    }

    fn throughput(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## What clients notice\n\n\
             As many requests as the machine can do. \"Of none\" is formed within each round. CPU is that of the whole \
             machine (/proc/stat, all that is not idle) for one request: the difference between two rows is what copying adds \
             on the node and, but for the last row, little else: there copies are dropped where they come in.\n"
        )?;
        for (title, body, offloads) in [
            ("500-byte bodies", SMALL, Offloads::On),
            ("2 KB bodies", LARGE, Offloads::On),
            (
                "2 KB bodies, uplink without tso, gso and udp_tnl segmentation",
                LARGE,
                Offloads::Off,
            ),
        ] {
            writeln!(
                f,
                "### {title}\n\n| | requests/s | of none | p50 ms | p99 ms | CPU us/request | target |\n|---|---|---|---|---|---|---|"
            )?;
            for variant in Variant::ALL {
                let cell = |variant| Cell {
                    variant,
                    body,
                    offloads,
                };
                let spread =
                    |figure: fn(&Measured) -> f64| self.samples.spread(cell(variant), figure);
                let share = self.samples.ratio(cell(variant), cell(Variant::None));
                let target = variant.target().map_or_else(String::new, |target| {
                    format!("{target} of none: {}", verdict(share.median >= target))
                });
                writeln!(
                    f,
                    "| {} | {:.0} | {share:.2} | {:.2} | {:.2} | {:.0} | {target} |",
                    variant.label(),
                    spread(Measured::rate),
                    spread(|measured| measured.p50_ms),
                    spread(|measured| measured.p99_ms),
                    spread(Measured::cpu_us),
                )?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    fn kernel(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## Time in the kernel for a copied packet\n\n\
             By the kernel's own statistics (`kernel.bpf_stats_enabled`, on for this part only). A raw clone is a program of five \
             instructions that calls `bpf_clone_redirect` and nothing else: what leaves is the naked packet. Ours parses, decides, \
             clones, writes 64 bytes of tunnel headers, numbers and counts; its time is that of all its runs, pure ACKs \
             included, shared among the copies. Both include sending.\n\n\
             | | raw clone ns | modelmirror ns | ratio | target |\n|---|---|---|---|---|"
        )?;
        let mut all_reached = true;
        for offloads in [Offloads::On, Offloads::Off] {
            for body in [SMALL, LARGE] {
                for (direction, of) in [
                    ("requests", requests as fn(&Times) -> f64),
                    ("responses", responses),
                ] {
                    let pairs = || {
                        let all = self.kernel.iter();
                        all.filter(move |k| (k.body, k.offloads) == (body, offloads))
                            .map(|k| &k.pair)
                    };
                    let raw = Spread::of(pairs().map(|pair| of(&pair.raw)));
                    let ours = Spread::of(pairs().map(|pair| of(&pair.ours)));
                    let ratio = Spread::of(pairs().map(|pair| of(&pair.ours) / of(&pair.raw)));
                    let segmentation = match offloads {
                        Offloads::On => "",
                        Offloads::Off => ", no segmentation in the uplink",
                    };
                    writeln!(
                        f,
                        "| {direction}, {body}-byte bodies{segmentation} | {raw:.0} | {ours:.0} | {ratio:.2} | {KERNEL_TARGET}: {} |",
                        verdict(ratio.median <= KERNEL_TARGET)
                    )?;
                    all_reached &= ratio.median <= KERNEL_TARGET;
                }
            }
        }
        if !all_reached {
            writeln!(f, "\n{KERNEL_CURE}")?;
        }
        writeln!(f)
    }

    fn singles(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## Single packets\n\n\
             The program at the tapped interface's ingress, a million runs at a time (`BPF_PROG_TEST_RUN`). The measurement itself \
             takes {:.0} ns, what it takes to run an empty program; the program's own time is without it. A service with a canary has each packet \
             looked up in the table of connections, timed and counted for its version.\n\n\
             | packet | measured ns | program's own ns | target |\n|---|---|---|---|",
            self.singles.empty,
        )?;
        for Single { what, cost, target } in &self.singles.kinds {
            let own = cost.median - self.singles.empty.median;
            let target = target.map_or_else(String::new, |target| {
                format!("{target}: {}", verdict(own <= target))
            });
            writeln!(f, "| {what} | {cost:.0} | {own:.0} | {target} |")?;
        }
        writeln!(f)
    }

    fn agent(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## The agent\n\n\
             2 KB requests through the real tap: received, rebuilt, replayed to a shadow model, compared and recorded, while client, \
             production and shadow model share the cores. CPU is the agent's own, all threads, user and kernel. \
             Bytes are those of packets out of the tunnel. Memory is in RAM, a fifth of the way and at the end.\n\n\
             | requests/s | compared | lost, by reason | CPU us/request | = requests/s on one core | MB/s | memory MB | target |\n\
             |---|---|---|---|---|---|---|---|"
        )?;
        let mut all_reached = true;
        for run in &self.agents {
            let cpu_us = run.cpu_us();
            let reached = cpu_us <= AGENT_TARGET_US && run.lost() <= 0.0;
            all_reached &= reached;
            let [early, late] = run.memory.map(|bytes| bytes as f64 / 1e6);
            writeln!(
                f,
                "| {:.0} | {:.2} % | {} | {cpu_us:.0} | {:.0} | {:.1} | {early:.0}, {late:.0} | {AGENT_TARGET_US} us, none lost: {} |",
                run.load.rate(),
                // wrk does not count what is under way when it ends.
                (100.0 * run.compared / run.load.requests).min(100.0),
                losses(run),
                1e6 / cpu_us,
                run.bytes / run.load.seconds / 1e6,
                verdict(reached),
            )?;
        }
        if !all_reached {
            writeln!(f, "\n{AGENT_CURE}")?;
        }
        writeln!(f)
    }
}

fn requests(times: &Times) -> f64 {
    times.requests
}

fn responses(times: &Times) -> f64 {
    times.responses
}

/// What became of requests that were not compared.
fn losses(run: &Run) -> String {
    if run.lost() <= 0.0 {
        return "none".to_owned();
    }
    let mut text = String::new();
    let mut rest = run.lost();
    for (reason, count) in &run.dropped {
        // Writing to a String cannot fail.
        let _ = write!(text, "{reason} {count:.0}, ");
        rest -= count;
    }
    let _ = write!(text, "unseen {:.0}", rest.max(0.0));
    text
}
