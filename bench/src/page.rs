//! docs/benchmarks.md.

use std::fmt;

use crate::agent::Agents;
use crate::churn::Churn;
use crate::classes::Classes;
use crate::idle::Idle;
use crate::kernel_time::KernelTimes;
use crate::load::CONNECTIONS;
use crate::machine::Machine;
use crate::rollout::Rollbacks;
use crate::single::Singles;
use crate::steering::Steering;
use crate::throughput::Throughput;

/// All that was measured.
pub(crate) struct Page {
    pub(crate) machine: Machine,
    pub(crate) rounds: usize,
    pub(crate) seconds: u32,
    pub(crate) throughput: Throughput,
    pub(crate) kernel: KernelTimes,
    pub(crate) singles: Singles,
    pub(crate) classes: Classes,
    pub(crate) agents: Agents,
    pub(crate) idle: Idle,
    pub(crate) steering: Steering,
    pub(crate) rollbacks: Rollbacks,
    pub(crate) churn: Churn,
}

/// Whether a figure is what it should be.
pub(crate) fn verdict(reached: bool) -> &'static str {
    if reached { "reached" } else { "**missed**" }
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.head(f)?;
        for section in [
            &self.throughput as &dyn fmt::Display,
            &self.kernel,
            &self.singles,
            &self.classes,
            &self.agents,
            &self.idle,
            &self.steering,
            &self.rollbacks,
            &self.churn,
        ] {
            writeln!(f, "{}\n", section.to_string().trim_end())?;
        }
        Ok(())
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
}
