//! What the daemon does with the kernel, and when: without root, by inputs alone.

mod any_order;
mod rollouts;

use mirror_api::{CanaryChange, Change, Rest};
use mirror_common::policy::agent_state;
use mirror_common::tunnel::Arm;
use mirror_common::verdict::Reason;
use mirror_rollout::Share;

use super::world::{FILE, World, view};
use super::*;
use crate::daemon::health::Failure;
use crate::daemon::lro::Device;
use crate::daemon::sender::What;
use crate::offload::Lro;

const SECOND: Duration = Duration::from_secs(1);

fn canary(service: &str, change: CanaryChange) -> Command {
    let service = service.to_owned();
    Command::Canary { service, change }
}

fn set(service: &str, parts: u32) -> Command {
    canary(service, CanaryChange::Share(Share::of_parts(parts)))
}

fn mirror(change: Change) -> Command {
    let service = "a".to_owned();
    Command::Mirror { service, change }
}

fn share(parts: u32) -> Share {
    Share::of_parts(parts)
}

#[test]
fn the_network_that_was_seen_says_what_is_attached() {
    let mut world = World::new(FILE);
    let attached = |world: &World| -> Vec<(String, bool, bool)> {
        let state = world.kernel.state();
        let roles = state.attached.iter();
        roles
            .map(|(name, role)| (name.clone(), role.tapped, role.answers))
            .collect()
    };
    let both = [("eth0", true, false), ("eth1", false, true)];
    let both = both.map(|(name, tapped, answers)| (name.to_owned(), tapped, answers));
    assert_eq!(attached(&world), both);
    // One that has gone is no longer attached; where nothing can be seen all stays.
    world.input(Input::Network(Some(Err("no socket".to_owned()))));
    assert_eq!(attached(&world), both);
    let mut gone = View::clone(&view());
    gone.links.insert("eth0".to_owned(), None);
    world.input(Input::Network(Some(Ok(Arc::new(gone)))));
    assert_eq!(attached(&world), both[1..]);
    world.input(Input::Network(Some(Ok(view()))));
    assert_eq!(attached(&world), both);
    world.command(Command::Off);
    assert_eq!(attached(&world), []);
}

#[test]
fn a_hook_that_fails_is_told_and_tried_again() {
    let mut world = World::new(FILE);
    world.kernel.state().refuses_hook = Some("eth0".to_owned());
    world.command(Command::Off);
    world.command(mirror(Change::On));
    world.write_all();
    let status = |world: &World| {
        let published = world.core.published.borrow();
        published.status.interfaces[0].clone()
    };
    let refused = status(&world);
    assert!(!refused.attached && refused.error.is_some(), "{refused:?}");
    world.kernel.state().refuses_hook = None;
    world.pass(SECOND);
    assert!(status(&world).attached);
}

#[test]
fn what_lowers_is_in_the_kernel_before_anything_else_begins() {
    let mut world = World::new(FILE);
    let raised = world.command(set("a", 5_000));
    assert_eq!(world.share("a"), Share::NONE, "the disk does not have it");
    assert!(world.answer(raised).is_none());
    world.write_all();
    assert_eq!(world.share("a"), share(5_000));
    assert!(world.answer(raised).unwrap().is_ok());

    // The effects of this are not even performed.
    let off = Input::Command(
        99,
        Caller::default(),
        canary("a", CanaryChange::Off(Rest::Reset)),
    );
    let effects = world.core.handle(off, world.now);
    assert_eq!(world.share("a"), Share::NONE);
    let kinds = effects.iter().filter_map(|effect| match effect {
        Effect::Persist(..) => Some("persist"),
        Effect::End(_) => Some("end"),
        _ => None,
    });
    assert_eq!(kinds.collect::<Vec<_>>(), ["persist", "end"]);

    assert_eq!(world.copies("a"), Some(0.5));
    let off = Input::Command(100, Caller::default(), mirror(Change::Off));
    world.core.handle(off, world.now);
    assert_eq!(world.copies("a"), None);
}

/// A map that cannot be written is the one thing that a reduction waits for: it is tried at every turn,
/// and the heartbeat stops meanwhile, so that copying ends in any case.
#[test]
fn without_the_kernel_there_is_no_heartbeat() {
    let mut world = World::new(FILE);
    world.command(set("a", 5_000));
    world.write_all();
    world.kernel.state().refuses_maps = true;
    world.command(canary("a", CanaryChange::Off(Rest::Finish)));
    let before = world.beats;
    world.pass(SECOND);
    assert_eq!((world.share("a"), world.beats), (share(5_000), before));
    let warnings = world.core.published.borrow().status.warnings.clone();
    let said = warnings
        .iter()
        .any(|said| said.contains("cannot be written"));
    assert!(said, "{warnings:?}");
    world.kernel.state().refuses_maps = false;
    world.pass(SECOND);
    assert_eq!(world.share("a"), Share::NONE);
    assert!(world.beats > before);
}

