//! The table of the agent.

use std::fmt::{self, Write as _};

use super::{Agents, Pace, Run};
use crate::page::verdict;

/// The agent's CPU time for a request, in microseconds.
const TARGET_US: f64 = 30.0;

impl fmt::Display for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## The agent\n\n\
             2 KB requests through the real tap and a stream: received, rebuilt, replayed to a shadow model, compared and recorded. Client, production, agent and shadow \
             model share the cores; in the last row client and production have the first core to themselves, agent and shadow model the others (here: one for both). \
             CPU is the agent's own, all threads, user and kernel. \
             Bytes are those of packets out of the stream. Memory is in RAM, a fifth of the way and at the end.\n\n\
             | requests/s | compared | lost, by reason | CPU us/request | = requests/s on one core | MB/s | memory MB | target |\n\
             |---|---|---|---|---|---|---|---|",
        )?;
        for run in &self.0 {
            let cpu_us = run.cpu_us();
            let [early, late] = run.memory.map(|bytes| bytes as f64 / 1e6);
            let lossless = run.lost() <= 0.0;
            let (apart, target) = match run.pace {
                Pace::Steady(_) => (
                    "",
                    format!(
                        "{TARGET_US} us, none lost: {}",
                        verdict(cpu_us <= TARGET_US && lossless)
                    ),
                ),
                Pace::Apart => (", cores apart", format!("none lost: {}", verdict(lossless))),
            };
            writeln!(
                f,
                "| {:.0}{apart} | {:.2} % | {} | {cpu_us:.0} | {:.0} | {:.1} | {early:.0}, {late:.0} | {target} |",
                run.load.rate(),
                // wrk does not count what is under way when it ends.
                (100.0 * run.compared / run.load.requests).min(100.0),
                losses(run),
                1e6 / cpu_us,
                run.bytes / run.load.seconds / 1e6,
            )?;
        }
        writeln!(f)
    }
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
