//! Which scheduling class the sender's thread should have: that with which clients notice least.

use std::fmt;
use std::io;

use anyhow::{Context, Result};
use nix::unistd::Pid;
use tests::Transport;

use crate::load::{Load, Measured};
use crate::machine;
use crate::nginx::MODEL_PORT;
use crate::samples::{Samples, turns};
use crate::stage::Stage;
use crate::variant::{Far, Modelmirror};

/// The thread's name, of which the kernel keeps 15 bytes.
const SENDER: &str = "sender";

/// How the sender's thread is scheduled; `None` = there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    None,
    Idle,
    Nice,
    Normal,
}

const ALL: [Class; 4] = [Class::None, Class::Idle, Class::Nice, Class::Normal];

impl Class {
    const fn label(self) -> &'static str {
        match self {
            Self::None => "no mirror",
            Self::Idle => "SCHED_IDLE (what it has)",
            Self::Nice => "nice 19",
            Self::Normal => "normal",
        }
    }

    /// Gives it to a thread.
    fn set(self, thread: Pid) -> Result<()> {
        let (policy, nice) = match self {
            Self::None => return Ok(()),
            Self::Idle => (libc::SCHED_IDLE, 0),
            Self::Nice => (libc::SCHED_OTHER, 19),
            Self::Normal => (libc::SCHED_OTHER, 0),
        };
        let thread = thread.as_raw();
        // SAFETY: all zero is a value of it.
        let parameters: libc::sched_param = unsafe { std::mem::zeroed() };
        // SAFETY: `parameters` outlives the call.
        let set = unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) };
        // SAFETY: there are only numbers in it.
        let niced = unsafe { libc::setpriority(libc::PRIO_PROCESS, thread.cast_unsigned(), nice) };
        if set != 0 || niced != 0 {
            return Err(io::Error::last_os_error()).context("cannot set the sender's class");
        }
        Ok(())
    }
}

/// All rounds.
pub(crate) struct Classes {
    samples: Samples<Class>,
    cores: usize,
}

impl Classes {
    /// Nothing yet, of a machine with so many cores.
    pub(crate) fn of(cores: usize) -> Self {
        Self {
            samples: Samples::default(),
            cores,
        }
    }
}

/// One round: requests are mirrored to a sink on the same cores, at saturation.
pub(crate) fn round(
    classes: &mut Classes,
    stage: &Stage,
    round: usize,
    load: &Load,
    seconds: u32,
) -> Result<()> {
    for class in turns(&ALL, round) {
        let run = || load.run(&stage.net.client, MODEL_PORT, seconds);
        let measured = if class == Class::None {
            run()?
        } else {
            let mirror = Modelmirror::start(stage, Transport::Stream, Far::Sink, |mirror| {
                mirror.insert("directions".to_owned(), "requests".into());
            })?;
            class.set(machine::thread_of(mirror.daemon.process.id(), SENDER)?)?;
            mirror.watch(run)?
        };
        classes.samples.push(round, class, measured);
    }
    Ok(())
}

impl fmt::Display for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## The sender's scheduling class\n\n\
             Requests of 2 KB at saturation, mirrored to the sink on the same cores; the class is given to the running thread from outside. \
             \"Shipped\" is what had left the ring when the load ended: what a class keeps from production, it leaves in the ring; \"all shipped\" counts that as above.\n\n\
             | the sender is | requests/s | of none | p50 ms | p99 ms | all shipped | sender us/request | not copied | shipped |\n|---|---|---|---|---|---|---|---|---|"
        )?;
        for class in ALL {
            let spread = |figure: fn(&Measured) -> f64| self.samples.spread(class, figure);
            let of_none = self.samples.ratio(class, Class::None);
            write!(
                f,
                "| {} | {:.0} | {of_none:.2} | {:.2} | {:.2} |",
                class.label(),
                spread(Measured::rate),
                spread(|measured| measured.p50_ms),
                spread(|measured| measured.p99_ms),
            )?;
            if class == Class::None {
                writeln!(f, " | | | |")?;
                continue;
            }
            writeln!(
                f,
                " {:.2} | {:.1} | {:.1} % | {:.0} % |",
                self.samples.together([class, Class::None], |[one, none]| {
                    one.rate_with_all(self.cores) / none.rate()
                }),
                spread(Measured::sender_us),
                spread(Measured::refused_percent),
                spread(Measured::shipped_percent),
            )?;
        }
        writeln!(f)
    }
}
