//! The tables of throughput.

use std::fmt;

use super::{Cell, Throughput};
use crate::load::Measured;
use crate::page::verdict;
use crate::stage::Offloads;
use crate::statistics::Spread;
use crate::variant::Variant;
use crate::{LARGE, SMALL};

/// Throughput as a share of none, by the size of a body: the node's own cost; and of both directions.
const OWN_TARGETS: [(usize, f64); 2] = [(SMALL, 0.97), (LARGE, 0.95)];
const BOTH_TARGET: f64 = 0.92;

impl fmt::Display for Throughput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## What clients notice\n\n\
             As many requests as the machine can do. \"Of none\" is formed within each round. Copies of ours go to a sink on the shadow host, which takes \
             them as an agent does (TLS by keys, acknowledgements) and forgets them; naked copies, and geneve's, are dropped where they come in.\n\n\
             What the sender leaves in the ring while clients want the cores, it ships when they are done. **All shipped** is what \"of none\" would be \
             had these cores done that meanwhile: requests / (t + (s + r) / {0}), where t is the time of the load and s and r what the sender's and the sink's \
             threads took after its end (CLOCK_THREAD_CPUTIME_ID, user and kernel: TLS, TCP). **Node's own** has the sink on a machine of its own: requests / \
             (t + (s - d) / {0}), where d is what the sink's thread took during the load on the same {0} cores. What the shadow host's kernel does in softirqs \
             while packets come in runs on the sender's time here, and is left in both.\n\n\
             CPU is that of the whole machine (/proc/stat, all that is not idle) for one request; of it, softirqs (with the tap's programs, by the timer's \
             ticks). The sender's and the sink's threads are counted until the ring is empty. \"Not copied\": packets for which the ring had no room. \"Shipped\": bytes that had left the ring when the \
             load ended; the next one begins when it is empty.\n",
            self.cores
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
                "### {title}\n\n| | requests/s | of none | all shipped | node's own | p50 ms | p99 ms | CPU us/request | softirqs | sender | sink | not copied | shipped |\n\
                 |---|---|---|---|---|---|---|---|---|---|---|---|---|"
            )?;
            for variant in Variant::ALL {
                self.row(f, variant, body, offloads)?;
            }
            writeln!(f)?;
            if offloads == Offloads::On {
                self.targets(f, body)?;
            }
        }
        Ok(())
    }
}

impl Throughput {
    fn row(
        &self,
        f: &mut fmt::Formatter<'_>,
        variant: Variant,
        body: usize,
        offloads: Offloads,
    ) -> fmt::Result {
        let cell = |variant| Cell {
            variant,
            body,
            offloads,
        };
        let spread = |figure: fn(&Measured) -> f64| self.samples.spread(cell(variant), figure);
        write!(
            f,
            "| {} | {:.0} | {:.2} |",
            variant.label(),
            spread(Measured::rate),
            self.samples.ratio(cell(variant), cell(Variant::None)),
        )?;
        match variant.is_to_sink() {
            true => write!(
                f,
                " {:.2} | {:.2} |",
                self.of_none(cell(variant), Measured::rate_with_all),
                self.of_none(cell(variant), Measured::rate_without_sink),
            )?,
            false => write!(f, " | |")?,
        }
        write!(
            f,
            " {:.2} | {:.2} | {:.0} | {:.1} |",
            spread(|measured| measured.p50_ms),
            spread(|measured| measured.p99_ms),
            spread(Measured::cpu_us),
            spread(Measured::softirq_us),
        )?;
        if !variant.is_ours() {
            return writeln!(f, " | | | |");
        }
        writeln!(
            f,
            " {:.1} | {:.1} | {:.1} % | {:.0} % |",
            spread(Measured::sender_us),
            spread(Measured::sink_us),
            spread(Measured::refused_percent),
            spread(Measured::shipped_percent),
        )
    }

    /// A cell's throughput as a share of none, where `rate` says how fast it would have been.
    fn of_none(&self, cell: Cell, rate: fn(&Measured, usize) -> f64) -> Spread {
        let none = Cell {
            variant: Variant::None,
            ..cell
        };
        let of_none = |[one, none]: [&Measured; 2]| rate(one, self.cores) / none.rate();
        self.samples.together([cell, none], of_none)
    }

    fn targets(&self, f: &mut fmt::Formatter<'_>, body: usize) -> fmt::Result {
        let cell = |variant| Cell {
            variant,
            body,
            offloads: Offloads::On,
        };
        let median = |variant, rate| self.of_none(cell(variant), rate).median;
        let mirred = median(Variant::TcMirred, Measured::rate_with_all);
        let requests = median(Variant::Requests, Measured::rate_with_all);
        let own = median(Variant::Requests, Measured::rate_without_sink);
        let both = median(Variant::Both, Measured::rate_without_sink);
        let p99 = |variant| {
            self.samples
                .spread(cell(variant), |measured| measured.p99_ms)
        };
        let (none, ours) = (p99(Variant::None), p99(Variant::Requests).median);
        let target = OWN_TARGETS.iter().find(|(of, _)| *of == body);
        let target = target.map_or(f64::NAN, |(_, target)| *target);
        writeln!(
            f,
            "Targets for requests: the node's own at least {target} ({own:.3}): {}; with the receiving stack on the same cores not below tc mirred \
             (all shipped {requests:.3}, {mirred:.3}): {}; p99 within the spread of none ({ours:.2} ms): {}. For both directions: the node's own at least {BOTH_TARGET} \
             ({both:.3}): {}.\n",
            verdict(own >= target),
            verdict(requests >= mirred),
            verdict(ours <= none.most),
            verdict(both >= BOTH_TARGET),
        )
    }
}
