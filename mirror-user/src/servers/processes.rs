//! What /proc says of processes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs;
use std::time::Duration;

use procfs::process::{self, Stat};

/// What names a process: an id may be given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) pid: i32,
    /// When it was started, since the machine was.
    pub(super) started: Duration,
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
pub(super) fn all() -> Vec<Process> {
    let processes = process::all_processes().into_iter().flatten().flatten();
    // One that ends meanwhile is none.
    let stats = processes.filter_map(|process| process.stat().ok());
    stats.map(|stat| Process::new(&stat)).collect()
}

/// One process as it is now.
pub(super) fn read(id: Id) -> Option<Process> {
    let process = Process::new(&stat(id.pid)?);
    (process.id == id).then_some(process)
}

/// Who holds which of these sockets, by the processes' ids; those that only hold them for others
/// are left out. Looks at every open file of every process that we may look into: a few
/// microseconds each.
pub(crate) fn holders(sockets: &BTreeSet<u64>) -> BTreeMap<i32, BTreeSet<u64>> {
    let named = sockets
        .iter()
        .map(|inode| (OsString::from(format!("socket:[{inode}]")), *inode));
    let named: HashMap<OsString, u64> = named.collect();
    let folders = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = folders.filter_map(|folder| folder.file_name().to_str()?.parse::<i32>().ok());
    let mut holders = BTreeMap::new();
    for pid in pids {
        let files = fs::read_dir(format!("/proc/{pid}/fd"));
        let targets = files.into_iter().flatten().flatten();
        let targets = targets.filter_map(|file| fs::read_link(file.path()).ok());
        let held = targets.filter_map(|target| named.get(target.as_os_str()).copied());
        let held: BTreeSet<u64> = held.collect();
        if !held.is_empty() && name(pid).is_some_and(|name| !DOORKEEPERS.contains(&name.as_str())) {
            holders.insert(pid, held);
        }
    }
    holders
}

/// What a process is called; nothing when it has ended.
pub(crate) fn name(pid: i32) -> Option<String> {
    stat(pid).map(|stat| stat.comm)
}

/// How long this machine has been up, by the clock that processes' starts are told by.
pub(super) fn uptime() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME);
    now.map_or(Duration::ZERO, Duration::from)
}

fn stat(pid: i32) -> Option<Stat> {
    process::Process::new(pid).ok()?.stat().ok()
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1000 / procfs::ticks_per_second())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn this_process_is_what_it_says() {
        let pid = std::process::id().cast_signed();
        let listed = all();
        let this = listed.iter().find(|process| process.id.pid == pid).unwrap();
        let (before, now) = (this.id.started, uptime());
        assert!(before <= now, "{before:?} {now:?}");
        assert_eq!(
            this.parent,
            std::os::unix::process::parent_id().cast_signed()
        );
        let again = read(this.id).unwrap();
        assert!(
            again.cpu >= this.cpu && again.resident_bytes > 1 << 20,
            "{again:?}"
        );
        let reused = Id {
            started: Duration::ZERO,
            ..this.id
        };
        assert_eq!(read(reused), None);
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
        assert_eq!(holders(&held).get(&pid), Some(&held));
        let one = BTreeSet::from([inodes[0], u64::MAX]);
        assert_eq!(holders(&one)[&pid], BTreeSet::from([inodes[0]]));
    }
}
