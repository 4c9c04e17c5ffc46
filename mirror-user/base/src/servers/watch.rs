//! The thread that looks after servers.
//!
//! Who is known is read every second. Who listens, and who belongs to them, is asked every five
//! seconds, and as soon as somebody is gone. Who has a socket open is looked for in all processes'
//! open files only when the sockets have changed, one of their holders is gone, or half a minute
//! has passed. On a host where that takes long it is done more seldom: see [`REST`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::processes::{self, Id, Process};
use super::tally::{Tally, Usage};
use super::{family, listening};
use crate::config::ServiceAddress;
use crate::sock_diag;

/// How often the known processes are read.
const READ: Duration = Duration::from_secs(1);

/// How often they are looked for.
const FIND: Duration = Duration::from_secs(5);

/// How often open files are looked at while nothing tells of a change: a process may also pass its
/// socket on.
const SCAN: Duration = Duration::from_secs(30);

/// After a search it rests for so many times what that took: 5 % of a CPU at most.
const REST: u32 = 20;

/// Looks after servers, each of which a `K` names, until it is dropped.
#[derive(Debug)]
pub struct Watch<K> {
    shared: Arc<Shared<K>>,
    wake: SyncSender<()>,
}

#[derive(Debug)]
struct Shared<K> {
    wanted: Mutex<Wanted<K>>,
    usage: Mutex<BTreeMap<K, Usage>>,
}

/// Where each server listens.
type Wanted<K> = BTreeMap<K, Vec<ServiceAddress>>;

impl<K: Clone + Ord + Send + 'static> Watch<K> {
    /// # Errors
    /// When there can be no more threads.
    pub fn start(wanted: Wanted<K>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            wanted: Mutex::new(wanted),
            usage: Mutex::default(),
        });
        // One place: a thread that has not come round yet need not be told twice.
        let (wake, woken) = sync_channel(1);
        let inside = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("servers".to_owned())
            .spawn(move || keep_looking(&inside, &woken))?;
        Ok(Self { shared, wake })
    }

    /// Looks after nothing.
    #[cfg(any(test, feature = "fixtures"))]
    pub fn idle() -> Self {
        Self {
            shared: Arc::new(Shared {
                wanted: Mutex::default(),
                usage: Mutex::default(),
            }),
            wake: sync_channel(1).0,
        }
    }

    /// Looks after these servers from now on. What is known of those that stay stays.
    pub fn want(&self, wanted: Wanted<K>) {
        let mut known = lock(&self.shared.wanted);
        if *known != wanted {
            *known = wanted;
            let _ = self.wake.try_send(());
        }
    }

    /// What each server uses, where it has been seen.
    pub fn usage(&self) -> BTreeMap<K, Usage> {
        lock(&self.shared.usage).clone()
    }
}

