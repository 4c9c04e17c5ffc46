//! Which processes belong to which server. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter::successors;

use super::processes::Process;

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::servers::processes::Id;

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

    #[test]
    fn a_circle_ends() {
        check(&[(10, 11), (11, 10)], &[(12, &["a"])], &[]);
    }
}
