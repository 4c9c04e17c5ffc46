//! A child process that does not outlive its value.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running program whose output is kept. It is killed when the value is dropped, and when the
/// thread that started it ends, however that happens.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: File,
}

impl Process {
    /// Starts a command; its standard output and error go to one file without a name.
    pub(crate) fn spawn(name: &str, mut command: Command) -> Result<Self> {
        let output = tempfile::tempfile().context("cannot make a file for output")?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?);
        let die_with_parent =
            || prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from);
        // SAFETY: between fork and exec it makes one system call and allocates nothing.
        unsafe { command.pre_exec(die_with_parent) };
        // Control-C at a terminal is for this process, which then ends its children in order.
        command.process_group(0);
        let program = command.get_program().to_owned();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {program:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            output,
        })
    }

    /// The process's id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has written so far.
    pub fn output(&self) -> String {
        let mut text = String::new();
        // A second open of the same file has a position of its own.
        let path = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&self.output)
        );
        let read = File::open(path).and_then(|mut file| {
            file.rewind()?;
            file.read_to_string(&mut text)
        });
        match read {
            Ok(_) => text,
            Err(error) => format!("(output cannot be read: {error})"),
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("{}: cannot send {signal}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// With its output, when it has not ended within the limit.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                bail!(
                    "{} has not ended within {limit:?}\n{}",
                    self.name,
                    self.output()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it is still running.
    ///
    /// # Errors
    /// With its exit status and output, when it is not.
    pub fn running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended ({status})\n{}", self.name, self.output()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} wrote:\n{}---", self.name, self.output());
        }
    }
}
