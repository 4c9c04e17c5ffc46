//! Steering's part of docs/benchmarks.md.

use std::fmt;

use super::way::Way;
use super::{CONNECTIONS, Cell, Rate, Steering};
use crate::load::Measured;
use crate::page::verdict;
use crate::statistics::Spread;
use crate::{LARGE, SMALL, machine};

/// Throughput, in times of a proxy's.
const THROUGHPUT_TARGET: f64 = 2.0;

/// From `canary off` until all new connections are stable's, in milliseconds.
const OFF_TARGET_MS: f64 = 100.0;

const THROUGHPUT_CURE: &str = "Where twice is missed: a proxy that only passes bytes on (`mode tcp`, `stream`) takes about as much of the core as this \
    server does, which answers from memory. Without any proxy, and without steering, it answers no more \
    than the row \"no steering\" says, so twice the proxy is out of reach where that row is not far above it.\n";

impl fmt::Display for Steering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        let small = self.throughput(f, "500-byte bodies", SMALL)?;
        let large = self.throughput(f, "2 KB bodies", LARGE)?;
        if !(small && large) {
            writeln!(f, "{THROUGHPUT_CURE}")?;
        }
        self.paced(f)?;
        self.off(f)?;
        self.packets.fmt(f)
    }
}

impl Steering {
    fn head(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## Steering, against proxies\n\n\
             A quarter goes to a canary on the same node: of new connections (modelmirror, `affinity = \"connection\"`; `mode tcp`; `stream`) \
             or of requests (`mode http`, `http`), by weights of 75 and 25. HAProxy {} and \
             nginx {} keep connections to the servers open (`http-reuse always`, `keepalive 64`), log nothing and have a thread each. The node has \
             one core, which receives its packets and runs stable and canary (one process of nginx each), the proxy or the daemon; \
             wrk, with {CONNECTIONS} connections, has the rest of the machine. CPU is that of the node's core. \
             \"modelmirror's is\" is formed within each round.\n",
            machine::package("haproxy"),
            machine::package("nginx"),
        )
    }

    /// Says whether all targets are reached.
    fn throughput(
        &self,
        f: &mut fmt::Formatter<'_>,
        title: &str,
        body: usize,
    ) -> Result<bool, fmt::Error> {
        writeln!(
            f,
            "### At saturation, {title}\n\n\
             | | requests/s | modelmirror's is | p50 ms | p99 ms | CPU us/request | target |\n|---|---|---|---|---|---|---|"
        )?;
        let cell = |way| Cell {
            way,
            rate: Rate::Highest,
            body,
        };
        let mut all_reached = true;
        for way in Way::ALL {
            let ratio = self.samples.ratio(cell(Way::Modelmirror), cell(way));
            let target = if way.is_proxy() {
                let reached = ratio.median >= THROUGHPUT_TARGET;
                all_reached &= reached;
                format!("{THROUGHPUT_TARGET} times: {}", verdict(reached))
            } else {
                String::new()
            };
            self.row(f, cell(way), &format!("{ratio:.2} times"), Some(&target))?;
        }
        writeln!(f)?;
        Ok(all_reached)
    }

    fn paced(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "### The same load for all, 2 KB bodies\n\n\
             Each connection waits {} ms before it sends.\n\n\
             | | requests/s | p50 ms | p99 ms | CPU us/request |\n|---|---|---|---|---|",
            super::PAUSE.as_millis()
        )?;
        for way in Way::ALL {
            let cell = Cell {
                way,
                rate: Rate::Paced,
                body: LARGE,
            };
            self.row(f, cell, "", None)?;
        }
        writeln!(f)
    }

    /// A way's figures; with a comparison and a target where there is one.
    fn row(
        &self,
        f: &mut fmt::Formatter<'_>,
        cell: Cell,
        ratio: &str,
        target: Option<&str>,
    ) -> fmt::Result {
        let spread = |figure: fn(&Measured) -> f64| self.samples.spread(cell, figure);
        write!(
            f,
            "| {} | {:.0} |",
            cell.way.label(),
            spread(Measured::rate)
        )?;
        if target.is_some() {
            write!(f, " {ratio} |")?;
        }
        write!(
            f,
            " {:.2} | {:.2} | {:.0} |",
            spread(|measured| measured.p50_ms),
            spread(|measured| measured.p99_ms),
            spread(Measured::cpu_us),
        )?;
        match target {
            Some(target) => writeln!(f, " {target} |"),
            None => writeln!(f),
        }
    }

    fn off(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spread = |figure: fn(&super::Off) -> f64| Spread::of(self.offs.iter().map(figure));
        let all = spread(super::Off::until_stable_ms);
        writeln!(
            f,
            "## From `canary off` to stable\n\n\
             A canary that gets all of {:.0} new connections a second is switched off, {} times; times are from the moment at which \
             the command is started as a process, by the clients' clock.\n\n\
             | | median ms (least-most) | target |\n|---|---|---|\n\
             | the canary's last connection is open | {:.1} | |\n\
             | stable's first answer is there | {:.1} | |\n\
             | both | {all:.1} | {OFF_TARGET_MS} ms at the most: {} |\n\
             | the command has ended | {:.1} | |\n\n\
             Connections begun after the command had ended that the canary answered: {}.\n",
            spread(|off| off.rate).median,
            self.offs.len(),
            spread(|off| off.last_canary_ms),
            spread(|off| off.first_stable_ms),
            verdict(all.most < OFF_TARGET_MS),
            spread(|off| off.command_ms),
            self.offs.iter().map(|off| off.late).sum::<usize>(),
        )
    }
}
