//! Whatever happens in whatever order.

use mirror_api::{Finish, Promote, RolloutOrder};
use mirror_rollout::state::By;
use proptest::prelude::*;

use super::*;

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Command(Command),
    Start(String),
    LookBack,
    Write,
    Disk(bool),
    Kernel(bool),
    Network(bool),
    Dialled(Option<Failure>),
    Pass(u64),
    Crash(bool),
}

fn by() -> By {
    By::default()
}

fn command() -> impl Strategy<Value = Command> {
    let name = || prop::sample::select(&["a", "b"]).prop_map(str::to_owned);
    let parts = prop::sample::select(&[0, 500, 1_000, 5_000, 10_000]);
    let canary = prop_oneof![
        4 => parts.prop_map(|parts| CanaryChange::Share(share(parts))),
        1 => Just(CanaryChange::Off(Rest::Finish)),
        1 => Just(CanaryChange::Off(Rest::Drain(1_500))),
        1 => Just(CanaryChange::ForceOff(Rest::Finish)),
        1 => Just(CanaryChange::Clear),
    ];
    let changes = prop_oneof![
        Just(Change::On),
        Just(Change::Off),
        Just(Change::Clear),
        prop::sample::select(&[0.0, 0.25, 1.0]).prop_map(Change::Sample),
    ];
    let orders = prop_oneof![
        4 => any::<bool>().prop_map(|all| RolloutOrder::Promote(Promote { all, by: by() })),
        1 => Just(RolloutOrder::Pause(by())),
        1 => Just(RolloutOrder::Resume(by())),
        1 => Just(RolloutOrder::Abort(by())),
        1 => Just(RolloutOrder::Finish(Finish { force: true, by: by() })),
    ];
    prop_oneof![
        4 => (name(), canary).prop_map(|(service, change)| Command::Canary { service, change }),
        3 => changes.prop_map(mirror),
        4 => (name(), orders).prop_map(|(service, order)| Command::Rollout { service, order }),
        1 => Just(Command::Off),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let name = prop::sample::select(&["a", "b"]).prop_map(str::to_owned);
    let failures = prop_oneof![
        Just(None),
        Just(Some(Failure::Theirs("refused".to_owned()))),
        Just(Some(Failure::Ours("no descriptors".to_owned()))),
    ];
    prop_oneof![
        8 => command().prop_map(Step::Command),
        3 => name.prop_map(Step::Start),
        3 => Just(Step::LookBack),
        10 => Just(Step::Write),
        1 => any::<bool>().prop_map(Step::Disk),
        1 => any::<bool>().prop_map(Step::Kernel),
        1 => any::<bool>().prop_map(Step::Network),
        2 => failures.prop_map(Step::Dialled),
        4 => (0_u64..3_000).prop_map(Step::Pass),
        2 => any::<bool>().prop_map(Step::Crash),
    ]
}

/// What holds after everything that has happened.
struct Watcher {
    /// The shares and samples that the kernel had.
    before: [(Share, f64); 2],
}

impl Watcher {
    fn of(world: &World) -> Self {
        Self {
            before: ["a", "b"].map(|name| (world.share(name), world.copies(name).unwrap_or(0.0))),
        }
    }

    /// The kernel has no more than is wanted and than the disk has, unless it refuses to be told.
    fn assert_low(&self, world: &World, step: &Step) {
        let refuses = world.kernel.state().refuses_maps;
        for (name, (share_before, copied_before)) in ["a", "b"].into_iter().zip(self.before) {
            let (share, copied) = (world.share(name), world.copies(name).unwrap_or(0.0));
            let service = world.core.find(name).unwrap();
            let configured = crate::state::Configured {
                sample: service
                    .config
                    .mirror
                    .as_ref()
                    .map_or(0.0, |mirror| mirror.sample),
                share: world.core.file.services[usize::from(name == "b")]
                    .canary
                    .as_ref()
                    .map_or(Share::NONE, |canary| canary.share),
            };
            let wanted = world.core.share(service);
            let recorded = recorded(world, name);
            let by_disk = recorded.unwrap_or_else(|| world.disk.share(name, configured));
            let stays = refuses && share == share_before;
            assert!(
                stays || share <= wanted.min(by_disk),
                "{name} has {share} of {wanted} wanted and {by_disk} on the disk after {step:?}"
            );
            let wanted = service.wanted(world.core.settings.holds());
            let wanted = if wanted.on { wanted.sample } else { 0.0 };
            let by_disk = world.disk.mirrored(name, configured);
            let stays = refuses && copied == copied_before;
            assert!(
                stays || copied <= wanted.min(by_disk) + 1e-9,
                "{name} copies {copied} of {wanted} wanted and {by_disk} on the disk after {step:?}"
            );
        }
        let is_off = world.core.settings.holds().is_off();
        let attached = world.kernel.state().attached.len();
        assert!(
            !is_off || attached == 0,
            "{attached} attached after {step:?}"
        );
    }
}

/// The share that the record of a running rollout allows; nothing where the disk has none that runs.
fn recorded(world: &World, service: &str) -> Option<Share> {
    let state = world.core.rollouts.share(service)?;
    let running = world.core.rollouts.state(service)?;
    let record = format!("{service}/{}.jsonl", running.id);
    let mut paths = world.records.iter();
    let found = paths.find(|(path, _)| path.ends_with(&record));
    let Some((path, text)) = found else {
        return Some(Share::NONE);
    };
    let lines: Vec<_> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let last = crate::daemon::rollout::Last::replay(path, &lines).unwrap();
    let allowed = last.map_or(Share::NONE, |last| last.share());
    Some(allowed.max(state.min(allowed)))
}

fn perform(world: &mut World, step: &Step) {
    match step {
        Step::Command(command) => drop(world.command(command.clone())),
        Step::Start(service) => drop(world.start_rollout_later(service, |plan| {
            plan.stages = [100, 5_000, 10_000].map(Share::of_parts).to_vec();
        })),
        Step::LookBack => world.look_back(),
        Step::Write => world.write(),
        Step::Disk(works) => world.works = *works,
        Step::Kernel(works) => {
            world.kernel.state().refuses_maps = !works;
            world.pass(SECOND);
        }
        Step::Network(works) => {
            let look = if *works {
                Ok(view())
            } else {
                Err("no socket".to_owned())
            };
            world.input(Input::Network(Some(look)));
        }
        Step::Dialled(failure) => world.input(Input::Dialled(Attempt {
            canary: ([10, 1, 0, 9], 91).into(),
            failure: failure.clone(),
        })),
        Step::Pass(milliseconds) => world.pass(Duration::from_millis(*milliseconds)),
        Step::Crash(lands) => {
            world.crash(*lands);
            world.input(Input::Network(Some(Ok(view()))));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// What lowers is in the kernel when an input has been dealt with, before any effect; what raises is
    /// there only when the disk has it. Everybody is answered once.
    #[test]
    fn nothing_precedes_a_reduction_and_the_disk_has_what_was_raised(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(FILE);
        let mut asked = 0;
        for step in &steps {
            let watcher = Watcher::of(&world);
            perform(&mut world, step);
            watcher.assert_low(&world, step);
            if matches!(step, Step::Crash(_)) {
                asked = world.tickets();
            }
        }
        // Once everything works, the kernel has what is wanted, and all have been answered.
        world.kernel.state().refuses_maps = false;
        world.works = true;
        world.look_back();
        world.write_all();
        world.pass(SECOND);
        world.write_all();
        world.pass(60 * SECOND);
        world.write_all();
        for name in ["a", "b"] {
            let service = world.core.find(name).unwrap();
            prop_assert_eq!(world.share(name), world.core.share(service), "{}", name);
        }
        let unanswered: Vec<_> = (asked + 1..=world.tickets()).filter(|ticket| !world.answers.contains_key(ticket)).collect();
        prop_assert!(unanswered.is_empty(), "nobody answered {:?}", unanswered);
    }
}
