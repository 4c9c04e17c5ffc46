//! Rollouts as the daemon drives them.

use mirror_api::{Promote, RolloutOrder, Start};
use mirror_rollout::plan::{Hook, HookPoint, Plan};
use mirror_rollout::state::By;

use super::*;

fn order(world: &mut World, service: &str, order: RolloutOrder) -> Ticket {
    let service = service.to_owned();
    world.command(Command::Rollout { service, order })
}

fn promote(world: &mut World, service: &str) -> Ticket {
    let by = By::default();
    order(
        world,
        service,
        RolloutOrder::Promote(Promote { all: false, by }),
    )
}

fn state(world: &World, service: &str) -> String {
    world.core.rollouts.state(service).unwrap().state
}

/// Nothing goes forward before the record has it; taking back waits for nothing.
#[test]
fn forward_after_the_record_and_back_before_it() {
    let mut world = World::new(FILE);
    let started = world.start_rollout("a", |plan| {
        plan.stages = [100, 5_000, 10_000].map(Share::of_parts).to_vec();
    });
    assert!(world.answer(started).is_none());
    world.pass(SECOND);
    assert_eq!(world.share("a"), Share::NONE, "nothing is written yet");
    world.write_all();
    world.pass(SECOND);
    world.write_all();
    assert!(world.answer(started).unwrap().is_ok());
    assert_eq!(world.share("a"), share(100), "{}", state(&world, "a"));

    promote(&mut world, "a");
    assert_eq!(world.share("a"), share(100), "the record does not have it");
    world.write_all();
    assert_eq!(world.share("a"), share(5_000));

    // A disk that fails holds it, and does not keep anybody from going back.
    world.works = false;
    promote(&mut world, "a");
    world.write();
    world.pass(SECOND);
    assert_eq!(world.share("a"), share(5_000));
    let by = By::default();
    let abort = RolloutOrder::Abort(by);
    let input = Input::Command(
        99,
        Caller::default(),
        Command::Rollout {
            service: "a".to_owned(),
            order: abort,
        },
    );
    let effects = world.core.handle(input, world.now);
    assert_eq!(world.share("a"), Share::NONE);
    assert!(
        matches!(effects.first(), Some(Effect::Append(_))),
        "{effects:?}"
    );
}

/// It says what would be done, or why nothing can, and nothing is done.
#[test]
fn a_dry_run_changes_nothing() {
    let mut world = World::new(FILE);
    let dry_run = |world: &mut World, version: &str| {
        let start = Start {
            version: Some(version.to_owned()),
            plan: Some(Plan {
                shadow: None,
                ..Plan::default()
            }),
            ..Start::default()
        };
        let ticket = order(world, "a", RolloutOrder::DryRun(Box::new(start)));
        world.look_back();
        match world.answer(ticket).unwrap() {
            Ok(done) => done.done.join("\n"),
            Err(refusal) => refusal,
        }
    };
    let said = dry_run(&mut world, "v3");
    assert!(
        said.contains("nothing was begun") && said.contains("v3 at") && said.contains("Then "),
        "{said}"
    );
    world.write_all();
    world.pass(SECOND);
    assert!(world.records.is_empty(), "{:?}", world.records);
    assert!(world.core.rollouts.state("a").is_none());
    assert_eq!(world.share("a"), Share::NONE);

    let stable = world.core.find("a").unwrap().config.stable_version.clone();
    let refused = dry_run(&mut world, &stable);
    assert!(
        refused.contains("is the version in production"),
        "{refused}"
    );
    world.start_rollout("a", |_| {});
    world.write_all();
    let running = dry_run(&mut world, "v4");
    assert!(running.contains("a rollout of v3 has"), "{running}");
}

/// The record lost what the kernel knows: the next daemon goes by the kernel.
#[test]
fn what_was_taken_back_stays_so_whatever_became_of_the_record() {
    for lands in [false, true] {
        let mut world = World::new(FILE);
        world.start_rollout("a", |plan| {
            plan.stages = [5_000, 10_000].map(Share::of_parts).to_vec()
        });
        world.write_all();
        world.pass(SECOND);
        world.write_all();
        assert_eq!(world.share("a"), share(5_000));
        order(&mut world, "a", RolloutOrder::Abort(By::default()));
        assert_eq!(world.share("a"), Share::NONE);
        world.crash(lands);
        world.input(Input::Network(Some(Ok(view()))));
        world.pass(SECOND);
        assert_eq!(world.share("a"), Share::NONE);
        let said = state(&world, "a");
        assert!(
            said.contains("abort") || said.contains("back"),
            "{lands}: {said}"
        );
    }
}

