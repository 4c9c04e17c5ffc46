//! What a server has used by now. Pure.

use std::collections::HashMap;
use std::time::Duration;

use super::processes::{Id, Process};

/// The least time over which the CPU's use of late is formed: the kernel counts in hundredths of a
/// second.
const WINDOW: Duration = Duration::from_millis(500);

/// What a server uses, all its processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// CPU time since it was found first; it stays when the processes are gone.
    pub cpu: Duration,
    /// CPUs in use of late, on average; nothing before the second look.
    pub cpus: Option<f64>,
    /// Memory in RAM; what processes share counts for each.
    pub resident_bytes: u64,
    /// How many processes there are.
    pub processes: usize,
    /// The oldest of them; nothing without any.
    pub oldest: Option<Id>,
}

/// The running sum. Processes come and go, and none takes back what it has used.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    usage: Usage,
    /// CPU time of each process at the last look.
    known: HashMap<Id, Duration>,
    /// When that was, since the machine was started.
    looked: Option<Duration>,
    /// Where the CPUs in use are counted from: when, and what had been used.
    window: Option<(Duration, Duration)>,
}

impl Tally {
    /// Takes in how the server's processes are at `now`, since the machine was started.
    ///
    /// One that is new counts from now on, what it did before it served left out, unless it was
    /// born after the last look.
    pub(super) fn look<'a>(
        &mut self,
        now: Duration,
        processes: impl IntoIterator<Item = &'a Process>,
    ) {
        let mut known = HashMap::new();
        let (mut resident_bytes, mut used) = (0, Duration::ZERO);
        for process in processes {
            let young = self.looked.is_some_and(|then| process.id.started >= then);
            let begin = if young { Duration::ZERO } else { process.cpu };
            let before = self.known.get(&process.id).copied().unwrap_or(begin);
            used += process.cpu.saturating_sub(before);
            resident_bytes += process.resident_bytes;
            known.insert(process.id, process.cpu.max(before));
        }
        self.looked = Some(now);
        self.usage.cpu += used;
        self.usage.resident_bytes = resident_bytes;
        self.usage.processes = known.len();
        self.known = known;
        self.count_cpus(now);
    }

    fn count_cpus(&mut self, now: Duration) {
        if let Some((then, used)) = self.window {
            let passed = now.saturating_sub(then);
            if passed < WINDOW {
                return;
            }
            let used = self.usage.cpu - used;
            self.usage.cpus = Some(used.as_secs_f64() / passed.as_secs_f64());
        }
        self.window = Some((now, self.usage.cpu));
    }

    /// Nothing before a process was seen.
    pub(super) fn usage(&self) -> Option<Usage> {
        let seen = self.usage.processes > 0 || self.usage.cpu > Duration::ZERO;
        seen.then_some(self.usage)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MEGABYTE: u64 = 1 << 20;

    /// A process by its id, when it was started and what it has used, in seconds.
    fn process(pid: i32, started: u64, cpu: u64) -> Process {
        Process {
            id: Id {
                pid,
                started: Duration::from_secs(started),
            },
            parent: 1,
            cpu: Duration::from_secs(cpu),
            resident_bytes: MEGABYTE,
        }
    }

    /// Looks, one every ten seconds from 1,000 on, and CPU seconds after each.
    #[track_caller]
    fn check(looks: &[(&[Process], u64)]) {
        let mut tally = Tally::default();
        for (number, (processes, expected)) in (0..).zip(looks) {
            tally.look(Duration::from_secs(1_000 + 10 * number), *processes);
            let usage = tally.usage().unwrap_or_default();
            assert_eq!(usage.cpu, Duration::from_secs(*expected), "look {number}");
            assert_eq!(usage.processes, processes.len());
            assert_eq!(usage.resident_bytes, processes.len() as u64 * MEGABYTE);
        }
    }

    #[test]
    fn what_was_used_before_the_first_look_is_left_out() {
        let looks: [(&[Process], u64); 3] = [
            (&[process(7, 3, 500)], 0),
            (&[process(7, 3, 502)], 2),
            (&[process(7, 3, 509)], 9),
        ];
        check(&looks);
    }

    #[test]
    fn a_worker_that_ends_takes_nothing_back() {
        let looks: [(&[Process], u64); 4] = [
            (&[process(7, 3, 10), process(8, 3, 20)], 0),
            (&[process(7, 3, 11), process(8, 3, 25)], 6),
            (&[process(7, 3, 12)], 7),
            (&[], 7),
        ];
        check(&looks);
    }

    #[test]
    fn a_worker_that_is_born_counts_from_its_birth() {
        let looks: [(&[Process], u64); 3] = [
            (&[process(7, 3, 10)], 0),
            (&[process(7, 3, 11), process(9, 1_001, 4)], 5),
            // It was there long ago, and has only now begun to listen.
            (
                &[process(7, 3, 11), process(9, 1_001, 4), process(10, 5, 900)],
                5,
            ),
        ];
        check(&looks);
    }

    #[test]
    fn an_id_that_is_given_again_is_another_process() {
        let looks: [(&[Process], u64); 2] =
            [(&[process(7, 3, 10)], 0), (&[process(7, 1_005, 2)], 2)];
        check(&looks);
    }

    #[test]
    fn the_cpus_in_use_are_those_of_late() {
        let mut tally = Tally::default();
        assert_eq!(tally.usage(), None);
        let mut cpus = |ms, cpu| {
            tally.look(Duration::from_millis(ms), &[process(7, 0, cpu)]);
            tally.usage().unwrap().cpus
        };
        assert_eq!(cpus(100_000, 50), None);
        assert_eq!(cpus(110_000, 55), Some(0.5));
        assert_eq!(cpus(110_001, 55), Some(0.5), "too soon to tell");
        assert_eq!(cpus(112_000, 59), Some(2.0));
        assert_eq!(cpus(113_000, 59), Some(0.0));
    }

    proptest! {
        /// Whoever comes and goes, and whatever /proc says.
        #[test]
        fn the_sum_never_goes_back(
            looks in prop::collection::vec(
                prop::collection::vec((0..4, 0..3u64, 0..1_000u64), 0..5),
                1..20,
            ),
        ) {
            let (mut tally, mut last) = (Tally::default(), Duration::ZERO);
            for (second, look) in (0..).zip(looks) {
                let processes = look.iter().map(|&(pid, started, cpu)| process(pid, started, cpu));
                let processes: Vec<Process> = processes.collect();
                tally.look(Duration::from_secs(second), &processes);
                let cpu = tally.usage().unwrap_or_default().cpu;
                prop_assert!(cpu >= last, "{cpu:?} after {last:?}");
                last = cpu;
            }
        }
    }
}
