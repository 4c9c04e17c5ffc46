//! Ends a canary's connections: a thread goes through the table of connections, which may have a million
//! entries.

use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, Sender, channel};

use mirror_common::connection::{Connection, state};
use mirror_common::flow::Flow;
use tokio::sync::mpsc;

use super::settings::Ticket;
use crate::dataplane::{Connections, Place};
use crate::reset::{Resetter, Side};
use mirror_base::sock_diag::Destroyer;

/// Whose connections are to end.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Row of the service.
    pub(super) row: u32,
    /// Its name.
    pub(super) service: String,
    /// The order that waits for it, if one does.
    pub(super) ticket: Option<Ticket>,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) job: Job,
    /// How many there were.
    pub(super) outcome: Result<u64, String>,
}

/// Hands jobs to the thread.
#[derive(Debug)]
pub(super) struct Ender(Sender<Job>);

impl Ender {
    /// Starts the thread. What comes of each job is sent to `said`.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(super) fn start(
        connections: Connections,
        said: mpsc::UnboundedSender<Ended>,
    ) -> io::Result<Self> {
        let (sender, jobs) = channel();
        std::thread::Builder::new()
            .name("ending".to_owned())
            .spawn(move || end_all(connections, &jobs, &said))?;
        Ok(Self(sender))
    }

    /// Has a canary's connections ended.
    pub(super) fn end(&self, job: Job) {
        let _ = self.0.send(job);
    }
}

fn end_all(connections: Connections, jobs: &Receiver<Job>, said: &mpsc::UnboundedSender<Ended>) {
    while let Ok(job) = jobs.recv() {
        let outcome = end(&connections, job.row);
        if said.send(Ended { job, outcome }).is_err() {
            return;
        }
    }
}

/// Resets the canary's connections of a service, and says how many there were.
fn end(connections: &Connections, row: u32) -> Result<u64, String> {
    let (mut place, mut ended) = (Place::default(), 0);
    loop {
        let batch = connections.next(&mut place);
        let batch = batch.map_err(|error| error.to_string())?;
        if batch.is_empty() {
            return Ok(ended);
        }
        let (away, here): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .filter(|(_, connection)| {
                connection.service == row
                    && connection.state & state::CANARY != 0
                    && !connection.is_closed()
            })
            .partition(|(_, connection)| connection.is_away());
        for (flow, connection) in &away {
            let released = connections.release(flow, connection);
            released.map_err(|error| error.to_string())?;
        }
        ended += reset_here(&here)? + reset_away(&away)?;
    }
}

/// Ends connections that sockets of this host belong to.
fn reset_here(connections: &[(Flow, Connection)]) -> Result<u64, String> {
    if connections.is_empty() {
        return Ok(0);
    }
    let mut sockets = Destroyer::open().map_err(|error| error.to_string())?;
    let mut ended = 0;
    for (flow, _) in connections {
        let (local, remote) = (SocketAddr::from(flow.server), SocketAddr::from(flow.client));
        match sockets.destroy(local, remote) {
            Ok(true) => ended += 1,
            Ok(false) => {}
            Err(error) => return Err(format!("{remote} -> {local}: {error}")),
        }
    }
    Ok(ended)
}

/// Tells both ends of connections of a canary on another host that they are over. What an end does
/// not believe, since bytes were on their way, it asks about, and is told by the kernel.
fn reset_away(connections: &[(Flow, Connection)]) -> Result<u64, String> {
    if connections.is_empty() {
        return Ok(0);
    }
    let resetter = Resetter::open().map_err(|error| error.to_string())?;
    for (flow, connection) in connections {
        let [to_canary, to_client] = connection.next;
        let sides = [
            (flow.server, flow.client, to_client),
            (connection.away.client, connection.away.server, to_canary),
        ];
        for (from, to, sequence) in sides {
            let (from, to) = (SocketAddr::from(from), SocketAddr::from(to));
            let sent = resetter.send(Side { from, to, sequence });
            sent.map_err(|error| format!("{from} -> {to}: {error}"))?;
        }
    }
    Ok(connections.len() as u64)
}