/// A canary elsewhere that refuses for 2 s is taken back, and its connections end.
#[test]
fn an_outage_takes_a_canary_back() {
    let mut world = World::new(FILE);
    world.start_rollout("b", |plan| {
        plan.stages = [5_000, 10_000].map(Share::of_parts).to_vec()
    });
    world.write_all();
    world.pass(SECOND);
    world.write_all();
    assert_eq!(world.share("b"), share(5_000));
    let canary: SocketAddr = ([10, 1, 0, 9], 91).into();
    let dialled = |world: &mut World, failure| {
        world.input(Input::Dialled(Attempt { canary, failure }));
    };
    let refused = || Some(Failure::Theirs("refused".to_owned()));
    dialled(&mut world, refused());
    world.pass(SECOND);
    assert_eq!(world.share("b"), share(5_000), "a moment");
    for _ in 0..8 {
        dialled(&mut world, refused());
        world.pass(SECOND / 2);
    }
    assert_eq!(world.share("b"), Share::NONE, "{}", state(&world, "b"));
    world.write_all();
    world.pass(SECOND);
    assert!(
        state(&world, "b").contains("back"),
        "{}",
        state(&world, "b")
    );
    assert!(
        world.ended.iter().any(|job| job.service == "b"),
        "{:?}",
        world.ended
    );
}

/// A hook is told what the record has, and no sooner.
#[test]
fn hooks_are_called_when_the_record_has_it() {
    let mut world = World::new(FILE);
    world.start_rollout("a", |plan| {
        plan.stages = [5_000, 10_000].map(Share::of_parts).to_vec();
        plan.hooks = vec![Hook {
            on: HookPoint::Before,
            url: "http://10.0.0.1/start".into(),
            headers_file: None,
            approve: false,
            timeout: SECOND,
        }];
    });
    world.pass(SECOND);
    assert!(world.questions.is_empty(), "{:?}", world.questions);
    world.write_all();
    world.pass(SECOND);
    assert_eq!(world.questions.len(), 1, "{:?}", world.questions);
}

/// More connections than a canary on another host can have ports for are known before it starts.
#[test]
fn a_share_that_finds_no_ports_is_refused() {
    let mut world = World::new(FILE);
    let row = world.core.row("b").unwrap();
    world
        .kernel
        .count_arm(row, Arm::Stable, |arm| arm.choices[0] = 20_000);
    for _ in 0..6 {
        world.pass(SECOND);
    }
    let some = |parts| move |plan: &mut Plan| plan.stages = vec![share(parts), Share::ALL];
    let ticket = world.start_rollout("b", some(1_000));
    let why = world.answer(ticket).unwrap().unwrap_err();
    assert!(
        why.contains("20000 connections are open") && why.contains("room for"),
        "{why}"
    );
    let at_home = world.start_rollout("a", some(1_000));
    world.write_all();
    assert!(world.answer(at_home).unwrap().is_ok());
}

#[test]
fn a_running_rollout_has_its_canary_to_itself() {
    let mut world = World::new(FILE);
    world.start_rollout("a", |_| {});
    world.write_all();
    let ticket = world.command(set("a", 5_000));
    let why = world.answer(ticket).unwrap().unwrap_err();
    assert!(why.contains("a rollout of v3"), "{why}");
    let second = world.start_rollout("a", |_| {});
    let why = world.answer(second).unwrap().unwrap_err();
    assert!(why.contains("a rollout of v3"), "{why}");
    let off = canary("a", CanaryChange::Off(Rest::Finish));
    world.command(off);
    world.write_all();
    assert!(
        state(&world, "a").contains("abort"),
        "{}",
        state(&world, "a")
    );
    // And then the same version may be tried once more.
    let third = world.start_rollout("a", |_| {});
    world.write_all();
    assert!(world.answer(third).unwrap().is_ok());
}
