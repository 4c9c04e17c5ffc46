//! Many clients, each of which keeps its version: what one of them suffers takes no version back.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};

use tests::{Client, Mood, Request, Trial, eventually_within};

use super::{LONG, Pilot, by_hand, request};

const CLIENTS: u8 = 60;

/// So many requests the one client sends that no version can serve.
const POISON: usize = 200;

/// Clients at addresses of their own, which go by the share one by one.
fn crowd(first_share: f64) -> Option<(Pilot, Vec<Client>)> {
    let by_client = Trial::quiet(|canary| {
        canary.insert("affinity".into(), "client".into());
    });
    let trial = by_client?;
    let net = &trial.scene.net;
    let routed = net.node.ip("route replace 10.8.0.0/14 via 10.0.0.2");
    routed.expect("there is a route");
    let clients = (1..=CLIENTS).map(|at| {
        let address = Ipv4Addr::new(10, 8, 1, at);
        net.client
            .ip(&format!("address add {address}/32 dev eth0"))
            .unwrap();
        let service = "10.0.0.5:8000".parse().unwrap();
        Client::of_any(&net.client, service).from(IpAddr::V4(address))
    });
    let clients = clients.collect();
    let pilot = Pilot::of(trial, |plan| {
        plan.insert("stages".into(), vec![first_share, 1.0].into());
        by_hand(plan);
    });
    pilot.order(&["start"]);
    pilot.wait_for_stage(0);
    Some((pilot, clients))
}

/// Requests of all clients in turn, one a connection, until this is so.
fn ask_until(clients: &[Client], is_over: impl Fn() -> bool + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !is_over() {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let client = &clients[at % clients.len()];
                    client.load(1, 1, |_, _| request(at)).unwrap();
                }
            });
        }
    });
}

#[test]
fn one_client_takes_no_version_back() {
    let Some((pilot, clients)) = crowd(0.5) else {
        return;
    };
    let of_canary = || pilot.trial.canary[0].received().len();
    let meets_canary = |client: &&Client| {
        let before = of_canary();
        client.load(1, 1, |_, index| request(index)).unwrap();
        of_canary() > before
    };
    let poisoner = clients.iter().find(meets_canary).expect("half of them do");
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..POISON {
                let got = poisoner.load(1, 1, |_, _| Request::post("/status/503", b"x"));
                assert_eq!(got.unwrap()[0].status, 503);
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        let is_over = || sent.load(Ordering::Relaxed) >= POISON && of_canary() > 4 * POISON;
        ask_until(&clients, is_over);
    });
    let said = eventually_within(LONG, "the daemon has counted all of them", || {
        let state = pilot.state()?;
        let gates = state["gates"].as_array().cloned().unwrap_or_default();
        let errors = gates.iter().find(|gate| gate["name"] == "errors");
        let events = errors.map(|gate| gate["finding"]["events"][1].as_u64());
        anyhow::ensure!(events == Some(Some(POISON as u64)), "{state:#}");
        Ok(state)
    });
    assert_eq!(
        (said["stage"].as_u64(), pilot.share()),
        (Some(0), 0.5),
        "{said:#}"
    );
    let explained = pilot.order(&["status"]);
    assert!(explained.contains("since clients differ"), "{explained}");
}

/// Connections of the canary that the kernel has seen reset by its server, as the gate knows them.
fn cut(pilot: &Pilot) -> anyhow::Result<u64> {
    let state = pilot.state()?;
    let gates = state["gates"].as_array().cloned().unwrap_or_default();
    let gate = gates.iter().find(|gate| gate["name"] == "connections");
    let events = gate.and_then(|gate| gate["finding"]["events"][1].as_u64());
    events.ok_or_else(|| anyhow::anyhow!("{state:#}"))
}

/// Every connection of one client ends in a reset by the server, which the kernel counts; those of thirty others do not.
#[test]
fn resets_of_one_client_take_no_version_back() {
    let Some((pilot, clients)) = crowd(0.5) else {
        return;
    };
    let of_canary = || pilot.trial.canary[0].received().len();
    let meets_canary = |client: &&Client| {
        let before = of_canary();
        client.load(1, 1, |_, index| request(index)).unwrap();
        of_canary() > before
    };
    let cutter = clients.iter().find(meets_canary).expect("half of them do");
    let sent = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..POISON {
                let got = cutter.load(1, 1, |_, _| Request::post("/reset", b"x"));
                assert!(got.is_err(), "{got:?}");
                sent.fetch_add(1, Ordering::Relaxed);
            }
        });
        let is_over = || sent.load(Ordering::Relaxed) >= POISON && of_canary() > 4 * POISON;
        ask_until(&clients, is_over);
    });
    eventually_within(LONG, "the daemon has counted all of them", || {
        let cut = cut(&pilot)?;
        anyhow::ensure!(cut == POISON as u64, "{cut}");
        Ok(())
    });
    let said = pilot.state().unwrap();
    let stays = (said["stage"].as_u64(), pilot.share());
    assert_eq!(stays, (Some(0), 0.5), "{said:#}");
}

/// A canary that does so to all of its clients is rolled back.
#[test]
fn resets_of_all_clients_take_it_back() {
    let Some((pilot, clients)) = crowd(0.5) else {
        return;
    };
    pilot.trial.canary[0].set_mood(Mood::Reset);
    let is_back = || pilot.share() == 0.0;
    let next = AtomicUsize::new(0);
    while !is_back() {
        let at = next.fetch_add(1, Ordering::Relaxed);
        // Those of the canary fail.
        let _ = clients[at % clients.len()].load(1, 1, |_, _| request(at));
    }
    let said = pilot.wait_for("rolled_back");
    let reason = said["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("of the canary's last"), "{said:#}");
}

#[test]
fn few_clients_hold() {
    let Some((pilot, clients)) = crowd(0.02) else {
        return;
    };
    let is_held = || {
        let state = pilot.state().unwrap();
        state["waiting"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|held| held["kind"] == "few_clients")
    };
    ask_until(&clients, is_held);
    let why = pilot.wait_until_held_by("few_clients");
    assert!(why.contains("affinity = \"connection\""), "{why}");
}
