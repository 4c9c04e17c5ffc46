//! What /proc says of processes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use nix::errno::Errno;
use procfs::process::{self, Stat};
use procfs::{ProcError, ProcResult};

/// What names a process: an id may be given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    pub pid: i32,
    /// When it was started, since the machine was.
    pub started: Duration,
}

/// A process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) id: Id,
    pub(super) parent: i32,
    /// CPU time that its threads have used, those that have ended included.
    pub(super) cpu: Duration,
    /// Memory that it has in RAM, what it shares with others included.
    pub(super) resident_bytes: u64,
}

/// Programs that hold listening sockets for others, who may serve anywhere.
const DOORKEEPERS: [&str; 3] = ["systemd", "docker-proxy", "rootlessport"];

impl Process {
    fn new(stat: &Stat) -> Self {
        Self {
            id: Id {
                pid: stat.pid,
                started: ticks(stat.starttime),
            },
            parent: stat.ppid,
            cpu: ticks(stat.utime + stat.stime),
            resident_bytes: stat.rss * procfs::page_size(),
        }
    }
}

/// Every process there is.
///
/// # Errors
/// Where we could not look, for want of descriptors or memory: that says nothing of anybody.
pub(super) fn all() -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for process in process::all_processes().map_err(io_error)? {
        let stat = process.and_then(|process| process.stat());
        found.extend(there(stat)?.as_ref().map(Process::new));
    }
    Ok(found)
}

/// One process as it is now; nothing when it has ended.
///
/// # Errors
/// As [`all`].
pub(super) fn read(id: Id) -> io::Result<Option<Process>> {
    let stat = process::Process::new(id.pid).and_then(|process| process.stat());
    let process = there(stat)?.as_ref().map(Process::new);
    Ok(process.filter(|process| process.id == id))
}

/// What a process says; nothing of one that has ended meanwhile, or that we may not look into.
fn there<T>(said: ProcResult<T>) -> io::Result<Option<T>> {
    match said {
        Ok(said) => Ok(Some(said)),
        Err(ProcError::Io(error, _)) if !has_ended(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn io_error(error: ProcError) -> io::Error {
    match error {
        ProcError::Io(error, _) => error,
        other => io::Error::other(other),
    }
}

/// Whether it is the process that is not there.
fn has_ended(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied};
    let gone = error.raw_os_error() == Some(Errno::ESRCH as i32);
    gone || matches!(error.kind(), NotFound | PermissionDenied)
}

/// Who holds which of these sockets, by the processes' ids. Looks at every open file of every process that we may look into: a few
/// microseconds each.
///
/// # Errors
/// As [`all`].
pub fn holders(sockets: &BTreeSet<u64>) -> io::Result<BTreeMap<i32, BTreeSet<u64>>> {
    let named = sockets
        .iter()
        .map(|inode| (OsString::from(format!("socket:[{inode}]")), *inode));
    let named: HashMap<OsString, u64> = named.collect();
    let mut holders = BTreeMap::new();
    for folder in fs::read_dir("/proc")? {
        let Some(pid) = folder?
            .file_name()
            .to_str()
            .and_then(|pid| pid.parse().ok())
        else {
            continue;
        };
        let files = match fs::read_dir(format!("/proc/{pid}/fd")) {
            Err(error) if !has_ended(&error) => return Err(error),
            files => files.into_iter().flatten().flatten(),
        };
        let targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        let held = targets.filter_map(|target| named.get(target.as_os_str()).copied());
        let held: BTreeSet<u64> = held.collect();
        if !held.is_empty() {
            holders.insert(pid, held);
        }
    }
    Ok(holders)
}

/// The same without those that only hold sockets for others.
///
/// # Errors
/// As [`all`].
pub fn servers(sockets: &BTreeSet<u64>) -> io::Result<BTreeMap<i32, BTreeSet<u64>>> {
    let mut servers = holders(sockets)?;
    servers.retain(|&pid, _| name(pid).is_some_and(|name| !DOORKEEPERS.contains(&name.as_str())));
    Ok(servers)
}

/// The file that a process runs, by device and inode; nothing where we may not look.
pub(super) fn program(pid: i32) -> Option<(u64, u64)> {
    let file = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((file.dev(), file.ino()))
}

/// What a process is called; nothing when it has ended.
pub fn name(pid: i32) -> Option<String> {
    let stat = process::Process::new(pid).ok()?.stat().ok()?;
    Some(stat.comm)
}

/// How long this machine has been up, by the clock that processes' starts are told by.
pub(super) fn uptime() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(Duration::ZERO, Duration::from)
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1000 / procfs::ticks_per_second())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn this_process_is_what_it_says() {
        let pid = std::process::id().cast_signed();
        let listed = all().unwrap();
        let this = listed.iter().find(|process| process.id.pid == pid).unwrap();
        let (before, now) = (this.id.started, uptime());
        assert!(before <= now, "{before:?} {now:?}");
        assert_eq!(
            this.parent,
            std::os::unix::process::parent_id().cast_signed()
        );
        let again = read(this.id).unwrap().unwrap();
        assert!(
            again.cpu >= this.cpu && again.resident_bytes > 1 << 20,
            "{again:?}"
        );
        let reused = Id {
            started: Duration::ZERO,
            ..this.id
        };
        assert_eq!(read(reused).unwrap(), None);
    }

    #[test]
    fn the_holders_of_a_socket_are_found() {
        let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let inodes = sockets.each_ref().map(|socket| {
            let fd = format!("/proc/self/fd/{}", socket.as_raw_fd());
            fs::metadata(fd).unwrap().ino()
        });
        let held = BTreeSet::from(inodes);
        let pid = std::process::id().cast_signed();
        assert_eq!(holders(&held).unwrap().get(&pid), Some(&held));
        let one = BTreeSet::from([inodes[0], u64::MAX]);
        assert_eq!(holders(&one).unwrap()[&pid], BTreeSet::from([inodes[0]]));
    }
}
