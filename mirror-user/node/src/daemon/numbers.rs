//! Rows and numbers in the maps: who has one keeps it, over reloads and restarts, so that counts go
//! on. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::ops::Range;

use mirror_common::flow::Endpoint;
use mirror_common::policy::{self, MAX_SERVICES};

/// Rows of services; row 0 counts the packets of none.
pub(super) const ROWS: Range<u32> = 1..MAX_SERVICES;

/// Numbers of agents.
pub(super) const AGENTS: Range<u32> = 0..policy::MAX_AGENTS;

/// Who has which number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers<K> {
    /// Everybody who got one.
    pub(super) of: BTreeMap<K, u32>,
    /// Those of them whose number is new to them: what it counted must be cleared.
    pub(super) fresh: Vec<u32>,
    /// Those who came too late.
    pub(super) without: Vec<K>,
}

/// Gives each of `wanted` a number out of `range`. Who is in `known` keeps the number; those that
/// somebody unwanted has still are given last, since the programs count there until the new rules
/// are written.
pub(super) fn assign<K: Copy + Ord + Hash>(
    wanted: impl IntoIterator<Item = K>,
    known: &HashMap<K, u32>,
    range: Range<u32>,
) -> Numbers<K> {
    let wanted: Vec<K> = wanted.into_iter().collect();
    let mut of: BTreeMap<K, u32> = wanted
        .iter()
        .filter_map(|key| Some((*key, *known.get(key)?)))
        .collect();
    let kept: HashSet<u32> = of.values().copied().collect();
    let used: HashSet<u32> = known.values().copied().collect();
    let never = range.clone().filter(|number| !used.contains(number));
    let left = range.filter(|number| used.contains(number) && !kept.contains(number));
    let mut free = never.chain(left);
    let (mut fresh, mut without) = (Vec::new(), Vec::new());
    for key in wanted {
        if of.contains_key(&key) {
            continue;
        }
        match free.next() {
            Some(number) => {
                of.insert(key, number);
                fresh.push(number);
            }
            None => without.push(key),
        }
    }
    Numbers { of, fresh, without }
}

/// The rows that the rules of an earlier life name, by service id.
pub(super) fn rows_in(rules: &HashMap<Endpoint, policy::Service>) -> HashMap<u32, u32> {
    let named = rules.values().filter(|service| service.index != 0);
    named.map(|service| (service.id, service.index)).collect()
}

/// The numbers that the ways of an earlier life have, by the agent's id.
pub(super) fn numbers_in(ways: &HashMap<u32, policy::Agent>) -> HashMap<u64, u32> {
    ways.iter()
        .map(|(number, agent)| (agent.id, *number))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who wants one, who has one, and who gets which out of 1..4.
    #[track_caller]
    fn check(wanted: &[u32], known: &[(u32, u32)], of: &[(u32, u32)], fresh: &[u32], late: &[u32]) {
        let known = known.iter().copied().collect();
        let numbers = assign(wanted.iter().copied(), &known, 1..4);
        let expected = Numbers {
            of: of.iter().copied().collect(),
            fresh: fresh.to_vec(),
            without: late.to_vec(),
        };
        assert_eq!(numbers, expected);
    }

    #[test]
    fn who_has_a_number_keeps_it() {
        check(&[7, 8], &[], &[(7, 1), (8, 2)], &[1, 2], &[]);
        check(&[7, 8], &[(8, 1)], &[(7, 2), (8, 1)], &[2], &[]);
        check(&[8], &[(8, 3), (9, 1)], &[(8, 3)], &[], &[]);
    }

    #[test]
    fn what_somebody_unwanted_has_is_given_last() {
        check(&[7, 8], &[(9, 1)], &[(7, 2), (8, 3)], &[2, 3], &[]);
        check(
            &[6, 7, 8],
            &[(9, 1)],
            &[(6, 2), (7, 3), (8, 1)],
            &[2, 3, 1],
            &[],
        );
    }

    #[test]
    fn who_comes_too_late_is_named() {
        check(
            &[5, 6, 7, 8],
            &[(8, 2)],
            &[(5, 1), (6, 3), (8, 2)],
            &[1, 3],
            &[7],
        );
    }

    #[test]
    fn an_earlier_life_s_rows_are_found_in_its_rules() {
        let rules = [(7, 2), (9, 1), (0, 0)].map(|(id, index)| {
            let rule = policy::Service {
                id,
                index,
                ..Default::default()
            };
            (Endpoint::new(Default::default(), id as u16), rule)
        });
        assert_eq!(rows_in(&rules.into()), [(7, 2), (9, 1)].into());
    }
}
