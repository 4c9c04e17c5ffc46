//! Single packets' part of docs/benchmarks.md.

use std::fmt;

use super::repeated::{FROM_CANARY, TO_CANARY};
use super::{Lines, NOT_STEERED, Packets, SERVICES, STABLE};
use crate::page::verdict;
use crate::statistics::Spread;

/// What steering may add to a packet of stable's, in nanoseconds.
const STABLE_TARGET_NS: f64 = 100.0;

/// What a packet that XDP translates may cost, in nanoseconds.
const XDP_TARGET_NS: f64 = 150.0;

/// How much more a packet may cost among 1,000 services than with one.
const FLAT_TARGET: f64 = 1.1;

/// What is in the maps, in the order of columns: services, and whether the table is full.
const SIZES: [(u32, bool); 6] = {
    let [a, b, c] = SERVICES;
    [
        (a, false),
        (b, false),
        (c, false),
        (a, true),
        (b, true),
        (c, true),
    ]
};

impl fmt::Display for Packets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.repeated(f)?;
        self.scattered(f)
    }
}

impl Packets {
    fn repeated(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connections = self.connections;
        writeln!(
            f,
            "## Packets of services with a canary\n\n\
             Nanoseconds of the programs themselves at the tapped interface (`BPF_PROG_TEST_RUN`, less what an empty program takes), \
             nothing mirrored, 1,000-byte packets of established connections. What a packet pays that passed no program before is all of it; \
             what it pays for steering is the difference from a service without a canary. First the same packet again and again, which finds everything in \
             the processor's caches (translated ones to the addresses that they have); \"full\" is a table for 1,000,000 connections with {connections} in it, \"empty\" the default one with next to none.\n\n\
             | | 1 service, empty | 100 | 1,000 | 1 service, full | 100 | 1,000 |\n|---|---|---|---|---|---|---|"
        )?;
        let lines = &self.repeated;
        for what in lines.kinds() {
            write!(f, "| {what} |")?;
            for (services, full) in SIZES {
                write!(f, "{}", figure(lines.own(what, services, full)))?;
            }
            writeln!(f)?;
        }
        writeln!(
            f,
            "\n{} Reading the clock, which each packet that is timed does once, is {:.0} ns of them.",
            targets(lines),
            self.clock.median
        )
    }

    fn scattered(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nOne packet at a time, a system call before each: of one connection, or of another connection each, out of the full table, when \
             nothing is at hand. Medians. (A test run neither hands a SYN over nor sends a packet on.)\n\n\
             | | one connection | 1 service | 100 | 1,000 |\n|---|---|---|---|---|"
        )?;
        let Packets { one, scattered, .. } = self;
        let [few, ..] = SERVICES;
        for what in scattered.kinds() {
            write!(f, "| {what} |{}", figure(one.own(what, few, true)))?;
            for services in SERVICES {
                write!(f, "{}", figure(scattered.own(what, services, true)))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// A cell of a table, empty where nothing was measured.
fn figure(own: Option<Spread>) -> String {
    own.map_or_else(|| " |".to_owned(), |own| format!(" {own:.0} |"))
}

/// Whether stable's packets cost what they may.
fn targets(lines: &Lines) -> String {
    let median = |what, services, full| {
        let own = lines.own(what, services, full);
        own.map_or(f64::NAN, |own| own.median)
    };
    let most = |figures: Vec<f64>| figures.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let of_sizes = |figure: &dyn Fn(u32, bool) -> f64| {
        most(
            SIZES
                .map(|(services, full)| figure(services, full))
                .to_vec(),
        )
    };
    let whole = of_sizes(&|services, full| median(STABLE, services, full));
    let added = of_sizes(&|services, full| {
        median(STABLE, services, full) - median(NOT_STEERED, services, full)
    });
    let translated = of_sizes(&|services, full| {
        let ways = [TO_CANARY, FROM_CANARY].map(|what| median(what, services, full));
        most(ways.to_vec())
    });
    let [few, .., many] = SERVICES;
    let grown = of_sizes(&|_, full| median(STABLE, many, full) / median(STABLE, few, full));
    format!(
        "Targets, the worst of all columns. Stable's packets: at most {STABLE_TARGET_NS} ns added, of which steering adds {added:.0}: {}, \
         all programs together {whole:.0}: {}; {many} services cost no more than {FLAT_TARGET} times what one does ({grown:.2}): {}. \
         Translated at XDP: at most {XDP_TARGET_NS} ns ({translated:.0}): {}.",
        verdict(added <= STABLE_TARGET_NS),
        verdict(whole <= STABLE_TARGET_NS),
        verdict(grown <= FLAT_TARGET),
        verdict(translated <= XDP_TARGET_NS),
    )
}
