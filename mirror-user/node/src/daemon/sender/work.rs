//! The sender's thread: wakes when there is something to send, at most once in an interval, and keeps
//! to its share of a CPU.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use mirror_api::tap_report::TapReport;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::time::{ClockId, clock_gettime};
use tokio::sync::{mpsc, oneshot};

use super::pipe::Pipe;
use super::upstream::{Said, Upstream};
use super::{Event, What};
use crate::config::Node;
use crate::daemon::now;
use crate::daemon::priority::yield_to_everybody;
use crate::dataplane::{Bell, Ring};
use mirror_base::transport::frame::Position;

/// How long the thread may be ahead of its share of a CPU.
const CPU_BURST: Duration = Duration::from_millis(20);

/// How long an agent that is left may take to take in the rest.
const FAREWELL: Duration = Duration::from_secs(10);

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Order {
    /// A connection has been welcomed.
    Link(Box<Link>),
    /// A report for the agent with this number.
    Report(u32, Box<TapReport>),
    /// The agent with this number is no longer wanted: it gets what its ring holds and this report.
    Leave(u32, Box<TapReport>),
    /// The agent with this number gets nothing more.
    Drop(u32),
    Stop,
}

/// A connection that has been welcomed.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) number: u32,
    pub(super) pipe: Pipe,
    pub(super) ring: Option<Arc<Ring>>,
    pub(super) welcome: Vec<Position>,
    /// Is told why it ended.
    pub(super) ended: oneshot::Sender<String>,
}

/// How much of the machine the thread takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::daemon) struct Pace {
    /// The least time from one look at the rings to the next.
    pub(in crate::daemon) interval: Duration,
    /// The largest share of a CPU.
    pub(in crate::daemon) cpus: f64,
}

impl Pace {
    /// What the config says.
    pub(in crate::daemon) fn of(config: &Node) -> Self {
        Self {
            interval: config.batch_interval,
            cpus: config.sender_cpus,
        }
    }
}

/// What the thread has done so far.
#[derive(Debug)]
pub(crate) struct Figures {
    /// Times that it woke.
    pub(crate) wakeups: AtomicU64,
    /// Time on a CPU, in nanoseconds.
    pub(crate) cpu_ns: AtomicU64,
    /// Bytes of rings written to agents, by the agents' numbers.
    pub(crate) shipped: [AtomicU64; mirror_common::policy::MAX_AGENTS as usize],
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            wakeups: AtomicU64::default(),
            cpu_ns: AtomicU64::default(),
            shipped: std::array::from_fn(|_| AtomicU64::default()),
        }
    }
}

/// The thread.
pub(super) struct Work {
    pub(super) orders: Receiver<Order>,
    pub(super) wanted: Arc<EventFd>,
    pub(super) bell: Bell,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) figures: Arc<Figures>,
    pub(super) pace: Pace,
}

struct Connected {
    upstream: Upstream,
    ended: oneshot::Sender<String>,
    /// When an agent that is left is given up.
    until: Option<Instant>,
}

impl Connected {
    /// Whether an agent that is left needs no more, or has had its time.
    fn is_over(&self) -> bool {
        let late = |until| Instant::now() > until;
        self.upstream.has_left() || self.until.is_some_and(late)
    }
}

impl Work {
    /// Works until it is told to stop.
    pub(super) fn run(mut self) {
        yield_to_everybody();
        let mut agents: HashMap<u32, Connected> = HashMap::new();
        let mut budget = CpuBudget::new();
        while self.take_orders(&mut agents) {
            self.figures.wakeups.fetch_add(1, Ordering::Relaxed);
            let busy = self.turn(&mut agents);
            let spent = budget.spent();
            self.figures
                .cpu_ns
                .store(spent.as_nanos() as u64, Ordering::Relaxed);
            if busy {
                let owed = budget.owed(self.pace.cpus);
                std::thread::sleep(self.pace.interval.max(owed));
            } else {
                self.sleep(&agents);
            }
        }
    }

