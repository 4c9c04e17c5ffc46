//! A model server as a process, or as several, for tests of what processes use.
//!
//! ```text
//! model-process VERSION LISTEN          serves
//! model-process VERSION LISTEN COUNT    has so many workers serve, who inherit its socket
//! model-process VERSION                 is such a worker: the socket is its standard input
//! ```

use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
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

/// Starts workers, and waits for their ends.
fn lead(version: &str, listener: TcpListener, count: usize) -> Result<()> {
    let program = std::env::current_exe()?;
    let mut workers = Vec::new();
    for _ in 0..count {
        let socket = OwnedFd::from(listener.try_clone()?);
        let mut worker = Command::new(&program);
        worker.arg(version).stdin(Stdio::from(socket));
        workers.push(worker.spawn()?);
    }
    for mut worker in workers {
        worker.wait()?;
    }
    Ok(())
}
