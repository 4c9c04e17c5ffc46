//! Threads for work whose time grows with its bytes: decompressing, parsing, comparing, hashing,
//! forming records. On the runtime's thread it would hold up every replay, and show as the shadow's
//! latency.
//!
//! A bounded number of jobs runs at once, the others wait in order. What waits is bounded by the
//! agent's memory: each job keeps its leases.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::watch;

/// Jobs that run at once on the smallest host: a huge one then does not hold up all others.
const FEWEST: usize = 2;

/// Runs jobs of type `J` on other threads.
pub(super) struct Workers<J> {
    queue: Mutex<Queue<J>>,
    /// Jobs that wait or run.
    pending: watch::Sender<usize>,
}

/// One job.
pub(super) struct Job<J> {
    pub(super) job: J,
    /// Jobs of the same group run one at a time; without a group, with whatever else runs.
    pub(super) group: Option<usize>,
}

/// What waits, and who works. Pure.
struct Queue<J> {
    waiting: VecDeque<Job<J>>,
    running: usize,
    most: usize,
    groups: HashSet<usize>,
}

impl<J: Send + 'static> Workers<J> {
    /// As many threads as half of the CPUs; the rest is for capture, replay and the shadow.
    pub(super) fn new() -> Self {
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Self::with(FEWEST.max(cpus / 2))
    }

    fn with(most: usize) -> Self {
        Self {
            queue: Mutex::new(Queue {
                waiting: VecDeque::new(),
                running: 0,
                most,
                groups: HashSet::new(),
            }),
            pending: watch::Sender::new(0),
        }
    }

    /// Runs `work` with this job on another thread, when its turn comes. Every caller brings the
    /// same work: it may get other jobs as well. To be called in a runtime.
    pub(super) fn run<W>(self: &Arc<Self>, job: Job<J>, work: W)
    where
        W: Fn(J) + Send + 'static,
    {
        self.pending.send_modify(|count| *count += 1);
        let Some(first) = self.queue().push(job) else {
            return;
        };
        let workers = Arc::clone(self);
        tokio::task::spawn_blocking(move || workers.work(first, work));
    }

    /// Waits until no job waits or runs.
    pub(super) async fn idle(&self) {
        let mut pending = self.pending.subscribe();
        // The sender is ours: it is there.
        let _ = pending.wait_for(|&count| count == 0).await;
    }

    /// Takes the jobs back that have not begun.
    pub(super) fn take_waiting(&self) -> impl Iterator<Item = J> + use<J> {
        let waiting = std::mem::take(&mut self.queue().waiting);
        self.pending.send_modify(|count| *count -= waiting.len());
        waiting.into_iter().map(|job| job.job)
    }

    /// Jobs that wait or run.
    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        *self.pending.borrow()
    }

    /// Jobs that may run at once.
    #[cfg(test)]
    pub(super) fn most(&self) -> usize {
        self.queue().most
    }

    fn work(&self, first: Job<J>, work: impl Fn(J)) {
        let mut next = first;
        loop {
            let Job { job, group } = next;
            // A panic costs its job; the thread goes on with the others. The hook has shown it.
            let _ = catch_unwind(AssertUnwindSafe(|| work(job)));
            match self.queue().next(group) {
                Some(job) => next = job,
                None => break,
            }
            self.done();
        }
        // Whoever waits until nothing is pending counts on all being let go of that work needs.
        drop(work);
        self.done();
    }

    fn done(&self) {
        self.pending.send_modify(|count| *count -= 1);
    }

    fn queue(&self) -> MutexGuard<'_, Queue<J>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> Queue<J> {
    /// Queues a job; returns one for a new thread to begin with, where another thread may run.
    fn push(&mut self, job: Job<J>) -> Option<Job<J>> {
        self.waiting.push_back(job);
        if self.running == self.most {
            return None;
        }
        let first = self.take()?;
        self.running += 1;
        Some(first)
    }

    /// A thread has done a job of this group: the next one for it, or it ends.
    fn next(&mut self, done: Option<usize>) -> Option<Job<J>> {
        if let Some(group) = done {
            self.groups.remove(&group);
        }
        let next = self.take();
        if next.is_none() {
            self.running -= 1;
        }
        next
    }

    /// The first job whose group is not at work.
    fn take(&mut self) -> Option<Job<J>> {
        let groups = &self.groups;
        let free = |job: &Job<J>| job.group.is_none_or(|group| !groups.contains(&group));
        let place = self.waiting.iter().position(free)?;
        let job = self.waiting.remove(place)?;
        self.groups.extend(job.group);
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn queue(most: usize) -> Queue<u32> {
        Workers::with(most).queue.into_inner().unwrap()
    }

    fn push(queue: &mut Queue<u32>, job: u32, group: Option<usize>) -> Option<u32> {
        queue.push(Job { job, group }).map(|job| job.job)
    }

    fn next(queue: &mut Queue<u32>, done: Option<usize>) -> Option<u32> {
        queue.next(done).map(|job| job.job)
    }

    #[test]
    fn no_more_than_the_most_run_at_once_and_in_order() {
        let mut queue = queue(2);
        assert_eq!(push(&mut queue, 1, None), Some(1));
        assert_eq!(push(&mut queue, 2, None), Some(2));
        assert_eq!(push(&mut queue, 3, None), None);
        assert_eq!(push(&mut queue, 4, None), None);
        assert_eq!(next(&mut queue, None), Some(3));
        assert_eq!(next(&mut queue, None), Some(4));
        assert_eq!(next(&mut queue, None), None);
        // One thread still runs, another may begin.
        assert_eq!(push(&mut queue, 5, None), Some(5));
        assert_eq!(push(&mut queue, 6, None), None);
    }

    #[test]
    fn a_group_has_one_thread_and_holds_up_nobody_else() {
        let mut queue = queue(2);
        assert_eq!(push(&mut queue, 1, Some(7)), Some(1));
        assert_eq!(push(&mut queue, 2, Some(7)), None);
        assert_eq!(push(&mut queue, 3, None), Some(3));
        assert_eq!(push(&mut queue, 4, Some(8)), None);
        assert_eq!(next(&mut queue, None), Some(4));
        assert_eq!(next(&mut queue, Some(8)), None);
        assert_eq!(next(&mut queue, Some(7)), Some(2));
        assert_eq!(next(&mut queue, Some(7)), None);
        assert_eq!(queue.running, 0);
    }

    #[tokio::test]
    async fn jobs_run_on_other_threads() {
        let workers = Arc::new(Workers::with(2));
        let (sender, receiver) = mpsc::channel();
        for job in 0..10 {
            let sender = sender.clone();
            let work = move |job: u32| sender.send((job, thread::current().id())).unwrap();
            workers.run(Job { job, group: None }, work);
        }
        workers.idle().await;
        let mut done: Vec<_> = receiver.try_iter().collect();
        assert!(
            done.iter()
                .all(|(_, thread)| *thread != thread::current().id())
        );
        done.sort_unstable_by_key(|(job, _)| *job);
        let jobs: Vec<_> = done.iter().map(|(job, _)| *job).collect();
        assert_eq!(jobs, (0..10).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_panic_costs_its_job_alone() {
        let workers = Arc::new(Workers::with(1));
        let (sender, receiver) = mpsc::channel();
        for job in 0..3 {
            let sender = sender.clone();
            let work = move |job| {
                assert_ne!(job, 1, "as the test wants it");
                sender.send(job).unwrap();
            };
            workers.run(Job { job, group: None }, work);
        }
        workers.idle().await;
        assert_eq!(receiver.try_iter().collect::<Vec<u32>>(), [0, 2]);
    }

    #[tokio::test]
    async fn what_has_not_begun_can_be_taken_back() {
        let workers = Arc::new(Workers::with(1));
        let (go, gone) = mpsc::channel::<()>();
        let wait = move |_: u32| gone.recv().unwrap();
        workers.run(
            Job {
                job: 1,
                group: None,
            },
            wait,
        );
        for job in 2..4 {
            workers.run(Job { job, group: None }, |_| unreachable!("never begun"));
        }
        assert_eq!(workers.take_waiting().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(workers.pending(), 1);
        go.send(()).unwrap();
        workers.idle().await;
    }
}
