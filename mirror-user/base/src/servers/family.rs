//! Which processes belong to which server. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter::successors;

use super::processes::{Id, Process};

/// A process has no more ancestors than this; while it is read, /proc may tell of circles.
const GENERATIONS: usize = 64;

/// The processes of each server: those in `holders`, who hold the servers' sockets, and children
/// that hold none and belong with the closest ancestor that does. `stranger` belongs to nobody, nor
/// do its children: it is ourselves.
pub(super) fn by_server<'a, K: Ord + Clone>(
    processes: &'a [Process],
    holders: &BTreeMap<i32, BTreeSet<K>>,
    stranger: i32,
) -> BTreeMap<K, Vec<&'a Process>> {
    let by_pid: HashMap<i32, &Process> = processes
        .iter()
        .map(|process| (process.id.pid, process))
        .collect();
    let mut families: BTreeMap<K, Vec<&Process>> = BTreeMap::new();
    for process in processes {
        let line = successors(Some(process), |child| by_pid.get(&child.parent).copied());
        let mut line = line
            .take(GENERATIONS)
            .take_while(|ancestor| ancestor.id.pid != stranger);
        let servers = line.find_map(|ancestor| holders.get(&ancestor.id.pid));
        for server in servers.into_iter().flatten() {
            families.entry(server.clone()).or_default().push(process);
        }
    }
    families
}

/// The oldest of a server's processes. An ancestor that runs the same `program` is one of them, though it
/// may hold no socket: what it forks anew is no other server.
pub(super) fn oldest<P: PartialEq>(
    family: &[&Process],
    processes: &[Process],
    stranger: i32,
    program: impl Fn(i32) -> Option<P>,
) -> Option<Id> {
    let parent = |child: &Process| {
        let mut others = processes.iter();
        others.find(|other| other.id.pid == child.parent && other.id.pid > 1)
    };
    let line = |process: &Process| {
        let own = program(process.id.pid);
        successors(Some(process), |child| parent(child))
            .take(GENERATIONS)
            .take_while(|ancestor| ancestor.id.pid != stranger)
            .take_while(|ancestor| own.is_some() && program(ancestor.id.pid) == own)
            .map(|ancestor| ancestor.id)
            .collect::<Vec<_>>()
    };
    let ids = family.iter().map(|process| process.id);
    let lines = family.iter().flat_map(|process| line(process));
    ids.chain(lines).min_by_key(|id| id.started)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Processes as pid and parent, holders as pid and servers; the stranger is 99.
    #[track_caller]
    fn check(tree: &[(i32, i32)], holders: &[(i32, &[&str])], expected: &[(&str, &[i32])]) {
        let processes = tree.iter().map(|&(pid, parent)| Process {
            id: Id {
                pid,
                started: Duration::ZERO,
            },
            parent,
            cpu: Duration::ZERO,
            resident_bytes: 0,
        });
        let processes: Vec<Process> = processes.collect();
        let held = |&(pid, servers): &(i32, &[&str])| {
            let servers = servers.iter().map(|&server| server.to_owned());
            (pid, servers.collect())
        };
        let holders = holders.iter().map(held).collect();
        let found = by_server(&processes, &holders, 99);
        let found: Vec<(String, Vec<i32>)> = found
            .into_iter()
            .map(|(server, family)| (server, family.iter().map(|p| p.id.pid).collect()))
            .collect();
        let expected: Vec<(String, Vec<i32>)> = expected
            .iter()
            .map(|(server, family)| ((*server).to_owned(), family.to_vec()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn workers_and_children_belong_to_the_server() {
        // A master and two workers that inherited its socket; one worker has a child without it.
        let tree = [(1, 0), (10, 1), (11, 10), (12, 10), (13, 12), (20, 1)];
        let holders: [(i32, &[&str]); 3] = [(10, &["a"]), (11, &["a"]), (12, &["a"])];
        check(&tree, &holders, &[("a", &[10, 11, 12, 13])]);
        check(&tree, &[(10, &["a"])], &[("a", &[10, 11, 12, 13])]);
        check(&tree, &[], &[]);
    }

    #[test]
    fn who_holds_a_socket_belongs_to_its_server_alone() {
        // The canary was started by stable's process.
        let tree = [(1, 0), (10, 1), (11, 10), (12, 11), (13, 10)];
        let holders: [(i32, &[&str]); 2] = [(10, &["stable"]), (11, &["canary"])];
        let expected: [(&str, &[i32]); 2] = [("canary", &[11, 12]), ("stable", &[10, 13])];
        check(&tree, &holders, &expected);
        // One process for both.
        let both: [(&str, &[i32]); 2] = [("canary", &[13]), ("stable", &[13])];
        check(&tree, &[(13, &["stable", "canary"])], &both);
    }

    #[test]
    fn we_are_no_server() {
        let tree = [(1, 0), (10, 1), (99, 10), (98, 99)];
        check(&tree, &[(10, &["a"])], &[("a", &[10])]);
        check(&tree, &[(99, &["a"])], &[]);
    }

    /// Processes as pid, parent, start and program; a server's first one, and the oldest of its own.
    #[track_caller]
    fn check_oldest(tree: &[(i32, i32, u64, &str)], family: &[i32], expected: i32) {
        let process = |&(pid, parent, started, _): &(i32, i32, u64, &str)| Process {
            id: Id {
                pid,
                started: Duration::from_secs(started),
            },
            parent,
            cpu: Duration::ZERO,
            resident_bytes: 0,
        };
        let processes: Vec<Process> = tree.iter().map(process).collect();
        let of = |pid: &i32| processes.iter().find(|process| process.id.pid == *pid);
        let family: Vec<&Process> = family.iter().filter_map(of).collect();
        let program = |pid| tree.iter().find(|one| one.0 == pid).map(|one| one.3);
        let found = oldest(&family, &processes, 99, program);
        assert_eq!(found.map(|id| id.pid), Some(expected));
    }

    #[test]
    fn a_worker_is_as_old_as_its_master() {
        let tree = [
            (1, 0, 0, "init"),
            (10, 1, 5, "python"),
            (11, 10, 900, "python"),
            (20, 1, 800, "shell"),
            (21, 20, 850, "python"),
        ];
        // Who restarted a server by another program's hand has started another.
        check_oldest(&tree, &[21], 21);
        check_oldest(&tree, &[11], 10);
        check_oldest(&tree, &[11, 21], 10);
        // What cannot be looked into is as old as it is itself.
        let unknown = |pid| (pid == 10).then_some("python");
        let processes = [Process {
            id: Id {
                pid: 11,
                started: Duration::from_secs(900),
            },
            parent: 10,
            cpu: Duration::ZERO,
            resident_bytes: 0,
        }];
        let found = oldest(&[&processes[0]], &processes, 99, unknown);
        assert_eq!(found.map(|id| id.pid), Some(11));
    }

    #[test]
    fn a_circle_ends() {
        check(&[(10, 11), (11, 10)], &[(12, &["a"])], &[]);
    }
}
