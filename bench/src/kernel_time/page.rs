//! The table of time in the kernel.

use std::fmt;

use super::{Direction, KernelTimes, Program};
use crate::page::verdict;
use crate::{HUGE, LARGE, SMALL};

/// What a copy into the ring takes, in times of a raw clone's, by the size of a body.
const TARGETS: [(usize, f64); 2] = [(SMALL, 0.35), (LARGE, 0.5)];

impl fmt::Display for KernelTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## Time in the kernel for a copied packet\n\n\
             By the kernel's own statistics (`kernel.bpf_stats_enabled`, on for this part only) under the load above: the mean of all runs of a program, those for \
             pure ACKs included, in nanoseconds. \"Classify\" is our program for a service with `sample = 0`; a raw clone is a program of five instructions that \
             calls `bpf_clone_redirect` and nothing else; both it and geneve include sending. \"A copy adds\": the whole run less classify (of the raw clone: less an \
             empty program), for each copy.\n\n\
             | | raw clone | classify | stream | geneve | a copy adds: raw clone | stream | geneve | stream, in raw clones | geneve | target |\n\
             |---|---|---|---|---|---|---|---|---|---|---|"
        )?;
        let requests = [SMALL, LARGE, HUGE].map(|body| (body, Direction::Requests));
        for (body, direction) in requests.into_iter().chain([(LARGE, Direction::Responses)]) {
            let run = |program| self.run(program, body, direction);
            let copy = |program| self.copy(program, body, direction);
            let stream = self.ratio(Program::Stream, body, direction);
            let geneve = self.ratio(Program::Geneve, body, direction);
            let target = TARGETS.iter().find(|(of, _)| *of == body);
            let (what, target) = match direction {
                Direction::Requests => (format!("requests, {body}-byte bodies"), target),
                Direction::Responses => ("responses".to_owned(), None),
            };
            let target = target.map_or_else(String::new, |(_, target)| {
                format!("{target} for stream: {}", verdict(stream.median <= *target))
            });
            writeln!(
                f,
                "| {what} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {stream:.2} | {geneve:.2} | {target} |",
                run(Program::Raw),
                run(Program::Classify),
                run(Program::Stream),
                run(Program::Geneve),
                copy(Program::Raw),
                copy(Program::Stream),
                copy(Program::Geneve),
            )?;
        }
        writeln!(f)
    }
}