    /// Whether to go on.
    fn take_orders(&mut self, agents: &mut HashMap<u32, Connected>) -> bool {
        let _ = self.wanted.read();
        loop {
            match self.orders.try_recv() {
                Ok(Order::Link(link)) => {
                    let Link {
                        number,
                        pipe,
                        ring,
                        welcome,
                        ended,
                    } = *link;
                    let upstream = Upstream::new(pipe, ring, &welcome);
                    let until = None;
                    let connected = Connected {
                        upstream,
                        ended,
                        until,
                    };
                    agents.insert(number, connected);
                }
                Ok(Order::Report(number, report)) => {
                    if let Some(agent) = agents.get_mut(&number) {
                        agent.upstream.report(report);
                    }
                }
                Ok(Order::Leave(number, report)) => {
                    if let Some(agent) = agents.get_mut(&number) {
                        agent.upstream.leave(report);
                        agent.until = Some(Instant::now() + FAREWELL);
                    }
                }
                Ok(Order::Drop(number)) => drop(agents.remove(&number)),
                Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// Moves every connection on. Says whether anything was sent: then more is to be expected soon.
    fn turn(&self, agents: &mut HashMap<u32, Connected>) -> bool {
        let (mut busy, mut broken) = (false, Vec::new());
        let mut said = Vec::new();
        for (&number, agent) in agents.iter_mut() {
            let before = agent.upstream.shipped;
            match self.turn_of(agent, &mut said) {
                Ok(more) => busy |= more,
                Err(error) => broken.push((number, error)),
            }
            let shipped = agent.upstream.shipped - before;
            if let Some(figure) = self.figures.shipped.get(number as usize) {
                figure.fetch_add(shipped, Ordering::Relaxed);
            }
            for Said::Echo { sent_at_ns } in said.drain(..) {
                let what = What::Echo { sent_at_ns };
                // Nobody listens when the daemon ends.
                let _ = self.events.send(Event { number, what });
            }
        }
        agents.retain(|_, agent| !agent.is_over());
        for (number, error) in broken {
            if let Some(agent) = agents.remove(&number) {
                let why = match error.kind() {
                    ErrorKind::UnexpectedEof => "the agent has closed the connection".to_owned(),
                    _ => error.to_string(),
                };
                let _ = agent.ended.send(why);
            }
        }
        busy
    }

    fn turn_of(&self, agent: &mut Connected, said: &mut Vec<Said>) -> std::io::Result<bool> {
        let upstream = &mut agent.upstream;
        upstream.read(said)?;
        upstream.plan(now::ns());
        // Where the socket takes nothing, it says when it does.
        upstream.write()
    }

    /// Waits until something happens.
    fn sleep(&mut self, agents: &HashMap<u32, Connected>) {
        let rings = || agents.values().filter_map(|agent| agent.upstream.ring());
        let waits = |agent: &Connected| agent.upstream.is_blocked();
        for agent in agents.values().filter(|agent| !waits(agent)) {
            agent.upstream.sleep();
        }
        // What came before the tap knew has not rung.
        let missed = agents.values().any(|agent| agent.upstream.has_more());
        if !missed {
            let mut polled = vec![
                PollFd::new(self.wanted.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.bell.fd(), PollFlags::POLLIN),
            ];
            polled.extend(agents.values().map(|agent| {
                let write = match waits(agent) {
                    true => PollFlags::POLLOUT,
                    false => PollFlags::empty(),
                };
                PollFd::new(agent.upstream.pipe().fd(), PollFlags::POLLIN | write)
            }));
            let leaves = agents.values().any(|agent| agent.until.is_some());
            let limit = match leaves {
                true => PollTimeout::from(1_000_u16),
                false => PollTimeout::NONE,
            };
            let _ = poll(&mut polled, limit);
        }
        rings().for_each(Ring::wake);
        self.bell.quiet();
    }
}

/// What the thread may use of a CPU.
struct CpuBudget {
    checked: Instant,
    used: Duration,
    /// What was used beyond the share, in seconds.
    debt: f64,
}

impl CpuBudget {
    fn new() -> Self {
        Self {
            checked: Instant::now(),
            used: Duration::ZERO,
            debt: 0.0,
        }
    }

    /// Time on a CPU so far.
    fn spent(&self) -> Duration {
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(self.used, Duration::from)
    }

    /// How long to wait until what was used is within the share of `cpus`.
    fn owed(&mut self, cpus: f64) -> Duration {
        let (now, spent) = (Instant::now(), self.spent());
        let earned = now.duration_since(self.checked).as_secs_f64() * cpus;
        let used = spent.saturating_sub(self.used).as_secs_f64();
        (self.checked, self.used) = (now, spent);
        self.debt = (self.debt + used - earned).max(-CPU_BURST.as_secs_f64());
        Duration::from_secs_f64((self.debt / cpus).clamp(0.0, 1.0))
    }
}
