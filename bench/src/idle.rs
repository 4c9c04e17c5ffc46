//! What the daemon does on a node on which nothing happens.

use std::fmt;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use tests::Home;

use crate::machine;
use crate::page::verdict;
use crate::stage::Stage;
use crate::variant::{Far, Modelmirror};

/// Services that nobody asks anything.
const SERVICES: u16 = 10;

/// The daemon's part of a core.
const TARGET: f64 = 0.001;

/// Calls of bpf(2) a second, of all services together.
const CALLS_TARGET: f64 = 100.0;

/// How long it takes the daemon to have done what a start takes.
const SETTLING: Duration = Duration::from_secs(3);

/// A while without traffic.
pub(crate) struct Idle {
    pub(crate) seconds: u64,
    /// The daemon's part of a core.
    pub(crate) share: f64,
    /// How often a second the sender's thread woke.
    pub(crate) wakeups: f64,
    /// How often a second any of its threads began to run.
    pub(crate) switches: f64,
    /// Calls of bpf(2) a second; nothing without strace.
    pub(crate) calls: Option<f64>,
}

/// Watches a daemon with several services, all of them mirrored to one agent, for so many seconds.
pub(crate) fn measure(stage: &Stage, seconds: u64) -> Result<Idle> {
    let home = Home::new()?;
    let mut config = home.node_config();
    if let Some(services) = config["service"].as_array_mut() {
        let first = services[0].clone();
        for number in 1..SERVICES {
            let mut service = first.clone();
            if let Some(service) = service.as_table_mut() {
                service.insert("name".to_owned(), format!("digits-{number}").into());
                service.insert("id".to_owned(), i64::from(101 + number).into());
                let address = format!("*:{}", 8000 + number);
                service.insert("addresses".to_owned(), vec![address].into());
            }
            services.push(service);
        }
    }
    let mirror = Modelmirror::start_with(stage, home, Far::Sink, &config)?;
    thread::sleep(SETTLING);
    let id = mirror.daemon.process.id();
    let wakeups = || -> Result<f64> {
        let metrics = mirror.daemon.metrics()?;
        Ok(metrics.sum("modelmirror_sender_wakeups_total", &[]))
    };
    // Outside of what is measured: asking wakes the daemon, though not the sender.
    let woken = wakeups()?;
    let (cpu, switches) = (machine::process_seconds(id)?, machine::switches(id)?);
    thread::sleep(Duration::from_secs(seconds));
    let (cpu, switches) = (
        machine::process_seconds(id)? - cpu,
        machine::switches(id)? - switches,
    );
    let woken = wakeups()? - woken;
    // Afterwards: each call takes many times as long meanwhile.
    let calls = bpf_calls(id, seconds);
    Ok(Idle {
        seconds,
        share: cpu / seconds as f64,
        wakeups: woken / seconds as f64,
        switches: switches as f64 / seconds as f64,
        calls,
    })
}

/// How often a second a process calls bpf(2), as strace counts.
fn bpf_calls(process: u32, seconds: u64) -> Option<f64> {
    let patience = seconds.to_string();
    let process = process.to_string();
    let counted = Command::new("timeout")
        .args(["--signal=INT", &patience])
        .args(["strace", "-f", "-c", "-e", "trace=bpf", "-p", &process])
        .output()
        .ok()?;
    // A table: part, seconds, microseconds a call, calls, (errors,) name.
    let said = String::from_utf8_lossy(&counted.stderr).into_owned();
    let mut lines = said
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|words| words.last() == Some(&"bpf"))?;
    let calls: f64 = line.get(3)?.parse().ok()?;
    Some(calls / seconds as f64)
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Idle {
            seconds,
            share,
            wakeups,
            switches,
            calls,
        } = self;
        writeln!(
            f,
            "## Without traffic\n\n\
             The daemon with {} services that are mirrored to one agent, {seconds} s in which nobody asks anything: {:.3} % of a core (target: under {} %: {}); \
             the sender's thread woke {wakeups:.1} times a second (target: 0: {}), all threads together {switches:.0} times.\n",
            SERVICES,
            share * 100.0,
            TARGET * 100.0,
            verdict(*share < TARGET),
            verdict(*wakeups == 0.0),
        )?;
        if let Some(calls) = calls {
            let reached = verdict(*calls <= CALLS_TARGET);
            writeln!(
                f,
                "It called bpf(2) {calls:.0} times a second (target: at most {CALLS_TARGET:.0}: {reached}).\n"
            )?;
        }
        Ok(())
    }
}