#[test]
fn a_canary_s_connections_may_finish_until_their_time_is_over() {
    let mut world = World::new(FILE);
    world.command(set("a", 5_000));
    world.write_all();
    world.command(canary("a", CanaryChange::Off(Rest::Drain(3_000))));
    world.pass(2 * SECOND);
    assert!(world.ended.is_empty());
    world.pass(SECOND);
    let job = world.ended.pop_front().unwrap();
    assert_eq!((job.service.as_str(), job.ticket), ("a", None));
    // Who asks for a reset waits for it.
    world.command(set("a", 5_000));
    world.write_all();
    let ticket = world.command(canary("a", CanaryChange::Off(Rest::Reset)));
    world.write_all();
    assert!(world.answer(ticket).is_none());
    let job = world.ended.pop_front().unwrap();
    let outcome = Ok(12);
    world.input(Input::Ended(Ended { job, outcome }));
    let done = world.answer(ticket).unwrap().unwrap();
    assert!(done.done.iter().any(|said| said.contains("12")), "{done:?}");
}

#[test]
fn a_canary_elsewhere_that_does_not_answer_is_told_to_the_programs() {
    let mut world = World::new(FILE);
    let at: SocketAddr = ([10, 1, 0, 9], 91).into();
    assert_eq!(world.dialled, BTreeSet::from([at]));
    let row = world.core.row("b").unwrap();
    let mut dialled = |failure: Option<Failure>| {
        let canary = at;
        world.input(Input::Dialled(Attempt { canary, failure }));
        world
            .kernel
            .state()
            .health
            .get(&row)
            .map(|health| health.down)
    };
    assert_eq!(dialled(None), Some(0));
    let theirs = Failure::Theirs("refused".to_owned());
    assert_eq!(dialled(Some(theirs)), Some(1));
    // That this host lacks something says nothing of the canary.
    let ours = Failure::Ours("no descriptors".to_owned());
    assert_eq!(dialled(Some(ours)), Some(1));
    assert_eq!(dialled(None), Some(0));
}

/// The network, where eth1 (towards the canary of "b") stands on a NIC, which merges or not.
fn merging(lro: Lro) -> Input {
    let mut view = View::clone(&view());
    let device = |name: &str, index, lro| Device {
        name: name.to_owned(),
        index,
        lro,
    };
    let below = vec![device("eth1", 3, Lro::Off), device("nic0", 4, lro)];
    let own = vec![device("eth0", 2, Lro::Off)];
    view.receivers = [("eth0".to_owned(), own), ("eth1".to_owned(), below)].into();
    Input::Network(Some(Ok(Arc::new(view))))
}

/// What status says of the canary of "b".
fn said_of_b(world: &World) -> Option<String> {
    let published = world.core.published.borrow();
    let canary = published.status.services[1].canary.as_ref().unwrap();
    canary.error.clone()
}

#[test]
fn lro_is_off_before_the_first_connection_is_given_to_another_host() {
    let mut world = World::new(FILE);
    world.input(merging(Lro::On));
    let all = [("eth0", 2), ("eth1", 3), ("nic0", 4)];
    let all = all.map(|(name, index)| (name.to_owned(), index));
    assert_eq!(world.lro_off.last().unwrap(), &Devices::from(all));
    let asked = world.lro_off.len();
    let raised = world.command(set("b", 5_000));
    world.write_all();
    assert!(world.answer(raised).unwrap().is_ok());
    assert_eq!(world.share("b"), Share::NONE);
    assert!(said_of_b(&world).unwrap().contains("LRO of nic0"));
    // The canary of this host is none of it.
    world.command(set("a", 5_000));
    world.write_all();
    assert_eq!(world.share("a"), share(5_000));
    // What fails is tried again, and said.
    assert_eq!(world.lro_off.len(), asked);
    let why = ("nic0".to_owned(), "no space left".to_owned());
    world.input(Input::Lro([why].into()));
    assert!(said_of_b(&world).unwrap().contains("no space left"));
    world.pass(SECOND);
    assert_eq!(world.lro_off.len(), asked + 1);
    world.input(Input::Lro(Failures::new()));
    world.input(merging(Lro::Off));
    assert_eq!((world.share("b"), said_of_b(&world)), (share(5_000), None));
    // It comes back with `off`.
    world.command(Command::Off);
    assert_eq!(world.lro_off.last().unwrap(), &Devices::new());
}

