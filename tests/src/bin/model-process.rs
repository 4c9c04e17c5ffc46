//! A model server as a process, or as several, for tests of what processes use.
//!
//! ```text
//! model-process VERSION LISTEN          serves
//! model-process VERSION LISTEN COUNT    has so many workers serve, who inherit its socket; one that is ended
//!                                       by SIGTERM is followed by another
//! model-process VERSION                 is such a worker: the socket is its standard input
//! ```

use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use tests::{Answers, serve_alone};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let bind = |listen: &str| TcpListener::bind(listen).with_context(|| listen.to_owned());
    match arguments[..] {
        [version] => {
            prctl::set_pdeathsig(Signal::SIGKILL)?;
            let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
            serve_alone(TcpListener::from(socket), &Answers::of(version))
        }
        [version, listen] => serve_alone(bind(listen)?, &Answers::of(version)),
        [version, listen, count] => lead(version, bind(listen)?, count.parse()?),
        _ => bail!("model-process VERSION [LISTEN [COUNT]]"),
    }
}

/// Has workers serve, and waits for their ends.
fn lead(version: &str, listener: TcpListener, count: usize) -> Result<()> {
    std::thread::scope(|scope| {
        let replace = || -> Result<()> {
            while work(version, &listener)?.signal() == Some(libc::SIGTERM) {}
            Ok(())
        };
        let leads: Vec<_> = (0..count).map(|_| scope.spawn(replace)).collect();
        let mut ended = leads.into_iter().filter_map(|lead| lead.join().ok());
        ended.try_for_each(|ended| ended)
    })
}

/// A worker's life.
fn work(version: &str, listener: &TcpListener) -> Result<ExitStatus> {
    let socket = OwnedFd::from(listener.try_clone()?);
    let mut worker = Command::new(std::env::current_exe()?);
    worker.arg(version).stdin(Stdio::from(socket));
    Ok(worker.spawn()?.wait()?)
}