fn keep_looking<K: Clone + Ord>(shared: &Shared<K>, woken: &Receiver<()>) {
    let mut watcher = Watcher::new(std::process::id().cast_signed());
    loop {
        let wanted = lock(&shared.wanted).clone();
        watcher.look(wanted);
        *lock(&shared.usage) = watcher.usage();
        if woken.recv_timeout(READ) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

/// What the thread knows.
struct Watcher<K> {
    /// Its own process, which serves nobody.
    own: i32,
    wanted: Wanted<K>,
    tallies: BTreeMap<K, Tally>,
    /// The servers' processes.
    members: BTreeMap<K, BTreeSet<Id>>,
    /// The oldest of each.
    oldest: BTreeMap<K, Id>,
    /// The servers' sockets.
    sockets: BTreeMap<u64, BTreeSet<K>>,
    /// Who has them open.
    holders: BTreeMap<Id, BTreeSet<u64>>,
    /// When to look for processes and for open files again, and until when to rest.
    find_at: Option<Instant>,
    scan_at: Option<Instant>,
    rest_until: Option<Instant>,
    blind: bool,
}

impl<K: Clone + Ord> Watcher<K> {
    fn new(own: i32) -> Self {
        Self {
            own,
            wanted: Wanted::new(),
            tallies: BTreeMap::new(),
            members: BTreeMap::new(),
            oldest: BTreeMap::new(),
            sockets: BTreeMap::new(),
            holders: BTreeMap::new(),
            find_at: None,
            scan_at: None,
            rest_until: None,
            blind: false,
        }
    }

    fn usage(&self) -> BTreeMap<K, Usage> {
        let usage = |(server, tally): (&K, &Tally)| {
            let mut usage = tally.usage()?;
            let oldest = self.oldest.get(server).copied();
            usage.oldest = oldest.filter(|_| usage.processes > 0);
            Some((server.clone(), usage))
        };
        self.tallies.iter().filter_map(usage).collect()
    }

    fn look(&mut self, wanted: Wanted<K>) {
        let now = Instant::now();
        let others = self.wanted != wanted;
        if others {
            (self.wanted, self.find_at) = (wanted, None);
            let wanted = &self.wanted;
            self.tallies.retain(|server, _| wanted.contains_key(server));
            self.members.retain(|server, _| wanted.contains_key(server));
        }
        let looked = self.look_again(now);
        if let Err(error) = &looked
            && !self.blind
        {
            tracing::warn!("the servers' processes are not known: {error}; it is tried again");
        }
        self.blind = looked.is_err();
    }

    /// Reads those that are known, and looks for others when that is due. Where we cannot look, what was
    /// known stays: nobody has gone for that.
    fn look_again(&mut self, now: Instant) -> io::Result<()> {
        if !self.read()? {
            (self.find_at, self.scan_at) = (None, None);
        }
        if is_past(self.find_at, now) && is_past(self.rest_until, now) {
            let found = self.find(now);
            let took = now.elapsed();
            tracing::debug!(?took, "looked for servers");
            self.rest_until = Some(now + took * REST);
            self.find_at = Some(now + FIND.max(took * REST));
            found?;
        }
        Ok(())
    }

    /// Reads the known processes. Says whether all that hold a socket are there.
    fn read(&mut self) -> io::Result<bool> {
        let now = processes::uptime();
        let mut all_there = true;
        for (server, members) in &mut self.members {
            let mut read = BTreeMap::new();
            for &id in members.iter() {
                read.extend(processes::read(id)?.map(|process| (id, process)));
            }
            let gone = members.iter().filter(|id| !read.contains_key(id));
            all_there &= !gone.into_iter().any(|id| self.holders.contains_key(id));
            members.retain(|id| read.contains_key(id));
            if let Some(tally) = self.tallies.get_mut(server) {
                tally.look(now, read.values());
            }
        }
        Ok(all_there)
    }

    /// Looks for the processes anew.
    fn find(&mut self, now: Instant) -> io::Result<()> {
        if self.wanted.is_empty() {
            return Ok(());
        }
        let sockets = self.listening()?;
        let scanned = if sockets != self.sockets || is_past(self.scan_at, now) {
            let begun = Instant::now();
            let holders = processes::servers(&sockets.keys().copied().collect())?;
            tracing::debug!(took = ?begun.elapsed(), "looked at open files");
            self.scan_at = Some(now + SCAN);
            Some(holders)
        } else {
            None
        };
        let moment = processes::uptime();
        let processes = processes::all()?;
        self.sockets = sockets;
        if let Some(scanned) = scanned {
            let holder =
                |process: &Process| Some((process.id, scanned.get(&process.id.pid)?.clone()));
            self.holders = processes.iter().filter_map(holder).collect();
        }
        let held = |(id, sockets): (&Id, &BTreeSet<u64>)| {
            let servers = sockets.iter().filter_map(|inode| self.sockets.get(inode));
            (id.pid, servers.flatten().cloned().collect())
        };
        let holders = self.holders.iter().map(held).collect();
        let families = family::by_server(&processes, &holders, self.own);
        for server in self.wanted.keys() {
            let family = families.get(server).map_or(&[][..], Vec::as_slice);
            let tally = self.tallies.entry(server.clone()).or_default();
            tally.look(moment, family.iter().copied());
            let members = family.iter().map(|process| process.id).collect();
            self.members.insert(server.clone(), members);
            let oldest = family::oldest(family, &processes, self.own, processes::program);
            self.oldest
                .extend(oldest.map(|oldest| (server.clone(), oldest)));
        }
        Ok(())
    }

    /// The sockets at the servers' addresses, and whose they are.
    fn listening(&self) -> io::Result<BTreeMap<u64, BTreeSet<K>>> {
        let listeners = sock_diag::listeners()?;
        let local = addresses()?;
        let mut sockets: BTreeMap<u64, BTreeSet<K>> = BTreeMap::new();
        for (server, addresses) in &self.wanted {
            for &address in addresses {
                for inode in listening::sockets(address, &listeners, &local) {
                    sockets.entry(inode).or_default().insert(server.clone());
                }
            }
        }
        Ok(sockets)
    }
}

fn is_past(moment: Option<Instant>, now: Instant) -> bool {
    moment.is_none_or(|moment| moment <= now)
}

/// The addresses of this network namespace.
fn addresses() -> io::Result<Vec<IpAddr>> {
    let interfaces = nix::ifaddrs::getifaddrs()?;
    let addresses = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    Ok(addresses.collect())
}

/// What a panic elsewhere left behind is still true.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::OwnedFd;
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that listens, for a minute at most, and a child of it that has not the socket.
    struct Server(Child);

    impl Server {
        fn start(listener: TcpListener) -> Self {
            let mut command = Command::new("sh");
            command.args(["-c", "sleep 60 </dev/null & wait"]);
            command.stdin(Stdio::from(OwnedFd::from(listener)));
            Self(command.spawn().unwrap())
        }

        fn pid(&self) -> i32 {
            self.0.id().cast_signed()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            for process in processes::all().unwrap() {
                if process.parent == self.pid() {
                    let pid = nix::unistd::Pid::from_raw(process.id.pid);
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
            }
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn listen(at: &str) -> (TcpListener, ServiceAddress) {
        let listener = TcpListener::bind(at).unwrap();
        let address = listener.local_addr().unwrap();
        let wanted = ServiceAddress {
            ip: Some(address.ip()),
            port: address.port(),
        };
        (listener, wanted)
    }

    /// Looks until there are so many processes: a shell takes a moment to start its child.
    #[track_caller]
    fn look(watcher: &mut Watcher<&str>, wanted: &Wanted<&'static str>, processes: usize) -> Usage {
        let begun = Instant::now();
        loop {
            // As if the time for a search had come.
            (watcher.find_at, watcher.rest_until) = (None, None);
            watcher.look(wanted.clone());
            let usage = watcher.usage().get("a").copied().unwrap_or_default();
            if usage.processes == processes {
                return usage;
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "{usage:?}");
            std::thread::yield_now();
        }
    }

    fn own() -> i32 {
        std::process::id().cast_signed()
    }

    #[test]
    fn we_are_no_server() {
        let (_listener, at) = listen("127.0.0.1:0");
        let wanted = Wanted::from([("a", vec![at])]);
        look(&mut Watcher::new(own()), &wanted, 0);
        let mut other = Watcher::new(0);
        other.look(wanted);
        assert!(other.members["a"].iter().any(|id| id.pid == own()));
    }

    #[test]
    fn a_server_that_is_gone_has_no_memory_and_comes_back() {
        let (listener, at) = listen("127.0.0.1:0");
        let copy = listener.try_clone().unwrap();
        let wanted = Wanted::from([("a", vec![at])]);
        let mut watcher = Watcher::new(own());
        let server = Server::start(listener);
        drop(copy);
        let usage = look(&mut watcher, &wanted, 2);
        assert!(usage.resident_bytes > 0);
        let members: Vec<i32> = watcher.members["a"].iter().map(|id| id.pid).collect();
        assert!(members.contains(&server.pid()), "{members:?}");

        drop(server);
        let gone = look(&mut watcher, &wanted, 0);
        assert!(gone.cpu >= usage.cpu && gone.resident_bytes == 0);

        let address = std::net::SocketAddr::new(at.ip.unwrap(), at.port);
        let _server = Server::start(TcpListener::bind(address).unwrap());
        let back = look(&mut watcher, &wanted, 2);
        assert!(back.cpu >= gone.cpu && back.resident_bytes > 0);
    }

    #[test]
    fn a_server_elsewhere_is_not_taken_for_one_here() {
        let (listener, at) = listen("0.0.0.0:0");
        let _server = Server::start(listener);
        let elsewhere = ServiceAddress {
            ip: Some([192, 0, 2, 1].into()),
            ..at
        };
        let mut watcher = Watcher::new(own());
        look(&mut watcher, &Wanted::from([("a", vec![elsewhere])]), 0);
        let here = ServiceAddress {
            ip: Some([127, 0, 0, 1].into()),
            ..at
        };
        look(&mut watcher, &Wanted::from([("a", vec![here])]), 2);
    }
}