#[test]
fn a_device_that_always_merges_keeps_the_canary_of_another_host_from_its_share() {
    let mut world = World::new(FILE);
    world.command(set("b", 5_000));
    world.input(merging(Lro::Fixed));
    world.write_all();
    assert_eq!(world.share("b"), Share::NONE);
    let said = said_of_b(&world).unwrap();
    assert!(said.contains("nic0 merges what it receives"), "{said}");
    let refused = world.command(set("b", 6_000));
    assert!(world.answer(refused).unwrap().unwrap_err().contains("LRO"));
}

#[test]
fn connections_that_do_not_arrive_cost_the_share() {
    let mut world = World::new(FILE);
    world.command(set("a", 5_000));
    world.write_all();
    world.pass(SECOND);
    let row = world.core.row("a").unwrap();
    let given = mirror_common::steer::Arrivals {
        given: 3,
        arrived: 0,
    };
    world.kernel.state().arrivals.insert(row, given);
    world
        .kernel
        .count_arm(row, Arm::Canary, |arm| arm.unanswered = 3);
    world.pass(SECOND);
    assert_eq!(world.share("a"), Share::NONE);
    let status = world.core.published.borrow().status.clone();
    let why = status.services[0].canary.as_ref().unwrap().error.clone();
    assert!(
        why.as_deref()
            .unwrap_or_default()
            .contains("share withdrawn"),
        "{why:?}"
    );
    // And it stays so, also when the daemon dies before the disk has it.
    world.crash(false);
    world.input(Input::Network(Some(Ok(view()))));
    assert_eq!(world.share("a"), Share::NONE);
}

#[test]
fn nobody_is_sent_where_nobody_listens() {
    let mut world = World::new(FILE);
    world.command(set("a", 5_000));
    world.write_all();
    world
        .kernel
        .state()
        .listeners
        .retain(|one| one.address.port() != 80);
    let ticket = world.command(canary("a", CanaryChange::Off(Rest::Finish)));
    assert!(
        world
            .answer(ticket)
            .unwrap()
            .unwrap_err()
            .contains("nobody listens for v1")
    );
    assert_eq!(world.share("a"), share(5_000));
    world.command(canary("a", CanaryChange::ForceOff(Rest::Finish)));
    assert_eq!(world.share("a"), Share::NONE);
}

#[test]
fn more_copies_than_the_budget_allows_lower_the_sample() {
    let file = FILE.replace("sample = 0.5", "sample = 0.5, max_bytes_per_second = 1_000");
    let mut world = World::new(&file);
    let row = world.core.row("a").unwrap();
    for _ in 0..5 {
        world.kernel.count(row * 2, |counters| {
            counters.mirrored_bytes += 100_000;
            counters.packets[Reason::Mirrored as usize] += 100;
        });
        world.pass(SECOND);
    }
    let copied = world.copies("a").unwrap();
    assert!(copied < 0.5, "{copied}");
    for _ in 0..60 {
        world.pass(SECOND);
    }
    assert_eq!(world.copies("a"), Some(0.5), "there is room again");
}

/// What the kernel sends by itself is sent to an agent only while that answers.
#[test]
fn an_agent_that_is_silent_is_not_sent_to() {
    let file = FILE.replace("insecure = true", "insecure = true, transport = \"geneve\"");
    let mut world = World::new(&file);
    let peer: SocketAddr = ([10, 0, 0, 9], 6181).into();
    let mut seen = View::clone(&view());
    let mut way = crate::daemon::fixtures::way();
    way.link = crate::daemon::fixtures::link("eth1", 3);
    seen.ways.insert(peer, Ok(way));
    world.input(Input::Network(Some(Ok(Arc::new(seen)))));
    let number = world.connected[0];
    let is_alive = |world: &World| {
        let state = world.kernel.state();
        let way = state.agents.get(&number);
        way.is_some_and(|way| way.state & agent_state::ALIVE != 0)
    };
    assert!(!is_alive(&world));
    let what = What::Connected {
        peer,
        name: "node".to_owned(),
        tap: 1,
    };
    world.input(Input::Agent(Event { number, what }));
    let echo = |world: &World| What::Echo {
        sent_at_ns: world.now.ns,
    };
    let what = echo(&world);
    world.input(Input::Agent(Event { number, what }));
    assert!(is_alive(&world));
    for _ in 0..6 {
        world.pass(SECOND / 2);
    }
    assert!(!is_alive(&world), "3 s without an answer");
    let what = echo(&world);
    world.input(Input::Agent(Event { number, what }));
    assert!(is_alive(&world));
    // Clones that leave without their headers: the hook is attached anew.
    world.kernel.state().escaped.insert(number, 3);
    world.pass(SECOND);
    let state = world.kernel.state();
    assert_eq!((state.reattached, state.escaped.len()), (1, 0));
}

