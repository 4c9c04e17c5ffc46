//! The machine: what it is, and how busy it has been.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use nix::sys::utsname::uname;
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use procfs::{CpuTime, Current, CurrentSI, KernelStats};

/// What was measured on.
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) distribution: String,
    /// Processes that wanted a core in the minute before the bench.
    pub(crate) load: f32,
}

impl Machine {
    /// This one.
    pub(crate) fn this() -> Result<Self> {
        let processors = procfs::CpuInfo::current().context("cannot read /proc/cpuinfo")?;
        let names = uname()?;
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let distribution = release
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .map_or("unknown", |name| name.trim_matches('"'));
        Ok(Self {
            processor: processors
                .model_name(0)
                .unwrap_or("unknown processor")
                .to_owned(),
            cores: processors.num_cores(),
            kernel: format!(
                "{} {}, {}",
                names.sysname().to_string_lossy(),
                names.release().to_string_lossy(),
                names.machine().to_string_lossy()
            ),
            distribution: distribution.to_owned(),
            load: procfs::LoadAverage::current()
                .context("cannot read /proc/loadavg")?
                .one,
        })
    }
}

/// The version of a Debian package.
pub(crate) fn package(name: &str) -> String {
    let query = Command::new("dpkg-query")
        .args(["-W", "-f", "${Version}", name])
        .output();
    match query {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).into_owned()
        }
        _ => "(unknown version)".to_owned(),
    }
}

/// CPU seconds that all cores together have not been idle since the machine started: processes,
/// kernel and interrupts.
pub(crate) fn busy_seconds() -> Result<f64> {
    let stat = KernelStats::current().context("cannot read /proc/stat")?;
    Ok(busy(&stat.total))
}

/// CPU seconds that all cores together have spent in softirqs, as far as the timer's ticks tell.
pub(crate) fn softirq_seconds() -> Result<f64> {
    let stat = KernelStats::current().context("cannot read /proc/stat")?;
    let ticks = stat.total.softirq.unwrap_or_default();
    Ok(ticks as f64 / procfs::ticks_per_second() as f64)
}

/// What [`busy_seconds`] is, of one core.
pub(crate) fn busy_seconds_of(core: usize) -> Result<f64> {
    let stat = KernelStats::current().context("cannot read /proc/stat")?;
    let time = stat.cpu_time.get(core);
    Ok(busy(time.context("/proc/stat does not have that core")?))
}

fn busy(time: &CpuTime) -> f64 {
    let ticks = time.user
        + time.nice
        + time.system
        + time.irq.unwrap_or_default()
        + time.softirq.unwrap_or_default();
    ticks as f64 / procfs::ticks_per_second() as f64
}

/// CPU seconds that a process has used, in all its threads.
pub(crate) fn process_seconds(id: u32) -> Result<f64> {
    let clock = clock_getcpuclockid(Pid::from_raw(id.cast_signed()))?;
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9)
}

/// Memory of a process that is in RAM, in bytes.
pub(crate) fn resident_bytes(id: u32) -> Result<u64> {
    let process = procfs::process::Process::new(id.cast_signed())?;
    Ok(process.statm()?.resident * procfs::page_size())
}

/// How often all threads of a process together have begun to run.
pub(crate) fn switches(process: u32) -> Result<u64> {
    let process = procfs::process::Process::new(process.cast_signed())?;
    let mut sum = 0;
    for task in process.tasks()?.flatten() {
        let status = task.status()?;
        sum += status.voluntary_ctxt_switches.unwrap_or_default();
        sum += status.nonvoluntary_ctxt_switches.unwrap_or_default();
    }
    Ok(sum)
}

/// The thread of a process that has this name.
pub(crate) fn thread_of(process: u32, name: &str) -> Result<Pid> {
    let folder = format!("/proc/{process}/task");
    for task in fs::read_dir(&folder).context(folder)?.flatten() {
        let comm = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let number = task.file_name().to_string_lossy().parse();
        if let (true, Ok(number)) = (comm.trim_end() == name, number) {
            return Ok(Pid::from_raw(number));
        }
    }
    anyhow::bail!("process {process} has no thread {name}")
}
