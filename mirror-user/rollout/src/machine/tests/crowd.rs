//! Clients are what is split: what one of them suffers, or does, is that of one.

use super::*;
use crate::statistics::{Clusters, Sort};

/// Requests of a client, those of them that fail, whether all are slow.
type Asks = (u8, [u64; 2], bool);

fn clusters(asks: &[Asks]) -> Clusters {
    let row = |&(at, [requests, failed], slow): &Asks| {
        let mut row = [0; Sort::COUNT];
        row[Sort::Requests as usize] = requests;
        row[Sort::Failed as usize] = failed;
        for sort in [Sort::BodyP50, Sort::BodyP99, Sort::EndP50, Sort::EndP99] {
            row[sort as usize] = if slow { requests } else { 0 };
        }
        (at, row)
    };
    asks.iter().map(row).collect()
}

fn arm_of(asks: &[Asks]) -> Arm {
    let [requests, failed] = asks
        .iter()
        .fold([0; 2], |[a, b], (_, [c, d], _)| [a + c, b + d]);
    let mut arm = arm(requests, failed, FAST);
    arm.clients = clusters(asks);
    let of = |asked: u64, is_slow: bool| (if is_slow { SLOW + 8 } else { FAST }, asked);
    let waited: Vec<_> = asks
        .iter()
        .map(|&(_, [requests, _], slow)| of(requests, slow))
        .collect();
    (arm.first_body, arm.complete) = (waited.clone().into(), waited.into());
    arm
}

fn window(stable: &[Asks], canary: &[Asks]) -> Window {
    Window {
        stable: arm_of(stable),
        canary: arm_of(canary),
        by_client: true,
        ..Window::default()
    }
}

/// So many clients, who are well.
fn well_asking(clients: std::ops::Range<u8>) -> Vec<Asks> {
    clients.map(|client| (client, [10, 0], false)).collect()
}

fn at_first_stage() -> Told {
    let mut told = Told::new(|plan| {
        quick(plan);
        plan.canary.min_duration = Duration::from_secs(100);
    });
    told.reach("stage 1", &compared(500, 500));
    told
}

#[test]
fn one_client_takes_no_version_back() {
    for (failed, slow) in [(10, false), (0, true)] {
        let mut told = at_first_stage();
        let mut canary = well_asking(40..50);
        canary[0] = (40, [60, failed * 6], slow);
        told.see_for(90, &window(&well_asking(0..40), &canary));
        told.assert("stage 1", 0.25);
        let gates = told.to_string();
        assert!(gates.contains("since clients differ"), "{gates}");
    }
    // Also where it is nearly the only one.
    let mut told = at_first_stage();
    let canary = [(40, [14, 14], false)];
    told.see_for(90, &window(&well_asking(0..40), &canary));
    told.assert("stage 1", 0.25);
    assert!(told.waits().contains(&Kind::FewClients), "{told}");
}

#[test]
fn who_fails_its_clients_is_taken_back() {
    let mut told = at_first_stage();
    let canary: Vec<_> = (40..50).map(|client| (client, [10, 10], false)).collect();
    told.see_for(4, &window(&well_asking(0..40), &canary));
    told.assert("rolling back", 0.0);
    let few: fn(u8) -> Asks = |client| (client, [10, 1], false);
    let slow: fn(u8) -> Asks = |client| (client, [10, 0], true);
    for worse in [few, slow] {
        let mut told = at_first_stage();
        let canary: Vec<_> = (40..50).map(worse).collect();
        told.see_for(90, &window(&well_asking(0..40), &canary));
        told.assert("rolling back", 0.0);
    }
}

#[test]
fn few_clients_hold() {
    let mut told = at_first_stage();
    told.see_for(300, &window(&well_asking(0..12), &well_asking(40..44)));
    told.assert("stage 1", 0.25);
    assert_eq!(told.waits(), [Kind::FewClients], "{told}");
    let why = &told.rollout.waits()[0].why;
    assert!(why.starts_with("it serves 4.0 of 16.0 clients"), "{why}");
    told.reach(
        "stage 2",
        &window(&well_asking(0..40), &well_asking(40..56)),
    );
}

/// Behind a gateway are many, and each of its connections goes by the share for itself.
#[test]
fn a_gateway_is_told_by_its_connections() {
    let gateway = |failed: u64, connections: std::ops::Range<u8>| {
        let own: Vec<Asks> = connections.map(|at| (at, [10, failed], false)).collect();
        let mut arm = arm_of(&own);
        let requests = own.len() as u64 * 10;
        arm.by_connection = std::mem::replace(
            &mut arm.clients,
            clusters(&[(7, [requests, requests * failed / 10], false)]),
        );
        arm
    };
    let both = |failed| Window {
        stable: gateway(0, 0..40),
        canary: gateway(failed, 40..50),
        ..Window::default()
    };
    let mut told = at_first_stage();
    told.see_for(90, &both(0));
    told.reach("stage 2", &both(0));
    for failed in [1, 10] {
        let mut told = at_first_stage();
        told.see_for(90, &both(failed));
        told.assert("rolling back", 0.0);
    }
}

/// Clients with so many connections each, and so many of them that were reset.
fn dialled(resets: &[(u8, [u64; 2])]) -> Arm {
    let own: Vec<Asks> = resets
        .iter()
        .map(|&(at, counts)| (at, counts, false))
        .collect();
    let mut arm = arm_of(&well_asking(0..0));
    arm.connections_by_client = clusters(&own);
    arm.connections = resets.iter().map(|(_, [opened, _])| opened).sum();
    arm.resets = resets.iter().map(|(_, [_, reset])| reset).sum();
    arm
}

/// Of thirty clients of the canary so many have each of their connections reset.
fn reset_for(clients: u8) -> Window {
    let stable: Vec<_> = (0..30).map(|at| (at, [3, 0])).collect();
    let canary = (30..60).map(|at| (at, [3, if at < 30 + clients { 3 } else { 0 }]));
    Window {
        stable: dialled(&stable),
        canary: dialled(&canary.collect::<Vec<_>>()),
        by_client: true,
        ..Window::default()
    }
}

#[test]
fn resets_of_one_client_take_no_version_back() {
    for (clients, expected) in [(1, "stage 1"), (30, "rolling back")] {
        let mut told = at_first_stage();
        told.see_for(90, &reset_for(clients));
        let share = if clients == 1 { 0.25 } else { 0.0 };
        told.assert(expected, share);
    }
}

/// One client alone meets the canary, and has every connection reset: nobody knows whose doing that is, but behind a
/// gateway are many.
#[test]
fn resets_of_the_only_client_tell_nothing_but_behind_a_gateway() {
    for (by_client, expected, share) in [(true, "stage 1", 0.25), (false, "rolling back", 0.0)] {
        let window = Window {
            stable: dialled(&[(7, [90, 0])]),
            canary: dialled(&[(7, [30, 30])]),
            by_client,
            ..Window::default()
        };
        let mut told = at_first_stage();
        told.see_for(90, &window);
        told.assert(expected, share);
    }
}