#[test]
fn a_reload_changes_what_it_can_and_a_bad_one_nothing() {
    let mut world = World::new(FILE);
    let reload = |world: &mut World, read: Result<&str, &str>| {
        let read = read.map(|text| (crate::config::node(text).unwrap(), Past::new()));
        world.input(Input::Reloaded(Box::new(read.map_err(str::to_owned))));
        world.write_all();
        world.core.published.borrow().status.clone()
    };
    let status = reload(&mut world, Err("line 3: no"));
    assert_eq!(status.services.len(), 2);
    let said = |status: &mirror_api::Status| status.warnings.join("; ");
    assert!(said(&status).contains("line 3: no"));

    // Another name for a service, and another agent: the first one hears the last of it.
    let rows = |world: &World| ["a", "c"].map(|name| world.core.row(name));
    let before = rows(&world);
    let other = FILE
        .replace("name = \"b\"\nid = 2", "name = \"c\"\nid = 3")
        .replace("10.0.0.9:6181", "10.0.0.9:6182");
    let status = reload(&mut world, Ok(&other));
    assert!(!said(&status).contains("line 3: no"));
    assert_eq!(rows(&world)[0], before[0], "who stays keeps its row");
    assert!(rows(&world)[1].is_some() && world.core.row("b").is_none());
    world.pass(SECOND);
    assert_eq!((world.connected.len(), world.left.len()), (2, 1));
    assert_eq!(rings(&world).len(), 1);
}

/// The rings of agents.
fn rings(world: &World) -> Vec<u32> {
    let mut rings = world.kernel.ring_numbers();
    rings.retain(|number| *number < mirror_common::policy::MAX_AGENTS);
    rings
}

#[test]
fn a_daemon_that_comes_back_finds_its_rows_and_rings() {
    let mut world = World::new(FILE);
    world.command(set("a", 2_500));
    world.write_all();
    let rows = ["a", "b"].map(|name| world.core.row(name));
    let had = rings(&world);
    world.crash(true);
    assert_eq!(["a", "b"].map(|name| world.core.row(name)), rows);
    assert_eq!(world.share("a"), share(2_500), "before the network is seen");
    world.input(Input::Network(Some(Ok(view()))));
    assert_eq!(world.share("a"), share(2_500));
    assert_eq!(rings(&world), had);
}

/// Whoever asked for what cannot be done by a fault of ours hears nothing; everybody else is served.
#[test]
fn a_failure_inside_is_not_the_end() {
    let mut world = World::new(FILE);
    world.command(set("a", 5_000));
    world.write_all();
    world.kernel.state().panics = true;
    let off = Input::Command(
        99,
        Caller::default(),
        canary("a", CanaryChange::Off(Rest::Finish)),
    );
    let dealt_with = mirror_base::guard::guarded(|| world.core.handle(off, world.now));
    assert!(dealt_with.is_none());
    assert_eq!(world.core.left_over().len(), 0);
    let ticket = world.command(canary("a", CanaryChange::ForceOff(Rest::Finish)));
    assert_eq!(world.share("a"), Share::NONE);
    world.write_all();
    assert!(world.answer(ticket).unwrap().is_ok());
}

#[test]
fn an_idle_agent_is_told_nothing() {
    let mut world = World::new(FILE);
    let number = world.connected[0];
    let what = What::Connected {
        peer: ([10, 0, 0, 9], 6181).into(),
        name: "node".to_owned(),
        tap: 1,
    };
    world.input(Input::Agent(Event { number, what }));
    let sent_at_ns = world.now.ns;
    let what = What::Echo { sent_at_ns };
    world.input(Input::Agent(Event { number, what }));
    world.pass(SECOND);
    let reports = world.reports;
    for _ in 0..10 {
        world.pass(SECOND);
    }
    assert_eq!(world.reports, reports);
}
